//! An echo server over the async API, TCP or UDP, on any number of shards.
//!
//! Try it: `cargo run --release --example echo`, then `nc 127.0.0.1 7000`. Ctrl-C ends it.

mod common;

use anabranch::net::{TcpListener, TcpStream, UdpSocket};
use anabranch::{Context, Distribution, Runtime, report, spawn};
use clap::Parser;
use common::{Flags, stop_when_asked};
use std::io;

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let settings = Runtime::builder().shards(flags.shards as usize).name("echo").config(flags.config());
    let quiet = flags.quiet;
    let runtime = settings.start(move |context| serve(context, flags.clone()))?;
    let mut result = Ok(());
    for end in runtime.join() {
        if !quiet {
            println!("ledger of shard {}: {}", end.index, end.counters);
        }
        result = result.and(end.result);
    }
    result
}

async fn serve(context: Context, flags: Flags) -> io::Result<()> {
    stop_when_asked(&context).await;
    if flags.proto == "udp" {
        let socket = UdpSocket::bind_group(&context, flags.addr)?;
        if context.index() == 0 {
            flags.announce(&report()?, socket.local_addr()?);
        }
        loop {
            // What one peer's datagram met is no reason to stop.
            let Ok(datagram) = socket.recv_from().await else { continue };
            let _ = socket.send_to(datagram.lease, datagram.from).await;
        }
    }
    let listener = TcpListener::bind_group(&context, flags.addr, Distribution::Balanced)?;
    if context.index() == 0 {
        flags.announce(&report()?, listener.local_addr()?);
    }
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(echo(stream)).detach();
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}
