//! The bare loop over io_uring.

use super::buffer_ring::{BufferRing, push, ring, turn};
use super::outbox::Messages;
use super::{FANOUT_BACKLOG, Job, MESSAGE, PUBLISHER, STREAM_BUFFER, SUBSCRIBER, bare_uring_udp};
use crate::scenario::Role;
use crate::sys;
use io_uring::{IoUring, cqueue, opcode, types::Fd};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const BUFFERS: u16 = 1024;
/// Received buffers that leave in one send.
const PARTS: usize = 64;

fn tag(kind: u64, at: usize) -> u64 {
    kind << 56 | at as u64
}

/// A send of several buffers: what the kernel reads must stay where it is.
struct Gather {
    header: libc::msghdr,
    parts: [libc::iovec; PARTS],
}

struct Connection {
    socket: OwnedFd,
    kind: Kind,
    /// A receive is armed; a send is in flight; it stands in the list of those that have something to send.
    receiving: bool,
    sending: bool,
    dirty: bool,
    ended: bool,
    /// Received buffers and their lengths: waiting, and in flight.
    pieces: VecDeque<(u16, u32)>,
    in_flight: Vec<(u16, u32)>,
    gather: Option<Box<Gather>>,
    /// Fan-out: bytes that wait, and bytes in flight.
    backlog: Vec<u8>,
    leaving: Vec<u8>,
}

enum Kind {
    Echo,
    Unknown,
    Publisher(Messages),
    Subscriber,
}

struct Loop {
    ring: IoUring,
    buffers: BufferRing,
    listener: TcpListener,
    all: Slab<Connection>,
    dirty: Vec<usize>,
    starved: Vec<usize>,
    #[allow(clippy::vec_box, reason = "the kernel reads them where they are, also when they change lists")]
    spare: Vec<Box<Gather>>,
    fan_out: bool,
}

pub fn serve(job: Job) -> io::Result<()> {
    if matches!(job.role, Role::Udp | Role::BulkUdp) {
        return bare_uring_udp::serve(job);
    }
    let ring = ring()?;
    let buffers = BufferRing::new(&ring, BUFFERS, STREAM_BUFFER)?;
    let listener = sys::listener(job.address)?;
    let fan_out = job.role == Role::FanOut;
    let (all, dirty, starved, spare) = (Slab::new(), Vec::new(), Vec::new(), Vec::new());
    let mut this = Loop { ring, buffers, listener, all, dirty, starved, spare, fan_out };
    this.arm_accept()?;
    job.ready();
    let mut completions = Vec::new();
    loop {
        turn(&mut this.ring, &mut completions)?;
        for (user_data, result, flags) in completions.drain(..) {
            this.on_completion(user_data, result, flags)?;
        }
        this.end_turn()?;
    }
}

impl Loop {
    fn arm_accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).build().user_data(tag(ACCEPT, 0));
        push(&mut self.ring, &entry)
    }

    fn arm_receive(&mut self, at: usize) -> io::Result<()> {
        self.all[at].receiving = true;
        let fd = Fd(self.all[at].socket.as_raw_fd());
        push(&mut self.ring, &opcode::RecvMulti::new(fd, 0).build().user_data(tag(RECEIVE, at)))
    }

    fn on_completion(&mut self, user_data: u64, result: i32, flags: u32) -> io::Result<()> {
        let (kind, at) = (user_data >> 56, (user_data & ((1 << 56) - 1)) as usize);
        let more = cqueue::more(flags);
        match kind {
            ACCEPT => self.on_accept(result, more),
            RECEIVE => self.on_receive(at, result, cqueue::buffer_select(flags), more),
            _ => self.on_sent(at, result),
        }
    }

    fn on_accept(&mut self, result: i32, more: bool) -> io::Result<()> {
        if result >= 0 {
            // SAFETY: the kernel has just opened this descriptor for us.
            let socket = unsafe { OwnedFd::from_raw_fd(result) };
            let at = self.all.insert(Connection {
                socket,
                kind: if self.fan_out { Kind::Unknown } else { Kind::Echo },
                receiving: false,
                sending: false,
                dirty: false,
                ended: false,
                pieces: VecDeque::new(),
                in_flight: Vec::new(),
                gather: None,
                backlog: Vec::new(),
                leaving: Vec::new(),
            });
            self.arm_receive(at)?;
        }
        if more { Ok(()) } else { self.arm_accept() }
    }

    fn on_receive(&mut self, at: usize, result: i32, buffer: Option<u16>, more: bool) -> io::Result<()> {
        self.all[at].receiving = more;
        match (result, buffer) {
            (1.., Some(id)) => {
                self.take(at, id, result as u32);
                if !more {
                    self.arm_receive(at)?;
                }
            }
            (result, _) if result == -libc::ENOBUFS => self.starved.push(at),
            _ => {
                self.all[at].ended = true;
                self.mark(at);
            }
        }
        Ok(())
    }

    fn mark(&mut self, at: usize) {
        if !self.all[at].dirty {
            self.all[at].dirty = true;
            self.dirty.push(at);
        }
    }

    /// Does with received bytes what the connection is for.
    fn take(&mut self, at: usize, id: u16, len: u32) {
        let connection = &mut self.all[at];
        let bytes = self.buffers.bytes(id, len as usize);
        match &mut connection.kind {
            Kind::Echo => {
                connection.pieces.push_back((id, len));
                return self.mark(at);
            }
            Kind::Unknown => {
                connection.backlog.push(bytes[0]);
                match bytes[0] {
                    PUBLISHER => connection.kind = Kind::Publisher(Messages::default()),
                    SUBSCRIBER => connection.kind = Kind::Subscriber,
                    _ => connection.ended = true,
                }
                self.mark(at);
            }
            Kind::Publisher(messages) => {
                let mut cut = Vec::new();
                messages.feed(bytes).for_each(|message| cut.extend_from_slice(&message));
                self.publish(&cut);
            }
            Kind::Subscriber => {}
        }
        self.buffers.give(id);
    }

    /// Queues messages for each subscriber that has room.
    fn publish(&mut self, messages: &[u8]) {
        for (at, subscriber) in &mut self.all {
            if !matches!(subscriber.kind, Kind::Subscriber) {
                continue;
            }
            for message in messages.chunks_exact(MESSAGE) {
                if subscriber.backlog.len() + subscriber.leaving.len() + MESSAGE <= FANOUT_BACKLOG {
                    subscriber.backlog.extend_from_slice(message);
                }
            }
            if !subscriber.dirty {
                subscriber.dirty = true;
                self.dirty.push(at);
            }
        }
    }

    fn on_sent(&mut self, at: usize, result: i32) -> io::Result<()> {
        let connection = &mut self.all[at];
        connection.sending = false;
        let expected = connection.in_flight.iter().map(|(_, len)| *len as usize).sum::<usize>();
        let expected = expected + connection.leaving.len();
        connection.leaving.clear();
        connection.in_flight.drain(..).for_each(|(id, _)| self.buffers.give(id));
        self.spare.extend(connection.gather.take());
        // The kernel was told to send everything; less is the end of the connection.
        connection.ended |= result < 0 || result as usize != expected;
        self.mark(at);
        Ok(())
    }

    fn end_turn(&mut self) -> io::Result<()> {
        for at in std::mem::take(&mut self.dirty) {
            self.all[at].dirty = false;
            self.send(at)?;
        }
        self.buffers.publish();
        for at in std::mem::take(&mut self.starved) {
            self.arm_receive(at)?;
        }
        Ok(())
    }

    /// Sends what waits, all of it in one go; closes what has ended.
    fn send(&mut self, at: usize) -> io::Result<()> {
        let connection = &mut self.all[at];
        if connection.sending {
            return Ok(());
        }
        if connection.pieces.is_empty() && connection.backlog.is_empty() {
            if connection.ended && !connection.receiving {
                self.all.remove(at);
            }
            return Ok(());
        }
        connection.sending = true;
        let fd = Fd(connection.socket.as_raw_fd());
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = if !connection.backlog.is_empty() {
            std::mem::swap(&mut connection.backlog, &mut connection.leaving);
            let bytes = &connection.leaving;
            opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32).flags(flags).build()
        } else if connection.pieces.len() == 1 {
            let (id, len) = connection.pieces.pop_front().expect("there is one");
            connection.in_flight.push((id, len));
            opcode::Send::new(fd, self.buffers.pointer(id), len).flags(flags).build()
        } else {
            let count = connection.pieces.len().min(PARTS);
            // SAFETY: zero is a valid value of these plain structures.
            let mut gather = self.spare.pop().unwrap_or_else(|| Box::new(unsafe { std::mem::zeroed() }));
            for (part, (id, len)) in gather.parts.iter_mut().zip(connection.pieces.drain(..count)) {
                part.iov_base = self.buffers.pointer(id).cast();
                part.iov_len = len as usize;
                connection.in_flight.push((id, len));
            }
            gather.header.msg_iov = gather.parts.as_mut_ptr();
            gather.header.msg_iovlen = count;
            let gather = connection.gather.insert(gather);
            opcode::SendMsg::new(fd, &raw const gather.header).flags(flags as u32).build()
        };
        push(&mut self.ring, &entry.user_data(tag(SEND, at)))
    }
}
