//! An echo server over the event facade: sockets with ids, one callback, the reply sent from inside it.
//!
//! Try it: `cargo run --release --example opensocket_echo`, then `nc 127.0.0.1 7000`. Ctrl-C ends it.

mod common;

use anabranch::block_on;
use anabranch::event::{Event, OpenSocket, Sockets};
use clap::Parser;
use common::{Flags, until_asked_to_end};
use std::future::pending;
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Whom the events of the listener are for, and those of connections.
const LISTENER: usize = 1;
const CONNECTIONS: usize = 2;

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let (backend, host) = (flags.backend, flags.addr.ip().to_string());
    let sockets =
        OpenSocket::builder().shards(flags.shards as usize).config(|config| config.backend(backend)).build();
    let bound = if flags.proto == "udp" {
        // What is told of a socket for datagrams is its destination, so the port is chosen here.
        let port = UdpSocket::bind(flags.addr)?.local_addr()?.port();
        sockets.udp(CONNECTIONS, &host, port)?;
        sockets.run_each(|_| on_event)?;
        SocketAddr::new(flags.addr.ip(), port)
    } else {
        let listener = sockets.listen(LISTENER, &host, flags.addr.port(), 4096)?;
        sockets.run_each(|_| on_event)?;
        sockets.start(LISTENER, listener);
        SocketAddr::new(flags.addr.ip(), bound_port(&sockets, listener, flags.addr.port()))
    };
    block_on(until_asked_to_end(async {
        if !flags.quiet {
            println!("echoing {} on {bound}", flags.proto);
        }
        pending().await
    }))?
}

/// The port of a listener, which the system has chosen if 0 was asked for.
fn bound_port(sockets: &Sockets, id: i32, asked: u16) -> u16 {
    let found = || {
        let all = sockets.socket_info();
        all.into_iter().find(|info| info.id == id)?.address.map(|address| address.port())
    };
    if asked != 0 {
        return asked;
    }
    loop {
        // A listener is told of as soon as it was started, on its own thread.
        match found() {
            Some(port) => return port,
            None => std::thread::yield_now(),
        }
    }
}

/// Runs on the thread of the sockets; what is sent here leaves without a copy.
fn on_event(sockets: &Sockets, event: Event) {
    match event {
        Event::Accept { accepted, .. } => sockets.start(CONNECTIONS, accepted),
        Event::Open { id, uid: CONNECTIONS, .. } => sockets.nodelay(id),
        // A connection that has ended meanwhile takes nothing more.
        Event::Data { id, data, .. } => drop(sockets.send(id, data)),
        Event::Udp { id, data, from, .. } => drop(sockets.udp_send(id, from, data)),
        Event::Error { id, trouble, .. } => eprintln!("socket {id}: {trouble}"),
        _ => {}
    }
}
