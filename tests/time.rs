//! Time: never early, movable, cancellable.
#![forbid(unsafe_code)]

mod common;

use anabranch::time::{MissedTicks, TimeLimit, interval, sleep, sleep_until, timeout, timeout_at};
use anabranch::{Shard, spawn};
use common::net::{check, on_typical_backends};
use common::{on_every_backend, peer};
use std::cell::Cell;
use std::future::pending;
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn a_sleep_is_never_early() {
    on_every_backend(|config| {
        check(config, async {
            let tasks: Vec<_> = (0..40_u64)
                .map(|n| {
                    spawn(async move {
                        let duration = Duration::from_micros(n * 511);
                        let start = peer::now();
                        sleep(duration).await;
                        assert!(
                            (peer::now() - start) >= duration,
                            "{:?} instead of {duration:?}",
                            (peer::now() - start)
                        );
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    });
}

#[test]
fn a_sleep_is_hardly_late_on_an_idle_shard() {
    on_typical_backends(|config| {
        check(config, async {
            let start = peer::now();
            for _ in 0..10 {
                sleep(Duration::from_millis(5)).await;
            }
            assert!(
                (peer::now() - start) < Duration::from_millis(500),
                "{:?} for 50 ms",
                (peer::now() - start)
            );
        });
    });
}

#[test]
fn a_sleep_can_be_moved_both_ways() {
    on_typical_backends(|config| {
        check(config, async {
            let start = peer::now();
            let mut moved = pin!(sleep(Duration::from_secs(3600)));
            assert!(timeout(Duration::from_millis(5), moved.as_mut()).await.is_err());
            moved.as_mut().reset(start + Duration::from_millis(20));
            moved.as_mut().await;
            assert!((peer::now() - start) >= Duration::from_millis(20));
            // After its end it can be used again.
            moved.as_mut().reset(peer::now() + Duration::from_millis(10));
            let again = peer::now();
            moved.as_mut().await;
            assert!((peer::now() - again) >= Duration::from_millis(9));
            let mut later = pin!(sleep(Duration::from_millis(5)));
            assert!(timeout(Duration::ZERO, later.as_mut()).await.is_err());
            later.as_mut().reset(start + Duration::from_secs(3600));
            assert!(timeout(Duration::from_millis(30), later).await.is_err(), "it was moved away");
        });
    });
}

#[test]
fn a_deadline_in_the_past_is_over_at_once_and_one_in_the_far_future_is_not() {
    on_typical_backends(|config| {
        check(config, async {
            sleep_until(peer::now() - Duration::from_secs(1)).await;
            sleep(Duration::ZERO).await;
            assert!(timeout(Duration::from_millis(5), sleep(Duration::MAX)).await.is_err());
            assert_eq!(timeout(Duration::MAX, async { 5 }).await.unwrap(), 5);
            let past = peer::now() - Duration::from_secs(1);
            assert_eq!(timeout_at(past, async { 6 }).await.unwrap(), 6, "what is ready wins");
            assert_eq!(timeout_at(past, pending::<()>()).await.unwrap_err().kind(), ErrorKind::TimedOut);
        });
    });
}

#[test]
fn a_time_out_ends_what_takes_too_long_and_only_that() {
    on_typical_backends(|config| {
        check(config, async {
            let start = peer::now();
            let error = timeout(Duration::from_millis(20), pending::<()>()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!((peer::now() - start) >= Duration::from_millis(20));
            let quick = async {
                sleep(Duration::from_millis(1)).await;
                "in time"
            };
            assert_eq!(timeout(Duration::from_secs(60), quick).await.unwrap(), "in time");
        });
    });
}

#[test]
fn ten_thousand_sleeps_end_in_one_tick_and_none_is_forgotten() {
    on_typical_backends(|config| {
        check(config, async {
            let ended = Rc::new(Cell::new(0));
            let deadline = peer::now() + Duration::from_millis(60);
            let tasks: Vec<_> = (0..10_000)
                .map(|_| {
                    let ended = Rc::clone(&ended);
                    spawn(async move {
                        sleep_until(deadline).await;
                        assert!(peer::now() >= deadline);
                        ended.set(ended.get() + 1);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(ended.get(), 10_000);
        });
    });
}

#[test]
fn an_interval_ticks_at_once_and_then_by_its_period() {
    on_typical_backends(|config| {
        check(config, async {
            let mut ticks = interval(Duration::from_millis(10));
            let first = ticks.tick().await;
            for n in 1..5 {
                let due = ticks.tick().await;
                assert!(peer::now() >= due);
                assert_eq!((due - first).as_millis() % 10, 0, "tick {n} keeps the beat");
            }
        });
    });
}

#[test]
fn an_interval_that_was_missed_skips_or_catches_up() {
    on_typical_backends(|config| {
        check(config, async {
            let period = Duration::from_millis(10);
            let mut skipping = interval(period);
            let mut catching = interval(period).missed_ticks(MissedTicks::Burst);
            let (start, began) = (skipping.tick().await, catching.tick().await);
            peer::pause(Duration::from_millis(55));
            // The tick that was due is told late; the beats after it are left out.
            assert_eq!(skipping.tick().await, start + period);
            let next = skipping.tick().await;
            assert!(next >= start + 6 * period, "{:?}", next - start);
            assert_eq!((next - start).as_nanos() % period.as_nanos(), 0);
            for n in 1..=5 {
                assert_eq!(catching.tick().await, began + n * period, "in a burst, none left out");
            }
        });
    });
}

#[test]
fn a_tick_that_was_not_taken_is_not_lost() {
    on_typical_backends(|config| {
        check(config, async {
            let mut ticks = interval(Duration::from_millis(300));
            let first = ticks.tick().await;
            assert!(timeout(Duration::from_millis(1), ticks.tick()).await.is_err());
            assert_eq!(ticks.tick().await, first + Duration::from_millis(300));
            let mut far = interval(Duration::MAX);
            far.tick().await;
            assert!(timeout(Duration::from_millis(5), far.tick()).await.is_err());
        });
    });
}

#[test]
#[should_panic(expected = "sleep needs a running shard")]
fn a_sleep_outside_of_a_shard_says_what_is_missing() {
    let shard = Shard::new(anabranch::Config::new()).unwrap();
    drop(shard);
    let mut slept = pin!(sleep(Duration::from_secs(1)));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let _ = std::future::Future::poll(slept.as_mut(), &mut context);
}

#[test]
fn a_time_limit_holds_for_each_wait_anew() {
    on_typical_backends(|config| {
        check(config, async {
            let limit = Duration::from_millis(40);
            let mut idle = TimeLimit::new(limit);
            // All of them together take longer than the limit, so the timer of the first comes due in between.
            for _ in 0..6 {
                idle.run(sleep(Duration::from_millis(15))).await.expect("the wait was within the limit");
            }
            for _ in 0..2 {
                let start = peer::now();
                let error = idle.run(pending::<()>()).await.expect_err("nothing came");
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                assert!(peer::now() - start >= limit, "early: {:?}", peer::now() - start);
                idle.run(async {}).await.expect("it can be used again");
            }
        });
    });
}

#[test]
fn a_time_limit_that_came_due_between_two_waits_holds_for_the_next() {
    on_typical_backends(|config| {
        check(config, async {
            let mut idle = TimeLimit::new(Duration::from_millis(10));
            idle.run(sleep(Duration::from_millis(1))).await.unwrap();
            sleep(Duration::from_millis(30)).await;
            idle.run(sleep(Duration::from_millis(1))).await.expect("the time before does not count");
            assert!(idle.run(pending::<()>()).await.is_err());
        });
    });
}

#[test]
fn a_time_limit_wakes_the_task_it_was_moved_to() {
    on_typical_backends(|config| {
        check(config, async {
            let mut idle = TimeLimit::new(Duration::from_millis(20));
            idle.run(sleep(Duration::from_millis(1))).await.unwrap();
            let moved = spawn(async move {
                let ended = idle.run(pending::<()>()).await;
                (idle, ended.is_err())
            });
            let (mut idle, ended) = moved.await.unwrap();
            assert!(ended);
            assert!(idle.run(pending::<()>()).await.is_err());
        });
    });
}

#[test]
fn a_limit_of_nothing_still_lets_through_what_is_ready() {
    on_typical_backends(|config| {
        check(config, async {
            let mut limit = TimeLimit::new(Duration::ZERO);
            assert_eq!(limit.run(async { 5 }).await.unwrap(), 5);
            assert!(limit.run(pending::<()>()).await.is_err());
            let mut longest = TimeLimit::new(Duration::MAX);
            longest.run(sleep(Duration::from_millis(1))).await.expect("a limit beyond all time");
        });
    });
}
