//! [`Service`]: loops on threads of their own that are started, given work from any thread, and stopped.
//!
//! A service owns a group of shards, one thread each, and what a program wants to do about their life: the callbacks of a
//! [`ServiceHandler`]. Objects that live on a service ([`Timer`](super::Timer) is one) hold a [`ServiceHandle`], which
//! names whatever shards the service has at the moment; so they are of use again after a restart.
//!
//! Work is foreign code. What it returns or how it panics is told to the handler and goes no further; the loop runs on.
#![forbid(unsafe_code)]

use crate::api::task::{current, yield_now};
use crate::config::Config;
use crate::shard::{Context, PanicPolicy, Pinning, Remote, Runtime, Undelivered};
use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::task::Poll;
use std::thread;

/// Work on its way to a loop, as it comes back where it is refused. It can be posted again, or simply be called: what it
/// returns or how it panics is told to the handler of its service all the same.
pub type Job = Box<dyn FnOnce() + Send>;

/// What a program does about the life of its service. Each method has a default that does nothing.
///
/// A callback that panics is told to [`on_error`](Self::on_error), and everything goes on.
pub trait ServiceHandler: Send + Sync + 'static {
    /// On each thread, before its loop begins: for affinity, priority, or what a foreign library keeps for a thread.
    fn on_thread_start(&self, thread: usize) {
        let _ = thread;
    }

    /// On each thread, after its loop has ended.
    fn on_thread_stop(&self, thread: usize) {
        let _ = thread;
    }

    /// On the first loop, before [`Service::start`] returns.
    fn on_started(&self) {}

    /// On the first loop, when the service stops. It takes no more work then, and what was posted and has not run will
    /// not run.
    fn on_stopped(&self) {}

    /// On each loop of a service that polls, once in every turn of it. The default gives the rest of the thread's time
    /// slice away.
    fn on_idle(&self, thread: usize) {
        let _ = thread;
        thread::yield_now();
    }

    /// On the thread where it happened. A panic of this callback itself is dropped.
    fn on_error(&self, error: ServiceError) {
        let _ = error;
    }
}

impl ServiceHandler for () {}

/// What went wrong on a service.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServiceError {
    /// Work returned this error, or a loop ended with it.
    Failed(Box<dyn Error + Send + Sync>),
    /// Work or a callback panicked with this text.
    Panicked(String),
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceError::Failed(error) => error.fmt(f),
            ServiceError::Panicked(text) => write!(f, "panicked: {text}"),
        }
    }
}

impl Error for ServiceError {}

/// What work may return: nothing, or a `Result` whose error is told to the handler.
pub trait WorkOutput {
    /// The error, if it is one.
    ///
    /// # Errors
    ///
    /// Whatever the work failed with.
    fn into_result(self) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl WorkOutput for () {
    fn into_result(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> WorkOutput for Result<(), E> {
    fn into_result(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.map_err(Into::into)
    }
}

/// How a [`Service`] is set up.
pub struct ServiceBuilder {
    threads: usize,
    polling: bool,
    name: String,
    config: Config,
    pinning: Pinning,
    handler: Arc<dyn ServiceHandler>,
}

impl ServiceBuilder {
    /// How many threads, each with a loop of its own; 1 unless it is said here. For loops that the program runs itself see
    /// [`on_current`](Self::on_current).
    pub fn threads(mut self, threads: usize) -> ServiceBuilder {
        self.threads = threads;
        self
    }

    /// Whether the loops never sleep: they run what is ready, call [`ServiceHandler::on_idle`], and look again. So each
    /// keeps a whole processor busy, and in every turn asks the system whether anything came (a look at shared memory on
    /// io_uring, a call elsewhere); what arrives is noticed without a wake-up in return. Off by default.
    pub fn polling(mut self, polling: bool) -> ServiceBuilder {
        self.polling = polling;
        self
    }

    /// The threads are called `name-0`, `name-1` and so on; the default is `service`.
    pub fn name(mut self, name: impl Into<String>) -> ServiceBuilder {
        self.name = name.into();
        self
    }

    /// The configuration of each shard. [`Limits::mailbox_max`](crate::Limits) bounds the work that waits for one.
    pub fn config(mut self, config: Config) -> ServiceBuilder {
        self.config = config;
        self
    }

    /// Which processors the threads run on.
    pub fn pinning(mut self, pinning: Pinning) -> ServiceBuilder {
        self.pinning = pinning;
        self
    }

    /// What is called in the course of its life.
    pub fn handler(mut self, handler: impl ServiceHandler) -> ServiceBuilder {
        self.handler = Arc::new(handler);
        self
    }

    /// Makes it; nothing runs yet.
    pub fn build(self) -> Service {
        let handle = self.handle(Vec::new());
        Service { settings: self, handle, runtime: Mutex::default() }
    }

    /// The shard that runs on this thread, as a service without threads of its own: for a loop that the program runs
    /// itself. It takes work until that shard ends. Of the handler only [`on_error`](ServiceHandler::on_error) is called.
    ///
    /// # Errors
    ///
    /// If no shard runs on this thread.
    pub fn on_current(mut self) -> io::Result<ServiceHandle> {
        (self.threads, self.polling) = (0, false);
        Ok(self.handle(vec![current()?]))
    }

    fn handle(&self, remotes: Vec<Remote>) -> ServiceHandle {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let shared = Shared {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            threads: self.threads,
            polling: self.polling,
            handler: Arc::clone(&self.handler),
            remotes: RwLock::new(remotes),
            turn: AtomicUsize::new(0),
        };
        ServiceHandle { shared: Arc::new(shared) }
    }
}

impl fmt::Debug for ServiceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("ServiceBuilder");
        fields.field("threads", &self.threads).field("polling", &self.polling).finish_non_exhaustive()
    }
}

/// Loops on threads of their own. The calls that need not own it are those of [`ServiceHandle`].
///
/// Dropping it stops it.
///
/// ```
/// use anabranch::component::Service;
///
/// let service = Service::builder().threads(2).build();
/// service.start()?;
/// let (sender, received) = std::sync::mpsc::channel();
/// service.post(move || sender.send("from a loop"))?;
/// assert_eq!(received.recv().unwrap(), "from a loop");
/// assert!(service.stop()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Service {
    settings: ServiceBuilder,
    handle: ServiceHandle,
    /// Locked while it starts or stops.
    runtime: Mutex<Option<Runtime>>,
}

thread_local! {
    /// The service that this thread is one of; ids begin at 1.
    static OWNER: Cell<u64> = const { Cell::new(0) };
}

impl Service {
    /// Settings to begin with: one thread, which sleeps when there is nothing to do.
    pub fn builder() -> ServiceBuilder {
        ServiceBuilder {
            threads: 1,
            polling: false,
            name: "service".to_owned(),
            config: Config::new(),
            pinning: Pinning::default(),
            handler: Arc::new(()),
        }
    }

    /// Starts its threads. Returns when all loops run, and [`ServiceHandler::on_thread_start`] has run on each thread and
    /// [`on_started`](ServiceHandler::on_started) on the first.
    ///
    /// # Errors
    ///
    /// Of kind `AlreadyExists` if it is started, `Deadlock` on one of its own threads, `InvalidInput` if it has no
    /// threads; or if a shard cannot be set up.
    pub fn start(&self) -> io::Result<()> {
        self.refuse_on_own_thread()?;
        self.launch(&mut lock(&self.runtime))
    }

    /// Stops it: the loops end, and with them the tasks on them. Work that was posted and has not run is dropped;
    /// connections get up to [`Limits::drain_ms`](crate::Limits) to send what they have queued. Returns when all threads
    /// have ended; `false` if it was not started.
    ///
    /// # Errors
    ///
    /// Of kind `Deadlock` on one of its own threads, which cannot wait for itself.
    pub fn stop(&self) -> io::Result<bool> {
        self.refuse_on_own_thread()?;
        Ok(self.halt(&mut lock(&self.runtime)))
    }

    /// Stops it, if it is started, and starts it with the same settings. Handles of the service then name the new loops.
    /// What lived on the old ones has ended; what holds a handle, such as a timer, finds its place on the new ones.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start) and [`stop`](Self::stop).
    pub fn restart(&self) -> io::Result<()> {
        self.refuse_on_own_thread()?;
        let mut runtime = lock(&self.runtime);
        self.halt(&mut runtime);
        self.launch(&mut runtime)
    }

    /// The calls, for objects that live on the service and for other threads. Clones name the same service, and do not
    /// keep it running.
    pub fn handle(&self) -> &ServiceHandle {
        &self.handle
    }

    fn refuse_on_own_thread(&self) -> io::Result<()> {
        if self.is_own_thread() {
            let text = "a thread of a service cannot start or stop it; leave that to another one";
            return Err(io::Error::new(io::ErrorKind::Deadlock, text));
        }
        Ok(())
    }

    fn is_own_thread(&self) -> bool {
        OWNER.try_with(Cell::get) == Ok(self.handle.shared.id)
    }

    fn launch(&self, runtime: &mut Option<Runtime>) -> io::Result<()> {
        if runtime.is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the service is started already"));
        }
        let shared = || Arc::clone(&self.handle.shared);
        let (at_start, at_stop, in_loop) = (shared(), shared(), shared());
        let (starting, started) = mpsc::channel();
        let settings = &self.settings;
        let group = Runtime::builder()
            .shards(settings.threads)
            .name(&*settings.name)
            .config(settings.config.clone())
            .pinning(settings.pinning.clone())
            .panic_policy(PanicPolicy::StopShard)
            .on_start(move |thread| {
                OWNER.set(at_start.id);
                at_start.contain(|| at_start.handler.on_thread_start(thread));
            })
            .on_stop(move |thread| at_stop.contain(|| at_stop.handler.on_thread_stop(thread)))
            .start(move |context| run_loop(Arc::clone(&in_loop), context, starting.clone()))?;
        *runtime = Some(group);
        // Each loop answers before it does anything else.
        let begun = started.iter().take(settings.threads).count();
        debug_assert_eq!(begun, settings.threads);
        Ok(())
    }

    fn halt(&self, runtime: &mut Option<Runtime>) -> bool {
        let Some(group) = runtime.take() else { return false };
        group.stop();
        for end in group.join() {
            if let Err(error) = end.result {
                self.handle.shared.tell(ServiceError::Failed(error.into()));
            }
        }
        true
    }
}

impl Deref for Service {
    type Target = ServiceHandle;

    fn deref(&self) -> &ServiceHandle {
        &self.handle
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let mut runtime = lock(&self.runtime).take();
        if !self.is_own_thread() {
            self.halt(&mut runtime);
        } else if let Some(group) = runtime {
            // It cannot wait for itself; the threads end by themselves.
            group.stop();
            std::mem::forget(group);
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

/// What runs on each loop of a service.
async fn run_loop(shared: Arc<Shared>, context: Context, started: mpsc::Sender<()>) -> io::Result<()> {
    let thread = context.index();
    let _end = (thread == 0).then(|| {
        shared.begin(&context);
        Ended(&shared)
    });
    if thread == 0 {
        shared.contain(|| shared.handler.on_started());
    }
    let _ = started.send(());
    if !shared.polling {
        context.stopped().await;
        return Ok(());
    }
    let mut stopped = pin!(context.stopped());
    while poll_fn(|task| Poll::Ready(stopped.as_mut().poll(task).is_pending())).await {
        shared.contain(|| shared.handler.on_idle(thread));
        yield_now().await;
    }
    Ok(())
}

/// The end of the first loop, in whichever way it comes: what stops a group drops the main future where it stands.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.end();
        self.0.contain(|| self.0.handler.on_stopped());
    }
}

/// The calls of a service, for any thread and for work on its loops. Clones name the same service.
///
/// It names the loops that the service has at the moment: none before it is started and after it has stopped.
#[derive(Clone)]
pub struct ServiceHandle {
    shared: Arc<Shared>,
}

/// What the threads of a service and its handles share.
struct Shared {
    /// Tells services apart.
    id: u64,
    threads: usize,
    polling: bool,
    handler: Arc<dyn ServiceHandler>,
    /// The loops; none unless it is started.
    remotes: RwLock<Vec<Remote>>,
    /// Counts the objects that were given a loop.
    turn: AtomicUsize,
}

impl ServiceHandle {
    /// Whether it takes work.
    pub fn is_started(&self) -> bool {
        !self.shared.remotes().is_empty()
    }

    /// Whether its loops never sleep.
    pub fn is_polling(&self) -> bool {
        self.shared.polling
    }

    /// How many threads it has, or will have; 0 for a loop that the program runs itself.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Queues work for the first loop, behind what is queued there.
    ///
    /// # Errors
    ///
    /// Gives the work back if [`Limits::mailbox_max`](crate::Limits) messages wait there already, or if the service is not
    /// started.
    pub fn post<R: WorkOutput>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<(), Undelivered<Job>> {
        let shared = Arc::clone(&self.shared);
        let job: Job = Box::new(move || shared.contain(work));
        match self.remote(0) {
            Some(first) => first.run(job),
            None => Err(Undelivered::Ended(job)),
        }
    }

    /// Runs work at once if this is the thread of the first loop, nested in whatever runs there; else queues it as
    /// [`post`](Self::post) does.
    ///
    /// So from inside of work on the first loop a `dispatch` has run when it returns, and a `post` runs after all that is
    /// queued already.
    ///
    /// # Errors
    ///
    /// As for [`post`](Self::post).
    pub fn dispatch<R: WorkOutput>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<(), Undelivered<Job>> {
        let first = self.remote(0).map(|first| first.id());
        if first.is_some() && first == current().ok().map(|here| here.id()) {
            self.shared.contain(work);
            return Ok(());
        }
        self.post(work)
    }

    /// The loop for the next object, by turns: the second one first, if there are several, since the first one has the
    /// posted work. None unless it is started.
    pub fn next_shard(&self) -> Option<Remote> {
        let remotes = self.shared.remotes();
        if remotes.is_empty() {
            return None;
        }
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        remotes.get(turn % remotes.len()).cloned()
    }

    /// Its loops; none unless it is started.
    pub fn remotes(&self) -> Vec<Remote> {
        self.shared.remotes().clone()
    }

    /// The loop with this index.
    pub fn remote(&self, index: usize) -> Option<Remote> {
        self.shared.remotes().get(index).cloned()
    }

    /// Runs foreign code on a thread of the service; what becomes of it is told to the handler.
    pub(super) fn contain<R: WorkOutput>(&self, work: impl FnOnce() -> R) {
        self.shared.contain(work);
    }
}

impl fmt::Debug for ServiceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("threads", &self.threads())
            .field("polling", &self.is_polling())
            .field("started", &self.is_started())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn remotes(&self) -> RwLockReadGuard<'_, Vec<Remote>> {
        self.remotes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_remotes(&self, remotes: Vec<Remote>) {
        *self.remotes.write().unwrap_or_else(PoisonError::into_inner) = remotes;
    }

    /// The first loop runs, and the others are set up.
    fn begin(&self, context: &Context) {
        self.turn.store(0, Ordering::Relaxed);
        self.set_remotes((0..context.shards()).map(|index| context.remote(index)).collect());
    }

    fn end(&self) {
        self.set_remotes(Vec::new());
    }

    /// Runs foreign code; what becomes of it is told.
    fn contain<R: WorkOutput>(&self, work: impl FnOnce() -> R) {
        match catch_unwind(AssertUnwindSafe(|| work().into_result())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.tell(ServiceError::Failed(error)),
            Err(panic) => {
                let text = text_of(&*panic);
                quietly(|| drop(panic));
                self.tell(ServiceError::Panicked(text));
            }
        }
    }

    fn tell(&self, error: ServiceError) {
        quietly(|| self.handler.on_error(error));
    }
}

/// Runs foreign code whose panic nobody wants to hear of.
fn quietly(work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        // Its destructor has had its chance; one that panics brings the next.
        std::mem::forget(panic);
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no text)".to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
