//! [`Machine`]: a simulated host as shards see it, and what all machines of a simulation share.
//!
//! The world is behind one lock, so that descriptors may be posted from shard to shard as real ones may; a
//! simulation runs on one thread, where the lock is always free. Work that blocks is kept here until simulated
//! time has come for it.
#![forbid(unsafe_code)]

use super::company::Company;
use super::descriptor::Descriptor as Simulated;
use super::{DescriptorId, Family, Fault, HostId, Kind, NodeId, OpenOptions, World};
use crate::driver::sys::descriptor::Descriptor;
use crate::driver::sys::host::{Job, Rare};
use crate::driver::sys::os::{NULL_DEVICE, libc};
use crate::error::Full;
use socket2::Domain;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The key under which a node is told of a wake that came late.
pub(crate) const WAKE: u64 = u64::MAX;

/// What the machines of a simulation share.
pub(crate) struct Simulation {
    state: Mutex<Shared>,
    /// Tells a thread that waits for a world in which nothing happens that another one changed it.
    changed: Condvar,
    /// The instant at which simulated time began.
    origin: Instant,
}

/// The world, and what waits in it.
pub(crate) struct Shared {
    pub(crate) world: World,
    pub(super) company: Company,
    /// Work for threads that block, by the key under which the host's thread node is told.
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    /// The node of each host that is told when work is due.
    threads: BTreeMap<HostId, NodeId>,
    /// Work of each host that waits or runs, at most this much.
    jobs_max: usize,
}

impl Simulation {
    pub(crate) fn new(world: World) -> Arc<Simulation> {
        let state = Shared {
            world,
            company: Company::default(),
            jobs: BTreeMap::new(),
            next_job: 0,
            threads: BTreeMap::new(),
            jobs_max: 1024,
        };
        Arc::new(Simulation { state: Mutex::new(state), changed: Condvar::new(), origin: Instant::now() })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets whoever waits for another thread look again.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits until another thread has changed something.
    pub(crate) fn wait_for_others(&self, patience: Duration) {
        drop(self.wait_changed(self.lock(), patience));
    }

    /// Waits until another thread has changed something; whether none has.
    pub(super) fn wait_changed<'a>(
        &self,
        state: MutexGuard<'a, Shared>,
        patience: Duration,
    ) -> (MutexGuard<'a, Shared>, bool) {
        let waited = self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        (waited.0, waited.1.timed_out())
    }

    /// The work that is due now, of hosts that are up.
    pub(crate) fn take_due_jobs(&self) -> Vec<Job> {
        let mut shared = self.lock();
        let shared = &mut *shared;
        let (mut keys, mut due) = (Vec::new(), Vec::new());
        for (host, node) in &shared.threads {
            if !shared.world.take_runnable(*node) {
                continue;
            }
            keys.clear();
            shared.world.take_due(*node, &mut keys);
            let jobs = keys.iter().filter_map(|key| shared.jobs.remove(key));
            if shared.world.is_up(*host) {
                due.extend(jobs);
            } else {
                // What a host had begun when it crashed is never done. Dropping it may run foreign code.
                due.extend(jobs.map(|job| -> Job { Box::new(move || drop(job)) }));
            }
        }
        due
    }

    /// Whether work is due.
    pub(crate) fn has_due_jobs(&self) -> bool {
        let shared = self.lock();
        shared.threads.values().any(|node| shared.world.is_runnable(*node))
    }
}

thread_local! {
    /// What the scheduler that steps simulated hosts on this thread does where a shard may be interrupted.
    static RUNNING: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Whether a scheduler steps simulated hosts on this thread.
pub(crate) fn is_running() -> bool {
    RUNNING.get().is_some()
}

/// A place at which a shard may be interrupted.
pub(crate) fn interruption() {
    if let Some(interrupt) = RUNNING.get() {
        interrupt();
    }
}

/// While it lives no shard of the real machine can be made on this thread.
pub(crate) struct Exclusive(Option<fn()>);

impl Exclusive {
    pub(crate) fn enter(interrupt: fn()) -> Exclusive {
        Exclusive(RUNNING.replace(Some(interrupt)))
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}

/// What a simulated descriptor lends to those who want one of the system: the null device.
pub(crate) fn placeholder() -> &'static File {
    static NULL: OnceLock<File> = OnceLock::new();
    NULL.get_or_init(|| File::open(NULL_DEVICE).expect("a system has a null device"))
}

/// A simulated host.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) simulation: Arc<Simulation>,
    pub(crate) host: HostId,
}

/// An error of its number.
pub(super) fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Machine {
    pub(crate) fn new(simulation: &Arc<Simulation>, host: HostId) -> Machine {
        Machine { simulation: Arc::clone(simulation), host }
    }

    pub(crate) fn now(&self) -> Instant {
        self.simulation.origin + self.simulation.lock().world.now()
    }

    pub(crate) fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.simulation.lock().world.wall(self.host)
    }

    pub(crate) fn random(&self) -> u64 {
        self.simulation.lock().world.random().next_u64()
    }

    pub(crate) fn roll(&self, fault: Fault) -> bool {
        self.simulation.lock().world.roll(self.host, fault)
    }

    pub(crate) fn is_rare(&self, rare: Rare) -> bool {
        let mut shared = self.simulation.lock();
        let hit = shared.world.roll(self.host, Fault::Buggify);
        if hit {
            shared.world.note(self.host, format_args!("takes a rare path: {rare:?}"));
        }
        hit
    }

    pub(crate) fn stream_socket(&self, domain: Domain) -> io::Result<Descriptor> {
        self.socket(domain, Kind::Stream)
    }

    pub(crate) fn datagram_socket(&self, domain: Domain) -> io::Result<Descriptor> {
        self.socket(domain, Kind::Datagram)
    }

    fn socket(&self, domain: Domain, kind: Kind) -> io::Result<Descriptor> {
        let family = match domain {
            Domain::IPV4 => Family::V4,
            Domain::IPV6 => Family::V6,
            Domain::UNIX => Family::Unix,
            _ => return Err(error(libc::EAFNOSUPPORT)),
        };
        let opened = self.simulation.lock().world.socket(self.host, family, kind);
        opened.map(|id| self.own(id)).map_err(error)
    }

    pub(crate) fn pair(&self) -> io::Result<(Descriptor, Descriptor)> {
        let pair = self.simulation.lock().world.socket_pair(self.host);
        pair.map(|(a, b)| (self.own(a), self.own(b))).map_err(error)
    }

    pub(crate) fn open_file(&self, path: &Path, create: bool) -> io::Result<Descriptor> {
        let options =
            OpenOptions { read: !create, write: create, create, truncate: create, ..OpenOptions::default() };
        self.open_file_as(path, options)
    }

    pub(crate) fn open_file_as(&self, path: &Path, options: OpenOptions) -> io::Result<Descriptor> {
        let opened = self.simulation.lock().world.open_file(self.host, path, options);
        opened.map(|id| self.own(id)).map_err(error)
    }

    fn own(&self, id: DescriptorId) -> Descriptor {
        Descriptor::simulated(Simulated::new(self.clone(), id))
    }

    pub(crate) fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.simulation.lock().world.resolve(name);
        let Some(addresses) = addresses else {
            let text = format!("no simulated host is called {name:?}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        };
        Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    /// Work that blocks takes some simulated time, then runs wherever the simulation is between two steps.
    pub(crate) fn run_blocking(&self, job: Job) -> Result<(), Full<Job>> {
        let mut shared = self.simulation.lock();
        let shared = &mut *shared;
        if shared.jobs.len() >= shared.jobs_max || shared.world.roll(self.host, Fault::SubmissionRefused) {
            return Err(Full(job));
        }
        let node = *shared.threads.entry(self.host).or_insert_with(|| shared.world.add_node(self.host));
        let takes = Duration::from_micros(shared.world.random().between(20..=2000));
        let key = shared.next_job;
        shared.next_job += 1;
        shared.jobs.insert(key, job);
        let at = shared.world.now() + takes;
        shared.world.schedule(node, at, key);
        Ok(())
    }

    /// Wakes a driver of this host: at once, late, or twice.
    pub(crate) fn wake(&self, node: NodeId) {
        let mut shared = self.simulation.lock();
        let world = &mut shared.world;
        let late = world.roll(self.host, Fault::LateWake);
        if late || world.roll(self.host, Fault::DoubleWake) {
            let at = world.now() + Duration::from_micros(world.random().between(1..=20_000));
            world.schedule(node, at, WAKE);
        }
        if !late {
            world.wake(node);
        }
        drop(shared);
        self.simulation.notify();
    }

    /// Runs the work that is due, where no scheduler does.
    pub(crate) fn run_due_jobs(&self) {
        for job in self.simulation.take_due_jobs() {
            job();
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({})", self.host.0)
    }
}
