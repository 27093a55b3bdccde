//! What may go wrong in a simulation, how often, and how often it did.
//!
//! A fault is rolled at each opportunity, or once per tick if it is one of the timed ones; the rate of a timed fault
//! is per simulated second.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::AddAssign;

macro_rules! faults {
    ($($(#[$doc:meta])* $kind:ident $name:literal $rough:literal,)*) => {
        /// A kind of thing that may go wrong in a simulation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Fault {
            $($(#[$doc])* $kind,)*
        }

        impl Fault {
            /// Every kind there is.
            pub const ALL: &[Fault] = &[$(Fault::$kind,)*];

            /// The name of this kind, in kebab case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Fault::$kind => $name,)*
                }
            }
        }

        /// The rates of [`Faults::rough`], in the order of [`Fault::ALL`].
        const ROUGH: [f64; KINDS] = [$($rough,)*];
    };
}

faults! {
    /// A receive on a stream gets only a few of the bytes that are there.
    ShortRead "short-read" 0.1,
    /// A send on a stream takes only a few of the bytes.
    ShortWrite "short-write" 0.1,
    /// A completion is reported late.
    LateCompletion "late-completion" 0.05,
    /// Completions are reported in another order than they came about.
    ReorderedCompletion "reordered-completion" 0.1,
    /// An operation succeeds although it was cancelled.
    LateSuccess "late-success" 0.05,
    /// A receive finds no buffer.
    NoBuffers "no-buffers" 0.01,
    /// A submission is refused as if the table were full.
    SubmissionRefused "submission-refused" 0.01,
    /// A whole turn is refused by the kernel.
    TurnRefused "turn-refused" 0.01,
    /// A wake-up arrives late.
    LateWake "late-wake" 0.05,
    /// A wake-up arrives twice.
    DoubleWake "double-wake" 0.05,
    /// A shard gets no processor for a while.
    StalledShard "stalled-shard" 0.002,
    /// A place in the code that asked for it behaves unusually.
    Buggify "buggify" 0.05,
    /// There is no descriptor left (EMFILE).
    OutOfDescriptors "out-of-descriptors" 0.01,
    /// There is no memory left (ENOMEM, or ENOBUFS for a datagram).
    OutOfMemory "out-of-memory" 0.005,
    /// A TCP segment is cut at any byte.
    Segmentation "segmentation" 0.2,
    /// A TCP segment is late by 200 ms to 3 s, and everything behind it waits.
    SlowSegment "slow-segment" 0.005,
    /// A window update of TCP is late.
    WindowStall "window-stall" 0.02,
    /// A datagram is lost.
    DatagramLoss "datagram-loss" 0.02,
    /// A datagram arrives twice.
    DatagramDuplicate "datagram-duplicate" 0.02,
    /// A datagram is overtaken by later ones.
    DatagramReorder "datagram-reorder" 0.05,
    /// A connection is reset at both ends.
    Reset "reset" 0.001,
    /// A SYN is lost and sent again after a second.
    SynLoss "syn-loss" 0.02,
    /// Timed: two hosts cannot exchange anything for 50 ms to 5 s.
    Partition "partition" 0.05,
    /// Timed: nothing gets from one host to another for 50 ms to 5 s.
    OneWayPartition "one-way-partition" 0.03,
    /// Timed: a host crashes.
    HostCrash "host-crash" 0.02,
    /// Timed: the wall clock of a host jumps by up to an hour.
    ClockStep "clock-step" 0.05,
    /// A file operation fails (EIO).
    FileError "file-error" 0.005,
    /// A file is read or written only in part.
    ShortFile "short-file" 0.05,
    /// A crash takes what was written but not synced.
    UnsyncedLoss "unsynced-loss" 0.5,
    /// A descriptor is announced as ready though it is not.
    SpuriousReady "spurious-ready" 0.05,
    /// The end of an operation is reported once more, after another one may have taken its place.
    StaleCompletion "stale-completion" 0.001,
}

const KINDS: usize = Fault::ALL.len();

impl Fault {
    /// Whether this kind is rolled by time and not by opportunity.
    pub fn is_timed(self) -> bool {
        matches!(self, Fault::Partition | Fault::OneWayPartition | Fault::HostCrash | Fault::ClockStep)
    }

    /// The place of this kind in [`Fault::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// How often each kind of fault comes, and to whom.
#[derive(Clone, Debug)]
pub struct Faults {
    rates: [f64; KINDS],
    only_on: Vec<(Fault, String)>,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Faults {
        Faults { rates: [0.0; KINDS], only_on: Vec::new() }
    }

    /// Everything goes wrong now and then; a protocol with retries still makes progress.
    pub fn rough() -> Faults {
        Faults { rates: ROUGH, only_on: Vec::new() }
    }

    /// Sets a rate: the chance per opportunity, or per simulated second for a timed fault.
    #[must_use]
    pub fn with(mut self, fault: Fault, rate: f64) -> Faults {
        assert!(rate >= 0.0, "a rate is not negative");
        self.rates[fault.index()] = rate;
        self
    }

    /// Restricts a fault to the named host; called again, to several.
    #[must_use]
    pub fn only_on(mut self, fault: Fault, host: impl Into<String>) -> Faults {
        self.only_on.push((fault, host.into()));
        self
    }

    /// The rate of a fault.
    pub fn rate(&self, fault: Fault) -> f64 {
        self.rates[fault.index()]
    }

    /// Whether a fault may come to this host.
    pub(crate) fn may_hit(&self, fault: Fault, host: &str) -> bool {
        let mut targets = self.only_on.iter().filter(|(kind, _)| *kind == fault).peekable();
        targets.peek().is_none() || targets.any(|(_, name)| name == host)
    }
}

impl Default for Faults {
    fn default() -> Faults {
        Faults::none()
    }
}

/// How often each kind of fault came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultCounts {
    counts: [u64; KINDS],
}

impl FaultCounts {
    /// How often this kind came.
    pub fn get(&self, fault: Fault) -> u64 {
        self.counts[fault.index()]
    }

    /// How often any came.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Every kind with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        Fault::ALL.iter().map(|fault| (*fault, self.get(*fault)))
    }

    pub(crate) fn count(&mut self, fault: Fault) {
        self.counts[fault.index()] += 1;
    }
}

impl Default for FaultCounts {
    fn default() -> FaultCounts {
        FaultCounts { counts: [0; KINDS] }
    }
}

impl AddAssign for FaultCounts {
    fn add_assign(&mut self, other: FaultCounts) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_name_and_place() {
        for (place, fault) in Fault::ALL.iter().enumerate() {
            assert_eq!(fault.index(), place);
            assert!(fault.name().chars().all(|letter| letter.is_ascii_lowercase() || letter == '-'));
            assert_eq!(Fault::ALL.iter().filter(|other| other.name() == fault.name()).count(), 1);
        }
        assert_eq!(format!("{:>12}", Fault::Reset), "       reset");
    }

    #[test]
    fn a_fault_without_a_target_may_hit_every_host() {
        let faults = Faults::none().only_on(Fault::Reset, "a").only_on(Fault::Reset, "b");
        assert!(faults.may_hit(Fault::Reset, "b"));
        assert!(!faults.may_hit(Fault::Reset, "c"));
        assert!(faults.may_hit(Fault::SynLoss, "c"));
    }

    #[test]
    fn counts_add_up() {
        let mut counts = FaultCounts::default();
        counts.count(Fault::Reset);
        let other = counts;
        counts += other;
        assert_eq!(counts.get(Fault::Reset), 2);
        assert_eq!(counts.total(), 2);
        assert_eq!(counts.iter().filter(|(_, count)| *count > 0).count(), 1);
    }
}
