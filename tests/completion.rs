//! The completion API: each accepted submission has exactly one last event.
#![forbid(unsafe_code)]

mod common;

use anabranch::{Close, Error, Event, Shard};
use common::net::{Driven, anywhere, nobody, on_typical_backends, pattern, reset, std_pair};
use common::{on, on_every_backend, peer, real_backends};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

#[test]
fn a_conversation_over_submissions_and_tags() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let listener = driven.shard.listen(anywhere()).unwrap();
        let address = driven.shard.local_addr(listener).unwrap();
        driven.shard.submit_accept(listener, 1).unwrap();
        let ours = driven.shard.submit_connect(address, 2).unwrap();
        assert!(matches!(driven.shard.submit_send(ours, "queued early", 3), Ok(Ok(()))));
        assert!(driven.events.is_empty(), "a submission never completes there and then");
        let Event::Accepted(theirs) = *driven.end_of(1) else { panic!("{:?}", driven.events) };
        assert!(matches!(driven.end_of(2), Event::Connected));
        assert!(matches!(driven.end_of(3), Event::Sent));
        assert_eq!(driven.shard.peer_addr(theirs).unwrap(), driven.shard.local_addr(ours).unwrap());
        driven.shard.submit_recv_multi(theirs, 4).unwrap();
        driven.until(|events| events.iter().any(|one| one.tag == 4));
        assert!(matches!(driven.shard.submit_recv(theirs, 5), Err(Error::Io(_))), "one receive at a time");
        driven.shard.submit_shutdown(ours, Shutdown::Write, 6).unwrap();
        assert!(matches!(driven.shard.submit_shutdown(ours, Shutdown::Write, 7), Err(Error::Closed)));
        assert!(matches!(driven.end_of(6), Event::ShutDown));
        assert!(matches!(driven.end_of(4), Event::End));
        assert_eq!(driven.bytes(4), b"queued early");
        driven.shard.submit_recv(theirs, 8).unwrap();
        assert!(matches!(driven.end_of(8), Event::End), "the end stays the end");
        for (tag, id) in [(10, ours), (11, theirs), (12, listener)] {
            driven.shard.submit_close(id, Close::Flush, tag).unwrap();
            assert!(matches!(driven.end_of(tag), Event::Closed));
        }
        driven.finish();
    });
}

#[test]
fn single_receives_take_what_comes_in_order() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config.with_limits(|limits| limits.buffer_bytes = 512));
        let (id, theirs) = driven.with_peer();
        (&theirs).write_all(&pattern(5000)).unwrap();
        let (mut got, mut tag) = (Vec::new(), 100);
        while got.len() < 5000 {
            driven.shard.submit_recv(id, tag).unwrap();
            assert!(matches!(driven.end_of(tag), Event::Received(_)));
            got.extend(driven.bytes(tag));
            tag += 1;
        }
        assert_eq!(got, pattern(5000));
        reset(theirs);
        driven.shard.submit_recv(id, 1).unwrap();
        match driven.end_of(1) {
            Event::Failed(Error::Io(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            // It forgets some resets.
            Event::End if common::is_wine() => {}
            _ => panic!("{:?}", driven.events),
        }
        driven.finish();
    });
}

#[test]
fn sends_are_told_in_their_order_once_all_bytes_are_with_the_kernel() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config.with_limits(|limits| limits.outbound_bytes_max = 16 << 20));
        let (id, theirs) = driven.with_peer();
        for tag in 0..50 {
            let payload = vec![tag as u8; 1 + (tag as usize * 37) % 700];
            assert!(matches!(driven.shard.submit_send(id, payload, tag), Ok(Ok(()))));
        }
        assert!(matches!(driven.shard.submit_send(id, "", 50), Ok(Ok(()))));
        driven.end_of(50);
        let order: Vec<u64> = driven.events.iter().map(|one| one.tag).collect();
        assert_eq!(order, (0..=50).collect::<Vec<_>>());
        driven.shard.submit_close(id, Close::Flush, 99).unwrap();
        driven.end_of(99);
        let mut all = Vec::new();
        (&theirs).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), (0..50).map(|tag| 1 + (tag * 37) % 700).sum::<usize>());
        driven.finish();
    });
}

#[test]
fn payloads_leave_in_one_send_up_to_64_pieces_of_which_small_neighbours_make_one() {
    on(real_backends(), |config| {
        let mut driven = Driven::new(config);
        let (id, mut theirs) = driven.with_peer();
        driven.idle(Duration::from_millis(5));
        for (payloads, len, sends) in [(200_u64, 100, 1), (64, 257, 1), (66, 257, 2), (200, 256, 1)] {
            let (before, mut expected) = (driven.shard.counters(), Vec::new());
            for number in 0..payloads {
                let payload = vec![number as u8; len];
                expected.extend_from_slice(&payload);
                assert!(matches!(driven.shard.submit_send(id, payload, number), Ok(Ok(()))));
            }
            let mut got = vec![0; expected.len()];
            driven.until(|events| events.len() == payloads as usize);
            driven.events.clear();
            theirs.read_exact(&mut got).unwrap();
            assert_eq!(got, expected);
            assert_eq!(driven.shard.counters().submitted - before.submitted, sends, "{payloads} of {len}");
        }
        driven.finish();
    });
}

#[test]
fn sends_to_a_peer_that_has_gone_each_end_as_failed() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config.with_limits(|limits| limits.outbound_bytes_max = 64 << 20));
        let (id, theirs) = driven.with_peer();
        for tag in 0..5 {
            assert!(matches!(driven.shard.submit_send(id, vec![0; 4 << 20], tag), Ok(Ok(()))));
        }
        driven.shard.submit_shutdown(id, Shutdown::Write, 9).unwrap();
        driven.idle(Duration::from_millis(5));
        reset(theirs);
        assert!(matches!(driven.end_of(4), Event::Failed(Error::Io(_))));
        assert!(matches!(driven.end_of(9), Event::Failed(_)));
        for tag in 0..5 {
            assert_eq!(driven.all(tag).len(), 1, "tag {tag}");
        }
        assert!(matches!(driven.shard.submit_send(id, "x", 10), Ok(Err(Error::Io(_)))));
        driven.finish();
    });
}

#[test]
fn a_standing_accept_ends_when_its_listener_closes() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let listener = driven.shard.listen(anywhere()).unwrap();
        let address = driven.shard.local_addr(listener).unwrap();
        driven.shard.submit_accept_multi(listener, 1).unwrap();
        let _peers: Vec<_> = (0..5).map(|_| peer::TcpStream::connect(address).unwrap()).collect();
        driven.until(|events| events.len() == 5);
        assert!(driven.all(1).iter().all(|one| one.more && matches!(one.event, Event::Accepted(_))));
        driven.shard.submit_close(listener, Close::Flush, 2).unwrap();
        assert!(matches!(driven.end_of(1), Event::Failed(Error::Closed)));
        assert!(matches!(driven.end_of(2), Event::Closed));
        driven.finish();
    });
}

#[test]
fn a_standing_accept_on_a_queue_that_is_closed_at_once_still_ends_last() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let listener = driven.shard.listen(anywhere()).unwrap();
        let address = driven.shard.local_addr(listener).unwrap();
        let _peers: Vec<_> = (0..5).map(|_| peer::TcpStream::connect(address).unwrap()).collect();
        // The first arms a standing accept, whose other connections wait in the queue.
        driven.shard.submit_accept(listener, 1).unwrap();
        driven.end_of(1);
        driven.idle(Duration::from_millis(10));
        driven.shard.submit_accept_multi(listener, 2).unwrap();
        driven.shard.submit_close(listener, Close::Flush, 3).unwrap();
        driven.until(|events| events.iter().any(|one| one.tag == 3));
        driven.idle(Duration::from_millis(2));
        assert!(!driven.all(2).last().unwrap().more, "{:?}", driven.events);
        driven.finish();
    });
}

#[test]
fn a_connect_that_is_refused_fails_with_everything_queued_on_it() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let gone = nobody();
        let id = driven.shard.submit_connect(gone, 1).unwrap();
        assert!(matches!(driven.shard.submit_send(id, "never", 2), Ok(Ok(()))));
        driven.shard.submit_shutdown(id, Shutdown::Write, 3).unwrap();
        for tag in [1, 2, 3] {
            let Event::Failed(Error::Io(error)) = driven.end_of(tag) else { panic!("{:?}", driven.events) };
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        driven.shard.submit_close(id, Close::Flush, 4).unwrap();
        assert!(matches!(driven.end_of(4), Event::Closed));
        driven.finish();
    });
}

#[test]
fn a_connect_may_be_closed_before_it_has_ended() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let listener = driven.shard.listen(anywhere()).unwrap();
        let address = driven.shard.local_addr(listener).unwrap();
        for round in 0..6 {
            let id = driven.shard.submit_connect(address, 10 * round).unwrap();
            if round % 2 == 1 {
                driven.idle(Duration::from_micros(10));
            }
            driven.shard.submit_close(id, Close::Abort, 10 * round + 1).unwrap();
            assert!(matches!(driven.end_of(10 * round + 1), Event::Closed));
            assert_eq!(driven.all(10 * round).len(), 1, "{:?}", driven.events);
        }
        driven.finish();
    });
}

fn two_sockets(driven: &Driven) -> (anabranch::EndpointId, anabranch::EndpointId, SocketAddr) {
    let ours = driven.shard.bind_udp(anywhere(), false).unwrap();
    let theirs = driven.shard.bind_udp(anywhere(), false).unwrap();
    (ours, theirs, driven.shard.local_addr(theirs).unwrap())
}

#[test]
fn datagrams_over_submissions() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let (ours, theirs, to) = two_sockets(&driven);
        driven.shard.submit_recv_from(theirs, 1).unwrap();
        driven.shard.submit_recv_from_multi(theirs, 2).unwrap();
        for n in 0..5 {
            assert!(matches!(driven.shard.submit_send_to(ours, vec![n as u8], to, 10 + n), Ok(Ok(()))));
        }
        driven.until(|events| events.iter().filter(|one| one.tag < 10).count() == 5);
        assert!(matches!(driven.end_of(1), Event::ReceivedFrom { truncated: false, .. }));
        assert_eq!(driven.all(2).len(), 4);
        for n in 0..5 {
            assert!(matches!(driven.end_of(10 + n), Event::Sent));
        }
        let refused = driven.shard.submit_send_to(ours, vec![0; 70_000], to, 20);
        assert!(matches!(refused, Ok(Err(Error::Io(error))) if error.kind() == ErrorKind::InvalidInput));
        assert!(matches!(driven.shard.submit_send_to(ours, vec![0; 65_520], to, 21), Ok(Ok(()))));
        assert!(matches!(driven.end_of(21), Event::Failed(Error::Io(_))));
        driven.shard.submit_close(theirs, Close::Flush, 30).unwrap();
        assert!(matches!(driven.end_of(30), Event::Closed));
        assert!(matches!(driven.end_of(2), Event::Failed(Error::Closed)));
        driven.finish();
    });
}

#[test]
fn a_datagram_receive_on_a_socket_that_closes_is_refused_or_ends() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let (ours, _, to) = two_sockets(&driven);
        assert!(matches!(driven.shard.submit_send_to(ours, "last", to, 1), Ok(Ok(()))));
        driven.shard.submit_close(ours, Close::Flush, 2).unwrap();
        assert!(matches!(driven.shard.submit_recv_from(ours, 3), Err(Error::Closed)), "new work is refused");
        assert!(matches!(driven.shard.submit_send_to(ours, "late", to, 4), Ok(Err(Error::Closed))));
        assert!(matches!(driven.end_of(2), Event::Closed));
        assert!(matches!(driven.end_of(1), Event::Sent));
        driven.finish();
    });
}

#[test]
fn what_a_datagram_socket_met_is_told_by_its_next_receive() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let ours = driven.shard.bind_udp(anywhere(), false).unwrap();
        let gone = peer::UdpSocket::bind(anywhere()).unwrap().local_addr().unwrap();
        driven.shard.submit_recv_from(ours, 1).unwrap();
        let peer = peer::UdpSocket::bind(anywhere()).unwrap();
        peer.send_to(b"hello", driven.shard.local_addr(ours).unwrap()).unwrap();
        assert!(matches!(driven.end_of(1), Event::ReceivedFrom { .. }));
        // An unconnected socket hears nothing of a peer that is gone, and goes on.
        assert!(matches!(driven.shard.submit_send_to(ours, "anybody?", gone, 2), Ok(Ok(()))));
        assert!(matches!(driven.end_of(2), Event::Sent));
        driven.shard.submit_recv_from(ours, 3).unwrap();
        peer.send_to(b"again", driven.shard.local_addr(ours).unwrap()).unwrap();
        assert!(matches!(driven.end_of(3), Event::ReceivedFrom { .. }));
        driven.finish();
    });
}

#[test]
fn time_outs_elapse_in_the_order_of_their_deadlines_and_never_early() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let start = peer::now();
        for (tag, ms) in [(1, 30), (2, 10), (3, 0)] {
            driven.shard.submit_timeout(Duration::from_millis(ms), tag).unwrap();
        }
        driven.shard.submit_timeout(Duration::MAX, 4).unwrap();
        assert!(matches!(driven.end_of(1), Event::Elapsed));
        assert!((peer::now() - start) >= Duration::from_millis(30));
        let order: Vec<u64> = driven.events.iter().map(|one| one.tag).collect();
        assert_eq!(order, [3, 2, 1]);
        driven.finish();
    });
}

#[test]
fn shutting_the_inbound_side_down_leaves_the_outbound_side_open() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let (id, theirs) = driven.with_peer();
        driven.shard.submit_shutdown(id, Shutdown::Read, 1).unwrap();
        assert!(matches!(driven.end_of(1), Event::ShutDown));
        driven.shard.submit_recv(id, 2).unwrap();
        assert!(matches!(driven.end_of(2), Event::End));
        assert!(matches!(driven.shard.submit_send(id, "still", 3), Ok(Ok(()))));
        assert!(matches!(driven.end_of(3), Event::Sent));
        driven.shard.submit_shutdown(id, Shutdown::Write, 4).unwrap();
        assert!(matches!(driven.end_of(4), Event::ShutDown));
        let mut all = Vec::new();
        (&theirs).read_to_end(&mut all).unwrap();
        assert_eq!(all, b"still");
        driven.finish();
    });
}

#[test]
fn submissions_of_the_wrong_kind_are_refused() {
    on_typical_backends(|config| {
        let driven = Driven::new(config);
        let listener = driven.shard.listen(anywhere()).unwrap();
        let (stream, _theirs) = driven.with_peer();
        assert!(matches!(driven.shard.submit_recv(listener, 1), Err(Error::Closed)));
        assert!(matches!(driven.shard.submit_accept(stream, 1), Err(Error::Closed)));
        assert!(matches!(driven.shard.submit_recv_from(stream, 1), Err(Error::Closed)));
        assert!(matches!(driven.shard.submit_send(listener, "x", 1), Ok(Err(Error::Closed))));
        driven.finish();
    });
}

#[test]
fn a_listener_without_room_for_endpoints_fails_an_accept_and_goes_on() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config.with_limits(|limits| limits.endpoints_max = 2));
        let listener = driven.shard.listen(anywhere()).unwrap();
        let address = driven.shard.local_addr(listener).unwrap();
        driven.shard.submit_accept_multi(listener, 1).unwrap();
        let _peers: Vec<_> = (0..2).map(|_| peer::TcpStream::connect(address).unwrap()).collect();
        driven.until(|events| events.len() == 2);
        let Event::Accepted(first) = driven.events[0].event else { panic!("{:?}", driven.events) };
        assert!(driven.events[1].more && matches!(driven.events[1].event, Event::Failed(Error::Io(_))));
        driven.shard.submit_close(first, Close::Flush, 2).unwrap();
        driven.end_of(2);
        let _third = peer::TcpStream::connect(address).unwrap();
        driven.until(|events| matches!(events.last().unwrap().event, Event::Accepted(_)));
        driven.finish();
    });
}

// Not on Windows: sockets cannot share a port there.
#[cfg(unix)]
#[test]
fn shared_listeners_of_two_shards_both_accept() {
    on_typical_backends(|config| {
        let mut one = Driven::new(config.clone());
        let mut two = Driven::new(config);
        let first = one.shard.listen_shared(anywhere()).unwrap();
        let address = one.shard.local_addr(first).unwrap();
        let second = two.shard.listen_shared(address).unwrap();
        one.shard.submit_accept_multi(first, 1).unwrap();
        two.shard.submit_accept_multi(second, 1).unwrap();
        let _peers: Vec<_> = (0..40).map(|_| peer::TcpStream::connect(address).unwrap()).collect();
        while one.events.len() + two.events.len() < 40 {
            one.idle(Duration::from_millis(1));
            two.idle(Duration::from_millis(1));
        }
        assert!(!one.events.is_empty() && !two.events.is_empty(), "the kernel spreads by hash");
        one.finish();
        two.finish();
    });
}

#[test]
fn tasks_run_while_a_shard_is_polled_and_share_its_endpoints() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let (ours, theirs) = std_pair();
        let task = driven.shard.spawn(async move {
            let mut stream = ours.adopt()?;
            let asked = stream.recv_exact(4).await?;
            stream.send(asked).await?;
            stream.close().await
        });
        (&theirs).write_all(b"ping").unwrap();
        while !task.is_finished() {
            driven.idle(Duration::from_millis(1));
        }
        let mut back = Vec::new();
        (&theirs).read_to_end(&mut back).unwrap();
        assert_eq!(back, b"ping");
        driven.finish();
    });
}

#[test]
fn a_message_of_another_thread_ends_a_poll_that_waits_for_ever() {
    on_every_backend(|config| {
        let shard = Shard::new(config).unwrap();
        let remote = shard.remote();
        let other = peer::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            remote.run(|| {}).unwrap();
        });
        shard.poll(None, |completion| panic!("{completion:?}")).unwrap();
        other.join().unwrap();
        shard.finish().settled().unwrap();
    });
}
