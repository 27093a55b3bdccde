//! Joins a multicast group and prints what is sent to it. Several may run on one host.
//!
//! Try it with `cargo run --example multicast_server`. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::udp::{MulticastOptions, NodeHandler, NodeOptions, UdpError, UdpNode};
use anabranch::net::{Datagram, Interface};
use anabranch::{Backend, Config, Shard};
use clap::Parser;
use common::until_asked_to_end;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Hears a multicast group.
#[derive(Parser)]
struct Flags {
    /// The group and its port.
    #[arg(long, default_value = "239.255.0.1:3334")]
    group: SocketAddr,
    /// An address of the interface to hear.
    #[arg(long, default_value = "127.0.0.1")]
    interface: Ipv4Addr,
    /// Hears only these sources.
    #[arg(long)]
    source: Vec<IpAddr>,
    /// Messages to hear; 0 never ends.
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

/// Prints messages until there were enough.
struct Printer {
    left: Option<u64>,
}

impl NodeHandler for Printer {
    fn on_receive(&mut self, node: &UdpNode, datagram: Datagram) {
        if self.left == Some(0) {
            return;
        }
        println!("{}: {}", datagram.from, String::from_utf8_lossy(&datagram.lease));
        self.left = self.left.map(|left| left - 1);
        if self.left == Some(0) {
            node.stop();
        }
    }

    fn on_error(&mut self, _: &UdpNode, error: UdpError) {
        eprintln!("multicast_client: {error}");
    }
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let shard = Shard::new(Config::new().backend(flags.backend))?;
    shard.block_on(until_asked_to_end(hear(flags)))
}

async fn hear(flags: Flags) -> io::Result<()> {
    let options = MulticastOptions::new(flags.group).interface(Interface::Address(flags.interface));
    let options = flags.source.iter().fold(options, |options, source| options.source(*source));
    let node = UdpNode::over(options.bind()?, NodeOptions::new())?;
    println!("hearing {} on {}", flags.group, flags.interface);
    node.serve(&mut Printer { left: (flags.count > 0).then_some(flags.count) }).await
}
