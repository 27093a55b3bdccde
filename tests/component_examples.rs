//! The examples of components, each as a process of its own.
#![forbid(unsafe_code)]

mod common;
#[path = "examples/running.rs"]
mod running;

use common::has_uring;
use common::program::program;
use running::{Example, PATIENCE, Signal, run};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

fn backends() -> Vec<&'static str> {
    if cfg!(windows) {
        return vec!["iocp"];
    }
    let mut all = vec!["readiness"];
    all.extend(has_uring().then_some("uring"));
    all
}

#[test]
fn an_agent_checks_every_byte_of_its_connections() {
    for backend in backends() {
        let flags = [
            "--connections",
            "300",
            "--messages",
            "5",
            "--size",
            "1000",
            "--shards",
            "2",
            "--backend",
            backend,
        ];
        let output = run("agent", &flags);
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}\n{errors}");
        let end = "300 made, 300 ended, 300 done; 1500 messages out, 1500000 bytes back, 0 wrong; 0 attempts failed";
        assert!(text.contains(end), "{text}");
    }
}

#[test]
fn an_agent_calls_a_server_in_another_process() {
    let server = Example::start("component_echo", &["--addr", "127.0.0.1:0"]);
    let output = run("agent", &["--connections", "50", "--server", &server.address]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("50 made, 50 ended, 50 done"), "{text}");
    server.end(Signal::SIGTERM);
}

// Not on Windows: it has no such limit.
#[cfg(unix)]
#[test]
fn an_agent_without_enough_descriptors_says_what_to_do() {
    let output = run("agent", &["--connections", "1000000"]);
    let (hard, errors) = (
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap().1,
        String::from_utf8_lossy(&output.stderr),
    );
    if hard >= 2_000_200 {
        println!("NOT COVERED: a limit of descriptors, which is {hard} here");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("ulimit -n 2000200"), "{errors}");
}

/// A program with a terminal: lines go in and come out.
struct Terminal {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Terminal {
    fn start(name: &str, flags: &[&str]) -> Terminal {
        let mut command = Command::new(program(name));
        let mut child =
            command.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Terminal { child, lines }
    }

    fn types(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("its input is piped");
        writeln!(input, "{line}").expect("it listens");
    }

    fn shows(&self, text: &str) -> String {
        loop {
            let line =
                self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line with {text:?} came"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// An empty line ends it.
    fn ends(mut self) {
        self.types("");
        assert!(self.child.wait().expect("it is our child").success());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn chat_server(address: &str, backend: &str) -> (Terminal, String) {
    let server = Terminal::start("tcp_chat_server", &["--addr", address, "--backend", backend]);
    let line = server.shows("chatting on ");
    let address = line.rsplit(' ').next().expect("an address").to_owned();
    (server, address)
}

#[test]
fn what_one_says_in_the_chat_everybody_hears() {
    for backend in backends() {
        let (mut server, address) = chat_server("127.0.0.1:0", backend);
        let flags = ["--addr", &*address, "--again-ms", "50", "--backend", backend];
        let mut clients =
            [Terminal::start("tcp_chat_client", &flags), Terminal::start("tcp_chat_client", &flags)];
        clients.iter().for_each(|client| drop(client.shows("Hello from the chat")));
        clients[0].types("good morning");
        clients.iter().for_each(|client| drop(client.shows("good morning")));
        server.types("the bar is open");
        clients.iter().for_each(|client| drop(client.shows("(admin) the bar is open")));
        // Whoever shouts is put out, and comes back.
        clients[1].types("hey!");
        clients[0].shows("hey!");
        clients[1].shows("disconnected: the peer closed");
        clients[1].shows("Hello from the chat");
        clients[1].types("again");
        clients[0].shows("again");
        // Everybody is put out, and comes back.
        server.types("!");
        clients.iter().for_each(|client| drop(client.shows("Hello from the chat")));
        // The server goes and comes back.
        server.ends();
        clients.iter().for_each(|client| drop(client.shows("no connection to")));
        let (server, _) = chat_server(&address, backend);
        clients.iter().for_each(|client| drop(client.shows("Hello from the chat")));
        clients[0].types("!");
        clients[0].shows("disconnected: it was disconnected from here");
        clients[0].shows("Hello from the chat");
        clients.into_iter().for_each(Terminal::ends);
        server.ends();
    }
}

fn answers(mut stream: TcpStream, sent: &[u8]) {
    for byte in sent {
        stream.write_all(&[*byte]).expect("connected");
    }
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).expect("it comes back");
    assert_eq!(received, sent);
}

#[test]
fn messages_are_pulled() {
    for backend in backends() {
        let server = Example::start("pull_server", &["--addr", "127.0.0.1:0", "--backend", backend]);
        answers(server.connect(), b"\0\x05hello\0\0\0\x02ok");
        let long = [&[0xff, 0xff][..], &[7; 0xffff]].concat();
        answers(server.connect(), &long);
        server.end(Signal::SIGINT);
    }
}

#[test]
fn messages_come_in_packs() {
    for backend in backends() {
        let server = Example::start("pack_server", &["--addr", "127.0.0.1:0", "--backend", backend]);
        answers(server.connect(), b"\x05\0\0\0hello\x02\0\0\0ok");
        // One that is longer than it takes ends the connection.
        let mut stream = server.connect();
        stream.write_all(b"\x01\0\x01\0").expect("connected");
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        server.end(Signal::SIGTERM);
    }
}
