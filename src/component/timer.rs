//! [`Timer`]: one expiry, or one after the other, that any number of waits and a callback are told of.
//!
//! A task on a loop of the timer's service sleeps until the expiry and tells whoever waits; the handles, which may be on
//! any thread, share one small state with it under a lock. No foreign code runs under that lock: wakers, and the callback,
//! come after it. The task is made by the first setting and ends with the last handle or with its loop; the next setting
//! after the end of its loop makes another one, so a timer is of use again when its service was restarted.
#![forbid(unsafe_code)]

use super::service::{Job, ServiceHandle};
use crate::api::task::{current, spawn, yield_now};
use crate::api::time::{Sleep, far, now, sleep_until, wall};
use crate::shard::Undelivered;
use slab::Slab;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

/// An expiry by the wall clock is looked at anew after this long at most, because that clock may be set.
const WALL_LOOK: Duration = Duration::from_secs(1);

/// What a wait comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expiry {
    /// The time has come.
    Expired,
    /// The timer was cancelled, set anew or never set, or its loop has ended.
    Canceled,
}

type Callback = Box<dyn FnMut(&Timer, Expiry) + Send>;

/// A timer on a loop of a [`Service`](super::Service). Clones are handles of the same timer, for any thread; with the last
/// of them the timer ends.
///
/// Relative times go by the monotonic clock, absolute ones by the wall clock; when that is set, an absolute expiry moves
/// with it, within a second. A timer never expires early by its clock; late by a tick of a millisecond and a turn of its
/// loop. Times that have passed expire at once.
///
/// ```
/// use anabranch::component::{Expiry, Service, Timer};
/// use std::time::Duration;
///
/// let service = Service::builder().build();
/// service.start()?;
/// let timer = Timer::new(&service);
/// timer.set_after(Duration::from_millis(10))?;
/// assert_eq!(timer.wait_blocking()?, Expiry::Expired);
/// timer.set_after(Duration::from_secs(600))?;
/// let wait = timer.wait();
/// timer.cancel();
/// assert_eq!(anabranch::block_on(wait)?, Expiry::Canceled);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Timer {
    handles: Arc<Handles>,
}

/// What the handles have in common, but not the task: its end is that of the last handle.
struct Handles {
    shared: Arc<Shared>,
}

/// What handles and the task share.
struct Shared {
    service: ServiceHandle,
    state: Mutex<State>,
    /// Out of its place while it runs.
    callback: Mutex<Option<Callback>>,
}

#[derive(Default)]
struct State {
    setting: Option<Setting>,
    /// The setting has expired, for good.
    expired: bool,
    waits: Slab<Waiting>,
    /// Settings that were cancelled and of which the callback has not been told.
    canceled: u64,
    /// There is a task, or one on its way.
    is_bound: bool,
    /// No handle is left.
    is_over: bool,
    /// Something has changed since the task looked.
    changed: bool,
    task: Option<Waker>,
}

/// When it expires.
#[derive(Clone, Copy)]
enum Setting {
    After(Instant),
    At(SystemTime),
    Every { next: Instant, period: Duration },
}

/// One wait.
enum Waiting {
    /// Who is to be woken, once somebody has asked.
    For(Option<Waker>),
    Over(Expiry),
}

impl Timer {
    /// A timer that is not set.
    pub fn new(service: &ServiceHandle) -> Timer {
        Timer::make(service, None)
    }

    /// A timer that is not set, with a callback, which runs on the timer's loop. It is told once of each setting, that it
    /// expired or that it was cancelled; of a periodic one, of each expiry. It may set the timer anew, by the handle that
    /// it is given; one that it owned would keep the timer for ever. Its panics are told to the service's handler. It is
    /// called no more when the timer's loop or its last handle has gone.
    pub fn with_callback(
        service: &ServiceHandle,
        callback: impl FnMut(&Timer, Expiry) + Send + 'static,
    ) -> Timer {
        Timer::make(service, Some(Box::new(callback)))
    }

    fn make(service: &ServiceHandle, callback: Option<Callback>) -> Timer {
        let shared =
            Shared { service: service.clone(), state: Mutex::default(), callback: Mutex::new(callback) };
        Timer { handles: Arc::new(Handles { shared: Arc::new(shared) }) }
    }

    /// Expires after `delay`, by the monotonic clock. Cancels what it was set to before.
    ///
    /// # Errors
    ///
    /// Where the timer has no loop yet, or no more: of kind `NotConnected` if its service is not started, `WouldBlock` if
    /// the mailbox of the loop is full. The timer is as before then.
    pub fn set_after(&self, delay: Duration) -> io::Result<()> {
        self.set(Setting::After(far(now(), delay)))
    }

    /// Expires when the wall clock shows `time`. Cancels what it was set to before.
    ///
    /// # Errors
    ///
    /// As for [`set_after`](Self::set_after).
    pub fn set_at(&self, time: SystemTime) -> io::Result<()> {
        self.set(Setting::At(time))
    }

    /// Expires every `period`, the first time after one, until it is cancelled or set anew. Expiries for which its loop
    /// was too busy are skipped; the beat stays the same. Cancels what it was set to before.
    ///
    /// # Errors
    ///
    /// Of kind `InvalidInput` if the period is zero; else as for [`set_after`](Self::set_after).
    pub fn set_every(&self, period: Duration) -> io::Result<()> {
        if period.is_zero() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a timer needs a period above zero"));
        }
        self.set(Setting::Every { next: far(now(), period), period })
    }

    /// Takes back what it was set to. Every wait in progress is told at once, also those that block a thread; the callback
    /// is told if something was still to come. Gives the number of waits.
    pub fn cancel(&self) -> usize {
        self.shared().change(None)
    }

    /// How long it is until it expires; zero if it has, and nothing if it is not set.
    pub fn remaining(&self) -> Option<Duration> {
        let setting = self.shared().lock().setting?;
        Some(setting.remaining(now(), wall()))
    }

    /// Waits for the expiry, from now on: the wait is in progress when this returns. Each of several waits is told. Once a
    /// single expiry has come, further waits are told of it at once; of a periodic timer a wait is told of the next one.
    /// Where nothing is set the wait is cancelled at once.
    ///
    /// The future may be awaited on any thread, of this runtime or not. Dropping it ends only the wait.
    pub fn wait(&self) -> Wait {
        let mut state = self.shared().lock();
        let outcome = match state.setting {
            None => Waiting::Over(Expiry::Canceled),
            Some(_) if state.expired => Waiting::Over(Expiry::Expired),
            Some(_) => Waiting::For(None),
        };
        let key = state.waits.insert(outcome);
        drop(state);
        Wait { timer: self.clone(), key: Some(key) }
    }

    /// As [`wait`](Self::wait), by blocking the thread; [`cancel`](Self::cancel) ends it too.
    ///
    /// # Errors
    ///
    /// Of kind `Deadlock` where a shard runs, because that may be the very one that the timer needs.
    pub fn wait_blocking(&self) -> io::Result<Expiry> {
        if current().is_ok() {
            let text = "a shard runs on this thread and must not be blocked; await the wait instead";
            return Err(io::Error::new(io::ErrorKind::Deadlock, text));
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut wait = pin!(self.wait());
        loop {
            if let Poll::Ready(expiry) = wait.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Ok(expiry);
            }
            thread::park();
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handles.shared
    }

    fn set(&self, setting: Setting) -> io::Result<()> {
        self.bind()?;
        self.shared().change(Some(setting));
        Ok(())
    }

    /// Sees to it that there is a task.
    fn bind(&self) -> io::Result<()> {
        let mut state = self.shared().lock();
        if std::mem::replace(&mut state.is_bound, true) {
            return Ok(());
        }
        drop(state);
        let bound = Bound(Arc::clone(self.shared()));
        let handles = Arc::downgrade(&self.handles);
        let Some(shard) = self.shared().service.next_shard() else {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the service of the timer is not started",
            ));
        };
        // Where it is refused, or dropped before it ran, the timer is unbound again.
        let job: Job = Box::new(move || spawn(run(bound, handles)).detach());
        shard.run(job).map_err(|refused| match refused {
            Undelivered::Full(_) => io::Error::new(io::ErrorKind::WouldBlock, refused.to_string()),
            Undelivered::Ended(_) => io::Error::new(io::ErrorKind::NotConnected, refused.to_string()),
        })
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.is_over, state.changed) = (true, true);
        let task = state.task.take();
        drop(state);
        task.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared().lock();
        let mut fields = f.debug_struct("Timer");
        fields.field("set", &state.setting.is_some()).field("expired", &state.expired);
        fields.field("waits", &state.waits.len()).finish_non_exhaustive()
    }
}

/// A wait for a [`Timer`]; see [`Timer::wait`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Wait {
    timer: Timer,
    /// Its place; none once it is over.
    key: Option<usize>,
}

impl Future for Wait {
    type Output = Expiry;

    /// Cancel-safe: an outcome stays until it is taken. Once it was taken it is [`Expiry::Canceled`].
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Expiry> {
        let Some(key) = self.key else { return Poll::Ready(Expiry::Canceled) };
        let mut state = self.timer.shared().lock();
        let former = match &mut state.waits[key] {
            Waiting::Over(expiry) => {
                let expiry = *expiry;
                state.waits.remove(key);
                drop(state);
                self.key = None;
                return Poll::Ready(expiry);
            }
            Waiting::For(waker) => waker.replace(context.waker().clone()),
        };
        // A destructor of foreign code, so not under the lock.
        drop(state);
        drop(former);
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let waiting = self.timer.shared().lock().waits.remove(key);
        drop(waiting);
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("over", &self.key.is_none()).finish_non_exhaustive()
    }
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it another setting, or none, and cancels the waits for the one before; how many those were.
    fn change(&self, setting: Option<Setting>) -> usize {
        let mut state = self.lock();
        state.canceled += u64::from(state.setting.is_some() && !state.expired);
        (state.setting, state.expired, state.changed) = (setting, false, true);
        let (count, wakers) = state.tell(Expiry::Canceled);
        let task = state.task.take();
        drop(state);
        wakers.into_iter().chain(task).for_each(Waker::wake);
        count
    }

    fn call(&self, timer: &Timer, expiry: Expiry) {
        let place = || self.callback.lock().unwrap_or_else(PoisonError::into_inner);
        // The task alone takes it, so nobody finds the place empty.
        let taken = place().take();
        if let Some(mut callback) = taken {
            self.service.contain(|| callback(timer, expiry));
            *place() = Some(callback);
        }
    }
}

impl State {
    /// Ends the waits in progress: how many, and who is to be woken.
    fn tell(&mut self, expiry: Expiry) -> (usize, Vec<Waker>) {
        let (mut count, mut wakers) = (0, Vec::new());
        for (_, waiting) in &mut self.waits {
            if let Waiting::For(waker) = waiting {
                wakers.extend(waker.take());
                *waiting = Waiting::Over(expiry);
                count += 1;
            }
        }
        (count, wakers)
    }

    /// What is to be done at this time.
    fn look(&mut self, now: Instant, wall: SystemTime) -> Step {
        self.changed = false;
        let mut step = Step { canceled: std::mem::take(&mut self.canceled), ..Step::default() };
        let Some(setting) = self.setting.as_mut().filter(|_| !self.expired) else { return step };
        if setting.remaining(now, wall).is_zero() {
            step.expired = true;
            self.expired = !setting.advance(now);
            step.wakers = self.tell(Expiry::Expired).1;
        }
        step.next = self.setting.filter(|_| !self.expired).map(|setting| setting.next_look(now, wall));
        step
    }
}

/// What the task has to do.
#[derive(Default)]
struct Step {
    canceled: u64,
    expired: bool,
    wakers: Vec<Waker>,
    /// When to look again, unless something changes.
    next: Option<Instant>,
}

impl Setting {
    /// How long it is to the expiry.
    fn remaining(&self, now: Instant, wall: SystemTime) -> Duration {
        match self {
            Setting::After(at) | Setting::Every { next: at, .. } => at.saturating_duration_since(now),
            Setting::At(at) => at.duration_since(wall).unwrap_or_default(),
        }
    }

    /// Goes on to the next expiry, which is in the future; `false` if there is none.
    fn advance(&mut self, now: Instant) -> bool {
        let Setting::Every { next, period } = self else { return false };
        let behind = now.saturating_duration_since(*next).as_nanos();
        let beats = behind / period.as_nanos() + 1;
        // So many at a time are enough; what is left over is skipped by the next turn.
        *next = far(*next, period.saturating_mul(u32::try_from(beats).unwrap_or(u32::MAX)));
        true
    }

    fn next_look(&self, now: Instant, wall: SystemTime) -> Instant {
        let remaining = self.remaining(now, wall);
        let is_wall = matches!(self, Setting::At(_));
        far(now, if is_wall { remaining.min(WALL_LOOK) } else { remaining })
    }
}

/// The duty of the task: when it ends, in whichever way, the timer has no loop any more.
struct Bound(Arc<Shared>);

impl Drop for Bound {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.is_bound, state.setting, state.expired, state.canceled) = (false, None, false, 0);
        let (_, wakers) = state.tell(Expiry::Canceled);
        let task = state.task.take();
        drop(state);
        wakers.into_iter().chain(task).for_each(Waker::wake);
    }
}

/// The task: tells of what was cancelled and what expires, until the last handle has gone.
async fn run(bound: Bound, handles: Weak<Handles>) {
    let shared = &bound.0;
    let mut sleep: Option<Sleep> = None;
    loop {
        let step = shared.lock().look(now(), wall());
        step.wakers.into_iter().for_each(Waker::wake);
        // Without a handle nobody is to be told.
        let Some(handles) = handles.upgrade() else { return };
        let timer = Timer { handles };
        (0..step.canceled).for_each(|_| shared.call(&timer, Expiry::Canceled));
        if step.expired {
            shared.call(&timer, Expiry::Expired);
        }
        drop(timer);
        if step.expired || step.canceled > 0 {
            // A period may be shorter than a turn, and a callback may set the timer to a time that has passed.
            yield_now().await;
        }
        match (&mut sleep, step.next) {
            (Some(sleep), Some(next)) => sleep.reset(next),
            (_, next) => sleep = next.map(sleep_until),
        }
        poll_fn(|task| shared.poll_change(&mut sleep, task)).await;
    }
}

impl Shared {
    /// Ready when there is something to look at.
    fn poll_change(&self, sleep: &mut Option<Sleep>, task: &mut Context<'_>) -> Poll<()> {
        let former = {
            let mut state = self.lock();
            if state.changed || state.is_over {
                return Poll::Ready(());
            }
            state.task.replace(task.waker().clone())
        };
        drop(former);
        sleep.as_mut().map_or(Poll::Pending, |sleep| Pin::new(sleep).poll(task))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn set(setting: Setting) -> State {
        State { setting: Some(setting), ..State::default() }
    }

    #[test]
    fn an_absolute_expiry_moves_with_the_wall_clock_however_that_is_set() {
        let (begin, wall) = (now(), wall());
        let mut state = set(Setting::At(wall + 100 * SECOND));
        assert_eq!(state.look(begin, wall).next, Some(begin + SECOND));
        // Set back: it takes longer, and the clock is looked at all the time.
        let step = state.look(begin + SECOND, wall - 500 * SECOND);
        assert_eq!((step.expired, step.next), (false, Some(begin + 2 * SECOND)));
        // Set forward, so far that it has passed.
        let step = state.look(begin + 2 * SECOND, wall + 101 * SECOND);
        assert_eq!((step.expired, step.next), (true, None));
        // What has expired stays so.
        let step = state.look(begin + 3 * SECOND, wall);
        assert_eq!((step.expired, step.next), (false, None));
        let mut state = set(Setting::At(wall + SECOND / 4));
        assert_eq!(state.look(begin, wall).next, Some(begin + SECOND / 4), "nearer than the next look");
    }

    #[test]
    fn beats_that_were_missed_are_skipped_and_the_beat_stays() {
        let (begin, wall) = (now(), wall());
        let mut state = set(Setting::Every { next: begin + SECOND, period: SECOND });
        assert!(!state.look(begin, wall).expired);
        let step = state.look(begin + SECOND, wall);
        assert_eq!((step.expired, step.next), (true, Some(begin + 2 * SECOND)));
        let step = state.look(begin + 7 * SECOND / 2, wall);
        assert_eq!((step.expired, step.next), (true, Some(begin + 4 * SECOND)));
        // More beats than can be counted at once: the rest is skipped later.
        let period = Duration::from_nanos(1);
        let mut state = set(Setting::Every { next: begin, period });
        let late = begin + 10 * SECOND;
        let looks = (0..10).take_while(|_| state.look(late, wall).expired).count();
        assert_eq!(looks, 3);
    }
}
