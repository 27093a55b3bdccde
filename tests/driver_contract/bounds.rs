//! Bounds and budgets: invariants 2, 15 and 16.

use crate::common::net::anywhere;
use crate::common::{on_every_backend, peer};
use crate::rig::{PATIENCE, Rig, Watched, pattern};
use anabranch::driver::Token;
use anabranch::driver::completion::Done;
use anabranch::driver::op::{Accept, Nop, Op, Recv, RecvMsgMulti, RecvMulti, Send};
use anabranch::{BackendKind, Error, Full};
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn a_full_table_gives_the_operation_back() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| limits.operations_max = 4);
        let (socket, _peer) = rig.tcp();
        let receive =
            |rig: &mut Rig| rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(8) });
        let tokens = [(); 4].map(|()| receive(&mut rig));
        let (payload, released) = Watched::payload(b"intact".to_vec());
        let refused = rig.driver.submit(Send::new(socket.clone(), payload), 0);
        let Err(Full(Op::Send(op))) = refused else { panic!("no room was left") };
        assert_eq!((&*op.payload, released.load(Ordering::SeqCst)), (&b"intact"[..], 0));
        let (other, _peer) = rig.tcp();
        let Err(Full(other)) = rig.driver.close(other, 0) else { panic!("no room was left") };
        assert_eq!((rig.counters().submitted, rig.driver.in_flight()), (4, 4));
        // A cancel needs no room, and each end makes some.
        rig.driver.cancel(tokens[2]);
        assert!(matches!(rig.last(tokens[2]), Done::Filled(Err(Error::Canceled), _)));
        let send = rig.submit(op);
        assert!(matches!(rig.last(send), Done::Sent(Ok(6), _)));
        let close = rig.driver.close(other, 0).expect("there is room");
        rig.ended(close).unwrap();
        drop(socket);
        rig.end();
    });
}

#[test]
fn ten_thousand_operations_at_once_all_end_though_the_ring_has_eight_places() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config.ring_entries(8), |limits| limits.operations_max = 10_000);
        let tokens: Vec<_> = (0..10_000).map(|_| rig.submit(Nop)).collect();
        assert!(rig.driver.submit(Nop, 0).is_err());
        rig.idle();
        assert_eq!(rig.kept.len(), tokens.len());
        assert!(rig.kept.iter().all(|completion| matches!(completion.done, Done::Ended(Ok(())))));
        rig.end();
    });
}

#[test]
fn a_full_submission_queue_loses_no_cancel() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config.ring_entries(8), |limits| limits.operations_max = 10_000);
        let pairs: Vec<_> = (0..100).map(|_| rig.tcp()).collect();
        let tokens: Vec<_> = (0..10_000)
            .map(|at| rig.submit(Recv { socket: pairs[at % 100].0.clone(), buffer: Vec::with_capacity(8) }))
            .collect();
        // Some are in flight, most have not left the program.
        rig.turns(20, Duration::ZERO);
        tokens.iter().for_each(|token| rig.driver.cancel(*token));
        rig.idle();
        assert_eq!(rig.kept.len(), tokens.len());
        for completion in rig.kept.drain(..) {
            assert!(matches!(completion.done, Done::Filled(Err(Error::Canceled), _)), "{completion:?}");
        }
        drop(pairs);
        assert_eq!(rig.end().canceled, 10_000);
    });
}

#[test]
fn operations_that_are_all_in_flight_are_cancelled_through_a_tiny_ring() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config.ring_entries(8), |limits| limits.operations_max = 2000);
        let pairs: Vec<_> = (0..20).map(|_| rig.tcp()).collect();
        let tokens: Vec<_> = (0..2000)
            .map(|at| rig.submit(Recv { socket: pairs[at % 20].0.clone(), buffer: Vec::with_capacity(8) }))
            .collect();
        // Eight go with each turn.
        rig.turns(300, Duration::ZERO);
        tokens.iter().rev().for_each(|token| rig.driver.cancel(*token));
        rig.idle();
        assert_eq!(rig.kept.len(), tokens.len());
        drop((rig.kept.drain(..), pairs));
        assert_eq!(rig.end().canceled, 2000);
    });
}

/// Waits with a small budget for so many completions as `prepare` says that its submissions bring.
fn obeys(config: anabranch::Config, prepare: impl Fn(&mut Rig) -> (Vec<Token>, usize)) {
    const BUDGET: usize = 16;
    let mut rig = Rig::with(config, |limits| {
        (limits.operations_max, limits.buffers, limits.completions_per_turn_max) = (1000, 256, BUDGET);
    });
    let (tokens, count) = prepare(&mut rig);
    let mut total = 0;
    let end = rig.driver.now() + PATIENCE;
    while total < count {
        let brought = rig.turn(Duration::from_millis(20));
        assert!(brought <= BUDGET, "{brought} completions in one turn, {BUDGET} are allowed");
        assert!(rig.driver.now() < end, "{total} of {count} completions came");
        total += brought;
    }
    for token in tokens {
        rig.driver.abandon(token);
    }
    rig.end();
}

#[test]
fn one_turn_brings_no_more_nops_than_its_budget() {
    on_every_backend(|config| {
        obeys(config, |rig| ((0..500).map(|_| rig.submit(Nop)).collect(), 500));
    });
}

#[test]
fn one_turn_brings_no_more_cancelled_operations_than_its_budget() {
    on_every_backend(|config| {
        obeys(config.ring_entries(8), |rig| {
            let (socket, _peer) = rig.tcp();
            let tokens: Vec<_> = (0..500)
                .map(|_| rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(8) }))
                .collect();
            tokens.iter().for_each(|token| rig.driver.cancel(*token));
            (tokens, 500)
        });
    });
}

#[test]
fn one_turn_brings_no_more_of_standing_operations_than_its_budget() {
    on_every_backend(|config| {
        obeys(config, |rig| {
            let (listener, address) = rig.listener();
            for _ in 0..40 {
                drop(peer::TcpStream::connect(address).unwrap());
            }
            let mut tokens = vec![rig.submit(Accept { listener, repeat: true })];
            // Forty connections, and from each of twenty sockets a datagram or a few bytes, eight times.
            for round in 0..20 {
                if round % 2 == 0 {
                    let (socket, address) = rig.udp();
                    let peer = peer::UdpSocket::bind(anywhere()).unwrap();
                    (0..8).for_each(|_| assert_eq!(peer.send_to(b"x", address).unwrap(), 1));
                    tokens.push(rig.submit(RecvMsgMulti { socket }));
                } else {
                    let (socket, mut peer) = rig.tcp();
                    peer.write_all(&pattern(8 * 2048)).unwrap();
                    tokens.push(rig.submit(RecvMulti::new(socket)));
                }
            }
            // A script may end the receives, claiming that there are no buffers; the connections are sure.
            (tokens, if rig.may_starve() { 40 } else { 200 })
        });
    });
}

#[test]
fn what_one_turn_leaves_over_comes_in_the_next_in_order() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| {
            (limits.completions_per_turn_max, limits.buffers, limits.buffer_bytes) = (3, 64, 512);
        });
        let (socket, mut peer) = rig.tcp();
        let bytes = pattern(20_000);
        peer.write_all(&bytes).unwrap();
        let mut token = rig.submit(RecvMulti::new(socket.clone()));
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            let completion = rig.next(token);
            match completion.done {
                Done::Received(anabranch::driver::completion::Received::Data(lease)) => {
                    got.extend_from_slice(&lease);
                }
                Done::Starved => {}
                other => panic!("{other:?}"),
            }
            if !completion.more {
                token = rig.submit(RecvMulti::new(socket.clone()));
            }
        }
        assert_eq!(got, bytes);
        drop(socket);
        rig.end();
    });
}

/// The kernel has its own fairness, and a script none: it is about the attempts that readiness makes.
#[test]
fn a_flood_on_one_descriptor_does_not_keep_another_from_being_served() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| {
            (limits.attempts_per_event_max, limits.completions_per_turn_max) = (4, 8);
        });
        if rig.is(BackendKind::Script) {
            return;
        }
        let (loud, mut flood) = rig.tcp();
        let (quiet, mut peer) = rig.tcp();
        flood.write_all(&pattern(60 * 2048)).unwrap();
        peer.write_all(b"x").unwrap();
        let loud_token = rig.submit(RecvMulti::new(loud.clone()));
        let quiet_token = rig.submit(Recv { socket: quiet.clone(), buffer: Vec::with_capacity(8) });
        for turn in 0.. {
            assert!(turn < 10, "the quiet one waits for the loud one");
            rig.turn(Duration::from_millis(20));
            if rig.kept.iter().any(|completion| completion.token == quiet_token) {
                break;
            }
        }
        rig.driver.abandon(loud_token);
        drop((loud, quiet));
        rig.end();
    });
}
