//! TCP: what a connection is, and the calls on its ends.
//!
//! Both ends are one [`Link`], but each sees only what was delivered to it. What travels between them is in
//! `wire.rs`; the calls in here change one end and then let it transmit. An end without a descriptor goes on by
//! itself until everything was sent, and the link goes when both ends have let go.

#![forbid(unsafe_code)]

mod handshake;
#[cfg(test)]
mod tests;
mod wire;

use super::Outcome;
use super::core::HostId;
use super::fault::Fault;
use super::socket::{DescriptorId, Told};
use super::world::World;
use crate::driver::sys::os::libc;
use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;
use wire::{Pipe, SegmentKind};

/// The number of a connection; it never comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u32);

/// A connection: end 0 asked for it, end 1 was asked.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ends: [End; 2],
    /// What travels away from each end.
    pub(super) pipes: [Pipe; 2],
    /// When the first SYN left.
    started: Duration,
    /// Where the SYN goes.
    target: SocketAddr,
}

/// Where an end is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The other side has not heard of the connection yet.
    Absent,
    /// Its SYN is under way.
    SynSent,
    /// It answered a SYN and waits for the last part of the handshake.
    Handshake,
    Open,
    /// Its system knows nothing of the connection any more.
    Dead,
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) host: HostId,
    pub(super) address: SocketAddr,
    phase: Phase,
    descriptor: Option<DescriptorId>,
    /// Who takes it when the handshake is done, and holds it until it is accepted.
    listener: Option<DescriptorId>,
    /// Whether it waits to be accepted.
    queued: bool,
    inbox: VecDeque<u8>,
    /// How many bytes were taken out of the inbox.
    taken: u64,
    /// Whether the end of the stream has arrived.
    finished: bool,
    read_shut: bool,
    error: Option<i32>,
}

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Listener {
    queue: VecDeque<LinkId>,
    backlog: usize,
    /// Handshakes that have begun.
    reserved: usize,
}

/// One end of a connection, for tests to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    Connecting,
    Open,
    Dead,
}

/// A connection, for tests to look at; each pair begins with the end that connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) hosts: [HostId; 2],
    pub(crate) addresses: [SocketAddr; 2],
    pub(crate) states: [ConnectionState; 2],
    pub(crate) descriptors: [Option<DescriptorId>; 2],
    /// Bytes sent by each end and not yet delivered.
    pub(crate) sending: [usize; 2],
    /// Bytes delivered to each end and not yet received.
    pub(crate) unread: [usize; 2],
}

impl Listener {
    pub(super) fn is_ready(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Like Linux, one more than the backlog says.
    fn is_full(&self) -> bool {
        self.queue.len() + self.reserved > self.backlog
    }
}

impl End {
    fn new(host: HostId, address: SocketAddr, phase: Phase) -> End {
        End {
            host,
            address,
            phase,
            descriptor: None,
            listener: None,
            queued: false,
            inbox: VecDeque::new(),
            taken: 0,
            finished: false,
            read_shut: false,
            error: None,
        }
    }

    pub(super) fn unread(&self) -> usize {
        self.inbox.len()
    }

    /// Whether the application has let go of it for good.
    fn is_orphan(&self) -> bool {
        self.descriptor.is_none() && !self.queued
    }

    /// Whether nobody needs its state any more.
    fn has_let_go(&self) -> bool {
        self.is_orphan() && matches!(self.phase, Phase::Absent | Phase::Open | Phase::Dead)
    }

    fn is_readable(&self) -> bool {
        let ended = self.finished || self.read_shut || self.phase == Phase::Dead;
        !self.inbox.is_empty() || ended || self.error.is_some()
    }
}

impl Link {
    /// The address of the peer, while there is one: a system forgets it when the connection has failed.
    pub(super) fn peer_of(&self, end: usize) -> Option<SocketAddr> {
        (self.ends[end].phase != Phase::Dead).then(|| self.ends[1 - end].address)
    }

    pub(super) fn take_error(&mut self, end: usize) -> Option<i32> {
        self.ends[end].error.take()
    }

    fn is_writable(&self, end: usize, capacity: usize) -> bool {
        let here = &self.ends[end];
        let broken = here.phase == Phase::Dead || here.error.is_some();
        let pipe = &self.pipes[end];
        let space = here.phase == Phase::Open && pipe.space(capacity) >= capacity.div_ceil(3);
        broken || pipe.is_shut() || space
    }
}

impl World {
    pub(super) fn tcp_listen(&mut self, id: DescriptorId, backlog: usize) -> Outcome<()> {
        use super::socket::{Family, Thing};
        let open = self.open(id)?;
        let any = super::address::any(open.family == Family::V6);
        match &open.thing {
            Thing::TcpListener(_) => {}
            Thing::TcpFresh if open.local.is_some() => {}
            Thing::TcpFresh => {
                self.take_port(id, SocketAddr::new(any, 0))?;
            }
            Thing::Udp(_) => return Err(libc::EOPNOTSUPP),
            Thing::File(_) => return Err(libc::ENOTSOCK),
            _ => return Err(libc::EINVAL),
        }
        let open = self.table.get_mut(&id.0).ok_or(libc::EBADF)?;
        let port = open.local.map_or(0, |local| local.port());
        if let Thing::TcpListener(listener) = &mut open.thing {
            listener.backlog = backlog;
            return Ok(());
        }
        if !self.core.hosts[open.host.index()].tcp.listen(port, id) {
            return Err(libc::EADDRINUSE);
        }
        open.thing = Thing::TcpListener(Listener { queue: VecDeque::new(), backlog, reserved: 0 });
        self.note_at(id, format_args!("listen {port} backlog {backlog}"));
        Ok(())
    }

    pub(super) fn tcp_accept(&mut self, id: DescriptorId) -> Outcome<DescriptorId> {
        use super::socket::Thing;
        let open = self.open(id)?;
        let (host, family, flags) = (open.host, open.family, open.flags);
        let waiting = match &open.thing {
            Thing::TcpListener(listener) => listener.queue.front().copied(),
            _ => return Err(libc::EINVAL),
        };
        let link = waiting.ok_or(libc::EAGAIN)?;
        self.may_open(host)?;
        if let Thing::TcpListener(listener) = &mut self.open_mut(id)?.thing {
            listener.queue.pop_front();
        }
        let new = self.open_new(host, family, Thing::Tcp { link, end: 1 }, true);
        self.open_mut(new)?.flags = flags;
        if let Some(link) = self.links.get_mut(&link) {
            let end = &mut link.ends[1];
            end.queued = false;
            end.listener = None;
            end.descriptor = Some(new);
        }
        self.core.note(host, format_args!("#{} accepted #{} ~{}", id.0, new.0, link.0));
        Ok(new)
    }

    pub(super) fn tcp_is_ready(&self, link: LinkId, end: usize, read: bool) -> bool {
        let Some(link) = self.links.get(&link) else { return true };
        if read {
            return link.ends[end].is_readable();
        }
        link.is_writable(end, self.core.settings.tcp_send_buffer)
    }

    pub(super) fn tcp_receive(&mut self, id: LinkId, end: usize, into: &mut [u8]) -> Outcome<usize> {
        let capacity = self.core.settings.tcp_receive_buffer;
        let Some(link) = self.links.get_mut(&id) else { return Err(libc::EBADF) };
        let here = &mut link.ends[end];
        let result = here.receive(into);
        let (host, limit) = (here.host, here.taken + capacity as u64);
        if result == Err(libc::EAGAIN) {
            return result;
        }
        let needs_update = link.pipes[1 - end].wants_update(limit, capacity as u64);
        self.core.note(host, format_args!("~{} receive {}", id.0, Told(&result)));
        if matches!(result, Ok(1..)) && needs_update {
            self.acknowledge(id, 1 - end);
        }
        result
    }

    pub(super) fn tcp_send(&mut self, id: LinkId, end: usize, bytes: &[u8]) -> Outcome<usize> {
        let capacity = self.core.settings.tcp_send_buffer;
        let Some(link) = self.links.get_mut(&id) else { return Err(libc::EBADF) };
        let host = link.ends[end].host;
        let result = link.send(end, bytes, capacity);
        if result == Err(libc::EAGAIN) {
            return result;
        }
        self.core.note(host, format_args!("~{} send of {}: {}", id.0, bytes.len(), Told(&result)));
        if result.is_ok() {
            self.transmit(id, end);
        }
        result
    }

    pub(super) fn tcp_shutdown(&mut self, id: LinkId, end: usize, how: Shutdown) -> Outcome<()> {
        let Some(link) = self.links.get_mut(&id) else { return Err(libc::ENOTCONN) };
        let here = &mut link.ends[end];
        if here.phase != Phase::Open {
            return Err(libc::ENOTCONN);
        }
        if how != Shutdown::Write {
            here.read_shut = true;
        }
        if how != Shutdown::Read {
            link.pipes[end].shut();
        }
        let descriptor = here.descriptor;
        self.transmit(id, end);
        if let Some(descriptor) = descriptor {
            self.announce(descriptor);
        }
        Ok(())
    }

    /// The descriptor of an end is gone.
    pub(super) fn tcp_close(&mut self, id: LinkId, end: usize, at_once: bool) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let here = &mut link.ends[end];
        here.descriptor = None;
        match here.phase {
            Phase::Open if at_once || !here.inbox.is_empty() => self.abort(id, end),
            Phase::Open => {
                link.pipes[end].shut();
                self.transmit(id, end);
                // Nothing is in the inbox, so the peer may as well know that the window is wide.
                self.acknowledge(id, 1 - end);
            }
            Phase::SynSent | Phase::Handshake => self.kill(id, end, None),
            Phase::Absent | Phase::Dead => {}
        }
        self.sweep(id);
    }

    pub(super) fn tcp_close_listener(&mut self, listener: Listener) {
        for id in listener.queue {
            let Some(link) = self.links.get_mut(&id) else { continue };
            link.ends[1].queued = false;
            if link.ends[1].phase == Phase::Open {
                self.abort(id, 1);
            }
            self.sweep(id);
        }
    }

    /// `shutdown` of a listener: like Linux, it is a fresh socket afterwards that keeps its port.
    pub(super) fn tcp_stop_listening(&mut self, id: DescriptorId) -> Outcome<()> {
        use super::socket::Thing;
        let thing = std::mem::replace(&mut self.open_mut(id)?.thing, Thing::TcpFresh);
        if let Thing::TcpListener(listener) = thing {
            self.tcp_close_listener(listener);
        }
        self.note_at(id, format_args!("listens no more"));
        self.announce(id);
        Ok(())
    }

    /// Every connection, for tests to look at.
    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        self.links.values().map(|link| link.info()).collect()
    }

    /// Everything that a host knew of its connections is gone; nobody is told.
    pub(super) fn crash_links(&mut self, host: HostId) {
        let touched: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| link.ends.iter().any(|end| end.host == host))
            .map(|(id, _)| *id)
            .collect();
        for id in touched {
            for end in 0..2 {
                let Some(link) = self.links.get_mut(&id) else { break };
                let here = &mut link.ends[end];
                if here.host != host {
                    continue;
                }
                here.descriptor = None;
                here.queued = false;
                here.listener = None;
                here.inbox.clear();
                let on_the_wire = self.core.now + self.core.settings.latency_max;
                link.pipes[end].keep_until(on_the_wire);
                self.kill(id, end, None);
                self.restart_handshake(id);
            }
            self.sweep(id);
        }
    }

    /// An end is told that its connection has failed; its system forgets it.
    fn kill(&mut self, id: LinkId, end: usize, error: Option<i32>) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let here = &mut link.ends[end];
        let before = std::mem::replace(&mut here.phase, Phase::Dead);
        if before == Phase::Dead || before == Phase::Absent {
            here.phase = before;
            return;
        }
        here.error = error;
        let (descriptor, listener, host) = (here.descriptor, here.listener, here.host);
        link.pipes[end].drop_unsent();
        // What was unacknowledged will be sent again, so that the other end finds out.
        link.pipes[1 - end].forget_limit();
        if let Some(error) = error {
            let error = std::io::Error::from_raw_os_error(error);
            self.core.note(host, format_args!("~{} fails: {error}", id.0));
        }
        if before == Phase::Handshake {
            self.release_reservation(listener);
        }
        if let Some(descriptor) = descriptor {
            self.announce(descriptor);
        }
        self.transmit(id, 1 - end);
        self.probe(id, 1 - end);
    }

    /// An end resets the connection.
    fn abort(&mut self, id: LinkId, end: usize) {
        self.kill(id, end, None);
        self.put(id, end, SegmentKind::Reset);
    }

    /// Both ends find the connection reset, as if a box between them had lost its memory.
    fn reset_both(&mut self, id: LinkId) {
        for end in 0..2 {
            self.reset_arrives(id, end);
        }
    }

    /// Forgets a connection that no end needs any more.
    fn sweep(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        if link.ends.iter().all(End::has_let_go) && link.pipes.iter().all(Pipe::is_empty) {
            self.links.remove(&id);
        }
    }

    fn roll_reset(&mut self, from: HostId, to: HostId) -> bool {
        from != to && self.core.roll(to, Fault::Reset)
    }
}

impl End {
    fn receive(&mut self, into: &mut [u8]) -> Outcome<usize> {
        if matches!(self.phase, Phase::SynSent) {
            return Err(libc::EAGAIN);
        }
        if into.is_empty() {
            return Ok(0);
        }
        if !self.inbox.is_empty() {
            let count = take_front(&mut self.inbox, into);
            self.taken += count as u64;
            return Ok(count);
        }
        if self.finished {
            return Ok(0);
        }
        match self.error.take() {
            Some(error) => Err(error),
            None if self.read_shut || self.phase == Phase::Dead => Ok(0),
            None => Err(libc::EAGAIN),
        }
    }
}

impl Link {
    fn send(&mut self, end: usize, bytes: &[u8], capacity: usize) -> Outcome<usize> {
        let here = &mut self.ends[end];
        if here.phase == Phase::SynSent {
            return Err(libc::EAGAIN);
        }
        if let Some(error) = here.error.take() {
            return Err(error);
        }
        let pipe = &mut self.pipes[end];
        if here.phase == Phase::Dead || pipe.is_shut() {
            return Err(libc::EPIPE);
        }
        pipe.accept(bytes, capacity)
    }

    fn info(&self) -> ConnectionInfo {
        let state = |end: &End| match end.phase {
            Phase::Open => ConnectionState::Open,
            Phase::Dead => ConnectionState::Dead,
            _ => ConnectionState::Connecting,
        };
        ConnectionInfo {
            hosts: [self.ends[0].host, self.ends[1].host],
            addresses: [self.ends[0].address, self.ends[1].address],
            states: [state(&self.ends[0]), state(&self.ends[1])],
            descriptors: [self.ends[0].descriptor, self.ends[1].descriptor],
            sending: [self.pipes[0].undelivered(), self.pipes[1].undelivered()],
            unread: [self.ends[0].unread(), self.ends[1].unread()],
        }
    }
}

/// Moves bytes out of the front of a queue; also used by Unix streams.
pub(super) fn take_front(queue: &mut VecDeque<u8>, into: &mut [u8]) -> usize {
    let count = queue.len().min(into.len());
    let (first, second) = queue.as_slices();
    let split = first.len().min(count);
    into[..split].copy_from_slice(&first[..split]);
    into[split..count].copy_from_slice(&second[..count - split]);
    queue.drain(..count);
    count
}
