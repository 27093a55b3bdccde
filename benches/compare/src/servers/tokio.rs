//! tokio, current-thread runtime.

use super::outbox::Messages;
use super::{
    DATAGRAM_BUFFER, FANOUT_BACKLOG, Job, MESSAGE, PUBLISHER, STREAM_BUFFER, SUBSCRIBER, micro, tls,
};
use crate::scenario::Role;
use crate::sys;
use bytes::Bytes;
use slab::Slab;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

pub fn serve(job: Job) -> io::Result<()> {
    runtime()?.block_on(async move {
        if matches!(job.role, Role::Udp | Role::BulkUdp) {
            return serve_udp(job).await;
        }
        let listener = TcpListener::from_std(sys::listener(job.address)?)?;
        if job.role == Role::Tls {
            return serve_tls(job, listener).await;
        }
        job.ready();
        let room = Room::default();
        loop {
            let (stream, _) = listener.accept().await?;
            if job.role == Role::FanOut {
                tokio::spawn(member(stream, Arc::clone(&room)));
            } else {
                tokio::spawn(echo(stream));
            }
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(STREAM_BUFFER);
    while stream.read_buf(&mut buffer).await? > 0 {
        stream.write_all(&buffer).await?;
        buffer.clear();
    }
    Ok(())
}

async fn serve_tls(job: Job, listener: TcpListener) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(tls::config()?);
    job.ready();
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo_tls(acceptor.clone(), stream));
    }
}

async fn echo_tls(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut buffer = Vec::with_capacity(STREAM_BUFFER);
    while stream.read_buf(&mut buffer).await? > 0 {
        stream.write_all(&buffer).await?;
        stream.flush().await?;
        buffer.clear();
    }
    Ok(())
}

async fn serve_udp(job: Job) -> io::Result<()> {
    let socket = UdpSocket::from_std(sys::udp_socket(job.address)?)?;
    let mut buffer = vec![0; DATAGRAM_BUFFER];
    job.ready();
    loop {
        // What one peer's datagram met is no reason to stop.
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
        let _ = socket.send_to(&buffer[..n], from).await;
    }
}

/// The queues of all subscribers. Each holds as many messages as make up the backlog.
type Room = Arc<Mutex<Slab<mpsc::Sender<Bytes>>>>;

async fn member(mut stream: TcpStream, room: Room) -> io::Result<()> {
    let kind = stream.read_u8().await?;
    match kind {
        PUBLISHER => {
            stream.write_u8(kind).await?;
            let (mut buffer, mut messages) = (vec![0; STREAM_BUFFER], Messages::default());
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    return Ok(());
                }
                let members = room.lock().expect("nobody panicked");
                for message in messages.feed(&buffer[..n]) {
                    // Full: this subscriber misses the message.
                    members.iter().for_each(|(_, queue)| drop(queue.try_send(message.clone())));
                }
            }
        }
        SUBSCRIBER => {
            let (sender, mut queue) = mpsc::channel(FANOUT_BACKLOG / MESSAGE);
            let place = room.lock().expect("nobody panicked").insert(sender);
            let outcome = write_all(&mut stream, &mut queue).await;
            room.lock().expect("nobody panicked").remove(place);
            outcome
        }
        _ => Ok(()),
    }
}

async fn write_all(stream: &mut TcpStream, queue: &mut mpsc::Receiver<Bytes>) -> io::Result<()> {
    stream.write_u8(SUBSCRIBER).await?;
    let (mut taken, mut bytes) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut taken, 2048).await > 0 {
        bytes.clear();
        taken.drain(..).for_each(|message: Bytes| bytes.extend_from_slice(&message));
        stream.write_all(&bytes).await?;
    }
    Ok(())
}

pub fn micro(role: Role, count: usize) -> io::Result<f64> {
    Ok(runtime()?.block_on(async {
        if role == Role::Tasks {
            return micro::turns(count, tokio::spawn).await;
        }
        let now = Instant::now();
        let mut timers: Vec<_> =
            (0..count).map(|at| Box::pin(sleep_until(micro::deadline(now, at).into()))).collect();
        for timer in &mut timers {
            micro::poll_once::<Sleep>(timer.as_mut()).await;
        }
        micro::resets(count, |at, deadline| timers[at].as_mut().reset(deadline.into())).await
    }))
}
