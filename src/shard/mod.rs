//! A shard: one thread's loop over one driver, one wheel, one mailbox and one pool.
//!
//! A turn of the loop: run messages and ready tasks, submit what they left, wait, hand completions to endpoints,
//! expire timers; then, when nothing is borrowed, wake futures, report warnings and drop what users own
//! (invariant 12). The surfaces reach the shard through [`Core`].
#![forbid(unsafe_code)]

mod core;
mod datagram;
mod endpoint;
mod engine;
mod event;
mod executor;
mod fanout;
mod group;
mod list;
mod listener;
mod mailbox;
mod parking;
mod pinning;
mod remote;
mod share;
mod single;
mod spin;
mod state;
#[cfg(feature = "sim")]
mod step;
mod stream;
mod timer;
mod waiter;

pub(crate) use datagram::{Ask, Datagrams, ReadFrom, SendFailure};
pub use endpoint::{Close, EndpointId};
pub(crate) use endpoint::{Common, Kind};
pub(crate) use engine::{Engine, Timer};
pub use event::{Completion, Event};
pub(crate) use executor::{Home, spawn};
pub(crate) use fanout::Members;
pub use fanout::{Delivered, Departed, Departure, Slow};
#[cfg(feature = "sim")]
pub(crate) use group::SteppedGroup;
pub use group::{Builder, Context, PanicPolicy, Runtime, ShardEnd};
pub(crate) use listener::{Accepted, Listener};
pub use pinning::Pinning;
pub use remote::{Remote, Undelivered};
pub use share::Distribution;
pub(crate) use share::{Group, Share};
pub(crate) use state::State;
#[cfg(feature = "sim")]
pub(crate) use step::{Program, Step, Stepper};
pub(crate) use stream::{Paused, Read, Stream};
pub(crate) use timer::TimerId;
pub(crate) use waiter::Waiter;

use crate::config::Config;
use crate::counters::Counters;
use crate::driver::interruption;
use crate::driver::sys::blocking::BlockingPool;
use crate::report::BackendReport;
pub(crate) use core::{Core, Entered};
use remote::Link;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};

/// A shard. It belongs to the thread that made it; other threads reach it through its [`Remote`].
///
/// It makes progress inside [`block_on`](Self::block_on) and [`poll`](Self::poll) only. Dropping it drops its
/// tasks, gives closing connections up to [`Limits::drain_ms`](crate::Limits) to send what they have queued,
/// cancels the rest and waits until the system has given back every operation.
///
/// ```compile_fail
/// fn is_send<T: Send>() {}
/// is_send::<anabranch::Shard>();
/// ```
#[derive(Debug)]
pub struct Shard {
    pub(crate) core: Rc<Core>,
}

impl Shard {
    /// Makes a shard on this thread.
    ///
    /// # Errors
    ///
    /// See [`Driver::new`](crate::driver::Driver::new).
    pub fn new(config: Config) -> io::Result<Shard> {
        Shard::with_pool(config, None)
    }

    pub(crate) fn with_pool(config: Config, blocking: Option<BlockingPool>) -> io::Result<Shard> {
        Ok(Shard { core: Core::new(config, blocking)? })
    }

    /// Which backend this shard has, and why.
    pub fn report(&self) -> BackendReport {
        self.core.with(|state| state.engine.driver.report().clone()).expect("the shard lives")
    }

    /// A snapshot of the counters.
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        Remote { link: Arc::clone(&self.core.link) }
    }

    /// Its node in a simulated world.
    #[cfg(feature = "sim")]
    pub(crate) fn node(&self) -> Option<crate::driver::sys::sim::NodeId> {
        self.core.with(|state| state.engine.driver.node()).ok().flatten()
    }

    /// Ends the shard, as dropping it does, and gives its last counters.
    pub fn finish(self) -> Counters {
        let core = Rc::clone(&self.core);
        drop(self);
        core.counters()
    }

    /// Runs `future` on this shard until it completes; tasks that it spawned stay, and go on when the shard runs
    /// again.
    ///
    /// # Panics
    ///
    /// If the future panics, or if the system refuses to wait for completions at all.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = Entered::enter(&self.core);
        let flag = MainWaker::new(&self.core.link);
        let waker = Waker::from(Arc::clone(&flag));
        let mut future = pin!(future);
        loop {
            if flag.woken.swap(false, Ordering::AcqRel) {
                if let Poll::Ready(output) = future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
                    return output;
                }
            }
            self.core.run_ready();
            if let Err(error) = self.core.turn(None, Some(&flag.woken)) {
                panic!("the shard cannot wait for completions: {error}");
            }
        }
    }
}

/// Wakes the future that `block_on` runs.
struct MainWaker {
    woken: AtomicBool,
    link: Arc<Link>,
}

impl MainWaker {
    /// One that is woken: the first poll is due.
    fn new(link: &Arc<Link>) -> Arc<MainWaker> {
        Arc::new(MainWaker { woken: AtomicBool::new(true), link: Arc::clone(link) })
    }
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        interruption();
        self.link.unpark();
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.core.end();
    }
}
