//! [`Core`]: what the handles of a shard share, and the turn of its loop.
#![forbid(unsafe_code)]

use super::endpoint::{Close, PLACES_AT_START};
use super::engine::Engine;
use super::event::Completion;
use super::executor::Executor;
use super::remote::{Job, Link, Message};
use super::spin::Spins;
use super::state::{Leftovers, State};
use crate::config::{Config, Spin};
use crate::counters::Counters;
use crate::driver::sys::blocking::BlockingPool;
use crate::driver::{Driver, Rare, RawCompletion, interruption};
use crate::error::{Error, Full};
use crate::sync::yield_now;
use crate::trace::{event, warned};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

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
    spins: Spins,
    turns: Cell<u64>,
    /// The time, once somebody has asked for it in this turn.
    recent: Cell<Option<Instant>>,
    /// The raw completions of a turn; kept so that the list need not be allocated anew.
    raw: RefCell<Vec<RawCompletion>>,
    /// Completions on their way to the program, taken over a list at a time, so that the state is not borrowed for each.
    /// What a program that panicked has left comes first the next time.
    handing: RefCell<VecDeque<Completion>>,
    /// The counters at the end.
    last: Cell<Counters>,
}

/// Completions for which a list keeps its memory from turn to turn.
const KEPT_MAX: usize = 1024;

/// A shard that ends looks at its closing endpoints this often.
pub(crate) const END_LOOK: Duration = Duration::from_millis(10);

/// The end of a shard, while its endpoints close.
pub(crate) struct Ending {
    begun: Instant,
    aborted: bool,
}

/// A turn between its two halves.
pub(crate) struct Turn {
    /// How long it may wait.
    pub(crate) wait: Option<Duration>,
    /// Other threads know that it may sleep.
    announced: bool,
}

impl Turn {
    /// The same turn when its wait is over.
    #[cfg(feature = "sim")]
    pub(crate) fn over(self) -> Turn {
        Turn { wait: Some(Duration::ZERO), ..self }
    }
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
        event!(
            INFO,
            "anabranch::shard",
            shard = link.id,
            backend = %driver.report().backend,
            reason = driver.report().reason.as_str(),
            "shard started"
        );
        let spins = Spins::new(driver.spin_bound());
        let state = State::new(Engine::new(driver, config.limits.clone(), config.zero_copy_bytes_min));
        let cell = OnceCell::new();
        if let Some(blocking) = blocking {
            let _ = cell.set(blocking);
        }
        Ok(Rc::new(Core {
            state: RefCell::new(Some(state)),
            executor: Executor::new(config.limits.endpoints_max.min(PLACES_AT_START)),
            link,
            config,
            blocking: cell,
            parks: Cell::new(0),
            spins,
            turns: Cell::new(0),
            recent: Cell::new(None),
            raw: RefCell::default(),
            handing: RefCell::default(),
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
    #[inline]
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> Result<R, Error> {
        match self.state.borrow_mut().as_mut() {
            Some(state) => Ok(work(state)),
            None => Err(Error::ShardGone),
        }
    }

    /// The next completion to hand to the program.
    #[inline]
    pub(crate) fn next_completion(&self) -> Option<Completion> {
        let mut list = self.handing.borrow_mut();
        if list.is_empty() {
            // A burst does not keep its memory.
            if list.capacity() > KEPT_MAX {
                list.shrink_to(KEPT_MAX);
            }
            self.with(|state| std::mem::swap(&mut state.engine.events, &mut list)).ok()?;
        }
        list.pop_front()
    }

    /// Runs work that blocks, on the host's terms; the pool of threads for it is made at its first use.
    pub(crate) fn run_blocking(&self, job: Job) -> Result<(), Full<Job>> {
        let limits = &self.config.limits;
        self.config.host.run_blocking(job, |job| {
            let threads = self.blocking.get_or_init(|| {
                let idle = Duration::from_secs(5);
                BlockingPool::new(limits.blocking_threads_max, limits.blocking_queue_max, idle)
            });
            threads.run(job)
        })
    }

    /// The time of the turn: not later than now, not before the last wait ended. The clock is asked once in a turn.
    #[inline]
    pub(crate) fn recent(&self) -> Instant {
        let recent = self.recent.get().unwrap_or_else(|| self.config.host.now());
        self.recent.set(Some(recent));
        recent
    }

    /// Runs messages and ready tasks, each up to its bound.
    pub(crate) fn run_ready(&self) {
        self.recent.set(None);
        self.config.host.run_due_jobs();
        // A pop costs a fence even when there is nothing. What comes right now is seen before the shard sleeps.
        if self.link.has_mail() {
            while let Some(task) = self.link.tasks.pop() {
                self.executor.push(task);
            }
            self.run_messages();
        }
        let budget =
            if self.config.host.is_rare(Rare::OnePoll) { 1 } else { self.config.limits.polls_per_turn_max };
        self.executor.run(budget);
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
                Some(Message::Connection { group, fd, seat, passage }) => {
                    let _ = self.with(|state| state.receive_connection(group, fd, seat, passage));
                }
            }
        }
    }

    /// One turn: submits, waits for at most `wait` (none waits for ever), routes completions, and wakes. It does
    /// not sleep if `woken` says that the main future is to be polled, or, without a main future, if there are
    /// completions to hand out.
    ///
    /// # Errors
    ///
    /// If the system refuses to wait at all.
    pub(crate) fn turn(&self, wait: Option<Duration>, woken: Option<&AtomicBool>) -> io::Result<()> {
        let turn = self.begin_turn(wait, woken)?;
        self.end_turn(turn)
    }

    /// The half of a turn before its wait: prepares submissions, spins if that pays, and announces a sleep so that
    /// other threads know to wake it (invariant 13).
    ///
    /// # Errors
    ///
    /// If the shard has ended, or the system takes no submissions at all.
    pub(crate) fn begin_turn(&self, wait: Option<Duration>, woken: Option<&AtomicBool>) -> io::Result<Turn> {
        self.turns.set(self.turns.get() + 1);
        interruption();
        let is_woken = || woken.is_some_and(|woken| woken.load(Ordering::Acquire));
        let hands_out = woken.is_none();
        let unhanded = hands_out && !self.handing.borrow().is_empty();
        let wait =
            if unhanded || is_woken() || self.executor.has_ready() { Some(Duration::ZERO) } else { wait };
        let mut turn = Turn { wait: self.with(|state| state.prepare(wait, hands_out))?, announced: false };
        if turn.wait != Some(Duration::ZERO) && self.spins.is_due() {
            turn.wait = self.spin(turn.wait, &is_woken)?;
        }
        if turn.wait != Some(Duration::ZERO) {
            self.link.parking.prepare();
            interruption();
            turn.announced = true;
            // The second look is at everything that another thread can leave: whoever left it before the sleep
            // was announced makes no call.
            if is_woken() || self.link.has_mail() {
                turn.wait = Some(Duration::ZERO);
            } else {
                self.parks.set(self.parks.get() + 1);
                self.spins.on_sleep();
            }
        }
        Ok(turn)
    }

    /// Hands over what is to be submitted, then watches for completions, messages and wakes for a while: how much
    /// of the wait is left. It only looks, so whatever it finds is still there for the wait.
    fn spin(&self, wait: Option<Duration>, is_woken: &dyn Fn() -> bool) -> io::Result<Option<Duration>> {
        self.with(|state| {
            if self.config.spin == Spin::Auto && state.engine.company.is_large() {
                return Ok(wait);
            }
            let driver = &mut state.engine.driver;
            driver.hand_over()?;
            let host = &self.config.host;
            let mut has_news = || driver.has_news() || self.link.has_mail() || is_woken();
            // What is there already needs no spin and does not speak for one.
            if has_news() {
                return Ok(Some(Duration::ZERO));
            }
            Ok(self.spins.spin(wait, || host.now(), has_news))
        })?
    }

    /// The half of a turn that waits, and what comes after.
    ///
    /// # Errors
    ///
    /// If the system refuses to wait at all.
    pub(crate) fn end_turn(&self, turn: Turn) -> io::Result<()> {
        let mut raw = self.raw.take();
        let ended = self.with(|state| {
            let waited = state.engine.driver.wait(turn.wait, &mut raw);
            (waited, self.settle_turn(&turn, state, &mut raw))
        });
        if raw.capacity() > KEPT_MAX {
            raw.shrink_to(KEPT_MAX);
        }
        self.raw.replace(raw);
        let (waited, leftovers) = ended?;
        leftovers.into_iter().for_each(|leftovers| self.run_leftovers(leftovers));
        waited
    }

    /// What comes after a wait.
    fn settle_turn(&self, turn: &Turn, state: &mut State, raw: &mut Vec<RawCompletion>) -> Option<Leftovers> {
        if turn.announced {
            self.link.parking.resume();
        }
        raw.drain(..).for_each(|raw| state.route(raw));
        state.after_wait();
        state.take_leftovers()
    }

    /// Hands over and looks without waiting: the turn ends if there was something to end it for, else it is
    /// given back and goes on sleeping.
    #[cfg(feature = "sim")]
    pub(crate) fn try_turn(&self, turn: Turn) -> io::Result<Option<Turn>> {
        if turn.wait == Some(Duration::ZERO) {
            return self.end_turn(turn).map(|()| None);
        }
        let mut raw = self.raw.take();
        let looked = self.with(|state| {
            let looked = state.engine.driver.wait(Some(Duration::ZERO), &mut raw);
            let settled = (!raw.is_empty()).then(|| self.settle_turn(&turn, state, &mut raw));
            (looked, settled)
        });
        self.raw.replace(raw);
        let (looked, settled) = looked?;
        let asleep = settled.is_none().then_some(turn);
        settled.flatten().into_iter().for_each(|leftovers| self.run_leftovers(leftovers));
        looked.map(|()| asleep)
    }

    /// Runs foreign code: nothing is borrowed here. A panic ends at its source, or it would take the wakers and
    /// the buffers of others with it.
    fn run_leftovers(&self, leftovers: Leftovers) {
        let Leftovers { mut wakers, warnings, mut remains, graves } = leftovers;
        self.executor.contain(wakers.drain(..), Waker::wake);
        self.executor.contain(remains.drain(..), drop);
        self.executor.contain(graves.into_iter(), drop);
        warnings.iter().for_each(|warning| warned(Some(self.link.id), warning));
        if let Some(hook) = &self.config.on_warning {
            self.executor.contain(warnings.iter(), |warning| hook(warning));
        }
        let _ = self.with(|state| state.reuse(wakers, remains));
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = self.with(|state| state.count()).unwrap_or(self.last.get());
        counters.parks = self.parks.get();
        (counters.spins, counters.spins_won) = self.spins.ledger();
        counters.turns = self.turns.get();
        counters.wakes = self.link.wakes();
        counters.panics = self.executor.panics();
        counters
    }

    /// Ends the shard (invariant 11): no more messages; tasks are dropped; connections may send what they have
    /// queued; then everything is cancelled, and the driver drains.
    pub(crate) fn end(self: &Rc<Self>) {
        let _entered = Entered::enter(self);
        if let Some(mut ending) = self.begin_end(Close::Flush) {
            while self.is_ending(&mut ending) && self.turn(Some(END_LOOK), None).is_ok() {}
        }
        self.finish_end();
    }

    /// The begin of the end: no more messages, no more tasks; endpoints begin to close. Nothing if it has ended.
    pub(crate) fn begin_end(&self, how: Close) -> Option<Ending> {
        self.link.mailbox.close();
        self.executor.contain(self.link.mailbox.drain_after_close().into_iter(), drop);
        self.drop_tasks();
        self.link.end();
        let begun = self.with(|state| {
            state.begin_end(how);
            state.now()
        });
        begun.ok().map(|begun| Ending { begun, aborted: how == Close::Abort })
    }

    /// Drops every task. One that another thread is just waking is in that thread's hands; it comes back through the
    /// link, and its future must be dropped here, where it belongs.
    fn drop_tasks(&self) {
        const LOOKS_MAX: usize = 10_000;
        for _ in 0..LOOKS_MAX {
            while let Some(task) = self.link.tasks.pop() {
                self.executor.push(task);
            }
            self.executor.clear();
            if self.executor.is_empty() {
                return;
            }
            yield_now();
        }
    }

    /// Whether endpoints are still closing and have time left; half of it has passed when they are aborted.
    pub(crate) fn is_ending(&self, ending: &mut Ending) -> bool {
        let Ok((left, now)) = self.with(|state| (state.endpoints(), state.now())) else { return false };
        let patience = Duration::from_millis(self.config.limits.drain_ms);
        let passed = now.saturating_duration_since(ending.begun);
        if left == 0 || passed > patience {
            return false;
        }
        if !ending.aborted && passed > patience / 2 {
            ending.aborted = true;
            let _ = self.with(|state| state.close_all(Close::Abort));
        }
        true
    }

    /// The end of the end.
    pub(crate) fn finish_end(&self) {
        // From here on whatever runs finds the shard ended, so nothing is borrowed while the rest is dropped.
        if let Some(mut state) = self.state.take() {
            drop(self.handing.take());
            let leftovers = state.finish();
            leftovers.into_iter().for_each(|leftovers| self.run_leftovers(leftovers));
            state.give_up_rest();
            self.last.set(state.count());
        }
        self.executor.clear();
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({})", self.link.id)
    }
}
