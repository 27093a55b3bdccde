//! Datagram sockets.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::UdpSocket;
use anabranch::{sleep, spawn, timeout};
use common::net::{anywhere, check, counted, on_typical_backends};
use common::{on_every_backend, peer};
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

async fn socket() -> UdpSocket {
    UdpSocket::bind(anywhere()).await.unwrap()
}

#[test]
fn datagrams_are_echoed_whole_and_with_their_sender() {
    on_every_backend(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            let address = theirs.local_addr().unwrap();
            let echo = spawn(async move {
                for _ in 0..5 {
                    let datagram = theirs.recv_from().await.unwrap();
                    theirs.send_to(datagram.lease, datagram.from).await.unwrap();
                }
                theirs.close().await;
            });
            for len in [1, 10, 100, 1000, 9000] {
                ours.send_to(vec![len as u8; len], address).await.unwrap();
                let datagram = ours.recv_from().await.unwrap();
                assert_eq!((datagram.lease.len(), datagram.from, datagram.truncated), (len, address, false));
                assert!(datagram.lease.iter().all(|byte| *byte == len as u8));
            }
            echo.await.unwrap();
        });
    });
}

#[test]
fn an_empty_datagram_is_a_datagram() {
    on_every_backend(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            ours.send_to("", theirs.local_addr().unwrap()).await.unwrap();
            let datagram = theirs.recv_from().await.unwrap();
            assert!(datagram.lease.is_empty() && !datagram.truncated);
            assert_eq!(datagram.from, ours.local_addr().unwrap());
        });
    });
}

#[test]
fn a_datagram_longer_than_a_buffer_is_cut_and_says_so() {
    on_every_backend(|config| {
        let config = config.with_limits(|limits| limits.datagram_buffer_bytes = 1024);
        let ((), counters) = counted(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            let to = theirs.local_addr().unwrap();
            ours.send_to(vec![9; 5000], to).await.unwrap();
            let datagram = theirs.recv_from().await.unwrap();
            assert!(datagram.truncated && (1..=1024).contains(&datagram.lease.len()), "{datagram:?}");
            assert_eq!(datagram.from, ours.local_addr().unwrap());
            ours.send_to("whole", to).await.unwrap();
            let next = theirs.recv_from().await.unwrap();
            assert!(!next.truncated && &*next.lease == b"whole");
        });
        assert_eq!(counters.truncated, 1);
    });
}

#[test]
fn a_datagram_that_is_too_long_is_refused_with_its_length() {
    on_typical_backends(|config| {
        check(config, async {
            let ours = socket().await;
            let to = socket().await.local_addr().unwrap();
            let error = ours.send_to(vec![0; 70_000], to).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let text = error.to_string();
            assert!(text.contains("70000") && text.contains("65527"), "{text}");
        });
    });
}

#[test]
fn what_the_system_refuses_is_told_by_a_later_call_once() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            let to = theirs.local_addr().unwrap();
            // Short enough for the length field, too long beside the header of IPv4.
            ours.send_to(vec![0; 65_520], to).await.unwrap();
            let error = ours.recv_from().await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(common::TOO_LONG), "{error}");
            ours.send_to("fine", to).await.unwrap();
            assert_eq!(&*theirs.recv_from().await.unwrap().lease, b"fine");
        });
    });
}

#[test]
fn a_connected_socket_hears_that_its_peer_is_gone_and_goes_on() {
    if common::is_wine() {
        return println!("NOT COVERED: Wine forgets such errors when they come before the receive");
    }
    on_typical_backends(|config| {
        check(config, async {
            let ours = socket().await;
            let gone = peer::UdpSocket::bind(anywhere()).unwrap().local_addr().unwrap();
            ours.connect(gone).unwrap();
            ours.send("anybody?").await.unwrap();
            assert_eq!(ours.recv_from().await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let back = UdpSocket::bind(gone).await.unwrap();
            ours.send("now?").await.unwrap();
            let datagram = back.recv_from().await.unwrap();
            assert_eq!(&*datagram.lease, b"now?");
            back.send_to("yes", datagram.from).await.unwrap();
            assert_eq!(&*ours.recv_from().await.unwrap().lease, b"yes");
        });
    });
}

#[test]
fn several_tasks_share_a_socket_and_none_waits_for_ever() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, Rc::new(socket().await));
            let tasks: Vec<_> = (0..4)
                .map(|_| {
                    let theirs = Rc::clone(&theirs);
                    spawn(async move {
                        let mut got = Vec::new();
                        for _ in 0..5 {
                            got.push(theirs.recv_from().await.unwrap().lease[0]);
                        }
                        got
                    })
                })
                .collect();
            for n in 0..20_u8 {
                ours.send_to(vec![n], theirs.local_addr().unwrap()).await.unwrap();
            }
            let mut all = Vec::new();
            for task in tasks {
                all.extend(task.await.unwrap());
            }
            all.sort_unstable();
            assert_eq!(all, (0..20).collect::<Vec<u8>>());
        });
    });
}

#[test]
fn a_full_inbound_queue_leaves_datagrams_to_the_kernel_and_takes_them_later() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.datagrams_inbound_max = 4);
        check(config, async {
            let theirs = socket().await;
            let to = theirs.local_addr().unwrap();
            let peer = peer::UdpSocket::bind(anywhere()).unwrap();
            // The first receive arms a standing one.
            assert!(timeout(Duration::ZERO, theirs.recv_from()).await.is_err());
            for n in 0..30_u8 {
                peer.send_to(&[n], to).unwrap();
                sleep(Duration::from_millis(1)).await;
            }
            let taken = anabranch::counters().unwrap().bytes_in;
            assert!(taken < 30, "nothing bounds the queue");
            for n in 0..30_u8 {
                assert_eq!(&*theirs.recv_from().await.unwrap().lease, [n], "one was lost or out of order");
            }
        });
    });
}

#[test]
fn a_full_outbound_queue_makes_sending_wait_and_loses_nothing() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.datagrams_outbound_max = 2);
        check(config, async {
            let (ours, theirs) = (Rc::new(socket().await), socket().await);
            let to = theirs.local_addr().unwrap();
            let senders: Vec<_> = (0..20_u8)
                .map(|n| {
                    let ours = Rc::clone(&ours);
                    spawn(async move { ours.send_to(vec![n], to).await.unwrap() })
                })
                .collect();
            let mut got = Vec::new();
            for _ in 0..20 {
                got.push(theirs.recv_from().await.unwrap().lease[0]);
            }
            got.sort_unstable();
            assert_eq!(got, (0..20).collect::<Vec<u8>>());
            for sender in senders {
                sender.await.unwrap();
            }
        });
    });
}

#[test]
fn closing_a_socket_sends_what_is_queued() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            for n in 0..10_u8 {
                ours.send_to(vec![n], theirs.local_addr().unwrap()).await.unwrap();
            }
            ours.close().await;
            for _ in 0..10 {
                theirs.recv_from().await.unwrap();
            }
        });
    });
}

#[test]
fn options_of_a_socket_can_be_set() {
    on_typical_backends(|config| {
        check(config, async {
            let std = peer::UdpSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
            let ours = std.adopt().unwrap();
            ours.set_broadcast(true).unwrap();
            ours.set_buffer_sizes(64 * 1024, 64 * 1024).unwrap();
            assert_eq!(ours.local_addr().unwrap().ip().to_string(), "0.0.0.0");
            assert_ne!(ours.id(), socket().await.id());
        });
    });
}
