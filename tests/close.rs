//! Closing: what still leaves, what the peer sees, and what comes last.
#![forbid(unsafe_code)]

mod common;

#[cfg(unix)]
use anabranch::net::UnixStream;
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Close, Completion, Error, Event, sleep, spawn};
use common::net::{
    Driven, anywhere, assert_reset, check, on_typical_backends, pair, pattern, recv_all, with_peer,
};
use common::{on_every_backend, peer, run};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

#[test]
fn closing_sends_what_is_queued_first() {
    on_every_backend(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send(pattern(120_000)).await.unwrap();
            let reader = spawn(async move { recv_all(&mut theirs).await.unwrap() });
            ours.close().await.unwrap();
            assert!(reader.await.unwrap() == pattern(120_000), "the bytes differ");
        });
    });
}

#[test]
fn dropping_a_connection_sends_what_is_queued_too() {
    on_every_backend(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send(pattern(120_000)).await.unwrap();
            drop(ours);
            assert!(recv_all(&mut theirs).await.unwrap() == pattern(120_000), "the bytes differ");
        });
    });
}

#[test]
fn an_abort_resets_the_connection() {
    on_every_backend(|config| {
        check(config, async {
            let (ours, mut theirs) = pair().await;
            ours.abort();
            assert_reset(theirs.recv().await);
        });
    });
}

#[test]
fn an_abort_drops_what_is_queued() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_max = 64 << 20);
        check(config, async {
            let (mut ours, theirs) = with_peer();
            for _ in 0..20 {
                ours.send(vec![1; 1 << 20]).await.unwrap();
            }
            sleep(Duration::from_millis(5)).await;
            ours.abort();
            sleep(Duration::from_millis(20)).await;
            let mut all = Vec::new();
            // What had left already may arrive; it ends in a reset.
            assert_reset((&theirs).read_to_end(&mut all));
            assert!(all.len() < 20 << 20);
        });
    });
}

#[test]
fn a_close_that_cannot_flush_gives_up_at_its_deadline() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.outbound_bytes_max = 64 << 20;
            limits.close_flush_ms = 100;
        });
        check(config, async {
            let (mut ours, _theirs) = with_peer();
            ours.send(vec![1; 32 << 20]).await.unwrap();
            let start = peer::now();
            assert!(ours.close().await.is_err(), "the peer did not read");
            let took = peer::now() - start;
            assert!((100..5_000).contains(&took.as_millis()), "it took {took:?}");
        });
    });
}

#[test]
fn a_dropped_connection_that_cannot_flush_is_reset_at_its_deadline() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.outbound_bytes_max = 64 << 20;
            limits.close_flush_ms = 50;
        });
        check(config, async {
            let (mut ours, theirs) = with_peer();
            ours.send(vec![1; 32 << 20]).await.unwrap();
            drop(ours);
            let counters = loop {
                sleep(Duration::from_millis(10)).await;
                let counters = anabranch::counters().unwrap();
                if counters.closes == counters.opens {
                    break counters;
                }
            };
            assert_eq!(counters.descriptors_opened, counters.descriptors_closed);
            assert_reset((&theirs).read_to_end(&mut Vec::new()));
        });
    });
}

#[test]
fn a_dropped_close_closes_all_the_same() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send("bye").await.unwrap();
            let _ = anabranch::timeout(Duration::ZERO, ours.close()).await;
            assert_eq!(recv_all(&mut theirs).await.unwrap(), b"bye");
        });
    });
}

#[test]
fn closing_during_a_connect_ends_the_attempt() {
    on_every_backend(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            for _ in 0..10 {
                let connect = TcpStream::connect(listener.local_addr().unwrap());
                let _ = anabranch::timeout(Duration::ZERO, connect).await;
            }
        });
    });
}

#[test]
fn a_connection_may_be_closed_from_inside_a_completion() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let (id, theirs) = driven.with_peer();
        driven.shard.submit_recv_multi(id, 1).unwrap();
        (&theirs).write_all(b"close now").unwrap();
        let mut closed = false;
        let mut events: Vec<Completion> = Vec::new();
        while !closed {
            let shard = &driven.shard;
            shard
                .poll(Some(Duration::from_millis(10)), |completion| {
                    if matches!(completion.event, Event::Received(_)) && events.is_empty() {
                        assert!(matches!(shard.submit_send(id, "bye", 3), Ok(Ok(()))));
                        shard.submit_close(id, Close::Flush, 2).unwrap();
                        assert!(
                            matches!(shard.submit_recv(id, 4), Err(Error::Closed)),
                            "new work is refused"
                        );
                        assert!(matches!(shard.submit_send(id, "late", 5), Ok(Err(Error::Closed))));
                    }
                    closed |= matches!(completion.event, Event::Closed);
                    events.push(completion);
                })
                .unwrap();
        }
        driven.events = events;
        assert!(matches!(driven.events.last().unwrap().event, Event::Closed));
        assert!(matches!(driven.end_of(1), Event::Failed(Error::Closed)), "the receive ended as closed");
        assert!(matches!(driven.end_of(3), Event::Sent));
        let mut bye = Vec::new();
        // The rest of "close now" may be unread, which makes the end a reset.
        let _ = (&theirs).read_to_end(&mut bye);
        assert!(bye == b"bye" || bye.is_empty());
        driven.finish();
    });
}

#[test]
fn closed_is_the_last_event_of_an_endpoint() {
    on_every_backend(|config| {
        for how in [Close::Flush, Close::Abort] {
            let mut driven = Driven::new(config.clone());
            let (id, theirs) = driven.with_peer();
            driven.shard.submit_recv_multi(id, 1).unwrap();
            for tag in 10..20 {
                assert!(matches!(driven.shard.submit_send(id, vec![0; 1000], tag), Ok(Ok(()))));
            }
            driven.shard.submit_shutdown(id, Shutdown::Write, 2).unwrap();
            (&theirs).write_all(b"still coming").unwrap();
            driven.shard.submit_close(id, how, 3).unwrap();
            driven.until(|events| events.iter().any(|completion| completion.tag == 3));
            driven.idle(Duration::from_millis(3));
            assert!(matches!(driven.events.last().unwrap().event, Event::Closed), "{:?}", driven.events);
            for tag in [1, 2].into_iter().chain(10..20) {
                assert_eq!(driven.all(tag).iter().filter(|one| !one.more).count(), 1, "tag {tag}, {how:?}");
            }
            driven.finish();
        }
    });
}

#[test]
fn each_of_two_closes_is_answered() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let (id, _theirs) = driven.with_peer();
        driven.shard.submit_close(id, Close::Flush, 1).unwrap();
        driven.shard.submit_close(id, Close::Abort, 2).unwrap();
        assert!(matches!(driven.end_of(1), Event::Closed));
        assert!(matches!(driven.end_of(2), Event::Closed));
        driven.finish();
    });
}

#[test]
fn an_id_names_nothing_after_its_end() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let (id, _theirs) = driven.with_peer();
        driven.shard.submit_close(id, Close::Flush, 1).unwrap();
        driven.end_of(1);
        let (other, _peer) = driven.with_peer();
        assert_ne!(id, other, "an id is not used twice");
        assert!(id.as_u64() != 0 && other.as_u64() != 0);
        let shard = &driven.shard;
        assert!(matches!(shard.submit_recv(id, 2), Err(Error::Closed)));
        assert!(matches!(shard.submit_recv_multi(id, 2), Err(Error::Closed)));
        assert!(matches!(shard.submit_send(id, "x", 2), Ok(Err(Error::Closed))));
        assert!(matches!(shard.submit_send_to(id, "x", anywhere(), 2), Ok(Err(Error::Closed))));
        assert!(matches!(shard.submit_recv_from(id, 2), Err(Error::Closed)));
        assert!(matches!(shard.submit_accept(id, 2), Err(Error::Closed)));
        assert!(matches!(shard.submit_shutdown(id, Shutdown::Write, 2), Err(Error::Closed)));
        assert!(matches!(shard.submit_close(id, Close::Flush, 2), Err(Error::Closed)));
        assert_eq!(shard.local_addr(id).unwrap_err().kind(), ErrorKind::NotConnected);
        driven.finish();
    });
}

#[test]
fn a_connection_that_outlives_its_shard_says_so() {
    on_typical_backends(|config| {
        let shard = anabranch::Shard::new(config).unwrap();
        let (mut ours, _theirs) = shard.block_on(async { with_peer() });
        let counters = shard.finish();
        counters.settled().unwrap();
        let error = anabranch::block_on(async { ours.recv().await.map(|_| ()).unwrap_err() }).unwrap();
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert!(error.to_string().contains("shard"), "{error}");
        assert_eq!(ours.peer_addr().unwrap_err().kind(), ErrorKind::NotConnected);
    });
}

#[test]
fn accepts_that_land_while_a_listener_closes_are_closed() {
    on_every_backend(|config| {
        for round in 0..5 {
            let peers = run(config.clone(), async {
                let listener = TcpListener::bind(anywhere()).await.unwrap();
                let address = listener.local_addr().unwrap();
                let _ = anabranch::timeout(Duration::ZERO, listener.accept()).await;
                let peers: Vec<_> = (0..8).map(|_| peer::TcpStream::connect(address).unwrap()).collect();
                if round % 2 == 0 {
                    anabranch::yield_now().await;
                }
                drop(listener);
                peers
            });
            for mut peer in peers.0 {
                peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                match peer.read(&mut [0]) {
                    Ok(0) => {}
                    Ok(_) => panic!("nobody sent anything"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "not closed"),
                }
            }
        }
    });
}

// Not on Windows: it has no pairs of Unix sockets.
#[cfg(unix)]
#[test]
fn closing_one_of_two_unix_ends_is_the_end_for_the_other() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.abort();
            // A Unix socket knows no reset for bytes that were never there.
            assert!(theirs.recv().await.unwrap().is_none());
        });
    });
}

/// Sends `payload`, closes without waiting, and gives what the peer gets before the end.
fn closed_now(config: anabranch::Config, payload: Vec<u8>, half_closed: bool) -> Vec<u8> {
    let shard = anabranch::Shard::new(config).unwrap();
    let (ours, mut theirs) = common::net::std_pair();
    let connection = shard.adopt_stream(ours).unwrap();
    if half_closed {
        theirs.shutdown(Shutdown::Write).unwrap();
        shard.submit_recv(connection, 1).unwrap();
        let mut ended = false;
        while !ended {
            shard.poll(None, |completion| ended = matches!(completion.event, Event::End)).unwrap();
        }
    }
    shard.send(connection, payload).unwrap().unwrap();
    shard.submit_close(connection, Close::Now, 2).unwrap();
    let mut closed = false;
    while !closed {
        shard.poll(None, |completion| closed |= matches!(completion.event, Event::Closed)).unwrap();
    }
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).expect("the connection ends in order");
    shard.finish().settled().unwrap();
    all
}

#[test]
fn a_close_that_does_not_wait_sends_what_the_system_takes_and_ends_in_order() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_max = 64 << 20);
        for half_closed in [false, true] {
            assert_eq!(closed_now(config.clone(), b"bye".to_vec(), half_closed), b"bye");
            let sent = pattern(12 << 20);
            let got = closed_now(config.clone(), sent.clone(), half_closed);
            assert!(!got.is_empty() && got.len() < sent.len() && sent.starts_with(&got), "{}", got.len());
        }
    });
}

#[test]
fn an_aborted_connection_whose_send_waits_is_a_reset_for_the_peer_and_no_end() {
    on_typical_backends(|config| {
        let shard = anabranch::Shard::new(config).unwrap();
        let (ours, mut theirs) = common::net::std_pair();
        let connection = shard.adopt_stream(ours).unwrap();
        shard.send(connection, pattern(16 << 20)).unwrap().unwrap();
        // The system has taken what it has room for.
        shard.submit_timeout(Duration::from_millis(20), 1).unwrap();
        let mut waited = false;
        while !waited {
            shard.poll(None, |completion| waited |= completion.tag == 1).unwrap();
        }
        shard.submit_close(connection, Close::Abort, 2).unwrap();
        let mut closed = false;
        while !closed {
            shard.poll(None, |completion| closed |= matches!(completion.event, Event::Closed)).unwrap();
        }
        assert_reset(theirs.read_to_end(&mut Vec::new()));
        shard.finish().settled().unwrap();
    });
}
