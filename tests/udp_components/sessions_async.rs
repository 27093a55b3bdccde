//! Sessions as objects.

use crate::common::net::{anywhere, check, on_typical_backends, pattern};
use crate::common::on_every_backend;
use anabranch::component::udp::{SendError, SessionEnd, SessionOptions, UdpSessions};
use anabranch::net::UdpSocket;
use anabranch::{sleep, spawn};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

async fn socket() -> UdpSocket {
    UdpSocket::bind(anywhere()).await.unwrap()
}

fn bind(options: SessionOptions) -> (UdpSessions, SocketAddr) {
    let sessions = UdpSessions::bind(anywhere(), options).unwrap();
    let to = sessions.local_addr().unwrap();
    (sessions, to)
}

#[test]
fn each_peer_is_a_session_of_its_own_with_its_own_datagrams() {
    on_every_backend(|config| {
        check(config, async {
            let (sessions, to) = bind(SessionOptions::new());
            let accepting = sessions.clone();
            let server = spawn(async move {
                loop {
                    let mut session = accepting.accept().await.unwrap();
                    spawn(async move {
                        while let Some(datagram) = session.recv().await {
                            session.send(datagram.lease).await.unwrap();
                        }
                    })
                    .detach();
                }
            });
            let mut peers = Vec::new();
            for _ in 0..10 {
                peers.push(socket().await);
            }
            for round in 0..20 {
                for (n, peer) in peers.iter().enumerate() {
                    peer.send_to(pattern(n + round), to).await.unwrap();
                }
                for (n, peer) in peers.iter().enumerate() {
                    assert_eq!(*peer.recv_from().await.unwrap().lease, pattern(n + round)[..]);
                }
            }
            assert_eq!(sessions.len(), 10);
            drop(server);
        });
    });
}

#[test]
fn what_waited_is_taken_before_the_end_is_told() {
    on_typical_backends(|config| {
        check(config, async {
            let (sessions, to) = bind(SessionOptions::new());
            let peer = socket().await;
            for n in 0..3 {
                peer.send_to(vec![n], to).await.unwrap();
            }
            let mut session = sessions.accept().await.unwrap();
            assert_eq!(session.peer(), peer.local_addr().unwrap());
            while sessions.info(session.id()).is_some_and(|info| info.datagrams_in < 3) {
                sleep(Duration::from_millis(1)).await;
            }
            sessions.stop();
            for n in 0..3 {
                assert_eq!(&*session.recv().await.unwrap().lease, [n]);
            }
            assert!(session.recv().await.is_none() && session.recv().await.is_none());
            assert!(matches!(session.take_end(), Some(SessionEnd::Shutdown)));
            assert!(matches!(session.send("late").await, Err(SendError::NoSession)));
            assert_eq!(sessions.accept().await.unwrap_err().kind(), ErrorKind::NotConnected);
        });
    });
}

#[test]
fn dropping_a_session_ends_it_and_the_next_datagram_makes_a_new_one() {
    on_typical_backends(|config| {
        check(config, async {
            let (sessions, to) = bind(SessionOptions::new());
            let peer = socket().await;
            let mut ids = Vec::new();
            for n in 0..5 {
                peer.send_to(vec![n], to).await.unwrap();
                let mut session = sessions.accept().await.unwrap();
                assert_eq!(&*session.recv().await.unwrap().lease, [n]);
                ids.push(session.id());
                session.close();
                assert!(sessions.is_empty());
            }
            ids.dedup();
            assert_eq!(ids.len(), 5);
        });
    });
}

#[test]
fn a_session_that_nobody_reads_costs_a_bounded_queue_and_no_other_session_anything() {
    on_typical_backends(|config| {
        // Fewer buffers than the datagrams that wait, so that waiting ones must not hold any.
        let config = config.with_limits(|limits| limits.datagram_buffers = 8);
        check(config, async {
            let (sessions, to) = bind(SessionOptions::new().inbox_datagrams_max(20));
            let (lazy, busy) = (socket().await, socket().await);
            lazy.send_to(vec![0], to).await.unwrap();
            let mut unread = sessions.accept().await.unwrap();
            busy.send_to("hello", to).await.unwrap();
            let mut read = sessions.accept().await.unwrap();
            read.recv().await.unwrap();
            for n in 1..50_u8 {
                lazy.send_to(vec![n], to).await.unwrap();
                busy.send_to(vec![n], to).await.unwrap();
                assert_eq!(&*read.recv().await.unwrap().lease, [n]);
            }
            while sessions.info(unread.id()).unwrap().datagrams_in < 50 {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(sessions.info(unread.id()).unwrap().dropped_in, 30);
            assert_eq!(sessions.info(read.id()).unwrap().dropped_in, 0);
            for n in 0..20 {
                let lease = unread.recv().await.unwrap().lease;
                assert_eq!(&*lease, [n], "the first ones are kept");
                assert!(!lease.is_pooled(), "what waits holds a buffer");
            }
            lazy.send_to("room again", to).await.unwrap();
            assert_eq!(&*unread.recv().await.unwrap().lease, b"room again");
        });
    });
}

#[test]
fn sessions_that_nobody_accepts_are_bounded() {
    on_typical_backends(|config| {
        check(config, async {
            let (sessions, to) = bind(SessionOptions::new().waiting_max(3));
            let (first, mut strangers) = (socket().await, Vec::new());
            first.send_to("x", to).await.unwrap();
            let held = sessions.accept().await.unwrap();
            for _ in 0..10 {
                let stranger = socket().await;
                stranger.send_to("x", to).await.unwrap();
                strangers.push(stranger);
            }
            while sessions.refusals().handler < 7 {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(sessions.len(), 4);
            for _ in 0..3 {
                let mut session = sessions.accept().await.unwrap();
                assert_eq!(&*session.recv().await.unwrap().lease, b"x");
            }
            assert_eq!(sessions.len(), 1, "dropped sessions are over");
            drop(held);
        });
    });
}

#[test]
fn a_silent_session_is_told_that_it_was_idle() {
    on_typical_backends(|config| {
        check(config, async {
            let (sessions, to) = bind(SessionOptions::new().idle(Duration::from_millis(50)));
            let peer = socket().await;
            peer.send_to("x", to).await.unwrap();
            let mut session = sessions.accept().await.unwrap();
            while session.recv().await.is_some() {}
            assert!(matches!(session.take_end(), Some(SessionEnd::Idle)));
            assert!(session.take_end().is_none(), "told once");
        });
    });
}

#[test]
fn dropping_a_receive_or_an_accept_loses_nothing() {
    on_typical_backends(|config| {
        check(config, async {
            let (sessions, to) = bind(SessionOptions::new());
            let peer = socket().await;
            assert!(anabranch::timeout(Duration::ZERO, sessions.accept()).await.is_err());
            peer.send_to(vec![0], to).await.unwrap();
            let mut session = sessions.accept().await.unwrap();
            for n in 0..20_u8 {
                assert_eq!(&*session.recv().await.unwrap().lease, [n]);
                assert!(anabranch::timeout(Duration::ZERO, session.recv()).await.is_err());
                peer.send_to(vec![n + 1], to).await.unwrap();
            }
        });
    });
}
