//! The ports of one protocol on one host.

#![forbid(unsafe_code)]

use super::random::Random;
use super::socket::DescriptorId;
use std::collections::BTreeMap;
use std::net::IpAddr;

const EPHEMERAL_FIRST: u16 = 32768;
const EPHEMERAL_LAST: u16 = 60999;

/// A socket that has a port.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub(super) id: DescriptorId,
    pub(super) ip: IpAddr,
    pub(super) reuse_address: bool,
    pub(super) reuse_port: bool,
    pub(super) listening: bool,
    /// Whether a socket on every address of IPv6 takes IPv4, too.
    pub(super) dual: bool,
}

impl Binding {
    /// Whether something sent to this address is for this socket.
    pub(super) fn takes(&self, ip: IpAddr) -> bool {
        self.ip == ip || (self.ip.is_unspecified() && (self.ip.is_ipv6() == ip.is_ipv6() || self.is_both()))
    }

    fn is_both(&self) -> bool {
        self.dual && self.ip.is_ipv6()
    }

    fn overlaps(&self, other: &Binding) -> bool {
        self.takes(other.ip) || other.takes(self.ip)
    }
}

/// Who has which port.
#[derive(Debug, Default)]
pub(super) struct Ports {
    taken: BTreeMap<u16, Vec<Binding>>,
}

impl Ports {
    pub(super) fn at(&self, port: u16) -> &[Binding] {
        self.taken.get(&port).map_or(&[], Vec::as_slice)
    }

    /// Gives a port away; false if somebody has it.
    pub(super) fn take(&mut self, port: u16, binding: Binding) -> bool {
        let others = self.taken.entry(port).or_default();
        if others.iter().any(|other| conflicts(other, &binding)) {
            return false;
        }
        others.push(binding);
        true
    }

    /// Gives away a port that nobody has, chosen at random.
    pub(super) fn take_any(&mut self, random: &mut Random, binding: Binding) -> Option<u16> {
        let first = random.between(EPHEMERAL_FIRST.into()..=EPHEMERAL_LAST.into()) as u16;
        let port = (first..=EPHEMERAL_LAST)
            .chain(EPHEMERAL_FIRST..first)
            .find(|port| !self.taken.contains_key(port))?;
        self.taken.insert(port, vec![binding]);
        Some(port)
    }

    /// Marks a socket as listening; false if another one listens already.
    pub(super) fn listen(&mut self, port: u16, id: DescriptorId) -> bool {
        let Some(sockets) = self.taken.get_mut(&port) else { return false };
        let Some(place) = sockets.iter().position(|binding| binding.id == id) else { return false };
        let mine = Binding { listening: true, ..sockets[place].clone() };
        if sockets.iter().any(|other| other.id != id && other.listening && conflicts(other, &mine)) {
            return false;
        }
        sockets[place] = mine;
        true
    }

    pub(super) fn set_ip(&mut self, port: u16, id: DescriptorId, ip: IpAddr) {
        let binding = self.taken.get_mut(&port).and_then(|all| all.iter_mut().find(|one| one.id == id));
        if let Some(binding) = binding {
            binding.ip = ip;
        }
    }

    pub(super) fn give_back(&mut self, port: u16, id: DescriptorId) {
        let Some(sockets) = self.taken.get_mut(&port) else { return };
        sockets.retain(|binding| binding.id != id);
        if sockets.is_empty() {
            self.taken.remove(&port);
        }
    }

    pub(super) fn clear(&mut self) {
        self.taken.clear();
    }
}

fn conflicts(one: &Binding, other: &Binding) -> bool {
    if !one.overlaps(other) || (one.reuse_port && other.reuse_port) {
        return false;
    }
    let shared = one.reuse_address && other.reuse_address;
    !shared || one.listening || other.listening
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(id: i32, ip: &str) -> Binding {
        Binding {
            id: DescriptorId(id),
            ip: ip.parse().unwrap(),
            reuse_address: false,
            reuse_port: false,
            listening: false,
            dual: false,
        }
    }

    #[test]
    fn a_port_on_every_address_is_taken_on_each_of_them() {
        let mut ports = Ports::default();
        assert!(ports.take(80, binding(1, "10.0.0.1")));
        assert!(ports.take(80, binding(2, "127.0.0.1")));
        assert!(!ports.take(80, binding(3, "0.0.0.0")));
        assert!(ports.take(80, binding(4, "::")));
        let dual = Binding { dual: true, ..binding(5, "::") };
        assert!(!ports.take(80, dual));
    }

    #[test]
    fn two_that_reuse_the_address_may_bind_but_not_both_listen() {
        let mut ports = Ports::default();
        let reusing = |id| Binding { reuse_address: true, ..binding(id, "0.0.0.0") };
        assert!(ports.take(80, reusing(1)));
        assert!(ports.take(80, reusing(2)));
        assert!(ports.listen(80, DescriptorId(1)));
        assert!(!ports.listen(80, DescriptorId(2)));
        assert!(!ports.take(80, reusing(3)));
    }
}
