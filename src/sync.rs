//! The primitives that cross threads, under one name each, so that models can put others in their place.
//!
//! `shard/parking.rs` and `shard/mailbox.rs` take every atomic, every fence and the queue from here and from
//! nowhere else. tests/loom.rs compiles the same two files beside a `sync` module of its own, whose atomics
//! are loom's, and lets loom try the interleavings. There must be no logic here: what this file does, the
//! models do not see.
#![forbid(unsafe_code)]

pub(crate) use crossbeam_queue::ArrayQueue;
pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
pub(crate) use std::thread::yield_now;

/// What the unit tests of those two files run on: threads here, modelled threads in tests/loom.rs.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use std::sync::{Arc, Condvar, Mutex};
    pub(crate) use std::thread;

    /// How often a test repeats a race: chance has to find here what loom enumerates.
    pub(crate) const ROUNDS: usize = 500;

    /// Runs a test body once; a model runs it once per interleaving.
    pub(crate) fn check(body: impl Fn() + Send + Sync + 'static) {
        body();
    }
}
