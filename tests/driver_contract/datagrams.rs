//! Datagrams: to an address, with their sender, empty, and larger than the buffer.

use crate::common::net::anywhere;
use crate::common::on_every_backend;
use crate::common::peer::UdpSocket;
use crate::rig::{PATIENCE, Rig, pattern};
use anabranch::Error;
use anabranch::driver::completion::{Datagram, Done};
use anabranch::driver::op::{Connect, RecvMsg, RecvMsgMulti, Send, SendMsg, SendTo};
use anabranch::driver::{FdRef, Token};
use std::net::SocketAddr;

fn peer() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(anywhere()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// The next datagram of a standing receive, which is armed again when it was starved: a script may claim that.
fn next(rig: &mut Rig, socket: &FdRef, token: &mut Token) -> Datagram {
    loop {
        let completion = rig.next(*token);
        match completion.done {
            Done::Datagram(Ok(datagram)) => {
                if !completion.more {
                    // The kernel takes an empty datagram for the end of a stream; it is delivered all the same.
                    assert!(datagram.lease.is_empty() && rig.is(anabranch::BackendKind::Uring));
                    *token = rig.submit(RecvMsgMulti { socket: socket.clone() });
                }
                return datagram;
            }
            Done::Starved if rig.may_starve() => {
                *token = rig.submit(RecvMsgMulti { socket: socket.clone() });
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_payload_leaves_as_one_datagram_to_the_address() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, address) = rig.udp();
        let (peer, to) = peer();
        let payload = [b"one two ".to_vec(), pattern(900)].concat().into();
        let send = rig.submit(SendTo { socket, payload, to: Some(to) });
        assert!(matches!(rig.last(send), Done::Sent(Ok(908), _)));
        let mut got = [0; 2000];
        let (len, from) = peer.recv_from(&mut got).unwrap();
        assert_eq!((len, from), (908, address));
        assert_eq!(&got[..8], b"one two ");
        assert_eq!(&got[8..908], pattern(900));
        rig.end();
    });
}

#[test]
fn a_connected_socket_sends_whole_datagrams() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, _) = rig.udp();
        let (peer, to) = peer();
        let connect = rig.submit(Connect::new(socket.clone(), to.into()));
        rig.ended(connect).unwrap();
        for round in 0..20 {
            let bytes = pattern(500 + round);
            let token = match round % 2 {
                0 => rig.submit(Send::new(socket.clone(), bytes.clone().into())),
                _ => rig.submit(SendMsg::new(socket.clone(), vec![bytes.clone().into()].into())),
            };
            assert!(matches!(rig.last(token), Done::Sent(Ok(_), _) | Done::SentBatch(Ok(_), _)));
            let mut got = [0; 2000];
            let len = peer.recv(&mut got).unwrap();
            assert_eq!(&got[..len], bytes);
        }
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_receive_brings_one_datagram_and_its_sender() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, address) = rig.udp();
        let (peer, from) = peer();
        for round in 0..20 {
            let bytes = pattern(300 + round);
            let mut buffer = Vec::with_capacity(1000);
            buffer.push(b'>');
            let receive = rig.submit(RecvMsg::new(socket.clone(), buffer));
            peer.send_to(&bytes, address).unwrap();
            let Done::FilledFrom(Ok((len, sender)), buffer) = rig.last(receive) else {
                panic!("no datagram")
            };
            assert_eq!((len, sender), (bytes.len(), from));
            assert_eq!(buffer, [b">".to_vec(), bytes].concat());
        }
        drop(socket);
        rig.end();
    });
}

#[test]
fn an_empty_datagram_arrives_by_every_kind_of_receive() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let ((socket, address), (sender, from)) = (rig.udp(), rig.udp());
        let empty = || SendTo { socket: sender.clone(), payload: "".into(), to: Some(address) };
        let send = rig.submit(empty());
        assert!(matches!(rig.last(send), Done::Sent(Ok(0), _)));
        let receive = rig.submit(RecvMsg::new(socket.clone(), Vec::with_capacity(10)));
        assert!(
            matches!(rig.last(receive), Done::FilledFrom(Ok((0, sender)), buffer) if buffer.is_empty() && sender == from)
        );

        let mut standing = rig.submit(RecvMsgMulti { socket: socket.clone() });
        let send = rig.submit(empty());
        assert!(matches!(rig.last(send), Done::Sent(Ok(0), _)));
        let datagram = next(&mut rig, &socket, &mut standing);
        assert_eq!((datagram.lease.len(), datagram.from, datagram.truncated), (0, from, false));
        drop((datagram, socket, sender));
        rig.end();
    });
}

#[test]
fn a_datagram_larger_than_the_buffer_is_cut() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| limits.datagram_buffer_bytes = 512);
        let (socket, address) = rig.udp();
        let (peer, from) = peer();
        let bytes = pattern(1000);

        let receive = rig.submit(RecvMsg::new(socket.clone(), Vec::with_capacity(100)));
        peer.send_to(&bytes, address).unwrap();
        let Done::FilledFrom(Ok((100, _)), buffer) = rig.last(receive) else { panic!("not cut") };
        assert_eq!(buffer, bytes[..100]);

        let mut standing = rig.submit(RecvMsgMulti { socket: socket.clone() });
        peer.send_to(&bytes, address).unwrap();
        peer.send_to(&bytes[..50], address).unwrap();
        let cut = next(&mut rig, &socket, &mut standing);
        assert!(cut.truncated, "a cut datagram says so");
        assert_eq!(cut.from, from);
        assert!(cut.lease.len() > 400 && cut.lease.len() < 512, "{} bytes", cut.lease.len());
        assert_eq!(*cut.lease, bytes[..cut.lease.len()]);
        let whole = next(&mut rig, &socket, &mut standing);
        assert_eq!((&*whole.lease, whole.truncated), (&bytes[..50], false));
        drop((cut, whole, socket));
        rig.end();
    });
}

#[test]
fn a_standing_receive_brings_every_datagram_with_its_sender() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let (socket, address) = rig.udp();
        let peers = [peer(), peer()];
        let mut standing = rig.submit(RecvMsgMulti { socket: socket.clone() });
        for round in 0..100 {
            let (peer, from) = &peers[round % 2];
            let bytes = pattern(round * 7);
            peer.send_to(&bytes, address).unwrap();
            let datagram = next(&mut rig, &socket, &mut standing);
            assert_eq!((&*datagram.lease, datagram.from), (&bytes[..], *from));
            assert!(!datagram.truncated);
        }
        rig.driver.cancel(standing);
        // A script may end it for want of buffers before it sees the cancel.
        match rig.last(standing) {
            Done::Datagram(Err(Error::Canceled)) => {}
            Done::Starved if rig.may_starve() => {}
            other => panic!("{other:?}"),
        }
        drop(socket);
        rig.end();
    });
}

#[test]
fn a_standing_receive_of_datagrams_starves_and_lives_again_when_leases_return() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| limits.datagram_buffers = 4);
        let (socket, address) = rig.udp();
        let (peer, _) = peer();
        for number in 0..6u8 {
            peer.send_to(&[number], address).unwrap();
        }
        let mut held = Vec::new();
        let mut token = rig.submit(RecvMsgMulti { socket: socket.clone() });
        while held.len() < 4 {
            held.push(next(&mut rig, &socket, &mut token));
        }
        assert!(matches!(rig.last(token), Done::Starved), "no buffer is left");
        let got: Vec<u8> = held.drain(..).map(|datagram| datagram.lease[0]).collect();
        assert_eq!(got, [0, 1, 2, 3]);
        token = rig.submit(RecvMsgMulti { socket: socket.clone() });
        for number in 4..6 {
            assert_eq!(*next(&mut rig, &socket, &mut token).lease, [number]);
        }
        drop(socket);
        rig.end();
    });
}

#[test]
fn addresses_of_both_families_are_told() {
    on_every_backend(|config| {
        let here = "[::1]:0".parse().unwrap();
        let Ok(peer) = UdpSocket::bind(here) else {
            eprintln!("NOT COVERED: no IPv6 here");
            return;
        };
        let mut rig = Rig::new(config);
        let ours = UdpSocket::bind(here).unwrap();
        let address = ours.local_addr().unwrap();
        let socket = rig.adopt(ours);
        peer.send_to(b"six", address).unwrap();
        let receive = rig.submit(RecvMsg::new(socket.clone(), Vec::with_capacity(10)));
        let from = peer.local_addr().unwrap();
        assert!(matches!(rig.last(receive), Done::FilledFrom(Ok((3, sender)), _) if sender == from));
        let mut standing = rig.submit(RecvMsgMulti { socket: socket.clone() });
        peer.send_to(b"six", address).unwrap();
        assert_eq!(next(&mut rig, &socket, &mut standing).from, from);
        drop(socket);
        rig.end();
    });
}
