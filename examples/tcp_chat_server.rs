//! A chat of callbacks: `anabranch::component::Server` with a session for each user, and `broadcast`.
//!
//! Each line that somebody sends goes to everybody; a line with `!` in it ends its sender's connection after it was told to all.
//! What is typed at the server's terminal goes to everybody as the administrator's word; `!` there disconnects all,
//! and an empty line ends the server.
//!
//! Try it: `cargo run --example tcp_chat_server`, then `cargo run --example tcp_chat_client` in two terminals.
#![forbid(unsafe_code)]

mod common;

use anabranch::codec::Delimiter;
use anabranch::component::{Admission, Closed, Conn, Failure, Handler, Peer, Server};
use anabranch::{Backend, Config, Lease};
use clap::Parser;
use common::{shards, stop_flag};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

/// A chat server.
#[derive(Parser)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:1111")]
    addr: SocketAddr,
    /// Shards; one thread each.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shards: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

/// The room. It speaks to everybody through the server that it is the handler of.
#[derive(Default)]
struct Room {
    server: OnceLock<Server>,
}

impl Room {
    fn tell_all(&self, line: impl Into<String>) {
        if let Some(Err(error)) = self.server.get().map(|server| server.broadcast(line.into())) {
            eprintln!("a line was lost: {error}");
        }
    }
}

/// The handler and whoever has to know the server share the room.
struct Chat(Arc<Room>);

impl Handler for Chat {
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        Admission::Accept(())
    }

    async fn on_handshake(&self, conn: &mut Conn) -> Result<(), Failure> {
        println!("{} came", conn.id());
        Ok(conn.send("Hello from the chat! Send a line, or one with '!' to leave.").await?)
    }

    async fn on_receive(&self, conn: &mut Conn, line: Lease) -> Result<(), Failure> {
        let line = String::from_utf8_lossy(&line).into_owned();
        let leaves = line.contains('!');
        self.0.tell_all(line);
        if leaves {
            conn.disconnect();
        }
        Ok(())
    }

    fn on_close(&self, conn: &mut Conn, closed: &Closed) {
        println!("{} left: {closed}", conn.id());
    }
}

/// The lines of the terminal, from a thread that reads them.
fn terminal() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let stop = stop_flag();
    let runtime = shards("chat", flags.shards, &Config::new().backend(flags.backend))?;
    let room = Arc::new(Room::default());
    let builder = Server::builder().listen(flags.addr).codec(|| Delimiter::new("\n").max(1024));
    let server = builder.start(&runtime, Chat(Arc::clone(&room)))?;
    let _ = room.server.set(server.clone());
    println!("chatting on {}", server.addresses()[0]);
    let lines = terminal();
    while !stop.load(Ordering::Relaxed) {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) if line.is_empty() => break,
            Ok(line) if line == "!" => server.disconnect_all()?,
            Ok(line) => room.tell_all(format!("(admin) {line}")),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // A server without a terminal goes on.
            Err(mpsc::RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(50)),
        }
    }
    server.shutdown(Duration::ZERO);
    server.wait();
    println!("{} had come", server.totals().opened);
    Ok(())
}
