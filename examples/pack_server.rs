//! HP-Socket's pack model: messages behind a head of four bytes, whole when the handler gets them.
//!
//! Try it: `cargo run --example pack_server -- --addr 127.0.0.1:7008`, then
//! `printf '\5\0\0\0hello' | nc 127.0.0.1 7008 | xxd`.
#![forbid(unsafe_code)]

mod common;

use anabranch::codec::Pack;
use anabranch::component::{Conn, Server};
use clap::Parser;
use common::{Flags, shards, stop_flag};
use std::io;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let stop = stop_flag();
    let runtime = shards("pack", flags.shards, &flags.config())?;
    let builder = Server::builder().listen(flags.addr).codec(|| Pack::new().max(1 << 16));
    let server = builder.serve(&runtime, async |conn: &mut Conn| {
        while let Some(message) = conn.recv().await? {
            conn.send(message).await?;
        }
        Ok(())
    })?;
    flags.announce(&runtime.reports()[0], server.addresses()[0]);
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50));
    }
    server.shutdown(Duration::from_secs(1));
    server.wait();
    Ok(())
}
