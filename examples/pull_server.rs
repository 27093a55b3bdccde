//! HP-Socket's pull model: the server says how much it wants, and takes it when it is there.
//!
//! A message is a head of two bytes (the length of the body, big-endian) and the body. When bytes have come, the handler
//! takes as many whole messages as there are and sends each back; what is left waits, up to a bound.
//!
//! Try it: `cargo run --example pull_server`, then `printf '\0\5hello' | nc 127.0.0.1 7000 | xxd`.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Admission, Conn, Failure, Handler, Peer, Server};
use clap::Parser;
use common::{Flags, shards, stop_flag};
use std::io;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

const HEAD: usize = 2;
/// The longest message.
const MAX: usize = HEAD + u16::MAX as usize;

struct Puller;

impl Handler for Puller {
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        Admission::Accept(())
    }

    async fn on_handshake(&self, conn: &mut Conn) -> Result<(), Failure> {
        conn.pull(MAX);
        Ok(())
    }

    async fn on_available(&self, conn: &mut Conn, _: usize) -> Result<(), Failure> {
        loop {
            let Some(pull) = conn.pulled() else { return Ok(()) };
            let Some(head) = pull.peek(HEAD) else { return Ok(()) };
            let whole = HEAD + usize::from(u16::from_be_bytes([head[0], head[1]]));
            let Some(message) = pull.fetch(whole) else { return Ok(()) };
            conn.send(message).await?;
        }
    }
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let stop = stop_flag();
    let runtime = shards("pull", flags.shards, &flags.config())?;
    let server = Server::builder().listen(flags.addr).start(&runtime, Puller)?;
    flags.announce(&runtime.reports()[0], server.addresses()[0]);
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50));
    }
    server.shutdown(Duration::from_secs(1));
    server.wait();
    Ok(())
}
