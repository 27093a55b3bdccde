//! The completion core: operations go in, completions come out, the same on every backend.
//!
//! **The contract.** [`Driver::submit`] takes an [`Op`], which owns its buffers and a reference to its
//! descriptor, or gives it back as [`Full`]. It never completes, wakes or calls anything there and then.
//! [`Driver::wait`] hands everything to the system and returns what has completed in the raw shape;
//! [`Driver::settle`] turns each into a [`Completion`] and, if it is terminal, ends the operation. An accepted
//! operation has exactly one terminal completion. [`Driver::cancel`] only asks: the operation still ends by its
//! own completion, as cancelled or as a late success. [`Driver::abandon`] says that nobody wants the outcome:
//! what it carries is given back. Dropping the driver cancels everything, reaps until nothing is in flight, and
//! leaks what the system does not give back within [`Limits::drain_ms`](crate::Limits): closing a ring is no
//! barrier, the kernel may go on writing afterwards.
//!
//! Between `wait` and the next call the driver is not borrowed by anything; foreign code never runs inside it.

pub mod completion;
mod fd;
pub mod op;
mod slot;
pub(crate) mod sys;
mod token;

pub use completion::{Completion, Done, RawCompletion};
pub use fd::FdRef;
pub use sys::Wake;
pub use sys::descriptor::Descriptor;
pub(crate) use sys::host::{Host, Rare, interruption};
pub use token::{OPERATIONS_MAX, Token};

use crate::buf::Pool;
use crate::config::{Config, Warning};
use crate::counters::Counters;
use crate::error::Full;
use crate::report::BackendReport;
use fd::Census;
use op::{Close, Op};
use slot::Slots;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use sys::{Backend, Workbench};

/// A completion core with one backend. It belongs to the thread that made it.
///
/// ```compile_fail
/// fn is_send<T: Send>() {}
/// is_send::<anabranch::driver::Driver>();
/// ```
pub struct Driver {
    backend: Backend,
    slots: Slots,
    pool: Pool,
    census: Rc<Census>,
    report: BackendReport,
    config: Config,
    submitted: u64,
    completed: u64,
    stale: u64,
    canceled: u64,
    warnings: Vec<Warning>,
    /// Descriptors to close when the last operation on them has ended.
    retiring: Vec<FdRef>,
}

impl Driver {
    /// Sets up the backend that `config` and the environment ask for.
    ///
    /// # Errors
    ///
    /// If a limit makes no sense, if the backend that was asked for is not to be had (the error says what to
    /// do), or if the system is out of descriptors or memory.
    pub fn new(config: &Config) -> io::Result<Driver> {
        let limits = &config.limits;
        limits.check().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        let wake: Arc<OnceLock<Wake>> = Arc::default();
        let wake_of_pool = Arc::clone(&wake);
        let hungry = Box::new(move || {
            if let Some(wake) = wake_of_pool.get() {
                wake.wake();
            }
        });
        let pool = Pool::try_new(limits.buffers, limits.buffer_bytes, config.zero_on_return, hungry)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let (backend, report) = Backend::new(config, &pool)?;
        let _ = wake.set(backend.wake());
        Ok(Driver {
            backend,
            slots: Slots::new(limits.operations_max),
            pool,
            census: Rc::default(),
            report,
            config: config.clone(),
            submitted: 0,
            completed: 0,
            stale: 0,
            canceled: 0,
            warnings: Vec::new(),
            retiring: Vec::new(),
        })
    }

    /// Which backend this is and why.
    pub fn report(&self) -> &BackendReport {
        &self.report
    }

    /// The pool that standing receives fill.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What ends a [`wait`](Self::wait) from any thread.
    pub fn wake(&self) -> Wake {
        self.backend.wake()
    }

    /// The monotonic clock (invariant 17).
    pub fn now(&self) -> Instant {
        self.config.host.now()
    }

    /// The machine it runs on.
    pub(crate) fn host(&self) -> &Host {
        &self.config.host
    }

    /// Takes a descriptor under the driver's care, and sets whether it blocks as the backend needs it.
    ///
    /// # Errors
    ///
    /// If the system refuses to change that, or the descriptor is of another kind of host than the driver: one of
    /// the system in a simulation, or the other way round.
    pub fn adopt(&mut self, fd: impl Into<Descriptor>) -> io::Result<FdRef> {
        let fd = fd.into();
        self.check_host(&fd)?;
        fd.set_nonblocking(self.backend.wants_nonblocking())?;
        Ok(FdRef::new(fd, &self.census))
    }

    /// Takes a descriptor that one of this driver's accepts brought; its mode is right already.
    pub(crate) fn adopt_accepted(&mut self, fd: Descriptor) -> FdRef {
        FdRef::new(fd, &self.census)
    }

    /// Takes a descriptor whose mode others rely on.
    pub(crate) fn adopt_foreign(&mut self, fd: Descriptor) -> io::Result<FdRef> {
        self.check_host(&fd)?;
        Ok(FdRef::new(fd, &self.census))
    }

    fn check_host(&self, fd: &Descriptor) -> io::Result<()> {
        if fd.is_simulated() == self.config.host.is_simulated() {
            return Ok(());
        }
        let text =
            "sockets and files of the system and those of a simulation do not mix; open them inside of it";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    /// Gives a descriptor away, in blocking mode, if no operation uses it.
    pub(crate) fn release(&mut self, fd: FdRef) -> Result<Descriptor, FdRef> {
        if !fd.is_unique() {
            return Err(fd);
        }
        self.backend.forget(&fd);
        let fd = fd.into_owned()?;
        let _ = fd.set_nonblocking(false);
        Ok(fd)
    }

    /// Its node in a simulated world.
    #[cfg(feature = "sim")]
    pub(crate) fn node(&self) -> Option<sys::sim::NodeId> {
        self.backend.node()
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Submits an operation; `owner` comes back with each of its completions.
    ///
    /// # Errors
    ///
    /// Gives the operation back if [`Limits::operations_max`](crate::Limits) are in flight.
    pub fn submit(&mut self, op: impl Into<Op>, owner: u64) -> Result<Token, Full<Op>> {
        let op = op.into();
        if self.backend.refuses() {
            return Err(Full(op));
        }
        let token = self.slots.insert(op, owner)?;
        if self.backend.submit(token, &mut self.slots).is_err() {
            // The system has no room to watch one more descriptor.
            return Err(Full(self.slots.remove(token).expect("the slot was just taken").op));
        }
        self.submitted += 1;
        Ok(token)
    }

    /// Closes a descriptor by an operation of its own, so that closing never blocks.
    ///
    /// # Errors
    ///
    /// Gives the descriptor back if other operations still hold it, or no slot is free; dropping it then
    /// closes it in place.
    pub fn close(&mut self, fd: FdRef, owner: u64) -> Result<Token, Full<FdRef>> {
        if self.slots.len() == self.config.limits.operations_max || !fd.is_unique() {
            return Err(Full(fd));
        }
        self.backend.forget(&fd);
        let owned = fd.into_owned().map_err(Full)?;
        let op = Op::from(Close::new(owned));
        let token = self.slots.insert(op, owner).expect("a slot was free");
        self.submitted += 1;
        let submitted = self.backend.submit(token, &mut self.slots);
        debug_assert!(submitted.is_ok(), "a close waits for no descriptor");
        Ok(token)
    }

    /// Closes a descriptor in place as soon as no operation uses it.
    pub fn retire(&mut self, fd: FdRef) {
        self.retiring.push(fd);
        self.close_retired();
    }

    /// The end of the driver's care for descriptors that somebody still borrows: they are shut down, so that peers
    /// see the end, and close with their last reference.
    pub(crate) fn give_up_retired(&mut self) {
        self.close_retired();
        for fd in self.retiring.drain(..) {
            self.backend.forget(&fd);
            let _ = fd.descriptor().shutdown(std::net::Shutdown::Both);
            fd.leave();
        }
    }

    fn close_retired(&mut self) {
        let backend = &mut self.backend;
        self.retiring.retain(|fd| {
            let unused = fd.is_unique();
            if unused {
                backend.forget(fd);
            }
            !unused
        });
    }

    /// Asks for the end of an operation. Its terminal completion still comes: as cancelled, as a late success,
    /// or with another error. Nothing happens if it has ended.
    pub fn cancel(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.cancel_asked = true;
        self.backend.cancel(token, &mut self.slots);
    }

    /// Cancels an operation in whose outcome nobody is interested: what it carries is given back.
    pub fn abandon(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.abandon();
            self.cancel(token);
        }
    }

    /// Hands submissions to the system, waits for a completion, the time-out (none waits for ever) or a wake, and
    /// appends what has completed to `out`, at most [`Limits::completions_per_turn_max`](crate::Limits). It may
    /// end early without a completion, as after a signal or a cancel.
    ///
    /// # Errors
    ///
    /// If the system refuses to wait at all, which leaves no way to go on.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<RawCompletion>) -> io::Result<()> {
        self.pool.collect();
        if !self.retiring.is_empty() {
            self.close_retired();
        }
        for registration in self.census.left_behind.take() {
            self.backend.forget_closed(registration);
        }
        let mut lowered = Vec::new();
        let budget = out.len() + self.config.limits.completions_per_turn_max;
        let mut bench =
            Workbench { slots: &mut self.slots, pool: &self.pool, out, lowered: &mut lowered, budget };
        let waited = self.backend.wait(&mut bench, timeout);
        for (capability, reason) in lowered {
            self.report.capabilities.remove(capability);
            self.report.lowered.push((capability, reason.clone()));
            self.warnings.push(Warning::CapabilityLowered { capability, reason });
        }
        waited
    }

    /// The next [`wait`](Self::wait) asks the system for everything that has arrived, up to its budget, even if it has
    /// results without: a timer is due, and must not overtake.
    pub fn insist(&mut self) {
        self.backend.insist();
    }

    /// Turns a raw completion into what came of its operation; nothing if the operation was abandoned, or if the
    /// completion is stale (invariant 7).
    pub fn settle(&mut self, raw: RawCompletion) -> Option<Completion> {
        let token = raw.token;
        let Some(slot) = self.slots.get_mut(token) else {
            self.on_stale(raw);
            return None;
        };
        let (owner, abandoned) = (slot.owner, slot.is_abandoned());
        let done = if raw.more {
            slot.op.more(raw, &self.pool)
        } else {
            let slot = self.slots.remove(token)?;
            self.completed += 1;
            self.canceled += u64::from(raw.result == -sys::CANCELED);
            slot.op.finish(raw, &self.pool)
        };
        if abandoned {
            self.discard(done);
            return None;
        }
        Some(Completion { token, owner, more: raw.more, done })
    }

    /// Reports a completion as if the backend had, for tests of what must not happen.
    #[doc(hidden)]
    pub fn settle_forged(&mut self, index: usize, generation: u32, result: i32) -> Option<Completion> {
        self.settle(RawCompletion::terminal(Token::new(index, generation), result))
    }

    fn on_stale(&mut self, raw: RawCompletion) {
        self.stale += 1;
        if let Some(buffer) = raw.buffer {
            self.pool.untake(buffer);
        }
    }

    /// Gives back what nobody wants. An accepted connection counts as one that came and went.
    fn discard(&mut self, done: Done) {
        if let Done::Accepted(Ok(fd)) = done {
            drop(FdRef::new(fd, &self.census));
        }
    }

    /// Takes the warnings that have come up; who drives the driver reports them.
    pub fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// Adds the driver's counters to `counters`.
    pub fn count(&self, counters: &mut Counters) {
        counters.submitted = self.submitted;
        counters.completed = self.completed;
        counters.stale = self.stale;
        counters.canceled = self.canceled;
        (counters.buffers_lent, counters.buffers_returned) = self.pool.ledger();
        counters.descriptors_opened = self.census.opened.get();
        counters.descriptors_closed = self.census.closed.get();
    }

    /// Cancels everything and reaps until nothing is in flight or [`Limits::drain_ms`](crate::Limits) have
    /// passed; true if nothing is left. What completes meanwhile is given back.
    pub fn drain(&mut self) -> bool {
        for token in self.slots.tokens() {
            self.abandon(token);
        }
        let end = self.now() + Duration::from_millis(self.config.limits.drain_ms);
        let mut out = Vec::new();
        loop {
            let settled = self.backend.settle_down();
            if settled && self.slots.len() == 0 {
                self.close_retired();
                return true;
            }
            let left = end.saturating_duration_since(self.now());
            if left.is_zero() || self.wait(Some(left.min(Duration::from_millis(20))), &mut out).is_err() {
                return false;
            }
            for raw in out.drain(..) {
                // The destructor of a user's payload may panic. By then its slot is settled.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(self.settle(raw))));
            }
        }
    }
}

impl Drop for Driver {
    /// Invariant 11: drain, then free; what cannot be drained is leaked whole.
    fn drop(&mut self) {
        if self.drain() {
            self.backend.release();
            return;
        }
        if let Some(hook) = &self.config.on_warning {
            let warning = Warning::DrainTimedOut { operations: self.slots.len() };
            // Unwinding from here would free what the system may still write to.
            let _ = catch_unwind(AssertUnwindSafe(|| hook(&warning)));
        }
        std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
        std::mem::forget(std::mem::replace(&mut self.backend, Backend::Gone));
        std::mem::forget(self.pool.clone());
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("backend", &self.report.backend)
            .field("in_flight", &self.slots.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::op::{Nop, ReadAt};
    use super::*;
    use sys::script::Script;

    fn driver(script: Script) -> Driver {
        let config = Config::new().script(script).with_limits(|limits| {
            (limits.operations_max, limits.buffers, limits.buffer_bytes) = (64, 4, 512);
        });
        Driver::new(&config).expect("a driver")
    }

    /// What the driver brings until nothing is in flight.
    fn all(driver: &mut Driver) -> Vec<Completion> {
        let (mut raw, mut all) = (Vec::new(), Vec::new());
        while driver.in_flight() > 0 {
            driver.wait(Some(Duration::from_millis(50)), &mut raw).expect("a wait");
            all.extend(raw.drain(..).filter_map(|raw| driver.settle(raw)));
        }
        all
    }

    fn settled(driver: &Driver) -> Counters {
        let mut counters = Counters::default();
        driver.count(&mut counters);
        counters.settled().expect("the ledger is settled");
        counters
    }

    /// Taken with `adopt_accepted`, as Miri cannot ask whether a file blocks.
    fn file() -> Descriptor {
        std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("a file").into()
    }

    #[test]
    fn a_calm_script_completes_in_order_of_submission() {
        let mut driver = driver(Script::calm(1));
        let tokens: Vec<_> = (0..20).map(|owner| driver.submit(Nop, owner).unwrap()).collect();
        let completed = all(&mut driver);
        assert!(completed.iter().map(|completion| completion.token).eq(tokens));
        assert!(completed.iter().map(|completion| completion.owner).eq(0..20));
        settled(&driver);
    }

    #[test]
    fn a_rough_script_completes_each_once_in_another_order() {
        let mut driver = driver(Script::rough(5));
        let tokens: Vec<_> = (0..40).map(|owner| driver.submit(Nop, owner).unwrap()).collect();
        let mut order: Vec<_> = all(&mut driver).iter().map(|completion| completion.owner).collect();
        assert_ne!(order, (0..40).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!((order, tokens.len()), ((0..40).collect(), 40));
        settled(&driver);
    }

    #[test]
    fn a_cancelled_operation_ends_as_cancelled_or_late_as_a_success() {
        let mut driver = driver(Script::rough(7));
        let tokens: Vec<_> = (0..40).map(|owner| driver.submit(Nop, owner).unwrap()).collect();
        tokens.iter().for_each(|token| driver.cancel(*token));
        let completed = all(&mut driver);
        let is_success = |completion: &&Completion| matches!(completion.done, Done::Ended(Ok(())));
        let successes = completed.iter().filter(is_success).count();
        assert_eq!(completed.len(), 40);
        assert!((1..40).contains(&successes), "{successes}");
        assert_eq!(settled(&driver).canceled, 40 - successes as u64);
    }

    #[test]
    fn a_cancelled_close_closes_all_the_same() {
        for script in [Script::calm(1), Script::rough(2), Script::rough(3)] {
            let mut driver = driver(script);
            let fd = driver.adopt_accepted(file());
            let token = driver.close(fd, 0).unwrap();
            driver.cancel(token);
            assert_eq!(all(&mut driver).len(), 1);
            assert_eq!(settled(&driver).descriptors_closed, 1);
        }
    }

    #[test]
    fn an_abandoned_read_delivers_nothing_and_drops_its_buffer_at_its_end() {
        let mut driver = driver(Script::rough(4));
        let file = driver.adopt_accepted(file());
        for _ in 0..10 {
            let op = ReadAt { file: file.clone(), buffer: Vec::with_capacity(100), offset: 0 };
            let token = driver.submit(op, 0).unwrap();
            driver.abandon(token);
            assert_eq!(driver.in_flight(), 1);
            assert!(all(&mut driver).is_empty());
        }
        driver.retire(file);
        settled(&driver);
    }

    #[test]
    fn dropping_the_driver_gives_everything_back() {
        let mut driver = driver(Script::rough(6));
        let file = driver.adopt_accepted(file());
        for _ in 0..10 {
            driver.submit(Nop, 0).unwrap();
            let op = ReadAt { file: file.clone(), buffer: Vec::with_capacity(100), offset: 0 };
            driver.submit(op, 0).unwrap();
        }
        let census = Rc::clone(&driver.census);
        driver.retire(file);
        drop(driver);
        assert_eq!((census.opened.get(), census.closed.get()), (1, 1));
    }

    #[test]
    fn a_descriptor_in_use_is_not_given_away() {
        let mut driver = driver(Script::calm(1));
        let fd = driver.adopt_accepted(file());
        let op = ReadAt { file: fd.clone(), buffer: Vec::with_capacity(10), offset: 0 };
        driver.submit(op, 0).unwrap();
        let fd = driver.release(fd).expect_err("an operation uses it");
        assert_eq!(all(&mut driver).len(), 1, "which is not disturbed");
        driver.retire(fd);
        settled(&driver);
    }
}
