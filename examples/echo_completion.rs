//! An echo server over the completion API: submissions, tags and a poll, no futures.
//!
//! Try it: `cargo run --release --example echo_completion`, then `nc 127.0.0.1 7000`. Ctrl-C ends it.

mod common;

use anabranch::{Close, Completion, EndpointId, Event, Full, Payload, Shard, block_on};
use clap::Parser;
use common::{Flags, until_asked_to_end};
use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

/// What a tag means here.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const WRITABLE: u64 = 3;
const CLOSE: u64 = 4;
const DATAGRAM: u64 = 5;
const DATAGRAM_SENT: u64 = 6;

fn main() -> io::Result<()> {
    let mut flags = Flags::parse();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut threads, mut remotes) = (Vec::new(), Vec::new());
    for _ in 0..flags.shards {
        let (ready, shard) = mpsc::channel();
        let (flags_of_shard, stop) = (flags.clone(), Arc::clone(&stop));
        threads.push(thread::spawn(move || {
            let shard = Shard::new(flags_of_shard.config())?;
            let bound = listen(&shard, &flags_of_shard)?;
            let _ = ready.send((shard.remote(), shard.report(), bound));
            serve(&shard, &stop)
        }));
        // A shard that could not be set up has ended.
        let Ok((remote, report, bound)) = shard.recv() else { break };
        remotes.push((remote, report));
        // The others listen there too, also where the system picked the port.
        flags.addr = bound;
    }
    if remotes.len() == threads.len() {
        block_on(until_asked_to_end(async {
            flags.announce(&remotes[0].1, flags.addr);
            pending().await
        }))??;
    }
    stop.store(true, Ordering::SeqCst);
    // An empty message wakes a shard that sleeps.
    remotes.iter().for_each(|(remote, _)| drop(remote.run(|| {})));
    threads.into_iter().try_for_each(|thread| thread.join().expect("a shard panicked"))
}

/// Begins to listen; gives the bound address.
fn listen(shard: &Shard, flags: &Flags) -> io::Result<SocketAddr> {
    let endpoint = if flags.proto == "udp" {
        let socket = shard.bind_udp(flags.addr, flags.shards > 1)?;
        shard.submit_recv_from_multi(socket, DATAGRAM)?;
        socket
    } else {
        let listener =
            if flags.shards > 1 { shard.listen_shared(flags.addr)? } else { shard.listen(flags.addr)? };
        shard.submit_accept_multi(listener, ACCEPT)?;
        listener
    };
    shard.local_addr(endpoint)
}

fn serve(shard: &Shard, stop: &AtomicBool) -> io::Result<()> {
    let mut held = HashMap::new();
    while !stop.load(Ordering::SeqCst) {
        shard.poll(None, |completion| on_completion(shard, &mut held, completion))?;
    }
    Ok(())
}

/// Bytes for connections whose outbound queue is full. Nothing is received for them meanwhile.
type Held = HashMap<EndpointId, Payload>;

fn on_completion(shard: &Shard, held: &mut Held, completion: Completion) {
    let connection = completion.endpoint;
    match (completion.tag, completion.event) {
        (ACCEPT, Event::Accepted(connection)) => drop(shard.submit_recv(connection, RECEIVE)),
        (RECEIVE, Event::Received(bytes)) => reply(shard, held, connection, bytes.into()),
        (RECEIVE, Event::End) => close(shard, held, connection, Close::Flush),
        (RECEIVE | WRITABLE, Event::Failed(_)) => close(shard, held, connection, Close::Abort),
        (WRITABLE, Event::Writable) => {
            if let Some(bytes) = held.remove(&connection) {
                reply(shard, held, connection, bytes);
            }
        }
        (DATAGRAM, Event::ReceivedFrom { lease, from, .. }) => {
            // A datagram for which there is no room is lost, as datagrams are.
            let _ = shard.submit_send_to(connection, lease, from, DATAGRAM_SENT);
        }
        _ => {}
    }
}

fn reply(shard: &Shard, held: &mut Held, connection: EndpointId, bytes: Payload) {
    match shard.send(connection, bytes) {
        Ok(Ok(())) => drop(shard.submit_recv(connection, RECEIVE)),
        Ok(Err(_)) => close(shard, held, connection, Close::Abort),
        Err(Full(bytes)) => {
            held.insert(connection, bytes);
            let _ = shard.submit_writable(connection, WRITABLE);
        }
    }
}

fn close(shard: &Shard, held: &mut Held, connection: EndpointId, how: Close) {
    held.remove(&connection);
    // It may have ended by itself meanwhile.
    let _ = shard.submit_close(connection, how, CLOSE);
}
