//! Tasks: spawning, joining, yielding, and the way to other shards.
#![forbid(unsafe_code)]

use crate::config::Config;
use crate::driver::Host;
use crate::shard::{Core, Home, Remote, Shard, Undelivered, spawn as spawn_on_core};
use async_task::{FallibleTask, Task};
use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Makes a shard with the default configuration, runs `future` on it, and ends the shard.
///
/// # Errors
///
/// If the shard cannot be made; see [`Shard::new`].
///
/// # Panics
///
/// If the future panics.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(Shard::new(Config::default())?.block_on(future))
}

/// Starts a task on the current shard.
///
/// # Panics
///
/// If no shard runs on this thread.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let core = Core::current().expect("spawn needs a running shard; call it from inside anabranch::block_on");
    JoinHandle::new(spawn_on_core(&core, future))
}

impl Shard {
    /// Starts a task on this shard. It runs when the shard does.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        JoinHandle::new(spawn_on_core(&self.core, future))
    }
}

/// A random number, for jitter and for spreading load; not for secrets.
///
/// In a simulation it comes from the seed, so that a run can be replayed.
pub fn random() -> u64 {
    let of_shard = Core::with_current(|core| core.map(|core| core.config.host.random()));
    of_shard.unwrap_or_else(|| Host::default().random())
}

/// Lets other ready tasks run first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|task| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The outcome of a task. Dropping it lets the task go on by itself.
pub struct JoinHandle<T> {
    task: Option<FallibleTask<T, Home>>,
}

impl<T> JoinHandle<T> {
    pub(crate) fn new(task: Task<T, Home>) -> JoinHandle<T> {
        JoinHandle { task: Some(task.fallible()) }
    }

    /// Lets the task go on by itself.
    pub fn detach(self) {}

    /// Ends the task: its future is dropped soon, on its shard. Joining it then gives [`JoinError::Aborted`],
    /// unless it has completed already.
    pub fn abort(&mut self) {
        if self.task.as_ref().is_some_and(|task| !task.is_finished()) {
            drop(self.task.take());
        }
    }

    /// Whether the task has completed.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(FallibleTask::is_finished)
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    /// Cancel-safe: the outcome stays with the handle until it is taken.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(task) = &mut self.task else { return Poll::Ready(Err(JoinError::Aborted)) };
        match catch_unwind(AssertUnwindSafe(|| Pin::new(task).poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => {
                self.task = None;
                Poll::Ready(output.ok_or(JoinError::Aborted))
            }
            Err(panic) => {
                self.task = None;
                Poll::Ready(Err(JoinError::Panicked(panic)))
            }
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("finished", &self.is_finished()).finish()
    }
}

/// Why a task gave no output.
#[non_exhaustive]
pub enum JoinError {
    /// It was aborted, or its shard ended.
    Aborted,
    /// It panicked, with this payload.
    Panicked(Box<dyn Any + Send>),
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JoinError::Aborted => "Aborted",
            JoinError::Panicked(_) => "Panicked(..)",
        })
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::Aborted => f.write_str("the task was aborted, or its shard ended"),
            JoinError::Panicked(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                write!(f, "the task panicked: {}", text.as_deref().unwrap_or("(no text)"))
            }
        }
    }
}

impl std::error::Error for JoinError {}

impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> io::Error {
        io::Error::other(error.to_string())
    }
}

impl Remote {
    /// Runs `make` on that shard, spawns the future that it gives there, and hands the output back. The future
    /// need not be `Send`.
    ///
    /// # Errors
    ///
    /// Gives `make` back if the shard's mailbox is full or the shard has ended.
    pub fn spawn_on<M, F>(&self, make: M) -> Result<RemoteHandle<F::Output>, Undelivered<M>>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let outcome: Arc<Outcome<F::Output>> = Arc::default();
        let promise = Promise(Arc::clone(&outcome));
        // The closure stays in reach, so that a refusal can give it back.
        let make = Arc::new(Mutex::new(Some(make)));
        let taken = Arc::clone(&make);
        let sent = self.run(move || {
            let Some(make) = lock(&taken).take() else { return };
            spawn(async move {
                // A task of its own contains what panics, so that it can be told.
                let output = spawn(async { make().await }).await;
                promise.keep(output);
            })
            .detach();
        });
        let back = |full: bool| {
            let make = lock(&make).take().expect("a refused message was not run");
            if full { Undelivered::Full(make) } else { Undelivered::Ended(make) }
        };
        match sent {
            Ok(()) => Ok(RemoteHandle { outcome }),
            Err(Undelivered::Full(_)) => Err(back(true)),
            Err(Undelivered::Ended(_)) => Err(back(false)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the output of work on another thread arrives.
pub(crate) struct Outcome<T>(Mutex<Arrival<T>>);

struct Arrival<T> {
    output: Option<Result<T, JoinError>>,
    waker: Option<Waker>,
}

impl<T> Default for Outcome<T> {
    fn default() -> Outcome<T> {
        Outcome(Mutex::new(Arrival { output: None, waker: None }))
    }
}

impl<T> Outcome<T> {
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Result<T, JoinError>> {
        let mut place = lock(&self.0);
        match place.output.take() {
            Some(output) => Poll::Ready(output),
            None => {
                place.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The duty to deliver an output; dropped without one it says so.
pub(crate) struct Promise<T>(pub(crate) Arc<Outcome<T>>);

impl<T> Promise<T> {
    pub(crate) fn keep(self, output: Result<T, JoinError>) {
        self.deliver(output);
    }

    fn deliver(&self, output: Result<T, JoinError>) {
        let mut place = lock(&self.0.0);
        place.output.get_or_insert(output);
        let waker = place.waker.take();
        drop(place);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        // An output that was kept before stays; without one whoever waits must not wait for ever.
        if Arc::strong_count(&self.0) > 1 {
            self.deliver(Err(JoinError::Aborted));
        }
    }
}

/// The output of a task on another shard. Dropping it lets the task go on by itself. It may be awaited on any
/// shard.
pub struct RemoteHandle<T> {
    outcome: Arc<Outcome<T>>,
}

impl<T> Future for RemoteHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.outcome.poll(context)
    }
}

impl<T> fmt::Debug for RemoteHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RemoteHandle")
    }
}

/// The shard that runs on this thread, as a handle for other threads.
///
/// # Errors
///
/// If none does.
pub fn current() -> io::Result<Remote> {
    let core = Core::required()?;
    Ok(Remote { link: Arc::clone(&core.link) })
}

/// A snapshot of the current shard's counters.
///
/// # Errors
///
/// If no shard runs on this thread.
pub fn counters() -> io::Result<crate::Counters> {
    Ok(Core::required()?.counters())
}

/// Which backend the current shard has, and why.
///
/// # Errors
///
/// If no shard runs on this thread.
pub fn report() -> io::Result<crate::BackendReport> {
    let core: Rc<Core> = Core::required()?;
    Ok(core.with(|state| state.engine.driver.report().clone())?)
}
