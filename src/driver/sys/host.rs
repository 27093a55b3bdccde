//! [`Host`]: the machine that a shard lives on, the real one or a simulated one.
//!
//! Whatever the shard takes from its surroundings beside completions comes from here: time, chance, sockets,
//! files, names, and threads for work that blocks (invariant 17). So a simulated host can replay it all.
#![forbid(unsafe_code)]

use super::descriptor::Descriptor;
use super::os;
#[cfg(feature = "sim")]
use super::sim;
use crate::error::Full;
use socket2::{Domain, Protocol, Socket, Type};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::{Instant, SystemTime};

/// Work for a thread that may block.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// The machine that a shard lives on.
#[derive(Clone, Default, Debug)]
pub(crate) struct Host(Kind);

#[derive(Clone, Default, Debug)]
enum Kind {
    #[default]
    Real,
    #[cfg(feature = "sim")]
    Simulated(sim::Machine),
}

/// A place in our own code where simulations make a rare path common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rare {
    /// The pool counts as low, so that waiting leases are copied.
    PoolLow,
    /// A stream's inbound bound counts as reached.
    InboundFull,
    /// A batch takes only one payload.
    SmallBatch,
    /// A turn polls only one task.
    OnePoll,
    /// Timers are looked at a turn later.
    LateTimers,
}

/// A place between two steps of a protocol between threads. A simulation may let other shards of the host run
/// here, as a real machine may at any place.
#[inline]
pub(crate) fn interruption() {
    #[cfg(feature = "sim")]
    sim::interruption();
}

impl Host {
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(machine: sim::Machine) -> Host {
        Host(Kind::Simulated(machine))
    }

    /// The simulated machine that it is.
    #[cfg(feature = "sim")]
    pub(crate) fn machine(&self) -> Option<&sim::Machine> {
        match &self.0 {
            Kind::Real => None,
            Kind::Simulated(machine) => Some(machine),
        }
    }

    /// Whether it is a simulated one.
    pub(crate) fn is_simulated(&self) -> bool {
        !matches!(self.0, Kind::Real)
    }

    /// The monotonic clock.
    pub(crate) fn now(&self) -> Instant {
        match &self.0 {
            Kind::Real => Instant::now(),
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.now(),
        }
    }

    /// The wall clock.
    pub(crate) fn wall(&self) -> SystemTime {
        match &self.0 {
            Kind::Real => SystemTime::now(),
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.wall(),
        }
    }

    /// The wall clock in whole seconds since 1970, for dates that are shown to somebody.
    pub(crate) fn wall_seconds(&self) -> u64 {
        self.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// A random number; not for secrets.
    pub(crate) fn random(&self) -> u64 {
        match &self.0 {
            // Each state has keys of its own, which the standard library takes from the system.
            Kind::Real => RandomState::new().hash_one(0u8),
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.random(),
        }
    }

    /// Whether a rare path is taken here; never on a real machine.
    pub(crate) fn is_rare(&self, rare: Rare) -> bool {
        match &self.0 {
            Kind::Real => {
                let _ = rare;
                false
            }
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.is_rare(rare),
        }
    }

    /// A TCP or Unix stream socket.
    pub(crate) fn stream_socket(&self, domain: Domain) -> io::Result<Descriptor> {
        match &self.0 {
            Kind::Real => {
                let protocol = (domain != Domain::UNIX).then_some(Protocol::TCP);
                new_socket(domain, Type::STREAM, protocol)
            }
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.stream_socket(domain),
        }
    }

    /// A UDP socket.
    pub(crate) fn datagram_socket(&self, domain: Domain) -> io::Result<Descriptor> {
        match &self.0 {
            Kind::Real => new_socket(domain, Type::DGRAM, Some(Protocol::UDP)),
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.datagram_socket(domain),
        }
    }

    /// Two connected Unix stream sockets.
    pub(crate) fn pair(&self) -> io::Result<(Descriptor, Descriptor)> {
        match &self.0 {
            Kind::Real => {
                let (a, b) = os::pair()?;
                Ok((a.into(), b.into()))
            }
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.pair(),
        }
    }

    /// Opens a file to read it, or makes an empty one to write. May block.
    pub(crate) fn open_file(&self, path: &Path, create: bool) -> io::Result<Descriptor> {
        match &self.0 {
            Kind::Real => Ok(os::open_file(path, create)?.into()),
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.open_file(path, create),
        }
    }

    /// The addresses of a name. May block.
    pub(crate) fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match &self.0 {
            Kind::Real => Ok((name, port).to_socket_addrs()?.collect()),
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.resolve(name, port),
        }
    }

    /// Runs simulated blocking work that is due, where no scheduler does.
    pub(crate) fn run_due_jobs(&self) {
        match &self.0 {
            Kind::Real => {}
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.run_due_jobs(),
        }
    }

    /// Runs work that blocks: on `threads`, or where simulated time has it.
    pub(crate) fn run_blocking(
        &self,
        job: Job,
        threads: impl FnOnce(Job) -> Result<(), Full<Job>>,
    ) -> Result<(), Full<Job>> {
        match &self.0 {
            Kind::Real => threads(job),
            #[cfg(feature = "sim")]
            Kind::Simulated(machine) => machine.run_blocking(job),
        }
    }
}

/// A socket of the system. One of IPv6 takes IPv4 too, on systems where that has to be asked for as on the others; one
/// that never does (OpenBSD) stays as it is.
fn new_socket(domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Descriptor> {
    let socket = Socket::new(domain, kind, protocol)?;
    if domain == Domain::IPV6 {
        let _ = socket.set_only_v6(false);
    }
    Ok(socket.into())
}
