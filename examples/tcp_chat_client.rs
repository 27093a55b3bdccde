//! The other end of `tcp_chat_server`: `anabranch::component::Client`, which comes back a second after it lost its server.
//!
//! A line that is typed is sent; `!` reconnects, and an empty line, or the end of the input, ends the program.
//!
//! Try it: `cargo run --example tcp_chat_client`.
#![forbid(unsafe_code)]

mod common;

use anabranch::codec::Delimiter;
use anabranch::component::{
    Admission, Client, Closed, Conn, Failure, Handler, Peer, Reconnect, Target, Trouble,
};
use anabranch::{Backend, Config, Lease};
use clap::Parser;
use common::shards;
use std::io;
use std::time::Duration;

/// A chat client.
#[derive(Parser)]
struct Flags {
    /// Where the server is: a name or an address, with a port.
    #[arg(long, default_value = "127.0.0.1:1111")]
    addr: String,
    /// Milliseconds until it comes back.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    again_ms: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

struct Screen;

impl Handler for Screen {
    type State = ();

    fn on_accept(&self, peer: &Peer) -> Admission<()> {
        println!("connected to {}", peer.target.as_ref().map(Target::to_string).unwrap_or_default());
        Admission::Accept(())
    }

    async fn on_receive(&self, _: &mut Conn, line: Lease) -> Result<(), Failure> {
        println!("{}", String::from_utf8_lossy(&line));
        Ok(())
    }

    fn on_close(&self, _: &mut Conn, closed: &Closed) {
        println!("disconnected: {closed}");
    }

    fn on_error(&self, trouble: &Trouble<'_>) {
        if let Trouble::Connect { target, error, .. } = trouble {
            println!("no connection to {target}: {error}");
        }
    }
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let runtime = shards("client", 1, &Config::new().backend(flags.backend))?;
    let mut policy = anabranch::component::Policy::new();
    // Somebody who listens is no burden.
    policy.idle_timeout = None;
    let builder = Client::builder(flags.addr).policy(policy).codec(|| Delimiter::new("\n").max(2048));
    let again = Reconnect::every(Duration::from_millis(flags.again_ms));
    let client = builder.reconnect(again).start(&runtime, Screen)?;
    let _ = client.connect()?.id();
    for line in io::stdin().lines() {
        match line?.as_str() {
            "" => break,
            "!" => drop(client.reconnect()?),
            line => client.send(line.to_owned())?,
        }
    }
    client.disconnect()?;
    client.shutdown(Duration::from_secs(1));
    client.wait();
    Ok(())
}
