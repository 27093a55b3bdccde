//! Scenarios of closing, by either side.

use crate::world::{Gate, Peer, World};
use std::io::Write;
use std::net::Shutdown;

pub(crate) const EIGHT_MIB: usize = 8 << 20;

pub(crate) fn close_by_server(w: &World) {
    let (listener, port) = w.listener();
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(port)), "C");
    let a1 = w.accepted(listener, 1);
    w.wait_for("Open", c);
    w.calls.start(2, a1);
    w.calls.send(a1, b"bye");
    w.calls.close(2, a1);
    w.wait_for("Close", c);
}

pub(crate) fn close_uid_differs_from_owner(w: &World) {
    let (mut peer, a1) = w.raw();
    w.calls.close(77, a1);
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer", String::from_utf8_lossy(&bytes));
    w.wait_for("Close", a1);
}

/// A connection with 8 MiB waiting for a peer that does not read.
fn pending(w: &World) -> (Peer, i32) {
    let (peer, a1) = w.raw();
    let sent = w.calls.send(a1, &vec![b'p'; EIGHT_MIB]);
    assert_eq!(sent, 0);
    w.settle();
    (peer, a1)
}

fn closes(w: &World) -> usize {
    w.log().iter().filter(|message| message.ev == "Close").count()
}

pub(crate) fn shutdown_pending(w: &World) {
    let (mut peer, a1) = pending(w);
    w.note("send", 0);
    w.calls.shutdown(77, a1);
    w.settle();
    w.note("close_before_peer_reads", closes(w));
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer_got_all", u8::from(bytes.len() == EIGHT_MIB));
    assert!(!bytes.is_empty(), "what the system took is delivered");
    w.note("peer_got_bytes", bytes.len());
}

pub(crate) fn close_pending(w: &World) {
    let (mut peer, a1) = pending(w);
    w.note("send", 0);
    w.calls.close(77, a1);
    w.settle();
    w.note("close_before_peer_reads", closes(w));
    w.note("send_in_halfclose", w.calls.send(a1, b"dropped"));
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer_got_all", u8::from(bytes.len() == EIGHT_MIB));
    w.wait_for("Close", a1);
}

pub(crate) fn close_pending_peer_sends(w: &World) {
    let (mut peer, a1) = pending(w);
    w.calls.close(77, a1);
    w.settle();
    w.note("peer_write", peer.0.write(b"hello").unwrap());
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer_got_all", u8::from(bytes.len() == EIGHT_MIB));
    w.wait_for("Close", a1);
}

pub(crate) fn close_pending_peer_closes(w: &World) {
    let (peer, a1) = pending(w);
    w.calls.close(77, a1);
    w.settle();
    drop(peer);
    w.wait("an end", |log| log.iter().any(|m| m.fd == a1 && matches!(m.ev, "Close" | "Error")));
}

pub(crate) fn close_then_shutdown_pending(w: &World) {
    let (_peer, a1) = pending(w);
    w.calls.close(77, a1);
    w.calls.close(78, a1);
    w.settle();
    w.note("closes_so_far", closes(w));
    w.calls.shutdown(79, a1);
    w.wait_for("Close", a1);
}

pub(crate) fn close_twice(w: &World) {
    let (_peer, a1) = w.raw();
    w.calls.close(2, a1);
    w.calls.close(5, a1);
    w.wait_nth("Close", a1, 2);
}

pub(crate) fn close_before_start(w: &World) {
    let (listener, port) = w.listener();
    let mut peer = Peer::connect(port);
    let a1 = w.accepted(listener, 1);
    w.calls.close(6, a1);
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer", String::from_utf8_lossy(&bytes));
    w.calls.start(2, a1);
    w.wait_for("Error", a1);
}

pub(crate) fn close_unstarted_listen(w: &World) {
    let port = crate::world::closed_port();
    let listener = w.label(w.calls.listen(1, "127.0.0.1", i32::from(port), 64), "L");
    w.calls.close(5, listener);
    w.wait_for("Close", listener);
    w.note("peer_connect", if Peer::connect_to(([127, 0, 0, 1], port).into()).is_ok() { 0 } else { -1 });
}

pub(crate) fn close_listen_keeps_conns(w: &World) {
    let (listener, port) = w.listener();
    let mut peer = Peer::connect(port);
    let a1 = w.accepted(listener, 1);
    w.calls.start(2, a1);
    w.wait_for("Open", a1);
    w.calls.close(1, listener);
    w.wait_for("Close", listener);
    w.note("peer_connect", if Peer::connect_to(([127, 0, 0, 1], port).into()).is_ok() { 0 } else { -1 });
    peer.0.write_all(b"x").unwrap();
    w.wait_bytes(a1, 1);
    w.seal();
}

pub(crate) fn peer_reset(w: &World) {
    let (peer, a1) = w.raw();
    peer.reset();
    w.wait_for("Error", a1);
    w.note("send_after", w.calls.send(a1, b"x"));
}

pub(crate) fn peer_reset_after_data(w: &World) {
    let gate = Gate::default();
    let (mut peer, a1) = w.raw();
    let inside = gate.clone();
    w.react(move |_, message| {
        if message.buffer.as_deref() == Some(b"abc") {
            inside.pass();
        }
    });
    peer.0.write_all(b"abc").unwrap();
    gate.is_reached();
    peer.0.write_all(b"def").unwrap();
    peer.reset();
    gate.open();
    w.wait_for("Error", a1);
}

pub(crate) fn peer_half_close(w: &World) {
    let (mut peer, a1) = w.raw();
    peer.0.write_all(b"abc").unwrap();
    peer.0.shutdown(Shutdown::Write).unwrap();
    w.wait_for("Close", a1);
    w.note("send_after", w.calls.send(a1, b"x"));
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer_got", String::from_utf8_lossy(&bytes));
}

pub(crate) fn peer_half_close_pending_output(w: &World) {
    let (mut peer, a1) = pending(w);
    peer.0.shutdown(Shutdown::Write).unwrap();
    w.wait_for("Close", a1);
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer_got_all", u8::from(bytes.len() == EIGHT_MIB));
}

pub(crate) fn peer_half_close_echo_in_callback(w: &World) {
    let (mut peer, a1) = w.raw();
    let (sender, sent) = std::sync::mpsc::channel();
    w.react(move |calls, message| {
        if message.ev == "Data" {
            sender.send(calls.send(message.fd, message.buffer.as_deref().unwrap())).unwrap();
        }
    });
    peer.0.write_all(b"abc").unwrap();
    peer.0.shutdown(Shutdown::Write).unwrap();
    w.wait_for("Close", a1);
    w.note("send", sent.recv().unwrap());
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer_got", String::from_utf8_lossy(&bytes));
}

pub(crate) fn close_in_open_callback(w: &World) {
    let (listener, port) = w.listener();
    w.react(|calls, message| match (message.ev, message.uid) {
        ("Accept", _) => calls.start(2, message.ud),
        ("Open", 2) => {
            calls.send(message.fd, b"bye");
            calls.close(2, message.fd);
        }
        _ => {}
    });
    let mut peer = Peer::connect(port);
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer", String::from_utf8_lossy(&bytes));
    w.wait_for("Close", w.accepted(listener, 1));
}

pub(crate) fn send_after_close_same_thread(w: &World) {
    let (mut peer, a1) = w.raw();
    w.calls.send(a1, b"A");
    w.calls.close(2, a1);
    w.calls.send(a1, b"B");
    let (end, bytes) = peer.read_all();
    w.note("peer_read", end);
    w.note("peer_prefix_A", u8::from(bytes.starts_with(b"A")));
    w.wait_for("Close", a1);
}

pub(crate) fn send_after_peer_closed_rst(w: &World) {
    let gate = Gate::default();
    let (mut peer, a1) = w.raw();
    let (inside, (sender, sent)) = (gate.clone(), std::sync::mpsc::channel());
    w.react(move |calls, message| {
        if message.ev == "Data" {
            inside.pass();
            sender.send(calls.send(message.fd, b"one")).unwrap();
            sender.send(calls.send(message.fd, b"two")).unwrap();
        }
    });
    peer.0.write_all(b"go").unwrap();
    gate.is_reached();
    drop(peer);
    gate.open();
    w.note("send1", sent.recv().unwrap());
    w.note("send2", sent.recv().unwrap());
    w.wait("an end", |log| log.iter().any(|m| m.fd == a1 && matches!(m.ev, "Close" | "Error")));
}

pub(crate) fn close_all_types_order(w: &World) {
    let (listener, port) = w.listener();
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(port)), "C");
    let a1 = w.accepted(listener, 1);
    w.calls.start(2, a1);
    w.wait_for("Open", a1);
    w.wait_for("Open", c);
    w.calls.shutdown(1, listener);
    w.calls.shutdown(3, c);
    w.wait_for("Close", a1);
}

pub(crate) fn transfer_then_close_order(w: &World) {
    let (listener, port) = w.listener();
    let gate = Gate::default();
    let inside = gate.clone();
    w.react(move |_, message| {
        if message.ev == "Accept" {
            inside.pass();
        }
    });
    let mut peer = Peer::connect(port);
    gate.is_reached();
    let a1 = w.accepted(listener, 1);
    w.calls.start(2, a1);
    w.calls.send(a1, b"x");
    w.calls.close(3, a1);
    w.calls.send(a1, b"y");
    gate.open();
    let (_, bytes) = peer.read_all();
    w.note("peer", String::from_utf8_lossy(&bytes));
    w.wait_for("Close", a1);
}

pub(crate) fn server_close_unread_input(w: &World) {
    let gate = Gate::default();
    let (mut peer, a1) = w.raw();
    let inside = gate.clone();
    w.react(move |calls, message| {
        if message.ev == "Data" {
            inside.pass();
            calls.close(2, message.fd);
        }
    });
    peer.0.write_all(b"one").unwrap();
    gate.is_reached();
    peer.0.write_all(b"two").unwrap();
    gate.open();
    w.wait_for("Close", a1);
    w.note("peer_read", peer.read_all().0);
}
