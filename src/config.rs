//! What a user may choose: the backend, the ring, the bounds.
//!
//! Every bound of the crate is a field of [`Limits`]; no other file holds a number that limits anything.
#![forbid(unsafe_code)]

use crate::buf::BUFFERS_MAX;
use crate::driver::Host;
use crate::driver::sys::cpus;
use crate::driver::sys::script::Script;
use crate::report::{Capabilities, Capability};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Which backend a shard shall use.
///
/// The environment variable `ANABRANCH_BACKEND` (`auto`, `uring`, `readiness` or `iocp`) overrides it. It is read
/// before any io_uring system call, because some container filters kill a process that makes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring where the kernel has it, with shared receive buffers (Linux 5.19), and allows it, else readiness; completion
    /// ports on Windows. The report says which and why.
    #[default]
    Auto,
    /// io_uring or an error that says what to do.
    Uring,
    /// Completions emulated over epoll, kqueue or poll. Makes no io_uring system call at all.
    Readiness,
    /// The I/O completion ports of Windows, or an error.
    Iocp,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Auto => "auto",
            Backend::Uring => "uring",
            Backend::Readiness => "readiness",
            Backend::Iocp => "iocp",
        })
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Backend, String> {
        match text {
            "auto" => Ok(Backend::Auto),
            "uring" => Ok(Backend::Uring),
            "readiness" => Ok(Backend::Readiness),
            "iocp" => Ok(Backend::Iocp),
            other => {
                Err(format!("no backend is called {other:?}; there are auto, uring, readiness and iocp"))
            }
        }
    }
}

/// Whether a shard watches for news before it sleeps; see [`Config::spin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Spin {
    /// Up to 50 us where the shard has a processor to itself as far as can be seen, else not at all. It is taken to
    /// share one if the machine has only one, if a cgroup quota grants the process less time than the machine has,
    /// if its [`Runtime`](crate::Runtime) has more shards than the process may use processors, or if its
    /// [`Pinning`](crate::Pinning) puts another shard on the same one. Other threads and processes are not looked
    /// at; what they take from a spin shows as a spin that found nothing. And it spins only while no more than about
    /// eight endpoints are active: with many, sleeping lets work gather, which costs less CPU and some latency;
    /// [`UpTo`](Self::UpTo) decides otherwise.
    #[default]
    Auto,
    /// Sleep at once.
    Off,
    /// Up to this long, at most 50 us, whoever else may want the processor.
    UpTo(Duration),
}

impl Spin {
    /// The longest spin there is.
    pub const MAX: Duration = Duration::from_micros(50);

    pub(crate) fn bound(self) -> Duration {
        match self {
            Spin::Auto if cpus::are_shared() => Duration::ZERO,
            Spin::Auto => Spin::MAX,
            Spin::Off => Duration::ZERO,
            Spin::UpTo(bound) => bound,
        }
    }

    /// Refuses what is no spin any more.
    pub(crate) fn check(self) -> Result<(), String> {
        match self {
            Spin::UpTo(bound) if bound > Spin::MAX => {
                Err(format!("Config::spin is {bound:?}, at most {:?} are possible", Spin::MAX))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes of a buffer that lies apart.
pub(crate) const APART_BYTES: usize = 17 * 1024;

/// Every bound of a shard. All are on by default; counts and bytes are per shard unless the name or the text
/// says otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Operations in flight at once.
    pub operations_max: usize,
    /// Sockets, files and other endpoints open at once.
    pub endpoints_max: usize,
    /// Buffers of the pool that streams receive into, at most 32 768. Their memory is taken from the system when it
    /// is first used.
    pub buffers: usize,
    /// Bytes of one of these buffers, 512 to 16 Mi. A receive takes as much of a buffer as it brings, and the next
    /// one goes on behind it; a buffer is used anew when all of its pieces have been dropped. Where io_uring cannot
    /// do that (before Linux 6.12) each buffer is cut into pieces of at most 16 KiB, of which a receive takes one.
    pub buffer_bytes: usize,
    /// Buffers of the pool for datagrams, at most 32 768. It is made when a shard opens its first datagram socket.
    pub datagram_buffers: usize,
    /// Bytes of one buffer for datagrams, 512 to 16 Mi; a longer datagram is cut. The default takes the longest there is, and a
    /// page more, so that buffers do not compete for the same lines of a cache.
    pub datagram_buffer_bytes: usize,
    /// Received bytes that wait for the program, per connection. Above, the receive is disarmed; below a
    /// quarter it is armed again. What the kernel had already delivered is kept, so the bound can be passed by
    /// what one turn brings.
    pub inbound_bytes_max: usize,
    /// Received bytes that wait for the program, over all connections. Above, a connection is disarmed as soon
    /// as anything waits on it.
    pub inbound_bytes_total_max: usize,
    /// Bytes that wait to be sent, per connection. Above, `send` waits and `submit_send` refuses. One payload
    /// is always accepted by a connection that has nothing queued, however large.
    pub outbound_bytes_max: usize,
    /// Bytes that wait to be sent, over all connections. Above, a connection that has something queued waits.
    pub outbound_bytes_total_max: usize,
    /// Datagrams that wait for the program, per socket; above, the receive is disarmed and the kernel drops.
    pub datagrams_inbound_max: usize,
    /// Datagrams that wait to be sent, per socket.
    pub datagrams_outbound_max: usize,
    /// Accepted connections that wait for the program, per listener; above, the accept is disarmed.
    pub accept_queue_max: usize,
    /// Messages from other threads that wait.
    pub mailbox_max: usize,
    /// Completions handled in one turn of the loop; the rest stays queued.
    pub completions_per_turn_max: usize,
    /// Task polls in one turn of the loop; the rest stays queued.
    pub polls_per_turn_max: usize,
    /// Attempts that the readiness backend makes for one event before it serves the next.
    pub attempts_per_event_max: usize,
    /// How long a shard that ends waits for its operations, in milliseconds; what is still in flight then is
    /// leaked, never freed.
    pub drain_ms: u64,
    /// How long a closing connection may take to send what is queued, in milliseconds; then it is aborted.
    pub close_flush_ms: u64,
    /// Longest pause of a listener after the process ran out of descriptors, in milliseconds.
    pub accept_pause_max_ms: u64,
    /// Pipes of relays that may hold bytes at once, two descriptors each; a relay that finds none goes on by receiving
    /// and sending.
    pub pipes_max: usize,
    /// Pipes that are kept for the next relay.
    pub pipes_idle_max: usize,
    /// Bytes that a pipe holds; the system rounds it up, and may give less.
    pub pipe_bytes: usize,
    /// Threads of the pool for work that blocks.
    pub blocking_threads_max: usize,
    /// Jobs that wait for such a thread.
    pub blocking_queue_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            operations_max: 65_536,
            endpoints_max: 65_536,
            buffers: 64,
            buffer_bytes: 256 * 1024,
            datagram_buffers: 256,
            datagram_buffer_bytes: 68 * 1024,
            inbound_bytes_max: 512 * 1024,
            inbound_bytes_total_max: 64 * 1024 * 1024,
            outbound_bytes_max: 512 * 1024,
            outbound_bytes_total_max: 64 * 1024 * 1024,
            datagrams_inbound_max: 1024,
            datagrams_outbound_max: 1024,
            accept_queue_max: 1024,
            mailbox_max: 4096,
            completions_per_turn_max: 4096,
            polls_per_turn_max: 4096,
            attempts_per_event_max: 16,
            drain_ms: 2_000,
            close_flush_ms: 10_000,
            accept_pause_max_ms: 500,
            pipes_max: 128,
            pipes_idle_max: 16,
            pipe_bytes: 256 * 1024,
            blocking_threads_max: 8,
            blocking_queue_max: 1024,
        }
    }
}

impl Limits {
    /// Refuses bounds with which nothing could work.
    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = [
            ("operations_max", self.operations_max),
            ("endpoints_max", self.endpoints_max),
            ("buffers", self.buffers),
            ("buffer_bytes", self.buffer_bytes),
            ("datagram_buffers", self.datagram_buffers),
            ("datagram_buffer_bytes", self.datagram_buffer_bytes),
            ("inbound_bytes_max", self.inbound_bytes_max),
            ("accept_queue_max", self.accept_queue_max),
            ("mailbox_max", self.mailbox_max),
            ("completions_per_turn_max", self.completions_per_turn_max),
            ("polls_per_turn_max", self.polls_per_turn_max),
            ("attempts_per_event_max", self.attempts_per_event_max),
            ("datagram_buffers", self.datagram_buffers),
            ("datagrams_inbound_max", self.datagrams_inbound_max),
            ("datagrams_outbound_max", self.datagrams_outbound_max),
            ("blocking_threads_max", self.blocking_threads_max),
            ("blocking_queue_max", self.blocking_queue_max),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("Limits::{name} must be at least 1"));
        }
        for (name, count) in [("buffers", self.buffers), ("datagram_buffers", self.datagram_buffers)] {
            if count > BUFFERS_MAX {
                return Err(format!("Limits::{name} is {count}, at most {BUFFERS_MAX} are possible"));
            }
        }
        if self.operations_max > crate::driver::OPERATIONS_MAX {
            return Err(format!("Limits::operations_max is above {}", crate::driver::OPERATIONS_MAX));
        }
        let sizes =
            [("buffer_bytes", self.buffer_bytes), ("datagram_buffer_bytes", self.datagram_buffer_bytes)];
        for (name, bytes) in sizes {
            if !(512..=1 << 24).contains(&bytes) {
                return Err(format!("Limits::{name} must lie between 512 bytes and 16 MiB"));
            }
        }
        Ok(())
    }

    /// How many buffers that lie apart there may be, and bytes of each: as many bytes in all as the others have. With
    /// 16 KiB there is room for a little more, so that a receive sees that it got everything.
    pub(crate) fn apart_buffers(&self) -> (usize, usize) {
        let count = self.buffers.saturating_mul(self.buffer_bytes) / APART_BYTES;
        (count.clamp(1, BUFFERS_MAX), APART_BYTES)
    }

    /// How many buffers of how many bytes streams have where a receive takes a whole one.
    pub(crate) fn cut_buffers(&self) -> (usize, usize) {
        const BYTES_MAX: usize = 16 * 1024;
        let each = self.buffer_bytes.div_ceil(BYTES_MAX).min(BUFFERS_MAX / self.buffers);
        (self.buffers * each, self.buffer_bytes / each)
    }
}

/// Something the program should know though no operation failed. See [`Config::on_warning`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// The process or the system is out of descriptors (or memory for them), so a listener pauses. Sent once
    /// per episode; accepting goes on by itself.
    AcceptPaused {
        /// Which listener: its [`EndpointId::as_u64`](crate::EndpointId::as_u64).
        listener: u64,
        /// What the accept was refused with.
        error: std::io::Error,
    },
    /// The kernel refused something that it was believed to have; it is emulated from now on.
    CapabilityLowered {
        /// What is emulated.
        capability: Capability,
        /// How it was refused.
        reason: String,
    },
    /// A shard ended with operations that the kernel did not give back within
    /// [`Limits::drain_ms`]; their memory is leaked so that it cannot be written after it was freed.
    DrainTimedOut {
        /// Operations that never ended.
        operations: usize,
    },
}

type WarningHook = Arc<dyn Fn(&Warning) + Send + Sync>;

/// How a shard is set up. The default is right for most servers.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Config {
    /// Which backend to use.
    pub backend: Backend,
    /// Entries of the submission ring, rounded up to a power of two; 0 means the default of 1024. Where locked
    /// memory is short the ring is halved until it fits, and the report tells.
    pub ring_entries: u32,
    /// A kernel thread polls the submission ring and sleeps after this long without work. Off unless asked for:
    /// it takes a core.
    pub submission_polling: Option<Duration>,
    /// Sends of at least this many bytes leave without a copy, on connections where it can save one: not to a peer on
    /// this machine (a loopback address, the own one, a Unix socket), and no more on one of which the kernel has said
    /// that it copied all the same (see [`Counters::zero_copy_copied`](crate::Counters::zero_copy_copied)).
    ///
    /// Off unless asked for: whether it saves anything depends on the network device, and where it does not, a send costs
    /// more by pinning pages and by a second completion. Where it does, 32 KiB is a good value to begin with: below
    /// about 10 KiB the copy is cheaper than that on every device.
    pub zero_copy_bytes_min: Option<usize>,
    /// Whether the shard watches for completions, messages and wakes for some microseconds before it sleeps, because
    /// sleeping and being woken costs more than that: one client that asks and waits is answered several times as
    /// fast, and whoever sends to the shard meanwhile makes no system call. It costs processor time that others could
    /// have: at most the bound per sleep, and only while it finds something in two spins of three; after that one
    /// sleep in 64 tries again, so an idle shard practically sleeps. A shard with much to do never spins. Turn it off
    /// where the processor is shared or time is billed; ask for it with [`Spin::UpTo`] where a quota turned it off
    /// though there is time to spare. No spin passes a deadline, and simulations have none.
    /// `Counters::spins` and `Counters::spins_won` tell what it brought.
    pub spin: Spin,
    /// Overwrite each receive buffer with zeros when it comes home.
    pub zero_on_return: bool,
    /// A ring takes only the operations that this crate asks of it; whatever else is put into it, say by a program that
    /// was taken over and writes to its memory, ends with `EACCES`. There is never a ring that is not restricted then:
    /// where the kernel refuses that, [`Backend::Uring`] is an error of the kind `Unsupported`, and [`Backend::Auto`]
    /// takes readiness. Readiness has no ring and needs no restriction.
    /// [`BackendReport::hardened`](crate::BackendReport::hardened) says what came of it.
    pub hardened: bool,
    /// The bounds.
    pub limits: Limits,
    /// Streams that bring much at once receive into buffers that lie apart, of 17 KiB each, so that what was received can
    /// be given to the program for good.
    pub(crate) gives_buffers: bool,
    pub(crate) without: Capabilities,
    pub(crate) script: Option<Script>,
    /// The machine that the shard lives on.
    pub(crate) host: Host,
    pub(crate) on_warning: Option<WarningHook>,
}

impl Config {
    /// The default configuration.
    pub fn new() -> Config {
        Config::default()
    }

    /// Chooses the backend.
    pub fn backend(mut self, backend: Backend) -> Config {
        self.backend = backend;
        self
    }

    /// Sets the bounds.
    pub fn limits(mut self, limits: Limits) -> Config {
        self.limits = limits;
        self
    }

    /// Changes some bounds: `Config::new().with_limits(|limits| limits.buffers = 64)`.
    pub fn with_limits(mut self, change: impl FnOnce(&mut Limits)) -> Config {
        change(&mut self.limits);
        self
    }

    /// Sets [`ring_entries`](Self::ring_entries).
    pub fn ring_entries(mut self, entries: u32) -> Config {
        self.ring_entries = entries;
        self
    }

    /// Sets [`submission_polling`](Self::submission_polling).
    pub fn submission_polling(mut self, idle: Duration) -> Config {
        self.submission_polling = Some(idle);
        self
    }

    /// Sets [`zero_copy_bytes_min`](Self::zero_copy_bytes_min).
    pub fn zero_copy_bytes_min(mut self, bytes: usize) -> Config {
        self.zero_copy_bytes_min = Some(bytes);
        self
    }

    /// Sets [`spin`](Self::spin).
    pub fn spin(mut self, spin: Spin) -> Config {
        self.spin = spin;
        self
    }

    /// Sets [`hardened`](Self::hardened).
    pub fn hardened(mut self, hardened: bool) -> Config {
        self.hardened = hardened;
        self
    }

    /// Sets that large receive buffers can be given away.
    #[cfg(feature = "capi")]
    pub(crate) fn gives_buffers(mut self) -> Config {
        self.gives_buffers = true;
        self
    }

    /// Acts as if the kernel lacked `capability`, so that its emulation is used. For tests, and for kernels on
    /// which a feature is known to be broken. May be called for several.
    pub fn without(mut self, capability: Capability) -> Config {
        self.without.insert(capability);
        self
    }

    /// Calls `hook` on the shard's thread for each [`Warning`]. The library itself never prints. A hook that
    /// panics is counted like a task.
    pub fn on_warning(mut self, hook: impl Fn(&Warning) + Send + Sync + 'static) -> Config {
        self.on_warning = Some(Arc::new(hook));
        self
    }

    /// Runs on the scripted backend: operations are really carried out, but late, in parts, out of order,
    /// refused and cancelled as the script's seed has it. For tests.
    pub fn script(mut self, script: Script) -> Config {
        self.script = Some(script);
        self
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("backend", &self.backend)
            .field("ring_entries", &self.ring_entries)
            .field("spin", &self.spin)
            .field("hardened", &self.hardened)
            .field("without", &self.without)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_read_as_they_are_written() {
        for backend in [Backend::Auto, Backend::Uring, Backend::Readiness, Backend::Iocp] {
            assert_eq!(backend.to_string().parse(), Ok(backend));
        }
        assert!("epol".parse::<Backend>().unwrap_err().contains("auto, uring, readiness and iocp"));
    }

    #[test]
    fn impossible_limits_are_named() {
        let limits = Limits { buffers: 0, ..Limits::default() };
        assert!(limits.check().unwrap_err().contains("buffers"));
        let limits = Limits { buffers: 40_000, ..Limits::default() };
        assert!(limits.check().unwrap_err().contains("32768"));
    }

    #[test]
    fn buffers_are_cut_into_at_most_as_many_pieces_as_can_be_named() {
        let cut = |buffers, buffer_bytes| Limits { buffers, buffer_bytes, ..Limits::default() }.cut_buffers();
        assert_eq!(cut(64, 256 * 1024), (1024, 16 * 1024));
        assert_eq!(cut(64, 16 * 1024 + 1), (128, 8 * 1024));
        assert_eq!(cut(3, 512), (3, 512));
        assert_eq!(cut(10_000, 1 << 20), (30_000, (1 << 20) / 3));
        assert_eq!(cut(32_768, 1 << 24), (32_768, 1 << 24));
    }
}
