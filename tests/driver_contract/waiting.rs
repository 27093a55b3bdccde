//! Waiting, time-outs and wakes.

use crate::common::{on_every_backend, peer};
use crate::rig::{PATIENCE, Rig};
use anabranch::driver::op::{Nop, RecvMulti};
use std::time::{Duration, Instant};

#[test]
fn a_wait_with_no_time_returns_at_once() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, _peer) = rig.tcp();
        rig.submit(RecvMulti::new(socket));
        let start = Instant::now();
        for _ in 0..20 {
            rig.turn(Duration::ZERO);
        }
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        rig.end();
    });
}

#[test]
fn a_wait_that_nothing_ends_is_not_early() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        // Whether anything is in flight or not.
        for armed in [false, true] {
            if armed {
                let (socket, peer) = rig.tcp();
                rig.submit(RecvMulti::new(socket));
                std::mem::forget(peer);
                // Arming may fail and be reported once by a script; let that pass.
                rig.turn(Duration::ZERO);
                rig.turn(Duration::ZERO);
            }
            if armed && rig.may_starve() {
                continue;
            }
            for timeout in [Duration::from_micros(1500), Duration::from_millis(25)] {
                let start = rig.driver.now();
                let count = rig.turn(timeout);
                let took = rig.driver.now() - start;
                assert!(count > 0 || took >= timeout, "{took:?} of {timeout:?}");
                assert_eq!(count, 0);
                assert!(took < PATIENCE);
            }
        }
        rig.end();
    });
}

#[test]
fn a_completion_ends_a_wait_without_a_time_out() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        rig.submit(Nop);
        let mut raw = Vec::new();
        rig.driver.wait(None, &mut raw).unwrap();
        assert_eq!(raw.len(), 1);
        rig.settle(raw);
        rig.end();
    });
}

#[test]
fn a_wake_from_another_thread_ends_a_wait() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        for _ in 0..3 {
            let wake = rig.driver.wake();
            let start = Instant::now();
            let waker = peer::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                wake.wake();
            });
            let mut raw = Vec::new();
            rig.driver.wait(None, &mut raw).unwrap();
            assert!(raw.is_empty(), "a wake is no completion");
            // A simulated wake may come twice, the second time into the next wait.
            let alone = start.elapsed() >= Duration::from_millis(10);
            assert!(alone || rig.is(anabranch::BackendKind::Simulated), "nothing else ended it");
            waker.join().unwrap();
        }
        rig.end();
    });
}

#[test]
fn a_wake_before_the_wait_ends_it_too() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        for wakes in [1, 1000] {
            // Many are as good as one.
            (0..wakes).for_each(|_| rig.driver.wake().wake());
            let mut raw = Vec::new();
            rig.driver.wait(None, &mut raw).unwrap();
            assert!(raw.is_empty());
        }
        rig.end();
    });
}

#[test]
fn wakes_and_completions_do_not_disturb_each_other() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config.ring_entries(8));
        let wake = rig.driver.wake();
        let waker = peer::spawn(move || {
            for _ in 0..200 {
                wake.wake();
                std::thread::yield_now();
            }
        });
        for _ in 0..300 {
            let token = rig.submit(Nop);
            rig.ended(token).unwrap();
        }
        waker.join().unwrap();
        rig.end();
    });
}

#[test]
fn a_wake_is_harmless_after_the_driver_has_gone() {
    on_every_backend(|config| {
        let rig = Rig::new(config);
        let wake = rig.driver.wake();
        drop(rig);
        wake.wake();
        wake.clone().wake();
    });
}

#[test]
fn a_hungry_pool_wakes_its_driver_when_a_buffer_comes_home() {
    on_every_backend(|config| {
        use anabranch::driver::completion::{Done, Received};
        use std::io::Write;
        let mut rig = Rig::with(config, |limits| limits.buffers = 1);
        let (socket, mut peer) = rig.tcp();
        peer.write_all(b"x").unwrap();
        let lease = loop {
            let token = rig.submit(RecvMulti::new(socket.clone()));
            let completion = rig.next(token);
            rig.driver.abandon(token);
            rig.idle();
            match completion.done {
                Done::Received(Received::Data(lease)) => break lease,
                Done::Starved => {}
                other => panic!("{other:?}"),
            }
        };
        rig.driver.pool().set_hungry(true);
        let bytes = lease.into_bytes();
        let holder = peer::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            drop(bytes);
        });
        rig.driver.wait(None, &mut Vec::new()).unwrap();
        holder.join().unwrap();
        rig.driver.pool().collect();
        assert_eq!(rig.driver.pool().available(), 1);
        drop(socket);
        rig.end();
    });
}
