//! Spinning before a sleep: what it finds, when it is left, and that nothing depends on it.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::TcpStream;
use anabranch::{Config, Counters, Pinning, Runtime, Shard, Spin, sleep, yield_now};
use common::net::{Driven, counted, on_real_backends};
use common::{every_backend, masked_backends, on, on_every_backend, peer};
use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream as StdStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

const ALWAYS: Spin = Spin::UpTo(Spin::MAX);
const PATIENCE: Duration = Duration::from_secs(20);

/// The waste that src/shard/spin.rs allows.
fn assert_frugal(counters: &Counters) {
    let lost = counters.spins - counters.spins_won;
    // A sleep that was announced and not begun counts as none.
    let bound = 4 + counters.spins_won / 2 + counters.turns / 64;
    assert!(lost <= bound, "{lost} of {} spins found nothing, {} sleeps", counters.spins, counters.parks);
}

/// Exchanges messages with a blocking peer until `enough` of the shard's counters; gives the last counters.
fn echo_until(config: Config, enough: impl Fn(&Counters) -> bool) -> Counters {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let client = thread::spawn(move || {
        let mut stream = StdStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut sent, mut heard) = (0_u64, [0; 8]);
        while !ends.load(Ordering::Relaxed) {
            sent += 1;
            stream.write_all(&sent.to_le_bytes()).unwrap();
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(u64::from_le_bytes(heard), sent);
        }
    });
    let (socket, _) = listener.accept().unwrap();
    let end = Instant::now() + PATIENCE;
    let (_, counters) = counted(config, async {
        let mut stream = TcpStream::from_std(socket).unwrap();
        while let Some(bytes) = stream.recv().await.unwrap() {
            let counters = anabranch::counters().unwrap();
            if enough(&counters) || Instant::now() > end {
                over.store(true, Ordering::Relaxed);
            }
            stream.send(bytes).await.unwrap();
        }
    });
    client.join().unwrap();
    counters
}

#[test]
#[cfg_attr(windows, ignore = "a port is not looked at without asking it, so nothing spins there")]
fn a_request_that_comes_during_a_spin_needs_no_sleep() {
    on_real_backends(|config| {
        let counters = echo_until(config.spin(ALWAYS), |counters| counters.spins_won >= 5);
        assert!(counters.spins_won >= 5, "{} spins found something", counters.spins_won);
    });
}

#[test]
fn a_spin_sees_completions_whatever_the_ring_can_do() {
    on(masked_backends(), |config| {
        let counters = echo_until(config.spin(ALWAYS), |counters| counters.spins_won >= 2);
        assert!(counters.spins_won >= 2, "{} spins found something", counters.spins_won);
    });
}

#[test]
#[cfg_attr(windows, ignore = "a port is not looked at without asking it, so nothing spins there")]
fn a_message_that_comes_during_a_spin_is_handled_without_a_wake_call() {
    on_real_backends(|config| {
        let shard = Shard::new(config.spin(ALWAYS)).unwrap();
        let remote = shard.remote();
        let (ask, asked) = mpsc::channel::<Waker>();
        let handled = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&handled);
        let sender = thread::spawn(move || {
            while let Ok(waker) = asked.recv() {
                let seen = Arc::clone(&seen);
                let job = move || {
                    seen.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                };
                remote.run(job).unwrap();
            }
        });
        shard.block_on(async {
            let (mut messages, end) = (0, Instant::now() + PATIENCE);
            loop {
                let before = anabranch::counters().unwrap();
                messages += 1;
                poll_fn(|task| {
                    if handled.load(Ordering::Relaxed) == messages {
                        return Poll::Ready(());
                    }
                    ask.send(task.waker().clone()).unwrap();
                    Poll::Pending
                })
                .await;
                let after = anabranch::counters().unwrap();
                if after.spins_won > before.spins_won
                    && (after.parks, after.wakes) == (before.parks, before.wakes)
                {
                    return;
                }
                assert!(Instant::now() < end, "no message came during a spin");
            }
        });
        drop(ask);
        sender.join().unwrap();
    });
}

#[test]
fn a_timer_that_is_due_during_a_spin_is_neither_early_nor_forgotten() {
    on_every_backend(|config| {
        let (_, counters) = counted(config.spin(ALWAYS), async {
            for n in 0..200 {
                let duration = Duration::from_micros(n % 70);
                let start = peer::now();
                sleep(duration).await;
                assert!(peer::now() - start >= duration, "a sleep of {duration:?} was early");
            }
        });
        assert_frugal(&counters);
    });
}

#[test]
fn a_shard_that_is_idle_hardly_spins() {
    on_real_backends(|config| {
        let (_, counters) = counted(config.clone().spin(ALWAYS), async {
            let mut ticks = anabranch::interval(Duration::from_millis(1));
            for _ in 0..100 {
                ticks.tick().await;
            }
        });
        assert_frugal(&counters);
        assert!(counters.spins < 60, "{} spins in 100 ticks", counters.spins);

        let mut driven = Driven::new(config.clone().spin(ALWAYS));
        driven.idle(Duration::from_millis(100));
        let counters = driven.finish();
        assert_frugal(&counters);
    });
}

#[test]
fn nothing_spins_that_was_told_not_to_or_is_simulated() {
    on_real_backends(|config| {
        let counters = echo_until(config.clone().spin(Spin::Off), |counters| counters.turns > 200);
        assert_eq!((counters.spins, counters.spins_won), (0, 0));
        let counters = echo_until(config.spin(Spin::UpTo(Duration::ZERO)), |counters| counters.turns > 200);
        assert_eq!((counters.spins, counters.spins_won), (0, 0));
    });
    let others = every_backend().into_iter().filter(|(name, _)| !name.starts_with("uring"));
    for (name, config) in others.filter(|(name, _)| name != "readiness") {
        peer::enter(&config);
        let (_, counters) = counted(config.spin(ALWAYS), async {
            for _ in 0..20 {
                sleep(Duration::from_micros(200)).await;
            }
        });
        assert_eq!(counters.spins, 0, "{name}");
    }
}

#[test]
#[cfg_attr(windows, ignore = "a port is not looked at without asking it, so nothing spins there")]
fn shards_that_share_a_processor_do_not_spin_unless_asked_to() {
    on_real_backends(|config| {
        for (spin, spins) in [(Spin::Auto, false), (ALWAYS, true)] {
            let runtime = Runtime::builder()
                .shards(2)
                .pinning(Pinning::On(vec![0]))
                .config(config.clone().spin(spin))
                .start(|_| async {
                    for _ in 0..20 {
                        sleep(Duration::from_micros(100)).await;
                        yield_now().await;
                    }
                    Ok(())
                });
            for end in runtime.unwrap().join() {
                end.result.unwrap();
                assert_eq!(end.counters.spins > 0, spins, "{spin:?}: {} spins", end.counters.spins);
            }
        }
    });
}

#[test]
fn a_spin_that_is_too_long_is_refused_by_name() {
    let longer = Spin::MAX + Duration::from_nanos(1);
    let error = Shard::new(Config::new().spin(Spin::UpTo(longer))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("Config::spin"), "{error}");
    Shard::new(Config::new().spin(ALWAYS)).unwrap();
}
