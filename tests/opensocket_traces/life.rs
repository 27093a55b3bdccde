//! Scenarios of how sockets come about, change hands and are told of.

use crate::common::peer::{SystemStream, system_pair};
use crate::world::{
    Gate, PATIENCE, Peer, RawSocket, World, closed_port, raw_listener, set_last_error, words_of,
};
use std::io::{Read, Write};

fn echo(w: &World, host: &str) -> i32 {
    let (listener, port) = w.listener_on(host);
    w.react(|calls, message| match (message.ev, message.uid) {
        ("Accept", _) => calls.start(2, message.ud),
        ("Data", 2) => drop(calls.send(message.fd, message.buffer.as_deref().unwrap())),
        _ => {}
    });
    let c = w.label(w.calls.connect(3, host, i32::from(port)), "C");
    w.wait_for("Open", c);
    let a1 = w.accepted(listener, 1);
    w.wait_for("Open", a1);
    let sent = w.calls.send(c, b"ping");
    w.wait_bytes(c, 4);
    w.calls.close(3, c);
    w.wait_for("Close", a1);
    w.wait_for("Close", c);
    sent
}

pub(crate) fn echo_close_by_client(w: &World) {
    w.note("send", echo(w, "127.0.0.1"));
}

pub(crate) fn ipv6_echo(w: &World) {
    echo(w, "::1");
}

pub(crate) fn connect_refused(w: &World) {
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(closed_port())), "C");
    w.note("id_positive", u8::from(c > 0));
    w.wait_for("Error", c);
    w.note("send_after", w.calls.send(c, b"x"));
}

pub(crate) fn listen_port_in_use(w: &World) {
    let (_, port) = w.listener();
    set_last_error(0);
    let second = w.calls.listen(1, "127.0.0.1", i32::from(port), 64);
    let error = words_of(&std::io::Error::last_os_error());
    w.note("second_listen", second);
    w.note("errno", error);
}

pub(crate) fn listen_bad_host(w: &World) {
    w.note("bad_name", w.calls.listen(1, "no.such.name.invalid", 0, 64));
    w.note("not_local", w.calls.listen(1, "192.0.2.1", 0, 64));
    w.note("port_70000", w.calls.listen(1, "127.0.0.1", 70_000, 64));
    w.note("port_minus1", w.calls.listen(1, "127.0.0.1", -1, 64));
}

pub(crate) fn listen_port_zero(w: &World) {
    let id = w.label(w.calls.listen(1, "", 0, 64), "L");
    w.calls.start(1, id);
    w.wait_for("Open", id);
    let rows = w.calls.info();
    w.note("n", rows.len());
    let (ip, port) = rows[0].name.rsplit_once(':').unwrap();
    w.note("name_prefix", ip);
    w.note("port_nonzero", u8::from(port != "0"));
}

pub(crate) fn listen_hostname_empty(w: &World) {
    let id = w.label(w.calls.listen(1, "localhost", 0, 64), "L");
    w.note("ok", u8::from(id > 0));
    w.calls.start(1, id);
    w.wait_for("Open", id);
    let name = w.row(id).unwrap().name;
    let ip = name.rsplit_once(':').unwrap().0;
    // Either is the first result, as the resolver has it.
    w.note("name", if ip == "::1" { "127.0.0.1" } else { ip });
}

pub(crate) fn listen_dualstack(w: &World) {
    let (listener, port) = w.listener_on("::");
    w.note("v4_connected", u8::from(Peer::connect_to(([127, 0, 0, 1], port).into()).is_ok()));
    w.accepted(listener, 1);
    w.note("accepted", 1);
    let c = w.label(w.calls.connect(3, "::1", i32::from(port)), "C");
    w.wait_for("Open", c);
    w.accepted(listener, 2);
}

pub(crate) fn connect_localhost_v4_only(w: &World) {
    let (listener, port) = w.listener();
    let c = w.label(w.calls.connect(3, "localhost", i32::from(port)), "C");
    w.wait_for("Open", c);
    w.accepted(listener, 1);
}

pub(crate) fn double_start_listen(w: &World) {
    let (listener, port) = w.listener();
    w.calls.start(9, listener);
    let _peer = Peer::connect(port);
    w.accepted(listener, 1);
}

pub(crate) fn transfer(w: &World) {
    let (mut peer, a1) = w.raw();
    peer.0.write_all(b"one").unwrap();
    w.wait_bytes(a1, 3);
    w.calls.start(4, a1);
    w.wait_nth("Open", a1, 2);
    peer.0.write_all(b"two").unwrap();
    w.wait_bytes(a1, 6);
    drop(peer);
    w.wait_for("Close", a1);
}

pub(crate) fn start_after_connect(w: &World) {
    let (listener, port) = raw_listener();
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(port)), "C");
    w.wait_for("Open", c);
    w.calls.start(8, c);
    w.wait_nth("Open", c, 2);
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"x").unwrap();
    w.wait_bytes(c, 1);
    w.seal();
}

pub(crate) fn start_late_peer_sent_and_closed(w: &World) {
    let (listener, port) = w.listener();
    let mut peer = Peer::connect(port);
    peer.0.write_all(b"hello").unwrap();
    drop(peer);
    let a1 = w.accepted(listener, 1);
    w.settle();
    w.note("events_before_start", w.log().len());
    w.calls.start(2, a1);
    w.wait_for("Close", a1);
}

pub(crate) fn invalid_ids(w: &World) {
    let x = w.label(12_345, "X");
    w.note("send", w.calls.send(x, b"x"));
    w.note("sendLow", w.calls.send_low(x, b"x"));
    w.calls.nodelay(x);
    w.calls.close(1, x);
    w.calls.shutdown(2, x);
    w.calls.start(3, x);
    w.wait_for("Error", x);
}

pub(crate) fn never_used_slot_zero(w: &World) {
    let (zero, negative) = (w.label(0, "ZERO"), w.label(-1, "NEG"));
    w.calls.close(1, zero);
    w.calls.start(3, zero);
    w.calls.close(4, negative);
    w.calls.start(5, negative);
    w.note("send_neg", w.calls.send(negative, b"x"));
    w.wait_for("Error", negative);
}

/// The letters of what was seen of each socket.
fn sequences(w: &World) -> Vec<(i32, String)> {
    let mut all: std::collections::BTreeMap<i32, String> = Default::default();
    w.log().iter().for_each(|message| all.entry(message.fd).or_default().push_str(&message.ev[..1]));
    all.into_iter().collect()
}

fn count(w: &World, ev: &str) -> usize {
    w.log().iter().filter(|message| message.ev == ev).count()
}

pub(crate) fn many_connections_200(w: &World) {
    const CLIENTS: usize = 200;
    let (listener, port) = w.listener();
    w.react(|calls, message| match (message.ev, message.uid) {
        ("Accept", _) => calls.start(2, message.ud),
        ("Open", 3) => drop(calls.send(message.fd, b"hi")),
        ("Data", 2) => drop(calls.send(message.fd, message.buffer.as_deref().unwrap())),
        _ => {}
    });
    let clients: Vec<i32> = (0..CLIENTS).map(|_| w.calls.connect(3, "127.0.0.1", i32::from(port))).collect();
    w.wait("all data", |log| log.iter().filter(|message| message.ev == "Data").count() == 2 * CLIENTS);
    clients.iter().for_each(|id| w.calls.close(3, *id));
    w.wait("all ends", |log| log.iter().filter(|message| message.ev == "Close").count() == 2 * CLIENTS);
    w.settle();
    for (name, ev) in
        [("accept", "Accept"), ("open", "Open"), ("data", "Data"), ("close", "Close"), ("error", "Error")]
    {
        w.note(name, count(w, ev));
    }
    let sequences = sequences(w);
    w.note("seq_ODC", sequences.iter().filter(|(_, letters)| letters == "ODC").count());
    let of_listener = format!("O{}", "A".repeat(CLIENTS));
    w.note("seq_listener", sequences.iter().filter(|(id, l)| *id == listener && *l == of_listener).count());
    w.forget();
}

pub(crate) fn accept_many_then_data_order(w: &World) {
    let (listener, port) = w.listener();
    w.react(|calls, message| {
        if message.ev == "Accept" {
            calls.start(2, message.ud);
        }
    });
    let mut peers: Vec<Peer> = (0..5).map(|_| Peer::connect(port)).collect();
    peers.iter_mut().for_each(|peer| peer.0.write_all(b"x").unwrap());
    w.wait("all data", |log| log.iter().filter(|message| message.ev == "Data").count() == 5);
    drop(peers);
    w.wait("all ends", |log| log.iter().filter(|message| message.ev == "Close").count() == 5);
    let sequences = sequences(w);
    let of_listener = |(id, letters): &&(i32, String)| *id == listener && letters == "OAAAAA";
    w.note("seq_OAAAAA", sequences.iter().filter(of_listener).count());
    w.note("seq_ODC", sequences.iter().filter(|(_, letters)| letters == "ODC").count());
    w.forget();
}

pub(crate) fn listen_without_start(w: &World) {
    let port = closed_port();
    let listener = w.label(w.calls.listen(1, "127.0.0.1", i32::from(port), 64), "L");
    let peer = Peer::connect_to(([127, 0, 0, 1], port).into());
    w.note("peer_connected", u8::from(peer.is_ok()));
    w.settle();
    w.note("events_before_start", w.log().len());
    w.calls.start(2, listener);
    w.accepted(listener, 1);
}

pub(crate) fn nodelay(w: &World) {
    let (_peer, a1) = w.raw();
    w.calls.nodelay(a1);
    w.calls.nodelay(12_345);
    w.calls.nodelay(w.calls.udp(1, "127.0.0.1", 0));
    w.seal();
}

pub(crate) fn connect_dns_failure(w: &World) {
    let c = w.label(w.calls.connect(3, "no.such.name.invalid", 80), "C");
    w.note("id_positive", u8::from(c > 0));
    w.wait_for("Error", c);
}

pub(crate) fn connect_bad_args(w: &World) {
    let long = w.calls.connect(3, &"a".repeat(231), 80);
    w.note("len231", u8::from(long > 0));
    w.note("len232", w.calls.connect(3, &"a".repeat(232), 80));
    let others = [
        w.label(long, "C231"),
        w.label(w.calls.connect(4, "127.0.0.1", -1), "Cm1"),
        w.label(w.calls.connect(5, "", 80), "Cempty"),
        w.label(w.calls.connect(6, "127.0.0.1", 70_000), "C70000"),
    ];
    others.iter().for_each(|id| drop(w.wait_for("Error", *id)));
}

pub(crate) fn close_while_connecting(w: &World) {
    let (_, port) = w.listener();
    let gate = Gate::default();
    let inside = gate.clone();
    w.react(move |_, message| {
        if message.ev == "Accept" {
            inside.pass();
        }
    });
    let _peer = Peer::connect(port);
    gate.is_reached();
    let (_other, elsewhere) = raw_listener();
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(elsewhere)), "C");
    w.calls.close(4, c);
    gate.open();
    w.wait_for("Close", c);
}

pub(crate) fn start_while_connecting(w: &World) {
    let (listener, port) = w.listener();
    let gate = Gate::default();
    let inside = gate.clone();
    // Busy, so that both calls are found together.
    w.react(move |_, message| {
        if message.ev == "Close" && message.fd == 12_345 {
            inside.pass();
        }
    });
    w.calls.close(0, 12_345);
    gate.is_reached();
    let c = w.label(w.calls.connect(3, "127.0.0.1", i32::from(port)), "C");
    w.calls.start(4, c);
    gate.open();
    w.wait_for("Open", c);
    w.accepted(listener, 1);
    w.drop_events_of(12_345);
}

pub(crate) fn id_sequence(w: &World) {
    let ids: String = (0..6).map(|_| format!("{} ", w.calls.connect(1, "127.0.0.1", 1))).collect();
    w.note("ids", ids);
    w.note("listen", w.calls.listen(1, "127.0.0.1", 0, 64));
    w.note("udp", w.calls.udp(1, "127.0.0.1", 0));
    w.settle();
    w.forget();
}

/// The number by which the system knows a socket.
fn number(socket: &SystemStream) -> RawSocket {
    #[cfg(unix)]
    return std::os::fd::AsRawFd::as_raw_fd(socket);
    #[cfg(windows)]
    return std::os::windows::io::AsRawSocket::as_raw_socket(socket);
}

/// Whether calls on a socket with nothing to read do not block; an error if it is closed.
fn is_nonblocking(socket: &SystemStream) -> std::io::Result<bool> {
    #[cfg(unix)]
    {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        Ok(OFlag::from_bits_truncate(fcntl(socket, FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK))
    }
    #[cfg(windows)]
    match { socket }.read(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
        other => other.map(|_| false),
    }
}

pub(crate) fn bind_adopt(w: &World) {
    let (ours, mut other) = system_pair().unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    let b = w.label(w.calls.bind(4, number(&ours)), "B");
    w.wait_for("Open", b);
    other.write_all(b"in").unwrap();
    w.wait_bytes(b, 2);
    w.note("send", w.calls.send(b, b"out"));
    // The original writes only when it closes; here it leaves at once.
    let mut out = [0; 3];
    other.read_exact(&mut out).unwrap();
    assert_eq!(&out, b"out");
    w.note("got_before_close", "out");
    let row = w.row(b).unwrap();
    w.note("info_type", row.kind);
    w.note("wbuffer", row.pending);
    w.calls.close(9, b);
    w.wait_for("Close", b);
    w.settle();
    w.note("got_after_close", "");
    let nonblocking = is_nonblocking(&ours);
    w.note("fd_still_open", u8::from(nonblocking.is_ok()));
    w.note("fd_nonblocking", u8::from(nonblocking.unwrap()));
    other.write_all(b"more").unwrap();
}

pub(crate) fn bind_bad_fd(w: &World) {
    let b = w.label(w.calls.bind(4, i32::MAX as RawSocket), "B");
    assert!(b > 0);
    w.wait_for("Error", b);
}

pub(crate) fn bind_tcp_twice_start(w: &World) {
    let (ours, mut other) = system_pair().unwrap();
    let b = w.label(w.calls.bind(4, number(&ours)), "B");
    w.calls.start(5, b);
    w.wait_for("Open", b);
    other.write_all(b"in").unwrap();
    w.wait_bytes(b, 2);
    drop(other);
    w.wait_for("Close", b);
}

pub(crate) fn info_fields(w: &World) {
    let (listener, port) = w.listener();
    let mut peer = Peer::connect(port);
    let a1 = w.accepted(listener, 1);
    w.calls.start(2, a1);
    w.wait_for("Open", a1);
    peer.0.write_all(b"12345").unwrap();
    w.wait_bytes(a1, 5);
    w.calls.send(a1, b"out");
    peer.read_exact(3);
    let _second = Peer::connect(port);
    w.accepted(listener, 2);
    let udp = w.calls.udp(7, "127.0.0.1", 0);
    w.calls.listen(1, "127.0.0.1", 0, 64);
    w.settle();
    let rows = w.calls.info();
    assert_eq!(rows.len(), 3, "{rows:?}");
    for (id, label) in [(listener, "L"), (a1, "A1"), (udp, "U")] {
        let row = rows.iter().find(|row| row.id == id).unwrap();
        let name = match label {
            "L" => row.name.replace(&format!(":{port}"), ":<listenport>"),
            "A1" => format!("{}:<port>", row.name.rsplit_once(':').unwrap().0),
            _ => row.name.clone(),
        };
        let (rtime, wtime) = (u8::from(row.rtime == 0), u8::from(row.wtime == 0));
        w.note(
            "info",
            format!(
                "{label} type={} opaque={} read={} write={} rtime0={rtime} wtime0={wtime} wb={} name={name}",
                row.kind, row.uid, row.read, row.write, row.pending
            ),
        );
    }
    w.seal();
}

/// Left out: see `NOT_ON_WINDOWS`.
#[cfg(windows)]
pub(crate) fn emfile_accept(_: &World) {}

/// The descriptor limit of the whole process is lowered, so this has to run in a process of its own.
#[cfg(unix)]
pub(crate) fn emfile_accept(w: &World) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Before the listener starts: a kernel may look at the limit only when an accept is armed.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 200, hard).unwrap();
    let (listener, port) = w.listener();
    let _first = Peer::connect(port);
    w.accepted(listener, 1);
    let second = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let all: Vec<_> = std::iter::from_fn(|| second.try_clone().ok()).collect();
    second.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    w.wait_for("Error", listener);
    w.settle();
    let errors = || w.log().iter().filter(|message| message.ev == "Error").count();
    assert_eq!(errors(), 1, "one episode is told once");
    drop(all);
    w.accepted(listener, 2);
    w.note("errors_gt_100_in_100ms", u8::from(errors() > 100));
}
