//! What the driver promises, seen from inside.
#![forbid(unsafe_code)]

use super::op::{Nop, ReadAt};
use super::*;
use sys::script::Script;

fn driver(script: Script) -> Driver {
    let config = Config::new().script(script).with_limits(|limits| {
        (limits.operations_max, limits.buffers, limits.buffer_bytes) = (64, 4, 512);
        (limits.datagram_buffers, limits.datagram_buffer_bytes) = (2, 512);
    });
    Driver::new(&config).expect("a driver")
}

/// What the driver brings until nothing is in flight.
fn all(driver: &mut Driver) -> Vec<Completion> {
    let (mut raw, mut all) = (Vec::new(), Vec::new());
    while driver.in_flight() > 0 {
        driver.wait(Some(Duration::from_millis(50)), &mut raw).expect("a wait");
        all.extend(raw.drain(..).filter_map(|raw| driver.settle(raw)));
    }
    all
}

fn settled(driver: &Driver) -> Counters {
    let mut counters = Counters::default();
    driver.count(&mut counters);
    counters.settled().expect("the ledger is settled");
    counters
}

/// Taken with `adopt_accepted`, as Miri cannot ask whether a file blocks.
fn file() -> Descriptor {
    std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("a file").into()
}

#[test]
fn a_calm_script_completes_in_order_of_submission() {
    let mut driver = driver(Script::calm(1));
    let tokens: Vec<_> = (0..20).map(|owner| driver.submit(Nop, owner).unwrap()).collect();
    let completed = all(&mut driver);
    assert!(completed.iter().map(|completion| completion.token).eq(tokens));
    assert!(completed.iter().map(|completion| completion.owner).eq(0..20));
    settled(&driver);
}

#[test]
fn a_rough_script_completes_each_once_in_another_order() {
    let mut driver = driver(Script::rough(5));
    let tokens: Vec<_> = (0..40).map(|owner| driver.submit(Nop, owner).unwrap()).collect();
    let mut order: Vec<_> = all(&mut driver).iter().map(|completion| completion.owner).collect();
    assert_ne!(order, (0..40).collect::<Vec<_>>());
    order.sort_unstable();
    assert_eq!((order, tokens.len()), ((0..40).collect(), 40));
    settled(&driver);
}

#[test]
fn a_cancelled_operation_ends_as_cancelled_or_late_as_a_success() {
    let mut driver = driver(Script::rough(7));
    let tokens: Vec<_> = (0..40).map(|owner| driver.submit(Nop, owner).unwrap()).collect();
    tokens.iter().for_each(|token| driver.cancel(*token));
    let completed = all(&mut driver);
    let is_success = |completion: &&Completion| matches!(completion.done, Done::Ended(Ok(())));
    let successes = completed.iter().filter(is_success).count();
    assert_eq!(completed.len(), 40);
    assert!((1..40).contains(&successes), "{successes}");
    assert_eq!(settled(&driver).canceled, 40 - successes as u64);
}

#[test]
fn a_cancelled_close_closes_all_the_same() {
    for script in [Script::calm(1), Script::rough(2), Script::rough(3)] {
        let mut driver = driver(script);
        let fd = driver.adopt_accepted(file());
        let token = driver.close(fd, 0).unwrap();
        driver.cancel(token);
        assert_eq!(all(&mut driver).len(), 1);
        assert_eq!(settled(&driver).descriptors_closed, 1);
    }
}

#[test]
fn an_abandoned_read_delivers_nothing_and_drops_its_buffer_at_its_end() {
    let mut driver = driver(Script::rough(4));
    let file = driver.adopt_accepted(file());
    for _ in 0..10 {
        let op = ReadAt { file: file.clone(), buffer: Vec::with_capacity(100), offset: 0 };
        let token = driver.submit(op, 0).unwrap();
        driver.abandon(token);
        assert_eq!(driver.in_flight(), 1);
        assert!(all(&mut driver).is_empty());
    }
    driver.retire(file);
    settled(&driver);
}

#[test]
fn a_stale_completion_gives_its_piece_back_to_its_own_pool() {
    let mut driver = driver(Script::calm(1));
    let token = driver.submit(Nop, 0).unwrap();
    assert_eq!(all(&mut driver).len(), 1);
    let (config, wake) = (driver.config.clone(), driver.wake());
    let datagram = driver.pools.add_datagrams(&config, wake).unwrap().take();
    driver.pools.streams.move_to_kernel(1, |_, _| {});
    // The kernel goes on with the rest of the buffer, or does not.
    let streams = &driver.pools.streams;
    let stays = streams.left_kernel(0, 100, true);
    let leaves = streams.left_kernel(0, 100, false);
    for buffer in [stays, leaves].into_iter().chain(datagram) {
        let raw = RawCompletion { token, result: 100, more: true, buffer: Some(buffer) };
        assert!(driver.settle(raw).is_none());
    }
    assert_eq!(driver.datagram_pool().map(Pool::available), Some(2));
    assert_eq!((driver.pool().available(), driver.pool().in_kernel()), (4, 0));
    assert_eq!((settled(&driver).stale, settled(&driver).buffers_lent), (3, 3));
}

#[test]
fn dropping_the_driver_gives_everything_back() {
    let mut driver = driver(Script::rough(6));
    let file = driver.adopt_accepted(file());
    for _ in 0..10 {
        driver.submit(Nop, 0).unwrap();
        let op = ReadAt { file: file.clone(), buffer: Vec::with_capacity(100), offset: 0 };
        driver.submit(op, 0).unwrap();
    }
    let census = Rc::clone(&driver.census);
    driver.retire(file);
    drop(driver);
    assert_eq!((census.opened.get(), census.closed.get()), (1, 1));
}

#[test]
fn a_descriptor_in_use_is_not_given_away() {
    let mut driver = driver(Script::calm(1));
    let fd = driver.adopt_accepted(file());
    let op = ReadAt { file: fd.clone(), buffer: Vec::with_capacity(10), offset: 0 };
    driver.submit(op, 0).unwrap();
    let fd = driver.release(fd).expect_err("an operation uses it");
    assert_eq!(all(&mut driver).len(), 1, "which is not disturbed");
    driver.retire(fd);
    settled(&driver);
}
