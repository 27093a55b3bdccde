//! [`Core`]: what the handles of a shard share, and the turn of its loop.
#![forbid(unsafe_code)]

use super::endpoint::Close;
use super::engine::Engine;
use super::executor::Executor;
use super::remote::{Link, Message};
use super::state::{Leftovers, State};
use crate::config::Config;
use crate::counters::Counters;
use crate::driver::sys::blocking::BlockingPool;
use crate::driver::{Driver, RawCompletion};
use crate::error::Error;
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

thread_local! {
    /// The shard that runs on this thread right now.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// What the handles of a shard share.
pub(crate) struct Core {
    /// Gone once the shard has ended.
    state: RefCell<Option<State>>,
    pub(crate) executor: Executor,
    pub(crate) link: Arc<Link>,
    pub(crate) config: Config,
    blocking: OnceCell<BlockingPool>,
    parks: Cell<u64>,
    turns: Cell<u64>,
    /// The raw completions of a turn; kept so that the list need not be allocated anew.
    raw: RefCell<Vec<RawCompletion>>,
    /// The counters at the end.
    last: Cell<Counters>,
}

/// Makes a shard the current one of this thread until it is dropped.
pub(crate) struct Entered(Option<Rc<Core>>);

impl Entered {
    pub(crate) fn enter(core: &Rc<Core>) -> Entered {
        Entered(CURRENT.replace(Some(Rc::clone(core))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Core {
    pub(crate) fn new(config: Config, blocking: Option<BlockingPool>) -> io::Result<Rc<Core>> {
        let driver = Driver::new(&config)?;
        let link = Link::new(config.limits.mailbox_max, driver.wake());
        let state = State::new(Engine::new(driver, config.limits.clone(), config.zero_copy_bytes_min));
        let cell = OnceCell::new();
        if let Some(blocking) = blocking {
            let _ = cell.set(blocking);
        }
        Ok(Rc::new(Core {
            state: RefCell::new(Some(state)),
            executor: Executor::default(),
            link,
            config,
            blocking: cell,
            parks: Cell::new(0),
            turns: Cell::new(0),
            raw: RefCell::default(),
            last: Cell::default(),
        }))
    }

    /// Looks at the current shard of this thread.
    pub(crate) fn with_current<R>(look: impl FnOnce(Option<&Rc<Core>>) -> R) -> R {
        CURRENT.with_borrow(|current| look(current.as_ref()))
    }

    /// The current shard of this thread.
    pub(crate) fn current() -> Option<Rc<Core>> {
        Core::with_current(|core| core.cloned())
    }

    /// The current shard, or an error that says what is missing.
    pub(crate) fn required() -> io::Result<Rc<Core>> {
        Core::current().ok_or_else(|| {
            io::Error::other(
                "no shard runs on this thread; call this from inside anabranch::block_on or a task",
            )
        })
    }

    /// Works on the state; an error if the shard has ended.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> Result<R, Error> {
        match self.state.borrow_mut().as_mut() {
            Some(state) => Ok(work(state)),
            None => Err(Error::ShardGone),
        }
    }

    /// The pool of blocking threads, made at its first use.
    pub(crate) fn blocking(&self) -> &BlockingPool {
        let limits = &self.config.limits;
        self.blocking.get_or_init(|| {
            BlockingPool::new(limits.blocking_threads_max, limits.blocking_queue_max, Duration::from_secs(5))
        })
    }

    /// Runs messages and ready tasks, each up to its bound.
    pub(crate) fn run_ready(&self) {
        while let Some(task) = self.link.tasks.pop() {
            self.executor.push(task);
        }
        self.run_messages();
        self.executor.run(self.config.limits.polls_per_turn_max);
    }

    fn run_messages(&self) {
        for _ in 0..self.config.limits.mailbox_max {
            match self.link.mailbox.pop() {
                None => return,
                Some(Message::Run(job)) => {
                    // A job that panics must not take the shard with it; it is counted like a task.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        self.executor.count_panic();
                    }
                }
                Some(Message::Connection { group, fd, seat }) => {
                    let _ = self.with(|state| state.receive_connection(group, fd, seat));
                }
            }
        }
    }

    /// One turn: submits, waits for at most `wait` (none waits for ever), routes completions, and wakes. It does
    /// not sleep if `woken` says that the main future is to be polled.
    ///
    /// # Errors
    ///
    /// If the system refuses to wait at all.
    pub(crate) fn turn(&self, wait: Option<Duration>, woken: Option<&AtomicBool>) -> io::Result<()> {
        self.turns.set(self.turns.get() + 1);
        let is_woken = woken.is_some_and(|woken| woken.load(Ordering::Acquire));
        let wait = if is_woken || self.executor.has_ready() { Some(Duration::ZERO) } else { wait };
        let mut raw = self.raw.take();
        let waited = self.with(|state| {
            let wait = state.prepare(wait);
            let waited = self.wait(state, wait, woken, &mut raw);
            raw.drain(..).for_each(|raw| state.route(raw));
            state.after_wait();
            (waited, state.take_leftovers())
        });
        self.raw.replace(raw);
        let (waited, leftovers) = waited?;
        self.run_leftovers(leftovers);
        waited
    }

    /// Waits; announces a sleep so that other threads know to wake it (invariant 13).
    fn wait(
        &self,
        state: &mut State,
        wait: Option<Duration>,
        woken: Option<&AtomicBool>,
        raw: &mut Vec<RawCompletion>,
    ) -> io::Result<()> {
        if wait == Some(Duration::ZERO) {
            return state.engine.driver.wait(wait, raw);
        }
        self.link.parking.prepare();
        // The second look is at everything that another thread can leave: whoever left it before the sleep was
        // announced makes no call.
        let is_woken = woken.is_some_and(|woken| woken.load(Ordering::Acquire));
        let wait = if is_woken || self.link.has_mail() {
            Some(Duration::ZERO)
        } else {
            self.parks.set(self.parks.get() + 1);
            wait
        };
        let waited = state.engine.driver.wait(wait, raw);
        self.link.parking.resume();
        waited
    }

    /// Runs foreign code: nothing is borrowed here.
    fn run_leftovers(&self, leftovers: Leftovers) {
        let Leftovers { mut wakers, warnings, mut remains, graves } = leftovers;
        wakers.drain(..).for_each(|waker| waker.wake());
        remains.clear();
        drop(graves);
        if let Some(hook) = &self.config.on_warning {
            warnings.iter().for_each(|warning| hook(warning));
        }
        let _ = self.with(|state| state.reuse(wakers, remains));
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = self.with(|state| state.count()).unwrap_or(self.last.get());
        counters.parks = self.parks.get();
        counters.turns = self.turns.get();
        counters.wakes = self.link.wakes();
        counters.panics = self.executor.panics();
        counters
    }

    /// Ends the shard (invariant 11): no more messages; tasks are dropped; connections may send what they have
    /// queued; then everything is cancelled, and the driver drains.
    pub(crate) fn end(self: &Rc<Self>) {
        let _entered = Entered::enter(self);
        self.link.end();
        drop(self.link.mailbox.drain_after_close());
        while let Some(task) = self.link.tasks.pop() {
            self.executor.push(task);
        }
        self.executor.clear();
        self.close_endpoints();
        // From here on whatever runs finds the shard ended, so nothing is borrowed while the rest is dropped.
        if let Some(mut state) = self.state.take() {
            state.finish();
            self.last.set(state.count());
        }
        self.executor.clear();
    }

    fn close_endpoints(&self) {
        let Ok(start) = self.with(|state| {
            state.close_all(Close::Flush);
            state.now()
        }) else {
            return;
        };
        let patience = Duration::from_millis(self.config.limits.drain_ms);
        let mut aborted = false;
        loop {
            let Ok((left, now)) = self.with(|state| (state.endpoints(), state.now())) else { return };
            let passed = now.saturating_duration_since(start);
            if left == 0 || passed > patience {
                return;
            }
            if !aborted && passed > patience / 2 {
                aborted = true;
                let _ = self.with(|state| state.close_all(Close::Abort));
            }
            if self.turn(Some(Duration::from_millis(10)), None).is_err() {
                return;
            }
        }
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({})", self.link.id)
    }
}
