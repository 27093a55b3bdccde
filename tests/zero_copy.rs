//! Sends without a copy: where they are made, and when they are given up.
// Not on Windows: sends without a copy are a capability of io_uring.
#![cfg(unix)]
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{TcpStream, UnixStream};
use anabranch::{Backend, Capability, Config, Shard, counters, report};
use common::net::{check, counted, on_real_backends, pair, pattern};
use nix::sched::{CloneFlags, unshare};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Sends of a peer on the same machine would be told as copied; there are none.
#[test]
fn nothing_is_sent_without_a_copy_to_a_peer_on_this_machine() {
    on_real_backends(|config| {
        let ((), counters) = counted(config.zero_copy_bytes_min(1), async {
            let (mut ours, mut theirs) = pair().await;
            let (mut left, mut right) = UnixStream::pair().unwrap();
            for _ in 0..5 {
                ours.send(pattern(50_000)).await.unwrap();
                assert!(theirs.recv_exact(50_000).await.unwrap() == pattern(50_000));
                left.send(pattern(50_000)).await.unwrap();
                assert!(right.recv_exact(50_000).await.unwrap() == pattern(50_000));
            }
        });
        assert_eq!(counters.zero_copy_copied, 0);
    });
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {said}")) }
}

/// Puts this thread into a network of its own, which is joined by a virtual cable to that of a second thread, which
/// reads everything that one connection to the address brings.
fn with_a_cable(bytes: usize) -> Result<(SocketAddr, thread::JoinHandle<()>), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())?;
    let ((tell_thread, thread), (tell_ready, ready)) = (mpsc::channel(), mpsc::channel::<()>());
    let (tell_address, address) = mpsc::channel();
    let reader = thread::spawn(move || {
        let own = unshare(CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string());
        tell_thread.send(own.map(|()| nix::unistd::gettid())).unwrap();
        let Ok(()) = ready.recv() else { return };
        let up = ip("addr add 10.77.0.2/24 dev there").and_then(|()| ip("link set there up"));
        let listener = up.and_then(|()| {
            TcpListener::bind((Ipv4Addr::new(10, 77, 0, 2), 0)).map_err(|error| error.to_string())
        });
        let Ok(listener) = listener.map_err(|error| tell_address.send(Err(error)).unwrap()) else { return };
        tell_address.send(Ok(listener.local_addr().unwrap())).unwrap();
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut got = vec![0; bytes];
        stream.read_exact(&mut got).unwrap();
        assert!(got.chunks(pattern(PIECE).len()).all(|piece| piece == pattern(PIECE)), "the bytes differ");
    });
    let thread = thread.recv().map_err(|error| error.to_string())??;
    ip(&format!("link add here type veth peer name there netns {thread}"))?;
    ip("addr add 10.77.0.1/24 dev here")?;
    ip("link set here up")?;
    tell_ready.send(()).map_err(|error| error.to_string())?;
    let address = address.recv_timeout(Duration::from_secs(10)).map_err(|error| error.to_string())??;
    Ok((address, reader))
}

const PIECE: usize = 60_000;

#[test]
fn a_connection_whose_sends_are_copied_all_the_same_gives_it_up_after_the_first() {
    if !common::has_uring() {
        return;
    }
    let name = "a_connection_whose_sends_are_copied_all_the_same_gives_it_up_after_the_first";
    common::net::alone(name, || {
        const COUNT: usize = 20;
        let (address, reader) = match with_a_cable(COUNT * PIECE) {
            Ok(made) => made,
            Err(error) => return eprintln!("NOT COVERED: zero-copy sends to another network: {error}"),
        };
        let config = Config::new().backend(Backend::Uring).zero_copy_bytes_min(4096);
        let shard = Shard::new(config.clone()).unwrap();
        assert!(shard.report().capabilities.has(Capability::ZeroCopySend));
        drop(shard);
        check(config, async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            for _ in 0..COUNT {
                stream.send(pattern(PIECE)).await.unwrap();
                stream.flush().await.unwrap();
                // The kernel tells when the peer has acknowledged what it was sent.
                anabranch::sleep(Duration::from_millis(20)).await;
            }
            let copied = counters().unwrap().zero_copy_copied;
            // A virtual cable hands the same memory over, so the kernel has to copy it for the receiver.
            assert!((1..=3).contains(&copied), "{copied} of {COUNT}; {}", report().unwrap());
            stream.close().await.unwrap();
        });
        reader.join().unwrap();
    });
}
