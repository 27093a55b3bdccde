//! anabranch, async surface, on either backend.

use super::outbox::Messages;
use super::{FANOUT_BACKLOG, Job, PUBLISHER, SUBSCRIBER, anabranch_bulk, micro, tls};
use crate::scenario::Role;
use anabranch::net::{TcpListener, TcpStream, UdpSocket};
use anabranch::tls::{ServerTls, TlsAcceptor};
use anabranch::{Backend, Broadcast, Config, Shard, spawn};
use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

/// The configuration that a role needs. Everything else is the default.
pub fn config(role: Role, backend: Backend) -> Config {
    Config::new().backend(backend).with_limits(|limits| match role {
        Role::FanOut => {
            limits.outbound_bytes_max = FANOUT_BACKLOG;
            limits.outbound_bytes_total_max = 16 << 30;
        }
        _ => {}
    })
}

pub fn serve(job: Job, backend: Backend) -> io::Result<()> {
    Shard::new(config(job.role, backend))?.block_on(async move {
        match job.role {
            Role::Udp => return serve_udp(job).await,
            Role::BulkUdp => return anabranch_bulk::serve(job).await,
            _ => {}
        }
        let listener = TcpListener::bind(job.address).await?;
        if job.role == Role::Tls {
            return serve_tls(job, listener).await;
        }
        job.ready();
        let room = Rc::new(RefCell::new(Room { members: Broadcast::new()?, streams: Vec::new() }));
        loop {
            let (stream, _) = listener.accept().await?;
            if job.role == Role::FanOut {
                spawn(member(stream, Rc::clone(&room))).detach();
            } else {
                spawn(echo(stream)).detach();
            }
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}

async fn serve_tls(job: Job, listener: TcpListener) -> io::Result<()> {
    let acceptor = TlsAcceptor::new(ServerTls::from_rustls(tls::config()?));
    job.ready();
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(echo_tls(acceptor.clone(), stream)).detach();
    }
}

async fn echo_tls(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}

async fn serve_udp(job: Job) -> io::Result<()> {
    let socket = UdpSocket::bind(job.address).await?;
    socket.set_buffer_sizes(4 << 20, 4 << 20)?;
    job.ready();
    loop {
        // What one peer's datagram met is no reason to stop.
        let Ok(datagram) = socket.recv_from().await else { continue };
        let _ = socket.send_to(datagram.lease, datagram.from).await;
    }
}

/// The subscribers, and their connections, which end with the server.
struct Room {
    members: Broadcast,
    streams: Vec<TcpStream>,
}

async fn member(mut stream: TcpStream, room: Rc<RefCell<Room>>) -> io::Result<()> {
    let kind = stream.recv_exact(1).await?;
    stream.send(kind.clone()).await?;
    match kind[0] {
        PUBLISHER => {
            let mut messages = Messages::default();
            while let Some(bytes) = stream.recv().await? {
                let members = &mut room.borrow_mut().members;
                drop(members.send_all(messages.feed(&bytes)));
            }
        }
        SUBSCRIBER => {
            let mut room = room.borrow_mut();
            room.members.join(&stream)?;
            room.streams.push(stream);
        }
        _ => {}
    }
    Ok(())
}

pub fn micro(role: Role, count: usize, backend: Backend) -> io::Result<f64> {
    Ok(Shard::new(Config::new().backend(backend))?.block_on(async {
        if role == Role::Tasks {
            return micro::turns(count, spawn).await;
        }
        let now = Instant::now();
        let mut timers: Vec<_> =
            (0..count).map(|at| anabranch::sleep_until(micro::deadline(now, at))).collect();
        for timer in &mut timers {
            micro::poll_once(pin!(timer)).await;
        }
        micro::resets(count, |at, deadline| timers[at].reset(deadline)).await
    }))
}
