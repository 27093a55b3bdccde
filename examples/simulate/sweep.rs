//! Runs the seeds on all processors, and adds up what came of them.

use crate::scenarios::{Level, Scenario};
use crate::table::grouped;
use anabranch::sim::{FaultCounts, Report};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What shall be run.
pub(crate) struct Sweep {
    pub(crate) scenarios: Vec<&'static Scenario>,
    pub(crate) seeds: Range<u64>,
    pub(crate) level: Level,
    pub(crate) threads: usize,
    pub(crate) until: Option<Instant>,
    pub(crate) stops_at_violation: bool,
    pub(crate) keeps_hashes: bool,
    pub(crate) keeps_log: bool,
    pub(crate) quiet: bool,
}

/// What came of it.
pub(crate) struct Outcome {
    /// One for each scenario, in their order.
    pub(crate) tallies: Vec<Tally>,
    pub(crate) faults: FaultCounts,
    pub(crate) violations: Vec<Violation>,
    /// Scenario, seed, hash of the log and its lines.
    pub(crate) hashes: Vec<(&'static str, u64, u64, u64)>,
    pub(crate) wall: Duration,
    /// The log of the last run, if it was asked for.
    pub(crate) log: String,
}

/// What came of one scenario.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    pub(crate) scenario: &'static str,
    pub(crate) runs: u64,
    pub(crate) violations: u64,
    pub(crate) simulated: Duration,
    pub(crate) connections: u64,
    pub(crate) steps: u64,
    pub(crate) log_lines: u64,
    /// How long threads were busy with it.
    pub(crate) busy: Duration,
}

/// Something that must not happen.
pub(crate) struct Violation {
    pub(crate) scenario: &'static str,
    pub(crate) seed: u64,
    pub(crate) level: Level,
    pub(crate) what: String,
    pub(crate) full: String,
}

impl Sweep {
    /// Runs everything, or what there is time for.
    pub(crate) fn run(&self) -> io::Result<Outcome> {
        keep_panics();
        let total = (self.seeds.end - self.seeds.start) * self.scenarios.len() as u64;
        let shared = Shared {
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            total,
            bar: self.bar(total)?,
            outcome: Mutex::new(self.nothing_yet()),
        };
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| self.work(&shared, start));
            }
        });
        shared.bar.finish_and_clear();
        let mut outcome = shared.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome.wall = start.elapsed();
        outcome.violations.sort_by_key(|violation| (violation.scenario, violation.seed));
        Ok(outcome)
    }

    fn bar(&self, total: u64) -> io::Result<ProgressBar> {
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let style = ProgressStyle::with_template("[{bar:30}] {percent:>3}% {elapsed} {msg}");
        bar.set_style(style.map_err(io::Error::other)?.progress_chars("=> "));
        Ok(bar)
    }

    fn nothing_yet(&self) -> Outcome {
        let tally = |scenario: &&'static Scenario| Tally { scenario: scenario.name, ..Tally::default() };
        Outcome {
            tallies: self.scenarios.iter().map(tally).collect(),
            faults: FaultCounts::default(),
            violations: Vec::new(),
            hashes: Vec::new(),
            wall: Duration::ZERO,
            log: String::new(),
        }
    }

    /// One thread's part: the next seed that nobody has taken, until there is none.
    fn work(&self, shared: &Shared, start: Instant) {
        loop {
            let over = self.until.is_some_and(|until| Instant::now() >= until);
            let number = shared.next.fetch_add(1, Ordering::Relaxed);
            if over || number >= shared.total || shared.stop.load(Ordering::Relaxed) {
                return;
            }
            // Each seed goes through all scenarios before the next one begins, so that an early end is fair.
            let count = self.scenarios.len() as u64;
            let (place, seed) = ((number % count) as usize, self.seeds.start + number / count);
            let began = Instant::now();
            PANICS.take();
            let builder = self.scenarios[place].builder(seed, self.level);
            let result = if self.keeps_log { builder.keep_log().run() } else { builder.run() };
            let busy = began.elapsed();
            let mut outcome = shared.outcome.lock().unwrap_or_else(PoisonError::into_inner);
            if self.keeps_log {
                outcome.log =
                    result.as_ref().map_or_else(|failure| failure.log(), |report| report.log()).to_owned();
            }
            match result {
                Ok(report) => outcome.add(place, &report, busy, self.keeps_hashes),
                Err(failure) => {
                    let mut what = failure.what().to_owned();
                    let panics = PANICS.take();
                    if what.contains("panicked") {
                        what = format!("{what}: {}", panics.join("; "));
                    }
                    let scenario = self.scenarios[place].name;
                    outcome.faults += *failure.faults();
                    outcome.tallies[place].violations += 1;
                    outcome.tallies[place].runs += 1;
                    let full = failure.to_string();
                    outcome.violations.push(Violation { scenario, seed, level: self.level, what, full });
                    if self.stops_at_violation {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                }
            }
            shared.show(&outcome, start);
        }
    }
}

impl Outcome {
    /// How many simulations were run.
    pub(crate) fn runs(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.runs).sum()
    }

    fn add(&mut self, place: usize, report: &Report, busy: Duration, keeps_hashes: bool) {
        self.faults += *report.faults();
        let tally = &mut self.tallies[place];
        tally.runs += 1;
        tally.simulated += report.elapsed();
        tally.connections += report.connections();
        tally.steps += report.steps();
        tally.log_lines += report.log_lines();
        tally.busy += busy;
        if keeps_hashes {
            self.hashes.push((tally.scenario, report.seed(), report.log_hash(), report.log_lines()));
        }
    }
}

/// What the threads share.
struct Shared {
    next: AtomicU64,
    stop: AtomicBool,
    total: u64,
    bar: ProgressBar,
    outcome: Mutex<Outcome>,
}

impl Shared {
    fn show(&self, outcome: &Outcome, start: Instant) {
        self.bar.inc(1);
        let (runs, seconds) = (outcome.runs(), start.elapsed().as_secs_f64());
        if runs % 64 != 0 || seconds == 0.0 {
            return;
        }
        let connections: u64 = outcome.tallies.iter().map(|tally| tally.connections).sum();
        self.bar.set_message(format!(
            "{} seeds/s, {} connections/s, {} faults, {} violations",
            grouped((runs as f64 / seconds) as u64),
            grouped((connections as f64 / seconds) as u64),
            grouped(outcome.faults.total()),
            outcome.violations.len()
        ));
    }
}

thread_local! {
    /// What panicked in the run of this thread.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Panics are kept and not printed: some are part of a scenario, the others are shown with their violation.
fn keep_panics() {
    panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        PANICS.with_borrow_mut(|panics| panics.push(text));
    }));
}
