//! The way of calls from other threads to a shard: a queue without a bound and without a lock.
//!
//! It has no bound, because a caller must not wait: a callback may wait for the very thread that calls. The mailbox of
//! the shard carries one empty message per burst, which only wakes it: whoever finds the flag down raises it and
//! sends one; the shard takes the flag down before it empties the queue, so what comes later raises it again.
#![forbid(unsafe_code)]

use super::ids::SocketId;
use crate::driver::Descriptor;
use crate::shard::Remote;
use bytes::Bytes;
use crossbeam_queue::SegQueue;
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// A call, or what a thread of the resolver has found.
pub(super) enum Command {
    Listen {
        id: SocketId,
        uid: usize,
        socket: Descriptor,
    },
    Connect {
        id: SocketId,
        uid: usize,
        host: String,
        port: i32,
    },
    Resolved {
        id: SocketId,
        found: Result<Vec<SocketAddr>, String>,
    },
    Bind {
        id: SocketId,
        uid: usize,
        socket: io::Result<Descriptor>,
    },
    Udp {
        id: SocketId,
        uid: usize,
        socket: Descriptor,
    },
    /// A connection that a listener of another shard accepted.
    Accepted {
        id: SocketId,
        uid: usize,
        socket: Descriptor,
    },
    Start {
        id: SocketId,
        uid: usize,
    },
    Close {
        id: SocketId,
        uid: usize,
    },
    Shutdown {
        id: SocketId,
        uid: usize,
    },
    Send {
        id: SocketId,
        bytes: Bytes,
        low: bool,
    },
    Nodelay {
        id: SocketId,
    },
    UdpConnect {
        id: SocketId,
        to: SocketAddr,
    },
    UdpSend {
        id: SocketId,
        to: SocketAddr,
        bytes: Bytes,
    },
}

/// The calls that wait for one shard.
#[derive(Default)]
pub(super) struct Commands {
    queue: SegQueue<Command>,
    /// A message is on its way, or the shard has yet to begin.
    told: AtomicBool,
    /// Set once the shard runs.
    remote: OnceLock<Remote>,
}

impl Commands {
    /// Any thread: queues a call and sees to it that the shard looks.
    pub(super) fn push(&self, command: Command) {
        self.queue.push(command);
        self.tell();
    }

    /// Any thread: sees to it that the shard looks.
    pub(super) fn tell(&self) {
        if self.told.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(remote) = self.remote.get() {
            // One message per burst finds room; a shard that has ended looks no more.
            let _ = remote.run(|| {});
        }
    }

    /// The shard: it can be woken from now on.
    pub(super) fn begin(&self, remote: Remote) {
        let _ = self.remote.set(remote);
    }

    /// The shard: begins to empty the queue.
    pub(super) fn look(&self) {
        self.told.swap(false, Ordering::AcqRel);
    }

    /// The shard: the oldest call.
    pub(super) fn pop(&self) -> Option<Command> {
        self.queue.pop()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Command {
    /// Whether it is the first that its socket hears.
    pub(super) fn makes_socket(&self) -> bool {
        use Command::*;
        matches!(self, Listen { .. } | Connect { .. } | Bind { .. } | Udp { .. } | Accepted { .. })
    }
}
