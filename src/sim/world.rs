//! The world as tests see it: to look at, and to change.
#![forbid(unsafe_code)]

use super::FaultCounts;
use crate::driver::sys::sim::{HostId, Simulation, World as Network};
use crate::shard::Core;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The simulated world. Clones show the same one.
///
/// Methods that name a host panic if there is none of that name: that is a mistake of the test.
#[derive(Clone)]
pub struct World {
    pub(super) simulation: Arc<Simulation>,
}

/// A TCP connection, or what is left of it. Each pair begins with the side that connected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Connection {
    /// The hosts.
    pub hosts: [String; 2],
    /// Their addresses.
    pub addresses: [SocketAddr; 2],
    /// Bytes that each side has sent and the other's kernel does not have yet.
    pub sending: [usize; 2],
    /// Bytes that wait in each side's kernel.
    pub unread: [usize; 2],
}

impl World {
    pub(super) fn network<R>(&self, work: impl FnOnce(&mut Network) -> R) -> R {
        work(&mut self.simulation.lock().world)
    }

    fn on<R>(&self, host: &str, work: impl FnOnce(&mut Network, HostId) -> R) -> R {
        self.network(|network| match network.host_named(host) {
            Some(id) => work(network, id),
            None => panic!("no simulated host is called {host:?}"),
        })
    }

    /// The simulated time since the start.
    pub fn now(&self) -> Duration {
        self.network(|network| network.now())
    }

    /// The hosts' names, in the order in which they were added.
    pub fn hosts(&self) -> Vec<String> {
        self.network(|network| network.hosts().map(|host| network.host_name(host).to_owned()).collect())
    }

    /// Whether a host runs.
    pub fn is_up(&self, host: &str) -> bool {
        self.on(host, |network, host| network.is_up(host))
    }

    /// Nothing passes between two hosts until they are healed.
    pub fn partition(&self, a: &str, b: &str) {
        let (a, b) = (self.on(a, |_, id| id), self.on(b, |_, id| id));
        self.network(|network| network.partition(a, b));
    }

    /// Nothing passes from one host to the other until they are healed; the other way is open.
    pub fn partition_one_way(&self, from: &str, to: &str) {
        let (from, to) = (self.on(from, |_, id| id), self.on(to, |_, id| id));
        self.network(|network| network.partition_one_way(from, to));
    }

    /// Ends what keeps two hosts apart.
    pub fn heal(&self, a: &str, b: &str) {
        let (a, b) = (self.on(a, |_, id| id), self.on(b, |_, id| id));
        self.network(|network| network.heal(a, b));
    }

    /// Ends every partition.
    pub fn heal_all(&self) {
        self.network(Network::heal_all);
    }

    /// Crashes a host before the next step, without a word to its peers. It restarts by itself after a while.
    pub fn crash(&self, host: &str) {
        self.on(host, Network::ask_for_crash);
    }

    /// Sets a host's wall clock forward or back.
    pub fn step_wall_clock(&self, host: &str, milliseconds: i64) {
        self.on(host, |network, host| network.step_wall(host, milliseconds));
    }

    /// What a file of a host holds.
    pub fn file(&self, host: &str, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.on(host, |network, host| network.file_bytes(host, path.as_ref()).map(<[u8]>::to_vec))
    }

    /// Sockets and files that a host has open.
    pub fn descriptors_open(&self, host: &str) -> usize {
        self.on(host, |network, host| network.descriptors_open(host))
    }

    /// The TCP connections, those included that only one side still knows.
    pub fn connections(&self) -> Vec<Connection> {
        self.network(|network| {
            let all = network.connections().into_iter();
            all.map(|one| Connection {
                hosts: one.hosts.map(|host| network.host_name(host).to_owned()),
                addresses: one.addresses,
                sending: one.sending,
                unread: one.unread,
            })
            .collect()
        })
    }

    /// The faults injected so far.
    pub fn faults(&self) -> FaultCounts {
        self.network(|network| network.fault_counts())
    }

    /// Writes a line into the log, where it stands among the events of a failure.
    pub fn note(&self, text: &str) {
        self.network(|network| {
            let now = network.now();
            network.log_mut().write(now, format_args!("{text}"));
            network.log_mut().mark();
        });
    }
}

/// Writes a line about the current host into the log, where it stands among the events of a failure. On a real machine
/// it does nothing.
///
/// ```
/// # use anabranch::sim::{Builder, note};
/// let report = Builder::new().keep_log().host("alone", || async { note("is here") }).run().unwrap();
/// assert!(report.log().contains(" alone: is here"));
/// ```
pub fn note(text: impl fmt::Display) {
    let Some(core) = Core::current() else { return };
    if let Some(machine) = core.config.host.machine() {
        // Foreign code makes the text, so it must not run under the lock of the world.
        let text = text.to_string();
        machine.simulation.lock().world.mark(machine.host, format_args!("{text}"));
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("now", &self.now()).finish_non_exhaustive()
    }
}
