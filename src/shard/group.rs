//! Several shards at once: spawning and pinning threads, stopping, and what to do about panics.
#![forbid(unsafe_code)]

use super::pinning::Pinning;
use super::remote::Remote;
use super::share::{Distribution, Group};
use super::{Core, Shard};
use crate::config::{Config, Spin};
use crate::counters::Counters;
use crate::driver::Descriptor;
use crate::driver::sys::blocking::BlockingPool;
use crate::driver::sys::{self, cpus};
use crate::report::BackendReport;
use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

/// What happens when a shard's main future panics. A panic in a task is always contained: it reaches whoever
/// joins the task and is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum PanicPolicy {
    /// All shards stop, and [`Runtime::join`] reports the panic.
    #[default]
    StopAll,
    /// That shard ends; the others go on.
    StopShard,
    /// That shard ends and a new one takes its place, on the same thread with the same index.
    Restart,
}

/// Descriptors for which a group makes room at its start; the table takes 8 bytes for each.
const DESCRIPTORS_RESERVED_MAX: usize = 65_536;

type Hook = Arc<dyn Fn(usize) + Send + Sync>;

/// Settings of a group of shards, each on a thread of its own.
#[derive(Clone, Default)]
pub struct Builder {
    shards: Option<usize>,
    pinning: Pinning,
    name: Option<String>,
    config: Config,
    panic_policy: PanicPolicy,
    on_start: Option<Hook>,
    on_stop: Option<Hook>,
}

impl Builder {
    /// How many shards. The default is one per processor that this process may use, less where a cgroup quota
    /// allows less.
    pub fn shards(mut self, shards: usize) -> Builder {
        self.shards = Some(shards);
        self
    }

    /// Which processors the threads run on.
    pub fn pinning(mut self, pinning: Pinning) -> Builder {
        self.pinning = pinning;
        self
    }

    /// The threads are called `name-0`, `name-1` and so on; the default is `anabranch`.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = Some(name.into());
        self
    }

    /// The configuration of each shard.
    pub fn config(mut self, config: Config) -> Builder {
        self.config = config;
        self
    }

    /// What a panic of a main future does.
    pub fn panic_policy(mut self, policy: PanicPolicy) -> Builder {
        self.panic_policy = policy;
        self
    }

    /// Called on each shard's thread, with its index, before its main future starts.
    pub fn on_start(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Builder {
        self.on_start = Some(Arc::new(hook));
        self
    }

    /// Called on each shard's thread, with its index, after its shard has ended.
    pub fn on_stop(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Builder {
        self.on_stop = Some(Arc::new(hook));
        self
    }

    /// Starts the shards and runs `main` on each; blocks until all have ended.
    ///
    /// # Errors
    ///
    /// If a shard cannot be set up, or the first error or panic that a main future ended with.
    pub fn run<M, F>(self, main: M) -> io::Result<()>
    where
        M: Fn(Context) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<()>> + 'static,
    {
        self.start(main)?.join().into_iter().try_for_each(|end| end.result)
    }

    /// Starts the shards, runs `main` on each, and returns once all are set up.
    ///
    /// # Errors
    ///
    /// If a shard cannot be set up; the others are stopped then.
    pub fn start<M, F>(self, main: M) -> io::Result<Runtime>
    where
        M: Fn(Context) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<()>> + 'static,
    {
        let count = self.shards.unwrap_or_else(cpus::default_shards);
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a group needs at least one shard"));
        }
        let limits = &self.config.limits;
        sys::os::reserve_descriptors(limits.endpoints_max.min(DESCRIPTORS_RESERVED_MAX));
        let blocking =
            BlockingPool::new(limits.blocking_threads_max, limits.blocking_queue_max, Duration::from_secs(5));
        let shared = Arc::new(Shared::new(count, blocking));
        let main = Arc::new(main);
        let (ready, started) = mpsc::channel();
        let mut gates = Vec::new();
        let mut runtime = Runtime { shared: Arc::clone(&shared), threads: Vec::new() };
        for index in 0..count {
            let (gate, go) = mpsc::channel();
            gates.push(gate);
            let thread = ShardThread {
                index,
                go,
                builder: self.clone(),
                shared: Arc::clone(&shared),
                ready: ready.clone(),
            };
            let main = Arc::clone(&main);
            let name = format!("{}-{index}", self.name.as_deref().unwrap_or("anabranch"));
            let spawned = thread::Builder::new().name(name).spawn(move || thread.run(&*main));
            match spawned {
                Ok(handle) => runtime.threads.push(handle),
                Err(error) => {
                    drop(gates);
                    return Err(runtime.give_up(error));
                }
            }
        }
        drop(ready);
        for _ in 0..count {
            if let Some(error) = started.recv().ok().and_then(Result::err) {
                // Without its gate a shard that waits there ends.
                drop(gates);
                return Err(runtime.give_up(error));
            }
        }
        for gate in gates {
            // A shard that has gone already needs no gate.
            let _ = gate.send(());
        }
        Ok(runtime)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("shards", &self.shards)
            .field("pinning", &self.pinning)
            .finish_non_exhaustive()
    }
}

/// What the shards of a group share.
struct Shared {
    stopped: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
    remotes: Vec<OnceLock<Mutex<Remote>>>,
    reports: Vec<OnceLock<BackendReport>>,
    listeners: Mutex<Vec<SharedListener>>,
    blocking: BlockingPool,
}

/// An address on which the shards of a group listen.
struct SharedListener {
    asked: SocketAddr,
    bound: SocketAddr,
    group: Arc<Group>,
    /// The socket that was bound first, until a shard that accepts takes it.
    spare: Option<Descriptor>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(count: usize, blocking: BlockingPool) -> Shared {
        Shared {
            stopped: AtomicBool::new(false),
            wakers: Mutex::default(),
            remotes: (0..count).map(|_| OnceLock::new()).collect(),
            reports: (0..count).map(|_| OnceLock::new()).collect(),
            listeners: Mutex::default(),
            blocking,
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let wakers = std::mem::take(&mut *lock(&self.wakers));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the group has stopped; else the waker is woken when it does.
    fn poll_stopped(&self, waker: &Waker) -> Poll<()> {
        if !self.stopped.load(Ordering::SeqCst) {
            let mut wakers = lock(&self.wakers);
            if !wakers.iter().any(|known| known.will_wake(waker)) {
                wakers.push(waker.clone());
            }
            // `stop` sets the flag before it takes the list.
            if !self.stopped.load(Ordering::SeqCst) {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// The main future, dropped when the group stops.
    async fn until_stopped<E>(&self, main: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let mut main = pin!(main);
        poll_fn(|task| {
            if let Poll::Ready(result) = main.as_mut().poll(task) {
                return Poll::Ready(result);
            }
            self.poll_stopped(task.waker()).map(Ok)
        })
        .await
    }

    fn set_remote(&self, index: usize, remote: Remote) {
        let place = self.remotes[index].get_or_init(|| Mutex::new(remote.clone()));
        *lock(place) = remote;
    }
}

/// The thread of one shard, before it runs.
struct ShardThread {
    index: usize,
    builder: Builder,
    shared: Arc<Shared>,
    ready: mpsc::Sender<io::Result<()>>,
    /// Opens when all shards are set up.
    go: mpsc::Receiver<()>,
}

impl ShardThread {
    fn run<M, F>(self, main: &M) -> ShardEnd
    where
        M: Fn(Context) -> F,
        F: Future<Output = io::Result<()>> + 'static,
    {
        let allowed = cpus::allowed();
        let config = self.config(allowed.len());
        self.pin(&allowed);
        let mut waits = true;
        loop {
            let shard = match self.set_up(config.clone()) {
                Ok(shard) => shard,
                Err(error) => {
                    let end = ShardEnd::failed(self.index, io::Error::new(error.kind(), error.to_string()));
                    let _ = self.ready.send(Err(error));
                    return end;
                }
            };
            let _ = self.ready.send(Ok(()));
            if std::mem::take(&mut waits) && self.go.recv().is_err() {
                return ShardEnd::failed(self.index, io::Error::other("another shard could not be set up"));
            }
            let (end, panicked) = self.run_shard(shard, main);
            match (panicked, self.builder.panic_policy) {
                (true, PanicPolicy::Restart) if !self.shared.stopped.load(Ordering::SeqCst) => {}
                (true, PanicPolicy::StopAll) => {
                    self.shared.stop();
                    return end;
                }
                _ => return end,
            }
        }
    }

    /// The configuration of this shard: one that shares a processor with another of the group does not spin unless
    /// asked to.
    fn config(&self, allowed: usize) -> Config {
        let mut config = self.builder.config.clone();
        let crowded = self.builder.pinning.is_crowded(self.index, self.shared.remotes.len(), allowed);
        if crowded && config.spin == Spin::Auto {
            config.spin = Spin::Off;
        }
        config
    }

    fn pin(&self, allowed: &[usize]) {
        let cpu = self.builder.pinning.place(self.index, self.shared.remotes.len(), allowed);
        if let Some(cpu) = cpu {
            // A processor that may not be used is no reason not to serve.
            let _ = cpus::pin_current_thread(cpu);
        }
    }

    fn set_up(&self, config: Config) -> io::Result<Shard> {
        let shard = Shard::with_pool(config, Some(self.shared.blocking.clone()))?;
        self.shared.set_remote(self.index, shard.remote());
        let _ = self.shared.reports[self.index].set(shard.report());
        Ok(shard)
    }

    fn run_shard<M, F>(&self, shard: Shard, main: &M) -> (ShardEnd, bool)
    where
        M: Fn(Context) -> F,
        F: Future<Output = io::Result<()>> + 'static,
    {
        let core = std::rc::Rc::clone(&shard.core);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(hook) = &self.builder.on_start {
                hook(self.index);
            }
            let context = Context { index: self.index, shared: Arc::clone(&self.shared) };
            // Inside of the shard, so that `main` may use it before its future is polled.
            shard.block_on(async { self.shared.until_stopped(main(context)).await })
        }));
        let panicked = outcome.is_err();
        let result = outcome.unwrap_or_else(|panic| Err(io::Error::other(panic_text(&*panic))));
        // The shard's own end may run destructors of tasks that panic.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(shard)));
        let end = ShardEnd { index: self.index, result, counters: Core::counters(&core) };
        if let Some(hook) = &self.builder.on_stop {
            let _ = catch_unwind(AssertUnwindSafe(|| hook(self.index)));
        }
        (end, panicked)
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the shard's main future panicked: {}", text.unwrap_or_else(|| "(no text)".into()))
}

/// How a shard of a group ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct ShardEnd {
    /// Which shard.
    pub index: usize,
    /// What its main future returned; an error also if it panicked or the shard could not be set up.
    pub result: io::Result<()>,
    /// Its last counters.
    pub counters: Counters,
}

impl ShardEnd {
    fn failed(index: usize, error: io::Error) -> ShardEnd {
        ShardEnd { index, result: Err(error), counters: Counters::default() }
    }
}

/// A running group of shards. Dropping it stops them and waits for their end.
pub struct Runtime {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<ShardEnd>>,
}

impl Runtime {
    /// Settings to start with.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shared.remotes.len()
    }

    /// The handle of a shard.
    ///
    /// # Panics
    ///
    /// If there is no shard with this index.
    pub fn remote(&self, index: usize) -> Remote {
        self.shared.remote(index)
    }

    /// Which backend each shard has.
    pub fn reports(&self) -> Vec<BackendReport> {
        self.shared.reports.iter().filter_map(|report| report.get().cloned()).collect()
    }

    /// The address that a shared listener asked for as `asked` is bound to, once a shard has bound it; with
    /// the number of live connections of each shard.
    pub fn shared_listener(&self, asked: SocketAddr) -> Option<(SocketAddr, Vec<usize>)> {
        let listeners = lock(&self.shared.listeners);
        let found = listeners.iter().find(|listener| listener.asked == asked || listener.bound == asked);
        found.map(|listener| (listener.bound, listener.group.live()))
    }

    /// Stops all shards: their main futures are dropped where they stand. Returns at once.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Waits until all shards have ended by themselves or because of [`stop`](Self::stop).
    pub fn join(mut self) -> Vec<ShardEnd> {
        self.join_threads()
    }

    fn join_threads(&mut self) -> Vec<ShardEnd> {
        let threads = std::mem::take(&mut self.threads);
        let joined = threads.into_iter().enumerate().map(|(index, thread)| {
            thread
                .join()
                .unwrap_or_else(|panic| ShardEnd::failed(index, io::Error::other(panic_text(&*panic))))
        });
        joined.collect()
    }

    fn give_up(mut self, error: io::Error) -> io::Error {
        self.shared.stop();
        self.join_threads();
        error
    }
}

impl Shared {
    fn remote(&self, index: usize) -> Remote {
        lock(self.remotes[index].get().expect("all shards are set up")).clone()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.shared.stop();
            self.join_threads();
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("shards", &self.shards()).finish_non_exhaustive()
    }
}

/// A group whose shards are stepped by a simulation.
#[cfg(feature = "sim")]
#[derive(Clone)]
pub(crate) struct SteppedGroup(Arc<Shared>);

#[cfg(feature = "sim")]
impl SteppedGroup {
    pub(crate) fn new(shards: usize) -> SteppedGroup {
        // Blocking work of simulated hosts needs no threads, and none is started before there is work.
        SteppedGroup(Arc::new(Shared::new(shards, BlockingPool::new(0, 0, Duration::ZERO))))
    }

    /// Takes a shard's place, before any main future starts.
    pub(crate) fn join(&self, index: usize, shard: &Shard) -> Context {
        self.0.set_remote(index, shard.remote());
        let _ = self.0.reports[index].set(shard.report());
        Context { index, shared: Arc::clone(&self.0) }
    }

    /// The main future of a shard, dropped when the group stops.
    pub(crate) async fn until_stopped<E>(self, main: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        self.0.until_stopped(main).await
    }
}

/// A shard's place in its group, handed to its main future.
#[derive(Clone)]
pub struct Context {
    index: usize,
    shared: Arc<Shared>,
}

impl Context {
    /// The index of this shard, counted from zero.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shared.remotes.len()
    }

    /// The handle of a shard. All shards of the group are set up before any main future starts.
    ///
    /// # Panics
    ///
    /// If there is no shard with this index.
    pub fn remote(&self, index: usize) -> Remote {
        self.shared.remote(index)
    }

    /// Stops all shards of the group.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Completes when the group stops.
    pub async fn stopped(&self) {
        poll_fn(|task| self.shared.poll_stopped(task.waker())).await;
    }

    /// The group of listeners for an address, which the first shard that asks binds with `bind`; gives the address
    /// that is bound, the group, and the bound socket to the first shard that accepts.
    pub(crate) fn shared_listener(
        &self,
        asked: SocketAddr,
        distribution: Distribution,
        bind: impl FnOnce(SocketAddr) -> io::Result<(SocketAddr, Descriptor)>,
    ) -> io::Result<(SocketAddr, Arc<Group>, Option<Descriptor>)> {
        let mut listeners = lock(&self.shared.listeners);
        let known = listeners.iter().position(|listener| listener.asked == asked);
        let index = match known {
            Some(index) => index,
            None => {
                let (bound, socket) = bind(asked)?;
                let group = Group::new(self.shards(), distribution);
                listeners.push(SharedListener { asked, bound, group, spare: Some(socket) });
                listeners.len() - 1
            }
        };
        let SharedListener { bound, group, spare, .. } = &mut listeners[index];
        let socket = if group.accepts(self.index) { spare.take() } else { None };
        Ok((*bound, Arc::clone(group), socket))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({} of {})", self.index, self.shards())
    }
}
