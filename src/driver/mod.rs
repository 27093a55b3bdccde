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
pub mod datagram;
mod fd;
pub mod op;
pub(crate) mod pipes;
mod pools;
mod slot;
pub(crate) mod sys;
mod token;

pub use completion::{Completion, Done, RawCompletion};
pub use fd::FdRef;
pub(crate) use pools::Pools;
pub use sys::Wake;
pub use sys::descriptor::Descriptor;
pub(crate) use sys::host::{Host, Rare, interruption};
pub use token::{OPERATIONS_MAX, Token};

use crate::buf::Pool;
use crate::config::{Config, Warning};
use crate::counters::Counters;
use crate::error::Full;
use crate::report::{BackendReport, Capability};
use crate::trace::warned;
use datagram::Exchange;
use fd::Census;
use op::{Close, Op, Transit};
use pipes::Pipes;
use slot::Slots;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
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
    pools: Pools,
    pipes: Pipes,
    /// Made for the first datagram socket.
    exchange: Option<Rc<Exchange>>,
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
        limits
            .check()
            .and_then(|()| config.spin.check())
            .map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        let (mut backend, report) = Backend::new(config)?;
        let apart = config.gives_buffers && backend.serves_apart(limits.apart_buffers().0);
        let pools = match Pools::new(config, backend.stream_buffers(limits), apart, backend.wake()) {
            Ok(pools) => pools,
            Err(error) => {
                backend.release();
                return Err(error);
            }
        };
        Ok(Driver {
            backend,
            slots: Slots::new(limits.operations_max),
            pools,
            pipes: Pipes::new(limits),
            exchange: None,
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

    /// The pool that standing receives of streams fill.
    pub fn pool(&self) -> &Pool {
        &self.pools.streams
    }

    /// Whether streams can receive into buffers that can be given away.
    pub(crate) fn gives_buffers(&self) -> bool {
        self.pools.apart.is_some()
    }

    /// The pool that datagrams are received into, once there is one.
    pub fn datagram_pool(&self) -> Option<&Pool> {
        self.pools.datagrams.as_ref()
    }

    /// Takes home the buffers that came back from other threads.
    pub(crate) fn collect_buffers(&self) {
        self.pools.collect();
    }

    /// What stands between the two sockets of a [`Splice`](op::Splice). One of which the splices move fewer than
    /// `worthwhile_bytes` on average ends them as too small.
    pub fn transit(&self, worthwhile_bytes: usize) -> Transit {
        Transit::new(&self.pipes, worthwhile_bytes)
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
        self.backend.give_away(&fd);
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
    #[inline]
    pub fn submit(&mut self, op: impl Into<Op>, owner: u64) -> Result<Token, Full<Op>> {
        let op = op.into();
        let unprepared = matches!(op, Op::RecvMsgMulti(_)) && self.prepare_pool().is_err();
        if unprepared || self.backend.refuses() {
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

    /// Makes the pool of datagrams before it is needed.
    fn prepare_pool(&mut self) -> io::Result<()> {
        if self.pools.datagrams.is_some() {
            return Ok(());
        }
        let pool = self.pools.add_datagrams(&self.config, self.backend.wake())?;
        let lowered = self.backend.serve_datagrams(pool);
        self.lower(lowered);
        Ok(())
    }

    /// Reports capabilities that turned out to be missing.
    fn lower(&mut self, lowered: impl IntoIterator<Item = (Capability, String)>) {
        for (capability, reason) in lowered {
            self.report.capabilities.remove(capability);
            self.report.lowered.push((capability, reason.clone()));
            self.warnings.push(Warning::CapabilityLowered { capability, reason });
        }
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
            fd.leave(&self.census);
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
        self.pools.collect();
        if !self.retiring.is_empty() {
            self.close_retired();
        }
        for registration in self.census.left_behind.take() {
            self.backend.forget_closed(registration);
        }
        let mut lowered = Vec::new();
        let budget = out.len() + self.config.limits.completions_per_turn_max;
        let mut bench =
            Workbench { slots: &mut self.slots, pools: &self.pools, out, lowered: &mut lowered, budget };
        let waited = self.backend.wait(&mut bench, timeout);
        if let Some(number) = self.exchange.as_ref().and_then(|exchange| exchange.refusal.take()) {
            let reason = io::Error::from_raw_os_error(number).to_string();
            lowered.push((Capability::SegmentedSend, format!("refused: {reason}")));
        }
        self.lower(lowered);
        waited
    }

    /// Whether a send is a call like any other here: then one that has nothing to wait for is made at once, rather than
    /// through a slot and a completion.
    #[inline]
    pub(crate) fn sends_by_calls(&self) -> bool {
        self.backend.sends_by_calls()
    }

    /// Counts such a call as an operation.
    #[inline]
    pub(crate) fn count_call(&mut self) {
        self.submitted += 1;
        self.completed += 1;
    }

    /// The longest time for which it pays to look for news before a wait; none where looking is not cheap.
    pub(crate) fn spin_bound(&self) -> Duration {
        if self.backend.can_look() { self.config.spin.bound() } else { Duration::ZERO }
    }

    /// Hands submissions to the system as [`wait`](Self::wait) does, but takes nothing back.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub(crate) fn hand_over(&mut self) -> io::Result<()> {
        self.backend.hand_over(&mut self.slots, &self.pools)
    }

    /// Whether a [`wait`](Self::wait) would find something at once. It takes nothing, so it may be asked any number of
    /// times; it may say yes for nothing, never no for something.
    pub(crate) fn has_news(&mut self) -> bool {
        self.backend.has_news()
    }

    /// The next [`wait`](Self::wait) asks the system for everything that has arrived, up to its budget, even if it has
    /// results without: a timer is due, and must not overtake.
    pub fn insist(&mut self) {
        self.backend.insist();
    }

    /// Turns a raw completion into what came of its operation; nothing if the operation was abandoned, or if the
    /// completion is stale (invariant 7).
    #[inline]
    pub fn settle(&mut self, raw: RawCompletion) -> Option<Completion> {
        let token = raw.token;
        let (owner, abandoned, done) = if raw.more {
            let Some(slot) = self.slots.get_mut(token) else { return self.on_stale(raw) };
            let pool = self.pools.of_op(&slot.op);
            (slot.owner, slot.is_abandoned(), slot.op.more(raw, pool))
        } else {
            let Some(slot) = self.slots.remove(token) else { return self.on_stale(raw) };
            self.completed += 1;
            self.canceled += u64::from(raw.result == -sys::CANCELED);
            let pool = self.pools.of_op(&slot.op);
            (slot.owner, slot.is_abandoned(), slot.op.finish(raw, pool))
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

    #[cold]
    fn on_stale(&mut self, raw: RawCompletion) -> Option<Completion> {
        self.stale += 1;
        if let Some(buffer) = raw.buffer {
            self.pools.of_buffer(buffer).untake(buffer);
        }
        None
    }

    /// Gives back what nobody wants. An accepted connection counts as one that came and went.
    fn discard(&mut self, done: Done) {
        if let Done::Accepted(Ok(fd)) = done {
            drop(FdRef::new(fd, &self.census));
        }
    }

    /// Moves the warnings that have come up behind others; who drives the driver reports them.
    pub fn move_warnings(&mut self, to: &mut Vec<Warning>) {
        to.append(&mut self.warnings);
    }

    /// Adds the driver's counters to `counters`.
    pub fn count(&self, counters: &mut Counters) {
        counters.submitted = self.submitted;
        counters.completed = self.completed;
        counters.stale = self.stale;
        counters.canceled = self.canceled;
        (counters.buffers_lent, counters.buffers_returned) = self.pools.ledger();
        counters.descriptors_opened = self.census.opened.get();
        counters.descriptors_closed = self.census.closed.get();
        self.pipes.count(counters);
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
        let warning = Warning::DrainTimedOut { operations: self.slots.len() };
        warned(None, &warning);
        if let Some(hook) = &self.config.on_warning {
            // Unwinding from here would free what the system may still write to.
            let _ = catch_unwind(AssertUnwindSafe(|| hook(&warning)));
        }
        std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
        std::mem::forget(std::mem::replace(&mut self.backend, Backend::Gone));
        std::mem::forget(self.pools.streams.clone());
        std::mem::forget(self.pools.datagrams.clone());
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
mod tests;
