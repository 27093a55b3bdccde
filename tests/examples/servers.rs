//! The examples that are more than an echo: fan-out, chat, files, relays, shards, an orderly end.
#![forbid(unsafe_code)]

use super::running::{Example, PATIENCE, Signal};
use super::{backends, noise};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("a line comes");
    line
}

/// Waits for a line that contains `text`; false if the end comes first.
fn hear(from: &mut impl BufRead, text: &str) -> bool {
    std::iter::repeat_with(|| line(from)).take_while(|line| !line.is_empty()).any(|line| line.contains(text))
}

#[test]
fn fanout_gives_every_message_to_every_subscriber_on_both_surfaces() {
    for backend in backends() {
        for surface in ["async", "completion"] {
            let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--surface", surface, "--size", "8"];
            let example = Example::start("fanout", &flags);
            let mut subscribers: Vec<_> = (0..5).map(|_| example.connect()).collect();
            subscribers.iter_mut().for_each(|one| one.write_all(b"SUB\n").expect("it is read"));
            let mut publisher = example.connect();
            publisher.write_all(b"PUB\n").expect("it is read");
            // Nobody is told when a subscription has begun, so the first message goes until everybody has it.
            let mut first = [0; 8];
            for one in &mut subscribers {
                one.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
                while one.read_exact(&mut first).is_err() {
                    publisher.write_all(b"message0").expect("it is read");
                }
                assert_eq!(&first, b"message0");
                one.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            }
            publisher.write_all(b"message1message2last").expect("it is read");
            publisher.write_all(b"one!").expect("it is read");
            for one in &mut subscribers {
                let mut rest = Vec::new();
                while !rest.ends_with(b"lastone!") {
                    let mut message = [0; 8];
                    one.read_exact(&mut message).expect("a message");
                    rest.extend_from_slice(&message);
                }
                let begin = rest.len() - 24;
                assert_eq!(&rest[begin..], b"message1message2lastone!");
                assert!(rest[..begin].chunks(8).all(|message| message == b"message0"));
            }
            example.end(Signal::SIGTERM);
        }
    }
}

/// Joins the chat; also gives the lines that come from it, after the greeting.
fn join_chat(example: &Example) -> (TcpStream, BufReader<TcpStream>) {
    let stream = example.connect();
    let mut lines = BufReader::new(stream.try_clone().expect("a clone"));
    let own = stream.local_addr().expect("an address");
    // Its own arrival comes back, on its way through the shards.
    assert!(hear(&mut lines, &format!("* {own} has come\n")));
    (stream, lines)
}

#[test]
fn chat_gives_every_line_to_everybody_on_all_shards() {
    for backend in backends() {
        let example =
            Example::start("chat", &["--addr", "127.0.0.1:0", "--backend", backend, "--shards", "2"]);
        let mut all: Vec<_> = (0..4).map(|_| join_chat(&example)).collect();
        let speaker = all[3].0.local_addr().expect("an address");
        (0..100).for_each(|n| writeln!(all[3].0, "line {n}").expect("connected"));
        for (_, lines) in &mut all {
            let mut heard = Vec::new();
            while heard.len() < 100 {
                let line = line(lines);
                assert!(!line.is_empty(), "a listener was dropped");
                heard.extend(line.strip_prefix(&format!("{speaker}: ")).map(str::to_owned));
            }
            let expected: Vec<String> = (0..100).map(|n| format!("line {n}\n")).collect();
            assert_eq!(heard, expected);
        }
        drop(all.pop());
        for (_, lines) in &mut all {
            assert!(hear(lines, &format!("* {speaker} has gone\n")));
        }
        example.end(Signal::SIGINT);
    }
}

#[test]
fn chat_drops_who_does_not_listen_and_goes_on() {
    for backend in backends() {
        let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--shards", "2", "--queue", "4096"];
        let example = Example::start("chat", &flags);
        let (deaf, deaf_lines) = join_chat(&example);
        let (mut speaker, mut lines) = join_chat(&example);
        let text = "x".repeat(1000);
        let until = Instant::now() + PATIENCE;
        let dropped = |stream: &TcpStream| {
            // What the kernel holds could still be read; that it is reset shows when writing.
            matches!((&*stream).write(b"?\n"), Err(error) if error.kind() != io::ErrorKind::WouldBlock)
        };
        loop {
            assert!(Instant::now() < until, "the deaf one is never dropped");
            // One at a time, so that the speaker itself keeps up.
            for _ in 0..100 {
                writeln!(speaker, "{text}").expect("the speaker stays connected");
                assert!(hear(&mut lines, &text), "the speaker was dropped");
            }
            if dropped(&deaf) {
                break;
            }
        }
        drop((deaf, deaf_lines));
        writeln!(speaker, "still here").expect("the speaker stays connected");
        assert!(hear(&mut lines, "still here"), "the speaker was dropped");
        example.end(Signal::SIGTERM);
    }
}

/// Status line and body of a GET.
fn get(example: &Example, path: &str) -> (String, Vec<u8>) {
    request(example, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

fn request(example: &Example, request: &str) -> (String, Vec<u8>) {
    let mut stream = example.connect();
    stream.write_all(request.as_bytes()).expect("connected");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(answer[..end].to_vec()).expect("text");
    let body = answer.split_off(end + 4);
    let length = format!("Content-Length: {}", body.len());
    assert!(head.contains(&length), "{head:?} does not say {length}");
    (head.lines().next().unwrap_or_default().to_owned(), body)
}

#[test]
fn file_server_sends_files_and_refuses_what_escapes() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("root");
    std::fs::create_dir_all(root.join("below")).expect("a directory");
    let large = noise(3_000_001);
    std::fs::write(root.join("below/large"), &large).expect("a file");
    std::fs::write(root.join("empty"), b"").expect("a file");
    std::fs::write(directory.path().join("secret"), b"secret").expect("a file");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(directory.path().join("secret"), root.join("link")).expect("a link");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    }
    for backend in backends() {
        let root = root.to_str().expect("a plain path");
        let example =
            Example::start("file_server", &["--addr", "127.0.0.1:0", "--backend", backend, "--root", root]);
        let (status, body) = get(&example, "/below/large");
        assert_eq!(status, "HTTP/1.0 200 OK");
        assert!(body == large, "the file differs");
        assert_eq!(get(&example, "/empty"), ("HTTP/1.0 200 OK".to_owned(), Vec::new()));
        let link = cfg!(unix).then_some("/link");
        let escapes = ["/../secret", "/below/../../secret", "//../secret", "/./../secret"];
        for path in escapes.into_iter().chain(link) {
            assert_eq!(get(&example, path), ("HTTP/1.0 403 Forbidden".to_owned(), Vec::new()), "{path}");
        }
        for path in ["/nothing", "/", "/below", "/pipe", "/%2e%2e/secret"] {
            assert_eq!(get(&example, path).0, "HTTP/1.0 404 Not Found", "{path}");
        }
        assert_eq!(request(&example, "PUT /empty HTTP/1.0\r\n\r\n").0, "HTTP/1.0 501 Not Implemented");
        assert_eq!(request(&example, "GET\r\n\r\n").0, "HTTP/1.0 400 Bad Request");
        assert_eq!(request(&example, &"x".repeat(8192)).0, "HTTP/1.0 400 Bad Request");
        example.end(Signal::SIGINT);
    }
}

#[test]
fn file_server_holds_little_of_a_file_for_a_client_that_does_not_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = std::fs::File::create(directory.path().join("huge")).expect("a file");
    let len = 1_u64 << 30;
    file.set_len(len).expect("a file with a hole");
    for backend in backends() {
        let root = directory.path().to_str().expect("a plain path");
        let example =
            Example::start("file_server", &["--addr", "127.0.0.1:0", "--backend", backend, "--root", root]);
        let mut stream = example.connect();
        stream.write_all(b"GET /huge HTTP/1.0\r\n\r\n").expect("connected");
        thread::sleep(Duration::from_millis(500));
        let status = std::fs::read_to_string(format!("/proc/{}/status", example.child.id()));
        if let Ok(status) = status {
            let resident = status.lines().find(|line| line.starts_with("VmRSS")).expect("a size");
            let kibibytes: u64 =
                resident.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
            assert!(kibibytes < 128 * 1024, "{resident}");
        } else {
            eprintln!("NOT COVERED: the memory of the file server; there is no /proc");
        }
        drop(stream);
        example.end(Signal::SIGTERM);
    }
}

// Not on Windows: signals cannot be sent to other processes there.
#[cfg(unix)]
#[test]
fn relay_passes_bytes_on_in_every_way_and_tells_how_many() {
    for backend in backends() {
        for how in ["auto", "ring", "splice"] {
            let echo = Example::start("echo", &["--addr", "127.0.0.1:0", "--backend", backend]);
            let flags =
                ["--listen", "127.0.0.1:0", "--to", &echo.address, "--how", how, "--backend", backend];
            let relay = Example::start("relay", &flags);
            super::echo::exchange_tcp(relay.connect());
            relay.signal(Signal::SIGUSR1);
            relay.line_with("bytes relayed");
            let open = relay.connect();
            relay.signal(Signal::SIGTERM);
            let line = relay.line_with("bytes relayed");
            // By itself it splices when large pieces come in a row, which the system decides.
            let spliced = !line.contains(" 0 of them spliced");
            assert!(how == "auto" || spliced == (how == "splice"), "{how}: {line}");
            drop(open);
            relay.end(Signal::SIGTERM);
            echo.end(Signal::SIGINT);
        }
    }
}

#[test]
fn relay_resets_a_client_whose_server_is_not_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let nobody = free.expect("a free port").to_string();
    let relay = Example::start("relay", &["--listen", "127.0.0.1:0", "--to", &nobody]);
    let error = relay.connect().read(&mut [0; 1]).expect_err("there is nobody to relay to");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    relay.end(Signal::SIGINT);
}

#[test]
fn pinned_shards_tell_about_each_other() {
    for backend in backends() {
        for spread in ["reuse-port", "balanced", "one-acceptor"] {
            let flags = ["--addr", "127.0.0.1:0", "--backend", backend, "--shards", "2", "--spread", spread];
            let example = Example::start("pinned_shards", &flags);
            for number in 1..=6 {
                let mut told = String::new();
                example.connect().read_to_string(&mut told).expect("a line and the end");
                let (shard, counts) =
                    told.trim_end().split_once("; connections so far: ").expect("two parts");
                assert!(["shard 0 (pinned-0)", "shard 1 (pinned-1)"].contains(&shard), "{told}");
                let counts: Vec<u64> =
                    counts.split(" + ").map(|count| count.parse().expect("a count")).collect();
                assert_eq!((counts.len(), counts.iter().sum()), (2, number), "{told}");
            }
            #[cfg(unix)]
            {
                example.signal(Signal::SIGTERM);
                for shard in ["shard 0: operations", "shard 1: operations"] {
                    example.line_with(shard);
                }
            }
            example.end(Signal::SIGTERM);
        }
    }
}

// Not on Windows: signals cannot be sent to other processes there.
#[cfg(unix)]
#[test]
fn ctrl_c_lets_open_connections_finish() {
    for backend in backends() {
        let mut example =
            Example::start("ctrl_c", &["--addr", "127.0.0.1:0", "--backend", backend, "--grace", "60"]);
        let mut stream = example.connect();
        let echo = |stream: &mut TcpStream| {
            stream.write_all(b"x").expect("connected");
            stream.read_exact(&mut [0]).expect("an echo");
        };
        echo(&mut stream);
        example.signal(Signal::SIGINT);
        assert!(example.line_with("ending").contains("; 1 connection"));
        echo(&mut stream);
        assert!(TcpStream::connect(example.socket_address()).is_err(), "it still listens");
        drop(stream);
        assert!(example.line_with("ended").contains("; 0 connection"));
        assert!(example.wait().success());
    }
}

// Not on Windows: signals cannot be sent to other processes there.
#[cfg(unix)]
#[test]
fn ctrl_c_cuts_connections_off_when_the_time_is_over_or_at_the_second_one() {
    for (grace, signals) in [("0", 1), ("60", 2)] {
        let mut example = Example::start("ctrl_c", &["--addr", "127.0.0.1:0", "--grace", grace]);
        let mut stream = example.connect();
        stream.write_all(b"x").expect("connected");
        stream.read_exact(&mut [0]).expect("an echo");
        example.signal(Signal::SIGTERM);
        example.line_with("ending");
        (1..signals).for_each(|_| example.signal(Signal::SIGINT));
        assert!(example.line_with("ended").contains("; 1 connection"));
        assert!(example.wait().success());
    }
}
