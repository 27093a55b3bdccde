//! Calls of operations that may block, on other threads: files, where the system has no better way.
//!
//! The slot owns file and buffer until the call has ended, as it does while a kernel works on them (invariant 1). A call
//! that has begun ends by itself.
#![forbid(unsafe_code)]

use super::Wake;
use super::blocking::BlockingPool;
use crate::config::Limits;
use crate::driver::op::BlockingCall;
use crate::driver::token::Token;
use crate::error::Full;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// Calls that run on other threads, and their results.
pub(crate) struct Elsewhere {
    pool: BlockingPool,
    results: Arc<Mutex<Vec<(Token, i32)>>>,
    /// Calls that found the pool's queue full.
    deferred: VecDeque<(Token, Job)>,
}

impl Elsewhere {
    pub(crate) fn new(limits: &Limits) -> Elsewhere {
        let (threads_max, queue_max) = (limits.blocking_threads_max, limits.blocking_queue_max);
        Elsewhere {
            pool: BlockingPool::new(threads_max, queue_max, Duration::from_secs(5)),
            results: Arc::default(),
            deferred: VecDeque::new(),
        }
    }

    /// Runs a call, and wakes the driver when its result is there.
    pub(crate) fn run(&mut self, token: Token, call: BlockingCall, wake: Wake) {
        let results = Arc::clone(&self.results);
        let job = Box::new(move || {
            let result = call();
            lock(&results).push((token, result));
            wake.wake();
        });
        self.start(token, job);
    }

    fn start(&mut self, token: Token, job: Job) {
        if let Err(Full(job)) = self.pool.run(job) {
            self.deferred.push_back((token, job));
        }
    }

    /// Tries again what found the queue full.
    pub(crate) fn run_deferred(&mut self) {
        for _ in 0..self.deferred.len() {
            let Some((token, job)) = self.deferred.pop_front() else { return };
            self.start(token, job);
        }
    }

    /// Takes back a call that has not begun; whether it had not.
    pub(crate) fn remove_deferred(&mut self, token: Token) -> bool {
        let before = self.deferred.len();
        self.deferred.retain(|(other, _)| *other != token);
        self.deferred.len() != before
    }

    /// The results that have come.
    pub(crate) fn take_results(&mut self) -> Vec<(Token, i32)> {
        std::mem::take(&mut *lock(&self.results))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
