//! What came of a simulation.
#![forbid(unsafe_code)]

use super::builder::SEED_VARIABLE;
use super::{Fault, FaultCounts};
use crate::counters::Counters;
use std::fmt;
use std::time::Duration;

/// What came of a run that held.
#[derive(Clone, Debug)]
pub struct Report {
    pub(super) seed: u64,
    pub(super) elapsed: Duration,
    pub(super) steps: u64,
    pub(super) connections: u64,
    pub(super) faults: FaultCounts,
    pub(super) counters: Counters,
    pub(super) log_hash: u64,
    pub(super) log_lines: u64,
    pub(super) log: String,
}

impl Report {
    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How much simulated time passed.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// How often a shard ran.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// How many TCP connections were established.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// The faults that were injected, by kind.
    pub fn faults(&self) -> &FaultCounts {
        &self.faults
    }

    /// How often a fault was injected.
    pub fn count(&self, fault: Fault) -> u64 {
        self.faults.get(fault)
    }

    /// The counters of all shards together.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A hash over the log; runs with equal logs have equal hashes.
    pub fn log_hash(&self) -> u64 {
        self.log_hash
    }

    /// Lines of the log.
    pub fn log_lines(&self) -> u64 {
        self.log_lines
    }

    /// The log, if [`Builder::keep_log`](super::Builder::keep_log) asked for it; else nothing.
    pub fn log(&self) -> &str {
        &self.log
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {:?} simulated, {} steps, {} connections, {} faults, {} log lines with hash {:016x}",
            self.seed,
            self.elapsed,
            self.steps,
            self.connections,
            self.faults.total(),
            self.log_lines,
            self.log_hash
        )
    }
}

/// Why a run failed. Its text, which `unwrap` shows too, names the seed and the last events.
#[derive(Clone)]
pub struct Failure {
    pub(super) seed: u64,
    pub(super) elapsed: Duration,
    pub(super) what: String,
    pub(super) story: Box<str>,
    pub(super) tail: Box<str>,
    pub(super) faults: Box<FaultCounts>,
    pub(super) log_hash: u64,
    pub(super) log_lines: u64,
    pub(super) log: Box<str>,
}

impl Failure {
    /// The second run of a seed was another one than the first.
    pub(super) fn differs(first: &Result<Report, Failure>, what: String) -> Failure {
        let (seed, elapsed, faults, log_hash, log_lines) = match first {
            Ok(run) => (run.seed, run.elapsed, run.faults, run.log_hash, run.log_lines),
            Err(run) => (run.seed, run.elapsed, *run.faults, run.log_hash, run.log_lines),
        };
        let what =
            format!("the same seed made another run, so something does not come from the seed: {what}");
        let (story, tail, log) = Default::default();
        Failure { seed, elapsed, what, story, tail, faults: Box::new(faults), log_hash, log_lines, log }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The simulated time at which it failed.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// What went wrong.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What befell hosts before the last events: notes, crashes, partitions, steps of clocks; the last ones of them.
    pub fn earlier_events(&self) -> &str {
        &self.story
    }

    /// The last events before it.
    pub fn last_events(&self) -> &str {
        &self.tail
    }

    /// The faults that had been injected.
    pub fn faults(&self) -> &FaultCounts {
        &self.faults
    }

    /// A hash over the log up to the failure; a seed that is run again fails with the same one.
    pub fn log_hash(&self) -> u64 {
        self.log_hash
    }

    /// Lines of the log up to the failure.
    pub fn log_lines(&self) -> u64 {
        self.log_lines
    }

    /// The whole log, if [`Builder::keep_log`](super::Builder::keep_log) asked for it; else nothing.
    pub fn log(&self) -> &str {
        &self.log
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { seed, elapsed, what, story, tail, .. } = self;
        writeln!(f, "the simulation with seed {seed} failed at {elapsed:?}: {what}")?;
        if !story.is_empty() {
            write!(f, "before (notes, crashes, partitions, clock steps):\n{story}")?;
        }
        if !tail.is_empty() {
            write!(f, "the last events (~n is a TCP connection, #n another descriptor):\n{tail}")?;
        }
        write!(f, "run it again with {SEED_VARIABLE}={seed}")
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failure {}
