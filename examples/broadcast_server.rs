//! A server in which whatever a publisher sends goes to all subscribers, on all shards: messages of one size, batched as they
//! arrive together.
//!
//! The first byte of a connection says what it is, `P` or `S`, and is its answer. All bytes of a publisher after it are
//! messages; a subscriber gets messages only. One that does not keep up is treated as the policy says.
//!
//! Try it: `cargo run --release --example broadcast_server -- --size 8`, then `(printf S; cat) | nc 127.0.0.1 7012` in some
//! terminals and `(printf P; cat) | nc 127.0.0.1 7012` in another one. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Admission, Conn, Failure, Handler, Peer, Policy, Server};
use anabranch::{Backend, Config, Lease, Runtime, Slow};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use common::stop_flag;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// A broadcast server.
#[derive(Parser, Clone, Debug)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7012")]
    addr: SocketAddr,
    /// Bytes of a message.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=16384))]
    size: u64,
    /// Bytes that may wait for a subscriber.
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    cap: u64,
    /// What happens to a subscriber that does not keep up.
    #[arg(long, default_value = "drop-newest")]
    policy: OnSlow,
    /// Shards; one thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shards: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum OnSlow {
    DropNewest,
    DropOldest,
    Disconnect,
}

impl From<OnSlow> for Slow {
    fn from(policy: OnSlow) -> Slow {
        match policy {
            OnSlow::DropNewest => Slow::DropNewest,
            OnSlow::DropOldest => Slow::DropOldest,
            OnSlow::Disconnect => Slow::Disconnect,
        }
    }
}

/// The group of those who get the messages.
const SUBSCRIBERS: &str = "subscribers";
/// Bytes of a publisher that are taken together at most.
const TOGETHER: usize = 256 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Unknown,
    Publisher,
    Subscriber,
}

struct Hub {
    size: usize,
    /// Batches that a shard did not take, because its mailbox was full.
    lost: Arc<AtomicU64>,
}

impl Handler for Hub {
    type State = Role;

    fn on_accept(&self, _: &Peer) -> Admission<Role> {
        Admission::Accept(Role::Unknown)
    }

    /// Who takes too long to say what it is ends by `Policy::handshake_timeout`.
    async fn on_handshake(&self, conn: &mut Conn<Role>) -> Result<(), Failure> {
        conn.pull(TOGETHER);
        let Some(kind) = conn.fetch(1).await? else { return Ok(()) };
        conn.state = match kind[0] {
            b'P' => Role::Publisher,
            b'S' => Role::Subscriber,
            other => return Err(format!("{other:#x} is neither P nor S").into()),
        };
        Ok(conn.send(kind).await?)
    }

    async fn run(&self, conn: &mut Conn<Role>) -> Result<(), Failure> {
        match conn.state {
            Role::Unknown => {}
            Role::Subscriber => {
                conn.session().join(SUBSCRIBERS);
                // Whatever it says is not heard.
                while conn.recv().await?.is_some() {}
            }
            Role::Publisher => {
                self.publish(conn);
                while conn.more().await? {
                    self.publish(conn);
                }
            }
        }
        Ok(())
    }
}

impl Hub {
    /// Sends the whole messages that are there; a part of one stays.
    fn publish(&self, conn: &mut Conn<Role>) {
        let whole = conn.available() / self.size * self.size;
        let Some(bytes) = conn.pulled().filter(|_| whole > 0).and_then(|there| there.fetch(whole)) else {
            return;
        };
        let sent = conn.fleet().broadcast_all(Some(SUBSCRIBERS), cut(bytes, self.size));
        if let Err(busy) = sent {
            self.lost.fetch_add(busy.shards as u64, Ordering::Relaxed);
        }
    }
}

/// Cuts bytes into messages, without a copy.
fn cut(bytes: Lease, size: usize) -> Vec<Bytes> {
    let bytes = bytes.into_bytes();
    (0..bytes.len() / size).map(|at| bytes.slice(at * size..(at + 1) * size)).collect()
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let stop = stop_flag();
    let cap = flags.cap as usize;
    let config = Config::new().backend(flags.backend);
    let config = config.with_limits(|limits| limits.outbound_bytes_max = cap);
    let settings = Runtime::builder().shards(flags.shards as usize).name("broadcast").config(config);
    let runtime = settings.start(|context| async move {
        context.stopped().await;
        Ok(())
    })?;
    let mut policy = Policy::new();
    policy.outbound_bytes_max = cap;
    policy.slow = flags.policy.into();
    // A subscriber may wait for messages as long as it likes; whether it is still there is a matter of TCP.
    policy.idle_timeout = None;
    policy.keepalive = Some(Duration::from_secs(60));
    let lost = Arc::new(AtomicU64::new(0));
    let hub = Hub { size: flags.size as usize, lost: Arc::clone(&lost) };
    let server = Server::builder().listen(flags.addr).policy(policy).start(&runtime, hub)?;
    println!("broadcasting on {}", server.addresses()[0]);
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50));
    }
    server.shutdown(Duration::ZERO);
    server.wait();
    let totals = server.totals();
    let lost = lost.load(Ordering::Relaxed);
    println!("{} messages sent, {} dropped, {lost} batches lost", totals.messages_out, totals.dropped);
    Ok(())
}
