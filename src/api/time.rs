//! Time: sleeping, time-outs, intervals. All of it on the shard's wheel and the monotonic clock.
//!
//! The wheel ticks in milliseconds. Nothing fires early; a timer may fire up to a tick and a turn of the loop late.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::shard::{Core, Timer, TimerId};
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

/// The monotonic time, from the current shard's clock where one runs.
pub fn now() -> Instant {
    let of_shard = Core::current().and_then(|core| core.with(|state| state.now()).ok());
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
    start.checked_add(duration).unwrap_or(start + CENTURY)
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
/// # Errors
///
/// Only the time-out; the future's own errors are inside its output.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> io::Result<F::Output> {
    timeout_at(far(now(), duration), future).await
}

/// As [`timeout`], at a deadline.
///
/// # Errors
///
/// Only the time-out.
pub async fn timeout_at<F: Future>(deadline: Instant, future: F) -> io::Result<F::Output> {
    let (mut future, mut limit) = (pin!(future), pin!(sleep_until(deadline)));
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        limit.as_mut().poll(context).map(|()| Err(Error::TimedOut.into()))
    })
    .await
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
