//! Scenarios of sending over connections.

use crate::closing::EIGHT_MIB;
use crate::world::{PATIENCE, Peer, World, raw_listener};
use std::io::{Read, Write};

/// Reads so many bytes.
fn read(peer: &mut Peer, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    peer.0.read_exact(&mut all).expect("the bytes come");
    all
}

/// What a run with warnings must look like whatever the system takes.
fn check_warnings(w: &World, id: i32) {
    let sizes: Vec<usize> =
        w.log().iter().filter(|m| m.ev == "Warning" && m.fd == id).map(|m| m.size).collect();
    let (last, sizes) = sizes.split_last().expect("there are warnings");
    assert_eq!(*last, 0, "the last tells that all has left");
    assert!(!sizes.is_empty());
    for (index, size) in sizes.iter().enumerate() {
        assert!(*size >= 1024 << index, "{sizes:?}");
        assert!(index == 0 || *size > sizes[index - 1], "{sizes:?}");
    }
}

fn wait_relaxed(w: &World, id: i32) {
    w.wait("the last warning", |log| {
        log.iter().any(|message| message.ev == "Warning" && message.fd == id && message.size == 0)
    });
}

pub(crate) fn warning_queue_8m(w: &World) {
    let (mut peer, a1) = w.raw();
    for _ in 0..192 {
        assert_eq!(w.calls.send(a1, &[b'w'; 64 << 10]), 0);
    }
    w.settle();
    let bytes = read(&mut peer, 12 << 20);
    wait_relaxed(w, a1);
    check_warnings(w, a1);
    w.note("sent_mib", 12);
    w.note("peer_got_all", u8::from(bytes.iter().all(|byte| *byte == b'w')));
    w.seal();
}

pub(crate) fn warning_single_send_8m(w: &World) {
    let (mut peer, a1) = w.raw();
    w.note("send", w.calls.send(a1, &vec![b'w'; EIGHT_MIB]));
    w.settle();
    w.note("warnings_before_read", w.log().iter().filter(|message| message.ev == "Warning").count());
    let bytes = read(&mut peer, EIGHT_MIB);
    w.note("peer_got_all", u8::from(bytes.len() == EIGHT_MIB));
    w.seal();
}

pub(crate) fn warning_while_connecting(w: &World) {
    let (listener, port) = raw_listener();
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(port)), "C");
    w.wait_for("Open", c);
    for _ in 0..16 {
        assert_eq!(w.calls.send(c, &vec![b'w'; 1 << 20]), 0);
    }
    w.settle();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut peer = Peer(peer);
    let bytes = read(&mut peer, 16 << 20);
    wait_relaxed(w, c);
    check_warnings(w, c);
    w.note("peer_got_all", u8::from(bytes.len() == 16 << 20));
    w.seal();
}

pub(crate) fn lowprio_order(w: &World) {
    let (mut peer, a1) = w.raw();
    w.calls.send(a1, &vec![b'p'; EIGHT_MIB]);
    w.settle();
    w.note("low", w.calls.send_low(a1, b"L1"));
    w.calls.send(a1, b"H1");
    w.calls.send_low(a1, b"L2");
    w.calls.send(a1, b"H2");
    let bytes = read(&mut peer, EIGHT_MIB + 8);
    let tail = String::from_utf8_lossy(&bytes[EIGHT_MIB..]).into_owned();
    assert!(tail == "L1H1H2L2" || tail == "H1H2L1L2", "{tail}");
    w.note("tail", "L1H1H2L2");
    w.seal();
}

pub(crate) fn lowprio_idle(w: &World) {
    let (mut peer, a1) = w.raw();
    w.note("low", w.calls.send_low(a1, b"a"));
    w.calls.send(a1, b"b");
    w.calls.send_low(a1, b"c");
    w.note("got", peer.read_exact(3));
    w.note("low_bad", w.calls.send_low(12_345, b"x"));
    w.seal();
}

pub(crate) fn lowprio_partial(w: &World) {
    let (mut peer, a1) = w.raw();
    w.calls.send_low(a1, &vec![b'l'; EIGHT_MIB]);
    w.settle();
    w.calls.send(a1, b"HH");
    w.settle();
    let bytes = read(&mut peer, EIGHT_MIB + 2);
    w.note("tail", String::from_utf8_lossy(&bytes[EIGHT_MIB - 2..]));
    w.note("pos_H", u8::from(bytes.iter().position(|byte| *byte == b'H') == Some(EIGHT_MIB)));
    wait_relaxed(w, a1);
    w.seal();
}

pub(crate) fn send_to_unstarted(w: &World) {
    let (listener, port) = w.listener();
    let mut peer = Peer::connect(port);
    let a1 = w.accepted(listener, 1);
    w.note("send", w.calls.send(a1, b"lost"));
    w.settle();
    w.calls.start(2, a1);
    w.calls.send(a1, b"kept");
    w.note("got", peer.read_exact(4));
    w.seal();
}

pub(crate) fn start_then_send_same_thread(w: &World) {
    let (listener, port) = w.listener();
    let mut peer = Peer::connect(port);
    let a1 = w.accepted(listener, 1);
    w.calls.start(2, a1);
    w.note("send", w.calls.send(a1, b"kept"));
    w.note("got", peer.read_exact(4));
    w.seal();
}

pub(crate) fn send_while_connecting(w: &World) {
    let (listener, port) = raw_listener();
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(port)), "C");
    w.note("send", w.calls.send(c, b"early"));
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut peer = Peer(peer);
    w.note("got", peer.read_exact(5));
    w.wait_for("Open", c);
    w.seal();
}

pub(crate) fn read_sizes(w: &World) {
    let (mut peer, a1) = w.raw();
    w.react(|_, message| {
        if message.size == 2 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    peer.0.write_all(b"go").unwrap();
    w.wait_bytes(a1, 2);
    peer.0.write_all(&vec![b'r'; 200_000]).unwrap();
    w.wait_bytes(a1, 200_002);
    for single in 1..=12 {
        peer.0.write_all(b"s").unwrap();
        w.wait_bytes(a1, 200_002 + single);
    }
    peer.0.write_all(&[b't'; 300]).unwrap();
    w.wait_bytes(a1, 200_314);
    w.seal();
}

pub(crate) fn send_zero_and_negative(w: &World) {
    let (mut peer, a1) = w.raw();
    w.note("zero", w.calls.send(a1, b""));
    w.note("low_zero", w.calls.send_low(a1, b""));
    w.note("after", w.calls.send(a1, b"ok"));
    w.note("got", peer.read_exact(2));
    w.seal();
}

pub(crate) fn concurrent_send_atomic(w: &World) {
    const RECORDS: usize = 3000;
    const BYTES: usize = 64;
    let (mut peer, a1) = w.raw();
    std::thread::scope(|scope| {
        for letter in [b'a', b'b'] {
            scope.spawn(move || {
                for record in 0..RECORDS {
                    let mut bytes = [letter; BYTES];
                    bytes[..8].copy_from_slice(format!("{letter:03}{record:05}").as_bytes());
                    assert_eq!(w.calls.send(a1, &bytes), 0);
                }
            });
        }
        let all = read(&mut peer, 2 * RECORDS * BYTES);
        let mut next = std::collections::HashMap::new();
        let is_bad = |record: &&[u8]| {
            let letter = record[8];
            let number = next.entry(letter).or_insert(0);
            let expected = format!("{letter:03}{number:05}");
            *number += 1;
            record[..8] != *expected.as_bytes() || record[8..].iter().any(|byte| *byte != letter)
        };
        let bad = all.chunks(BYTES).filter(is_bad).count();
        w.note("all", u8::from(all.len() == 2 * RECORDS * BYTES));
        w.note("bad", bad);
    });
    w.seal();
}
