//! Scenarios of datagrams.

use crate::world::{World, closed_port};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::Mutex;

fn udp_port(w: &World, host: &str) -> (i32, u16) {
    // A port that is free is found by binding it elsewhere first.
    let port = UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap().port();
    (w.calls.udp(1, host, i32::from(port)), port)
}

pub(crate) fn udp_echo(w: &World) {
    let (us, port) = udp_port(w, "127.0.0.1");
    let client_port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let uc = w.label(w.calls.udp(2, "127.0.0.1", i32::from(client_port)), "UC");
    w.label(us, "US");
    let noted = Arc::new(Mutex::new(Vec::new()));
    let inside = Arc::clone(&noted);
    w.react(move |calls, message| {
        if message.ev == "Udp" && message.uid == 1 {
            let option = message.option.as_deref().unwrap();
            let address = calls.udp_address(Some(option));
            let mut noted = inside.lock().unwrap();
            noted.push(("udpAddress", if address.is_some() { 0 } else { -1 }));
            let is_client = address == Some(format!("127.0.0.1:{client_port}"));
            noted.push(("addr_is_client", i32::from(is_client)));
            noted.push(("udpSend", calls.udp_send(us, option, message.buffer.as_deref().unwrap_or(b""))));
        }
    });
    w.note("udpConnect", w.calls.udp_connect(uc, "127.0.0.1", i32::from(port)));
    w.note("send", w.calls.send(uc, b"ping"));
    w.wait_for("Udp", uc);
    w.note("send_empty", w.calls.send(uc, b""));
    w.wait_nth("Udp", us, 2);
    w.settle();
    for (name, result) in noted.lock().unwrap().iter() {
        w.note(name, result);
    }
    w.calls.close(2, uc);
    w.calls.close(1, us);
    w.wait_for("Close", us);
}

pub(crate) fn udp6_echo(w: &World) {
    let (us, port) = udp_port(w, "::1");
    w.label(us, "US");
    let uc = w.label(w.calls.udp(2, "::1", 0), "UC");
    let good = Arc::new(Mutex::new(false));
    let inside = Arc::clone(&good);
    w.react(move |calls, message| {
        if message.ev == "Udp" && message.uid == 1 {
            let option = message.option.as_deref().unwrap();
            let address = calls.udp_address(Some(option)).unwrap_or_default();
            *inside.lock().unwrap() = address.starts_with("::1:") && option.len() == 19;
            calls.udp_send(us, option, message.buffer.as_deref().unwrap());
        }
    });
    w.note("udpConnect", w.calls.udp_connect(uc, "::1", i32::from(port)));
    w.calls.send(uc, b"ping6");
    w.wait_for("Udp", uc);
    w.note("addr_form", u8::from(*good.lock().unwrap()));
}

pub(crate) fn udp_connect_errors(w: &World) {
    let uc = w.label(w.calls.udp(2, "127.0.0.1", 0), "UC");
    w.note("send_unconnected", w.calls.send(uc, b"x"));
    w.note("udpConnect_mismatch", w.calls.udp_connect(uc, "::1", 9));
    w.wait_for("Error", uc);
    w.note("udpConnect_badid", w.calls.udp_connect(12_345, "127.0.0.1", 9));
    w.note("udpConnect_dns", w.calls.udp_connect(uc, "no.such.name.invalid", 9));
    let v6 = [&[2, 0, 9][..], &[0; 15], &[1]].concat();
    w.note("udpSend_mismatch", w.calls.udp_send(uc, &v6, b"x"));
    w.note("udpSend_badtype", w.calls.udp_send(uc, &[7; 19], b"x"));
    w.note("udpSend_badid", w.calls.udp_send(12_345, &[1, 0, 9, 127, 0, 0, 1], b"x"));
    let printed = |address| if w.calls.udp_address(address).is_some() { 0 } else { -1 };
    w.note("udpAddress_null", printed(None));
    w.note("udpAddress_bad", printed(Some(&[7; 19])));
    let (listener, _) = w.listener();
    w.note("alive", listener);
}

pub(crate) fn udp_connect_on_tcp(w: &World) {
    let (mut peer, a1) = w.raw();
    w.note("udpConnect", w.calls.udp_connect(a1, "127.0.0.1", 9));
    w.wait_for("Error", a1);
    w.note("send_after", w.calls.send(a1, b"hi"));
    w.note("got", peer.read_exact(2));
    w.seal();
}

pub(crate) fn udp_closed_port(w: &World) {
    let uc = w.label(w.calls.udp(2, "127.0.0.1", 0), "UC");
    w.calls.udp_connect(uc, "127.0.0.1", i32::from(closed_port()));
    w.note("send1", w.calls.send(uc, b"one"));
    w.settle();
    w.note("send2", w.calls.send(uc, b"two"));
}

pub(crate) fn udp_bind_twice(w: &World) {
    let (_, port) = udp_port(w, "127.0.0.1");
    w.note("second_ok", u8::from(w.calls.udp(2, "127.0.0.1", i32::from(port)) > 0));
}

pub(crate) fn udp_ephemeral(w: &World) {
    let u1 = w.label(w.calls.udp(1, "", 0), "U1");
    w.note("id_positive", u8::from(u1 > 0));
    w.calls.start(9, u1);
    w.wait_for("Open", u1);
    w.note("bad_host", w.calls.udp(1, "no.such.name.invalid", 0));
    w.note("udp6_any", u8::from(w.calls.udp(1, "::", 0) > 0));
}

pub(crate) fn udp_big(w: &World) {
    let (us, port) = udp_port(w, "127.0.0.1");
    w.label(us, "US");
    let uc = w.label(w.calls.udp(2, "127.0.0.1", 0), "UC");
    w.calls.udp_connect(uc, "127.0.0.1", i32::from(port));
    w.note("send_65507", w.calls.send(uc, &[b'u'; 65_507]));
    w.wait_for("Udp", us);
    w.note("send_65508", w.calls.send(uc, &[b'u'; 65_508]));
    w.note("send_after", w.calls.send(uc, b"ok"));
    w.wait_nth("Udp", us, 2);
}

pub(crate) fn udp_source_address_unconnected(w: &World) {
    let (us, port) = udp_port(w, "0.0.0.0");
    w.label(us, "US");
    let raw = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (index, text) in ["m0", "m1", "m2"].iter().enumerate() {
        raw.send_to(text.as_bytes(), ("127.0.0.1", port)).unwrap();
        w.wait_nth("Udp", us, index + 1);
    }
    w.calls.start(5, us);
    w.wait_for("Open", us);
    raw.send_to(b"m4", ("127.0.0.1", port)).unwrap();
    w.wait_nth("Udp", us, 4);
    w.calls.close(6, us);
    w.wait_for("Close", us);
}
