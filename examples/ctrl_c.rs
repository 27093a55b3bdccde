//! An orderly end: at Ctrl-C (or SIGTERM) the listener closes, and open connections get some time to finish.
//!
//! Try it: `cargo run --example ctrl_c`, then `nc 127.0.0.1 7006`, type something, and press Ctrl-C here: the
//! connection still works until it ends or the time is over. A second Ctrl-C does not wait.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{TcpListener, TcpStream};
use anabranch::os::{Signal, SignalKind};
use anabranch::{Backend, Config, JoinHandle, Shard, spawn, timeout};
use clap::Parser;
use common::{asked_to_end, either};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Ends in an orderly way.
#[derive(Parser)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7006")]
    addr: SocketAddr,
    /// Seconds that open connections may go on.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

type Connections = RefCell<Vec<JoinHandle<io::Result<()>>>>;

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let shard = Shard::new(Config::new().backend(flags.backend))?;
    shard.block_on(async {
        let listener = TcpListener::bind(flags.addr).await?;
        let connections = Connections::default();
        either(asked_to_end(), accept(&listener, &connections)).await?;
        listener.close().await;
        finish(connections.into_inner(), Duration::from_secs(flags.grace)).await
    })
}

async fn accept(listener: &TcpListener, connections: &Connections) -> io::Result<()> {
    println!("echoing tcp on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let mut connections = connections.borrow_mut();
        connections.retain(|connection| !connection.is_finished());
        connections.push(spawn(echo(stream)));
    }
}

async fn finish(mut connections: Vec<JoinHandle<io::Result<()>>>, grace: Duration) -> io::Result<()> {
    connections.retain(|connection| !connection.is_finished());
    let mut again = Signal::new(SignalKind::Interrupt)?;
    println!("ending; {} connection(s) may go on for {grace:?}", connections.len());
    let all = async {
        for connection in &mut connections {
            // How a connection ended is its own affair.
            let _ = connection.await;
        }
        Ok(())
    };
    // Its output says how the waiting ended, which the connections know better.
    let _ = timeout(grace, either(again.recv(), all)).await;
    let cut = connections.iter().filter(|connection| !connection.is_finished()).count();
    println!("ended; {cut} connection(s) cut off");
    Ok(())
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}
