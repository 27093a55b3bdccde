//! Tasks: on one shard, between shards, and beside the loop.
#![forbid(unsafe_code)]

mod common;

use anabranch::{
    JoinError, Runtime, Shard, Undelivered, block_on, current, offload, sleep, spawn, timeout, yield_now,
};
use common::net::{check, on_real_backends, on_typical_backends, pair};
use common::{on_every_backend, peer};
use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_task_gives_its_output_to_who_joins_it() {
    on_every_backend(|config| {
        check(config, async {
            let local = Rc::new(5);
            let handle = spawn(async move { *local + 1 });
            assert!(!handle.is_finished());
            assert_eq!(handle.await.unwrap(), 6);
            let mut early = spawn(async { "kept" });
            yield_now().await;
            assert!(early.is_finished());
            early.abort();
            assert_eq!(early.await.unwrap(), "kept", "it had completed");
        });
    });
}

#[test]
fn an_aborted_task_is_dropped_soon_and_says_so() {
    struct Tells(Rc<Cell<bool>>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    on_typical_backends(|config| {
        check(config, async {
            let dropped = Rc::new(Cell::new(false));
            let tells = Tells(Rc::clone(&dropped));
            let mut handle = spawn(async move {
                let _tells = tells;
                pending::<()>().await;
            });
            yield_now().await;
            handle.abort();
            yield_now().await;
            assert!(dropped.get());
            assert!(handle.is_finished());
            assert!(matches!(handle.await, Err(JoinError::Aborted)));
        });
    });
}

#[test]
fn a_dropped_handle_lets_its_task_go_on() {
    on_typical_backends(|config| {
        check(config, async {
            let done = Rc::new(Cell::new(0));
            let count = |done: Rc<Cell<i32>>| async move {
                sleep(Duration::from_millis(1)).await;
                done.set(done.get() + 1);
            };
            drop(spawn(count(Rc::clone(&done))));
            spawn(count(Rc::clone(&done))).detach();
            while done.get() < 2 {
                sleep(Duration::from_millis(1)).await;
            }
        });
    });
}

#[test]
fn yielding_lets_the_others_run_in_turn() {
    on_typical_backends(|config| {
        check(config, async {
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..3)
                .map(|n| {
                    let order = Rc::clone(&order);
                    spawn(async move {
                        for _ in 0..3 {
                            order.borrow_mut().push(n);
                            yield_now().await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.borrow(), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        });
    });
}

#[test]
fn a_busy_task_does_not_starve_connections_or_timers() {
    on_typical_backends(|config| {
        check(config, async {
            let mut busy = spawn(async {
                loop {
                    yield_now().await;
                }
            });
            let (mut ours, mut theirs) = pair().await;
            for _ in 0..10 {
                ours.send("ping").await.unwrap();
                assert_eq!(theirs.recv_exact(4).await.unwrap(), "ping");
                sleep(Duration::from_millis(1)).await;
            }
            busy.abort();
        });
    });
}

#[test]
fn a_wake_from_another_thread_reaches_a_shard_that_sleeps() {
    on_every_backend(|config| {
        check(config, async {
            for _ in 0..20 {
                let (give, wakers) = mpsc::channel::<std::task::Waker>();
                let other = peer::spawn(move || {
                    let waker = wakers.recv().unwrap();
                    thread::sleep(Duration::from_micros(500));
                    waker.wake();
                });
                let mut polls = 0;
                let woken = spawn(poll_fn(move |context| {
                    polls += 1;
                    if polls == 2 {
                        return Poll::Ready(());
                    }
                    give.send(context.waker().clone()).unwrap();
                    Poll::Pending
                }));
                timeout(Duration::from_secs(10), woken).await.expect("the wake was lost").unwrap();
                other.join().unwrap();
            }
        });
    });
}

#[test]
fn a_wake_of_the_main_future_is_not_lost_just_before_the_shard_sleeps() {
    on_real_backends(|config| {
        check(config, async {
            let (give, wakers) = mpsc::channel::<std::task::Waker>();
            let other = thread::spawn(move || wakers.iter().for_each(std::task::Waker::wake));
            let start = Instant::now();
            for _ in 0..10_000 {
                let mut given = false;
                poll_fn(|context| {
                    if std::mem::replace(&mut given, true) {
                        return Poll::Ready(());
                    }
                    give.send(context.waker().clone()).unwrap();
                    Poll::Pending
                })
                .await;
            }
            // A timer far away would end the sleep in the end.
            assert!(start.elapsed() < Duration::from_secs(15), "it took {:?}", start.elapsed());
            drop(give);
            other.join().unwrap();
        });
    });
}

#[test]
fn a_waker_that_outlives_its_task_and_its_shard_does_nothing() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let (give, wakers) = mpsc::channel();
        shard.block_on(async {
            let waits = poll_fn(move |context| {
                give.send(context.waker().clone()).unwrap();
                Poll::<()>::Pending
            });
            spawn(waits).detach();
            yield_now().await;
        });
        drop(shard);
        let waker: std::task::Waker = wakers.recv().unwrap();
        thread::spawn(move || {
            waker.wake_by_ref();
            drop(waker);
        })
        .join()
        .unwrap();
    });
}

#[test]
fn a_future_that_cannot_be_sent_runs_on_another_shard() {
    on_real_backends(|config| {
        let runtime = Runtime::builder().shards(2).config(config).start(|context| async move {
            if context.index() == 1 {
                context.stopped().await;
                return Ok(());
            }
            let other = context.remote(1);
            let here = current()?.id();
            let handle = other.spawn_on(|| async {
                let local = Rc::new(Cell::new(1));
                yield_now().await;
                local.set(2);
                (local.get(), current().unwrap().id(), thread::current().name().map(str::to_owned))
            });
            let (value, there, name) = handle.unwrap().await.unwrap();
            assert_eq!((value, there, name.as_deref()), (2, other.id(), Some("anabranch-1")));
            assert_ne!(here, there);
            context.stop();
            Ok(())
        });
        for end in runtime.unwrap().join() {
            end.result.unwrap();
            end.counters.settled().unwrap();
        }
    });
}

#[test]
fn a_panic_of_a_task_on_another_shard_is_told_to_who_waits_for_it() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let remote = shard.remote();
        let handle = remote.spawn_on(|| async { panic!("far away") }).unwrap();
        let outcome: Result<(), _> = shard.block_on(handle);
        assert_eq!(outcome.unwrap_err().to_string(), "the task panicked: far away");
        let handle = remote.spawn_on(|| -> std::future::Ready<()> { panic!("at once") }).unwrap();
        assert!(shard.block_on(handle).is_err());
        shard.finish().settled().unwrap();
    });
}

#[test]
fn a_full_mailbox_gives_the_work_back() {
    on_typical_backends(|config| {
        let shard = Shard::new(config.with_limits(|limits| limits.mailbox_max = 2)).unwrap();
        let remote = shard.remote();
        let ran = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let job = || {
            let ran = std::sync::Arc::clone(&ran);
            move || drop(ran.fetch_add(1, std::sync::atomic::Ordering::SeqCst).to_string())
        };
        remote.run(job()).unwrap();
        remote.run(job()).unwrap();
        let Err(Undelivered::Full(back)) = remote.run(job()) else { panic!("the mailbox has two places") };
        let name = String::from("kept");
        let Err(Undelivered::Full(make)) = remote.spawn_on(move || async move { name }) else {
            panic!("the mailbox has two places")
        };
        shard.block_on(yield_now());
        remote.run(back).unwrap();
        let handle = remote.spawn_on(make).unwrap();
        assert_eq!(shard.block_on(handle).unwrap(), "kept");
        assert_eq!(ran.load(std::sync::atomic::Ordering::SeqCst), 3);
    });
}

#[test]
fn work_for_a_shard_that_has_ended_is_given_back() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let remote = shard.remote();
        let unheard = remote.spawn_on(|| async { 1 }).unwrap();
        drop(shard);
        assert!(matches!(remote.run(|| {}), Err(Undelivered::Ended(_))));
        let Err(Undelivered::Ended(make)) = remote.spawn_on(|| async { 2 }) else { panic!("it has ended") };
        assert_eq!(block_on(make()).unwrap(), 2);
        let outcome = block_on(unheard).unwrap();
        assert!(matches!(outcome, Err(JoinError::Aborted)), "{outcome:?}");
    });
}

#[test]
fn messages_of_one_thread_keep_their_order_and_a_panic_in_one_is_contained() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let remote = shard.remote();
        let (tell, told) = mpsc::channel();
        let sender = peer::spawn(move || {
            for n in 0..1_000 {
                let tell = tell.clone();
                let job = move || {
                    assert_ne!(n, 500, "one of a thousand");
                    tell.send(n).unwrap();
                };
                let mut job: Box<dyn FnOnce() + Send> = Box::new(job);
                while let Err(Undelivered::Full(back)) = remote.run(job) {
                    job = back;
                    thread::yield_now();
                }
            }
        });
        shard.block_on(async {
            while !sender.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            yield_now().await;
        });
        sender.join().unwrap();
        let expected: Vec<i32> = (0..1_000).filter(|n| *n != 500).collect();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
        assert_eq!(shard.finish().panics, 1);
    });
}

#[test]
fn at_most_one_wake_system_call_is_made_per_turn() {
    on_real_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let remote = shard.remote();
        let sender = thread::spawn(move || {
            for _ in 0..2_000 {
                while remote.run(|| {}).is_err() {
                    thread::yield_now();
                }
            }
        });
        shard.block_on(async {
            while !sender.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        let counters = shard.finish();
        // A sleep that was announced and then not begun, because there was mail, may have been woken too.
        assert!(counters.wakes <= counters.turns, "{} wakes, {} turns", counters.wakes, counters.turns);
        assert!(counters.wakes < 2_000, "a call for each message");
    });
}

#[test]
fn blocking_work_runs_beside_the_loop() {
    common::on(
        common::not_simulated("blocking_work_runs_beside_the_loop", common::net::typical_backends()),
        |config| {
            check(config, async {
                let start = Instant::now();
                let slow = spawn(offload(|| {
                    thread::sleep(Duration::from_millis(50));
                    thread::current().id()
                }));
                sleep(Duration::from_millis(1)).await;
                assert!(start.elapsed() < Duration::from_millis(50), "the loop was blocked");
                assert_ne!(slow.await.unwrap().unwrap(), thread::current().id());
                let error = offload(|| panic!("off the loop")).await.unwrap_err();
                assert!(error.to_string().contains("off the loop"), "{error}");
            });
        },
    );
}

#[test]
fn a_full_queue_of_blocking_work_refuses_and_recovers() {
    common::on(
        common::not_simulated(
            "a_full_queue_of_blocking_work_refuses_and_recovers",
            common::net::typical_backends(),
        ),
        |config| {
            let config = config.with_limits(|limits| {
                limits.blocking_threads_max = 1;
                limits.blocking_queue_max = 1;
            });
            check(config, async {
                let (go, wait) = mpsc::channel::<()>();
                let running = spawn(offload(move || wait.recv()));
                sleep(Duration::from_millis(20)).await;
                let queued = spawn(offload(|| 2));
                yield_now().await;
                assert_eq!(offload(|| 3).await.unwrap_err().kind(), ErrorKind::WouldBlock);
                go.send(()).unwrap();
                running.await.unwrap().unwrap().unwrap();
                assert_eq!(queued.await.unwrap().unwrap(), 2);
                assert_eq!(offload(|| 4).await.unwrap(), 4);
            });
        },
    );
}

#[test]
fn a_shard_may_run_inside_a_task_of_another() {
    on_typical_backends(|config| {
        let config_of_inner = config.clone();
        check(config, async {
            let outer = current().unwrap().id();
            let (mut ours, mut theirs) = pair().await;
            ours.send("before").await.unwrap();
            let inner = spawn(async move {
                let shard = Shard::new(config_of_inner).unwrap();
                let value = shard.block_on(async {
                    let (mut a, mut b) = pair().await;
                    a.send("inner").await.unwrap();
                    let got = b.recv_exact(5).await.unwrap().to_vec();
                    (current().unwrap().id(), got)
                });
                shard.finish().settled().unwrap();
                value
            });
            let (id, got) = inner.await.unwrap();
            assert_ne!(id, outer);
            assert_eq!(current().unwrap().id(), outer);
            assert_eq!(got, b"inner");
            assert_eq!(theirs.recv_exact(6).await.unwrap(), "before");
        });
    });
}

#[test]
fn without_a_shard_the_errors_say_what_is_missing() {
    assert!(current().unwrap_err().to_string().contains("block_on"));
    assert!(anabranch::counters().is_err() && anabranch::report().is_err());
    let mut work = pin!(offload(|| ()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(work.as_mut().poll(&mut context), Poll::Ready(Err(_))));
    let panic = std::panic::catch_unwind(|| spawn(async {}).detach()).unwrap_err();
    assert!(panic.downcast_ref::<String>().is_some_and(|text| text.contains("running shard")));
}

#[test]
fn a_thousand_tasks_of_one_turn_are_polled_within_the_budget_of_turns() {
    let (_, config) = common::real_backends().swap_remove(0);
    let config = config.with_limits(|limits| limits.polls_per_turn_max = 10);
    check(config, async {
        let before = anabranch::counters().unwrap().turns;
        let tasks: Vec<_> = (0..1_000).map(|n| spawn(async move { n })).collect();
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), n);
        }
        let turns = anabranch::counters().unwrap().turns - before;
        assert!((99..400).contains(&turns), "{turns} turns for 1000 polls, ten each");
    });
}
