//! The examples of TLS as processes, and OpenSSL's client against them.
#![forbid(unsafe_code)]

mod common;
#[path = "examples/running.rs"]
#[allow(dead_code, reason = "these tests use a part of it")]
mod running;

use anabranch::net::TcpStream;
use anabranch::tls::{ClientTls, Identity, Roots, TlsConnector};
use anabranch::{Config, Shard, timeout};
use common::has_uring;
use common::net::pattern;
use running::{Example, PATIENCE, Signal, run};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Certificates in a directory of their own, by the example.
fn certificates() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let output = run("certificates", &["--out", directory.path().to_str().expect("a path of text")]);
    assert!(output.status.success(), "{output:?}");
    directory
}

fn text(directory: &Path, file: &str) -> String {
    directory.join(file).to_str().expect("a path of text").to_owned()
}

/// Starts the server with these certificates.
fn start(directory: &Path, backend: &str, more: &[&str]) -> Example {
    let (cert, key) = (text(directory, "server.pem"), text(directory, "server.key"));
    let own = ["--addr", "127.0.0.1:0", "--backend", backend, "--cert", &cert, "--key", &key];
    Example::start("tls_echo", &[&own[..], more].concat())
}

/// Sends a megabyte while it receives; whether all of it came back.
async fn exchange(example: &Example, connector: &TlsConnector, name: &str) -> std::io::Result<bool> {
    let stream = TcpStream::connect(example.socket_address()).await?;
    let mut stream = connector.connect(name, stream).await?;
    let sent = pattern(1 << 20);
    let mut received = Vec::new();
    for piece in sent.chunks(40_000) {
        stream.send(piece.to_vec()).await?;
        received.extend_from_slice(&stream.recv_exact(piece.len()).await?);
    }
    stream.shutdown().await?;
    Ok(received == sent && stream.recv().await?.is_none())
}

#[test]
fn tls_echo_gives_back_what_it_gets_and_asks_for_certificates() {
    let directory = certificates();
    let directory = directory.path();
    let mut backends = vec![if cfg!(windows) { "iocp" } else { "readiness" }];
    backends.extend(has_uring().then_some("uring"));
    for backend in backends {
        let ca = text(directory, "ca.pem");
        let open = start(directory, backend, &["--shards", "2"]);
        let closed = start(directory, backend, &["--client-ca", &ca]);
        let shard = Shard::new(Config::new()).expect("a shard");
        let ran = shard.block_on(timeout(PATIENCE, async {
            let roots = Roots::from_file(&ca).unwrap();
            let anonymous = TlsConnector::new(ClientTls::builder(roots.clone()).build().unwrap());
            let identity = Identity::from_files(text(directory, "client.pem"), text(directory, "client.key"));
            let known = ClientTls::builder(roots).identity(identity.unwrap()).build().unwrap();
            let known = TlsConnector::new(known);
            for name in ["localhost", "127.0.0.1"] {
                assert!(exchange(&open, &anonymous, name).await.unwrap(), "what came back differs");
            }
            assert!(exchange(&closed, &known, "localhost").await.unwrap(), "what came back differs");
            exchange(&closed, &anonymous, "localhost").await.unwrap_err();
        }));
        ran.expect("the exchange hangs");
        open.end(Signal::SIGTERM);
        closed.end(Signal::SIGINT);
    }
}

#[test]
fn without_files_tls_echo_makes_its_own_certificate_and_half_of_them_is_refused() {
    let example = Example::start("tls_echo", &["--addr", "127.0.0.1:0"]);
    example.end(Signal::SIGTERM);
    let output = run("tls_echo", &["--cert", "server.pem"]);
    assert!(!output.status.success());
    let output = run("tls_echo", &["--cert", "nowhere.pem", "--key", "nowhere.key"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("nowhere.pem"), "{said}");
}

#[test]
fn an_address_in_use_is_an_error_not_a_hang() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let output = run("tls_echo", &["--addr", &address]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("in use") || said.contains("AddrInUse"), "{said}");
}

/// What OpenSSL's client says, and whether the server sent a line back.
fn s_client(example: &Example, ca: &str, flags: &[&str]) -> (bool, String) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &example.address, "-CAfile", ca]);
    command.args(["-verify_return_error", "-verify_hostname", "localhost", "-quiet", "-no_ign_eof"]);
    command.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl was found before");
    let mut input = child.stdin.take().expect("piped");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    // It may have ended by then.
    let _ = input.write_all(b"hello\n");
    let mut line = String::new();
    let _ = output.read_line(&mut line);
    drop(input);
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    child.wait().expect("it ends");
    (line == "hello\n", said)
}

#[test]
fn openssl_speaks_both_versions_with_it_and_no_older_one() {
    if !Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success()) {
        println!("NOT COVERED: OpenSSL's client, which is not installed");
        return;
    }
    let directory = certificates();
    let example = start(directory.path(), "auto", &[]);
    let ca = text(directory.path(), "ca.pem");
    for version in ["-tls1_2", "-tls1_3"] {
        let (echoed, said) = s_client(&example, &ca, &[version]);
        assert!(echoed, "{version}: {said}");
    }
    for version in ["-tls1", "-tls1_1"] {
        // Newer ones do not even ask for them without this.
        let (echoed, said) = s_client(&example, &ca, &[version, "-cipher", "DEFAULT@SECLEVEL=0"]);
        assert!(!echoed, "{version} is spoken");
        let told = ["alert", "unsupported protocol", "no protocols available"];
        assert!(told.iter().any(|words| said.contains(words)), "{version}: {said}");
        println!("{version} is refused: {}", said.lines().next().unwrap_or_default());
    }
    example.end(Signal::SIGTERM);
}
