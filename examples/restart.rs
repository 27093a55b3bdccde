//! An echo server that is replaced without a refused connection: start it again with the same path, and the new process
//! takes the listening sockets over, while the old one serves what it has and ends.
//!
//! Try it: `cargo run --release --example restart`, the same again in a second terminal, and `nc 127.0.0.1 7010` before and
//! after. Under a service manager that opens the socket itself (socket activation), the address is that of the manager.
//! Ctrl-C ends it without a successor.

mod common;

use anabranch::component::handover::{HandoverServer, TakenOver, activated, take_over};
use anabranch::component::{Conn, Server};
use anabranch::net::{ListenOptions, ListeningSockets};
use anabranch::os::PassedSocket;
use anabranch::{Backend, Config, Runtime, Shard};
use clap::Parser;
use common::{asked_to_end, either};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An echo server that hands its sockets over to its successor.
#[derive(Parser)]
struct Flags {
    /// Address to listen on, if no process before has opened it.
    #[arg(long, default_value = "127.0.0.1:7010")]
    addr: SocketAddr,
    /// Where the process before and the one after are met.
    #[arg(long, default_value = "/tmp/anabranch-restart")]
    path: PathBuf,
    /// Shards; one thread each. It may be another number than that of the process before.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shards: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
    /// Seconds that connections have to finish when a successor has taken over.
    #[arg(long, default_value_t = 30)]
    finish_secs: u64,
}

/// The name of the listening sockets.
const NAME: &str = "echo";

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let config = Config::new().backend(flags.backend);
    let settings = Runtime::builder().shards(flags.shards as usize).name("restart").config(config.clone());
    let runtime = settings.start(|group| async move {
        group.stopped().await;
        Ok(())
    })?;
    // What the processes say to each other needs no shard of the server.
    let control = Shard::new(config.with_limits(|limits| limits.buffers = 8))?;
    let mut before = control.block_on(take_over(&flags.path))?;
    let sockets = open(&flags, before.as_mut())?;
    let address = sockets.local_addr()?;
    let heritage = sockets.duplicate()?.into_iter().map(|socket| PassedSocket::new(NAME, socket));
    let heritage = heritage.collect::<io::Result<Vec<_>>>()?;
    let server = Server::builder().listen_on(sockets).serve(&runtime, async |conn: &mut Conn| {
        while let Some(bytes) = conn.recv().await? {
            conn.send(bytes).await?;
        }
        Ok(())
    })?;
    control.block_on(async {
        // Now that this process accepts, the one before may stop.
        let handover = match before {
            Some(before) => before.ready().await?,
            None => HandoverServer::bind(&flags.path)?,
        };
        println!("echoing tcp on {address}");
        either(pass_on(handover, &heritage), asked_to_end()).await
    })?;
    server.shutdown(Duration::from_secs(flags.finish_secs));
    server.wait();
    for (shard, counted) in server.snapshots().iter().enumerate() {
        println!("shard {shard} served {} connections", counted.opened);
    }
    Ok(())
}

/// The sockets of the process before, of the service manager, or new ones.
fn open(flags: &Flags, before: Option<&mut TakenOver>) -> io::Result<ListeningSockets> {
    let given = match before {
        Some(before) => before.take(NAME),
        None => activated()?,
    };
    if given.is_empty() {
        return ListeningSockets::bind(flags.addr, flags.shards as usize, &ListenOptions::default());
    }
    let given = given.into_iter().map(PassedSocket::into_tcp_listener);
    ListeningSockets::from_std(given.collect::<io::Result<_>>()?)
}

/// Completes when a successor accepts.
async fn pass_on(mut server: HandoverServer, heritage: &[PassedSocket]) -> io::Result<()> {
    loop {
        let successor = server.successor().await?;
        match successor.pass(heritage).await {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("nobody took over: {error}"),
        }
    }
}
