//! A Unix socket: a listener at a path, and a task per connection that splits it and copies one half to the other.
//!
//! Try it: `cargo run --example unix_echo`, then `nc -U /tmp/anabranch.sock`. Ctrl-C ends it and removes the socket.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{UnixListener, UnixStream, copy};
use anabranch::{Backend, Config, Shard, spawn};
use clap::Parser;
use common::until_asked_to_end;
use std::io;
use std::path::{Path, PathBuf};

/// Sends back what it receives over a Unix socket.
#[derive(Parser)]
struct Flags {
    /// Path of the socket, which must not exist.
    #[arg(long, default_value = "/tmp/anabranch.sock")]
    addr: PathBuf,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let shard = Shard::new(Config::new().backend(flags.backend))?;
    let listener = shard.block_on(async { UnixListener::bind(&flags.addr) })?;
    let served = shard.block_on(until_asked_to_end(serve(listener, &flags.addr)));
    // A listener leaves its file behind, as in the standard library.
    std::fs::remove_file(&flags.addr)?;
    served
}

async fn serve(listener: UnixListener, path: &Path) -> io::Result<()> {
    println!("echoing unix on {}", path.display());
    loop {
        spawn(echo(listener.accept().await?)).detach();
    }
}

async fn echo(stream: UnixStream) -> io::Result<u64> {
    let (mut from, mut to) = stream.into_split();
    // Dropping the halves afterwards sends what is queued and closes.
    Ok(copy(&mut from, &mut to).await?)
}
