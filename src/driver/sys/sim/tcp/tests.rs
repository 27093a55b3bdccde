//! What TCP promises, with and without faults. Random streams against a model are in `stress.rs`.

#![forbid(unsafe_code)]

mod stress;

use super::super::testing::{Pair, ip};
use super::super::{DescriptorId, Family, Fault, Faults, Flag, Kind, Settings, SimAddress};
use crate::driver::sys::os::libc;
use std::net::Shutdown;
use std::time::Duration;

fn quiet() -> Pair {
    Pair::new(1, Faults::none())
}

fn state(pair: &mut Pair, id: DescriptorId) -> Option<i32> {
    assert!(pair.world.is_ready(id, false), "the connection is still being made");
    pair.world.take_error(id)
}

#[test]
fn bytes_arrive_and_the_end_after_them() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    assert_eq!(pair.receive(far), Err(libc::EAGAIN));
    assert_eq!(pair.world.send(near, b"hello"), Ok(5));
    pair.world.shutdown(near, Shutdown::Write).unwrap();
    assert_eq!(pair.world.send(near, b"more"), Err(libc::EPIPE));
    assert!(!pair.world.is_ready(far, true));
    pair.run_ms(5);
    assert!(pair.world.is_ready(far, true));
    assert_eq!(pair.world.bytes_queued(far), 5);
    assert_eq!(pair.receive(far).unwrap(), b"hello");
    assert_eq!(pair.receive(far).unwrap(), b"");
    assert_eq!(pair.world.send(far, b"half closed"), Ok(11));
    pair.run_ms(5);
    assert_eq!(pair.receive(near).unwrap(), b"half closed");
    pair.world.close(far).unwrap();
    pair.run_ms(5);
    assert_eq!(pair.receive(near).unwrap(), b"");
    pair.world.close(near).unwrap();
    pair.run_ms(5);
    assert!(pair.world.connections().is_empty());
    assert!(!pair.world.has_activity());
}

#[test]
fn both_ends_know_both_addresses() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    let world = &pair.world;
    assert_eq!(world.peer_address(near), Ok(ip("10.0.0.2:80")));
    assert_eq!(world.local_address(far), Ok(ip("10.0.0.2:80")));
    assert_eq!(world.peer_address(far), world.local_address(near));
    let SimAddress::Ip(local) = world.local_address(near).unwrap() else { panic!() };
    assert!((32768..=60999).contains(&local.port()));
}

#[test]
fn connecting_fails_as_on_linux() {
    let mut pair = quiet();
    let id = pair.connecting(pair.a, "10.0.0.2:80");
    assert!(!pair.world.is_ready(id, true) && !pair.world.is_ready(id, false));
    assert_eq!(pair.world.send(id, b"early"), Err(libc::EAGAIN));
    assert_eq!(pair.world.connect(id, &ip("10.0.0.2:80")), Err(libc::EALREADY));
    pair.run_ms(5);
    assert_eq!(state(&mut pair, id), Some(libc::ECONNREFUSED));
    let id = pair.world.socket(pair.a, Family::V4, Kind::Stream).unwrap();
    assert_eq!(pair.world.connect(id, &ip("10.9.9.9:80")), Err(libc::EHOSTUNREACH));
    assert_eq!(pair.world.connect(id, &ip("224.0.0.1:80")), Err(libc::ENETUNREACH));
    pair.world.partition(pair.a, pair.b);
    let id = pair.connecting(pair.a, "10.0.0.2:80");
    pair.run(Duration::from_secs(9));
    assert!(!pair.world.is_ready(id, false));
    pair.run(Duration::from_secs(2));
    assert_eq!(state(&mut pair, id), Some(libc::ETIMEDOUT));
}

#[test]
fn a_failed_socket_may_connect_again() {
    let mut pair = quiet();
    let id = pair.connecting(pair.a, "10.0.0.2:80");
    pair.run_ms(5);
    assert_eq!(state(&mut pair, id), Some(libc::ECONNREFUSED));
    pair.listener(pair.b, "10.0.0.2:80", 10);
    assert_eq!(pair.world.connect(id, &ip("10.0.0.2:80")), Err(libc::EINPROGRESS));
    pair.run_ms(5);
    assert_eq!(state(&mut pair, id), None);
    assert_eq!(pair.world.connect(id, &ip("10.0.0.2:80")), Err(libc::EISCONN));
}

#[test]
fn a_listener_on_every_address_of_ipv6_takes_ipv4_unless_told_otherwise() {
    let mut pair = quiet();
    let listener = pair.listener(pair.b, "[::]:80", 10);
    pair.connecting(pair.a, "10.0.0.2:80");
    pair.run_ms(5);
    let far = pair.world.accept(listener).unwrap();
    assert_eq!(pair.world.local_address(far), Ok(ip("[::ffff:10.0.0.2]:80")));
    let strict = pair.world.socket(pair.b, Family::V6, Kind::Stream).unwrap();
    pair.world.set_option(strict, Flag::OnlyV6, 1).unwrap();
    pair.world.bind(strict, &ip("[::]:81")).unwrap();
    pair.world.listen(strict, 1).unwrap();
    let refused = pair.connecting(pair.a, "10.0.0.2:81");
    pair.run_ms(5);
    assert_eq!(state(&mut pair, refused), Some(libc::ECONNREFUSED));
}

#[test]
fn listeners_that_share_a_port_share_the_connections() {
    let mut pair = quiet();
    let listeners: Vec<_> = (0..3)
        .map(|_| {
            let id = pair.world.socket(pair.b, Family::V4, Kind::Stream).unwrap();
            pair.world.set_option(id, Flag::ReusePort, 1).unwrap();
            pair.world.bind(id, &ip("0.0.0.0:80")).unwrap();
            pair.world.listen(id, 100).unwrap();
            id
        })
        .collect();
    let alone = pair.world.socket(pair.b, Family::V4, Kind::Stream).unwrap();
    assert_eq!(pair.world.bind(alone, &ip("10.0.0.2:80")), Err(libc::EADDRINUSE));
    assert_eq!(pair.world.bind(alone, &ip("10.0.0.1:80")), Err(libc::EADDRNOTAVAIL));
    (0..60).for_each(|_| {
        pair.connecting(pair.a, "10.0.0.2:80");
    });
    pair.run_ms(5);
    for listener in listeners {
        let taken = std::iter::from_fn(|| pair.world.accept(listener).ok()).count();
        assert!((5..40).contains(&taken), "{taken}");
    }
}

#[test]
fn a_full_backlog_makes_the_others_wait() {
    let mut pair = quiet();
    let listener = pair.listener(pair.b, "10.0.0.2:80", 1);
    let ids: Vec<_> = (0..3).map(|_| pair.connecting(pair.a, "10.0.0.2:80")).collect();
    pair.run_ms(500);
    assert_eq!(ids.iter().filter(|id| pair.world.is_ready(**id, false)).count(), 2);
    pair.world.accept(listener).unwrap();
    pair.run_ms(1000);
    assert!(ids.iter().all(|id| pair.world.is_ready(*id, false)));
}

#[test]
fn closing_with_unread_bytes_resets_after_what_was_sent() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    pair.world.send(near, b"never read").unwrap();
    pair.run_ms(5);
    pair.world.send(far, b"last words").unwrap();
    pair.world.close(far).unwrap();
    pair.run_ms(5);
    assert_eq!(pair.receive(near).unwrap(), b"last words");
    assert_eq!(pair.receive(near), Err(libc::ECONNRESET));
    assert_eq!(pair.receive(near).unwrap(), b"");
    assert_eq!(pair.world.send(near, b"x"), Err(libc::EPIPE));
    assert_eq!(pair.world.shutdown(near, Shutdown::Both), Err(libc::ENOTCONN));
    pair.world.close(near).unwrap();
    assert!(pair.world.connections().is_empty());
}

#[test]
fn bytes_to_a_closed_end_are_answered_by_a_reset() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    pair.world.close(far).unwrap();
    pair.run_ms(5);
    assert_eq!(pair.world.send(near, b"anybody there"), Ok(13));
    pair.run_ms(5);
    // The end of the stream came before the reset, so Linux says EPIPE and reading goes on to say the end.
    assert_eq!(pair.receive(near).unwrap(), b"");
    assert_eq!(pair.world.send(near, b"x"), Err(libc::EPIPE));
}

#[test]
fn lingering_for_no_time_resets_at_once() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    pair.world.set_linger_zero(near).unwrap();
    pair.world.close(near).unwrap();
    pair.run_ms(5);
    assert_eq!(pair.world.take_error(far), Some(libc::ECONNRESET));
    assert_eq!(pair.world.take_error(far), None);
}

#[test]
fn a_connection_may_be_reset_while_it_waits_to_be_accepted() {
    let mut pair = quiet();
    let listener = pair.listener(pair.b, "10.0.0.2:80", 10);
    let near = pair.connecting(pair.a, "10.0.0.2:80");
    pair.run_ms(5);
    pair.world.set_linger_zero(near).unwrap();
    pair.world.close(near).unwrap();
    pair.run_ms(5);
    let far = pair.world.accept(listener).unwrap();
    assert_eq!(pair.receive(far), Err(libc::ECONNRESET));
    let near = pair.connecting(pair.a, "10.0.0.2:80");
    pair.run_ms(5);
    pair.world.close(listener).unwrap();
    pair.run_ms(5);
    assert_eq!(pair.receive(near), Err(libc::ECONNRESET));
}

#[test]
fn a_sender_stops_when_nobody_reads_and_goes_on_when_somebody_does() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    let node = pair.world.add_node(pair.a);
    let mut sent = 0;
    loop {
        match pair.world.send(near, &[7; 10_000]) {
            Ok(count) => sent += count,
            Err(_) if pair.world.has_activity() => pair.run_ms(5),
            Err(error) => break assert_eq!(error, libc::EAGAIN),
        }
    }
    assert_eq!(sent, 2 * (64 << 10));
    pair.world.watch(near, node);
    assert!(!pair.world.is_runnable(node));
    assert_eq!(pair.receive(far).unwrap().len(), 64 << 10);
    pair.run_ms(5);
    let mut ready = Vec::new();
    pair.world.take_ready(node, &mut ready);
    assert_eq!(ready, [near]);
    assert!(pair.world.is_ready(near, false));
}

#[test]
fn a_closed_socket_goes_on_sending() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    let mut sent = 0;
    while let Ok(count) = pair.world.send(near, &[7; 10_000]) {
        sent += count;
        pair.run_ms(5);
    }
    pair.world.close(near).unwrap();
    let mut received = 0;
    loop {
        match pair.receive(far) {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => received += bytes.len(),
            Err(_) => pair.run_ms(5),
        }
    }
    assert_eq!(received, sent);
    pair.world.close(far).unwrap();
    pair.run_ms(5);
    assert!(pair.world.connections().is_empty());
}

#[test]
fn a_short_partition_delays_and_a_long_one_ends_the_connection() {
    let mut pair = quiet();
    let (_, near, far) = pair.connection();
    pair.world.partition(pair.a, pair.b);
    pair.world.send(near, b"late").unwrap();
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.receive(far), Err(libc::EAGAIN));
    pair.world.heal(pair.a, pair.b);
    pair.run(Duration::from_secs(10));
    assert_eq!(pair.receive(far).unwrap(), b"late");
    // The acknowledgement is what gets lost here.
    pair.world.partition_one_way(pair.b, pair.a);
    pair.world.send(near, b"heard, not answered").unwrap();
    pair.run(Duration::from_secs(40));
    assert_eq!(pair.receive(near), Err(libc::ETIMEDOUT));
    assert_eq!(pair.receive(far).unwrap(), b"heard, not answered");
    pair.world.heal_all();
    pair.world.send(far, b"x").unwrap();
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.receive(far), Err(libc::ECONNRESET));
}

#[test]
fn a_crashed_host_says_nothing_until_it_is_back_and_then_resets() {
    let mut pair = quiet();
    let (listener, near, far) = pair.connection();
    pair.world.crash(pair.b);
    assert_eq!(pair.receive(far), Err(libc::EBADF));
    assert_eq!(pair.world.accept(listener), Err(libc::EBADF));
    assert_eq!(pair.world.descriptors_open(pair.b), 0);
    assert_eq!(pair.world.socket(pair.b, Family::V4, Kind::Stream), Err(libc::EIO));
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.receive(near), Err(libc::EAGAIN));
    pair.world.send(near, b"anybody there").unwrap();
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.receive(near), Err(libc::EAGAIN));
    pair.world.restart(pair.b);
    pair.run(Duration::from_secs(10));
    assert_eq!(pair.receive(near), Err(libc::ECONNRESET));
}

#[test]
fn a_crash_during_the_handshake_lets_the_client_try_again() {
    for micros in (50..2000).step_by(50) {
        let mut pair = Pair::new(micros, Faults::none());
        pair.listener(pair.b, "10.0.0.2:80", 10);
        let near = pair.connecting(pair.a, "10.0.0.2:80");
        pair.run(Duration::from_micros(micros));
        pair.world.crash(pair.b);
        pair.run_ms(100);
        pair.world.restart(pair.b);
        let listener = pair.listener(pair.b, "10.0.0.2:80", 10);
        pair.run(Duration::from_secs(12));
        assert!(pair.world.is_ready(near, false), "{micros}");
        if let Ok(far) = pair.world.accept(listener) {
            assert_eq!(pair.world.send(near, b"again"), Ok(5), "{micros}");
            pair.run_ms(5);
            assert_eq!(pair.receive(far).unwrap(), b"again");
        }
        pair.world.crash(pair.a);
        pair.run(Duration::from_secs(60));
        let left = pair.world.connections();
        assert!(left.iter().all(|one| one.descriptors[1].is_some()), "{micros}: {left:?}");
    }
}

#[test]
fn a_host_reaches_itself_whatever_the_network_does() {
    let mut pair = Pair::new(3, Faults::none().with(Fault::Reset, 1.0).with(Fault::SynLoss, 1.0));
    let listener = pair.listener(pair.a, "0.0.0.0:80", 10);
    for address in ["127.0.0.1:80", "10.0.0.1:80"] {
        let near = pair.connecting(pair.a, address);
        pair.run_ms(1);
        let far = pair.world.accept(listener).unwrap();
        pair.world.send(near, b"home").unwrap();
        pair.run_ms(1);
        assert_eq!(pair.receive(far).unwrap(), b"home");
    }
}

#[test]
fn descriptors_run_out() {
    let settings = Settings { descriptors_max: 3, ..Settings::default() };
    let mut pair = Pair::with(1, Faults::none(), settings);
    let listener = pair.listener(pair.b, "10.0.0.2:80", 10);
    let others = [(); 2].map(|()| pair.world.socket(pair.b, Family::V4, Kind::Stream).unwrap());
    pair.connecting(pair.a, "10.0.0.2:80");
    pair.run_ms(5);
    assert_eq!(pair.world.accept(listener), Err(libc::EMFILE));
    pair.world.close(others[0]).unwrap();
    assert!(pair.world.accept(listener).is_ok());
    assert_eq!(pair.world.descriptors_open(pair.b), 3);
}
