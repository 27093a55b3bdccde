//! The world: hosts and what becomes of them, time, and the events that it brings.

#![forbid(unsafe_code)]

use super::core::{Core, Event, HostId, Settings, TICK};
use super::fault::{Fault, FaultCounts, Faults};
use super::log::Log;
use super::node::Node;
use super::random::Random;
use super::socket::{DescriptorId, Open};
use super::tcp::{Link, LinkId};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// A simulated network with its hosts.
#[derive(Debug)]
pub(crate) struct World {
    pub(super) core: Core,
    pub(super) nodes: Vec<Option<Node>>,
    /// Every open descriptor of every host.
    pub(super) table: BTreeMap<i32, Open>,
    pub(super) next_descriptor: i32,
    /// Every TCP connection, from the first SYN until both ends have let go.
    pub(super) links: BTreeMap<LinkId, Box<Link>>,
    pub(super) next_link: u32,
    names: BTreeMap<String, HostId>,
    addresses: BTreeMap<IpAddr, HostId>,
    crashes: Vec<HostId>,
    /// TCP connections that were established.
    pub(super) established: u64,
}

impl World {
    pub(crate) fn new(seed: u64, settings: Settings, faults: Faults) -> World {
        World {
            core: Core::new(seed, settings, faults),
            nodes: Vec::new(),
            table: BTreeMap::new(),
            next_descriptor: 3,
            links: BTreeMap::new(),
            next_link: 1,
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
            crashes: Vec::new(),
            established: 0,
        }
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.core.now
    }

    /// When the next event is due, ticks included.
    pub(crate) fn next_event(&self) -> Option<Duration> {
        self.core.next_event()
    }

    /// Whether anything is planned besides the tick that rolls the timed faults.
    pub(crate) fn has_activity(&self) -> bool {
        self.core.has_activity()
    }

    /// Carries out the next event that is due by then; false, and the time stays, if there is none.
    pub(crate) fn advance(&mut self, limit: Duration) -> bool {
        let Some(event) = self.core.next_due(limit) else { return false };
        match event {
            Event::Tick => self.tick(),
            Event::Due { node, key } => self.come_due(node, key),
            Event::Spurious(id) => self.tell(id),
            Event::SynSend(link) => self.send_syn(link),
            Event::SynArrive(link) => self.syn_arrives(link),
            Event::Refused(link) => self.refusal_arrives(link),
            Event::Head { link, from } => self.head_arrives(link, from),
            Event::Acknowledged { link, sender } => self.acknowledgement_arrives(link, sender),
            Event::Datagram(flight) => self.datagram_arrives(*flight),
            Event::Unreachable { host, from, to } => self.unreachable_arrives(host, from, to),
        }
        true
    }

    /// Moves the time on; events that are due by then still wait for `advance`.
    pub(crate) fn move_to(&mut self, time: Duration) {
        self.core.now = self.core.now.max(time);
    }

    pub(crate) fn random(&mut self) -> &mut Random {
        &mut self.core.random
    }

    pub(crate) fn log(&self) -> &Log {
        &self.core.log
    }

    pub(crate) fn log_mut(&mut self) -> &mut Log {
        &mut self.core.log
    }

    /// Writes a line about a host.
    pub(crate) fn note(&mut self, host: HostId, what: fmt::Arguments<'_>) {
        self.core.note(host, what);
    }

    /// Writes a line about a host that stays in sight longer than others.
    pub(crate) fn mark(&mut self, host: HostId, what: fmt::Arguments<'_>) {
        self.core.mark(host, what);
    }

    /// Whether a fault comes to a host now; it is counted and logged if it does.
    pub(crate) fn roll(&mut self, host: HostId, fault: Fault) -> bool {
        self.core.roll(host, fault)
    }

    pub(crate) fn fault_counts(&self) -> FaultCounts {
        self.core.counts
    }

    /// Adds a host; besides its addresses it has the loopback ones.
    pub(crate) fn add_host(&mut self, name: &str, addresses: Vec<IpAddr>) -> HostId {
        let host = self.core.add_host(name, addresses.clone());
        let known = self.names.insert(name.into(), host);
        assert!(known.is_none(), "two hosts are called {name}");
        for address in addresses {
            let known = self.addresses.insert(address, host);
            assert!(known.is_none(), "two hosts have the address {address}");
        }
        host
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.core.hosts.len() as u32).map(HostId)
    }

    pub(crate) fn host_named(&self, name: &str) -> Option<HostId> {
        self.names.get(name).copied()
    }

    pub(crate) fn host_at(&self, address: IpAddr) -> Option<HostId> {
        self.addresses.get(&address).copied()
    }

    pub(crate) fn host_name(&self, host: HostId) -> &str {
        &self.core.host(host).name
    }

    pub(crate) fn host_addresses(&self, host: HostId) -> &[IpAddr] {
        &self.core.host(host).addresses
    }

    /// The addresses of a name.
    pub(crate) fn resolve(&self, name: &str) -> Option<Vec<IpAddr>> {
        if name == "localhost" {
            return Some(vec![super::address::loopback(false), super::address::loopback(true)]);
        }
        self.host_named(name).map(|host| self.core.host(host).addresses.clone())
    }

    /// Ends a host without a word to anybody. Its nodes are the caller's to remove.
    pub(crate) fn crash(&mut self, host: HostId) {
        self.core.mark(host, format_args!("crash"));
        self.core.host_mut(host).up = false;
        self.table.retain(|_, open| open.host != host);
        self.crash_links(host);
        let here = self.core.host_mut(host);
        here.descriptors = 0;
        here.tcp.clear();
        here.udp.clear();
        here.names.clear();
        self.crash_files(host);
    }

    pub(crate) fn restart(&mut self, host: HostId) {
        self.core.host_mut(host).up = true;
        self.core.mark(host, format_args!("restart"));
    }

    pub(crate) fn is_up(&self, host: HostId) -> bool {
        self.core.host(host).up
    }

    /// The hosts that shall crash, for whoever drives them.
    /// How many TCP connections were established.
    pub(crate) fn connections_established(&self) -> u64 {
        self.established
    }

    /// Asks whoever drives a host to let it crash.
    pub(crate) fn ask_for_crash(&mut self, host: HostId) {
        self.crashes.push(host);
    }

    pub(crate) fn take_crashes(&mut self) -> Vec<HostId> {
        std::mem::take(&mut self.crashes)
    }

    /// Two hosts cannot exchange anything until they are healed.
    pub(crate) fn partition(&mut self, a: HostId, b: HostId) {
        self.core.cut(a, b, None);
        self.core.cut(b, a, None);
    }

    /// Nothing gets from one host to another until they are healed.
    pub(crate) fn partition_one_way(&mut self, from: HostId, to: HostId) {
        self.core.cut(from, to, None);
    }

    pub(crate) fn heal(&mut self, a: HostId, b: HostId) {
        self.core.heal(a, b);
    }

    pub(crate) fn heal_all(&mut self) {
        self.core.heal_all();
    }

    /// The wall clock of a host, as the time since 1970.
    pub(crate) fn wall(&self, host: HostId) -> Duration {
        let true_time = Duration::from_secs(self.core.settings.wall_start) + self.core.now;
        let offset = self.core.host(host).wall_offset_ms;
        let distance = Duration::from_millis(offset.unsigned_abs());
        if offset < 0 { true_time.saturating_sub(distance) } else { true_time + distance }
    }

    pub(crate) fn step_wall(&mut self, host: HostId, by_ms: i64) {
        let offset = &mut self.core.host_mut(host).wall_offset_ms;
        *offset = offset.saturating_add(by_ms);
        self.core.mark(host, format_args!("clock steps by {by_ms} ms"));
    }

    /// Rolls the timed faults.
    fn tick(&mut self) {
        self.core.plan(TICK, Event::Tick);
        if let Some(host) = self.core.roll_timed(Fault::Partition) {
            self.cut_for_a_while(host, true);
        }
        if let Some(host) = self.core.roll_timed(Fault::OneWayPartition) {
            self.cut_for_a_while(host, false);
        }
        if let Some(host) = self.core.roll_timed(Fault::HostCrash) {
            self.crashes.push(host);
        }
        if let Some(host) = self.core.roll_timed(Fault::ClockStep) {
            const HOUR_MS: u64 = 3_600_000;
            let by = self.core.random.between(0..=2 * HOUR_MS) as i64 - HOUR_MS as i64;
            self.step_wall(host, by);
        }
    }

    /// Cuts a host off from another one.
    fn cut_for_a_while(&mut self, host: HostId, both_ways: bool) {
        let others = self.core.hosts.len() as u64 - 1;
        if others == 0 {
            return;
        }
        let drawn = self.core.random.below(others) as u32;
        let other = HostId(if drawn < host.0 { drawn } else { drawn + 1 });
        // Short ones are as likely as long ones.
        let most = [200, 1000, 5000][self.core.random.below(3) as usize];
        let until = self.core.now + self.core.span_ms(50, most);
        let away = both_ways || self.core.random.below(2) == 0;
        if away {
            self.core.cut(host, other, Some(until));
        }
        if both_ways || !away {
            self.core.cut(other, host, Some(until));
        }
    }

    /// The host that an address means on a host.
    pub(super) fn host_towards(&self, from: HostId, ip: IpAddr) -> Option<HostId> {
        if ip.is_loopback() || ip.is_unspecified() {
            return Some(from);
        }
        self.host_at(ip)
    }

    /// The address that a host sends from to reach an address.
    pub(super) fn source_for(&self, host: HostId, to: IpAddr) -> Option<IpAddr> {
        if to.is_loopback() || to.is_unspecified() || self.host_at(to) == Some(host) {
            return Some(if to.is_unspecified() { super::address::loopback(to.is_ipv6()) } else { to });
        }
        let addresses = &self.core.host(host).addresses;
        addresses.iter().find(|ip| ip.is_ipv6() == to.is_ipv6()).copied()
    }

    /// How a descriptor is written in the log.
    pub(super) fn note_at(&mut self, id: DescriptorId, what: fmt::Arguments<'_>) {
        if let Some(open) = self.table.get(&id.0) {
            let host = open.host;
            self.core.note(host, format_args!("#{} {what}", id.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(faults: Faults) -> (World, HostId, HostId) {
        let mut world = World::new(1, Settings::default(), faults);
        let a = world.add_host("a", vec!["10.0.0.1".parse().unwrap()]);
        let b = world.add_host("b", vec!["10.0.0.2".parse().unwrap()]);
        (world, a, b)
    }

    #[test]
    fn a_node_becomes_runnable_when_a_time_has_come() {
        let (mut world, a, _) = world(Faults::none());
        let node = world.add_node(a);
        world.schedule(node, Duration::from_secs(2), 7);
        assert!(!world.advance(Duration::from_secs(1)));
        assert_eq!(world.now(), Duration::ZERO);
        assert!(world.advance(Duration::from_secs(3)));
        assert_eq!(world.now(), Duration::from_secs(2));
        let mut due = Vec::new();
        world.take_due(node, &mut due);
        assert_eq!(due, [7]);
        assert!(world.take_runnable(node) && !world.is_runnable(node));
        world.wake(node);
        assert!(world.is_runnable(node) && world.take_woken(node) && !world.take_woken(node));
    }

    #[test]
    fn simultaneous_events_come_in_an_order_of_the_seed() {
        let order = |seed| {
            let mut world = World::new(seed, Settings::default(), Faults::none());
            let host = world.add_host("a", Vec::new());
            let node = world.add_node(host);
            (0..20).for_each(|key| world.schedule(node, Duration::from_secs(1), key));
            while world.advance(Duration::MAX) {}
            let mut due = Vec::new();
            world.take_due(node, &mut due);
            due
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn ticks_are_there_only_for_timed_faults_and_are_no_activity() {
        let (world, ..) = self::world(Faults::none().with(Fault::Reset, 1.0));
        assert_eq!(world.next_event(), None);
        let (mut world, ..) = self::world(Faults::none().with(Fault::HostCrash, 1.0));
        assert!(world.next_event().is_some() && !world.has_activity());
        while world.now() < Duration::from_secs(20) {
            assert!(world.advance(Duration::MAX));
        }
        let crashes = world.take_crashes().len() as u64;
        assert!((5..50).contains(&crashes), "{crashes}");
        assert_eq!(world.fault_counts().get(Fault::HostCrash), crashes);
    }

    #[test]
    fn a_partition_ends_by_itself_and_hits_its_targets_only() {
        let faults = Faults::none().with(Fault::ClockStep, 5.0).only_on(Fault::ClockStep, "b");
        let (mut world, a, b) = world(faults.with(Fault::Partition, 1.0));
        let mut blocked = 0;
        for _ in 0..10_000 {
            world.advance(Duration::MAX);
            blocked += u32::from(world.core.is_blocked(a, b));
        }
        assert!((500..9_500).contains(&blocked), "{blocked}");
        assert_eq!(world.wall(a).as_secs(), world.core.settings.wall_start + world.now().as_secs());
        assert_ne!(world.wall(b), world.wall(a));
        world.heal_all();
        assert!(!world.core.is_blocked(a, b));
    }

    #[test]
    fn a_world_may_go_to_another_thread() {
        fn is_send<T: Send>(_: &T) {}
        is_send(&world(Faults::none()).0);
    }

    #[test]
    fn names_are_found() {
        let (world, a, b) = world(Faults::none());
        assert_eq!(world.host_named("b"), Some(b));
        assert_eq!(world.host_at("10.0.0.1".parse().unwrap()), Some(a));
        assert_eq!(world.resolve("a"), Some(vec!["10.0.0.1".parse().unwrap()]));
        assert_eq!(world.resolve("localhost").map(|all| all.len()), Some(2));
        assert_eq!(world.resolve("nobody"), None);
    }
}
