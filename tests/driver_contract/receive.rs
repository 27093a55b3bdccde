//! Standing receives of streams: they deliver, starve, live again, and end.

use crate::common::{on, on_every_backend, peer, real_backends, simulated_backends};
use crate::rig::{Rig, pattern};
use anabranch::driver::completion::{Done, Received};
use anabranch::driver::op::{Recv, RecvMulti};
use anabranch::driver::{FdRef, Token};
use anabranch::{BackendKind, Capability, Error, Lease};
use std::io::Write;
use std::time::Duration;

/// What a standing receive brings next; nothing at the end of the stream. Armed again when it was starved
/// though buffers are free: a script may claim that.
fn next(rig: &mut Rig, socket: &FdRef, token: &mut Token) -> Option<Lease> {
    loop {
        let completion = rig.next(*token);
        match completion.done {
            Done::Received(Received::Data(lease)) => {
                assert!(!lease.is_empty(), "data is never empty");
                if !completion.more {
                    *token = rig.submit(RecvMulti::new(socket.clone()));
                }
                return Some(lease);
            }
            Done::Received(Received::End) => {
                assert!(!completion.more, "the end ends the receive");
                return None;
            }
            Done::Starved => {
                assert!(rig.may_starve(), "starved with free buffers");
                *token = rig.submit(RecvMulti::new(socket.clone()));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Receives until no buffer is left: all that has come.
fn hold_every_buffer(rig: &mut Rig, socket: &FdRef) -> Vec<Lease> {
    let mut held = Vec::new();
    let mut token = rig.submit(RecvMulti::new(socket.clone()));
    loop {
        let completion = rig.next(token);
        match completion.done {
            Done::Received(Received::Data(lease)) => held.push(lease),
            Done::Starved if rig.driver.pool().available() == 0 => return held,
            Done::Starved => assert!(rig.may_starve(), "starved with free buffers"),
            other => panic!("{other:?}"),
        }
        if !completion.more {
            token = rig.submit(RecvMulti::new(socket.clone()));
        }
    }
}

#[test]
fn a_standing_receive_brings_every_byte_in_order_and_then_the_end() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| limits.buffers = 8);
        let (socket, mut peer) = rig.tcp();
        let expected = pattern(500_000);
        let bytes = expected.clone();
        let writer = peer::spawn(move || peer.write_all(&bytes).unwrap());
        let mut token = rig.submit(RecvMulti::new(socket.clone()));
        let mut got = Vec::new();
        // Eight buffers hold much less than what is sent, so it starves on the way; leases return at once.
        let mut wanting = 0;
        loop {
            let completion = rig.next(token);
            match completion.done {
                Done::Received(Received::Data(lease)) => got.extend_from_slice(&lease),
                Done::Received(Received::End) => break,
                Done::Starved => wanting += 1,
                other => panic!("{other:?}"),
            }
            if !completion.more {
                token = rig.submit(RecvMulti::new(socket.clone()));
            }
        }
        assert!(got == expected, "{} of {} bytes; starved {wanting} times", got.len(), expected.len());
        writer.join().unwrap();
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_standing_receive_starves_without_buffers_and_lives_again_when_leases_return() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| (limits.buffers, limits.buffer_bytes) = (4, 512));
        let (socket, mut peer) = rig.tcp();
        let bytes = pattern(4096);
        peer.write_all(&bytes).unwrap();
        let held = hold_every_buffer(&mut rig, &socket);
        let mut got: Vec<u8> = held.iter().flat_map(|lease| lease.to_vec()).collect();
        drop(held);
        assert!(got.len() > 4 * 384 && got.len() <= 4 * 512, "{} bytes fill the pool", got.len());
        let mut token = rig.submit(RecvMulti::new(socket.clone()));
        while got.len() < bytes.len() {
            match rig.next(token).done {
                Done::Received(Received::Data(lease)) => got.extend_from_slice(&lease),
                Done::Starved => token = rig.submit(RecvMulti::new(socket.clone())),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, bytes);
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_buffer_that_comes_back_from_another_thread_can_be_received_into_again() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| limits.buffers = 1);
        let (socket, mut peer) = rig.tcp();
        let sent = pattern(5 * 2048);
        peer.write_all(&sent).unwrap();
        let mut got = Vec::new();
        for _ in 0..4 {
            let held: Vec<_> =
                hold_every_buffer(&mut rig, &socket).into_iter().map(Lease::into_bytes).collect();
            got.extend(held.concat());
            peer::spawn(move || drop(held)).join().unwrap();
        }
        assert!(got.len() > 4 * 1536 && got[..] == sent[..got.len()], "{} bytes", got.len());
        drop(socket);
        rig.end();
    });
}

#[test]
fn many_receives_share_a_buffer() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| (limits.buffers, limits.buffer_bytes) = (2, 64 * 1024));
        let report = rig.driver.report().clone();
        let incremental = report.capabilities.has(Capability::IncrementalBuffers);
        // Where the kernel cannot, there are as many buffers as would be pieces of 16 KiB.
        let cut = report.capabilities.has(Capability::BufferRing) && !incremental;
        assert_eq!(rig.driver.pool().count(), if cut { 8 } else { 2 });
        let pairs: Vec<_> = (0..6).map(|_| rig.tcp()).collect();
        let mut held = Vec::new();
        for (at, (socket, peer)) in pairs.iter().enumerate() {
            let mut token = rig.submit(RecvMulti::new(socket.clone()));
            (&*peer).write_all(&[at as u8; 100]).unwrap();
            let mut left = 100;
            while left > 0 {
                let lease = next(&mut rig, socket, &mut token).expect("data");
                left -= lease.len();
                held.push((at, lease));
            }
            rig.driver.abandon(token);
        }
        assert!(rig.driver.pool().available() >= 1, "six short messages take one buffer, or six small ones");
        assert!(held.iter().all(|(at, lease)| lease.iter().all(|byte| *byte == *at as u8)));
        drop((held, pairs));
        rig.end();
    });
}

#[test]
fn what_arrives_before_a_cancel_is_seen_stays_readable() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let mut token = rig.submit(RecvMulti::new(socket.clone()));
        peer.write_all(b"first").unwrap();
        let mut got = next(&mut rig, &socket, &mut token).expect("data").to_vec();
        peer.write_all(b"second").unwrap();
        rig.driver.cancel(token);
        // The receive may bring the rest before it ends; else it is still in the socket. Not a byte is lost.
        loop {
            let completion = rig.next(token);
            match completion.done {
                Done::Received(Received::Data(lease)) => got.extend_from_slice(&lease),
                Done::Received(Received::Failed(Error::Canceled)) => assert!(!completion.more),
                Done::Starved if rig.may_starve() => {}
                other => panic!("{other:?}"),
            }
            if !completion.more {
                break;
            }
        }
        while got.len() < 11 {
            let receive = rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(100) });
            let Done::Filled(Ok(_), buffer) = rig.last(receive) else { panic!("no bytes") };
            got.extend_from_slice(&buffer);
        }
        assert_eq!(got, b"firstsecond");
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_buffer_filled_too_late_comes_home() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(RecvMulti::new(socket.clone()));
        peer.write_all(b"late").unwrap();
        // The bytes are in a pool buffer, but nobody has taken them when the receive is abandoned.
        let mut raw = Vec::new();
        rig.until("the bytes", |rig| {
            raw.extend(rig.raw_turn(Duration::from_millis(20)));
            raw.iter().any(|raw| raw.buffer.is_some()) || raw.iter().any(|raw| !raw.more)
        });
        rig.driver.abandon(token);
        rig.settle(raw);
        rig.idle();
        assert!(rig.kept.is_empty(), "an abandoned receive delivers nothing: {:?}", rig.kept);
        assert_eq!(rig.driver.pool().available(), rig.driver.pool().count());
        drop(socket);
        rig.end();
    });
}

#[test]
fn two_receives_on_one_descriptor_both_complete() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let receive =
            |rig: &mut Rig| rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(1) });
        let tokens = [receive(&mut rig), receive(&mut rig), receive(&mut rig)];
        rig.turn(Duration::ZERO);
        peer.write_all(b"abc").unwrap();
        let mut got: Vec<u8> = Vec::new();
        for token in tokens {
            let Done::Filled(Ok(1), buffer) = rig.last(token) else { panic!("no byte") };
            got.extend(buffer);
        }
        if !rig.is(BackendKind::Uring) {
            assert_eq!(got, b"abc", "one after the other");
        }
        // The kernel serves operations that wait on one socket in no particular order (invariant 9: the shard
        // arms one at most).
        got.sort_unstable();
        assert_eq!(got, b"abc");
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_second_receive_lives_when_the_first_is_cancelled() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let receive =
            |rig: &mut Rig| rig.submit(Recv { socket: socket.clone(), buffer: Vec::with_capacity(9) });
        let (first, second) = (receive(&mut rig), receive(&mut rig));
        rig.turn(Duration::ZERO);
        rig.driver.cancel(first);
        assert!(matches!(rig.last(first), Done::Filled(Err(Error::Canceled), _)));
        peer.write_all(b"x").unwrap();
        assert!(matches!(rig.last(second), Done::Filled(Ok(1), buffer) if buffer == b"x"));
        drop(socket);
        rig.end();
    });
}

#[test]
fn both_directions_of_one_descriptor_work_at_once() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, peer) = rig.tcp();
        let other = rig.adopt(peer);
        let expected = pattern(300_000);
        let mut got = [Vec::new(), Vec::new()];
        let send = |rig: &mut Rig, socket: &FdRef| {
            rig.submit(anabranch::driver::op::Send::new(socket.clone(), pattern(300_000).into()))
        };
        let sends = [send(&mut rig, &socket), send(&mut rig, &other)];
        let mut receives =
            [rig.submit(RecvMulti::new(socket.clone())), rig.submit(RecvMulti::new(other.clone()))];
        while got.iter().any(|got| got.len() < expected.len()) {
            for (at, socket) in [&socket, &other].into_iter().enumerate() {
                if got[at].len() == expected.len() {
                    continue;
                }
                let completion = rig.next(receives[at]);
                match completion.done {
                    Done::Received(Received::Data(lease)) => got[at].extend_from_slice(&lease),
                    Done::Starved => {}
                    other => panic!("{other:?}"),
                }
                if !completion.more {
                    receives[at] = rig.submit(RecvMulti::new(socket.clone()));
                }
            }
        }
        assert!(got.iter().all(|got| *got == expected));
        for send in sends {
            assert!(matches!(rig.last(send), Done::Sent(Ok(300_000), _)));
        }
        drop((socket, other));
        rig.end();
    });
}

/// When a receive that is armed without buffers fails is not promised: the ring fails it at once, readiness
/// when data comes. Both say that it starved, and both end it.
#[test]
fn a_receive_that_is_armed_without_buffers_starves_at_the_latest_when_data_comes() {
    let all = [real_backends(), simulated_backends()].concat();
    on(all, |config| {
        let mut rig = Rig::with(config, |limits| limits.buffers = 1);
        let (socket, mut peer) = rig.tcp();
        peer.write_all(&pattern(4096)).unwrap();
        let held = hold_every_buffer(&mut rig, &socket);
        let token = rig.submit(RecvMulti::new(socket.clone()));
        assert!(matches!(rig.last(token), Done::Starved));
        drop((held, socket));
        rig.end();
    });
}
