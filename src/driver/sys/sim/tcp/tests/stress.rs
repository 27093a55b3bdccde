//! Many connections that send random amounts in both directions, driven by what the world announces.
//!
//! The model is simple: every byte of a stream is known from its place, so an end that receives knows what must come.

#![forbid(unsafe_code)]

use super::super::super::testing::Pair;
use super::super::super::{DescriptorId, Fault, Faults, NodeId, World};
use crate::driver::sys::os::libc;
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::time::Duration;

const RETRY: u64 = u64::MAX;

/// One end, with what it has done.
struct Actor {
    id: DescriptorId,
    node: NodeId,
    /// Who made this stream; both ends of a connection use the sum of both for the other direction.
    salt: u64,
    to_send: u64,
    sent: u64,
    received: u64,
    ended: bool,
    failed: bool,
    shut: bool,
}

impl Actor {
    fn new(world: &mut World, id: DescriptorId, node: NodeId, salt: u64, most: u64) -> Actor {
        let to_send = world.random().below(most);
        world.watch(id, node);
        let (sent, received) = (0, 0);
        Actor { id, node, salt, to_send, sent, received, ended: false, failed: false, shut: false }
    }

    /// Does all that can be done now.
    fn act(&mut self, world: &mut World) {
        if !world.is_ready(self.id, false) && !world.is_ready(self.id, true) {
            return;
        }
        self.send(world);
        self.receive(world);
    }

    fn send(&mut self, world: &mut World) {
        while self.sent < self.to_send && !self.failed {
            let most = (self.to_send - self.sent).min(world.random().between(1..=9000));
            let bytes: Vec<u8> = (0..most).map(|place| byte(self.salt, self.sent + place)).collect();
            match world.send(self.id, &bytes) {
                Ok(count) => self.sent += count as u64,
                Err(libc::EAGAIN) => return,
                Err(_) => self.failed = true,
            }
        }
        if !self.shut && !self.failed {
            self.shut = true;
            self.failed = world.shutdown(self.id, Shutdown::Write).is_err();
        }
    }

    fn receive(&mut self, world: &mut World) {
        let mut buffer = [0; 5000];
        loop {
            let most = world.random().between(1..=5000) as usize;
            match world.receive(self.id, &mut buffer[..most]) {
                Ok(0) => break self.ended = true,
                Ok(count) => {
                    assert!(!self.ended, "bytes after the end");
                    for seen in &buffer[..count] {
                        assert_eq!(*seen, byte(self.salt ^ 1, self.received), "at {}", self.received);
                        self.received += 1;
                    }
                }
                Err(libc::EAGAIN) => return,
                Err(_) => self.failed = true,
            }
        }
    }
}

fn byte(salt: u64, place: u64) -> u8 {
    ((salt + 1).wrapping_mul(0x9e37_79b9).wrapping_add(place.wrapping_mul(0x85eb_ca6b)) >> 13) as u8
}

/// A server and clients, and whom each descriptor belongs to.
struct Crowd {
    pair: Pair,
    listener: DescriptorId,
    nodes: [NodeId; 2],
    actors: BTreeMap<DescriptorId, Actor>,
}

impl Crowd {
    fn new(seed: u64, faults: Faults, clients: u64, most: u64) -> Crowd {
        let mut pair = Pair::new(seed, faults);
        let nodes = [pair.world.add_node(pair.a), pair.world.add_node(pair.b)];
        let world = &mut pair.world;
        let listener = retry(|| world.socket(pair.b, super::Family::V4, super::Kind::Stream));
        world.bind(listener, &super::ip("10.0.0.2:80")).unwrap();
        world.listen(listener, 2).unwrap();
        world.watch(listener, nodes[1]);
        let mut actors = BTreeMap::new();
        for _ in 0..clients {
            let id = retry(|| world.socket(pair.a, super::Family::V4, super::Kind::Stream));
            assert_eq!(world.connect(id, &super::ip("10.0.0.2:80")), Err(libc::EINPROGRESS));
            let super::SimAddress::Ip(local) = world.local_address(id).unwrap() else { panic!() };
            let actor = Actor::new(world, id, nodes[0], 2 * u64::from(local.port()), most);
            actors.insert(id, actor);
        }
        Crowd { pair, listener, nodes, actors }
    }

    fn run(&mut self, time: Duration) {
        let end = self.pair.world.now() + time;
        let mut ready = Vec::new();
        let mut due = Vec::new();
        loop {
            for node in self.nodes {
                self.pair.world.take_runnable(node);
                self.pair.world.take_ready(node, &mut ready);
                self.pair.world.take_due(node, &mut due);
            }
            if due.drain(..).any(|key| key == RETRY) {
                self.accept();
            }
            for id in ready.drain(..) {
                if id == self.listener {
                    self.accept();
                } else if let Some(actor) = self.actors.get_mut(&id) {
                    actor.act(&mut self.pair.world);
                }
            }
            if !self.pair.world.has_activity() || !self.pair.world.advance(end) {
                break;
            }
        }
    }

    fn accept(&mut self) {
        let world = &mut self.pair.world;
        loop {
            match world.accept(self.listener) {
                Ok(id) => {
                    // One that was reset in the queue has no peer any more.
                    let Ok(super::SimAddress::Ip(peer)) = world.peer_address(id) else {
                        world.close(id).unwrap();
                        continue;
                    };
                    let salt = 2 * u64::from(peer.port()) + 1;
                    let actor = Actor::new(world, id, self.nodes[1], salt, 100_000);
                    self.actors.insert(id, actor);
                }
                Err(libc::EAGAIN) => return,
                Err(_) => {
                    let later = world.now() + Duration::from_millis(1);
                    return world.schedule(self.nodes[1], later, RETRY);
                }
            }
        }
    }

    /// Nobody received more than was sent, and who saw the end of a healthy stream saw all of it.
    fn check(&self, seed: u64, everything: bool) {
        let by_salt: BTreeMap<u64, &Actor> = self.actors.values().map(|actor| (actor.salt, actor)).collect();
        for actor in self.actors.values() {
            let Some(peer) = by_salt.get(&(actor.salt ^ 1)) else {
                assert!(!everything, "seed {seed}: {:?} was not accepted", actor.id);
                continue;
            };
            assert!(actor.received <= peer.sent, "seed {seed}");
            if actor.ended && !actor.failed {
                assert_eq!(actor.received, peer.sent, "seed {seed}");
            }
            if everything {
                assert_eq!(peer.sent, peer.to_send, "seed {seed}: {:?} did not send all", peer.id);
                assert!(actor.ended && !actor.failed, "seed {seed}: {:?} did not see the end", actor.id);
            }
            assert_eq!(self.nodes[(actor.salt & 1) as usize], actor.node);
        }
    }

    fn close_all(&mut self) {
        for id in std::mem::take(&mut self.actors).into_keys() {
            self.pair.world.close(id).unwrap();
        }
        let listener = self.listener;
        self.pair.world.close(listener).unwrap();
        self.pair.world.heal_all();
        self.pair.run(Duration::from_secs(120));
        let (a, b) = (self.pair.a, self.pair.b);
        assert_eq!(self.pair.world.connections().len(), 0, "{:?}", self.pair.world.connections());
        assert_eq!((self.pair.world.descriptors_open(a), self.pair.world.descriptors_open(b)), (0, 0));
    }
}

fn retry(mut make: impl FnMut() -> super::super::Outcome<DescriptorId>) -> DescriptorId {
    loop {
        if let Ok(id) = make() {
            return id;
        }
    }
}

/// Everything rough that a connection survives.
fn survivable() -> Faults {
    [Fault::Reset, Fault::Partition, Fault::OneWayPartition, Fault::HostCrash]
        .into_iter()
        .fold(Faults::rough(), |faults, fault| faults.with(fault, 0.0))
}

#[test]
fn every_byte_arrives_once_and_in_order_whatever_delays_it() {
    for seed in 0..60 {
        let mut crowd = Crowd::new(seed, survivable(), 6, 100_000);
        crowd.run(Duration::from_secs(600));
        crowd.check(seed, true);
        crowd.close_all();
    }
}

#[test]
fn what_arrives_before_a_failure_is_in_order_and_nothing_is_left_behind() {
    let mut resets = 0;
    for seed in 0..200 {
        let faults = Faults::rough().with(Fault::Reset, 0.01).with(Fault::Partition, 1.0);
        let mut crowd = Crowd::new(seed, faults, 4, 30_000);
        crowd.run(Duration::from_secs(60));
        crowd.check(seed, false);
        crowd.close_all();
        resets += crowd.pair.world.fault_counts().get(Fault::Reset);
    }
    assert!(resets > 20, "{resets}");
}

#[test]
fn ends_may_close_at_any_time() {
    for seed in 0..200 {
        let mut crowd = Crowd::new(seed, Faults::rough(), 4, 200_000);
        for _ in 0..12 {
            let time = crowd.pair.world.random().between(0..=3_000_000);
            crowd.run(Duration::from_nanos(time));
            let open: Vec<DescriptorId> = crowd.actors.keys().copied().collect();
            if open.is_empty() {
                break;
            }
            let chosen = open[crowd.pair.world.random().below(open.len() as u64) as usize];
            if crowd.pair.world.random().chance(200_000) {
                crowd.pair.world.set_linger_zero(chosen).unwrap();
            }
            crowd.actors.remove(&chosen);
            crowd.pair.world.close(chosen).unwrap();
        }
        crowd.close_all();
    }
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let log = |seed| {
        let mut crowd = Crowd::new(seed, Faults::rough(), 5, 50_000);
        crowd.run(Duration::from_secs(30));
        crowd.close_all();
        (crowd.pair.world.log().hash(), crowd.pair.world.log().all().to_owned())
    };
    assert_eq!(log(5), log(5));
    assert_ne!(log(5).0, log(6).0);
}
