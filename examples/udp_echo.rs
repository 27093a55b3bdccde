//! A UDP node: each datagram goes back to its sender in the buffer that it came in; joined ones go back joined.
//!
//! Try it: `cargo run --example udp_echo`, then `nc -u 127.0.0.1 7002`. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::udp::{NodeHandler, NodeOptions, SendError, UdpError, UdpNode};
use anabranch::net::{Segments, SendOptions};
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
    /// Bytes of a datagram at most; a longer one is told and dropped.
    #[arg(long, default_value_t = 65_507)]
    size: usize,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

struct Echo;

impl NodeHandler for Echo {
    fn on_batch(&mut self, node: &UdpNode, batch: Segments) {
        let mut options = SendOptions::new();
        if batch.count_left() > 1 {
            options = options.segment_bytes(batch.segment_bytes());
        }
        let peer = batch.from();
        match node.try_send_with(batch.into_lease(), peer, options) {
            // Who sends faster than the network takes answers loses some, as everywhere on the way.
            Ok(()) | Err(SendError::Full) => {}
            Err(error) => eprintln!("udp_echo: {peer}: {error}"),
        }
    }

    /// What one peer's datagram met is no reason to stop.
    fn on_error(&mut self, _: &UdpNode, error: UdpError) {
        eprintln!("udp_echo: {error}");
    }
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let config = Config::new().backend(flags.backend);
    Shard::new(config)?.block_on(until_asked_to_end(serve(flags)))
}

async fn serve(flags: Flags) -> io::Result<()> {
    let node = UdpNode::bind(flags.addr, NodeOptions::new().datagram_bytes_max(flags.size))?;
    println!("echoing udp on {}", node.local_addr()?);
    node.serve(&mut Echo).await
}
