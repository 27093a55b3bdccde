//! What every part of the world shares: time, events, chance, the log, the hosts and the paths between them.
//!
//! It knows no descriptor, so that a socket can be changed while faults are rolled and events are planned.

#![forbid(unsafe_code)]

use super::fault::{Fault, FaultCounts, Faults};
use super::file::FileSystem;
use super::log::Log;
use super::node::NodeId;
use super::ports::Ports;
use super::random::Random;
use super::socket::DescriptorId;
use super::tcp::LinkId;
use super::udp::Flight;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The time between two rolls of the timed faults.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// A host of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub(crate) u32);

impl HostId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The measures of the simulated network.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) latency_min: Duration,
    pub(crate) latency_max: Duration,
    pub(crate) tcp_send_buffer: usize,
    pub(crate) tcp_receive_buffer: usize,
    pub(crate) segment_bytes_max: usize,
    /// So long may bytes be unacknowledged before the connection fails.
    pub(crate) tcp_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    /// The most bytes that wait at one datagram socket.
    pub(crate) datagram_queue_bytes: usize,
    /// The most bytes that wait in one direction of a Unix stream.
    pub(crate) unix_buffer: usize,
    /// The most descriptors of one host.
    pub(crate) descriptors_max: usize,
    /// The wall clock at the start, in seconds of Unix time.
    pub(crate) wall_start: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            latency_min: Duration::from_micros(50),
            latency_max: Duration::from_micros(500),
            tcp_send_buffer: 64 << 10,
            tcp_receive_buffer: 64 << 10,
            segment_bytes_max: 1460,
            tcp_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            datagram_queue_bytes: 208 << 10,
            unix_buffer: 208 << 10,
            descriptors_max: 1024,
            wall_start: 1_767_225_600,
        }
    }
}

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    /// The timed faults are rolled.
    Tick,
    /// A time that a node asked for has come.
    Due {
        node: NodeId,
        key: u64,
    },
    /// A descriptor is announced without a reason.
    Spurious(DescriptorId),
    /// A SYN leaves.
    SynSend(LinkId),
    /// A SYN arrives.
    SynArrive(LinkId),
    /// The answer to a SYN that nobody listens for arrives.
    Refused(LinkId),
    /// The foremost segment from this end arrives.
    Head {
        link: LinkId,
        from: usize,
    },
    /// An acknowledgement arrives at this end.
    Acknowledged {
        link: LinkId,
        sender: usize,
    },
    Datagram(Box<Flight>),
    /// The sender of a datagram hears that nobody took it.
    Unreachable {
        host: HostId,
        from: SocketAddr,
        to: SocketAddr,
    },
}

#[derive(Debug)]
struct Entry {
    time: Duration,
    /// Orders what happens at the same time, differently with every seed.
    tie: u32,
    sequence: u64,
    event: Event,
}

impl Entry {
    fn key(&self) -> (Duration, u32, u64) {
        (self.time, self.tie, self.sequence)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) up: bool,
    /// What the wall clock is ahead of the simulation, in milliseconds.
    pub(super) wall_offset_ms: i64,
    pub(super) descriptors: usize,
    pub(super) tcp: Ports,
    pub(super) udp: Ports,
    pub(super) files: FileSystem,
    /// Abstract names of Unix sockets.
    pub(super) names: BTreeMap<Vec<u8>, DescriptorId>,
    may_hit: [bool; Fault::ALL.len()],
}

/// The shared part of a world.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) now: Duration,
    pub(super) random: Random,
    pub(super) settings: Settings,
    pub(super) log: Log,
    pub(super) hosts: Vec<Host>,
    pub(super) counts: FaultCounts,
    faults: Faults,
    /// The rate of each fault as a part of all numbers there are.
    thresholds: [u64; Fault::ALL.len()],
    events: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
    ticks: usize,
    /// From where to where nothing gets, and until when; without an end if somebody must heal it.
    cuts: BTreeMap<(HostId, HostId), Option<Duration>>,
    /// When the last datagram on each way arrives.
    last_datagrams: BTreeMap<(HostId, HostId), Duration>,
}

impl Core {
    pub(super) fn new(seed: u64, settings: Settings, faults: Faults) -> Core {
        let mut core = Core {
            now: Duration::ZERO,
            random: Random::new(seed),
            settings,
            log: Log::new(false),
            hosts: Vec::new(),
            counts: FaultCounts::default(),
            thresholds: Fault::ALL
                .iter()
                .map(|fault| threshold(faults.rate(*fault), *fault))
                .collect::<Vec<_>>()
                .try_into()
                .expect("one for each kind"),
            faults,
            events: BinaryHeap::new(),
            sequence: 0,
            ticks: 0,
            cuts: BTreeMap::new(),
            last_datagrams: BTreeMap::new(),
        };
        if Fault::ALL.iter().any(|fault| fault.is_timed() && core.thresholds[fault.index()] > 0) {
            core.plan(TICK, Event::Tick);
        }
        core
    }

    pub(super) fn add_host(&mut self, name: &str, addresses: Vec<IpAddr>) -> HostId {
        let id = HostId(self.hosts.len() as u32);
        let may_hit = std::array::from_fn(|index| self.faults.may_hit(Fault::ALL[index], name));
        self.hosts.push(Host {
            name: name.into(),
            addresses,
            up: true,
            wall_offset_ms: 0,
            descriptors: 0,
            tcp: Ports::default(),
            udp: Ports::default(),
            files: FileSystem::default(),
            names: BTreeMap::new(),
            may_hit,
        });
        id
    }

    pub(super) fn host(&self, host: HostId) -> &Host {
        &self.hosts[host.index()]
    }

    pub(super) fn host_mut(&mut self, host: HostId) -> &mut Host {
        &mut self.hosts[host.index()]
    }

    /// Writes a line about a host.
    pub(super) fn note(&mut self, host: HostId, what: fmt::Arguments<'_>) {
        let name = &self.hosts[host.index()].name;
        self.log.write(self.now, format_args!("{name}: {what}"));
    }

    /// As [`note`](Self::note), for what a reader of a failure wants to know even if it is long ago.
    pub(super) fn mark(&mut self, host: HostId, what: fmt::Arguments<'_>) {
        self.note(host, what);
        self.log.mark();
    }

    pub(super) fn roll(&mut self, host: HostId, fault: Fault) -> bool {
        let threshold = self.thresholds[fault.index()];
        if threshold == 0 || !self.hosts[host.index()].may_hit[fault.index()] {
            return false;
        }
        if self.random.next_u64() >= threshold {
            return false;
        }
        self.counts.count(fault);
        self.note(host, format_args!("fault {fault}"));
        true
    }

    /// Rolls a fault once for the whole world and finds a host that it may hit.
    pub(super) fn roll_timed(&mut self, fault: Fault) -> Option<HostId> {
        let threshold = self.thresholds[fault.index()];
        if threshold == 0 || self.random.next_u64() >= threshold {
            return None;
        }
        let up = |host: &&Host| host.up && host.may_hit[fault.index()];
        let count = self.hosts.iter().filter(up).count() as u64;
        if count == 0 {
            return None;
        }
        let chosen = self.random.below(count) as usize;
        let mut fitting = (0..self.hosts.len()).filter(|index| up(&&self.hosts[*index]));
        let host = HostId(fitting.nth(chosen)? as u32);
        self.counts.count(fault);
        self.note(host, format_args!("fault {fault}"));
        Some(host)
    }

    /// A length of time between the two, drawn at random.
    pub(super) fn span(&mut self, least: Duration, most: Duration) -> Duration {
        let range = least.as_nanos() as u64..=most.max(least).as_nanos() as u64;
        Duration::from_nanos(self.random.between(range))
    }

    pub(super) fn span_ms(&mut self, least: u64, most: u64) -> Duration {
        self.span(Duration::from_millis(least), Duration::from_millis(most))
    }

    /// The time something needs from one host to another.
    pub(super) fn latency(&mut self, from: HostId, to: HostId) -> Duration {
        if from == to {
            return self.span(Duration::from_micros(2), Duration::from_micros(20));
        }
        self.span(self.settings.latency_min, self.settings.latency_max)
    }

    /// How long a datagram travels that would need `latency` and may not overtake the ones before it.
    pub(super) fn behind_others(&mut self, from: HostId, to: HostId, latency: Duration) -> Duration {
        let last = self.last_datagrams.entry((from, to)).or_default();
        *last = (self.now + latency).max(*last + Duration::from_nanos(1));
        *last - self.now
    }

    /// Whether nothing gets from one host to the other now.
    pub(super) fn is_blocked(&self, from: HostId, to: HostId) -> bool {
        !self.host(to).up || self.is_cut(from, to)
    }

    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        match self.cuts.get(&(from, to)) {
            None => false,
            Some(None) => true,
            Some(Some(until)) => *until > self.now,
        }
    }

    /// Cuts the way from one host to another, until a time or until it is healed.
    pub(super) fn cut(&mut self, from: HostId, to: HostId, until: Option<Duration>) {
        if from == to {
            return;
        }
        let entry = self.cuts.entry((from, to)).or_insert(until);
        *entry = match (*entry, until) {
            (Some(old), Some(new)) => Some(old.max(new)),
            _ => None,
        };
        let name = &self.hosts[to.index()].name;
        let from = &self.hosts[from.index()].name;
        match until {
            Some(until) => self.log.write(self.now, format_args!("{from}: cut to {name} until {until:?}")),
            None => self.log.write(self.now, format_args!("{from}: cut to {name}")),
        }
        self.log.mark();
    }

    pub(super) fn heal(&mut self, a: HostId, b: HostId) {
        self.cuts.remove(&(a, b));
        self.cuts.remove(&(b, a));
        let name = &self.hosts[b.index()].name;
        let other = &self.hosts[a.index()].name;
        self.log.write(self.now, format_args!("{other}: healed with {name}"));
        self.log.mark();
    }

    pub(super) fn heal_all(&mut self) {
        self.cuts.clear();
        self.log.write(self.now, format_args!("all: healed"));
        self.log.mark();
    }

    /// Plans an event at a time from now.
    pub(super) fn plan(&mut self, after: Duration, event: Event) {
        let time = self.now + after;
        self.plan_at(time, event);
    }

    pub(super) fn plan_at(&mut self, time: Duration, event: Event) {
        self.ticks += usize::from(matches!(event, Event::Tick));
        self.sequence += 1;
        let tie = (self.random.next_u64() >> 32) as u32;
        let time = time.max(self.now);
        self.events.push(Reverse(Entry { time, tie, sequence: self.sequence, event }));
    }

    pub(super) fn next_event(&self) -> Option<Duration> {
        self.events.peek().map(|Reverse(entry)| entry.time)
    }

    /// Whether anything but the tick is planned.
    pub(super) fn has_activity(&self) -> bool {
        self.events.len() > self.ticks
    }

    /// Takes the next event if it is due by then, and moves the time to it.
    pub(super) fn next_due(&mut self, limit: Duration) -> Option<Event> {
        if self.next_event()? > limit {
            return None;
        }
        let Reverse(entry) = self.events.pop()?;
        self.now = self.now.max(entry.time);
        self.ticks -= usize::from(matches!(entry.event, Event::Tick));
        Some(entry.event)
    }
}

fn threshold(rate: f64, fault: Fault) -> u64 {
    let rate = if fault.is_timed() { rate * TICK.as_secs_f64() } else { rate };
    // The cast saturates, so that a rate of one is always.
    (rate * 2f64.powi(64)) as u64
}
