//! A fan-out server: what publishers send goes to every subscriber, in messages of one size.
//!
//! The first line of a connection says what it is, `PUB` or `SUB`. All bytes of a publisher after it are messages; a
//! subscriber gets messages only. The bytes are shared by all subscribers, and one that does not keep up is treated as
//! the policy says; a line at the end tells what was lost.
//!
//! Try it: `cargo run --release --example fanout`, then `(echo SUB; cat) | nc 127.0.0.1 7004` in some terminals and
//! `(echo PUB; cat) | nc 127.0.0.1 7004` in another one. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{TcpListener, TcpStream};
use anabranch::{
    Backend, Broadcast, Close, Completion, Config, EndpointId, Event, Shard, Slow, sleep, spawn,
};
use bytes::{Buf, BytesMut};
use clap::{Parser, ValueEnum};
use common::{either, stop_flag, until_asked_to_end};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes of the first line at most.
const LINE_MAX: usize = 16;

/// A fan-out server.
#[derive(Parser, Clone, Debug)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7004")]
    addr: SocketAddr,
    /// Bytes that may wait for a subscriber.
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    cap: u64,
    /// What happens to a subscriber that does not keep up.
    #[arg(long, default_value = "drop-newest")]
    policy: Policy,
    /// Bytes of a message.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=16384))]
    size: u64,
    /// Futures, or submissions and a poll.
    #[arg(long, default_value = "async")]
    surface: Surface,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
    /// Seconds after which the server ends by itself; 0 means never.
    #[arg(long, default_value_t = 0)]
    life: u64,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Policy {
    DropNewest,
    DropOldest,
    Disconnect,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Surface {
    Async,
    Completion,
}

impl From<Policy> for Slow {
    fn from(policy: Policy) -> Slow {
        match policy {
            Policy::DropNewest => Slow::DropNewest,
            Policy::DropOldest => Slow::DropOldest,
            Policy::Disconnect => Slow::Disconnect,
        }
    }
}

impl Flags {
    fn life(&self) -> Duration {
        Duration::from_secs(if self.life == 0 { u64::from(u32::MAX) } else { self.life })
    }
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let config = Config::new()
        .backend(flags.backend)
        .with_limits(|limits| limits.outbound_bytes_max = flags.cap as usize);
    let shard = Shard::new(config)?;
    let room = shard.broadcast().backlog_bytes_max(flags.cap as usize).slow(flags.policy.into());
    let room = Rc::new(RefCell::new(Room { flags, members: room }));
    if room.borrow().flags.surface == Surface::Completion {
        serve_completions(&shard, &mut room.borrow_mut())?;
    } else {
        shard.block_on(until_asked_to_end(serve(Rc::clone(&room))))?;
    }
    println!("{} messages were dropped", room.borrow().members.dropped());
    Ok(())
}

/// Who gets the messages.
struct Room {
    flags: Flags,
    members: Broadcast,
}

impl Room {
    /// Sends the whole messages that have been received; a part of one stays.
    fn publish(&mut self, received: &mut BytesMut) {
        let size = self.flags.size as usize;
        let count = received.len() / size;
        if count == 0 {
            return;
        }
        let mut messages = received.split_to(count * size).freeze();
        report(&self.members.send_all((0..count).map(|_| messages.split_to(size))));
    }
}

fn report(delivered: &anabranch::Delivered) {
    for departed in &delivered.departed {
        println!("{:?} has left after losing {} messages: {:?}", departed.id, departed.dropped, departed.why);
    }
}

async fn serve(room: Rc<RefCell<Room>>) -> io::Result<()> {
    let flags = room.borrow().flags.clone();
    let listener = TcpListener::bind(flags.addr).await?;
    println!("fan-out on {}", listener.local_addr()?);
    let accepting = async {
        loop {
            let (stream, _) = listener.accept().await?;
            spawn(attend(stream, Rc::clone(&room))).detach();
        }
    };
    let life = async {
        sleep(flags.life()).await;
        Ok(())
    };
    either(life, accepting).await
}

async fn attend(mut stream: TcpStream, room: Rc<RefCell<Room>>) {
    match stream.recv_until(b"\n", LINE_MAX).await {
        Ok(Some(line)) if line.starts_with(b"SUB") => {
            if room.borrow_mut().members.join(&stream).is_ok() {
                // Whatever it says is not heard; it is a member until it ends.
                while let Ok(Some(_)) = stream.recv().await {}
            }
        }
        Ok(Some(line)) if line.starts_with(b"PUB") => {
            let mut received = BytesMut::new();
            while let Ok(Some(bytes)) = stream.recv().await {
                received.extend_from_slice(&bytes);
                room.borrow_mut().publish(&mut received);
            }
        }
        _ => stream.abort(),
    }
}

/// What a tag means here.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const CLOSE: u64 = 3;

/// What a connection is.
enum Role {
    /// Its first line has not come whole.
    Unknown(BytesMut),
    Publisher(BytesMut),
    Subscriber,
}

fn serve_completions(shard: &Shard, room: &mut Room) -> io::Result<()> {
    let listener = shard.listen(room.flags.addr)?;
    shard.submit_accept_multi(listener, ACCEPT)?;
    println!("fan-out on {}", shard.local_addr(listener)?);
    let (stop, end) = (stop_flag(), Instant::now() + room.flags.life());
    let mut roles = HashMap::new();
    while !stop.load(Ordering::SeqCst) && Instant::now() < end {
        let look = Some(Duration::from_millis(100));
        shard.poll(look, |completion| on_completion(shard, room, &mut roles, completion))?;
    }
    Ok(())
}

fn on_completion(
    shard: &Shard,
    room: &mut Room,
    roles: &mut HashMap<EndpointId, Role>,
    completion: Completion,
) {
    let id = completion.endpoint;
    match completion.event {
        Event::Accepted(id) => {
            roles.insert(id, Role::Unknown(BytesMut::new()));
            let _ = shard.submit_recv_multi(id, RECEIVE);
        }
        Event::Received(bytes) => {
            let goes_on = roles.get_mut(&id).is_some_and(|role| role.hear(id, room, &bytes));
            if !goes_on {
                let _ = shard.submit_close(id, Close::Abort, CLOSE);
            }
        }
        Event::End | Event::Failed(_) if completion.tag == RECEIVE => {
            let _ = shard.submit_close(id, Close::Flush, CLOSE);
        }
        Event::Closed => drop(roles.remove(&id)),
        _ => {}
    }
}

impl Role {
    /// Takes received bytes; `false` if they are not what they should be.
    fn hear(&mut self, id: EndpointId, room: &mut Room, bytes: &[u8]) -> bool {
        match self {
            Role::Subscriber => true,
            Role::Publisher(received) => {
                received.extend_from_slice(bytes);
                room.publish(received);
                true
            }
            Role::Unknown(line) => {
                line.extend_from_slice(bytes);
                let Some(end) = line.iter().take(LINE_MAX).position(|byte| *byte == b'\n') else {
                    return line.len() < LINE_MAX;
                };
                let mut rest = std::mem::take(line);
                let is_publisher = rest.starts_with(b"PUB");
                let is_member = rest.starts_with(b"SUB") && room.members.join(id).is_ok();
                rest.advance(end + 1);
                if is_publisher {
                    room.publish(&mut rest);
                }
                *self = if is_publisher { Role::Publisher(rest) } else { Role::Subscriber };
                is_publisher || is_member
            }
        }
    }
}
