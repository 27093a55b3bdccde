//! Sends a numbered message to a multicast group again and again.
//!
//! Try it: `cargo run --example multicast_server`, and `cargo run --example multicast_client` once or more. By default the
//! datagrams stay on the loopback interface; `--interface` with an address of another one sends them there, and `--ttl`
//! over routers. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::udp::{MulticastOptions, UdpCast};
use anabranch::net::Interface;
use anabranch::time::{interval, wall};
use anabranch::{Backend, Config, Shard};
use clap::Parser;
use common::until_asked_to_end;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

/// Sends to a multicast group.
#[derive(Parser)]
struct Flags {
    /// The group and its port.
    #[arg(long, default_value = "239.255.0.1:3334")]
    group: SocketAddr,
    /// An address of the interface to send by.
    #[arg(long, default_value = "127.0.0.1")]
    interface: Ipv4Addr,
    /// Routers that a message may pass, and one more.
    #[arg(long, default_value_t = 1)]
    ttl: u8,
    /// Milliseconds between two messages.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    every_ms: u64,
    /// Messages to send; 0 never ends.
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let shard = Shard::new(Config::new().backend(flags.backend))?;
    shard.block_on(until_asked_to_end(send(flags)))
}

async fn send(flags: Flags) -> io::Result<()> {
    // A port of its own, so that it takes nothing away from members on this host.
    let options = MulticastOptions::new(flags.group).interface(Interface::Address(flags.interface));
    let cast = UdpCast::multicast(options.ttl(flags.ttl).local_port(0))?;
    println!("sending to {} on {}", flags.group, flags.interface);
    let mut ticks = interval(Duration::from_millis(flags.every_ms));
    for number in 1.. {
        ticks.tick().await;
        let seconds = wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // What an earlier message met (a network that is down) is told, and no reason to stop.
        if let Err(error) = cast.send(format!("message {number} at {seconds}")).await {
            eprintln!("multicast_server: {error}");
        }
        if number == flags.count {
            break;
        }
    }
    Ok(())
}
