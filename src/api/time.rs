//! Time: sleeping, time-outs, intervals. All of it on the shard's wheel and the monotonic clock.
//!
//! The wheel ticks in milliseconds. Nothing fires early; a timer may fire up to a tick and a turn of the loop late.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::shard::{Core, Timer, TimerId};
use pin_project_lite::pin_project;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, RawWakerVTable, Waker};
use std::time::{Duration, Instant, SystemTime};

/// The monotonic time, from the current shard's clock where one runs.
pub fn now() -> Instant {
    let of_shard = Core::with_current(|core| core.map(|core| core.config.host.now()));
    of_shard.unwrap_or_else(Instant::now)
}

/// The wall clock, which may be set to anything at any time; for dates, never for measuring.
///
/// As [`SystemTime::now`], but in a simulation it is the simulated host's clock, which faults may step.
pub fn wall() -> SystemTime {
    let of_shard = Core::with_current(|core| core.map(|core| core.config.host.wall()));
    of_shard.unwrap_or_else(SystemTime::now)
}

/// Completes after `duration`.
///
/// # Panics
///
/// When polled where no shard runs.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(far(now(), duration))
}

/// Completes at `deadline`.
///
/// # Panics
///
/// When polled where no shard runs.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, timer: None }
}

/// The instant `duration` after `start`, or one that is too far away to matter.
pub(crate) fn far(start: Instant, duration: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    start.checked_add(duration).unwrap_or_else(|| start + CENTURY)
}

/// A future that completes at its deadline. Dropping it cancels the timer.
pub struct Sleep {
    deadline: Instant,
    timer: Option<(Rc<Core>, TimerId)>,
}

impl Sleep {
    /// When it completes.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Gives it another deadline, in constant time, whether or not it has completed.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
        let Some((core, id)) = &self.timer else { return };
        let moved = core.with(|state| state.engine.wheel.reset(*id, deadline)).unwrap_or(false);
        if !moved {
            self.timer = None;
        }
    }
}

impl Future for Sleep {
    type Output = ();

    /// Cancel-safe.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some((core, id)) = &self.timer {
            let waits = core.with(|state| match state.engine.wheel.get_mut(*id) {
                Some(Timer::Sleep(waker)) => {
                    let same = waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
                    let old = if same { None } else { waker.replace(context.waker().clone()) };
                    Some(old)
                }
                _ => None,
            });
            return if matches!(waits, Ok(Some(_))) { Poll::Pending } else { Poll::Ready(()) };
        }
        if self.deadline <= now() {
            return Poll::Ready(());
        }
        let core = Core::current().expect("sleep needs a running shard; use it inside anabranch::block_on");
        let (deadline, waker) = (self.deadline, context.waker().clone());
        let timer = core.with(|state| state.engine.wheel.insert(deadline, Timer::Sleep(Some(waker))));
        let Ok(timer) = timer else { return Poll::Ready(()) };
        self.timer = Some((core, timer));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((core, id)) = self.timer.take() {
            // The timer's waker is dropped after the borrow.
            let removed = core.with(|state| state.engine.wheel.remove(id));
            drop(removed);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish()
    }
}

/// The output of `future`, or [`Error::TimedOut`] (as an `io::Error` of kind `TimedOut`) if it takes longer than
/// `duration`. The future is dropped then; what that means is documented at each of them. No receive loses a byte.
///
/// The time counts from the first poll that finds the future not ready; a future that is ready at once costs no look
/// at the clock. Where one limit holds for many waits in turn, [`TimeLimit`] is cheaper.
///
/// # Errors
///
/// Only the time-out; the future's own errors are inside its output.
///
/// # Panics
///
/// When polled where no shard runs.
pub fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    Timeout { future, limit: Limit::Span(duration) }
}

/// As [`timeout`], at a deadline.
///
/// # Errors
///
/// Only the time-out.
///
/// # Panics
///
/// When polled where no shard runs.
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    Timeout { future, limit: Limit::At(sleep_until(deadline)) }
}

/// How long a [`Timeout`] waits.
#[derive(Debug)]
enum Limit {
    /// This long from the first poll.
    Span(Duration),
    At(Sleep),
}

pin_project! {
    /// The future of [`timeout`] and [`timeout_at`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are awaited"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        limit: Limit,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = io::Result<F::Output>;

    /// As cancel-safe as the future.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(Ok(output));
        }
        if let Limit::Span(duration) = *this.limit {
            *this.limit = Limit::At(sleep(duration));
        }
        let Limit::At(sleep) = this.limit else { return Poll::Pending };
        Pin::new(sleep).poll(context).map(|()| Err(Error::TimedOut.into()))
    }
}

/// A time limit that is used again and again by one task, such as the idle limit of a connection.
///
/// As [`timeout`], without its price: the timer stays armed from one wait to the next, and a wait that ends in time
/// does not touch it. When the timer comes due it looks at the wait of that moment, and goes on for what that has left.
/// So a message costs one look at the clock, and nothing if it was there already; a task that is not waiting may be
/// woken needlessly, at most once in each `duration`.
///
/// ```no_run
/// # async fn echo(mut stream: anabranch::net::TcpStream) -> std::io::Result<()> {
/// let mut idle = anabranch::time::TimeLimit::new(std::time::Duration::from_secs(60));
/// while let Some(bytes) = idle.run(stream.recv()).await?? {
///     stream.send(bytes).await?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct TimeLimit {
    duration: Duration,
    armed: Option<Armed>,
}

/// The timer of a [`TimeLimit`]. It fires, or it has fired, for one waker.
struct Armed {
    core: Rc<Core>,
    timer: TimerId,
    /// It has not fired before this.
    fires: Instant,
    /// Which waker; its address says it as long as the timer waits, because the wheel keeps the waker.
    waker: (*const (), &'static RawWakerVTable),
}

impl TimeLimit {
    /// A limit of `duration` for each wait.
    pub fn new(duration: Duration) -> TimeLimit {
        TimeLimit { duration, armed: None }
    }

    /// The output of `future`, or [`Error::TimedOut`] (as an `io::Error` of kind `TimedOut`) if it takes longer than
    /// the limit, from the first poll that finds it not ready. The future is dropped then, and the limit can be used
    /// again.
    ///
    /// # Errors
    ///
    /// Only the time-out; the future's own errors are inside its output.
    ///
    /// # Panics
    ///
    /// When polled where no shard runs.
    pub fn run<F: Future>(&mut self, future: F) -> Limited<'_, F> {
        Limited { future, limit: self, deadline: None }
    }

    /// Sees to it that `waker` is used at `deadline`, or before; false if the shard has ended.
    fn watch(&mut self, now: Instant, deadline: Instant, waker: &Waker) -> bool {
        let identity = (waker.data(), waker.vtable());
        if let Some(armed) = &self.armed {
            let same = armed.waker.0 == identity.0 && std::ptr::eq(armed.waker.1, identity.1);
            if same && now < armed.fires && armed.fires <= deadline {
                return true;
            }
        }
        self.disarm();
        let core =
            Core::current().expect("a time limit needs a running shard; use it inside anabranch::block_on");
        let sleep = Timer::Sleep(Some(waker.clone()));
        let Ok(timer) = core.with(|state| state.engine.wheel.insert(deadline, sleep)) else { return false };
        self.armed = Some(Armed { core, timer, fires: deadline, waker: identity });
        true
    }

    fn disarm(&mut self) {
        if let Some(Armed { core, timer, .. }) = self.armed.take() {
            // The timer's waker is dropped after the borrow.
            let removed = core.with(|state| state.engine.wheel.remove(timer));
            drop(removed);
        }
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl fmt::Debug for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeLimit").field("duration", &self.duration).finish_non_exhaustive()
    }
}

pin_project! {
    /// The future of [`TimeLimit::run`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are awaited"]
    pub struct Limited<'a, F> {
        #[pin]
        future: F,
        limit: &'a mut TimeLimit,
        deadline: Option<Instant>,
    }
}

impl<F: Future> Future for Limited<'_, F> {
    type Output = io::Result<F::Output>;

    /// As cancel-safe as the future.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(Ok(output));
        }
        let now = now();
        let duration = this.limit.duration;
        let deadline = *this.deadline.get_or_insert_with(|| far(now, duration));
        if deadline > now && this.limit.watch(now, deadline, context.waker()) {
            return Poll::Pending;
        }
        Poll::Ready(Err(Error::TimedOut.into()))
    }
}

/// What an interval does about ticks that were missed because the program was busy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum MissedTicks {
    /// Skip them and keep to the original beat.
    #[default]
    Skip,
    /// Catch up: missed ticks complete at once, one after the other.
    Burst,
}

/// Ticks every `period`, the first time at once.
///
/// # Panics
///
/// If `period` is zero.
pub fn interval(period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval needs a period above zero");
    Interval { next: sleep_until(now()), period, missed: MissedTicks::default() }
}

/// A source of ticks.
#[derive(Debug)]
pub struct Interval {
    next: Sleep,
    period: Duration,
    missed: MissedTicks,
}

impl Interval {
    /// What to do about missed ticks.
    pub fn missed_ticks(mut self, missed: MissedTicks) -> Interval {
        self.missed = missed;
        self
    }

    /// The next tick, and when it was due.
    ///
    /// Cancel-safe: a tick that was not taken is not lost.
    pub async fn tick(&mut self) -> Instant {
        Pin::new(&mut self.next).await;
        let due = self.next.deadline();
        let mut next = far(due, self.period);
        let now = now();
        if self.missed == MissedTicks::Skip && next < now {
            let behind = now.duration_since(due).as_nanos();
            let beats = behind / self.period.as_nanos() + 1;
            next = due + self.period * u32::try_from(beats).unwrap_or(u32::MAX);
        }
        self.next.reset(next);
        due
    }
}
