//! A relay of TCP connections: whatever comes in on one address goes to another, and back.
//!
//! Bytes are passed on by receives and sends while they come in small pieces, and by `splice(2)` when they come in
//! large ones; `--how` chooses one of the two, to compare them. SIGUSR1 prints a line of statistics, and so does the
//! end. When one side fails the other is reset, so that its peer does not take what came for everything.
//!
//! Try it: `cargo run --example relay -- --to 127.0.0.1:7000` beside `cargo run --example echo`. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{RelayBy, TcpListener, TcpStream, copy_bidirectional_by};
use anabranch::os::{Signal, SignalKind};
use anabranch::{Backend, Config, Shard, counters, spawn, timeout};
use clap::Parser;
use common::until_asked_to_end;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// How long a connect may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Relays TCP connections.
#[derive(Parser)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7008")]
    listen: SocketAddr,
    /// Where connections go.
    #[arg(long)]
    to: SocketAddr,
    /// How bytes are passed on.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ring", "splice"])]
    how: String,
    /// Connections at once; more wait in the kernel.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

/// What the relay has done.
#[derive(Default)]
struct Statistics {
    open: Cell<u32>,
    ended: Cell<u64>,
    failed: Cell<u64>,
}

impl Statistics {
    fn line(&self) -> io::Result<String> {
        let shard = counters()?;
        Ok(format!(
            "{} open, {} ended, {} failed; {} bytes relayed, {} of them spliced, {} pipes in use",
            self.open.get(),
            self.ended.get(),
            self.failed.get(),
            shard.bytes_out,
            shard.bytes_spliced,
            shard.pipes_lent - shard.pipes_returned,
        ))
    }
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let shard = Shard::new(Config::new().backend(flags.backend))?;
    shard.block_on(async {
        let statistics = Rc::new(Statistics::default());
        until_asked_to_end(serve(flags, Rc::clone(&statistics))).await?;
        println!("{}", statistics.line()?);
        Ok(())
    })
}

async fn serve(flags: Flags, statistics: Rc<Statistics>) -> io::Result<()> {
    let by = match flags.how.as_str() {
        "ring" => RelayBy::Messages,
        "splice" => RelayBy::Splice,
        _ => RelayBy::Auto,
    };
    // Not every system has it.
    let asked = Signal::new(SignalKind::User1).ok();
    let listener = TcpListener::bind(flags.listen).await?;
    println!("relaying to {} on {}", flags.to, listener.local_addr()?);
    if let Some(asked) = asked {
        spawn(tell_when_asked(asked, Rc::clone(&statistics))).detach();
    }
    loop {
        while statistics.open.get() >= flags.connections {
            anabranch::sleep(Duration::from_millis(10)).await;
        }
        let (stream, _) = listener.accept().await?;
        statistics.open.set(statistics.open.get() + 1);
        let statistics = Rc::clone(&statistics);
        spawn(async move {
            let relayed = relay(stream, flags.to, by).await;
            statistics.open.set(statistics.open.get() - 1);
            let outcome = if relayed.is_ok() { &statistics.ended } else { &statistics.failed };
            outcome.set(outcome.get() + 1);
        })
        .detach();
    }
}

async fn tell_when_asked(mut asked: Signal, statistics: Rc<Statistics>) -> io::Result<()> {
    loop {
        asked.recv().await?;
        println!("{}", statistics.line()?);
    }
}

async fn relay(mut near: TcpStream, to: SocketAddr, by: RelayBy) -> io::Result<()> {
    let mut far = match timeout(PATIENCE, TcpStream::connect(to)).await {
        Ok(Ok(far)) => far,
        failed => {
            near.abort();
            return failed?.map(|_| ());
        }
    };
    match copy_bidirectional_by(&mut near, &mut far, by).await {
        Ok(_) => {
            near.close().await?;
            far.close().await
        }
        Err(error) => {
            near.abort();
            far.abort();
            Err(error.into())
        }
    }
}
