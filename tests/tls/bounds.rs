//! What is bounded: time, handshakes at once, and bytes.

use crate::common::net::{check, on_real_backends, on_typical_backends, pair};
use crate::rig::{client, sealed_pair, server, with_raw_peer};
use anabranch::tls::{TlsAcceptor, TlsConnector, TlsError};
use anabranch::{spawn, timeout, yield_now};
use std::time::Duration;

#[test]
fn a_handshake_that_does_not_go_on_ends_at_its_deadline() {
    on_typical_backends(|config| {
        check(config, async {
            let acceptor = TlsAcceptor::new(server()).handshake_deadline(Duration::from_millis(20));
            let (accepting, mut raw) = with_raw_peer(acceptor).await;
            // The beginning of a hello.
            raw.send(b"\x16\x03\x01\x00\xc8\x01").await.unwrap();
            let accepted = accepting.await.unwrap();
            assert!(matches!(accepted, Err(TlsError::HandshakeTimedOut)), "{accepted:?}");
            assert!(raw.recv().await.unwrap().is_none(), "the connection is closed");

            let (ours, _silent) = pair().await;
            let connector = TlsConnector::new(client()).handshake_deadline(Duration::from_millis(20));
            let connected = connector.connect("localhost", ours).await;
            assert!(matches!(connected, Err(TlsError::HandshakeTimedOut)), "{connected:?}");
        });
    });
}

#[test]
fn handshakes_above_the_bound_wait_for_their_turn() {
    on_real_backends(|config| {
        check(config, async {
            let acceptor = TlsAcceptor::new(server()).handshakes_max(2);
            let (first, first_raw) = with_raw_peer(acceptor.clone()).await;
            let (second, second_raw) = with_raw_peer(acceptor.clone()).await;
            let (ours, theirs) = pair().await;
            let third = spawn({
                let acceptor = acceptor.clone();
                async move { acceptor.accept(theirs).await }
            });
            let (fourth, fourth_raw) = with_raw_peer(acceptor.clone()).await;
            let connecting =
                spawn(async move { TlsConnector::new(client()).connect("localhost", ours).await });
            for _ in 0..50 {
                yield_now().await;
            }
            assert_eq!(acceptor.handshakes(), 2);
            assert!(!third.is_finished() && !connecting.is_finished(), "it has to wait");
            // One place becomes free, and the first in line gets it.
            drop(first_raw);
            first.await.unwrap().unwrap_err();
            connecting.await.unwrap().unwrap();
            third.await.unwrap().unwrap();
            // Who leaves the line keeps nobody from a place.
            drop(fourth_raw);
            drop(second_raw);
            second.await.unwrap().unwrap_err();
            fourth.await.unwrap().unwrap_err();
            assert_eq!(acceptor.handshakes(), 0);
        });
    });
}

#[test]
fn who_gives_up_waiting_does_not_hold_up_the_line() {
    on_real_backends(|config| {
        check(config, async {
            let acceptor = TlsAcceptor::new(server()).handshakes_max(1);
            let (first, first_raw) = with_raw_peer(acceptor.clone()).await;
            let (mut second, _second_raw) = with_raw_peer(acceptor.clone()).await;
            let (ours, theirs) = pair().await;
            let third = spawn({
                let acceptor = acceptor.clone();
                async move { acceptor.accept(theirs).await }
            });
            yield_now().await;
            second.abort();
            drop(first_raw);
            first.await.unwrap().unwrap_err();
            TlsConnector::new(client()).connect("localhost", ours).await.unwrap();
            third.await.unwrap().unwrap();
        });
    });
}

#[test]
fn a_reader_that_is_slow_holds_up_its_sender_within_the_bound() {
    const BOUND: usize = 64 * 1024;
    on_real_backends(|config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_max = BOUND);
        check(config, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            let message = vec![7_u8; 10_000];
            let mut sent = 0;
            // Sends as much as goes while nobody reads.
            while let Ok(outcome) = timeout(Duration::from_millis(300), accepted.send(message.clone())).await
            {
                outcome.unwrap();
                sent += message.len();
                assert!(accepted.queued_bytes() <= BOUND, "{} bytes are queued", accepted.queued_bytes());
            }
            assert!(sent > BOUND, "the kernels take some, too");
            // The message that was given up is not there, not even a part of it.
            let closing = spawn(async move { accepted.close().await });
            let mut got = 0;
            while let Some(lease) = connected.recv().await.unwrap() {
                assert!(lease.iter().all(|byte| *byte == 7));
                got += lease.len();
            }
            assert_eq!(got, sent);
            closing.await.unwrap().unwrap();
        });
    });
}

#[test]
fn what_nobody_receives_is_bounded_too() {
    const BOUND: usize = 64 * 1024;
    on_real_backends(|config| {
        let config = config.with_limits(|limits| {
            (limits.inbound_bytes_max, limits.outbound_bytes_max) = (BOUND, BOUND);
        });
        check(config, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            // One byte is received, so that the receive is armed and ciphertext piles up.
            accepted.send("x").await.unwrap();
            assert_eq!(connected.recv_exact(1).await.unwrap(), "x");
            let mut sent = 0;
            while timeout(Duration::from_millis(300), accepted.send(vec![7; 10_000])).await.is_ok() {
                sent += 10_000;
                assert!(sent < 64 << 20, "somebody takes it all");
            }
            let closing = spawn(async move { accepted.close().await });
            let mut got = 0;
            while let Some(lease) = connected.recv().await.unwrap() {
                assert!(lease.len() <= 2 * BOUND, "a message of {} bytes", lease.len());
                got += lease.len();
            }
            assert_eq!(got, sent);
            closing.await.unwrap().unwrap();
        });
    });
}
