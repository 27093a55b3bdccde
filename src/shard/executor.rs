//! The tasks of a shard: a run queue, and a list of all tasks so that a shard that ends can drop them.
//!
//! Tasks are cells of the `async-task` crate. A waker used on the shard's own thread puts the task on the run
//! queue; on another thread it goes through the shard's link and wakes it. A panic in a task is contained: it
//! reaches whoever joins the task, and is counted.
#![forbid(unsafe_code)]

use super::Core;
use super::remote::Link;
use async_task::{Builder, Runnable, Task};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Waker;

/// The run queue and the list of tasks.
#[derive(Default)]
pub(crate) struct Executor {
    ready: RefCell<VecDeque<Runnable>>,
    all: RefCell<Slab<Waker>>,
    panics: Cell<u64>,
}

impl Executor {
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// Whether no task has a future any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.borrow().is_empty()
    }

    pub(crate) fn push(&self, task: Runnable) {
        self.ready.borrow_mut().push_back(task);
    }

    pub(crate) fn panics(&self) -> u64 {
        self.panics.get()
    }

    pub(crate) fn count_panic(&self) {
        self.panics.set(self.panics.get() + 1);
    }

    /// Hands each item to `work`, which is foreign code. One that panics is counted and does not keep the others
    /// from their turn.
    pub(crate) fn contain<T>(&self, mut items: impl Iterator<Item = T>, mut work: impl FnMut(T)) {
        while catch_unwind(AssertUnwindSafe(|| items.by_ref().for_each(&mut work))).is_err() {
            self.count_panic();
        }
    }

    /// Polls what is ready, at most `budget` times.
    pub(crate) fn run(&self, budget: usize) {
        for _ in 0..budget {
            let Some(task) = self.ready.borrow_mut().pop_front() else { return };
            // The panic itself travels to whoever joins the task.
            let _ = catch_unwind(AssertUnwindSafe(|| task.run()));
        }
    }

    /// Drops every task, and what they start while they are dropped.
    pub(crate) fn clear(&self) {
        const ROUNDS_MAX: usize = 10;
        for _ in 0..ROUNDS_MAX {
            let wakers: Vec<Waker> = self.all.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
            let ready = std::mem::take(&mut *self.ready.borrow_mut());
            for task in ready {
                let _ = catch_unwind(AssertUnwindSafe(|| drop(task)));
            }
            if self.all.borrow().is_empty() && !self.has_ready() {
                return;
            }
        }
    }
}

/// Takes a task off the list when its future ends, however it ends.
struct Listed {
    core: Weak<Core>,
    key: usize,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let Some(core) = self.core.upgrade() else { return };
        let executor = &core.executor;
        if std::thread::panicking() {
            executor.count_panic();
        }
        // The waker is dropped after the borrow: it may be the task's last.
        let waker = executor.all.borrow_mut().try_remove(self.key);
        drop(waker);
    }
}

/// Starts a task on the shard of `core`.
pub(crate) fn spawn<F>(core: &Rc<Core>, future: F) -> Task<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let key = core.executor.all.borrow_mut().insert(Waker::noop().clone());
    let listed = Listed { core: Rc::downgrade(core), key };
    let listed_future = async move {
        let _listed = listed;
        future.await
    };
    let link = Arc::clone(&core.link);
    let schedule = move |task: Runnable| schedule(&link, task);
    let (runnable, task) = Builder::new().propagate_panic(true).spawn_local(|()| listed_future, schedule);
    core.executor.all.borrow_mut()[key] = runnable.waker();
    runnable.schedule();
    task
}

/// A task was woken: to the run queue at home, through the link elsewhere.
fn schedule(link: &Link, task: Runnable) {
    if let Some(task) = Core::with_current(|core| match core {
        Some(core) if core.link.id == link.id => {
            core.executor.push(task);
            None
        }
        _ => Some(task),
    }) {
        link.push_task(task);
    }
}
