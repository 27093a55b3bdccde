//! The tasks of a shard: a run queue, and a list of all tasks so that a shard that ends can drop them.
//!
//! A task is one heap cell of the `async-task` crate: its future, where it belongs ([`Home`]), and five words of
//! bookkeeping. A waker used on the shard's own thread puts the task on the run queue; on another thread it goes
//! through the shard's link and wakes it. A panic in a task is contained: it reaches whoever joins the task, and
//! is counted.
//!
//! A future is polled and dropped by [`Executor::run`] and [`Executor::clear`] only, on the shard's thread
//! (invariant 14). So they see when a task's future has ended, and no task has to know its executor.
#![forbid(unsafe_code)]

use super::Core;
use super::remote::Link;
use async_task::{Builder, Runnable, Task};
use pin_project_lite::pin_project;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Where a task belongs. It lies in the task's cell, so that scheduling needs no state of its own: then waking
/// costs one exchange of the task's state and no counting of references.
#[derive(Debug)]
pub(crate) struct Home {
    link: Arc<Link>,
    /// The task's place in the list of all tasks.
    key: u32,
}

/// A task that is to be polled, or dropped.
pub(crate) type Ready = Runnable<Home>;

/// What came of a task's turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    /// Its future waits for something.
    Waits,
    /// It has no future any more.
    Ended,
    /// It has no future any more, because that panicked.
    Panicked,
}

thread_local! {
    /// What came, so far, of the turn that runs on this thread.
    static CAME: Cell<Came> = const { Cell::new(Came::Waits) };
}

/// The run queue and the list of tasks.
pub(crate) struct Executor {
    ready: RefCell<VecDeque<Ready>>,
    all: RefCell<Slab<Waker>>,
    panics: Cell<u64>,
}

impl Executor {
    /// An executor whose list of tasks begins with so many places. Their memory is taken from the system as they are
    /// first used, whereas a list that grows leaves memory behind.
    pub(crate) fn new(places: usize) -> Executor {
        let all = RefCell::new(Slab::with_capacity(places));
        Executor { ready: RefCell::default(), all, panics: Cell::default() }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// Whether no task has a future any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.borrow().is_empty()
    }

    pub(crate) fn push(&self, task: Ready) {
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
            self.take_turn(task, |task| {
                task.run();
            });
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
                self.take_turn(task, drop);
            }
            if self.all.borrow().is_empty() && !self.has_ready() {
                return;
            }
        }
    }

    /// Does the task's `turn`, and takes it off the list if its future ended in it.
    fn take_turn(&self, task: Ready, turn: impl FnOnce(Ready)) {
        let key = task.metadata().key;
        // A task may run a shard of its own, with turns of its own.
        let around = CAME.replace(Came::Waits);
        // The panic itself travels to whoever joins the task.
        let _ = catch_unwind(AssertUnwindSafe(|| turn(task)));
        let came = CAME.replace(around);
        if came == Came::Waits {
            return;
        }
        if came == Came::Panicked {
            self.count_panic();
        }
        // The waker is dropped after the borrow: it may be the task's last.
        let waker = self.all.borrow_mut().try_remove(key as usize);
        drop(waker);
    }
}

pin_project! {
    /// The future of a task, which tells how it ends.
    struct Tracked<F> {
        // Gone once it is ready, so that its destructor runs inside of a poll, where a panic is contained.
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Tracked<F> {
        fn drop(_this: Pin<&mut Self>) {
            if CAME.get() == Came::Waits {
                CAME.set(Came::Ended);
            }
        }
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let mut future = self.project().future;
        let alarm = Alarm;
        let polled = match future.as_mut().as_pin_mut() {
            Some(running) => running.poll(context),
            None => Poll::Pending,
        };
        if polled.is_ready() {
            future.set(None);
        }
        std::mem::forget(alarm);
        polled
    }
}

/// Dropped by a panic only.
struct Alarm;

impl Drop for Alarm {
    fn drop(&mut self) {
        CAME.set(Came::Panicked);
    }
}

/// Starts a task on the shard of `core`.
pub(crate) fn spawn<F>(core: &Rc<Core>, future: F) -> Task<F::Output, Home>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let all = &core.executor.all;
    let key = all.borrow_mut().insert(Waker::noop().clone());
    let home = Home { link: Arc::clone(&core.link), key: u32::try_from(key).expect("fewer than 2^32 tasks") };
    let tracked = Tracked { future: Some(future) };
    let builder = Builder::new().propagate_panic(true).metadata(home);
    let (ready, task) = builder.spawn_local(move |_| tracked, schedule);
    all.borrow_mut()[key] = ready.waker();
    ready.schedule();
    task
}

/// A task was woken: to the run queue at home, through the link elsewhere.
fn schedule(task: Ready) {
    let elsewhere = Core::with_current(|core| match core {
        Some(core) if Arc::ptr_eq(&core.link, &task.metadata().link) => {
            core.executor.push(task);
            None
        }
        _ => Some(task),
    });
    if let Some(task) = elsewhere {
        let link = Arc::clone(&task.metadata().link);
        link.push_task(task);
    }
}
