//! A small HTTP server over the event facade, as the original's demos are made: a listener thread, and accepter threads
//! that get the connections in turn, each with a channel of its own.
//!
//! Try it: `cargo run --release --example opensocket_http_server`, then `curl http://127.0.0.1:8888/`. Ctrl-C ends it.

mod common;

use anabranch::block_on;
use anabranch::event::{Channel, Event, OpenSocket, SocketId, Sockets};
use clap::Parser;
use common::until_asked_to_end;
use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::thread;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

#[derive(Parser)]
struct Flags {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8888")]
    addr: SocketAddr,
    /// Threads that answer requests.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    accepters: u64,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let sockets = OpenSocket::new();
    let channels = sockets.run_channels()?;
    let accepters: Vec<usize> = (1..=flags.accepters as usize).collect();
    let mut threads = Vec::new();
    for uid in accepters.clone() {
        let (channel, sockets) = (channels.register(uid), sockets.sockets().clone());
        threads.push(thread::spawn(move || answer(&sockets, uid, &channel)));
    }
    let listener = sockets.listen(0, &flags.addr.ip().to_string(), flags.addr.port(), 256)?;
    let (channel, of_listener) = (channels.register(0), sockets.sockets().clone());
    block_on(until_asked_to_end(async {
        threads.push(thread::spawn(move || distribute(&of_listener, listener, &channel, &accepters)));
        pending().await
    }))??;
    // The channels end with the sockets, and the threads with their channels.
    drop((sockets, channels));
    threads.into_iter().for_each(|thread| thread.join().expect("no thread panics"));
    Ok(())
}

/// The listener: gives connections to the accepters in turn.
fn distribute(sockets: &Sockets, listener: SocketId, channel: &Channel, accepters: &[usize]) {
    sockets.start(0, listener);
    let mut turn = accepters.iter().cycle();
    for event in channel {
        match event {
            Event::Open { id, .. } => {
                let info = sockets.socket_info().into_iter().find(|info| info.id == id);
                if let Some(address) = info.and_then(|info| info.address) {
                    println!("serving on {address}");
                }
            }
            Event::Accept { accepted, .. } => sockets.start(*turn.next().expect("it is endless"), accepted),
            Event::Error { trouble, .. } => eprintln!("listener: {trouble}"),
            _ => {}
        }
    }
}

/// An accepter: answers the requests on its connections.
fn answer(sockets: &Sockets, uid: usize, channel: &Channel) {
    let mut heads: HashMap<SocketId, Vec<u8>> = HashMap::new();
    for event in channel {
        match event {
            Event::Data { id, data, .. } => {
                let head = heads.entry(id).or_default();
                head.extend_from_slice(&data);
                if head.len() > HEAD_BYTES_MAX {
                    sockets.shutdown(uid, id);
                } else if head.ends_with(b"\r\n\r\n") {
                    let reply = reply(head, uid);
                    head.clear();
                    // The connection may have ended meanwhile.
                    let _ = sockets.send(id, reply);
                    sockets.close(uid, id);
                }
            }
            Event::Close { id, .. } | Event::Error { id, .. } => drop(heads.remove(&id)),
            _ => {}
        }
    }
}

/// The reply to a request.
fn reply(head: &[u8], uid: usize) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let (status, body) = match words[..] {
        [b"GET", path, _] => ("200 OK", format!("{} from accepter {uid}\n", path.escape_ascii())),
        _ => ("400 Bad Request", "only GET is understood\n".to_owned()),
    };
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}
