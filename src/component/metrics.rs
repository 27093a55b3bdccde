//! What components count: per shard, written by its thread alone, read by anybody at any time.
#![forbid(unsafe_code)]

use super::close::CloseReason;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer: raising it is a load and a store, not a locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn subtract(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Reasons there are.
const REASONS: usize = CloseReason::NAMES.len();

macro_rules! tally {
    ($($(#[$doc:meta])* $field:ident: $kind:ident $help:literal,)*) => {
        /// The counters of a component on one shard.
        #[derive(Debug, Default)]
        pub(crate) struct Tally {
            $(pub(crate) $field: Count,)*
            pub(crate) closed: [Count; REASONS],
        }

        /// What a component has counted: on one shard, or in all.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct Snapshot {
            $($(#[$doc])* pub $field: u64,)*
            /// Connections that ended, by reason, in the order of [`CloseReason::NAMES`].
            pub closed: Vec<u64>,
        }

        impl Tally {
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot {
                    $($field: self.$field.get(),)*
                    closed: self.closed.iter().map(Count::get).collect(),
                }
            }
        }

        impl Snapshot {
            /// Adds another one, of another shard.
            pub fn add(&mut self, other: &Snapshot) {
                $(self.$field += other.$field;)*
                self.closed.resize(REASONS, 0);
                self.closed.iter_mut().zip(&other.closed).for_each(|(sum, n)| *sum += n);
            }
        }

        /// Name, kind and help of each counter, and how to read it.
        const FIELDS: &[(&str, &str, &str, fn(&Snapshot) -> u64)] =
            &[$((stringify!($field), stringify!($kind), $help, |snapshot| snapshot.$field)),*];
    };
}

tally! {
    /// Connections that are there now.
    live: gauge "Connections that are there now.",
    /// Of these, in the handshake.
    handshaking: gauge "Connections in the handshake.",
    /// Bytes that the shard holds for connections, of this component or not: received and unread, or to be sent. Brought
    /// up to date every 50 ms.
    held_bytes: gauge "Bytes held for connections, received and unread or to be sent.",
    /// Connections accepted, or made from here.
    opened: counter "Connections accepted or made.",
    /// Newcomers that `on_accept` refused.
    refused: counter "Newcomers that the handler refused.",
    /// Newcomers that were refused because there were too many connections.
    over_limit: counter "Newcomers refused by a limit.",
    /// Attempts to connect that failed.
    connects_failed: counter "Attempts to connect that failed.",
    /// Messages received: of the codec, or pieces of the stream where there is none.
    messages_in: counter "Messages received.",
    /// Messages given to be sent.
    messages_out: counter "Messages given to be sent.",
    /// Bytes received, before TLS and codec.
    bytes_in: counter "Bytes received.",
    /// Bytes given to be sent, before TLS and codec.
    bytes_out: counter "Bytes given to be sent.",
    /// Messages that pushes and broadcasts lost because of slow readers.
    dropped: counter "Messages lost because of slow readers.",
    /// Messages that were sent by id to a connection that was not open.
    undelivered: counter "Messages sent by id to connections that were not open.",
    /// Errors that were told to `on_error`.
    errors: counter "Errors told to the handler.",
}

impl Snapshot {
    /// How many connections ended for this reason, by its [name](CloseReason::name).
    pub fn closed_for(&self, name: &str) -> u64 {
        let place = CloseReason::NAMES.iter().position(|known| *known == name);
        place.and_then(|place| self.closed.get(place)).copied().unwrap_or(0)
    }

    /// Connections that ended.
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }
}

/// Writes snapshots, one per shard, in the text format of Prometheus (version 0.0.4), each name with `prefix_` before it and the
/// label `shard`.
///
/// ```
/// let text = anabranch::component::prometheus("chat", &[Default::default()]);
/// assert!(text.contains("# TYPE chat_live gauge\nchat_live{shard=\"0\"} 0\n"));
/// ```
pub fn prometheus(prefix: &str, shards: &[Snapshot]) -> String {
    let mut text = String::new();
    write_all(&mut text, prefix, shards).expect("a string takes everything");
    text
}

fn write_all(out: &mut String, prefix: &str, shards: &[Snapshot]) -> fmt::Result {
    for (name, kind, help, read) in FIELDS {
        // Counters end in _total by convention, gauges do not.
        let suffix = if *kind == "counter" { "_total" } else { "" };
        writeln!(out, "# HELP {prefix}_{name}{suffix} {help}\n# TYPE {prefix}_{name}{suffix} {kind}")?;
        for (shard, snapshot) in shards.iter().enumerate() {
            writeln!(out, "{prefix}_{name}{suffix}{{shard=\"{shard}\"}} {}", read(snapshot))?;
        }
    }
    writeln!(out, "# HELP {prefix}_closed_total Connections that ended, by reason.")?;
    writeln!(out, "# TYPE {prefix}_closed_total counter")?;
    for (shard, snapshot) in shards.iter().enumerate() {
        for (reason, count) in CloseReason::NAMES.iter().zip(&snapshot.closed) {
            writeln!(out, "{prefix}_closed_total{{shard=\"{shard}\",reason=\"{reason}\"}} {count}")?;
        }
    }
    Ok(())
}
