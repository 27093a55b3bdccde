//! What the tests of the simulated kernel share: two hosts, and a world that runs.

#![forbid(unsafe_code)]

use super::*;
use crate::driver::sys::os::libc;
use std::net::SocketAddr;
use std::time::Duration;

/// Two hosts, `a` at 10.0.0.1 and fd00::1, and `b` at 10.0.0.2 and fd00::2.
pub(super) struct Pair {
    pub(super) world: World,
    pub(super) a: HostId,
    pub(super) b: HostId,
}

impl Pair {
    pub(super) fn new(seed: u64, faults: Faults) -> Pair {
        Pair::with(seed, faults, Settings::default())
    }

    pub(super) fn with(seed: u64, faults: Faults, settings: Settings) -> Pair {
        let mut world = World::new(seed, settings, faults);
        world.log_mut().keep_all();
        let mut add = |name: &str, last: &str| {
            let addresses = [format!("10.0.0.{last}"), format!("fd00::{last}")];
            world.add_host(name, addresses.iter().map(|ip| ip.parse().unwrap()).collect())
        };
        let (a, b) = (add("a", "1"), add("b", "2"));
        Pair { world, a, b }
    }

    /// Runs for a length of time.
    pub(super) fn run(&mut self, time: Duration) {
        run(&mut self.world, time);
    }

    pub(super) fn run_ms(&mut self, time: u64) {
        self.run(Duration::from_millis(time));
    }

    /// A stream socket that listens.
    pub(super) fn listener(&mut self, host: HostId, at: &str, backlog: usize) -> DescriptorId {
        let world = &mut self.world;
        let id = world.socket(host, family(at), Kind::Stream).unwrap();
        world.bind(id, &ip(at)).unwrap();
        world.listen(id, backlog).unwrap();
        id
    }

    /// A stream socket that begins to connect.
    pub(super) fn connecting(&mut self, host: HostId, to: &str) -> DescriptorId {
        let id = self.world.socket(host, family(to), Kind::Stream).unwrap();
        assert_eq!(self.world.connect(id, &ip(to)), Err(libc::EINPROGRESS));
        id
    }

    /// A connection from `a` to `b`: the listener and both ends.
    pub(super) fn connection(&mut self) -> (DescriptorId, DescriptorId, DescriptorId) {
        let listener = self.listener(self.b, "10.0.0.2:80", 10);
        let near = self.connecting(self.a, "10.0.0.2:80");
        self.run_ms(5);
        let far = self.world.accept(listener).unwrap();
        assert_eq!(self.world.take_error(near), None);
        (listener, near, far)
    }

    pub(super) fn datagrams(&mut self, host: HostId, at: &str) -> DescriptorId {
        let id = self.world.socket(host, family(at), Kind::Datagram).unwrap();
        self.world.bind(id, &ip(at)).unwrap();
        id
    }

    pub(super) fn receive(&mut self, id: DescriptorId) -> Outcome<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let count = self.world.receive(id, &mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }
}

pub(super) fn run(world: &mut World, time: Duration) {
    let end = world.now() + time;
    while world.advance(end) {}
    world.move_to(end);
}

pub(super) fn ip(address: &str) -> SimAddress {
    SimAddress::Ip(socket(address))
}

pub(super) fn socket(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn family(address: &str) -> Family {
    if socket(address).is_ipv4() { Family::V4 } else { Family::V6 }
}
