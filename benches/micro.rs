//! The parts of a shard one by one, through the public API: operations, timers, messages, buffers, tasks.
//!
//! `cargo bench --bench micro`; `-- --test` only shows that every part runs. Times depend on the machine and on its
//! other work; compare within one run.
#![forbid(unsafe_code)]
#![allow(missing_docs)] // the macros of criterion make functions without

use anabranch::driver::Driver;
use anabranch::driver::op::Nop;
use anabranch::net::UnixStream;
use anabranch::time::Sleep;
use anabranch::{Backend, Config, Event, Lease, Shard, sleep_until, spawn, yield_now};
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::io::Write;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

const BACKENDS: [(&str, Backend); 2] = [("uring", Backend::Uring), ("readiness", Backend::Readiness)];

/// The backends that this machine has.
fn backends() -> impl Iterator<Item = (&'static str, Config)> {
    BACKENDS.into_iter().filter_map(|(name, backend)| {
        let config = Config::new().backend(backend);
        Driver::new(&config).is_ok().then_some((name, config))
    })
}

fn shard() -> Shard {
    Shard::new(Config::new()).expect("a shard")
}

/// An operation through slot, backend and back: submitted one by one, and 64 at once.
fn operations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nop");
    for (name, config) in backends() {
        for batch in [1_usize, 64] {
            let mut driver = Driver::new(&config).expect("a driver");
            let mut raw = Vec::new();
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                bencher.iter(|| {
                    for owner in 0..batch {
                        driver.submit(Nop, owner as u64).expect("a slot");
                    }
                    let mut settled = 0;
                    while settled < batch {
                        driver.wait(Some(Duration::ZERO), &mut raw).expect("a wait");
                        settled += raw.drain(..).filter_map(|raw| driver.settle(raw)).count();
                    }
                });
            });
        }
    }
}

/// Polls a sleep once, which arms its timer.
fn arm(sleep: &mut Sleep) {
    let polled = Pin::new(sleep).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
}

/// A walk through all of `0..count` that does not follow the order in memory.
fn scattered(count: usize) -> impl Iterator<Item = usize> + Clone {
    let step = 7919;
    assert!(count % step != 0);
    (0..count).map(move |n| n * step % count)
}

/// A deadline for the n-th timer, between ten minutes and an hour and ten away.
fn deadline(start: Instant, n: usize) -> Instant {
    start + Duration::from_millis(600_000 + (n as u64).wrapping_mul(2_654_435_761) % 3_600_000)
}

/// Timers: each number is for one timer while so many are armed.
fn timers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("timer");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1));
    for armed in [10_000_usize, 100_000, 1_000_000] {
        shard().block_on(async {
            insert_and_cancel(&mut group, armed);
            reset(&mut group, armed);
        });
        expire(&mut group, armed);
    }
}

fn sleeps(start: Instant, count: usize) -> Vec<Sleep> {
    (0..count).map(|n| sleep_until(deadline(start, n))).collect()
}

fn insert_and_cancel(group: &mut BenchmarkGroup<'_, WallTime>, armed: usize) {
    group.throughput(Throughput::Elements(armed as u64));
    group.bench_function(BenchmarkId::new("insert", armed), |bencher| {
        bencher.iter_batched(
            || sleeps(Instant::now(), armed),
            |mut sleeps| {
                sleeps.iter_mut().for_each(arm);
                sleeps
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function(BenchmarkId::new("cancel", armed), |bencher| {
        bencher.iter_batched(
            || {
                let mut sleeps = sleeps(Instant::now(), armed);
                sleeps.iter_mut().for_each(arm);
                sleeps
            },
            drop,
            BatchSize::PerIteration,
        );
    });
}

fn reset(group: &mut BenchmarkGroup<'_, WallTime>, armed: usize) {
    let start = Instant::now();
    let mut sleeps = sleeps(start, armed);
    sleeps.iter_mut().for_each(arm);
    let mut order = scattered(armed).cycle();
    let mut later = start + Duration::from_secs(2 * 3_600);
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new("reset", armed), |bencher| {
        bencher.iter(|| {
            // Each message pushes the deadline of one timer back.
            later += Duration::from_micros(1);
            sleeps[order.next().expect("an endless walk")].reset(later);
        });
    });
}

/// From the time that the last timer is due until all have fired.
fn expire(group: &mut BenchmarkGroup<'_, WallTime>, armed: usize) {
    let shard = shard();
    group.throughput(Throughput::Elements(armed as u64));
    group.bench_function(BenchmarkId::new("expire", armed), |bencher| {
        bencher.iter_custom(|rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                for n in 0..armed {
                    shard.submit_timeout(Duration::from_millis(n as u64 % 100), 0).expect("a timer");
                }
                std::thread::sleep(Duration::from_millis(101));
                let (start, mut left) = (Instant::now(), armed);
                while left > 0 {
                    let polled = shard.poll(Some(Duration::ZERO), |completion| {
                        left -= usize::from(matches!(completion.event, Event::Elapsed));
                    });
                    polled.expect("a turn");
                }
                total += start.elapsed();
            }
            total
        });
    });
}

/// Messages to a shard: 256 at once from its own thread, and from another that never rests.
fn mailbox(criterion: &mut Criterion) {
    const BATCH: u64 = 256;
    let mut group = criterion.benchmark_group("mailbox");
    group.throughput(Throughput::Elements(BATCH));
    let shard = shard();
    let remote = shard.remote();
    let count = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&count);
    group.bench_function("same thread", |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                let seen = Arc::clone(&seen);
                remote
                    .run(move || {
                        seen.fetch_add(1, Ordering::Relaxed);
                    })
                    .expect("room");
            }
            shard.poll(Some(Duration::ZERO), |_| {}).expect("a turn");
        });
    });
    let remote = shard.remote();
    let sender = std::thread::spawn(move || {
        loop {
            let seen = Arc::clone(&seen);
            let sent = remote.run(move || {
                seen.fetch_add(1, Ordering::Relaxed);
            });
            match sent {
                Ok(()) => {}
                Err(anabranch::Undelivered::Full(_)) => std::thread::yield_now(),
                Err(anabranch::Undelivered::Ended(_)) => return,
            }
        }
    });
    group.bench_function("across threads", |bencher| {
        bencher.iter(|| {
            let until = count.load(Ordering::Relaxed) + BATCH;
            while count.load(Ordering::Relaxed) < until {
                shard.poll(Some(Duration::ZERO), |_| {}).expect("a turn");
            }
        });
    });
    drop(shard);
    sender.join().expect("the sender ends with the shard");
}

/// What becomes of a buffer that came in with bytes: given back as a lease, and as `Bytes`.
fn buffers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lease");
    group.throughput(Throughput::Elements(LEASES as u64));
    group.bench_function("drop", |bencher| bencher.iter_custom(|rounds| time_leases(rounds, drop)));
    let to_bytes = |leases: Vec<Lease>| leases.into_iter().map(Lease::into_bytes).for_each(drop);
    group.bench_function("to bytes, drop", |bencher| {
        bencher.iter_custom(|rounds| time_leases(rounds, to_bytes))
    });
    let split = |leases: Vec<Lease>| {
        leases.into_iter().map(Lease::into_bytes).for_each(|mut bytes| drop(bytes.split_to(100)));
    };
    group.bench_function("to bytes, split, drop", |bencher| {
        bencher.iter_custom(|rounds| time_leases(rounds, split));
    });
}

/// Leases at once; fewer than would make the pool low.
const LEASES: usize = 64;

/// How long `work` takes for `rounds` sets of leases that were received before the clock is started.
fn time_leases(rounds: u64, work: impl Fn(Vec<Lease>)) -> Duration {
    shard().block_on(async {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut ours = UnixStream::from_std(ours).expect("a stream");
        let mut total = Duration::ZERO;
        for _ in 0..rounds {
            let mut leases = Vec::new();
            for _ in 0..LEASES {
                theirs.write_all(&[7; 1024]).expect("room");
                leases.extend(ours.recv().await.expect("bytes"));
            }
            let start = Instant::now();
            work(leases);
            total += start.elapsed();
        }
        total
    })
}

/// Tasks: 256 at once, each number for one.
fn tasks(criterion: &mut Criterion) {
    const BATCH: usize = 256;
    let mut group = criterion.benchmark_group("task");
    group.throughput(Throughput::Elements(BATCH as u64));
    let shard = shard();
    group.bench_function("spawn and complete", |bencher| {
        bencher.iter(|| {
            shard.block_on(async {
                let ended = Rc::new(Cell::new(0));
                for _ in 0..BATCH {
                    let ended = Rc::clone(&ended);
                    spawn(async move { ended.set(ended.get() + 1) }).detach();
                }
                while ended.get() < BATCH {
                    yield_now().await;
                }
            });
        });
    });
    group.bench_function("spawn and join", |bencher| {
        bencher.iter(|| {
            shard.block_on(async {
                let tasks: Vec<_> = (0..BATCH).map(|n| spawn(async move { n })).collect();
                for task in tasks {
                    black_box(task.await.expect("it completed"));
                }
            });
        });
    });
    let wakers: Rc<RefCell<Vec<Waker>>> = Rc::default();
    let polls = Rc::new(Cell::new(0_usize));
    for _ in 0..BATCH {
        let (wakers, polls) = (Rc::clone(&wakers), Rc::clone(&polls));
        let task = shard.spawn(poll_fn(move |context| {
            polls.set(polls.get() + 1);
            wakers.borrow_mut().push(context.waker().clone());
            Poll::<()>::Pending
        }));
        task.detach();
    }
    shard.poll(Some(Duration::ZERO), |_| {}).expect("a turn");
    shard.poll(Some(Duration::ZERO), |_| {}).expect("a turn");
    group.bench_function("wake and poll", |bencher| {
        bencher.iter(|| {
            shard.block_on(async {
                let until = polls.get() + BATCH;
                let woken = std::mem::take(&mut *wakers.borrow_mut());
                woken.into_iter().for_each(Waker::wake);
                while polls.get() < until {
                    yield_now().await;
                }
            });
        });
    });
}

criterion_group!(parts, operations, timers, mailbox, buffers, tasks);
criterion_main!(parts);
