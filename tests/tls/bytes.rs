//! Every byte arrives, once and in order, however records are cut.

use crate::common::net::{Random, check, local_pair, on_real_backends, on_typical_backends, pair, pattern};
use crate::common::on_every_backend;
use crate::rig::{client, client_of, echo, recv_all, sealed_pair, server, shake_over};
use anabranch::net::TcpStream;
use anabranch::tls::{ServerTls, TlsVersion};
use anabranch::{spawn, yield_now};
use bytes::Bytes;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

const VERSIONS: [TlsVersion; 2] = [TlsVersion::Tls12, TlsVersion::Tls13];

#[test]
fn both_versions_agree_and_echo_every_byte() {
    on_every_backend(|config| {
        check(config, async {
            for version in VERSIONS {
                let (accepted, mut connected) = sealed_pair(&server(), &client_of(version)).await;
                for info in [accepted.info(), connected.info()] {
                    assert_eq!(info.version, version);
                    assert!(info.cipher.contains(if version == TlsVersion::Tls13 {
                        "TLS13_"
                    } else {
                        "ECDHE"
                    }));
                    assert!(!info.resumed);
                }
                assert_eq!(accepted.info().sni.as_deref(), Some("localhost"));
                assert_eq!(connected.info().peer_certificates.len(), 1);
                let echoing = spawn(echo(accepted));
                for len in [1, 2, 31, 32, 1000, 16_383, 16_384, 16_385, 50_000] {
                    connected.send(pattern(len)).await.unwrap();
                    assert!(connected.recv_exact(len).await.unwrap() == pattern(len), "{len} bytes differ");
                }
                connected.shutdown().await.unwrap();
                assert!(connected.recv().await.unwrap().is_none());
                assert!(connected.recv().await.unwrap().is_none(), "the end stays the end");
                echoing.await.unwrap().unwrap();
            }
        });
    });
}

#[test]
fn large_transfers_go_both_ways_at_once() {
    on_typical_backends(|config| {
        check(config, async {
            for version in VERSIONS {
                let (accepted, connected) = sealed_pair(&server(), &client_of(version)).await;
                let echoing = spawn(echo(accepted));
                let sent = pattern(2_000_000);
                // Pieces of odd lengths, so that no boundary falls together with that of a record.
                let pieces: Vec<Vec<u8>> = sent.chunks(33_331).map(<[u8]>::to_vec).collect();
                let got = talk(connected, pieces, sent.len()).await;
                assert!(got == sent, "the bytes differ");
                echoing.await.unwrap().unwrap();
            }
        });
    });
}

/// Sends and receives in one task, as much as either goes, until `len` bytes have come.
async fn talk(mut stream: anabranch::tls::TlsStream, pieces: Vec<Vec<u8>>, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    for piece in pieces {
        let mut sending = Some(Bytes::from(piece));
        while let Some(piece) = sending.take() {
            // What cannot be sent now is sent when something was received: the peer does the same.
            let sent = {
                let mut send = pin!(stream.send(piece.clone()));
                poll_fn(|task| Poll::Ready(send.as_mut().poll(task))).await
            };
            if sent.is_pending() {
                sending = Some(piece);
                got.extend_from_slice(&stream.recv().await.unwrap().expect("more to come"));
            }
        }
    }
    stream.shutdown().await.unwrap();
    while got.len() < len {
        got.extend_from_slice(&stream.recv().await.unwrap().expect("more to come"));
    }
    got
}

#[test]
fn a_payload_longer_than_every_bound_is_sent_whole() {
    on_real_backends(|config| {
        let small = config.with_limits(|limits| limits.outbound_bytes_max = 4096);
        check(small, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            let receiving = spawn(async move { recv_all(&mut accepted).await });
            connected.send(pattern(700_000)).await.unwrap();
            connected.send_vectored(["and", "", "more"]).await.unwrap();
            connected.close().await.unwrap();
            let mut expected = pattern(700_000);
            expected.extend_from_slice(b"andmore");
            assert!(receiving.await.unwrap().unwrap() == expected, "the bytes differ");
        });
    });
}

/// Passes bytes on in pieces of random lengths, up to `most`.
async fn cut(
    mut from: anabranch::net::OwnedReadHalf,
    mut to: anabranch::net::OwnedWriteHalf,
    most: u64,
    seed: u64,
) {
    let mut random = Random(seed);
    while let Ok(Some(mut lease)) = from.recv().await {
        while !lease.is_empty() {
            let len = (1 + random.below(most) as usize).min(lease.len());
            if to.send(lease.split_to(len).detach()).await.is_err() || to.flush().await.is_err() {
                return;
            }
            yield_now().await;
        }
    }
    let _ = to.shutdown().await;
}

/// Two ends with a relay between them that cuts what it passes on.
async fn cut_pair(most: u64, seed: u64) -> (TcpStream, TcpStream) {
    let (ours, near) = pair().await;
    let (far, theirs) = pair().await;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    spawn(cut(near_in, far_out, most, seed)).detach();
    spawn(cut(far_in, near_out, most, seed + 1)).detach();
    (ours, theirs)
}

#[test]
fn records_may_be_cut_anywhere() {
    on_real_backends(|config| {
        check(config, async {
            for (version, most, bytes) in [
                (TlsVersion::Tls12, 1, 2_000),
                (TlsVersion::Tls13, 1, 2_000),
                (TlsVersion::Tls13, 7_000, 300_000),
            ] {
                let (ours, theirs) = cut_pair(most, 11 + most).await;
                let shaken = shake_over(&server(), theirs, &client_of(version), "localhost", ours).await;
                let (mut accepted, mut connected) = (shaken.0.unwrap(), shaken.1.unwrap());
                let receiving = spawn(async move { (recv_all(&mut accepted).await, accepted) });
                for piece in pattern(bytes).chunks(777) {
                    connected.send(piece.to_vec()).await.unwrap();
                }
                connected.shutdown().await.unwrap();
                let (got, mut accepted) = receiving.await.unwrap();
                assert!(got.unwrap() == pattern(bytes), "the bytes differ");
                accepted.send("bye").await.unwrap();
                accepted.close().await.unwrap();
                assert_eq!(recv_all(&mut connected).await.unwrap(), b"bye");
            }
        });
    });
}

#[test]
fn a_receive_that_is_dropped_loses_no_byte() {
    on_real_backends(|config| {
        check(config, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            let sending = spawn(async move {
                for piece in pattern(200_000).chunks(991) {
                    accepted.send(piece.to_vec()).await.unwrap();
                    accepted.flush().await.unwrap();
                    yield_now().await;
                }
                accepted.close().await.unwrap();
            });
            let (mut got, mut random) = (Vec::new(), Random(5));
            while got.len() < 200_000 {
                let wanted = (1 + random.below(3_000) as usize).min(200_000 - got.len());
                let mut receive = pin!(connected.recv_exact(wanted));
                // Looked at a few times, then dropped, whatever it has gathered.
                for _ in 0..random.below(4) {
                    let looked = poll_fn(|task| Poll::Ready(receive.as_mut().poll(task))).await;
                    if let Poll::Ready(bytes) = looked {
                        got.extend_from_slice(&bytes.unwrap());
                        break;
                    }
                    yield_now().await;
                }
                yield_now().await;
            }
            assert!(got == pattern(200_000), "the bytes differ");
            assert!(connected.recv().await.unwrap().is_none());
            sending.await.unwrap();
        });
    });
}

#[test]
fn a_receive_until_a_delimiter_leaves_the_rest() {
    on_real_backends(|config| {
        check(config, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            accepted.send_vectored(["one\r", "\ntwo\r\nth", "ree"]).await.unwrap();
            accepted.close().await.unwrap();
            assert_eq!(connected.recv_until(b"\r\n", 100).await.unwrap().unwrap(), "one\r\n");
            assert_eq!(connected.recv_until(b"\r\n", 100).await.unwrap().unwrap(), "two\r\n");
            let error = connected.recv_until(b"\r\n", 100).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
            assert_eq!(recv_all(&mut connected).await.unwrap(), b"three");
        });
    });
}

#[test]
fn a_connection_is_upgraded_in_place_with_what_was_not_read_yet() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            let accepting = spawn(async move {
                assert_eq!(theirs.recv_until(b"\n", 100).await.unwrap().unwrap(), "STARTTLS\n");
                // The hello of the client has come by then, with the same piece or behind it.
                anabranch::tls::TlsAcceptor::new(server()).accept(theirs).await
            });
            ours.send("STARTTLS\n").await.unwrap();
            let connecting = anabranch::tls::TlsConnector::new(client());
            let mut connected = connecting.connect("localhost", ours).await.unwrap();
            let echoing = spawn(echo(accepting.await.unwrap().unwrap()));
            connected.send("sealed").await.unwrap();
            assert_eq!(connected.recv_exact(6).await.unwrap(), "sealed");
            connected.close().await.unwrap();
            echoing.await.unwrap().unwrap();
        });
    });
}

#[test]
fn a_connection_within_the_machine_is_sealed_as_well() {
    on_real_backends(|config| {
        check(config, async {
            let (ours, theirs) = local_pair().await;
            let shaken = shake_over(&server(), theirs, &client(), "localhost", ours).await;
            let (accepted, mut connected) = (shaken.0.unwrap(), shaken.1.unwrap());
            let echoing = spawn(echo(accepted));
            connected.send("near").await.unwrap();
            assert_eq!(connected.recv_exact(4).await.unwrap(), "near");
            connected.close().await.unwrap();
            echoing.await.unwrap().unwrap();
        });
    });
}

#[test]
fn a_session_is_resumed_unless_that_is_turned_off() {
    on_real_backends(|config| {
        check(config, async {
            for (version, tickets) in
                VERSIONS.into_iter().flat_map(|version| [(version, true), (version, false)])
            {
                let identity = crate::rig::serving(&["localhost"]);
                let server = ServerTls::builder(identity).session_tickets(tickets).build().unwrap();
                let client = client_of(version);
                for round in 0..2 {
                    let (accepted, mut connected) = sealed_pair(&server, &client).await;
                    let resumed = connected.info().resumed;
                    assert_eq!(resumed, tickets && round == 1, "{version:?}, tickets: {tickets}");
                    // Tickets come with what is received.
                    let echoing = spawn(echo(accepted));
                    connected.send("x").await.unwrap();
                    assert_eq!(connected.recv_exact(1).await.unwrap(), "x");
                    connected.close().await.unwrap();
                    echoing.await.unwrap().unwrap();
                }
            }
        });
    });
}
