//! A bounded pool of threads for work that may block: file reads, name resolution, what users offload.
//!
//! The handles own the pool, the threads own the queue. A thread is started when a job finds no idle one,
//! and ends after a while without work. When the last handle goes, nobody waits: queued jobs still run, and
//! the thread that finds the queue empty ends.
//!
//! Two rules hold it together. A job is queued only while a thread is alive, and a thread ends only while
//! the queue is empty, both under the one lock; so no accepted job is forgotten. And no foreign code runs
//! under that lock: neither jobs, nor their destructors.
//!
//! The pool must not know what a job does or who waits for it; results travel by what the job captured.
//! Threads are detached, the end of the process ends them wherever they are.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io, mem, thread};

use crate::error::Full;

/// Work for a thread of the pool.
type Job = Box<dyn FnOnce() + Send>;

/// How a thread with this name and body is started; tests refuse here.
type Spawn = fn(String, Job) -> io::Result<()>;

/// A handle to the pool. The pool closes when the last one is dropped.
#[derive(Clone)]
pub(crate) struct BlockingPool {
    /// Shared by all handles, but not by the threads: its drop is the end of the last handle.
    owner: Arc<Owner>,
}

/// What the handles have in common.
struct Owner {
    /// The side of the pool that the threads see, too.
    shared: Arc<Shared>,
}

/// What handles and threads have in common.
struct Shared {
    /// Jobs and counts.
    state: Mutex<State>,
    /// Tells idle threads of a job, or of the end.
    work: Condvar,
    /// How many threads may live at a time.
    threads_max: usize,
    /// How many jobs may wait beyond those a free thread is about to take.
    queue_max: usize,
    /// How long a thread waits for a job before it ends.
    idle: Duration,
    /// How threads are started.
    spawn: Spawn,
}

/// Jobs and counts.
#[derive(Default)]
struct State {
    /// Jobs nobody has taken, oldest first.
    jobs: VecDeque<Job>,
    /// Threads that live.
    threads: usize,
    /// Those of them that look at the queue next: idle ones, told of a job or not, and those that start.
    threads_free: usize,
    /// Threads ever started; the next one's number.
    started: u64,
    /// Jobs that panicked.
    panics: u64,
    /// No handle is left.
    closed: bool,
}

impl BlockingPool {
    /// A pool without threads. With a `threads_max` of zero it refuses every job.
    pub(crate) fn new(threads_max: usize, queue_max: usize, idle: Duration) -> BlockingPool {
        BlockingPool::with_spawn(threads_max, queue_max, idle, spawn_thread)
    }

    /// A pool that starts its threads this way.
    fn with_spawn(threads_max: usize, queue_max: usize, idle: Duration, spawn: Spawn) -> BlockingPool {
        let (state, work) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, work, threads_max, queue_max, idle, spawn });
        BlockingPool { owner: Arc::new(Owner { shared }) }
    }

    /// Runs a job on a thread of the pool, after those queued before it.
    ///
    /// Refused, and given back, if all threads are busy and the queue is full, or if there is no thread and
    /// none can be started. Never waits for a job; at most it starts a thread.
    pub(crate) fn run(&self, job: Job) -> Result<(), Full<Job>> {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if state.jobs.len() >= state.threads_free && state.threads < shared.threads_max {
            shared.start_thread(&mut state);
        }
        if state.threads == 0 || state.jobs.len() >= state.threads_free.saturating_add(shared.queue_max) {
            return Err(Full(job));
        }
        state.jobs.push_back(job);
        drop(state);
        shared.work.notify_one();
        Ok(())
    }

    /// How many threads live.
    #[cfg(test)]
    pub(crate) fn threads(&self) -> usize {
        self.owner.shared.lock().threads
    }

    /// How many jobs no thread has taken yet.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.owner.shared.lock().jobs.len()
    }

    /// How many jobs panicked.
    #[cfg(test)]
    pub(crate) fn panics(&self) -> u64 {
        self.owner.shared.lock().panics
    }
}

impl fmt::Debug for BlockingPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.owner.shared.lock();
        f.debug_struct("BlockingPool")
            .field("threads", &state.threads)
            .field("queued", &state.jobs.len())
            .field("panics", &state.panics)
            .finish_non_exhaustive()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    /// The state. Poison would mean nothing: no foreign code runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread if the system lets us; it counts as free from here on.
    ///
    /// The lock is held meanwhile, so that no other caller queues a job for a thread that then fails to
    /// start. That is long for a lock, but threads start seldom.
    fn start_thread(self: &Arc<Shared>, state: &mut State) {
        let name = format!("anabranch-blocking-{}", state.started);
        let shared = Arc::clone(self);
        if (self.spawn)(name, Box::new(move || shared.work_off())).is_ok() {
            state.started += 1;
            state.threads += 1;
            state.threads_free += 1;
        }
    }

    /// The life of a thread.
    fn work_off(&self) {
        let mut state = self.lock();
        loop {
            state.threads_free -= 1;
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                let panicked = contain(job);
                state = self.lock();
                state.panics += u64::from(panicked);
            }
            if state.closed {
                break;
            }
            state.threads_free += 1;
            state = self.wait(state);
            if state.jobs.is_empty() {
                // Time is up, or the pool closed.
                state.threads_free -= 1;
                break;
            }
        }
        state.threads -= 1;
    }

    /// Sleeps until there is a job, the pool is closed, or the idle time is up.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let nothing_to_do = |state: &mut State| state.jobs.is_empty() && !state.closed;
        let woken = self.work.wait_timeout_while(state, self.idle, nothing_to_do);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Starts a detached thread.
fn spawn_thread(name: String, body: Job) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(body).map(drop)
}

/// Runs a job; true if it panicked.
fn contain(job: Job) -> bool {
    const DROPS_MAX: usize = 3;
    let Err(mut payload) = catch_unwind(AssertUnwindSafe(job)) else { return false };
    // The payload is foreign, too: its drop may panic and bring another. What never ends is leaked.
    for _ in 0..DROPS_MAX {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return true,
            Err(another) => payload = another,
        }
    }
    mem::forget(payload);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Runs a job that the pool has to accept.
    fn accept(pool: &BlockingPool, job: impl FnOnce() + Send + 'static) {
        assert!(pool.run(Box::new(job)).is_ok(), "refused with {pool:?}");
    }

    /// Keeps one thread busy until the sender is used or dropped; returns when the thread has begun.
    fn occupy(pool: &BlockingPool) -> Sender<()> {
        let (release, released) = channel::<()>();
        let (begin, begun) = channel();
        accept(pool, move || {
            begin.send(()).expect("the test waits for it");
            let _ = released.recv();
        });
        get(&begun);
        release
    }

    /// What a job sends, or a failed test.
    fn get<T>(receiver: &Receiver<T>) -> T {
        receiver.recv_timeout(LONG).expect("the job runs")
    }

    /// Waits until a condition holds.
    fn until(condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < LONG, "the condition never held");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn threads_start_on_demand_are_named_and_are_used_again() {
        let pool = BlockingPool::new(4, 4, LONG);
        assert_eq!(pool.threads(), 0);
        let (send, names) = channel();
        for _ in 0..3 {
            let send = send.clone();
            accept(&pool, move || {
                send.send(thread::current().name().map(String::from)).expect("the test waits")
            });
            assert_eq!(get(&names).as_deref(), Some("anabranch-blocking-0"));
            until(|| pool.owner.shared.lock().threads_free == 1);
            assert_eq!(pool.threads(), 1);
        }
        let _first = occupy(&pool);
        let _second = occupy(&pool);
        assert_eq!(pool.threads(), 2);
    }

    #[test]
    fn beyond_the_most_threads_jobs_queue_and_beyond_the_queue_they_are_given_back() {
        let pool = BlockingPool::new(2, 3, LONG);
        let busy = [occupy(&pool), occupy(&pool)];
        let (send, numbers) = channel();
        for number in 0..3 {
            let send = send.clone();
            accept(&pool, move || send.send(number).expect("the test waits"));
        }
        assert_eq!((pool.threads(), pool.queued()), (2, 3));
        let Err(Full(refused)) = pool.run(Box::new(move || send.send(3).expect("the test waits"))) else {
            panic!("a fourth job was queued");
        };
        assert_eq!((pool.threads(), pool.queued()), (2, 3));
        drop(busy);
        let mut ran = [get(&numbers), get(&numbers), get(&numbers)];
        ran.sort_unstable();
        assert_eq!(ran, [0, 1, 2]);
        refused();
        assert_eq!(get(&numbers), 3);
        assert_eq!(pool.queued(), 0);
    }

    #[test]
    fn one_thread_runs_jobs_in_the_order_they_came() {
        let pool = BlockingPool::new(1, 100, LONG);
        let busy = occupy(&pool);
        let (send, numbers) = channel();
        for number in 0..100 {
            let send = send.clone();
            accept(&pool, move || send.send(number).expect("the test waits"));
        }
        drop((busy, send));
        assert!(numbers.iter().eq(0..100));
    }

    #[test]
    fn without_a_queue_a_job_needs_a_free_thread() {
        let pool = BlockingPool::new(1, 0, LONG);
        let busy = occupy(&pool);
        assert!(pool.run(Box::new(|| {})).is_err());
        drop(busy);
        until(|| pool.owner.shared.lock().threads_free == 1);
        drop(occupy(&pool));
    }

    #[test]
    fn a_thread_ends_when_it_was_idle_for_long_enough_and_another_starts_later() {
        let idle = Duration::from_millis(20);
        let pool = BlockingPool::new(3, 3, idle);
        let busy = [occupy(&pool), occupy(&pool)];
        assert_eq!(pool.threads(), 2);
        let begin = Instant::now();
        drop(busy);
        until(|| pool.threads() == 0);
        assert!(begin.elapsed() >= idle);
        assert_eq!(pool.owner.shared.lock().threads_free, 0);
        let _busy = occupy(&pool);
        assert_eq!(pool.threads(), 1);
    }

    #[test]
    fn a_panicking_job_is_contained_and_counted_and_its_thread_goes_on() {
        /// A payload that makes things worse.
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("the payload panics, too");
            }
        }
        let pool = BlockingPool::new(1, 10, LONG);
        let (send, names) = channel();
        accept(&pool, || panic!("on purpose"));
        accept(&pool, || panic_any(Bomb));
        accept(&pool, move || send.send(thread::current().name().map(String::from)).expect("the test waits"));
        assert_eq!(get(&names).as_deref(), Some("anabranch-blocking-0"));
        assert_eq!((pool.panics(), pool.threads()), (2, 1));
    }

    #[test]
    fn dropping_the_last_handle_does_not_block_and_queued_jobs_still_run_before_the_threads_end() {
        let pool = BlockingPool::new(2, 10, LONG);
        let shared = Arc::clone(&pool.owner.shared);
        let (other, busy) = (pool.clone(), [occupy(&pool), occupy(&pool)]);
        let (send, numbers) = channel();
        for number in 0..10 {
            let send = send.clone();
            accept(&pool, move || send.send(number).expect("the test waits"));
        }
        drop((pool, send));
        assert!(!shared.lock().closed, "one handle is left");
        // Would this wait for the jobs, it would wait forever: they are behind the busy threads.
        drop(other);
        assert!(shared.lock().closed);
        assert_eq!(shared.lock().jobs.len(), 10);
        drop(busy);
        assert_eq!(numbers.iter().sum::<i32>(), 45);
        until(|| shared.lock().threads == 0);
        assert_eq!(shared.lock().jobs.len(), 0);
    }

    #[test]
    fn dropping_the_last_handle_ends_idle_threads_at_once() {
        let pool = BlockingPool::new(2, 2, Duration::MAX);
        let shared = Arc::clone(&pool.owner.shared);
        drop([occupy(&pool), occupy(&pool)]);
        until(|| shared.lock().threads_free == 2);
        drop(pool);
        until(|| shared.lock().threads == 0);
    }

    #[test]
    fn a_job_may_drop_the_last_handle() {
        let pool = BlockingPool::new(1, 2, LONG);
        let shared = Arc::clone(&pool.owner.shared);
        let busy = occupy(&pool);
        let last = pool.clone();
        accept(&pool, move || drop(last));
        drop(pool);
        drop(busy);
        until(|| shared.lock().threads == 0);
        assert_eq!(shared.lock().panics, 0);
    }

    #[test]
    fn a_job_is_given_back_if_no_thread_runs_and_none_can_be_started() {
        let pool = BlockingPool::with_spawn(2, 2, LONG, |_, _| Err(io::ErrorKind::WouldBlock.into()));
        let (send, numbers) = channel();
        let Err(Full(job)) = pool.run(Box::new(move || send.send(7).expect("the test waits"))) else {
            panic!("nobody could run it");
        };
        assert_eq!((pool.threads(), pool.queued()), (0, 0));
        job();
        assert_eq!(get(&numbers), 7);
        assert!(BlockingPool::new(0, 2, LONG).run(Box::new(|| {})).is_err());
    }

    #[test]
    fn a_job_is_queued_if_a_thread_runs_though_no_other_can_be_started() {
        let pool = BlockingPool::with_spawn(2, 1, LONG, |name, body| match name.ends_with("-0") {
            true => spawn_thread(name, body),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        let busy = occupy(&pool);
        let (send, numbers) = channel();
        accept(&pool, move || send.send(7).expect("the test waits"));
        assert!(pool.run(Box::new(|| {})).is_err());
        assert_eq!((pool.threads(), pool.queued()), (1, 1));
        drop(busy);
        assert_eq!(get(&numbers), 7);
    }

    #[test]
    fn many_callers_at_once_lose_no_job_and_stay_within_the_bounds() {
        let pool = BlockingPool::new(3, 5, Duration::from_micros(200));
        let (send, numbers) = channel();
        let callers = (0..4).map(|_| {
            let (pool, send) = (pool.clone(), send.clone());
            thread::spawn(move || {
                let mut accepted = 0;
                for number in 0..2000 {
                    let send = send.clone();
                    let job = Box::new(move || send.send(number).expect("the test waits"));
                    accepted += usize::from(pool.run(job).is_ok());
                    assert!(pool.threads() <= 3 && pool.queued() <= 8);
                }
                accepted
            })
        });
        let callers: Vec<_> = callers.collect();
        let accepted: usize = callers.into_iter().map(|caller| caller.join().expect("no panic")).sum();
        drop((pool, send));
        assert_eq!(numbers.iter().count(), accepted);
    }

    #[test]
    fn handles_may_be_sent_and_shared() {
        fn is_send_and_sync<T: Send + Sync + Clone>() {}
        is_send_and_sync::<BlockingPool>();
    }
}
