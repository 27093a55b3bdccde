//! The backends, one of which a driver has. Differences between systems live here and in the three methods of an
//! operation, nowhere else.
//!
//! A backend must: take an operation that sits in a slot (`submit`) without ever completing it there and then
//! (invariant 5); pass on the wish to end it (`cancel`), which never fails; and in `wait` hand everything on to
//! the system, wait for at least one completion or the time-out or a wake, and report each completion in the one
//! shape [`RawCompletion`]. What it accepted it reports with exactly one terminal completion (invariant 4). It
//! must not touch an operation after that, and must not run foreign code.

pub(crate) mod blocking;
pub(crate) mod control;
pub(crate) mod cpus;
pub(crate) mod descriptor;
pub(crate) mod device;
mod elsewhere;
pub(crate) mod host;
#[cfg(windows)]
pub(crate) mod iocp;
pub(crate) mod messages;
pub(crate) mod os;
pub(crate) mod passing;
pub(crate) mod pipe;
#[cfg(unix)]
pub(crate) mod poller;
#[cfg(unix)]
mod readiness;
pub(crate) mod script;
pub(crate) mod signal;
#[cfg(feature = "sim")]
pub(crate) mod sim;
pub(crate) mod socket;
#[cfg(target_os = "linux")]
mod uring;
#[cfg(target_os = "linux")]
mod uring_bufs;
pub(crate) mod wake;

pub use wake::Wake;

use super::completion::RawCompletion;
use super::fd::FdRef;
use super::pools::Pools;
use super::slot::Slots;
use super::token::Token;
use crate::buf::Pool;
use crate::config::{Backend as Choice, Config, Limits};
use crate::report::{BackendKind, BackendReport, Capabilities, Capability};
use os::libc;
#[cfg(unix)]
use readiness::Readiness;
use script::ScriptBackend;
use std::io;
use std::time::Duration;

/// The error number of a cancelled operation.
pub(crate) const CANCELED: i32 = libc::ECANCELED;
/// The error number of a receive for which no buffer was free.
pub(crate) const NO_BUFFERS: i32 = libc::ENOBUFS;
/// The kernel's name for our ring of receive buffers for streams.
#[cfg(target_os = "linux")]
pub(crate) const BUFFER_GROUP: u16 = 0;
/// The kernel's name for that of datagrams.
#[cfg(target_os = "linux")]
pub(crate) const DATAGRAM_GROUP: u16 = 1;
/// The one of buffers that lie apart.
#[cfg(target_os = "linux")]
pub(crate) const APART_GROUP: u16 = 2;

/// Whether an accept was refused for lack of descriptors or of memory for them: the listener pauses.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|number| exhausted.contains(&number))
}

/// Whether an accept failed because of that one connection: the listener goes on.
pub(crate) fn is_connection_error(error: &io::Error) -> bool {
    let passing = [
        libc::ECONNABORTED,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EHOSTDOWN,
        libc::ENOPROTOOPT,
        libc::EOPNOTSUPP,
        libc::EPERM,
        libc::EINTR,
    ];
    error.raw_os_error().is_some_and(|number| passing.contains(&number))
}

/// What a backend works on.
pub(crate) struct Workbench<'a> {
    pub(crate) slots: &'a mut Slots,
    pub(crate) pools: &'a Pools,
    pub(crate) out: &'a mut Vec<RawCompletion>,
    /// Capabilities that turned out to be missing.
    pub(crate) lowered: &'a mut Vec<(Capability, String)>,
    /// Most completions to report.
    pub(crate) budget: usize,
}

/// The backend of a driver.
pub(crate) enum Backend {
    #[cfg(target_os = "linux")]
    Uring(Box<uring::Uring>),
    #[cfg(unix)]
    Readiness(Box<Readiness>),
    #[cfg(windows)]
    Iocp(Box<iocp::Iocp>),
    Script(Box<ScriptBackend>),
    #[cfg(feature = "sim")]
    Sim(Box<sim::SimBackend>),
    /// Nothing: the driver has ended.
    Gone,
}

impl Backend {
    /// Chooses and sets up a backend.
    pub(crate) fn new(config: &Config) -> io::Result<(Backend, BackendReport)> {
        if let Some(script) = &config.script {
            let backend = ScriptBackend::new(script.clone(), config)?;
            let report = emulated(config, BackendKind::Script, format!("scripted with seed {}", script.seed));
            return Ok((Backend::Script(Box::new(backend)), report));
        }
        #[cfg(feature = "sim")]
        if let Some(machine) = config.host.machine() {
            let mut report = emulated(config, BackendKind::Simulated, "a host of a simulation".into());
            // Its kernel tells the release of a payload in a completion of its own, as a ring does.
            report.capabilities.insert(crate::report::Capability::ZeroCopySend);
            return Ok((Backend::Sim(Box::new(sim::SimBackend::new(machine, config))), report));
        }
        #[cfg(feature = "sim")]
        if sim::is_running() {
            let text =
                "a simulated host has its shards already and cannot make others; see sim::Host::shards";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let (choice, asked) = asked_for(config)?;
        match choice {
            Choice::Readiness => Backend::readiness(config, asked, Vec::new()),
            Choice::Uring => Backend::uring(config, &asked).map_err(|refusal| refusal.error),
            Choice::Iocp => Backend::iocp(config, asked),
            Choice::Auto => Backend::best(config, asked),
        }
    }

    #[cfg(unix)]
    fn best(config: &Config, asked: String) -> io::Result<(Backend, BackendReport)> {
        let refusal = match Backend::uring(config, &asked) {
            Ok((ring, report)) if report.capabilities.has(Capability::BufferRing) => {
                return Ok((ring, report));
            }
            Ok((_, report)) => Refusal::without_buffers(report),
            Err(refusal) => refusal,
        };
        Backend::readiness(config, format!("io_uring: {}", refusal.error), refusal.ladder)
    }

    #[cfg(windows)]
    fn best(config: &Config, asked: String) -> io::Result<(Backend, BackendReport)> {
        Backend::iocp(config, asked)
    }

    #[cfg(windows)]
    fn iocp(config: &Config, reason: String) -> io::Result<(Backend, BackendReport)> {
        let backend = iocp::Iocp::new(config)?;
        let mut report = emulated(config, BackendKind::Iocp, reason);
        report.ladder.push("I/O completion port: ok".into());
        Ok((Backend::Iocp(Box::new(backend)), report))
    }

    #[cfg(not(windows))]
    fn iocp(_: &Config, _: String) -> io::Result<(Backend, BackendReport)> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no I/O completion ports"))
    }

    #[cfg(windows)]
    fn readiness(_: &Config, _: String, _: Vec<String>) -> io::Result<(Backend, BackendReport)> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system has completions; ask for iocp or auto"))
    }

    #[cfg(unix)]
    fn readiness(
        config: &Config,
        reason: String,
        ladder: Vec<String>,
    ) -> io::Result<(Backend, BackendReport)> {
        let backend = Readiness::new(config)?;
        let mut report = emulated(config, BackendKind::Readiness, reason);
        report.ladder = ladder;
        report.ladder.push(backend.describe().into());
        Ok((Backend::Readiness(Box::new(backend)), report))
    }

    #[cfg(target_os = "linux")]
    fn uring(config: &Config, asked: &str) -> Result<(Backend, BackendReport), Refusal> {
        let (ring, report) = uring::Uring::new(config, asked)?;
        Ok((Backend::Uring(Box::new(ring)), report))
    }

    #[cfg(not(target_os = "linux"))]
    fn uring(_: &Config, _: &str) -> Result<(Backend, BackendReport), Refusal> {
        let error = io::Error::new(io::ErrorKind::Unsupported, "this system has no io_uring");
        Err(Refusal { error, ladder: Vec::new() })
    }

    /// The buffers that its pool of streams shall have: how many, and bytes of each.
    pub(crate) fn stream_buffers(&self, limits: &Limits) -> (usize, usize) {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.stream_buffers(limits),
            _ => (limits.buffers, limits.buffer_bytes),
        }
    }

    /// Whether standing receives of streams may fill so many buffers that lie apart.
    pub(crate) fn serves_apart(&mut self, count: usize) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.serves_apart(count),
            _ => {
                let _ = count;
                true
            }
        }
    }

    /// Receives of datagrams shall fill this pool from now on; says what the system lacks for it.
    pub(crate) fn serve_datagrams(&mut self, pool: &Pool) -> Option<(Capability, String)> {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.serve_datagrams(pool),
            _ => {
                let _ = pool;
                None
            }
        }
    }

    /// Whether descriptors must not block for this backend.
    pub(crate) fn wants_nonblocking(&self) -> bool {
        match self {
            #[cfg(unix)]
            Backend::Readiness(_) => true,
            #[cfg(windows)]
            Backend::Iocp(_) => true,
            Backend::Script(_) => true,
            _ => false,
        }
    }

    /// Whether a submission shall be refused as if the table were full; only a script does that.
    pub(crate) fn refuses(&mut self) -> bool {
        match self {
            Backend::Script(script) => script.refuses(),
            #[cfg(feature = "sim")]
            Backend::Sim(sim) => sim.refuses(),
            _ => false,
        }
    }

    pub(crate) fn wake(&self) -> Wake {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.wake(),
            #[cfg(unix)]
            Backend::Readiness(readiness) => readiness.wake(),
            #[cfg(windows)]
            Backend::Iocp(iocp) => iocp.wake(),
            Backend::Script(script) => script.wake(),
            #[cfg(feature = "sim")]
            Backend::Sim(sim) => sim.wake(),
            Backend::Gone => Wake::flag(Default::default()),
        }
    }

    pub(crate) fn submit(&mut self, token: Token, slots: &mut Slots) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.submit(token, slots),
            #[cfg(unix)]
            Backend::Readiness(readiness) => return readiness.submit(token, slots),
            #[cfg(windows)]
            Backend::Iocp(iocp) => iocp.submit(token, slots),
            Backend::Script(script) => script.submit(token),
            #[cfg(feature = "sim")]
            Backend::Sim(sim) => sim.submit(token),
            Backend::Gone => {}
        }
        Ok(())
    }

    pub(crate) fn cancel(&mut self, token: Token, slots: &mut Slots) {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.cancel(token, slots),
            #[cfg(unix)]
            Backend::Readiness(readiness) => readiness.cancel(token, slots),
            #[cfg(windows)]
            Backend::Iocp(iocp) => iocp.cancel(token, slots),
            Backend::Script(script) => script.cancel(token),
            #[cfg(feature = "sim")]
            Backend::Sim(sim) => sim.cancel(token),
            Backend::Gone => {}
        }
    }

    /// The descriptor is about to be closed or given away; no operation uses it.
    pub(crate) fn forget(&mut self, fd: &FdRef) {
        #[cfg(unix)]
        if let Backend::Readiness(readiness) = self {
            readiness.forget(fd);
        }
        // A port forgets what is closed by itself.
        let _ = fd;
    }

    /// The descriptor is about to be used elsewhere; no operation uses it.
    pub(crate) fn give_away(&mut self, fd: &FdRef) {
        #[cfg(windows)]
        if let Backend::Iocp(iocp) = self {
            iocp.give_away(fd);
        }
        let _ = fd;
    }

    /// A descriptor was closed by dropping its last reference; this was its registration.
    pub(crate) fn forget_closed(&mut self, registration: u32) {
        #[cfg(unix)]
        if let Backend::Readiness(readiness) = self {
            readiness.forget_closed(registration);
        }
        let _ = registration;
    }

    pub(crate) fn wait(&mut self, bench: &mut Workbench<'_>, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.wait(bench, timeout),
            #[cfg(unix)]
            Backend::Readiness(readiness) => readiness.wait(bench, timeout),
            #[cfg(windows)]
            Backend::Iocp(iocp) => iocp.wait(bench, timeout),
            Backend::Script(script) => script.wait(bench, timeout),
            #[cfg(feature = "sim")]
            Backend::Sim(sim) => {
                sim.wait(bench, timeout);
                Ok(())
            }
            Backend::Gone => Ok(()),
        }
    }

    /// Whether [`has_news`](Self::has_news) is cheap and true, so that a shard may spin on it. A script and a
    /// simulation have their own ideas of time.
    pub(crate) fn can_look(&self) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(_) => true,
            #[cfg(unix)]
            Backend::Readiness(_) => true,
            _ => false,
        }
    }

    /// See `Driver::sends_by_calls`.
    #[inline]
    pub(crate) fn sends_by_calls(&self) -> bool {
        match self {
            #[cfg(unix)]
            Backend::Readiness(_) => true,
            _ => false,
        }
    }

    /// See `Driver::hand_over`.
    pub(crate) fn hand_over(&mut self, slots: &mut Slots, pools: &Pools) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.hand_over(slots, pools),
            // What was submitted counts as news: it is attempted in the next wait.
            _ => {
                let _ = (slots, pools);
                Ok(())
            }
        }
    }

    /// See `Driver::has_news`.
    pub(crate) fn has_news(&mut self) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.has_news(),
            #[cfg(unix)]
            Backend::Readiness(readiness) => readiness.has_news(),
            _ => false,
        }
    }

    /// The node of a simulated driver.
    #[cfg(feature = "sim")]
    pub(crate) fn node(&self) -> Option<sim::NodeId> {
        match self {
            Backend::Sim(sim) => Some(sim.node()),
            _ => None,
        }
    }

    /// See `Driver::insist`. The other backends ask for everything at every wait.
    pub(crate) fn insist(&mut self) {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.insist(),
            #[cfg(unix)]
            Backend::Readiness(readiness) => readiness.insist(),
            #[cfg(windows)]
            Backend::Iocp(iocp) => iocp.insist(),
            _ => {}
        }
    }

    /// Ends what the backend itself has in flight; true when nothing is left.
    pub(crate) fn settle_down(&mut self) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Backend::Uring(ring) => ring.settle_down(),
            _ => true,
        }
    }

    /// Takes the pool's buffers back from the kernel; nothing may be in flight.
    pub(crate) fn release(&mut self) {
        #[cfg(target_os = "linux")]
        if let Backend::Uring(ring) = self {
            ring.release();
        }
    }
}

/// Why a backend could not be set up, and what had been tried.
pub(crate) struct Refusal {
    pub(crate) error: io::Error,
    pub(crate) ladder: Vec<String>,
}

impl Refusal {
    /// Without buffers that the kernel picks, a receive is a poll by the ring and a call, so as much work as on
    /// readiness and more; and rings of that age have bugs that later ones have not.
    fn without_buffers(report: BackendReport) -> Refusal {
        let lacks = report.lowered.iter().find(|(what, _)| *what == Capability::BufferRing);
        let why = lacks.map_or("not allowed", |(_, why)| why);
        let text = format!(
            "no receive buffers can be shared with the ring ({why}), which takes Linux 5.19, and it is not worth having \
             without; Backend::Uring takes it all the same"
        );
        Refusal { error: io::Error::new(io::ErrorKind::Unsupported, text), ladder: report.ladder }
    }
}

/// What the environment or else the configuration asks for, before any io_uring call is made.
fn asked_for(config: &Config) -> io::Result<(Choice, String)> {
    const VARIABLE: &str = "ANABRANCH_BACKEND";
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => {
            let choice = text.parse().map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE}: {error}"))
            })?;
            Ok((choice, format!("asked for {choice} by {VARIABLE}")))
        }
        _ => Ok((config.backend, format!("asked for {}", config.backend))),
    }
}

/// The report of a backend that emulates: standing operations are its own, nothing comes from the kernel.
fn emulated(config: &Config, backend: BackendKind, reason: String) -> BackendReport {
    BackendReport {
        backend,
        reason,
        ladder: Vec::new(),
        capabilities: Capabilities::default(),
        lowered: Vec::new(),
        hardened: config.hardened.then(|| "there is no ring, and so nothing to restrict".into()),
    }
}
