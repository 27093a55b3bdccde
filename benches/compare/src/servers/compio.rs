//! compio on io_uring.

use super::outbox::{Messages, Room};
use super::{DATAGRAM_BUFFER, Job, PUBLISHER, STREAM_BUFFER, SUBSCRIBER, micro};
use crate::scenario::Role;
use crate::sys;
use compio::BufResult;
use compio::buf::{IntoInner, IoBuf};
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream, UdpSocket};
use compio::runtime::{Runtime, RuntimeBuilder, spawn};
use std::io;
use std::time::Instant;

fn runtime() -> io::Result<Runtime> {
    let mut driver = compio::driver::ProactorBuilder::new();
    driver.driver_type(compio::driver::DriverType::IoUring).single_issuer(true).defer_taskrun(true);
    RuntimeBuilder::new().with_proactor(driver).build()
}

pub fn serve(job: Job) -> io::Result<()> {
    runtime()?.block_on(async move {
        if matches!(job.role, Role::Udp | Role::BulkUdp) {
            return serve_udp(job).await;
        }
        let listener = TcpListener::from_std(sys::listener(job.address)?)?;
        job.ready();
        let room = Room::default();
        loop {
            let (stream, _) = listener.accept().await?;
            if job.role == Role::FanOut {
                spawn(member(stream, room.clone())).detach();
            } else {
                spawn(echo(stream)).detach();
            }
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(STREAM_BUFFER);
    loop {
        let BufResult(outcome, got) = stream.read(buffer).await;
        if outcome? == 0 {
            return Ok(());
        }
        let BufResult(outcome, mut sent) = stream.write_all(got).await;
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
        let BufResult(outcome, got) = socket.recv_from(buffer).await;
        buffer = match outcome {
            Ok((n, from)) => socket.send_to(got.slice(..n), from).await.1.into_inner(),
            Err(_) => got,
        };
        buffer.clear();
    }
}

async fn member(mut stream: TcpStream, room: Room) -> io::Result<()> {
    let BufResult(outcome, kind) = stream.read(Vec::with_capacity(1)).await;
    if outcome? == 0 {
        return Ok(());
    }
    match kind[0] {
        PUBLISHER => {
            stream.write_all(kind).await.0?;
            let (mut buffer, mut messages) = (Vec::with_capacity(STREAM_BUFFER), Messages::default());
            loop {
                let BufResult(outcome, got) = stream.read(buffer).await;
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
                let BufResult(outcome, sent) = stream.write_all(bytes).await;
                if outcome.is_err() {
                    room.leave(place);
                    return outcome;
                }
                bytes = outbox.take(sent).await;
            }
        }
        _ => Ok(()),
    }
}

pub fn micro(role: Role, count: usize) -> io::Result<f64> {
    Ok(runtime()?.block_on(async {
        if role == Role::Tasks {
            return micro::turns(count, spawn).await;
        }
        // Its timers cannot be moved: a new one takes the place of the old.
        let now = Instant::now();
        let timer = |deadline| Box::pin(compio::time::sleep_until(deadline));
        let mut timers: Vec<_> = (0..count).map(|at| timer(micro::deadline(now, at))).collect();
        for timer in &mut timers {
            micro::poll_once(timer.as_mut()).await;
        }
        let waker = std::future::poll_fn(|context| std::task::Poll::Ready(context.waker().clone())).await;
        let mut context = std::task::Context::from_waker(&waker);
        micro::resets(count, |at, deadline| {
            timers[at] = timer(deadline);
            let _ = timers[at].as_mut().poll(&mut context);
        })
        .await
    }))
}
