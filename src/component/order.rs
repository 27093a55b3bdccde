//! What a component is told to do on one shard, by whoever holds its handle.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// What a component on one shard is to do. Its tasks wait here for a change.
#[derive(Default)]
pub(super) struct Orders {
    paused: Cell<bool>,
    /// Until when connections may finish, once the component is being shut down.
    deadline: Cell<Option<Instant>>,
    /// Tasks that accept, or may still have connections to give.
    accepting: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

/// One task that accepts; dropped when it has given its last connection.
pub(super) struct Accepting<'a>(&'a Orders);

impl Drop for Accepting<'_> {
    fn drop(&mut self) {
        self.0.accepting.set(self.0.accepting.get() - 1);
        self.0.changed();
    }
}

impl Orders {
    pub(super) fn begin_accepting(&self) -> Accepting<'_> {
        self.accepting.set(self.accepting.get() + 1);
        Accepting(self)
    }

    pub(super) fn is_accepting(&self) -> bool {
        self.accepting.get() > 0
    }

    fn changed(&self) {
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(super) fn pause(&self, paused: bool) {
        self.paused.set(paused);
        self.changed();
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Shuts down by `deadline`, or by an earlier one that was given before.
    pub(super) fn drain(&self, deadline: Instant) {
        let deadline = self.deadline.get().map_or(deadline, |known| known.min(deadline));
        self.deadline.set(Some(deadline));
        self.changed();
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline.get()
    }

    /// Wakes at the next change.
    pub(super) fn watch(&self, context: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
    }

    /// Completes when the component is to shut down.
    pub(super) async fn draining(&self) {
        poll_fn(|context| match self.deadline() {
            Some(_) => Poll::Ready(()),
            None => {
                self.watch(context);
                Poll::Pending
            }
        })
        .await;
    }
}
