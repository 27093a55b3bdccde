//! The examples that give back what they get.
#![forbid(unsafe_code)]

use super::running::{Example, PATIENCE, Signal, run};
use super::{backends, noise};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;

/// Sends noise while it receives, then the end; all of it must come back, and then the end.
fn exchange(stream: impl Read + Write + Send, shut: impl FnOnce(), sender: impl Write + Send) {
    let sent = noise(1 << 20);
    let (mut stream, mut sender) = (stream, sender);
    let mut received = Vec::new();
    thread::scope(|scope| {
        let sent = &sent;
        let sending = scope.spawn(move || sender.write_all(sent));
        let mut first = vec![0; sent.len()];
        stream.read_exact(&mut first).expect("everything comes back");
        received = first;
        sending.join().expect("no panic").expect("everything is taken");
    });
    shut();
    stream.read_to_end(&mut received).expect("the end comes back");
    assert!(received == sent, "what came back differs");
}

pub(crate) fn exchange_tcp(stream: TcpStream) {
    let (sender, shut) = (stream.try_clone().expect("a clone"), stream.try_clone().expect("a clone"));
    exchange(stream, move || shut.shutdown(Shutdown::Write).expect("still connected"), sender);
}

fn exchange_udp(server: SocketAddr, longest: usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server).expect("a peer");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut buffer = vec![0; 1 << 16];
    for len in [1, 100, longest, 0, 700] {
        let sent = noise(len);
        socket.send(&sent).expect("a datagram leaves");
        let received = socket.recv(&mut buffer).expect("it comes back");
        assert!(buffer[..received] == sent, "a datagram of {len} bytes came back with {received}");
    }
}

/// Shards of an echo server. Those of `echo_completion` share a port, which Windows has not.
fn two_shards(name: &str) -> &'static str {
    if cfg!(windows) && name == "echo_completion" { "1" } else { "2" }
}

fn echo_servers(name: &str) {
    for backend in backends() {
        for (shards, signal) in [("1", Signal::SIGTERM), (two_shards(name), Signal::SIGINT)] {
            let mut flags = vec!["--addr", "127.0.0.1:0", "--backend", backend, "--shards", shards];
            flags.extend((shards == "2").then_some("--hardened"));
            let example = Example::start(name, &flags);
            let streams: Vec<TcpStream> = (0..4).map(|_| example.connect()).collect();
            streams.into_iter().for_each(exchange_tcp);
            example.end(signal);
        }
        let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--proto", "udp", "--hardened"];
        let example = Example::start(name, &flags);
        exchange_udp(example.socket_address(), 16384);
        example.end(Signal::SIGTERM);
        println!("covered: {name} on {backend}");
    }
}

#[test]
fn echo_gives_back_what_it_gets() {
    echo_servers("echo");
}

/// Rounds of a piece for each of two hundred connections at once; each must get its own back.
fn two_hundred(server: SocketAddr) {
    const THREADS: usize = 4;
    const ROUNDS: usize = 20;
    let all = noise(1 << 20);
    let connect = || TcpStream::connect(server).and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    let streams: Vec<TcpStream> = (0..200).map(|_| connect().expect("the example listens")).collect();
    let chat = |first: usize, mut streams: Vec<TcpStream>| {
        for round in 0..ROUNDS {
            let piece = |index: usize| {
                let (start, len) = (1009 * (first + index) + 31 * round, 1 + 97 * ((index + round) % 50));
                &all[start..start + len]
            };
            for (index, stream) in streams.iter_mut().enumerate() {
                stream.write_all(piece(index)).expect("connected");
            }
            for (index, stream) in streams.iter_mut().enumerate() {
                let mut got = vec![0; piece(index).len()];
                stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
                stream.read_exact(&mut got).expect("an echo");
                assert!(got == piece(index), "connection {} got other bytes", first + index);
            }
        }
        for mut stream in streams {
            stream.shutdown(Shutdown::Write).expect("connected");
            assert_eq!(stream.read(&mut [0]).expect("the end"), 0, "nothing comes after the last echo");
        }
    };
    thread::scope(|scope| {
        let mut rest = streams;
        for thread in 0..THREADS {
            let own = rest.split_off(rest.len() - 200 / THREADS);
            let chat = &chat;
            scope.spawn(move || chat(thread * 200 / THREADS, own));
        }
    });
}

#[test]
fn two_hundred_connections_at_once_get_their_own_bytes_back() {
    for name in ["echo", "echo_completion", "opensocket_echo"] {
        for backend in backends() {
            let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--shards", two_shards(name)];
            let example = Example::start(name, &flags);
            two_hundred(example.socket_address());
            example.end(Signal::SIGTERM);
            println!("covered: {name} on {backend}");
        }
    }
}

#[test]
fn echo_completion_gives_back_what_it_gets() {
    echo_servers("echo_completion");
}

#[test]
fn opensocket_echo_gives_back_what_it_gets() {
    echo_servers("opensocket_echo");
}

#[test]
fn opensocket_http_server_answers_from_its_accepters_in_turn() {
    let example = Example::start("opensocket_http_server", &["--addr", "127.0.0.1:0", "--accepters", "2"]);
    for index in 0..4 {
        let mut stream = example.connect();
        write!(stream, "GET /page{index} HTTP/1.1\r\n\r\n").expect("it reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply and the end");
        assert!(reply.ends_with(&format!("/page{index} from accepter {}\n", 1 + index % 2)), "{reply}");
    }
    example.end(Signal::SIGTERM);
}

#[test]
fn opensocket_workers_all_get_their_answers() {
    let output = run("opensocket_workers", &["--clients", "3"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "HELLO 0\nHELLO 1\nHELLO 2\n");
}

#[test]
fn echo_servers_with_clients_connected_end_when_asked() {
    for name in ["echo", "echo_completion", "opensocket_echo"] {
        for backend in backends() {
            let example = Example::start(
                name,
                &["--addr", "127.0.0.1:0", "--backend", backend, "--shards", two_shards(name)],
            );
            let mut stream = example.connect();
            stream.write_all(b"x").expect("connected");
            stream.read_exact(&mut [0]).expect("an echo");
            example.end(Signal::SIGTERM);
            let mut rest = Vec::new();
            // A reset or an end, but nothing more.
            let _ = stream.read_to_end(&mut rest);
            assert_eq!(rest, b"");
        }
    }
}

#[test]
fn udp_echo_gives_back_the_longest_datagram() {
    for backend in backends() {
        let example = Example::start("udp_echo", &["--addr", "127.0.0.1:0", "--backend", backend]);
        exchange_udp(example.socket_address(), 65_507);
        example.end(Signal::SIGINT);
    }
}

// Not on Windows: it has no Unix sockets.
#[cfg(unix)]
#[test]
fn unix_echo_gives_back_what_it_gets_and_removes_its_socket() {
    use std::os::unix::net::UnixStream;
    let directory = tempfile::tempdir().expect("a directory");
    for backend in backends() {
        let path = directory.path().join("socket");
        let name = path.to_str().expect("a plain path");
        let example = Example::start("unix_echo", &["--addr", name, "--backend", backend]);
        let stream = UnixStream::connect(&example.address).expect("the example listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let (sender, shut) = (stream.try_clone().expect("a clone"), stream.try_clone().expect("a clone"));
        exchange(stream, move || shut.shutdown(Shutdown::Write).expect("still connected"), sender);
        example.end(Signal::SIGTERM);
        assert!(!path.exists(), "the socket is left behind");
    }
}
