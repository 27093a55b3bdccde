//! Stress: the races, floods and shortages that a server meets, on each of the system's own backends.
//!
//! Every scenario ends with a settled ledger, no stale completion that it did not provoke, and as many open
//! descriptors as before. `ANABRANCH_STRESS=small` (the default) takes seconds and asserts loose bounds where
//! time is measured, because other tests may run on the machine; `full` takes minutes and asserts the bounds of
//! the scenario. `ANABRANCH_STRESS_SEED` repeats a run's choices; the seed is always printed.
//! `scripts/stress.sh` runs all of it in release.
//!
//! The one unsafe part is the allocator of `quarantine`, which finds writes to memory that was given back.
#![allow(unsafe_code)]

mod common;

#[path = "stress/cancel.rs"]
mod cancel;
// Not on Windows: it sets limits and lists descriptors by calls of Unix.
#[cfg(unix)]
#[path = "stress/crashes.rs"]
mod crashes;
#[path = "stress/endings.rs"]
mod endings;
// Not on Windows: its table of handles has no limit that could be lowered.
#[cfg(unix)]
#[path = "stress/exhaustion.rs"]
mod exhaustion;
// Not on Windows: its clients are processes of their own, and it reads the memory of the process from /proc.
#[cfg(unix)]
#[path = "stress/hostile.rs"]
mod hostile;
// Not on Windows: what it reads is told by calls of Unix.
#[cfg(unix)]
#[path = "stress/quarantine.rs"]
mod quarantine;
#[path = "stress/resets.rs"]
mod resets;
#[path = "stress/reuse.rs"]
mod reuse;
// Not on Windows: it reads the memory of the process from /proc.
#[cfg(unix)]
#[path = "stress/slow_readers.rs"]
mod slow_readers;
// Not on Windows: processes cannot be stopped there.
#[cfg(unix)]
#[path = "stress/stalls.rs"]
mod stalls;
// Not on Windows: it reads the memory of the process from /proc.
#[cfg(unix)]
#[path = "stress/starvation.rs"]
mod starvation;
// Not on Windows: it measures processor time by calls of Unix.
#[cfg(unix)]
#[path = "stress/timeouts.rs"]
mod timeouts;
#[cfg_attr(windows, allow(dead_code, reason = "some scenarios are for Unix"))]
#[path = "stress/tools.rs"]
mod tools;

#[cfg(unix)]
#[global_allocator]
static ALLOCATOR: quarantine::Quarantine = quarantine::Quarantine;
