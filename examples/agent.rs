//! Ten thousand connections in one `anabranch::component::Agent`: each sends messages of its own to an echo server and checks
//! every byte that comes back; all stay until the last one is done.
//!
//! Try it: `cargo run --release --example agent`; or against `component_echo` in another process, with
//! `--server 127.0.0.1:7000`. It needs a descriptor for each connection, or two with the server in this process; it raises
//! the limit as far as it may, and says what to do where that is not far enough.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{
    Admission, Agent, Conn, ConnId, ConnectError, Failure, Handler, Peer, Policy, Reconnect, Server, Target,
    Trouble,
};
use anabranch::{Backend, Config, Runtime};
use clap::Parser;
use common::{descriptors, shards, stop_flag};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// Many connections to an echo server.
#[derive(Parser, Clone)]
struct Flags {
    /// Connections at once.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    connections: u64,
    /// Messages of each, one after the other.
    #[arg(long, default_value_t = 10)]
    messages: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    size: u64,
    /// The echo server; without it there is one in this process.
    #[arg(long)]
    server: Option<SocketAddr>,
    /// Shards of the agent; one thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shards: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

/// How far all connections have come.
#[derive(Default)]
struct Progress {
    done: AtomicUsize,
    wrong: AtomicUsize,
}

/// What a connection does. Its state is the number that it was connected with.
struct Caller {
    flags: Flags,
    progress: Arc<Progress>,
}

impl Handler for Caller {
    type State = u64;

    fn on_accept(&self, peer: &Peer) -> Admission<u64> {
        Admission::Accept(peer.target.as_ref().map_or(0, Target::tagged))
    }

    async fn run(&self, conn: &mut Conn<u64>) -> Result<(), Failure> {
        let size = self.flags.size as usize;
        conn.pull(size);
        for message in 0..self.flags.messages {
            let sent = bytes_of(conn.state, message, size);
            conn.send(sent.clone()).await?;
            let echo = conn.fetch(size).await?.ok_or("the server ended the connection")?;
            if *echo != *sent {
                self.progress.wrong.fetch_add(1, Ordering::Relaxed);
                return Err("what came back is not what was sent".into());
            }
        }
        self.progress.done.fetch_add(1, Ordering::Relaxed);
        // Until the agent is shut down.
        while conn.more().await? {}
        Ok(())
    }

    fn on_error(&self, trouble: &Trouble<'_>) {
        if let Trouble::Connect { target, error, again: None, .. } = trouble {
            eprintln!("{target}: {error}");
        }
    }
}

/// Bytes that differ from connection to connection and from message to message.
fn bytes_of(connection: u64, message: u64, size: usize) -> Vec<u8> {
    let seed = connection.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ message.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (0..size as u64).map(|at| ((seed ^ at).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8).collect()
}

fn policy(connections: u64) -> Policy {
    let mut policy = Policy::new();
    policy.connections_max = connections as usize;
    policy
}

/// A server on a shard of its own, if none is given.
fn server(flags: &Flags, config: &Config) -> io::Result<(SocketAddr, Option<(Server, Runtime)>)> {
    if let Some(address) = flags.server {
        return Ok((address, None));
    }
    let runtime = shards("server", 1, config)?;
    let settings =
        Server::builder().listen(SocketAddr::from(([127, 0, 0, 1], 0))).policy(policy(flags.connections));
    let server = settings.serve(&runtime, async |conn: &mut Conn| {
        while let Some(bytes) = conn.recv().await? {
            conn.send(bytes).await?;
        }
        Ok(())
    })?;
    Ok((server.addresses()[0], Some((server, runtime))))
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let needed = flags.connections * if flags.server.is_some() { 1 } else { 2 } + 200;
    let allowed = descriptors(needed);
    if allowed < needed {
        let text = format!(
            "{} connections need {needed} descriptors, and {allowed} are allowed: raise the limit (ulimit -n {needed}, \
             LimitNOFILE=, --ulimit nofile=), or ask for fewer with --connections",
            flags.connections
        );
        return Err(io::Error::other(text));
    }
    let stop = stop_flag();
    let config = Config::new().backend(flags.backend).with_limits(|limits| {
        limits.endpoints_max = limits.endpoints_max.max(flags.connections as usize + 16);
    });
    let (address, serving) = server(&flags, &config)?;
    let runtime = shards("agent", flags.shards, &config)?;
    println!("{} connections to the echo on {address}", flags.connections);
    let progress = Arc::new(Progress::default());
    let caller = Caller { flags: flags.clone(), progress: Arc::clone(&progress) };
    let mut again = Reconnect::new();
    again.attempts_max = Some(5);
    let builder = Agent::builder().policy(policy(flags.connections)).reconnect(again);
    let agent = builder.start(&runtime, caller)?;
    for number in 0..flags.connections {
        // Nobody waits for a single one: what fails is told to `on_error`.
        let _ = connect(&agent, &Target::from(address).tag(number))?;
    }
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) && agent.targets() > 0 {
        let done = progress.done.load(Ordering::Relaxed);
        most = most.max(agent.connections());
        println!("{most} connected, {done} done, {} attempts failed", agent.totals().connects_failed);
        if done >= agent.targets() {
            break;
        }
        sleep(Duration::from_millis(200));
    }
    agent.shutdown(Duration::ZERO);
    agent.wait();
    finish(&agent, &progress, flags.connections)?;
    if let Some((server, runtime)) = serving {
        server.shutdown(Duration::ZERO);
        server.wait();
        runtime.stop();
    }
    Ok(())
}

/// A shard that has more messages than its mailbox takes is given time.
fn connect(agent: &Agent, target: &Target) -> io::Result<ConnId> {
    loop {
        match agent.connect(target.clone()) {
            Ok(connecting) => return Ok(connecting.id()),
            Err(ConnectError::Busy) => sleep(Duration::from_millis(1)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn finish(agent: &Agent, progress: &Progress, connections: u64) -> io::Result<()> {
    let (totals, done) = (agent.totals(), progress.done.load(Ordering::Relaxed));
    println!(
        "{} made, {} ended, {done} done; {} messages out, {} bytes back, {} wrong; {} attempts failed",
        totals.opened,
        totals.closed_total(),
        totals.messages_out,
        totals.bytes_in,
        progress.wrong.load(Ordering::Relaxed),
        totals.connects_failed,
    );
    match done as u64 == connections {
        true => Ok(()),
        false => Err(io::Error::other("not all connections came to their end")),
    }
}
