//! A chat over UDP: each line that somebody sends goes to everybody who has sent something.
//!
//! The server has a session for each address; an empty datagram, or two minutes of silence, ends it. The client is a
//! node: a thread reads lines and hands them over, what comes in is printed.
//!
//! Try it: `cargo run --example udp_chat`, then `cargo run --example udp_chat -- --join 127.0.0.1:7008` in two terminals.
//! Ctrl-C ends the server, Ctrl-D a client.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::udp::{
    NodeOptions, SendError, Session, SessionEnd, SessionHandler, SessionInfo, SessionOptions, UdpError,
    UdpNode, UdpSessions,
};
use anabranch::net::Datagram;
use anabranch::{Backend, Config, Shard};
use bytes::Bytes;
use clap::Parser;
use common::until_asked_to_end;
use std::io::{self, BufRead};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

/// A chat server, or a client of one.
#[derive(Parser)]
struct Flags {
    /// Address to serve on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7008")]
    addr: SocketAddr,
    /// Joins the chat at this address instead of serving one.
    #[arg(long)]
    join: Option<SocketAddr>,
    /// Members at most.
    #[arg(long, default_value_t = 1000)]
    members: usize,
    /// Milliseconds after which a silent member is gone.
    #[arg(long, default_value_t = 120_000)]
    idle_ms: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let shard = Shard::new(Config::new().backend(flags.backend))?;
    match flags.join {
        None => shard.block_on(until_asked_to_end(serve(flags))),
        Some(server) => shard.block_on(until_asked_to_end(join(server))),
    }
}

async fn serve(flags: Flags) -> io::Result<()> {
    let idle = Duration::from_millis(flags.idle_ms);
    let options = SessionOptions::new().sessions_max(flags.members).idle(idle);
    let sessions = UdpSessions::bind(flags.addr, options)?;
    println!("chatting over udp on {}", sessions.local_addr()?);
    sessions.serve(&mut Room).await
}

struct Room;

impl SessionHandler for Room {
    /// Lines that the member has sent.
    type State = u64;

    fn on_accept(&mut self, sessions: &UdpSessions, peer: SocketAddr, first: &[u8]) -> Option<u64> {
        if first.is_empty() {
            return None;
        }
        tell(sessions, format!("* {peer} has come"));
        Some(0)
    }

    fn on_receive(&mut self, session: &mut Session<'_, u64>, datagram: Datagram) -> io::Result<()> {
        if datagram.lease.is_empty() {
            session.close();
            return Ok(());
        }
        *session.state += 1;
        let line = String::from_utf8_lossy(&datagram.lease);
        tell(session.sessions(), format!("{}: {}", session.peer(), line.trim_end()));
        Ok(())
    }

    fn on_close(&mut self, sessions: &UdpSessions, session: SessionInfo, lines: u64, end: SessionEnd) {
        tell(sessions, format!("* {} has gone after {lines} lines ({end:?})", session.peer));
    }

    fn on_error(&mut self, _: &UdpSessions, error: UdpError) {
        eprintln!("udp_chat: {error}");
    }
}

/// Gives a line to every member, unless too many lines wait already.
fn tell(sessions: &UdpSessions, line: String) {
    match sessions.broadcast(line) {
        Ok(_) | Err(SendError::Stopped) => {}
        Err(error) => eprintln!("udp_chat: a line was not told: {error}"),
    }
}

/// Prints what the server says, until the standard input ends.
async fn join(server: SocketAddr) -> io::Result<()> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let node = UdpNode::bind(any, NodeOptions::new())?;
    println!("chatting from {} on {server}", node.local_addr()?);
    let handle = node.handle();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if let Err(error) = handle.send_to(line, server) {
                eprintln!("udp_chat: {error}");
            }
        }
        let _ = handle.send_to(Bytes::new(), server);
        handle.stop();
    });
    while let Some(received) = node.recv().await {
        match received {
            // Anybody may send to this socket; only the server is listened to.
            Ok(batch) if batch.from() == server => {
                batch.for_each(|datagram| println!("{}", String::from_utf8_lossy(&datagram.lease)));
            }
            Ok(_) => {}
            Err(error) => eprintln!("udp_chat: {error}"),
        }
    }
    Ok(())
}
