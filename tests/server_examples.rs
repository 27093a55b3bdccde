//! The examples of server components, each as a process of its own with real clients: a page of counters, an end in order, and
//! broadcasts.
#![forbid(unsafe_code)]

mod common;
#[path = "examples/running.rs"]
mod running;

use common::has_uring;
use running::{Example, PATIENCE, Signal, run};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// The backends to run an example on, as values of its flag.
fn backends() -> Vec<&'static str> {
    if cfg!(windows) {
        return vec!["iocp"];
    }
    let mut all = vec!["readiness"];
    all.extend(has_uring().then_some("uring"));
    all
}

fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    stream.read_exact(&mut read).expect("bytes within the time");
    read
}

/// What a page says: the value of each line, by name and labels. Checks the format on the way.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let (mut helped, mut typed, mut samples) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    assert!(page.ends_with('\n'), "the last line ends, too");
    for line in page.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["#", "HELP", name, _, ..] => assert!(helped.insert(name), "{name} has two helps"),
            ["#", "TYPE", name, kind] => {
                assert!(["counter", "gauge"].contains(&kind), "{line}");
                assert!(typed.insert(name), "{name} has two types");
            }
            [series, value] => {
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                assert!(
                    helped.contains(name) && typed.contains(name),
                    "{line} comes before its HELP and TYPE"
                );
                let plain = |c: char| c.is_ascii_lowercase() || c == '_';
                assert!(name.chars().all(plain), "{line}");
                let labels = labels.strip_suffix('}').expect("labels end");
                for label in labels.split(',').filter(|label| !label.is_empty()) {
                    let (key, value) = label.split_once('=').expect("a label has a value");
                    let quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
                    assert!(key.chars().all(plain) && quoted, "{line}");
                }
                let value = value.parse().unwrap_or_else(|_| panic!("{line} has no number"));
                assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
            }
            _ => panic!("{line:?} is neither a comment nor a sample"),
        }
    }
    assert_eq!(helped, typed);
    samples
}

/// The sum of all series that begin so and have `label`.
fn sum(samples: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    let named = |series: &&String| series.split('{').next() == Some(name) && series.contains(label);
    samples.keys().filter(named).map(|series| samples[series]).sum()
}

/// Asks for a page and gives its body; the answer says how long it is, and then the connection ends.
fn fetch(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the page is served");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    // In two pieces, as some clients send it.
    let (first, second) = request.split_at(request.len() - 3);
    stream.write_all(first.as_bytes()).expect("it is read");
    stream.write_all(second.as_bytes()).expect("it is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer with an end");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("HTTP/1.1 200 OK"));
    let head: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(": ")).collect();
    assert_eq!(head["Connection"], "close");
    assert_eq!(head["Content-Type"], "text/plain; version=0.0.4; charset=utf-8");
    let length: usize = head["Content-Length"].parse().expect("a number");
    assert_eq!(body.len(), if request.starts_with("HEAD ") { 0 } else { length });
    body.to_owned()
}

/// The page when it says so, as shards bring their counters up to date at their own pace.
fn page_with(address: &str, is: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
    let end = Instant::now() + PATIENCE;
    loop {
        let samples = samples(&fetch(address, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"));
        if is(&samples) {
            return samples;
        }
        assert!(Instant::now() < end, "never came so far: {samples:#?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_metrics_page_tells_the_traffic_that_was_made() {
    for backend in backends() {
        let shards = if cfg!(windows) { "1" } else { "2" };
        let flags = ["--addr", "127.0.0.1:0", "--page", "127.0.0.1:0", "--backend", backend];
        // Its first line with an address is that of the page.
        let example = Example::start("metrics_page", &[&flags[..], &["--shards", shards]].concat());
        let page = example.address.clone();
        let server = example.line_with("echoing").rsplit(' ').next().expect("an address").to_owned();
        let connect = || {
            let stream = TcpStream::connect(&server).expect("it listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            stream
        };
        let mut clients: Vec<_> = (0..5).map(|_| connect()).collect();
        for client in &mut clients {
            client.write_all(&[7; 1000]).expect("it is read");
            assert_eq!(read(client, 1000), [7; 1000]);
        }
        for client in clients.drain(..3) {
            client.shutdown(Shutdown::Write).expect("still connected");
        }
        let closed = |samples: &BTreeMap<String, f64>| sum(samples, "echo_closed_total", "") == 3.0;
        let samples = page_with(&page, closed);
        let value = |name| sum(&samples, name, "");
        assert_eq!((value("echo_opened_total"), value("echo_live")), (5.0, 2.0));
        assert_eq!((value("echo_bytes_in_total"), value("echo_bytes_out_total")), (5000.0, 5000.0));
        assert_eq!(value("echo_messages_in_total"), value("echo_messages_out_total"));
        assert_eq!(value("echo_errors_total"), 0.0);
        assert_eq!(sum(&samples, "echo_closed_total", "reason=\"peer_closed\""), 3.0);
        // The shards have carried that, and the pages.
        assert!(value("shard_bytes_in_total") > 5000.0 && value("shard_bytes_out_total") >= 5000.0);
        assert!(value("shard_accepts_total") >= 6.0);
        let of_shards = samples.keys().filter(|series| series.starts_with("shard_turns_total")).count();
        assert_eq!(of_shards.to_string(), shards);
        assert_eq!(fetch(&page, "HEAD / HTTP/1.1\r\n\r\n"), "");
        drop(clients);
        example.end(Signal::SIGTERM);
    }
}

#[test]
fn a_request_that_never_ends_is_cut_off_and_the_page_goes_on() {
    let flags = ["--addr", "127.0.0.1:0", "--page", "127.0.0.1:0", "--backend", backends()[0]];
    let example = Example::start("metrics_page", &flags);
    let mut endless = TcpStream::connect(&example.address).expect("the page is served");
    endless.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    // The example stops reading after 8 KiB; what it does not read may come back as a reset.
    let _ = endless.write_all(&[b'x'; 64 * 1024]);
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    assert!(fetch(&example.address, "GET / HTTP/1.0\r\n\r\n").contains("echo_live"));
    example.end(Signal::SIGINT);
}

/// A drain example, and clients that have exchanged something with it.
#[cfg(unix)]
fn drain(backend: &str, grace: &str, clients: usize) -> (Example, Vec<TcpStream>) {
    let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--grace", grace, "--shards", "2"];
    let example = Example::start("drain", &flags);
    let mut clients: Vec<_> = (0..clients).map(|_| example.connect()).collect();
    for client in &mut clients {
        client.write_all(b"hello").expect("it is read");
        assert_eq!(read(client, 5), b"hello");
    }
    (example, clients)
}

/// Its end is seen by a client: an end of the stream, or a reset.
#[cfg(unix)]
fn has_ended(client: &mut TcpStream) -> bool {
    match client.read(&mut [0; 8]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

// Not on Windows: there are no signals for other processes.
#[cfg(unix)]
#[test]
fn a_drained_server_lets_connections_finish_and_ends_with_the_last() {
    for backend in backends() {
        // Nobody could wait for that deadline.
        let (mut example, mut clients) = drain(backend, "3600", 2);
        example.signal(Signal::SIGTERM);
        example.line_with("draining; 2 connection(s)");
        for client in &mut clients {
            client.write_all(b"still").expect("it is read");
            assert_eq!(read(client, 5), b"still");
        }
        // It stops listening soon.
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(example.socket_address()).is_ok() {
            assert!(Instant::now() < end, "it goes on listening");
            thread::sleep(Duration::from_millis(1));
        }
        for client in &mut clients {
            client.shutdown(Shutdown::Write).expect("still connected");
            assert!(has_ended(client));
            example.line_with("ended after 10 bytes: the peer closed the connection");
        }
        // Connections that came while it was about to stop may have been accepted, too.
        assert!(example.line_with("ended; ").ends_with(", 0 cut off"));
        assert!(example.wait().success());
    }
}

// Not on Windows: there are no signals for other processes.
#[cfg(unix)]
#[test]
fn connections_that_do_not_finish_are_ended_at_the_deadline() {
    for backend in backends() {
        let (mut example, mut clients) = drain(backend, "1", 2);
        example.signal(Signal::SIGTERM);
        example.line_with("draining; 2 connection(s)");
        for client in &mut clients {
            let line = example.line_with("ended after 5 bytes");
            assert!(line.ends_with("the server was shut down and its deadline passed"), "{line}");
            assert!(has_ended(client));
        }
        assert_eq!(example.line_with("ended; "), "ended; 0 connection(s) finished, 2 cut off");
        assert!(example.wait().success());
    }
}

// Not on Windows: there are no signals for other processes.
#[cfg(unix)]
#[test]
fn a_second_signal_ends_those_that_have_not_finished_at_once() {
    for (backend, again) in backends().into_iter().zip([Signal::SIGTERM, Signal::SIGINT]) {
        let (mut example, mut clients) = drain(backend, "3600", 3);
        example.signal(Signal::SIGTERM);
        example.line_with("draining; 3 connection(s)");
        clients[0].shutdown(Shutdown::Write).expect("still connected");
        let first = example.line_with("ended after 5 bytes");
        assert!(first.ends_with("the peer closed the connection"), "{first}");
        example.signal(again);
        example.line_with("not waiting any more");
        assert!(clients.iter_mut().all(has_ended));
        assert_eq!(example.line_with("ended; "), "ended; 1 connection(s) finished, 2 cut off");
        assert!(example.wait().success());
    }
}

/// A connection to a broadcast server that has said what it is and was answered.
fn introduced(example: &Example, kind: u8) -> TcpStream {
    let mut stream = example.connect();
    stream.write_all(&[kind]).expect("it is read");
    assert_eq!(read(&mut stream, 1), [kind]);
    stream
}

#[test]
fn a_broadcast_server_gives_every_message_to_every_subscriber_on_all_shards() {
    for backend in backends() {
        let shards = if cfg!(windows) { "1" } else { "2" };
        let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--size", "8", "--shards", shards];
        let example = Example::start("broadcast_server", &flags);
        let mut subscribers: Vec<_> = (0..6).map(|_| introduced(&example, b'S')).collect();
        let mut publisher = introduced(&example, b'P');
        // The answer comes just before a subscription begins, so the first message goes until everybody has it.
        for one in &mut subscribers {
            one.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
            let mut first = [0; 8];
            while one.read_exact(&mut first).is_err() {
                publisher.write_all(b"message0").expect("it is read");
            }
            assert_eq!(&first, b"message0");
            one.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        }
        let messages: Vec<u8> = (1..=999).flat_map(|n| format!("mess{n:04}").into_bytes()).collect();
        // Cut where no message ends.
        let (begin, end) = messages.split_at(4321);
        publisher.write_all(begin).expect("it is read");
        publisher.write_all(end).expect("it is read");
        for one in &mut subscribers {
            let mut message = read(one, 8);
            while message == b"message0" {
                message = read(one, 8);
            }
            assert_eq!(message, messages[..8]);
            assert_eq!(read(one, messages.len() - 8), messages[8..]);
        }
        // A newcomer that is neither is sent away; the others go on.
        let mut stranger = example.connect();
        stranger.write_all(b"X").expect("it is read");
        assert_eq!(stranger.read(&mut [0; 1]).expect("an end in order"), 0);
        publisher.write_all(b"lastone!").expect("it is read");
        assert!(subscribers.iter_mut().all(|one| read(one, 8) == b"lastone!"));
        example.end(Signal::SIGTERM);
    }
}

#[test]
fn an_address_in_use_is_an_error_of_these_examples_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    for name in ["metrics_page", "drain", "broadcast_server"] {
        let output = run(name, &["--addr", &address]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {errors}");
        assert!(errors.contains("in use") || errors.contains("AddrInUse"), "{name}: {errors}");
    }
}
