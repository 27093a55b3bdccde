//! A chat: each line that somebody sends goes to everybody, on all shards.
//!
//! A connection belongs to one shard; a line reaches the others as a message. Nothing grows without bound: a client
//! whose outbound queue is full is dropped, not waited for, and a shard whose mailbox is full slows writers down.
//!
//! Try it: `cargo run --example chat`, then `nc 127.0.0.1 7003` in two terminals. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{OwnedReadHalf, OwnedWriteHalf, TcpListener};
use anabranch::{
    Backend, Config, Context, Distribution, EndpointId, JoinHandle, Runtime, Undelivered, sleep, spawn,
};
use bytes::Bytes;
use clap::Parser;
use common::stop_when_asked;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{self, Poll};
use std::time::Duration;

/// Bytes of a line at most.
const LINE_MAX: usize = 1024;

/// A chat server.
#[derive(Parser, Clone)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7003")]
    addr: SocketAddr,
    /// Shards; one thread each.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shards: u64,
    /// Bytes that may wait for a client before it is dropped.
    #[arg(long, default_value_t = 65536, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    queue: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

/// Somebody who listens. Dropping a member sends what is queued for a short time, then closes the connection.
struct Member {
    half: OwnedWriteHalf,
    reader: JoinHandle<()>,
}

thread_local! {
    /// The members on this shard.
    static ROOM: RefCell<HashMap<EndpointId, Member>> = RefCell::default();
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let config = Config::new().backend(flags.backend).with_limits(|limits| {
        limits.outbound_bytes_max = flags.queue as usize;
        limits.close_flush_ms = 500;
    });
    let settings = Runtime::builder().shards(flags.shards as usize).name("chat").config(config);
    settings.run(move |context| serve(context, flags.addr))
}

async fn serve(context: Context, address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind_group(&context, address, Distribution::Balanced)?;
    stop_when_asked(&context).await;
    if context.index() == 0 {
        println!("chatting on {}", listener.local_addr()?);
    }
    loop {
        let (stream, peer) = listener.accept().await?;
        let (id, (from, half)) = (stream.id(), stream.into_split());
        let reader = spawn(read(context.clone(), from, peer));
        ROOM.with_borrow_mut(|room| room.insert(id, Member { half, reader }));
    }
}

/// Reads a member's lines until the end, or until one is too long.
async fn read(context: Context, mut from: OwnedReadHalf, peer: SocketAddr) {
    broadcast(&context, format!("* {peer} has come\n")).await;
    while let Ok(Some(line)) = from.recv_until(b"\n", LINE_MAX).await {
        broadcast(&context, format!("{peer}: {}", String::from_utf8_lossy(&line))).await;
    }
    let gone = ROOM.with_borrow_mut(|room| room.remove(&from.id()));
    drop(gone);
    broadcast(&context, format!("* {peer} has gone\n")).await;
}

/// Gives a line to every shard, in the same order as earlier lines of this shard.
async fn broadcast(context: &Context, line: String) {
    let line = Bytes::from(line);
    for remote in (0..context.shards()).map(|index| context.remote(index)) {
        loop {
            let line = line.clone();
            match remote.run(move || deliver(&line)) {
                Err(Undelivered::Full(_)) => sleep(Duration::from_millis(1)).await,
                Ok(()) | Err(Undelivered::Ended(_)) => break,
            }
        }
    }
}

/// Gives a line to the members on this shard, and drops those who do not keep up.
fn deliver(line: &Bytes) {
    let slow: Vec<(EndpointId, Member)> = ROOM.with_borrow_mut(|room| {
        let slow: Vec<EndpointId> =
            room.iter_mut().filter_map(|(id, member)| (!takes(member, line)).then_some(*id)).collect();
        slow.iter().filter_map(|id| room.remove_entry(id)).collect()
    });
    for (id, mut member) in slow {
        eprintln!("chat: {id:?} does not keep up and is dropped");
        member.reader.abort();
    }
}

/// Queues a line for a member, if there is room: a send that does not complete at once is given up.
fn takes(member: &mut Member, line: &Bytes) -> bool {
    let send = pin!(member.half.send(line.clone()));
    matches!(send.poll(&mut task::Context::from_waker(task::Waker::noop())), Poll::Ready(Ok(())))
}
