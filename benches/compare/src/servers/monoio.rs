//! monoio on io_uring.

use super::outbox::{Messages, Room};
use super::{DATAGRAM_BUFFER, Job, PUBLISHER, STREAM_BUFFER, SUBSCRIBER, micro};
use crate::scenario::Role;
use crate::sys;
use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream, udp::UdpSocket};
use monoio::time::sleep_until;
use monoio::{IoUringDriver, RuntimeBuilder, spawn};
use std::io;
use std::time::Instant;

fn run<T>(main: impl Future<Output = T>) -> io::Result<T> {
    let mut ring = io_uring_06::IoUring::builder();
    ring.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring).enable_timer();
    Ok(builder.build()?.block_on(main))
}

pub fn serve(job: Job) -> io::Result<()> {
    run(async move {
        if matches!(job.role, Role::Udp | Role::BulkUdp) {
            return serve_udp(job).await;
        }
        let listener = TcpListener::from_std(sys::listener(job.address)?)?;
        job.ready();
        let room = Room::default();
        loop {
            let (stream, _) = listener.accept().await?;
            if job.role == Role::FanOut {
                spawn(member(stream, room.clone()));
            } else {
                spawn(echo(stream));
            }
        }
    })?
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(STREAM_BUFFER);
    loop {
        let (outcome, got) = stream.read(buffer).await;
        if outcome? == 0 {
            return Ok(());
        }
        let (outcome, mut sent) = stream.write_all(got).await;
        outcome?;
        sent.clear();
        buffer = sent;
    }
}

async fn serve_udp(job: Job) -> io::Result<()> {
    let socket = UdpSocket::from_std(sys::udp_socket(job.address)?)?;
    let mut buffer = Vec::with_capacity(DATAGRAM_BUFFER);
    job.ready();
    loop {
        let (outcome, got) = socket.recv_from(buffer).await;
        buffer = match outcome {
            Ok((n, from)) => socket.send_to(got.slice(..n), from).await.1.into_inner(),
            Err(_) => got,
        };
        buffer.clear();
    }
}

async fn member(mut stream: TcpStream, room: Room) -> io::Result<()> {
    let (outcome, kind) = stream.read(Vec::with_capacity(1)).await;
    if outcome? == 0 {
        return Ok(());
    }
    match kind[0] {
        PUBLISHER => {
            stream.write_all(kind).await.0?;
            let (mut buffer, mut messages) = (Vec::with_capacity(STREAM_BUFFER), Messages::default());
            loop {
                let (outcome, got) = stream.read(buffer).await;
                if outcome? == 0 {
                    return Ok(());
                }
                room.publish(messages.feed(&got));
                buffer = got;
                buffer.clear();
            }
        }
        SUBSCRIBER => {
            let (place, outbox) = room.join();
            let mut bytes = kind;
            loop {
                let (outcome, sent) = stream.write_all(bytes).await;
                if let Err(error) = outcome {
                    room.leave(place);
                    return Err(error);
                }
                bytes = outbox.take(sent).await;
            }
        }
        _ => Ok(()),
    }
}

pub fn micro(role: Role, count: usize) -> io::Result<f64> {
    run(async {
        if role == Role::Tasks {
            return micro::turns(count, spawn).await;
        }
        let now = Instant::now();
        let deadline = |at| monoio::time::Instant::from_std(micro::deadline(now, at));
        let mut timers: Vec<_> = (0..count).map(|at| Box::pin(sleep_until(deadline(at)))).collect();
        for timer in &mut timers {
            micro::poll_once(timer.as_mut()).await;
        }
        micro::resets(count, |at, deadline| {
            timers[at].as_mut().reset(monoio::time::Instant::from_std(deadline));
        })
        .await
    })
}
