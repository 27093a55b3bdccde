//! Who owns what, and until when: invariants 1, 10 and 11.

use crate::common::net::anywhere;
use crate::common::peer::{self, FreshSocket, TcpStream};
use crate::common::{on_every_backend, real_backends};
use crate::rig::{PATIENCE, Rig, Watched, pattern, stuffed_pair};
use anabranch::driver::Driver;
use anabranch::driver::completion::Done;
use anabranch::driver::op::{
    Accept, Connect, Direction, Nop, Poll, ReadAt, Recv, RecvMsg, RecvMsgMulti, RecvMulti, Send, SendMsg,
};
use anabranch::{Config, Error};
use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn an_abandoned_receive_keeps_its_buffer_until_the_terminal_completion() {
    const LEN: usize = 100_000;
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(Recv { socket, buffer: Vec::with_capacity(LEN) });
        rig.turn(Duration::ZERO);
        rig.driver.abandon(token);
        assert_eq!(rig.driver.in_flight(), 1, "only its terminal completion ends it");
        // Would the buffer be free now, this one would be likely to get its memory.
        let watched = vec![0xa5u8; LEN];
        peer.write_all(&pattern(LEN)).unwrap();
        rig.idle();
        assert!(watched.iter().all(|byte| *byte == 0xa5));
        assert!(rig.kept.is_empty(), "nobody wants it: {:?}", rig.kept);
        rig.end();
    });
}

#[test]
fn an_abandoned_send_keeps_its_payload_until_the_terminal_completion() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (ours, _peer) = stuffed_pair();
        let socket = rig.adopt(ours);
        let (payload, released) = Watched::payload(pattern(1_000_000));
        let token = rig.submit(Send::new(socket, payload));
        rig.turn(Duration::from_millis(1));
        rig.driver.abandon(token);
        assert_eq!(released.load(Ordering::SeqCst), 0, "abandoning frees nothing");
        rig.until("the end of the send", |rig| {
            let held = released.load(Ordering::SeqCst) == 0;
            assert_eq!(held, rig.driver.in_flight() == 1, "released with the slot, not before");
            !held
        });
        assert_eq!(released.load(Ordering::SeqCst), 1);
        rig.end();
    });
}

#[test]
fn a_cancelled_operation_gives_back_what_it_owned() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, _peer) = rig.tcp();
        let mut buffer = Vec::with_capacity(123);
        buffer.push(1);
        let start = buffer.as_ptr();
        let token = rig.submit(Recv { socket, buffer });
        rig.turn(Duration::ZERO);
        rig.driver.cancel(token);
        let Done::Filled(Err(Error::Canceled), buffer) = rig.last(token) else { panic!("not cancelled") };
        assert_eq!((buffer.as_ptr(), &buffer[..], buffer.capacity()), (start, &[1][..], 123));
        assert_eq!(rig.end().canceled, 1);
    });
}

#[test]
fn a_descriptor_stays_open_as_long_as_an_operation_is_in_flight() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(10) });
        rig.turn(Duration::ZERO);
        drop(socket);
        rig.turn(Duration::ZERO);
        peer.write_all(b"still open").unwrap();
        let Done::Filled(Ok(bytes), _) = rig.last(token) else { panic!("no bytes") };
        assert!(bytes > 0);
        assert_eq!(rig.counters().descriptors_closed, 1, "it was the last reference");
        rig.end();
    });
}

#[test]
fn a_retired_descriptor_closes_after_its_last_operation() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(10) });
        rig.driver.retire(socket);
        rig.turn(Duration::ZERO);
        assert_eq!(rig.counters().descriptors_closed, 0);
        rig.driver.cancel(token);
        assert!(matches!(rig.last(token), Done::Filled(Err(Error::Canceled), _)));
        rig.turn(Duration::ZERO);
        assert_eq!(rig.counters().descriptors_closed, 1);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        rig.end();
    });
}

#[test]
fn a_descriptor_in_use_is_not_closed_but_given_back() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(10) });
        let Err(full) = rig.driver.close(socket, 0) else { panic!("closed under an operation") };
        peer.write_all(b"x").unwrap();
        assert!(matches!(rig.last(token), Done::Filled(Ok(1), _)), "the operation was not disturbed");
        let close = rig.driver.close(full.0, 0).expect("nothing uses it");
        rig.ended(close).unwrap();
        rig.end();
    });
}

#[test]
fn a_descriptor_number_that_is_used_again_starts_anew() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        for round in 0..50u8 {
            let (socket, mut peer) = rig.tcp();
            let token = rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(10) });
            if round % 2 == 0 {
                rig.turn(Duration::ZERO);
            }
            peer.write_all(&[round]).unwrap();
            let Done::Filled(Ok(1), buffer) = rig.last(token) else { panic!("round {round}") };
            assert_eq!(buffer, [round]);
            // All the ways in which a descriptor may go.
            match round % 3 {
                0 => drop(socket),
                1 => rig.driver.retire(socket),
                _ => drop(rig.driver.close(socket, 0).expect("nothing uses it")),
            }
        }
        rig.idle();
        assert_eq!(rig.end().descriptors_closed, 50);
    });
}

/// Puts one operation of each kind that waits in flight; says when the payloads are released.
fn everything_in_flight(rig: &mut Rig) -> Vec<std::sync::Arc<std::sync::atomic::AtomicUsize>> {
    let (listener, address) = rig.listener();
    let (udp, _) = rig.udp();
    let (stream, peer) = rig.tcp();
    let foreign = rig.adopt(peer);
    let (full, _) = {
        let (ours, theirs) = stuffed_pair();
        (rig.adopt(ours), rig.adopt(theirs))
    };
    let client = FreshSocket::new(socket2::Domain::IPV4).unwrap();
    let client = rig.adopt(client);
    let file = rig.adopt(peer::file(true, true).unwrap());
    rig.submit(Accept { listener: listener.clone(), repeat: false });
    rig.submit(Accept { listener, repeat: true });
    rig.submit(Connect::new(client, address.into()));
    rig.submit(Recv { socket: stream.clone(), buffer: Vec::with_capacity(1000) });
    rig.submit(RecvMulti::new(stream));
    rig.submit(RecvMsg::new(udp.clone(), Vec::with_capacity(1000)));
    rig.submit(RecvMsgMulti { socket: udp });
    rig.submit(Poll { fd: foreign, direction: Direction::Read });
    rig.submit(Nop);
    rig.submit(ReadAt { file, buffer: Vec::with_capacity(1000), offset: 0 });
    let (watched, flags): (Vec<_>, Vec<_>) = (0..3).map(|_| Watched::payload(pattern(1_000_000))).unzip();
    let mut watched = watched.into_iter();
    rig.submit(Send::new(full.clone(), watched.next().unwrap()));
    rig.submit(Send::zero_copy(full.clone(), watched.next().unwrap()));
    rig.submit(SendMsg::new(full, vec![watched.next().unwrap()].into()));
    flags
}

#[test]
fn dropping_the_driver_with_everything_in_flight_gives_everything_back() {
    on_every_backend(|config| {
        for turns in 0..3 {
            let mut rig = Rig::new(config.clone());
            let released = everything_in_flight(&mut rig);
            rig.turns(turns, Duration::ZERO);
            let pool = rig.driver.pool().clone();
            drop(rig);
            assert!(released.iter().all(|count| count.load(Ordering::SeqCst) == 1), "each payload once");
            assert_eq!(pool.ledger().0, pool.ledger().1, "every buffer came home");
        }
    });
}

#[test]
fn draining_ends_everything_in_flight_and_settles_the_ledger() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let released = everything_in_flight(&mut rig);
        rig.turn(Duration::ZERO);
        let counters = rig.end();
        assert!(counters.submitted >= 13);
        assert!(released.iter().all(|count| count.load(Ordering::SeqCst) == 1));
    });
}

#[test]
fn a_peer_sees_the_end_when_the_driver_that_received_from_it_is_dropped() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        rig.submit(RecvMulti::new(socket));
        rig.turn(Duration::ZERO);
        drop(rig);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn leases_outlive_the_driver() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        peer.write_all(b"kept").unwrap();
        let mut lease = None;
        while lease.is_none() {
            let token = rig.submit(RecvMulti::new(socket.clone()));
            let completion = rig.next(token);
            if let Done::Received(anabranch::driver::completion::Received::Data(data)) = completion.done {
                lease = Some(data);
            }
        }
        drop((socket, rig));
        let lease = lease.unwrap();
        assert!(b"kept".starts_with(&lease));
        drop(lease);
    });
}

#[test]
fn a_driver_that_never_waited_is_dropped_like_any_other() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (payload, released) = Watched::payload(vec![1]);
        let (socket, _peer) = rig.tcp();
        rig.submit(Send::new(socket, payload));
        rig.submit(Nop);
        drop(rig);
        assert_eq!(released.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn an_accepted_connection_that_nobody_takes_is_closed() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (listener, address) = rig.listener();
        let token = rig.submit(Accept { listener: listener.clone(), repeat: true });
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // The connection has been accepted; the accept is abandoned before anybody has asked for it.
        let raw = rig.raw_news();
        rig.driver.abandon(token);
        rig.settle(raw);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "closed while the listener is open");
        rig.idle();
        assert!(rig.kept.is_empty());
        let counters = rig.counters();
        assert_eq!((counters.descriptors_opened, counters.descriptors_closed), (2, 1));
        drop(listener);
        rig.end();
    });
}

#[test]
fn a_failed_start_leaves_no_descriptor_behind() {
    let open = || std::fs::read_dir("/proc/self/fd").map(|entries| entries.count());
    if open().is_err() {
        eprintln!("NOT COVERED: this system does not list descriptors");
        return;
    }
    // Other tests of this process open and close descriptors meanwhile, so only a steady growth tells.
    for (_, config) in real_backends() {
        let before = open().unwrap();
        for _ in 0..300 {
            drop(Driver::new(&config.clone().with_limits(|limits| limits.buffers = 4)).unwrap());
            let bad = Config::new().with_limits(|limits| limits.buffer_bytes = 1);
            assert!(Driver::new(&bad).is_err());
        }
        let after = open().unwrap();
        assert!(after < before + 250, "{before} descriptors were open, then {after}");
    }
}

#[test]
fn a_connect_that_waits_can_be_cancelled() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let Some((full, _hold)) = full_listener() else {
            eprintln!("NOT COVERED: no connect waits here");
            return;
        };
        let client = FreshSocket::new(socket2::Domain::IPV4).unwrap();
        let client = rig.adopt(client);
        let token = rig.submit(Connect::new(client, full.local_addr().unwrap()));
        rig.turn(Duration::from_millis(2));
        assert!(rig.kept.is_empty(), "{:?}", rig.kept);
        rig.driver.cancel(token);
        assert!(matches!(rig.ended(token), Err(Error::Canceled)));
        rig.end();
    });
}

/// A listener whose queue is full, so that the next connect gets no answer.
fn full_listener() -> Option<(FreshSocket, Vec<FreshSocket>)> {
    let new = || FreshSocket::new(socket2::Domain::IPV4).unwrap();
    let listener = new();
    listener.bind(anywhere()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut hold = Vec::new();
    for _ in 0..8 {
        let client = new();
        if client.connect_timeout(&address, Duration::from_millis(30)).is_err() {
            return Some((listener, hold));
        }
        hold.push(client);
    }
    None
}
