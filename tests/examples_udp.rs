//! The examples of datagrams as processes of their own: each does what its head says, and ends with status 0.
#![forbid(unsafe_code)]

mod common;
#[allow(dead_code, reason = "each test file uses a part of it")]
#[path = "examples/running.rs"]
mod running;

use common::has_uring;
use common::program::program;
use running::{Example, PATIENCE, Signal, run};
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

/// The backends to run an example on, as values of its flag.
fn backends() -> Vec<&'static str> {
    if cfg!(windows) {
        return vec!["iocp"];
    }
    let mut all = vec!["readiness"];
    all.extend(has_uring().then_some("uring"));
    all
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

fn hear(socket: &UdpSocket) -> String {
    let mut buffer = [0; 2000];
    let len = socket.recv(&mut buffer).expect("a datagram comes");
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

/// The first thing that is heard and contains `text`.
fn hear_with(socket: &UdpSocket, text: &str) -> String {
    std::iter::repeat_with(|| hear(socket)).find(|heard| heard.contains(text)).expect("it never ends")
}

#[test]
fn udp_echo_drops_what_is_too_long_and_goes_on() {
    for backend in backends() {
        let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--size", "100"];
        let example = Example::start("udp_echo", &flags);
        let (client, server) = (socket(), example.socket_address());
        for text in ["one".to_owned(), "x".repeat(101), "two".to_owned()] {
            client.send_to(text.as_bytes(), server).expect("it leaves");
        }
        assert_eq!((hear(&client), hear(&client)), ("one".to_owned(), "two".to_owned()));
        example.end(Signal::SIGTERM);
    }
}

/// A client of the chat, and what it is told by its standard input.
fn chat_client(server: &str, backend: &str) -> Child {
    let mut command = Command::new(program("udp_chat"));
    command.args(["--join", server, "--backend", backend]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("the example starts")
}

#[test]
fn udp_chat_gives_each_line_to_everybody_and_tells_who_comes_and_goes() {
    for backend in backends() {
        let flags = ["--addr", "127.0.0.1:0", "--backend", backend];
        let example = Example::start("udp_chat", &flags);
        let (anna, berta, server) = (socket(), socket(), example.socket_address());
        anna.send_to(b"hello", server).expect("it leaves");
        assert!(hear_with(&anna, "hello").starts_with(&anna.local_addr().expect("bound").to_string()));
        berta.send_to(b"good morning", server).expect("it leaves");
        for member in [&anna, &berta] {
            assert!(hear_with(member, "good morning").ends_with(": good morning"));
        }

        let mut client = chat_client(&example.address, backend);
        let mut input = client.stdin.take().expect("it is piped");
        input.write_all(b"by the client\n").expect("it reads");
        for member in [&anna, &berta] {
            hear_with(member, "by the client");
        }
        anna.send_to(b"heard you", server).expect("it leaves");
        hear_with(&berta, "heard you");
        // Its input is kept open until its own line has come back, or it might leave before.
        let mut output = std::io::BufReader::new(client.stdout.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("heard you") {
            line.clear();
            assert!(
                std::io::BufRead::read_line(&mut output, &mut line).expect("it prints") > 0,
                "it has ended"
            );
        }
        drop(input);
        assert!(client.wait().expect("it ends").success());
        hear_with(&berta, "has gone after 1 lines (Closed)");
        berta.send_to(b"", server).expect("it leaves");
        hear_with(&anna, "has gone after 1 lines (Closed)");
        hear_with(&anna, "has gone after 1 lines (Closed)");
        example.end(Signal::SIGINT);
    }
}

#[test]
fn udp_chat_forgets_who_is_silent_and_refuses_who_is_too_many() {
    for backend in backends() {
        let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--members", "1", "--idle-ms", "300"];
        let example = Example::start("udp_chat", &flags);
        let (anna, berta, server) = (socket(), socket(), example.socket_address());
        anna.send_to(b"hello", server).expect("it leaves");
        hear_with(&anna, "hello");
        // Berta has to wait until Anna is forgotten; nobody tells her.
        berta.set_read_timeout(Some(std::time::Duration::from_millis(20))).expect("a time-out");
        let mut buffer = [0; 2000];
        loop {
            berta.send_to(b"let me in", server).expect("it leaves");
            if berta.recv(&mut buffer).is_ok() {
                break;
            }
        }
        example.end(Signal::SIGTERM);
    }
}

/// A group whose port nobody else has at the moment.
fn group() -> SocketAddr {
    let port = UdpSocket::bind("0.0.0.0:0").expect("a socket").local_addr().expect("bound").port();
    SocketAddr::from(([239, 255, 0, 1], port))
}

#[test]
fn multicast_clients_hear_the_server() {
    for backend in backends() {
        let group = group().to_string();
        let common = ["--group", &group, "--backend", backend];
        let endless = [&common[..], &["--every-ms", "20"]].concat();
        let server = Example::start("multicast_server", &endless);
        let listener = Example::start("multicast_client", &common);
        assert!(listener.line_with("message").contains("127.0.0.1:"));
        // Another one on the same host, for one source only, and to its end.
        let three = [&common[..], &["--count", "3", "--source", "127.0.0.1"]].concat();
        let output = run("multicast_client", &three);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success());
        assert_eq!(said.lines().filter(|line| line.contains(": message ")).count(), 3, "{said}");
        listener.line_with("message");
        server.end(Signal::SIGINT);
        listener.end(Signal::SIGTERM);
        let output = run("multicast_server", &[&endless[..], &["--count", "2"]].concat());
        assert!(output.status.success());
    }
}
