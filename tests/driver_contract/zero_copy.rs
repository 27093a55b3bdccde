//! Sends without a copy: the result and the release of the payload are two completions (invariant 3).
//!
//! Where they are emulated there is one completion, after which the payload is released.

use crate::common::on_every_backend;
use crate::common::peer::{self, UnixStream};
use crate::rig::{Rig, Watched, pattern, stuffed_pair};
use anabranch::driver::completion::Done;
use anabranch::driver::op::Send;
use anabranch::{BackendKind, Capability, Error};
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn the_payload_is_released_at_the_terminal_completion_and_not_before() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let real = rig.driver.report().capabilities.has(Capability::ZeroCopySend);
        let (socket, mut peer) = rig.tcp();
        let bytes = pattern(1_000_000);
        let expected = bytes.clone();
        let reader = peer::spawn(move || {
            let mut got = vec![0; expected.len()];
            peer.read_exact(&mut got).unwrap();
            assert!(got == expected, "the payload was changed while the kernel read it");
        });
        let (payload, released) = Watched::payload(bytes);
        let token = rig.submit(Send::zero_copy(socket, payload));
        let mut completions = 0;
        let payload = loop {
            let completion = rig.next(token);
            completions += 1;
            assert_eq!(released.load(Ordering::SeqCst), 0, "released before its terminal completion");
            match completion.done {
                Done::SentEarly(Ok(1_000_000)) => assert!(completion.more),
                Done::Sent(Ok(1_000_000), payload) | Done::SentCopied(Ok(1_000_000), payload) => {
                    assert!(!completion.more);
                    break payload;
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(completions, if real { 2 } else { 1 });
        drop(payload);
        assert_eq!(released.load(Ordering::SeqCst), 1);
        reader.join().unwrap();
        rig.end();
    });
}

#[test]
fn an_abandoned_one_releases_its_payload_when_it_ends() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (ours, peer) = stuffed_pair();
        let socket = rig.adopt(ours);
        let (payload, released) = Watched::payload(pattern(1_000_000));
        let token = rig.submit(Send::zero_copy(socket.clone(), payload));
        rig.turn(Duration::from_millis(1));
        rig.driver.abandon(token);
        assert_eq!(released.load(Ordering::SeqCst), 0);
        // What the kernel has already taken is released when the peer has it or the connection is gone.
        drop(peer);
        rig.until("the release", |rig| {
            let held = released.load(Ordering::SeqCst) == 0;
            assert_eq!(held, rig.driver.in_flight() == 1);
            !held
        });
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_cancelled_one_tells_what_has_left() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (ours, peer) = stuffed_pair();
        let socket = rig.adopt(ours);
        let (payload, released) = Watched::payload(pattern(1_000_000));
        let token = rig.submit(Send::zero_copy(socket.clone(), payload));
        rig.turn(Duration::from_millis(1));
        rig.driver.cancel(token);
        drop(peer);
        loop {
            let completion = rig.next(token);
            match completion.done {
                Done::SentEarly(_) => assert!(completion.more),
                Done::Sent(result, payload) | Done::SentCopied(result, payload) => {
                    assert_eq!((payload.len(), released.load(Ordering::SeqCst)), (1_000_000, 0));
                    // A reset may come before the cancel.
                    assert!(!matches!(result, Ok(1_000_000)), "{result:?}");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        drop(socket);
        rig.end();
    });
}

/// Unix sockets cannot send without a copy on any kernel so far. The program need not know.
#[test]
fn a_socket_that_cannot_do_it_sends_with_a_copy() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = rig.adopt(ours);
        for round in 0..5 {
            let (payload, released) = Watched::payload(pattern(1000));
            let token = rig.submit(Send::zero_copy(socket.clone(), payload));
            loop {
                let completion = rig.next(token);
                assert_eq!(released.load(Ordering::SeqCst), 0);
                match completion.done {
                    Done::SentEarly(Ok(1000)) => assert!(completion.more),
                    Done::Sent(Ok(1000), _) | Done::SentCopied(Ok(1000), _) => break,
                    Done::Sent(Err(Error::Io(error)), _) | Done::SentEarly(Err(Error::Io(error))) => {
                        panic!("round {round}: {error}")
                    }
                    other => panic!("{other:?}"),
                }
            }
            let mut got = [0; 1000];
            theirs.read_exact(&mut got).unwrap();
            assert_eq!(got[..], pattern(1000));
        }
        let real = rig.driver.report().capabilities.has(Capability::ZeroCopySend);
        assert!(!real || rig.is(BackendKind::Uring) || rig.is(BackendKind::Simulated));
        drop(socket);
        rig.end();
    });
}

#[test]
fn the_release_tells_that_the_kernel_copied_all_the_same() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let real =
            rig.is(BackendKind::Uring) && rig.driver.report().capabilities.has(Capability::ZeroCopySend);
        let (socket, mut peer) = rig.tcp();
        let token = rig.submit(Send::zero_copy(socket, pattern(50_000).into()));
        let reader = peer::spawn(move || peer.read_exact(&mut [0; 50_000]).unwrap());
        let copied = loop {
            match rig.next(token).done {
                Done::SentEarly(Ok(50_000)) => {}
                Done::Sent(Ok(50_000), _) => break false,
                Done::SentCopied(Ok(50_000), _) => break true,
                other => panic!("{other:?}"),
            }
        };
        // There is no device behind the loopback interface that could read the payload.
        assert!(copied || !real, "a kernel that saves this copy makes a rule for loopback peers needless");
        reader.join().unwrap();
        rig.end();
    });
}
