//! A UDP socket: each datagram goes back to its sender in the buffer that it came in.
//!
//! Try it: `cargo run --example udp_echo`, then `nc -u 127.0.0.1 7002`. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::UdpSocket;
use anabranch::{Backend, Config, Shard};
use clap::Parser;
use common::until_asked_to_end;
use std::io;
use std::net::SocketAddr;

/// Sends datagrams back.
#[derive(Parser)]
struct Flags {
    /// Address to bind to; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7002")]
    addr: SocketAddr,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let config = Config::new().backend(flags.backend);
    Shard::new(config)?.block_on(until_asked_to_end(serve(flags.addr)))
}

async fn serve(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(address).await?;
    println!("echoing udp on {}", socket.local_addr()?);
    loop {
        match socket.recv_from().await {
            Ok(datagram) => socket.send_to(datagram.lease, datagram.from).await.unwrap_or_else(report),
            Err(error) => report(error),
        }
    }
}

/// What one peer's datagram met is no reason to stop.
fn report(error: io::Error) {
    eprintln!("udp_echo: {error}");
}
