//! How a TCP connection comes about.
//!
//! A SYN that finds nobody, no room or no way is sent again every second until the time is up. The answer to it and
//! the answer to that are the first segments of the two pipes, so that no data can overtake them.

#![forbid(unsafe_code)]

use super::super::address::{is_for_many, loopback};
use super::super::core::{Event, HostId};
use super::super::ports::Binding;
use super::super::socket::Thing;
use super::super::{DescriptorId, Fault, Outcome, World};
use super::wire::{Pipe, SegmentKind};
use super::{End, Link, LinkId, Phase};
use crate::driver::sys::os::libc;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const SYN_AGAIN: Duration = Duration::from_secs(1);

impl World {
    pub(in super::super) fn tcp_connect(&mut self, id: DescriptorId, to: SocketAddr) -> Outcome<()> {
        let mut to = self.fitting(id, to)?;
        self.may_connect(id)?;
        if to.ip().is_unspecified() {
            to.set_ip(loopback(to.is_ipv6()));
        }
        if is_for_many(to.ip()) {
            return Err(libc::ENETUNREACH);
        }
        if to.port() == 0 {
            return Err(libc::ECONNREFUSED);
        }
        let open = self.open(id)?;
        let (host, bound) = (open.host, open.local);
        let source = self.source_for(host, to.ip()).ok_or(libc::ENETUNREACH)?;
        let Some(there) = self.host_towards(host, to.ip()) else {
            self.note_at(id, format_args!("connect {to}: no such host"));
            return Err(libc::EHOSTUNREACH);
        };
        let local = match bound {
            Some(local) if !local.ip().is_unspecified() => local,
            Some(local) => SocketAddr::new(source, local.port()),
            None => self.take_port(id, SocketAddr::new(source, 0))?,
        };
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let mut near = End::new(host, local, Phase::SynSent);
        near.descriptor = Some(id);
        let far = End::new(there, to, Phase::Absent);
        let pipes = [self.new_pipe(), self.new_pipe()];
        let started = self.core.now;
        self.links.insert(link, Box::new(Link { ends: [near, far], pipes, started, target: to }));
        self.open_mut(id)?.thing = Thing::Tcp { link, end: 0 };
        self.core.note(host, format_args!("#{} connect {to} ~{}", id.0, link.0));
        self.send_syn(link);
        Err(libc::EINPROGRESS)
    }

    /// Whether a socket may connect; one whose attempt failed may try again.
    fn may_connect(&mut self, id: DescriptorId) -> Outcome<()> {
        let Thing::Tcp { link, end } = self.open(id)?.thing else { return Ok(()) };
        let Some(known) = self.links.get_mut(&link) else { return Ok(()) };
        match (known.ends[end].phase, known.ends[1 - end].phase) {
            (Phase::SynSent, _) => Err(libc::EALREADY),
            (Phase::Dead, Phase::Absent) => {
                known.ends[end].descriptor = None;
                self.open_mut(id)?.thing = Thing::TcpFresh;
                self.sweep(link);
                Ok(())
            }
            _ => Err(libc::EISCONN),
        }
    }

    fn new_pipe(&self) -> Pipe {
        Pipe::new(self.core.settings.tcp_receive_buffer as u64)
    }

    pub(in super::super) fn send_syn(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        if link.ends[0].phase != Phase::SynSent {
            return self.sweep(id);
        }
        let (here, there) = (link.ends[0].host, link.ends[1].host);
        if self.core.now >= link.started + self.core.settings.connect_timeout {
            self.kill(id, 0, Some(libc::ETIMEDOUT));
            return;
        }
        if here != there && self.core.roll(here, Fault::SynLoss) {
            self.core.plan(SYN_AGAIN, Event::SynSend(id));
            return;
        }
        let after = self.core.latency(here, there);
        self.core.plan(after, Event::SynArrive(id));
    }

    pub(in super::super) fn syn_arrives(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        if link.ends[0].phase != Phase::SynSent || link.ends[1].phase != Phase::Absent {
            return self.sweep(id);
        }
        let (here, there, target) = (link.ends[0].host, link.ends[1].host, link.target);
        if self.core.is_blocked(here, there) {
            self.core.plan(SYN_AGAIN, Event::SynSend(id));
            return;
        }
        let Some(listener) = self.listener_for(there, target) else {
            self.core.note(there, format_args!("~{} refused", id.0));
            let after = self.core.latency(there, here);
            self.core.plan(after, Event::Refused(id));
            return;
        };
        let full = match self.table.get_mut(&listener.0).map(|open| &mut open.thing) {
            Some(Thing::TcpListener(listener)) => {
                let full = listener.is_full();
                listener.reserved += usize::from(!full);
                full
            }
            _ => true,
        };
        let from = self.core.host(here).name.clone();
        let room = if full { ", no room" } else { "" };
        self.core.note(there, format_args!("~{} syn from {from}{room}", id.0));
        if full {
            self.core.plan(SYN_AGAIN, Event::SynSend(id));
            return;
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.ends[1].phase = Phase::Handshake;
            link.ends[1].listener = Some(listener);
        }
        self.put(id, 1, SegmentKind::Welcome);
    }

    pub(in super::super) fn refusal_arrives(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let (here, there) = (link.ends[0].host, link.ends[1].host);
        if link.ends[0].phase == Phase::SynSent {
            if self.core.is_blocked(there, here) {
                self.core.plan(SYN_AGAIN, Event::SynSend(id));
                return;
            }
            self.kill(id, 0, Some(libc::ECONNREFUSED));
        }
        self.sweep(id);
    }

    /// The answer to the SYN is there: the end that asked is connected.
    pub(super) fn welcome_arrives(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let here = &mut link.ends[0];
        self.established += 1;
        here.phase = Phase::Open;
        let (host, descriptor) = (here.host, here.descriptor);
        self.core.note(host, format_args!("~{} connected", id.0));
        self.put(id, 0, SegmentKind::Hello);
        if let Some(descriptor) = descriptor {
            self.announce(descriptor);
        }
    }

    /// The handshake is done: the connection waits to be accepted.
    pub(super) fn hello_arrives(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let end = &mut link.ends[1];
        let Some(listener) = end.listener else { return };
        match self.table.get_mut(&listener.0).map(|open| &mut open.thing) {
            Some(Thing::TcpListener(waiting)) => {
                waiting.reserved = waiting.reserved.saturating_sub(1);
                waiting.queue.push_back(id);
                end.phase = Phase::Open;
                end.queued = true;
                let host = end.host;
                self.core.note(host, format_args!("#{} queued ~{}", listener.0, id.0));
                self.announce(listener);
            }
            _ => self.abort(id, 1),
        }
    }

    /// The other system forgot the connection before it was one; the SYN is sent again.
    pub(super) fn restart_handshake(&mut self, id: LinkId) {
        let pipes = [self.new_pipe(), self.new_pipe()];
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.ends[0].phase == Phase::SynSent && link.ends[1].phase == Phase::Dead {
            link.ends[1] = End::new(link.ends[1].host, link.target, Phase::Absent);
            link.pipes = pipes;
            self.core.plan(SYN_AGAIN, Event::SynSend(id));
        }
    }

    pub(super) fn release_reservation(&mut self, listener: Option<DescriptorId>) {
        let open = listener.and_then(|id| self.table.get_mut(&id.0));
        if let Some(Thing::TcpListener(waiting)) = open.map(|open| &mut open.thing) {
            // It may have stopped and begun to listen again since.
            waiting.reserved = waiting.reserved.saturating_sub(1);
        }
    }

    /// Who listens at an address: the most exact binding, and one of several that share it.
    fn listener_for(&mut self, host: HostId, to: SocketAddr) -> Option<DescriptorId> {
        let bindings = self.core.hosts[host.index()].tcp.at(to.port());
        let ranked = |binding: &&Binding| rank(binding, to.ip());
        let best = bindings.iter().filter(|one| one.listening).filter_map(|one| ranked(&one)).min()?;
        let fits = |one: &&Binding| one.listening && ranked(one) == Some(best);
        let count = bindings.iter().filter(fits).count() as u64;
        let chosen = if count > 1 { self.core.random.below(count) } else { 0 };
        bindings.iter().filter(fits).nth(chosen as usize).map(|binding| binding.id)
    }
}

/// How exactly a binding fits an address, the best first; nothing if it does not.
fn rank(binding: &Binding, to: IpAddr) -> Option<u8> {
    if !binding.takes(to) {
        return None;
    }
    Some(match binding.ip {
        ip if ip == to => 0,
        ip if ip.is_ipv6() == to.is_ipv6() => 1,
        _ => 2,
    })
}
