//! Datagrams in batches: segments, joined datagrams, congestion codepoints, packet info, and what one of many meets.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{Ecn, InvalidDatagram, LocalAddress, SendOptions, UdpSocket};
use anabranch::{Capability, Event, sleep};
use common::net::{Driven, anywhere, check, counted, on_real_backends, on_typical_backends, pattern};
use common::{on_every_backend, peer};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

async fn socket() -> UdpSocket {
    UdpSocket::bind(anywhere()).await.unwrap()
}

fn any_v6() -> SocketAddr {
    "[::1]:0".parse().unwrap()
}

/// The lengths of what arrives until so many bytes have; the bytes must follow the pattern.
async fn lengths(socket: &UdpSocket, bytes: usize) -> Vec<usize> {
    let (mut all, mut lengths) = (Vec::new(), Vec::new());
    while all.len() < bytes {
        let datagram = socket.recv_from().await.unwrap();
        assert!(!datagram.truncated);
        all.extend_from_slice(&datagram.lease);
        lengths.push(datagram.lease.len());
    }
    assert!(all == pattern(bytes), "bytes were changed or moved");
    lengths
}

#[test]
fn a_payload_leaves_in_segments_of_which_the_last_may_be_shorter() {
    on_every_backend(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            let to = theirs.local_addr().unwrap();
            for (bytes, segment, count) in [(2500, 1000, 3), (64, 1, 64), (1000, 1000, 1), (999, 5000, 1)] {
                ours.send_segments(pattern(bytes), segment, to).await.unwrap();
                let got = lengths(&theirs, bytes).await;
                assert_eq!(got.len(), count, "{got:?}");
                let (last, others) = got.split_last().unwrap();
                assert!(others.iter().all(|len| *len == segment), "{got:?}");
                assert_eq!(*last, bytes - segment * (count - 1));
            }
        });
    });
}

#[test]
fn segments_larger_than_the_path_takes_as_such_are_sent_singly() {
    on_real_backends(|config| {
        let config = config.without(Capability::SegmentedSend);
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            let to = theirs.local_addr().unwrap();
            ours.send_segments(pattern(65_507), 65_000, to).await.unwrap();
            assert_eq!(lengths(&theirs, 65_507).await, [65_000, 507]);
        });
    });
}

#[test]
fn sizes_that_cannot_be_are_refused_by_type() {
    on_typical_backends(|config| {
        check(config, async {
            let ours = socket().await;
            let to = ours.local_addr().unwrap();
            let cases = [
                (100, 0, InvalidDatagram::EmptySegments),
                (65, 1, InvalidDatagram::TooManySegments { segments: 65, max: 64 }),
                (65_508, 10_000, InvalidDatagram::TooLong { bytes: 65_508, max: 65_507 }),
            ];
            for (bytes, segment, expected) in cases {
                let error = ours.send_segments(vec![0; bytes], segment, to).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<InvalidDatagram>());
                assert_eq!(inner, Some(&expected));
            }
        });
    });
}

#[test]
fn datagrams_of_a_turn_arrive_each_by_itself_however_they_left() {
    on_every_backend(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            let to = theirs.local_addr().unwrap();
            // Runs of one size, shorter ones at their end, empty ones, and more than one call takes.
            let mut sizes = vec![100, 100, 100, 50, 100, 0, 0, 7, 7, 200, 7];
            sizes.extend([30; 150]);
            for (index, size) in sizes.iter().enumerate() {
                ours.send_to(vec![index as u8; *size], to).await.unwrap();
            }
            for (index, size) in sizes.iter().enumerate() {
                let datagram = theirs.recv_from().await.unwrap();
                assert_eq!(&*datagram.lease, &vec![index as u8; *size][..], "datagram {index}");
            }
        });
    });
}

#[test]
fn joined_datagrams_are_delivered_one_by_one_and_share_their_buffer() {
    on_every_backend(|config| {
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            match theirs.set_gro(true) {
                Err(error) if error.kind() == ErrorKind::Unsupported => return,
                set => set.unwrap(),
            }
            let to = theirs.local_addr().unwrap();
            ours.send_segments(pattern(6300), 1000, to).await.unwrap();
            assert_eq!(lengths(&theirs, 6300).await, [1000, 1000, 1000, 1000, 1000, 1000, 300]);
            // Some are held while others go.
            ours.send_segments(pattern(3000), 1000, to).await.unwrap();
            let mut held = Vec::new();
            for _ in 0..3 {
                held.push(theirs.recv_from().await.unwrap().lease);
            }
            let last = held.pop().unwrap().into_bytes();
            held.remove(0);
            assert_eq!(held[0][..], pattern(3000)[1000..2000]);
            assert_eq!(last[..], pattern(3000)[2000..]);
        });
    });
}

#[test]
#[cfg_attr(windows, ignore = "datagrams are not joined there")]
fn joined_datagrams_can_be_taken_whole() {
    on_typical_backends(|config| {
        let simulated = peer::is_simulated(&config);
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            theirs.set_gro(true).unwrap();
            ours.send_segments(pattern(2500), 1000, theirs.local_addr().unwrap()).await.unwrap();
            let (mut all, mut count, mut batches) = (Vec::new(), 0, 0);
            while all.len() < 2500 {
                let segments = theirs.recv_segments().await.unwrap();
                assert_eq!(segments.from(), ours.local_addr().unwrap());
                assert!(!segments.is_truncated());
                count += segments.count_left();
                batches += 1;
                all.extend_from_slice(segments.bytes());
            }
            assert_eq!((count, all), (3, pattern(2500)));
            assert!(simulated || batches == 1, "this kernel joins none");
        });
    });
}

#[test]
fn joined_datagrams_need_buffers_that_are_large_enough() {
    on_real_backends(|config| {
        let config = config.with_limits(|limits| limits.datagram_buffer_bytes = 2048);
        check(config, async {
            let error = socket().await.set_gro(true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("datagram_buffer_bytes"), "{error}");
        });
    });
}

#[test]
#[cfg_attr(windows, ignore = "datagrams are not joined there")]
fn the_bound_of_the_inbound_queue_counts_joined_datagrams_singly() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.datagrams_inbound_max = 8);
        check(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            theirs.set_gro(true).unwrap();
            let to = theirs.local_addr().unwrap();
            for _ in 0..4 {
                ours.send_segments(pattern(6400), 100, to).await.unwrap();
            }
            // The first receive begins to fill the queue.
            let first = theirs.recv_from().await.unwrap();
            sleep(Duration::from_millis(20)).await;
            let taken = anabranch::counters().unwrap().bytes_in;
            assert!(taken <= (8 + 64) * 100, "{taken} bytes were taken");
            drop(first);
            for _ in 1..256 {
                assert_eq!(theirs.recv_from().await.unwrap().lease.len(), 100);
            }
        });
    });
}

#[test]
fn a_burst_larger_than_all_buffers_arrives_as_buffers_come_home() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.datagram_buffers = 2);
        let ((), counters) = counted(config, async {
            let (ours, theirs) = (socket().await, socket().await);
            let to = theirs.local_addr().unwrap();
            for n in 0..100_u8 {
                ours.send_to(vec![n; 20], to).await.unwrap();
            }
            let mut held = Vec::new();
            for n in 0..100_u8 {
                let lease = theirs.recv_from().await.unwrap().lease;
                assert_eq!(*lease, [n; 20]);
                held.push(lease.detach());
            }
        });
        assert_eq!(counters.truncated, 0);
    });
}

#[test]
fn what_one_datagram_meets_costs_the_others_nothing() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let ours = driven.shard.bind_udp(anywhere(), false).unwrap();
        let theirs = driven.shard.bind_udp(anywhere(), false).unwrap();
        let to = driven.shard.local_addr(theirs).unwrap();
        let nowhere = SocketAddr::new(to.ip(), 0);
        driven.shard.submit_recv_from_multi(theirs, 100).unwrap();
        let sends: [(usize, SocketAddr, bool); 8] = [
            (10, to, true),
            (10, nowhere, false),
            (10, to, true),
            (65_520, to, false),
            (10, to, true),
            (10, to, true),
            (0, nowhere, false),
            (9, to, true),
        ];
        for (tag, (len, to, _)) in sends.iter().enumerate() {
            driven.shard.submit_send_to(ours, vec![tag as u8; *len], *to, tag as u64).unwrap().unwrap();
        }
        for (tag, (.., well)) in sends.iter().enumerate() {
            let event = driven.end_of(tag as u64);
            assert_eq!(matches!(event, Event::Sent), *well, "{tag}: {event:?}");
        }
        driven.until(|events| events.iter().filter(|completion| completion.tag == 100).count() == 5);
        driven.finish();
    });
}

#[test]
#[cfg_attr(windows, ignore = "a socket that was used before it was connected hears of no refusal")]
fn a_refused_peer_costs_a_connected_socket_the_one_datagram_that_hears_of_it() {
    on_real_backends(|config| {
        check(config, async {
            let ours = socket().await;
            let gone = peer::UdpSocket::bind(anywhere()).unwrap().local_addr().unwrap();
            ours.connect(gone).unwrap();
            ours.send("anybody?").await.unwrap();
            sleep(Duration::from_millis(5)).await;
            let back = UdpSocket::bind(gone).await.unwrap();
            // They leave together; the first hears what its predecessor met, and a later call tells it.
            for n in 0..20_u8 {
                ours.send(vec![n; 5 + n as usize]).await.unwrap();
            }
            sleep(Duration::from_millis(5)).await;
            let error = ours.send("not sent").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            ours.send("last").await.unwrap();
            for n in 1..20_u8 {
                assert_eq!(*back.recv_from().await.unwrap().lease, vec![n; 5 + n as usize]);
            }
            assert_eq!(&*back.recv_from().await.unwrap().lease, b"last");
        });
    });
}

#[test]
#[cfg_attr(windows, ignore = "datagrams are not joined there")]
fn the_completion_api_sends_segments_and_receives_joined_datagrams() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let ours = driven.shard.bind_udp(anywhere(), false).unwrap();
        let theirs = driven.shard.bind_udp(anywhere(), false).unwrap();
        driven.shard.set_gro(theirs, true).unwrap();
        let to = driven.shard.local_addr(theirs).unwrap();
        driven.shard.submit_recv_from(theirs, 1).unwrap();
        driven.shard.submit_send_segments(ours, pattern(2500), 1000, to, 2).unwrap().unwrap();
        assert!(matches!(driven.end_of(2), Event::Sent));
        assert!(matches!(driven.end_of(1), Event::ReceivedFrom { lease, .. } if lease.len() == 1000));
        driven.shard.submit_recv_from_multi(theirs, 3).unwrap();
        driven.until(|events| events.iter().filter(|completion| completion.tag == 3).count() == 2);
        let lens: Vec<_> = driven
            .all(3)
            .iter()
            .map(|completion| match &completion.event {
                Event::ReceivedFrom { lease, .. } => lease.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lens, [1000, 500]);
        let refused = driven.shard.submit_send_segments(ours, pattern(65), 1, to, 4).unwrap();
        assert!(refused.is_err());
        driven.finish();
    });
}

#[test]
#[cfg_attr(windows, ignore = "datagrams carry no control messages there")]
fn codepoints_and_addresses_are_told_to_who_asks() {
    struct Case {
        bind: &'static str,
        to: &'static str,
        options: SendOptions,
        ecn: Ecn,
        local: &'static str,
        from: &'static str,
    }
    let source = |ip: &str| LocalAddress { ip: ip.parse().unwrap(), interface: 0 };
    let plain = SendOptions::new();
    let case = |bind, to, options, ecn, local, from| Case { bind, to, options, ecn, local, from };
    let cases = [
        case("127.0.0.1", "127.0.0.1", plain, Ecn::NotEct, "127.0.0.1", "127.0.0.1"),
        case("127.0.0.1", "127.0.0.1", plain.ecn(Ecn::Ect0), Ecn::Ect0, "127.0.0.1", "127.0.0.1"),
        case("0.0.0.0", "127.0.0.3", plain.ecn(Ecn::Ect1), Ecn::Ect1, "127.0.0.3", "127.0.0.1"),
        case(
            "0.0.0.0",
            "127.0.0.3",
            plain.source(source("127.0.0.2")),
            Ecn::NotEct,
            "127.0.0.3",
            "127.0.0.2",
        ),
        case("::1", "::1", plain.ecn(Ecn::Ce), Ecn::Ce, "::1", "::1"),
        case("::", "::1", plain.ecn(Ecn::Ect0).source(source("::1")), Ecn::Ect0, "::1", "::1"),
        case(
            "::",
            "::ffff:127.0.0.1",
            plain.ecn(Ecn::Ect0),
            Ecn::Ect0,
            "::ffff:127.0.0.1",
            "::ffff:127.0.0.1",
        ),
        case("0.0.0.0", "127.0.0.1", plain.ecn(Ecn::Ce).segment_bytes(2), Ecn::Ce, "127.0.0.1", "127.0.0.1"),
    ];
    if peer::UdpSocket::bind(any_v6()).is_err() {
        eprintln!("NOT COVERED: no IPv6 here");
    }
    on_real_backends(|config| {
        check(config, async {
            for (index, case) in cases.iter().enumerate() {
                let bind = SocketAddr::new(case.bind.parse().unwrap(), 0);
                let Ok(theirs) = UdpSocket::bind(bind).await else { continue };
                let unspecified = if bind.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
                let ours = UdpSocket::bind(unspecified.parse::<SocketAddr>().unwrap()).await.unwrap();
                let to = SocketAddr::new(case.to.parse().unwrap(), theirs.local_addr().unwrap().port());
                ours.send_with("before", to, case.options).await.unwrap();
                let mut parts = if case.options.segment_bytes.is_some() { 3 } else { 1 };
                while parts > 0 {
                    let before = theirs.recv_from().await.unwrap();
                    assert_eq!((before.ecn, before.local), (None, None), "case {index}: nobody asked");
                    parts -= 1;
                }
                theirs.set_ecn(true).unwrap();
                theirs.set_packet_info(true).unwrap();
                ours.send_with("after", to, case.options).await.unwrap();
                let datagram = theirs.recv_from().await.unwrap();
                assert_eq!(datagram.ecn, Some(case.ecn), "case {index}");
                let local = datagram.local.expect("the local address is told");
                assert_eq!(local.ip, case.local.parse::<IpAddr>().unwrap(), "case {index}");
                assert_ne!(local.interface, 0, "case {index}");
                assert_eq!(datagram.from.ip(), case.from.parse::<IpAddr>().unwrap(), "case {index}");
            }
        });
    });
}

#[test]
#[cfg_attr(windows, ignore = "datagrams carry no control messages there")]
fn the_completion_api_tells_codepoints_and_addresses_too() {
    on_real_backends(|config| {
        let mut driven = Driven::new(config);
        let socket = driven.shard.bind_udp(anywhere(), false).unwrap();
        let to = driven.shard.local_addr(socket).unwrap();
        driven.shard.set_ecn(socket, true).unwrap();
        driven.shard.set_packet_info(socket, true).unwrap();
        driven.shard.submit_recv_from(socket, 1).unwrap();
        let options = SendOptions::new().ecn(Ecn::Ect1);
        driven.shard.submit_send_with(socket, "x", to, options, 2).unwrap().unwrap();
        let Event::ReceivedFrom { ecn, local, .. } = driven.end_of(1) else { panic!("no datagram") };
        assert_eq!((*ecn, local.as_ref().map(|local| local.ip)), (Some(Ecn::Ect1), Some(to.ip())));
        driven.end_of(2);
        driven.finish();
    });
}

#[test]
fn a_simulated_host_says_that_it_knows_no_codepoints() {
    common::on(common::every_backend(), |config| {
        if peer::is_simulated(&config) {
            check(config, async {
                let socket = socket().await;
                assert_eq!(socket.set_ecn(true).unwrap_err().kind(), ErrorKind::Unsupported);
                assert_eq!(socket.set_packet_info(true).unwrap_err().kind(), ErrorKind::Unsupported);
            });
        }
    });
}

#[test]
fn both_families_are_served() {
    on_typical_backends(|config| {
        check(config, async {
            let Ok(theirs) = UdpSocket::bind(any_v6()).await else {
                return eprintln!("NOT COVERED: no IPv6 here");
            };
            let ours = UdpSocket::bind(any_v6()).await.unwrap();
            let to = theirs.local_addr().unwrap();
            ours.send_segments(pattern(2500), 1000, to).await.unwrap();
            assert_eq!(lengths(&theirs, 2500).await, [1000, 1000, 500]);
            ours.send_to("one", to).await.unwrap();
            ours.send_to("two", to).await.unwrap();
            for expected in ["one", "two"] {
                let datagram = theirs.recv_from().await.unwrap();
                assert_eq!(
                    (&*datagram.lease, datagram.from),
                    (expected.as_bytes(), ours.local_addr().unwrap())
                );
            }
        });
    });
}
