//! Bugs that were found and must not come back, each with its story.
#![forbid(unsafe_code)]

mod common;

use anabranch::driver::Driver;
use anabranch::driver::op::{Nop, RecvMulti};
use anabranch::fs::File;
use anabranch::{Close, Shard, sleep, spawn, yield_now};
use bytes::Bytes;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::Shutdown;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// A file that was dropped while a read of it was in flight is closed when the read has ended. At the end of a
/// shard the last counters were taken between the two, so that the ledger showed an open descriptor.
#[test]
fn a_file_dropped_in_flight_is_closed_in_the_last_counters() {
    common::on(common::real_backends(), |config| {
        let shard = Shard::new(config).expect("a shard");
        shard.block_on(async {
            let program = std::env::current_exe().unwrap();
            let file = File::from_std(std::fs::File::open(program).unwrap()).unwrap();
            let mut read = pin!(async move { file.read_at(0, 4 << 20).await });
            let begun = poll_fn(|context| Poll::Ready(read.as_mut().poll(context).is_pending())).await;
            assert!(begun, "nothing completes inside of a submission");
            yield_now().await;
        });
        shard.finish().settled().expect("the ledger is settled");
    });
}

/// What waits for no descriptor ran without regard to the budget of a turn on the readiness backend, and so did
/// the ends of what was cancelled before the ring took it: thousands of closes made one long turn.
#[test]
fn no_wait_brings_more_than_the_budget() {
    let all = [common::real_backends(), common::simulated_backends()].concat();
    common::on(all, |config| {
        const BUDGET: usize = 8;
        let config = config.ring_entries(32).with_limits(|limits| limits.completions_per_turn_max = BUDGET);
        let mut driver = Driver::new(&config).expect("a driver");
        let (socket, _peer) = common::peer::UnixStream::pair().unwrap();
        let socket = driver.adopt(socket).unwrap();
        for _ in 0..100 {
            driver.submit(Nop, 0).expect("a free slot");
            let receive = driver.submit(RecvMulti::new(socket.clone()), 0).expect("a free slot");
            driver.cancel(receive);
        }
        let mut out = Vec::new();
        while driver.in_flight() > 0 {
            driver.wait(Some(Duration::from_secs(5)), &mut out).unwrap();
            assert!(out.len() <= BUDGET + 1, "{} completions in one turn", out.len());
            out.drain(..).for_each(|raw| drop(driver.settle(raw)));
        }
    });
}

/// A time-out that ran out while the process was stopped fired before the loop had looked at what arrived
/// meanwhile: the wait was interrupted, brought nothing, and the timers expired. What lay in the socket long before
/// the deadline counted as silence. (That one wait may bring only a part of it is in tests/stress/stalls.rs.)
// Not on Windows: a process cannot be stopped there.
#[cfg(unix)]
#[test]
fn data_that_came_while_the_process_was_stopped_is_no_time_out() {
    use anabranch::timeout;
    common::net::alone("data_that_came_while_the_process_was_stopped_is_no_time_out", || {
        common::on(common::real_backends(), |config| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (silent, _peer) = UnixStream::pair().unwrap();
            let script =
                "sleep 0.1; kill -STOP $0; sleep 0.1; printf data; sleep 0.4; kill -CONT $0; sleep 0.2";
            let mut stopper = std::process::Command::new("sh")
                .args(["-c", script, &std::process::id().to_string()])
                .stdout(std::os::fd::OwnedFd::from(theirs))
                .spawn()
                .expect("a shell");
            common::run(config, async {
                let (mut ours, mut silent) = (from_std(ours), from_std(silent));
                let limit = Duration::from_millis(400);
                let other = spawn(async move { timeout(limit, silent.recv()).await.map(drop) });
                let data = timeout(limit, ours.recv()).await.expect("it came in time").unwrap();
                assert_eq!(&*data.expect("the shell still holds its end"), b"data");
                assert!(other.await.unwrap().is_err(), "who got nothing times out");
            });
            stopper.wait().expect("the shell ends");
        });
    });
}

#[cfg(unix)]
fn from_std(stream: UnixStream) -> anabranch::net::UnixStream {
    anabranch::net::UnixStream::from_std(stream).expect("room for a connection")
}

/// The owner of a payload that left in a batch was dropped while the shard was borrowed. A destructor or a hook that
/// panicked took the wakers and the buffers of everybody else in that turn with it, at the end of a shard the rest
/// of the end; two such destructors in one turn aborted the process.
#[test]
fn a_destructor_that_panics_costs_nobody_else_anything() {
    common::on(common::real_backends(), |config| {
        let shard = Shard::new(config).expect("a shard");
        let [first, second] = shard.block_on(async {
            let ((mut near, mut far), (mut other, mut echo)) =
                (common::net::with_peer(), common::net::with_peer());
            // Queued, never flushed: some leave now, some are still there when the shard ends.
            near.send(Bytes::from_owner(Fragile)).await.unwrap();
            near.send(Bytes::from_owner(Fragile)).await.unwrap();
            echo.write_all(b"alive").unwrap();
            assert_eq!(other.recv_exact(5).await.unwrap(), "alive");
            far.read_exact(&mut [0; 14]).unwrap();
            near.send(Bytes::from_owner(Fragile)).await.unwrap();
            [near, other]
        });
        drop((first, second));
        let counters = shard.finish();
        counters.settled().expect("the ledger is settled");
        assert_eq!(counters.panics, 3, "each is counted");
    });
}

/// Bytes whose destructor panics.
struct Fragile;

impl AsRef<[u8]> for Fragile {
    fn as_ref(&self) -> &[u8] {
        b"fragile"
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        panic!("a destructor of a user");
    }
}

/// The system tells a reset once. If a send was told, the next receive found zero bytes, and the stream said that its
/// end had come, as if what was received were all. (Found by the simulation: `simulate --scenario streams`, seed 35.)
#[test]
fn a_reset_that_a_send_was_told_of_is_no_end_of_the_stream() {
    common::net::on_typical_backends(|config| {
        common::net::check(config, async {
            let (mut stream, mut peer) = common::net::with_peer();
            peer.write_all(b"not all").unwrap();
            common::net::reset(peer);
            sleep(Duration::from_millis(50)).await;
            stream.send("x").await.unwrap();
            stream.flush().await.unwrap_err();
            assert_eq!(stream.recv_exact(7).await.unwrap(), "not all");
            stream.recv().await.expect_err("the connection failed before its end came");
        });
    });
}

/// A shard that ended while nobody had taken its last completions did not wait between two looks at its closing
/// connections: a busy loop of up to `drain_ms`, and in a simulation, where time stands still then, an endless one.
#[test]
fn the_end_of_a_shard_is_not_busy_with_completions_that_nobody_takes() {
    let all = [common::real_backends(), common::simulated_backends()].concat();
    common::on(all, |config| {
        let config = config.with_limits(|limits| limits.drain_ms = 200);
        let shard = Shard::new(config).unwrap();
        let (ours, _reads_nothing) = common::net::std_pair();
        let connection = shard.adopt_stream(ours).unwrap();
        let _ = shard.submit_send(connection, vec![0; 64 << 20], 1).unwrap();
        shard.submit_timeout(Duration::ZERO, 2).unwrap();
        shard.block_on(async { sleep(Duration::from_millis(20)).await });
        let counters = shard.finish();
        counters.settled().unwrap();
        assert!(counters.turns < 200, "{} turns in 200 ms", counters.turns);
    });
}

/// A task that another thread was waking while its shard ended was forgotten together with its future, whose
/// destructor never ran.
#[test]
fn a_task_that_is_being_woken_while_its_shard_ends_is_dropped() {
    common::on(common::real_backends(), |config| {
        let config = config.with_limits(|limits| (limits.buffers, limits.operations_max) = (4, 64));
        for _ in 0..300 {
            let lives = std::rc::Rc::new(());
            let shard = Shard::new(config.clone()).unwrap();
            shard.block_on(async {
                for _ in 0..8 {
                    let life = std::rc::Rc::clone(&lives);
                    spawn(async move {
                        let _life = life;
                        while anabranch::offload(|| ()).await.is_ok() {}
                    })
                    .detach();
                }
                for _ in 0..3 {
                    yield_now().await;
                }
            });
            drop(shard);
            assert_eq!(std::rc::Rc::strong_count(&lives), 1, "a task was not dropped");
        }
    });
}

/// io_uring finds no send to cancel whose connection the peer has half-closed (seen on Linux 6.18), so a close that
/// cannot wait for its peer waited for it all the same: for ever, if the peer read nothing.
#[test]
fn a_close_that_waits_for_nobody_ends_though_the_peer_has_half_closed_and_reads_nothing() {
    let all = [common::real_backends(), common::simulated_backends()].concat();
    common::on(all, |config| {
        for how in [Close::Now, Close::Abort] {
            let shard = Shard::new(config.clone()).unwrap();
            let (ours, theirs) = common::net::std_pair();
            let connection = shard.adopt_stream(ours).unwrap();
            let _ = shard.submit_send(connection, vec![0; 64 << 20], 1).unwrap();
            shard.submit_recv(connection, 2).unwrap();
            let mut theirs = Some(theirs);
            let mut closed = false;
            shard.submit_timeout(Duration::from_secs(10), 3).unwrap();
            shard.submit_timeout(Duration::from_millis(10), 4).unwrap();
            while !closed {
                shard
                    .poll(None, |completion| match (completion.tag, completion.event) {
                        (4, _) => theirs.as_mut().unwrap().shutdown(Shutdown::Write).unwrap(),
                        (2, _) => shard.submit_close(connection, how, 5).unwrap(),
                        (5, _) => closed = true,
                        (3, _) => panic!("{how:?} did not end"),
                        _ => {}
                    })
                    .unwrap();
            }
            drop(theirs.take());
            shard.finish().settled().unwrap();
        }
    });
}
