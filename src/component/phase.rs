//! Where a component stands: running, draining, ended; and how others wait for its end.
#![forbid(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Where a component stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// It accepts and serves.
    Running,
    /// It accepts no more; its connections may finish until the deadline.
    Draining,
    /// Its last connection has ended.
    Ended,
}

/// The phase of a component, over all shards.
pub(super) struct Phases {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    phase: Phase,
    /// Shards on which it has not ended.
    left: usize,
    waiting: Vec<Waker>,
}

impl Phases {
    pub(super) fn new(shards: usize) -> Phases {
        let state = State { phase: Phase::Running, left: shards, waiting: Vec::new() };
        Phases { state: Mutex::new(state), ended: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Phase {
        self.lock().phase
    }

    pub(super) fn drain(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Draining;
        }
    }

    /// It has ended on one shard; `last` is called before anybody is told, if that was the last one.
    fn end_one(&self, last: impl FnOnce()) {
        {
            let mut state = self.lock();
            state.left -= 1;
            if state.left > 0 {
                return;
            }
        }
        last();
        let waiting = {
            let mut state = self.lock();
            state.phase = Phase::Ended;
            std::mem::take(&mut state.waiting)
        };
        self.ended.notify_all();
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(super) fn wait(&self) {
        let mut state = self.lock();
        while state.phase != Phase::Ended {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn poll_ended(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.phase == Phase::Ended {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|known| known.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// The place of one shard among those on which a component has to end; giving it up is its end there.
pub(super) struct Place {
    phases: Arc<Phases>,
    ended: bool,
}

impl Place {
    pub(super) fn new(phases: &Arc<Phases>) -> Place {
        Place { phases: Arc::clone(phases), ended: false }
    }

    /// It has ended there; `last` is called if it was the last one.
    pub(super) fn end(&mut self, last: impl FnOnce()) {
        if !std::mem::replace(&mut self.ended, true) {
            self.phases.end_one(last);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end(|| {});
    }
}
