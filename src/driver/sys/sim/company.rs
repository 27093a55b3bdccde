//! Threads that act in a world beside the one that drives it, as a peer of a test may.
//!
//! A companion acts only while the driving thread lets it: the world stands still then, and goes on when each
//! companion has ended or waits for something to happen. So a single one does not race with the shard under test, and
//! the seed still is the run; the order among several is the system's.
#![forbid(unsafe_code)]

use super::NodeId;
use super::machine::Simulation;
use std::cell::Cell;
use std::time::Duration;

/// How long a companion may compute before it counts as stuck, in real time.
const PATIENCE: Duration = Duration::from_secs(20);

/// The companions of a world.
#[derive(Debug, Default)]
pub(super) struct Company {
    /// Whether they may act now.
    open: bool,
    /// Counts the occasions; who waits does so for the next one.
    round: u64,
    running: usize,
    waiting: usize,
}

thread_local! {
    static IS_COMPANION: Cell<bool> = const { Cell::new(false) };
}

/// A companion from before its thread starts until it has ended.
pub(crate) struct Membership<'a>(&'a Simulation);

impl Simulation {
    /// The current thread is about to start a companion.
    pub(crate) fn admit(&self) {
        self.lock().company.running += 1;
    }

    /// Makes the current thread the companion that was admitted.
    pub(crate) fn join_company(&self) -> Membership<'_> {
        IS_COMPANION.set(true);
        Membership(self)
    }

    /// Whether the current thread is a companion.
    pub(crate) fn is_companion(&self) -> bool {
        IS_COMPANION.get()
    }

    /// Before a companion's call: waits until it may act.
    pub(crate) fn await_turn(&self) {
        if !self.lock().company.open {
            self.await_next_turn();
        }
    }

    /// A companion has nothing to do until something has happened.
    pub(crate) fn await_next_turn(&self) {
        let mut state = self.lock();
        let round = state.company.round;
        state.company.running -= 1;
        state.company.waiting += 1;
        self.notify();
        while state.company.round == round {
            state = self.wait_changed(state, PATIENCE).0;
        }
    }

    /// Lets the companions act until each waits or has ended, or the driver of `node` is woken.
    pub(crate) fn let_company_act(&self, node: Option<NodeId>) {
        let mut state = self.lock();
        let company = &mut state.company;
        if company.running + company.waiting == 0 {
            return;
        }
        company.open = true;
        company.round += 1;
        company.running += std::mem::take(&mut company.waiting);
        self.notify();
        while state.company.running > 0 && !node.is_some_and(|node| state.world.is_woken(node)) {
            let (held, timed_out) = self.wait_changed(state, PATIENCE);
            state = held;
            assert!(!timed_out, "a thread beside the simulation neither ends nor waits for anything in it");
        }
        state.company.open = false;
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.0.lock().company.running -= 1;
        self.0.notify();
    }
}
