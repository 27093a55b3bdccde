//! Timers of services: single, periodic, absolute; waits, callbacks and what cancels them.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Expiry, Service, ServiceError, ServiceHandle, ServiceHandler, Timer};
use anabranch::time::{sleep, timeout, wall};
use anabranch::{Config, spawn, yield_now};
use common::net::{check, on_real_backends};
use common::{on_every_backend, peer};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// How long anything may take before a test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(5);

/// The shard that runs here, as a service.
fn here() -> ServiceHandle {
    Service::builder().on_current().expect("a shard runs here")
}

/// A service that is started.
fn started(config: Config) -> Service {
    let service = Service::builder().config(config).threads(2).build();
    service.start().expect("it starts");
    service
}

#[test]
fn a_single_expiry_is_never_early_and_told_to_each_wait_and_to_later_ones_at_once() {
    on_every_backend(|config| {
        check(config, async {
            let timer = Timer::new(&here());
            assert_eq!((timer.remaining(), timer.wait().await), (None, Expiry::Canceled));
            for delay in [SHORT, Duration::from_millis(40), Duration::ZERO] {
                let begun = peer::now();
                timer.set_after(delay).unwrap();
                assert!(timer.remaining().is_some_and(|remaining| remaining <= delay));
                let waits: Vec<_> = (0..10).map(|_| spawn(timer.wait())).collect();
                assert_eq!(timer.wait().await, Expiry::Expired);
                assert!(peer::now() - begun >= delay);
                for wait in waits {
                    assert_eq!(wait.await.unwrap(), Expiry::Expired);
                }
                assert_eq!((timer.wait().await, timer.remaining()), (Expiry::Expired, Some(Duration::ZERO)));
            }
        });
    });
}

#[test]
fn a_cancel_is_told_to_each_wait_in_progress_and_takes_the_setting_back() {
    on_every_backend(|config| {
        check(config, async {
            let timer = Timer::new(&here());
            assert_eq!(timer.cancel(), 0);
            timer.set_after(LONG).unwrap();
            let waits: Vec<_> = (0..10).map(|_| spawn(timer.wait())).collect();
            // One that nobody has polled yet is in progress, too; one that was dropped is not.
            let fresh = timer.wait();
            drop(timer.wait());
            yield_now().await;
            assert_eq!(timer.cancel(), 11);
            for wait in waits {
                assert_eq!(wait.await.unwrap(), Expiry::Canceled);
            }
            assert_eq!(fresh.await, Expiry::Canceled);
            assert_eq!((timer.wait().await, timer.remaining(), timer.cancel()), (Expiry::Canceled, None, 0));
            // Also after it has expired there is nothing set any more.
            timer.set_after(Duration::ZERO).unwrap();
            assert_eq!(timer.wait().await, Expiry::Expired);
            timer.cancel();
            assert_eq!(timer.wait().await, Expiry::Canceled);
        });
    });
}

#[test]
fn another_setting_cancels_the_waits_for_the_one_before() {
    on_every_backend(|config| {
        check(config, async {
            let timer = Timer::new(&here());
            timer.set_after(LONG).unwrap();
            let long = timer.wait();
            timer.set_after(SHORT).unwrap();
            let short = timer.wait();
            assert_eq!((long.await, short.await), (Expiry::Canceled, Expiry::Expired));
            timer.set_after(SHORT).unwrap();
            let short = timer.wait();
            timer.set_every(LONG).unwrap();
            assert_eq!(short.await, Expiry::Canceled);
            // It waits for what it is set to now, not for what it was.
            assert!(timeout(2 * SHORT, timer.wait()).await.is_err());
        });
    });
}

#[test]
fn absolute_times_go_by_the_wall_clock_and_those_that_have_passed_expire_at_once() {
    on_every_backend(|config| {
        check(config, async {
            let timer = Timer::new(&here());
            timer.set_at(wall() - LONG).unwrap();
            assert_eq!(timer.remaining(), Some(Duration::ZERO));
            assert_eq!(timer.wait().await, Expiry::Expired);
            let at = wall() + 4 * SHORT;
            timer.set_at(at).unwrap();
            assert_eq!(timer.wait().await, Expiry::Expired);
            assert!(wall() >= at);
            timer.set_at(wall() + LONG).unwrap();
            assert!(timer.remaining().is_some_and(|left| left <= LONG && left > LONG / 2));
            assert!(timeout(SHORT, timer.wait()).await.is_err());
        });
    });
}

#[test]
fn a_periodic_timer_keeps_its_beat_until_it_is_cancelled() {
    on_every_backend(|config| {
        check(config, async {
            let timer = Timer::new(&here());
            assert_eq!(timer.set_every(Duration::ZERO).unwrap_err().kind(), ErrorKind::InvalidInput);
            let begun = peer::now();
            timer.set_every(SHORT).unwrap();
            for beat in 1..=5 {
                assert_eq!(timer.wait().await, Expiry::Expired);
                assert!(peer::now() - begun >= SHORT * beat);
            }
            // What passes while nobody waits is not made up for.
            sleep(5 * SHORT).await;
            let waits = [spawn(timer.wait()), spawn(timer.wait())];
            yield_now().await;
            timer.cancel();
            for wait in waits {
                wait.await.unwrap();
            }
            assert_eq!(timer.wait().await, Expiry::Canceled);
        });
    });
}

#[test]
fn a_period_or_a_callback_without_a_pause_leaves_others_their_turns() {
    on_every_backend(|config| {
        check(config, async {
            let timer = Timer::new(&here());
            timer.set_every(Duration::from_nanos(1)).unwrap();
            let calls = Arc::new(AtomicU32::new(0));
            let count = Arc::clone(&calls);
            let again = Timer::with_callback(&here(), move |timer, _| {
                count.fetch_add(1, Ordering::Relaxed);
                timer.set_after(Duration::ZERO).unwrap();
            });
            again.set_after(Duration::ZERO).unwrap();
            while calls.load(Ordering::Relaxed) < 20 {
                assert_eq!(timer.wait().await, Expiry::Expired);
            }
        });
    });
}

#[test]
fn a_callback_is_told_once_of_each_setting_and_of_each_period() {
    on_every_backend(|config| {
        check(config, async {
            let (sender, told) = mpsc::channel();
            let timer = Timer::with_callback(&here(), move |timer, expiry| {
                assert_eq!(timer.remaining().is_some(), expiry == Expiry::Expired);
                sender.send(expiry).unwrap();
            });
            let settle = || async {
                for _ in 0..20 {
                    yield_now().await;
                }
            };
            timer.set_after(SHORT).unwrap();
            timer.wait().await;
            settle().await;
            // It has expired, so there is nothing to cancel.
            timer.cancel();
            settle().await;
            assert_eq!(told.try_iter().collect::<Vec<_>>(), [Expiry::Expired]);
            timer.set_after(LONG).unwrap();
            timer.set_after(LONG).unwrap();
            timer.cancel();
            timer.cancel();
            settle().await;
            assert_eq!(told.try_iter().collect::<Vec<_>>(), [Expiry::Canceled; 2]);
            timer.set_every(SHORT).unwrap();
            for _ in 0..3 {
                timer.wait().await;
            }
            settle().await;
            assert!(told.try_iter().filter(|expiry| *expiry == Expiry::Expired).count() >= 3);
            timer.cancel();
            settle().await;
            assert_eq!(told.try_iter().last(), Some(Expiry::Canceled));
            // With the last handle the timer goes, and with it the callback.
            timer.set_after(SHORT).unwrap();
            drop(timer);
            settle().await;
            assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        });
    });
}

#[test]
fn a_callback_that_panics_is_told_to_the_service_and_is_called_again() {
    struct Teller(mpsc::Sender<String>);
    impl ServiceHandler for Teller {
        fn on_error(&self, error: ServiceError) {
            self.0.send(error.to_string()).unwrap();
        }
    }
    on_real_backends(|config| {
        let (sender, told) = mpsc::channel();
        let service = Service::builder().config(config).handler(Teller(sender)).build();
        service.start().unwrap();
        let mut calls = 0;
        let timer = Timer::with_callback(&service, move |_, _| {
            calls += 1;
            panic!("call {calls}");
        });
        timer.set_every(SHORT).unwrap();
        let next = || told.recv_timeout(PATIENCE).unwrap();
        assert_eq!([next(), next()], ["panicked: call 1", "panicked: call 2"]);
    });
}

#[test]
fn a_thread_waits_by_blocking_and_a_cancel_wakes_it() {
    on_real_backends(|config| {
        let service = started(config);
        let timer = Timer::new(&service);
        assert_eq!(timer.wait_blocking().unwrap(), Expiry::Canceled);
        timer.set_after(SHORT).unwrap();
        assert_eq!(timer.wait_blocking().unwrap(), Expiry::Expired);
        timer.set_after(LONG).unwrap();
        let waits: Vec<_> = (0..3)
            .map(|_| {
                let timer = timer.clone();
                thread::spawn(move || timer.wait_blocking().unwrap())
            })
            .collect();
        while !format!("{timer:?}").contains("waits: 3") {
            thread::yield_now();
        }
        assert_eq!(timer.cancel(), 3);
        for wait in waits {
            assert_eq!(wait.join().unwrap(), Expiry::Canceled);
        }
        // A thread with a shard would keep that from running, and perhaps the timer with it.
        let (sender, refused) = mpsc::channel();
        let inner = timer.clone();
        service.post(move || sender.send(inner.wait_blocking().unwrap_err().kind())).unwrap();
        assert_eq!(refused.recv_timeout(PATIENCE).unwrap(), ErrorKind::Deadlock);
    });
}

#[test]
fn handles_are_of_use_on_any_thread_and_waits_on_any_shard() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Timer>();
    is_send_and_sync::<anabranch::component::Wait>();
    on_real_backends(|config| {
        let service = started(config.clone());
        let timer = Timer::new(&service);
        thread::scope(|scope| {
            for _ in 0..4 {
                let timer = &timer;
                scope.spawn(move || {
                    for _ in 0..100 {
                        timer.set_after(Duration::from_micros(100)).unwrap();
                        let _ = timer.wait_blocking().unwrap();
                        timer.cancel();
                    }
                });
            }
        });
        timer.set_after(SHORT).unwrap();
        let wait = timer.wait();
        assert_eq!(check(config, wait), Expiry::Expired);
    });
}

#[test]
fn the_end_of_the_service_cancels_waits_and_a_restart_makes_the_timer_useful_again() {
    on_real_backends(|config| {
        let service = started(config);
        let (sender, told) = mpsc::channel();
        let timer = Timer::with_callback(&service, move |_, expiry| sender.send(expiry).unwrap());
        timer.set_every(LONG).unwrap();
        let wait = timer.clone();
        let (begin, begun) = mpsc::channel();
        let waiter = thread::spawn(move || {
            let wait = wait.wait();
            begin.send(()).unwrap();
            anabranch::block_on(wait).unwrap()
        });
        begun.recv_timeout(PATIENCE).unwrap();
        service.stop().unwrap();
        assert_eq!(waiter.join().unwrap(), Expiry::Canceled);
        assert_eq!((timer.remaining(), timer.wait_blocking().unwrap()), (None, Expiry::Canceled));
        assert_eq!(timer.set_after(SHORT).unwrap_err().kind(), ErrorKind::NotConnected);
        for _ in 0..3 {
            service.restart().unwrap();
            timer.set_after(SHORT).unwrap();
            assert_eq!(timer.wait_blocking().unwrap(), Expiry::Expired);
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Expiry::Expired);
        }
    });
}

#[test]
fn a_loop_without_room_for_the_timer_says_so() {
    on_real_backends(|config| {
        let config = config.with_limits(|limits| limits.mailbox_max = 1);
        let service = Service::builder().config(config).build();
        service.start().unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let busy = move || {
            begin.send(()).unwrap();
            let _ = gate.recv();
        };
        service.post(busy).unwrap();
        begun.recv_timeout(PATIENCE).unwrap();
        service.post(|| ()).unwrap();
        let timer = Timer::new(&service);
        assert_eq!(timer.set_after(SHORT).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!((timer.remaining(), timer.wait_blocking().unwrap()), (None, Expiry::Canceled));
        drop(open);
        while timer.set_after(SHORT).is_err() {
            thread::yield_now();
        }
        assert_eq!(timer.wait_blocking().unwrap(), Expiry::Expired);
    });
}
