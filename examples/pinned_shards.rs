//! A group of shards: pinned and named threads, hooks, a shared listener, and work done on other shards.
//!
//! Each connection is told which shard it is on and how many connections each shard has had, which it asks them with
//! `spawn_on`. At the end the counters of each shard are printed.
//!
//! Try it: `cargo run --example pinned_shards`, then `nc 127.0.0.1 7005` a few times. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Backend, Config, Context, Distribution, Pinning, Runtime, spawn};
use clap::{Parser, ValueEnum};
use common::stop_when_asked;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::thread;

/// Shows a group of pinned shards.
#[derive(Parser)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7005")]
    addr: SocketAddr,
    /// Shards; one per processor if not said.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shards: Option<u64>,
    /// Processors to pin to, in turn; without it shard n gets the n-th one, if there are enough.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// Who gets a new connection.
    #[arg(long, value_enum, default_value_t = Spread::Balanced)]
    spread: Spread,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

#[derive(Clone, Copy, ValueEnum)]
enum Spread {
    /// Whom the kernel picks.
    ReusePort,
    /// Whom the kernel picks, unless somebody has fewer.
    Balanced,
    /// Shard 0 accepts for all.
    OneAcceptor,
}

thread_local! {
    /// Connections that this shard has had.
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let spread = match flags.spread {
        Spread::ReusePort => Distribution::ReusePort,
        Spread::Balanced => Distribution::Balanced,
        Spread::OneAcceptor => Distribution::OneAcceptor,
    };
    let pinning = if flags.cpus.is_empty() { Pinning::PerShard } else { Pinning::On(flags.cpus) };
    let mut settings = Runtime::builder()
        .name("pinned")
        .pinning(pinning)
        .config(Config::new().backend(flags.backend))
        .on_start(|index| println!("shard {index} starts on thread {}", thread_name()))
        .on_stop(|index| println!("shard {index} has ended"));
    if let Some(shards) = flags.shards {
        settings = settings.shards(shards as usize);
    }
    let runtime = settings.start(move |context| serve(context, flags.addr, spread))?;
    for end in runtime.join() {
        println!("shard {}: {}", end.index, end.counters);
        end.result?;
    }
    Ok(())
}

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

async fn serve(context: Context, address: SocketAddr, spread: Distribution) -> io::Result<()> {
    let listener = TcpListener::bind_group(&context, address, spread)?;
    stop_when_asked(&context).await;
    if context.index() == 0 {
        println!("telling about {} shards on {}", context.shards(), listener.local_addr()?);
    }
    loop {
        let (stream, _) = listener.accept().await?;
        SEEN.set(SEEN.get() + 1);
        spawn(tell(context.clone(), stream)).detach();
    }
}

async fn tell(context: Context, mut stream: TcpStream) -> io::Result<()> {
    let mut seen = Vec::new();
    for remote in (0..context.shards()).map(|index| context.remote(index)) {
        // The closure travels; what it makes runs over there and need not be `Send`.
        let asked = remote
            .spawn_on(|| async { SEEN.get() })
            .map_err(|refused| io::Error::other(refused.to_string()))?;
        seen.push(asked.await?.to_string());
    }
    let (index, name) = (context.index(), thread_name());
    stream.send(format!("shard {index} ({name}); connections so far: {}\n", seen.join(" + "))).await?;
    stream.close().await
}
