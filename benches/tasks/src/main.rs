//! Tasks of one thread: what spawning, joining and waking cost here and elsewhere, and the memory of a waiting one.
//!
//! Rounds of all runtimes are interleaved, and the fastest of each counts: what disturbs can only make it slower.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

const TASKS: usize = 1000;
const ROUNDS: usize = 400;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get() + layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A future behind a pointer, so that every runtime gets the same.
type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// What came of the cases, in nanoseconds for each task, and in bytes.
#[derive(Clone, Copy)]
struct Row {
    spawn: f64,
    join: f64,
    wake: f64,
    bytes: isize,
}

impl Row {
    const WORST: Row = Row { spawn: f64::MAX, join: f64::MAX, wake: f64::MAX, bytes: isize::MAX };

    fn best(self, other: Row) -> Row {
        Row {
            spawn: self.spawn.min(other.spawn),
            join: self.join.min(other.join),
            wake: self.wake.min(other.wake),
            bytes: self.bytes.min(other.bytes),
        }
    }
}

fn each(time: Duration) -> f64 {
    time.as_nanos() as f64 / TASKS as f64
}

/// One tick of the executor between two looks of the main future.
async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Futures that count their polls and leave their wakers, and what wakes them.
#[derive(Default)]
struct Sleepers {
    wakers: Rc<RefCell<Vec<Waker>>>,
    polls: Rc<Cell<usize>>,
}

impl Sleepers {
    fn one(&self) -> impl Future<Output = ()> + 'static {
        let (wakers, polls) = (Rc::clone(&self.wakers), Rc::clone(&self.polls));
        poll_fn(move |context| {
            polls.set(polls.get() + 1);
            wakers.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
    }

    async fn polled(&self, until: usize) {
        while self.polls.get() < until {
            pause().await;
        }
    }

    async fn wake_all(&self) -> Duration {
        let woken: Vec<Waker> = self.wakers.borrow_mut().drain(..).collect();
        let until = self.polls.get() + TASKS;
        let start = Instant::now();
        woken.into_iter().for_each(Waker::wake);
        self.polled(until).await;
        start.elapsed()
    }
}

/// The cases, the same for everyone. `spawn` detaches; `join` spawns and gives the future of the output.
async fn measure<S, J, W>(spawn: S, join: J) -> Row
where
    S: Fn(Boxed),
    J: Fn(usize) -> W,
    W: Future<Output = usize>,
{
    let ended = Rc::new(Cell::new(0));
    let start = Instant::now();
    for _ in 0..TASKS {
        let ended = Rc::clone(&ended);
        spawn(Box::pin(async move { ended.set(ended.get() + 1) }));
    }
    while ended.get() < TASKS {
        pause().await;
    }
    let spawned = start.elapsed();
    let start = Instant::now();
    let mut handles = Vec::with_capacity(TASKS);
    for number in 0..TASKS {
        handles.push(join(number));
    }
    for handle in handles {
        std::hint::black_box(handle.await);
    }
    let joined = start.elapsed();
    Row { spawn: each(spawned), join: each(joined), wake: f64::MAX, bytes: isize::MAX }
}

/// Waking, for the runtime that `spawn` spawns on.
async fn measure_wakes(spawn: impl Fn(Boxed)) -> Row {
    let sleepers = Sleepers::default();
    let boxed = size_of_val(&sleepers.one()) as isize;
    sleepers.wakers.borrow_mut().reserve(TASKS);
    let before = LIVE.get();
    for _ in 0..TASKS {
        spawn(Box::pin(sleepers.one()));
    }
    sleepers.polled(TASKS).await;
    let bytes = (LIVE.get() - before) / TASKS as isize - boxed;
    let mut wake = f64::MAX;
    for _ in 0..10 {
        wake = wake.min(each(sleepers.wake_all().await));
    }
    Row { wake, bytes, ..Row::WORST }
}

fn anabranch_row() -> Row {
    let shard = anabranch::Shard::new(anabranch::Config::default()).expect("a shard");
    let spawn = |future| anabranch::spawn::<Boxed>(future).detach();
    shard.block_on(async {
        let row = measure(spawn, |n| {
            let handle = anabranch::spawn(async move { n });
            async { handle.await.expect("it completed") }
        });
        row.await.best(measure_wakes(spawn).await)
    })
}

fn tokio_row() -> Row {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let spawn = |future| drop(tokio::task::spawn_local::<Boxed>(future));
    local.block_on(&runtime, async {
        let row = measure(spawn, |n| {
            let handle = tokio::task::spawn_local(async move { n });
            async { handle.await.expect("it completed") }
        });
        row.await.best(measure_wakes(spawn).await)
    })
}

fn compio_row() -> Row {
    let runtime = compio_runtime::Runtime::new().expect("a runtime");
    let spawn = |future| compio_runtime::spawn::<Boxed>(future).detach();
    runtime.block_on(async {
        let row = measure(spawn, |n| {
            let handle = compio_runtime::spawn(async move { n });
            async { handle.await.ok().expect("it completed") }
        });
        row.await.best(measure_wakes(spawn).await)
    })
}

fn async_executor_row() -> Row {
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let spawn = |future| executor.spawn::<()>(future).detach();
    futures_lite::future::block_on(executor.run(async {
        let row = measure(spawn, |n| executor.spawn(async move { n }));
        row.await.best(measure_wakes(spawn).await)
    }))
}

fn main() {
    let runtimes: [(&str, fn() -> Row); 4] = [
        ("anabranch", anabranch_row),
        ("tokio LocalSet", tokio_row),
        ("compio", compio_row),
        ("async-executor", async_executor_row),
    ];
    let mut best = [Row::WORST; 4];
    for _ in 0..ROUNDS {
        for (row, (_, measure)) in best.iter_mut().zip(&runtimes) {
            *row = row.best(measure());
        }
    }
    println!("{:<16} {:>18} {:>15} {:>14} {:>13}", "", "spawn, complete", "spawn, join", "wake, poll", "bytes");
    for (row, (name, _)) in best.iter().zip(&runtimes) {
        println!("{name:<16} {:>15.0} ns {:>12.0} ns {:>11.0} ns {:>13}", row.spawn, row.join, row.wake, row.bytes);
    }
}
