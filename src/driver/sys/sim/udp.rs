//! UDP: whole datagrams, which may be lost, doubled or overtaken.

#![forbid(unsafe_code)]

use super::address::{any, is_for_many, loopback};
use super::core::{Event, HostId};
use super::socket::{Flag, Thing};
use super::{DescriptorId, Fault, Outcome, World};
use crate::driver::sys::os::libc;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The most bytes of a datagram.
const DATAGRAM_BYTES_MAX: usize = 65507;

/// What a queued datagram costs besides its bytes.
const OVERHEAD: usize = 256;

/// A datagram socket.
#[derive(Debug, Default)]
pub(super) struct Udp {
    pub(super) peer: Option<SocketAddr>,
    pub(super) error: Option<i32>,
    queue: VecDeque<(SocketAddr, Arc<[u8]>)>,
    queued: usize,
    groups: Vec<IpAddr>,
}

/// A datagram under way to a host.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    from_host: HostId,
    to_host: HostId,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Arc<[u8]>,
}

impl Udp {
    pub(super) fn is_readable(&self) -> bool {
        !self.queue.is_empty() || self.error.is_some()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queue.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

impl World {
    /// Sets whom a socket talks to; it hears nobody else then.
    pub(super) fn udp_connect(&mut self, id: DescriptorId, to: SocketAddr) -> Outcome<()> {
        let mut to = self.fitting(id, to)?;
        if to.ip().is_unspecified() {
            to.set_ip(loopback(to.is_ipv6()));
        }
        let local = self.udp_local(id, to)?;
        let open = self.open(id)?;
        let host = open.host;
        if local.ip().is_unspecified() {
            let source = self.source_for(host, to.ip()).ok_or(libc::ENETUNREACH)?;
            self.core.host_mut(host).udp.set_ip(local.port(), id, source);
            self.open_mut(id)?.local = Some(SocketAddr::new(source, local.port()));
        }
        if let Thing::Udp(udp) = &mut self.open_mut(id)?.thing {
            udp.peer = Some(to);
        }
        self.note_at(id, format_args!("connect {to}"));
        Ok(())
    }

    pub(super) fn udp_send(
        &mut self,
        id: DescriptorId,
        bytes: &[u8],
        to: Option<SocketAddr>,
    ) -> Outcome<usize> {
        let mut to = self.udp_target(id, to)?;
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(libc::EMSGSIZE);
        }
        if to.ip().is_unspecified() {
            to.set_ip(loopback(to.is_ipv6()));
        }
        let open = self.open(id)?;
        let (host, loops) = (open.host, open.flag(Flag::MulticastLoop));
        if is_broadcast(to.ip()) && !open.flag(Flag::Broadcast) {
            return Err(libc::EACCES);
        }
        if self.core.roll(host, Fault::OutOfMemory) {
            return Err(libc::ENOBUFS);
        }
        let local = self.udp_local(id, to)?;
        let source = if local.ip().is_unspecified() || local.ip().is_multicast() {
            let addresses = &self.core.host(host).addresses;
            let first = addresses.iter().find(|ip| ip.is_ipv6() == to.is_ipv6()).copied();
            let source = if is_for_many(to.ip()) { first } else { self.source_for(host, to.ip()) };
            source.unwrap_or(loopback(to.is_ipv6()))
        } else {
            local.ip()
        };
        let from = SocketAddr::new(source, local.port());
        self.core.note(host, format_args!("#{} datagram {} to {to}", id.0, bytes.len()));
        let flight = Flight { from_host: host, to_host: host, from, to, bytes: bytes.into() };
        if is_for_many(to.ip()) {
            let own = if is_broadcast(to.ip()) || loops { None } else { Some(host) };
            for there in self.hosts().filter(|there| Some(*there) != own) {
                self.launch(Flight { to_host: there, ..flight.clone() });
            }
        } else if let Some(there) = self.host_towards(host, to.ip()) {
            self.launch(Flight { to_host: there, ..flight });
        }
        Ok(bytes.len())
    }

    pub(super) fn udp_receive(
        &mut self,
        id: DescriptorId,
        into: &mut [u8],
    ) -> Outcome<(usize, bool, SocketAddr)> {
        let Thing::Udp(udp) = &mut self.open_mut(id)?.thing else { return Err(libc::ENOTSOCK) };
        if let Some(error) = udp.error.take() {
            return Err(error);
        }
        let (from, bytes) = udp.queue.pop_front().ok_or(libc::EAGAIN)?;
        udp.queued -= bytes.len() + OVERHEAD;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.note_at(id, format_args!("datagram {count} from {from}"));
        Ok((count, count < bytes.len(), from))
    }

    /// Makes a socket hear what is sent to a group; on which interface makes no difference here.
    pub(crate) fn join_multicast(
        &mut self,
        id: DescriptorId,
        group: IpAddr,
        _interface: Option<IpAddr>,
    ) -> Outcome<()> {
        let Thing::Udp(udp) = &mut self.open_mut(id)?.thing else { return Err(libc::ENOPROTOOPT) };
        if !group.is_multicast() {
            return Err(libc::EINVAL);
        }
        if udp.groups.contains(&group) {
            return Err(libc::EADDRINUSE);
        }
        udp.groups.push(group);
        self.note_at(id, format_args!("joins {group}"));
        Ok(())
    }

    pub(crate) fn leave_multicast(
        &mut self,
        id: DescriptorId,
        group: IpAddr,
        _interface: Option<IpAddr>,
    ) -> Outcome<()> {
        let Thing::Udp(udp) = &mut self.open_mut(id)?.thing else { return Err(libc::ENOPROTOOPT) };
        let place = udp.groups.iter().position(|one| *one == group).ok_or(libc::EADDRNOTAVAIL)?;
        udp.groups.remove(place);
        self.note_at(id, format_args!("leaves {group}"));
        Ok(())
    }

    pub(super) fn datagram_arrives(&mut self, flight: Flight) {
        let Flight { from_host, to_host, from, to, ref bytes } = flight;
        if self.core.is_blocked(from_host, to_host) {
            self.core.note(to_host, format_args!("datagram {} lost on the way", bytes.len()));
            return;
        }
        let takers = self.takers(&flight);
        if takers.is_empty() && !is_for_many(to.ip()) {
            self.core.note(to_host, format_args!("nobody takes datagrams at {to}"));
            let after = self.core.latency(to_host, from_host);
            if !self.core.is_blocked(to_host, from_host) {
                self.core.plan(after, Event::Unreachable { host: from_host, from, to });
            }
        }
        for id in takers {
            self.deliver_datagram(id, from, bytes);
        }
    }

    /// A host hears that nobody took a datagram of its.
    pub(super) fn unreachable_arrives(&mut self, host: HostId, from: SocketAddr, to: SocketAddr) {
        let bindings = self.core.host(host).udp.at(from.port());
        let candidates: Vec<DescriptorId> =
            bindings.iter().filter(|one| one.takes(from.ip())).map(|one| one.id).collect();
        for id in candidates {
            let Some(open) = self.table.get_mut(&id.0) else { continue };
            if let Thing::Udp(udp) = &mut open.thing {
                // Only a connected socket is told.
                if udp.peer == Some(to) {
                    udp.error = Some(libc::ECONNREFUSED);
                    self.note_at(id, format_args!("port unreachable at {to}"));
                    self.announce(id);
                }
            }
        }
    }

    /// Whom a datagram goes to. An error that waits is told now.
    fn udp_target(&mut self, id: DescriptorId, to: Option<SocketAddr>) -> Outcome<SocketAddr> {
        let Thing::Udp(udp) = &mut self.open_mut(id)?.thing else { return Err(libc::ENOTSOCK) };
        if let Some(error) = udp.error.take() {
            return Err(error);
        }
        match to {
            Some(to) if to.port() == 0 => Err(libc::EINVAL),
            Some(to) => self.fitting(id, to),
            None => udp.peer.ok_or(libc::EDESTADDRREQ),
        }
    }

    /// The address of a socket, which gets a port if it has none.
    fn udp_local(&mut self, id: DescriptorId, to: SocketAddr) -> Outcome<SocketAddr> {
        match self.open(id)?.local {
            Some(local) => Ok(local),
            None => self.take_port(id, SocketAddr::new(any(to.is_ipv6()), 0)),
        }
    }

    /// Sends a datagram to one host, with all that may become of it.
    fn launch(&mut self, flight: Flight) {
        let (from, to) = (flight.from_host, flight.to_host);
        let latency = self.core.latency(from, to);
        // Without the fault datagrams keep their order on the way, as they do on Linux within a host.
        let mut after = self.core.behind_others(from, to, latency);
        if from != to {
            if self.core.roll(from, Fault::DatagramLoss) {
                return;
            }
            if self.core.roll(from, Fault::DatagramReorder) {
                after = latency + self.core.span(Duration::ZERO, Duration::from_millis(50));
            }
            if self.core.roll(from, Fault::DatagramDuplicate) {
                let later = after + self.core.span(Duration::ZERO, Duration::from_millis(5));
                self.core.plan(later, Event::Datagram(Box::new(flight.clone())));
            }
        }
        self.core.plan(after, Event::Datagram(Box::new(flight)));
    }

    /// The sockets of a host that a datagram is for.
    fn takers(&mut self, flight: &Flight) -> Vec<DescriptorId> {
        let (from, to) = (flight.from, flight.to);
        let many = is_for_many(to.ip());
        let group = to.ip().is_multicast();
        let mut best = 0;
        let mut found = Vec::new();
        for binding in self.core.host(flight.to_host).udp.at(to.port()) {
            let exact = binding.ip == to.ip();
            let everywhere = binding.ip.is_unspecified() && binding.takes(to.ip());
            let Some(Thing::Udp(udp)) = self.table.get(&binding.id.0).map(|open| &open.thing) else {
                continue;
            };
            let is_stranger = udp.peer.is_some_and(|peer| peer != from);
            let is_member = !group || udp.groups.contains(&to.ip());
            if is_stranger || !is_member || !(exact || everywhere) {
                continue;
            }
            let score = 1 + u8::from(exact) + 2 * u8::from(udp.peer.is_some());
            if !many && score > best {
                best = score;
                found.clear();
            }
            if many || score == best {
                found.push((binding.id, binding.reuse_port));
            }
        }
        if !many && found.len() > 1 {
            // A group that shares a port shares the datagrams; otherwise the last one gets them all.
            let shared = found.iter().all(|(_, reuse_port)| *reuse_port);
            let last = found.len() - 1;
            let chosen = if shared { self.core.random.below(found.len() as u64) as usize } else { last };
            found = vec![found[chosen]];
        }
        found.into_iter().map(|(id, _)| id).collect()
    }

    fn deliver_datagram(&mut self, id: DescriptorId, from: SocketAddr, bytes: &Arc<[u8]>) {
        let most = self.core.settings.datagram_queue_bytes;
        let Some(Thing::Udp(udp)) = self.table.get_mut(&id.0).map(|open| &mut open.thing) else { return };
        let size = bytes.len() + OVERHEAD;
        if udp.queued + size > most && !udp.queue.is_empty() {
            self.note_at(id, format_args!("no room for a datagram of {}", bytes.len()));
            return;
        }
        udp.queued += size;
        udp.queue.push_back((from, Arc::clone(bytes)));
        self.note_at(id, format_args!("datagram {} arrived", bytes.len()));
        self.announce(id);
    }
}

fn is_broadcast(ip: IpAddr) -> bool {
    is_for_many(ip) && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Pair, ip, socket};
    use super::super::{Faults, Settings};
    use super::*;

    const A: &str = "10.0.0.1:1000";
    const B: &str = "10.0.0.2:2000";

    fn quiet() -> Pair {
        Pair::new(1, Faults::none())
    }

    #[test]
    fn datagrams_stay_whole_and_long_ones_are_cut_off() {
        let mut pair = quiet();
        let (near, far) = (pair.datagrams(pair.a, A), pair.datagrams(pair.b, B));
        let mut buffer = [0; 4];
        assert_eq!(pair.world.receive_from(far, &mut buffer), Err(libc::EAGAIN));
        for bytes in [&b"one"[..], b"twelve"] {
            assert_eq!(pair.world.send_to(near, bytes, Some(socket(B))), Ok(bytes.len()));
            pair.run_ms(5);
        }
        assert!(pair.world.is_ready(far, true));
        assert_eq!(pair.world.bytes_queued(far), 9);
        assert_eq!(pair.world.receive_from(far, &mut buffer), Ok((3, false, socket(A))));
        assert_eq!(pair.world.receive_from(far, &mut buffer), Ok((4, true, socket(A))));
        assert_eq!(&buffer, b"twel");
        assert_eq!(pair.world.send_to(near, &[0; 65_508], Some(socket(B))), Err(libc::EMSGSIZE));
        assert_eq!(pair.world.send_to(near, b"x", None), Err(libc::EDESTADDRREQ));
        assert_eq!(pair.world.send_to(near, b"into the void", Some(socket("10.7.7.7:1"))), Ok(13));
    }

    #[test]
    fn a_connected_socket_hears_only_its_peer_and_of_a_closed_port() {
        let mut pair = quiet();
        let (near, far) = (pair.datagrams(pair.a, A), pair.datagrams(pair.b, B));
        let stranger = pair.datagrams(pair.b, "10.0.0.2:3000");
        pair.world.connect(near, &ip(B)).unwrap();
        pair.world.send_to(stranger, b"psst", Some(socket(A))).unwrap();
        pair.world.send_to(far, b"hello", Some(socket(A))).unwrap();
        pair.run_ms(5);
        assert_eq!(pair.receive(near).unwrap(), b"hello");
        assert_eq!(pair.receive(near), Err(libc::EAGAIN));
        pair.world.close(far).unwrap();
        pair.world.send(near, b"gone?").unwrap();
        pair.run_ms(5);
        assert!(pair.world.is_ready(near, true));
        assert_eq!(pair.receive(near), Err(libc::ECONNREFUSED));
        assert_eq!(pair.world.send(near, b"again"), Ok(5));
    }

    #[test]
    fn a_full_queue_drops_what_comes() {
        let settings = Settings { datagram_queue_bytes: 10_000, ..Settings::default() };
        let mut pair = Pair::with(1, Faults::none(), settings);
        let (near, far) = (pair.datagrams(pair.a, A), pair.datagrams(pair.b, B));
        for _ in 0..20 {
            pair.world.send_to(near, &[0; 1000], Some(socket(B))).unwrap();
        }
        pair.run_ms(5);
        let kept = std::iter::from_fn(|| pair.receive(far).ok()).count();
        assert_eq!(kept, 10_000 / (1000 + OVERHEAD));
    }

    #[test]
    fn a_broadcast_needs_leave_and_reaches_every_host() {
        let mut pair = quiet();
        let (near, far) = (pair.datagrams(pair.a, "0.0.0.0:99"), pair.datagrams(pair.b, "0.0.0.0:99"));
        let all = Some(socket("255.255.255.255:99"));
        assert_eq!(pair.world.send_to(near, b"x", all), Err(libc::EACCES));
        pair.world.set_option(near, Flag::Broadcast, 1).unwrap();
        pair.world.send_to(near, b"x", all).unwrap();
        pair.run_ms(5);
        assert_eq!(pair.receive(far).unwrap(), b"x");
        assert_eq!(pair.receive(near).unwrap(), b"x");
    }

    #[test]
    fn a_group_reaches_its_members_on_hosts_that_can_be_reached() {
        let mut pair = quiet();
        let (near, far) = (pair.datagrams(pair.a, "0.0.0.0:99"), pair.datagrams(pair.b, "0.0.0.0:99"));
        let other =
            pair.world.socket(pair.b, super::super::Family::V4, super::super::Kind::Datagram).unwrap();
        pair.world.set_option(other, Flag::ReuseAddress, 1).unwrap();
        assert_eq!(pair.world.bind(other, &ip("0.0.0.0:99")), Err(libc::EADDRINUSE));
        let group: IpAddr = "239.1.2.3".parse().unwrap();
        let to = Some(SocketAddr::new(group, 99));
        pair.world.join_multicast(far, group, None).unwrap();
        pair.world.join_multicast(near, group, None).unwrap();
        pair.world.set_option(near, Flag::MulticastLoop, 0).unwrap();
        pair.world.send_to(near, b"all", to).unwrap();
        pair.run_ms(5);
        assert_eq!(pair.receive(far).unwrap(), b"all");
        assert_eq!(pair.receive(near), Err(libc::EAGAIN));
        pair.world.partition(pair.a, pair.b);
        pair.world.send_to(near, b"cut", to).unwrap();
        pair.run_ms(5);
        pair.world.heal_all();
        pair.world.leave_multicast(far, group, None).unwrap();
        pair.world.send_to(near, b"left", to).unwrap();
        pair.run_ms(5);
        assert_eq!(pair.receive(far), Err(libc::EAGAIN));
    }

    #[test]
    fn datagrams_get_lost_doubled_and_overtaken_but_never_changed() {
        let mut pair = Pair::new(9, Faults::rough().with(Fault::OutOfMemory, 0.0));
        let (near, far) = (pair.datagrams(pair.a, A), pair.datagrams(pair.b, B));
        let mut seen = Vec::new();
        for number in 0..1000_u32 {
            pair.world.send_to(near, &number.to_le_bytes(), Some(socket(B))).unwrap();
            pair.run_ms(1);
            seen.extend(std::iter::from_fn(|| pair.receive(far).ok()));
        }
        let numbers: Vec<u32> =
            seen.iter().map(|bytes| u32::from_le_bytes(bytes.as_slice().try_into().unwrap())).collect();
        let mut different = numbers.clone();
        different.sort_unstable();
        different.dedup();
        assert!(different.len() < 1000 && different.len() > 500, "{}", different.len());
        assert!(numbers.len() > different.len());
        assert!(numbers.windows(2).any(|two| two[0] > two[1]));
    }
}
