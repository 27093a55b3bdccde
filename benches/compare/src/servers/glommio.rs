//! glommio's local executor.

use super::outbox::{Messages, Room};
use super::{DATAGRAM_BUFFER, Job, PUBLISHER, STREAM_BUFFER, SUBSCRIBER, micro};
use crate::scenario::Role;
use crate::sys;
use futures_lite::io::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream, UdpSocket};
use glommio::timer::Timer;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, spawn_local};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::Instant;

fn executor() -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(Placement::Unbound).make().map_err(|error| io::Error::other(error.to_string()))
}

pub fn serve(job: Job) -> io::Result<()> {
    executor()?.run(async move {
        if matches!(job.role, Role::Udp | Role::BulkUdp) {
            return serve_udp(job).await;
        }
        let fd = sys::listener(job.address)?.into_raw_fd();
        // SAFETY: the descriptor is open and was given up by its owner in the line above.
        let listener = unsafe { TcpListener::from_raw_fd(fd) };
        job.ready();
        let room = Room::default();
        loop {
            let stream = listener.accept().await?;
            if job.role == Role::FanOut {
                spawn_local(member(stream, room.clone())).detach();
            } else {
                spawn_local(echo(stream)).detach();
            }
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; STREAM_BUFFER];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

async fn serve_udp(job: Job) -> io::Result<()> {
    let fd = sys::udp_socket(job.address)?.into_raw_fd();
    // SAFETY: the descriptor is open and was given up by its owner in the line above.
    let socket = unsafe { UdpSocket::from_raw_fd(fd) };
    let mut buffer = vec![0; DATAGRAM_BUFFER];
    job.ready();
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
        let _ = socket.send_to(&buffer[..n], from).await;
    }
}

async fn member(mut stream: TcpStream, room: Room) -> io::Result<()> {
    let mut kind = [0];
    stream.read_exact(&mut kind).await?;
    match kind[0] {
        PUBLISHER => {
            stream.write_all(&kind).await?;
            let (mut buffer, mut messages) = (vec![0; STREAM_BUFFER], Messages::default());
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    return Ok(());
                }
                room.publish(messages.feed(&buffer[..n]));
            }
        }
        SUBSCRIBER => {
            let (place, outbox) = room.join();
            let mut bytes = kind.to_vec();
            loop {
                if let Err(error) = stream.write_all(&bytes).await {
                    room.leave(place);
                    return Err(error);
                }
                bytes = outbox.take(bytes).await;
            }
        }
        _ => Ok(()),
    }
}

pub fn micro(role: Role, count: usize) -> io::Result<f64> {
    Ok(executor()?.run(async move {
        if role == Role::Tasks {
            return micro::turns(count, spawn_local).await;
        }
        let now = Instant::now();
        let timer = |at| Timer::new(micro::deadline(now, at) - now);
        let mut timers: Vec<_> = (0..count).map(|at| Box::pin(timer(at))).collect();
        // A task of glommio bears 32 767 wakers at most, so the timers are armed by several tasks.
        let mut armed = Vec::with_capacity(count);
        while !timers.is_empty() {
            let mut some = timers.split_off(timers.len().saturating_sub(10_000));
            let arm = async move {
                for timer in &mut some {
                    micro::poll_once(timer.as_mut()).await;
                }
                some
            };
            armed.extend(spawn_local(arm).await);
        }
        micro::resets(count, |at, deadline| {
            armed[at].reset(deadline.saturating_duration_since(Instant::now()));
        })
        .await
    }))
}
