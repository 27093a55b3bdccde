//! Bugs that were found and must not come back, each with its story.
#![forbid(unsafe_code)]

mod common;

use anabranch::driver::Driver;
use anabranch::driver::op::{Nop, RecvMulti};
use anabranch::fs::File;
use anabranch::{Shard, yield_now};
use std::future::poll_fn;
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
            let file = File::from_std(std::fs::File::open("/dev/urandom").unwrap()).unwrap();
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
    common::on(common::real_backends(), |config| {
        const BUDGET: usize = 8;
        let config = config.ring_entries(32).with_limits(|limits| limits.completions_per_turn_max = BUDGET);
        let mut driver = Driver::new(&config).expect("a driver");
        let (socket, _peer) = UnixStream::pair().unwrap();
        let socket = driver.adopt(socket.into()).unwrap();
        for _ in 0..100 {
            driver.submit(Nop, 0).expect("a free slot");
            let receive = driver.submit(RecvMulti { socket: socket.clone() }, 0).expect("a free slot");
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
