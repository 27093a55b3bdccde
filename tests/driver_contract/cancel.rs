//! Exactly once, never inline, cancel is a request: invariants 4 to 7.

use crate::common::peer::{self, TcpStream};
use crate::common::{has_uring, on_every_backend};
#[cfg(unix)]
use crate::common::{on, real_backends};
use crate::rig::{Rig, pattern, peer_of};
use anabranch::driver::Token;
use anabranch::driver::completion::Done;
#[cfg(unix)]
use anabranch::driver::completion::Received;
use anabranch::driver::op::{Accept, Direction, Nop, Poll, Recv, RecvMulti, Send};
use anabranch::{Backend, Capability, Config, Error, Script};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::Duration;

#[test]
fn submit_completes_nothing_there_and_then() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        peer.write_all(b"ready").unwrap();
        let (payload, released) = crate::rig::Watched::payload(vec![1]);
        rig.submit(Nop);
        rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(10) });
        rig.submit(Poll { fd: socket.clone(), direction: Direction::Write });
        rig.submit(Send::new(socket, payload));
        peer::pause(Duration::from_millis(2));
        let counters = rig.counters();
        assert_eq!((rig.driver.in_flight(), counters.submitted, counters.completed), (4, 4, 0));
        assert_eq!(released.load(std::sync::atomic::Ordering::SeqCst), 0);
        // Nor does a cancel, though it may know the outcome.
        let token = rig.submit(Nop);
        rig.driver.cancel(token);
        assert_eq!((rig.driver.in_flight(), rig.counters().completed), (5, 0));
        rig.idle();
        rig.end();
    });
}

#[test]
fn cancelling_an_operation_that_has_ended_does_nothing() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let old = rig.submit(Nop);
        rig.ended(old).unwrap();
        // The next operation has the same slot.
        let new = rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(10) });
        for _ in 0..3 {
            rig.driver.cancel(old);
            rig.driver.abandon(old);
            rig.turn(Duration::from_millis(1));
        }
        assert!(rig.kept.is_empty());
        peer.write_all(b"x").unwrap();
        assert!(matches!(rig.last(new), Done::Filled(Ok(1), _)));
        drop(socket);
        assert_eq!(rig.end().canceled, 0);
    });
}

#[test]
fn a_cancelled_operation_ends_once_however_often_it_is_asked_for() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, _peer) = rig.tcp();
        for turns in 0..3 {
            let token = rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(10) });
            rig.turns(turns, Duration::ZERO);
            (0..3).for_each(|_| rig.driver.cancel(token));
            rig.turn(Duration::ZERO);
            rig.driver.cancel(token);
            assert!(matches!(rig.last(token), Done::Filled(Err(Error::Canceled), _)));
            rig.turns(3, Duration::from_millis(1));
        }
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_success_that_comes_before_the_cancel_is_kept() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(Recv { socket, buffer: Vec::with_capacity(10) });
        peer.write_all(b"x").unwrap();
        let raw = rig.raw_news();
        // Its end is known to the driver's user only by settling; until then a cancel is too late.
        rig.driver.cancel(token);
        rig.settle(raw);
        assert!(matches!(rig.last(token), Done::Filled(Ok(1), buffer) if buffer == b"x"));
        rig.end();
    });
}

#[test]
fn an_accept_that_lands_after_its_cancel_loses_no_connection() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (listener, address) = rig.listener();
        let token = rig.submit(Accept { listener: listener.clone(), repeat: false });
        rig.turn(Duration::ZERO);
        let client = TcpStream::connect(address).unwrap();
        rig.driver.cancel(token);
        // A late success brings it; after a cancel in time it is still in the queue.
        let fd = match rig.last(token) {
            Done::Accepted(Ok(fd)) => fd,
            Done::Accepted(Err(Error::Canceled)) => {
                let again = rig.submit(Accept { listener: listener.clone(), repeat: false });
                let Done::Accepted(Ok(fd)) = rig.last(again) else { panic!("the connection is lost") };
                fd
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(peer_of(fd), client.local_addr().unwrap());
        drop(listener);
        rig.end();
    });
}

#[test]
fn a_cancelled_send_tells_how_much_had_left() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let bytes = pattern(24 * 1024 * 1024);
        let send = rig.submit(Send::new(socket.clone(), bytes.clone().into()));
        // The peer does not read, so that it gets stuck.
        rig.turns(20, Duration::from_millis(1));
        rig.driver.cancel(send);
        let told = match rig.last(send) {
            Done::Sent(Ok(sent), _) => sent,
            Done::Sent(Err(Error::Canceled), _) => 0,
            other => panic!("{other:?}"),
        };
        assert!(told < bytes.len(), "the system takes everything");
        drop(socket);
        rig.end();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), told, "bytes that the peer has got");
        assert!(got == bytes[..told], "bytes differ");
    });
}

#[test]
fn a_late_success_that_nobody_wants_is_given_back() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (listener, address) = rig.listener();
        let token = rig.submit(Accept { listener: listener.clone(), repeat: false });
        rig.turn(Duration::ZERO);
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
        rig.driver.abandon(token);
        rig.idle();
        assert!(rig.kept.is_empty(), "nobody wants it: {:?}", rig.kept);
        // Either it was accepted and closed, or it waits in the queue, and closing that resets it. No backend
        // promises which.
        let counters = rig.counters();
        assert_eq!(counters.descriptors_opened - counters.descriptors_closed, 1, "the listener");
        let closed = counters.descriptors_closed == 1;
        rig.driver.retire(listener);
        match client.read(&mut [0]) {
            Ok(0) => assert!(closed || crate::common::is_wine(), "which forgets some resets"),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => assert!(!closed),
            other => panic!("{other:?}"),
        }
        rig.end();
    });
}

#[test]
fn a_stale_completion_is_counted_and_never_delivered() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let token = rig.submit(Nop);
        assert_eq!(format!("{token:?}"), "Token(0:1)", "the first token is forged below");
        rig.ended(token).unwrap();
        assert!(rig.driver.settle_forged(0, 1, 0).is_none(), "it has ended");
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(Recv { socket, buffer: Vec::with_capacity(10) });
        assert!(rig.driver.settle_forged(0, 1, 5).is_none(), "the slot has another generation");
        assert!(rig.driver.settle_forged(0, 77, 5).is_none(), "a generation that never was");
        assert!(rig.driver.settle_forged(9999, 1, 5).is_none(), "a slot that never was");
        assert_eq!(rig.counters().stale, 4);
        assert_eq!(rig.driver.in_flight(), 1, "the operation in that slot was not touched");
        peer.write_all(b"x").unwrap();
        assert!(matches!(rig.last(token), Done::Filled(Ok(1), _)));
        assert!(rig.driver.drain());
    });
}

/// Random operations and cancels; the rig checks that each ends once, and here that each ends at all.
#[test]
fn every_accepted_operation_ends_exactly_once() {
    on_every_backend(|config| {
        for (seed, ring_entries) in [(1, 8), (2, 64)] {
            let mut rig = Rig::new(config.clone().ring_entries(ring_entries));
            let mut random = Random(seed);
            let (ours, theirs) = rig.tcp();
            let theirs = rig.adopt(theirs);
            let (listener, address) = rig.listener();
            let mut wanted: HashMap<Token, bool> = HashMap::new();
            let mut terminal = 0;
            let mut clients = Vec::new();
            for _ in 0..600 {
                let end = if random.below(2) == 0 { &ours } else { &theirs };
                let submitted = match random.below(8) {
                    0 => Some(rig.submit(Nop)),
                    1 => Some(rig.submit(Recv { socket: end.clone(), buffer: Vec::with_capacity(100) })),
                    2 => Some(rig.submit(RecvMulti::new(end.clone()))),
                    3 => Some(rig.submit(Send::new(end.clone(), pattern(random.below(300)).into()))),
                    4 => Some(rig.submit(Poll { fd: end.clone(), direction: Direction::Read })),
                    5 => {
                        let repeat = random.below(2) == 0;
                        if clients.len() < 20 {
                            clients.push(TcpStream::connect(address).unwrap());
                        }
                        Some(rig.submit(Accept { listener: listener.clone(), repeat }))
                    }
                    6 => {
                        rig.turn(Duration::ZERO);
                        None
                    }
                    _ => None,
                };
                wanted.extend(submitted.map(|token| (token, true)));
                terminal += take_ended(&mut rig, &mut wanted);
                let cancels = if wanted.len() > 60 { 3 } else { random.below(2) };
                for _ in 0..cancels {
                    let Some(token) = wanted.keys().nth(random.below(wanted.len().max(1))).copied() else {
                        break;
                    };
                    if random.below(4) == 0 {
                        rig.driver.abandon(token);
                        wanted.insert(token, false);
                    } else {
                        rig.driver.cancel(token);
                    }
                }
                let near_full = rig.driver.in_flight() > 200;
                rig.until("room", |rig| !near_full || rig.driver.in_flight() < 150);
                terminal += take_ended(&mut rig, &mut wanted);
            }
            wanted.keys().for_each(|token| rig.driver.cancel(*token));
            rig.idle();
            terminal += take_ended(&mut rig, &mut wanted);
            assert!(wanted.values().all(|wanted| !wanted), "the rest was abandoned");
            let counters = rig.counters();
            assert_eq!(counters.submitted, terminal + wanted.len() as u64);
            drop((ours, theirs, listener));
            rig.end();
        }
    });
}

/// Takes what has ended out of the wanted operations; says how many did.
fn take_ended(rig: &mut Rig, wanted: &mut HashMap<Token, bool>) -> u64 {
    let mut count = 0;
    for completion in rig.kept.drain(..).filter(|completion| !completion.more) {
        count += 1;
        assert_eq!(wanted.remove(&completion.token), Some(true), "wanted, and only once");
    }
    count
}

/// A small generator of random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn a_script_that_refuses_gives_each_operation_back_intact() {
    for rate in [64, 200, 255] {
        let mut rig = Rig::new(Config::new().script(Script::rough(3).refusing(rate)));
        let (socket, mut peer) = rig.tcp();
        let (mut refused, mut got) = (0, Vec::new());
        for round in 0..20u8 {
            let mut buffer = Vec::with_capacity(50);
            buffer.push(round);
            let start = buffer.as_ptr();
            let mut op = Recv { socket: socket.clone(), buffer }.into();
            peer.write_all(&[round]).unwrap();
            let token = loop {
                match rig.driver.submit(op, 0) {
                    Ok(token) => break token,
                    Err(full) => op = full.0,
                }
                refused += 1;
                let anabranch::driver::op::Op::Recv(given) = &op else { panic!("{op:?}") };
                assert_eq!((&given.buffer[..], given.buffer.as_ptr()), (&[round][..], start));
            };
            let Done::Filled(Ok(1), buffer) = rig.last(token) else { panic!("no byte") };
            got.push(buffer[1]);
        }
        assert_eq!(got, (0..20).collect::<Vec<u8>>());
        assert!(refused > 0, "the script refuses");
        assert_eq!(rig.counters().submitted, 20, "what is refused is not counted");
        drop(socket);
        rig.end();
    }
}

#[test]
fn a_masked_capability_is_reported_as_lowered() {
    if !has_uring() {
        return;
    }
    for capability in Capability::ALL {
        let rig = Rig::new(Config::new().backend(Backend::Uring).without(capability));
        let report = rig.driver.report();
        assert!(!report.capabilities.has(capability), "{report}");
        let why = report.lowered.iter().find(|(lowered, _)| *lowered == capability);
        assert_eq!(why.map(|(_, why)| why.as_str()), Some("masked"), "{report}");
        rig.end();
    }
}

// Not on Windows: the mistake, to shut a listener down, cannot be made there.
#[cfg(unix)]
#[test]
fn a_mistake_of_the_program_lowers_no_capability() {
    on(real_backends(), |config| {
        let mut rig = Rig::new(config);
        let (listener, _) = rig.listener();
        let token = rig.submit(Accept { listener: listener.clone(), repeat: true });
        // Before Linux 5.19 a standing accept is refused, and that is no mistake.
        rig.turns(3, Duration::from_millis(1));
        let before = rig.driver.report().clone();
        rig.driver.move_warnings(&mut Vec::new());
        let shutdown = rig.submit(anabranch::driver::op::Shutdown {
            socket: listener.clone(),
            how: std::net::Shutdown::Both,
        });
        rig.ended(shutdown).unwrap();
        assert!(matches!(rig.last(token), Done::Accepted(Err(Error::Io(_)))), "nobody listens any more");
        // Nor does a receive on what is no connection.
        let receive = rig.submit(RecvMulti::new(listener.clone()));
        assert!(matches!(rig.last(receive), Done::Received(Received::Failed(_))));
        assert_eq!(*rig.driver.report(), before);
        let mut warnings = Vec::new();
        rig.driver.move_warnings(&mut warnings);
        assert!(warnings.is_empty());
        drop(listener);
        rig.end();
    });
}
