//! What the servers measure inside their own process: moving timers, and turns of tasks.

use crate::sys::thread_cpu;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Resets that are measured, and how many make up one batch: a server has several messages per turn of its loop.
const RESETS: usize = 1_000_000;
const BATCH: usize = 64;
/// Turns of tasks that are measured.
const TURNS: usize = 4_000_000;

/// Completes after it was polled so many times more, and wakes itself each time.
pub struct Turns(pub usize);

impl Future for Turns {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Where the armed timers lie: about a minute away, spread over ten seconds.
pub fn deadline(now: Instant, at: usize) -> Instant {
    now + Duration::from_secs(60) + Duration::from_millis(at as u64 * 7 % 10_000)
}

/// Moves timers at random, and lets the runtime have a turn after each batch. Nanoseconds of CPU per reset.
pub async fn resets(armed: usize, mut reset: impl FnMut(usize, Instant)) -> f64 {
    let mut state = 88_172_645_463_325_252_u64;
    let begun = thread_cpu();
    for _ in 0..RESETS / BATCH {
        let now = Instant::now();
        for _ in 0..BATCH {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = (state % armed as u64) as usize;
            reset(at, deadline(now, at));
        }
        Turns(1).await;
    }
    (thread_cpu() - begun).as_nanos() as f64 / (RESETS / BATCH * BATCH) as f64
}

/// Polls a future once: a timer is armed by its first poll.
pub async fn poll_once<F: Future>(mut future: Pin<&mut F>) {
    std::future::poll_fn(|context| {
        let _ = future.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

/// Spawns so many tasks, which yield until all turns are used up. Nanoseconds of CPU per turn.
pub async fn turns<H: Future>(tasks: usize, spawn: impl Fn(Turns) -> H) -> f64 {
    let each = TURNS / tasks;
    let begun = thread_cpu();
    let handles: Vec<H> = (0..tasks).map(|_| spawn(Turns(each))).collect();
    for handle in handles {
        handle.await;
    }
    (thread_cpu() - begun).as_nanos() as f64 / (each * tasks) as f64
}
