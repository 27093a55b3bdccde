//! Operations on connections, listeners and foreign descriptors.

use crate::common::net::anywhere;
use crate::common::on_every_backend;
#[cfg(unix)]
use crate::common::peer::UnixListener;
use crate::common::peer::{self, FreshSocket, TcpStream, UnixStream};
use crate::rig::{PATIENCE, Rig, pattern, peer_of};
use anabranch::driver::Descriptor;
use anabranch::driver::completion::Done;
use anabranch::driver::op::{Accept, Connect, Direction, Nop, Poll, Recv, Send, SendMsg, Shutdown};
use anabranch::{Error, Payload};
#[cfg(unix)]
use socket2::SockAddr;
use std::io::{Read, Write};

fn accepted(done: Done) -> Descriptor {
    match done {
        Done::Accepted(Ok(fd)) => fd,
        other => panic!("{other:?}"),
    }
}

/// An unconnected TCP socket.
fn socket() -> FreshSocket {
    FreshSocket::new(socket2::Domain::IPV4).expect("a socket")
}

#[test]
fn a_nop_completes() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let token = rig.submit(Nop);
        rig.ended(token).unwrap();
        rig.end();
    });
}

#[test]
fn a_completion_carries_the_token_and_the_number_that_were_given() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let tokens: Vec<_> = (0..10).map(|owner| rig.driver.submit(Nop, owner * 7).unwrap()).collect();
        for (at, token) in tokens.into_iter().enumerate() {
            assert_eq!(rig.next(token).owner, at as u64 * 7);
        }
        rig.end();
    });
}

#[test]
fn a_connection_is_made_echoed_over_shut_down_and_closed_by_operations_alone() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (listener, address) = rig.listener();
        let accept = rig.submit(Accept { listener: listener.clone(), repeat: false });
        let client = rig.adopt(socket());
        let connect = rig.submit(Connect::new(client.clone(), address.into()));
        rig.ended(connect).unwrap();
        let server = accepted(rig.last(accept));
        let server = rig.adopt(server);

        for (from, to) in [(&client, &server), (&server, &client)] {
            let receive = rig.submit(Recv { socket: to.clone(), buffer: Vec::with_capacity(5) });
            let send = rig.submit(Send::new(from.clone(), b"hello".into()));
            assert!(matches!(rig.last(send), Done::Sent(Ok(5), payload) if &*payload == b"hello"));
            let mut got = Vec::new();
            let mut token = receive;
            loop {
                let Done::Filled(Ok(bytes), buffer) = rig.last(token) else { panic!("no bytes") };
                assert!(bytes > 0);
                got = [got, buffer].concat();
                if got.len() == 5 {
                    break;
                }
                // A receive may bring fewer bytes than there are.
                token = rig.submit(Recv { socket: to.clone(), buffer: Vec::with_capacity(5 - got.len()) });
            }
            assert_eq!(got, b"hello");
        }

        let shutdown = rig.submit(Shutdown { socket: client.clone(), how: std::net::Shutdown::Write });
        rig.ended(shutdown).unwrap();
        let receive = rig.submit(Recv { socket: server.clone(), buffer: Vec::with_capacity(5) });
        assert!(matches!(rig.last(receive), Done::Filled(Ok(0), _)));
        for fd in [client, server, listener] {
            let close = rig.driver.close(fd, 0).expect("nothing uses it");
            rig.ended(close).unwrap();
        }
        assert_eq!(rig.end().descriptors_closed, 3);
    });
}

#[test]
fn an_accept_takes_one_connection_and_leaves_the_next() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (listener, address) = rig.listener();
        let clients = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        for client in &clients {
            let accept = rig.submit(Accept { listener: listener.clone(), repeat: false });
            assert_eq!(peer_of(accepted(rig.last(accept))), client.local_addr().unwrap());
        }
        drop(listener);
        rig.end();
    });
}

#[test]
fn a_standing_accept_brings_every_connection_until_it_is_cancelled() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (listener, address) = rig.listener();
        let accept = rig.submit(Accept { listener, repeat: true });
        let mut clients = Vec::new();
        for round in 0..4 {
            let new: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
            let mut ports: Vec<_> = new.iter().map(|client| client.local_addr().unwrap().port()).collect();
            while !ports.is_empty() {
                let completion = rig.next(accept);
                assert!(completion.more, "round {round}: {completion:?}");
                let port = peer_of(accepted(completion.done)).port();
                ports.retain(|other| *other != port);
            }
            clients.extend(new);
        }
        rig.driver.cancel(accept);
        assert!(matches!(rig.last(accept), Done::Accepted(Err(Error::Canceled))));
        rig.end();
    });
}

#[test]
fn a_refused_connection_is_an_error_of_the_system() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        // Bound, so that nobody else gets the port, but not listening.
        let nobody = socket();
        nobody.bind(anywhere()).unwrap();
        let client = rig.adopt(socket());
        let connect = rig.submit(Connect::new(client, nobody.local_addr().unwrap()));
        match rig.ended(connect) {
            Err(Error::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused),
            other => panic!("{other:?}"),
        }
        rig.end();
    });
}

// Not on Windows: it has Unix sockets, but no completions for a connect to one.
#[cfg(unix)]
#[test]
fn a_connect_to_a_path_works_like_one_to_an_address() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = rig.adopt(FreshSocket::new(socket2::Domain::UNIX).unwrap());
        let connect = rig.submit(Connect::new(client.clone(), SockAddr::unix(&path).unwrap()));
        rig.ended(connect).unwrap();
        let mut server = listener.accept().unwrap();
        server.write_all(b"x").unwrap();
        let receive = rig.submit(Recv { socket: client, buffer: Vec::with_capacity(1) });
        assert!(matches!(rig.last(receive), Done::Filled(Ok(1), _)));
        rig.end();
    });
}

#[test]
fn a_receive_appends_to_what_its_buffer_holds() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let mut buffer = Vec::with_capacity(64);
        buffer.extend_from_slice(b"before ");
        let start = buffer.as_ptr();
        peer.write_all(b"a").unwrap();
        let receive = rig.submit(Recv { socket, buffer });
        let Done::Filled(Ok(1), buffer) = rig.last(receive) else { panic!("no byte") };
        assert_eq!(buffer, b"before a");
        assert_eq!(buffer.as_ptr(), start, "the same memory comes back");
        rig.end();
    });
}

#[test]
fn a_receive_on_a_reset_connection_gives_the_error_and_the_buffer_back() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, peer) = rig.tcp();
        let receive = rig.submit(Recv { socket, buffer: Vec::with_capacity(99) });
        peer.reset().unwrap();
        match rig.last(receive) {
            Done::Filled(Err(Error::Io(error)), buffer) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                assert_eq!((buffer.len(), buffer.capacity()), (0, 99));
            }
            // It forgets a reset that comes before the receive has begun.
            Done::Filled(Ok(0), _) if crate::common::is_wine() => {}
            other => panic!("{other:?}"),
        }
        rig.end();
    });
}

#[test]
fn a_send_larger_than_every_buffer_on_the_way_leaves_whole() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        // Attempts of a rough script move at most 64 bytes every so often.
        let bytes = pattern(6 * 1024 * 1024);
        let expected = bytes.clone();
        let reader = peer::spawn(move || {
            let mut got = vec![0; expected.len()];
            peer.read_exact(&mut got).unwrap();
            assert!(got == expected, "bytes differ");
        });
        let len = bytes.len();
        let send = rig.submit(Send::new(socket, bytes.into()));
        assert!(matches!(rig.last(send), Done::Sent(Ok(sent), _) if sent == len));
        reader.join().unwrap();
        rig.end();
    });
}

#[test]
fn a_batch_leaves_whole_and_in_order() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let bytes = pattern(64 * 50_000);
        let mut payloads: Vec<Payload> = bytes.chunks(50_000).map(|part| part.to_vec().into()).collect();
        // A payload may be empty.
        payloads[7] = Vec::new().into();
        let mut expected = bytes;
        expected.drain(7 * 50_000..8 * 50_000);
        let len = expected.len();
        let reader = peer::spawn(move || {
            let mut got = vec![0; expected.len()];
            peer.read_exact(&mut got).unwrap();
            assert!(got == expected, "bytes differ");
        });
        let send = rig.submit(SendMsg::new(socket, payloads.into()));
        let Done::SentBatch(Ok(sent), batch) = rig.last(send) else { panic!("not sent") };
        assert_eq!((sent, batch.payloads().len()), (len, 64));
        reader.join().unwrap();
        rig.end();
    });
}

// Not on Windows: pairs are TCP there, and the first send to a peer that is gone succeeds.
#[cfg(unix)]
#[test]
fn a_send_to_a_peer_that_is_gone_fails_and_gives_the_payload_back() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = rig.adopt(ours);
        drop(theirs);
        let send = rig.submit(Send::new(socket.clone(), b"abc".into()));
        let batch = rig.submit(SendMsg::new(socket, vec![b"abc".into()].into()));
        let broken = |error: Error| {
            assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::BrokenPipe);
        };
        match rig.last(send) {
            Done::Sent(Err(error), payload) if &*payload == b"abc" => broken(error),
            other => panic!("{other:?}"),
        }
        match rig.last(batch) {
            Done::SentBatch(Err(error), batch) if batch.bytes() == 3 => broken(error),
            other => panic!("{other:?}"),
        }
        rig.end();
    });
}

#[test]
fn a_send_after_the_own_shutdown_is_a_broken_pipe() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, _peer) = rig.tcp();
        let shutdown = rig.submit(Shutdown { socket: socket.clone(), how: std::net::Shutdown::Write });
        rig.ended(shutdown).unwrap();
        let send = rig.submit(Send::new(socket, Payload::from("late")));
        match rig.last(send) {
            Done::Sent(Err(Error::Io(error)), payload) => {
                assert_eq!((error.kind(), &*payload), (std::io::ErrorKind::BrokenPipe, &b"late"[..]));
            }
            other => panic!("{other:?}"),
        }
        rig.end();
    });
}

#[test]
fn a_shutdown_ends_what_the_peer_reads_and_lets_the_other_direction_live() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let shutdown = rig.submit(Shutdown { socket: socket.clone(), how: std::net::Shutdown::Write });
        rig.ended(shutdown).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        peer.write_all(b"z").unwrap();
        let receive = rig.submit(Recv { socket, buffer: Vec::with_capacity(8) });
        assert!(matches!(rig.last(receive), Done::Filled(Ok(1), buffer) if buffer == b"z"));
        rig.end();
    });
}

#[test]
fn a_foreign_descriptor_is_reported_when_it_can_be_read_and_when_it_can_be_written() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let fd = rig.adopt(ours);
        let readable = rig.submit(Poll { fd: fd.clone(), direction: Direction::Read });
        let writable = rig.submit(Poll { fd: fd.clone(), direction: Direction::Write });
        rig.ended(writable).unwrap();
        rig.turn(std::time::Duration::from_millis(5));
        assert!(rig.kept.is_empty(), "there is nothing to read: {:?}", rig.kept);
        theirs.write_all(b"x").unwrap();
        rig.ended(readable).unwrap();
        // It stays ready: polling took nothing.
        let again = rig.submit(Poll { fd, direction: Direction::Read });
        rig.ended(again).unwrap();
        rig.end();
    });
}

#[test]
fn closing_a_descriptor_shows_at_the_peer() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, mut peer) = rig.tcp();
        let close = rig.driver.close(socket, 0).expect("nothing uses it");
        rig.ended(close).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        rig.end();
    });
}
