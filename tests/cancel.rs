//! Dropping futures: nothing is lost by it, neither bytes nor connections.
#![forbid(unsafe_code)]

mod common;

use anabranch::fs::File;
use anabranch::net::{TcpListener, TcpStream, UdpSocket};
use anabranch::{Config, sleep, spawn, timeout, yield_now};
use common::net::{Random, anywhere, check, on_typical_backends, pair, pattern, with_peer};
use common::peer;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// Polls a future a few times, with turns of the loop between, then drops it.
async fn try_for<F: Future>(polls: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

#[test]
fn dropped_receives_lose_no_byte_of_a_running_sequence() {
    on_typical_backends(|config| {
        check(config.with_limits(|limits| limits.buffer_bytes = 1024), async {
            let (mut ours, theirs) = with_peer();
            let sent = pattern(400_000);
            let expected = sent.clone();
            let peer = peer::spawn(move || {
                let mut random = Random(3);
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    let len = (1 + random.below(3000) as usize).min(rest.len());
                    (&theirs).write_all(&rest[..len]).unwrap();
                    rest = &rest[len..];
                }
            });
            let (mut got, mut random) = (Vec::new(), Random(11));
            while got.len() < expected.len() {
                let polls = random.below(4);
                match random.below(4) {
                    0 => {
                        if let Some(received) = try_for(polls, ours.recv()).await {
                            got.extend_from_slice(&received.unwrap().expect("more is to come"));
                        }
                    }
                    1 => {
                        let len = 1 + random.below(5000) as usize;
                        let len = len.min(expected.len() - got.len());
                        if let Some(received) = try_for(polls, ours.recv_exact(len)).await {
                            got.extend_from_slice(&received.unwrap());
                        }
                    }
                    2 => {
                        if let Some(Ok(received)) = try_for(polls, ours.recv_until(&[7], 3000)).await {
                            got.extend_from_slice(&received.expect("more is to come"));
                        }
                    }
                    _ => {
                        if let Some((_, buffer)) =
                            try_for(polls, ours.recv_into(Vec::with_capacity(700))).await
                        {
                            got.extend(buffer);
                        }
                    }
                }
            }
            assert!(got == expected, "{} bytes, or others", got.len());
            peer.join().unwrap();
        });
    });
}

#[test]
fn thousands_of_time_outs_around_receives_lose_nothing() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            let sender = spawn(async move {
                for n in 0..3_000_u32 {
                    theirs.send(n.to_be_bytes().to_vec()).await.unwrap();
                    if n % 7 == 0 {
                        yield_now().await;
                    }
                    if n % 97 == 0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
                theirs
            });
            let (mut next, mut late, mut random) = (0_u32, 0_u32, Random(5));
            while next < 3_000 {
                let patience = Duration::from_micros(random.below(40));
                match timeout(patience, ours.recv_exact(4)).await {
                    Ok(bytes) => {
                        assert_eq!(bytes.unwrap()[..], next.to_be_bytes(), "after {late} time-outs");
                        next += 1;
                    }
                    Err(_) => late += 1,
                }
            }
            assert!(late > 0, "no time-out came first");
            drop(sender.await);
        });
    });
}

#[test]
fn dropped_sends_are_sent_whole_or_not_at_all() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_max = 4_000);
        check(config, async {
            let (mut ours, theirs) = with_peer();
            let reader = peer::spawn(move || {
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).unwrap();
                all
            });
            let (mut expected, mut random) = (Vec::new(), Random(17));
            for n in 0..1_000_u32 {
                let piece = n.to_be_bytes().repeat(1 + random.below(400) as usize);
                if let Some(sent) = try_for(random.below(3), ours.send(piece.clone())).await {
                    sent.unwrap();
                    expected.extend(piece);
                }
            }
            ours.close().await.unwrap();
            assert!(reader.join().unwrap() == expected, "the bytes differ");
        });
    });
}

#[test]
fn dropped_accepts_and_connects_lose_no_connection_and_leak_none() {
    on_typical_backends(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut random = Random(23);
            let mut connected = 0;
            let mut streams = Vec::new();
            for _ in 0..100 {
                if let Some(stream) = try_for(random.below(6), TcpStream::connect(address)).await {
                    streams.push(stream.unwrap());
                    connected += 1;
                }
                if let Some(accepted) = try_for(random.below(4), listener.accept()).await {
                    streams.push(accepted.unwrap().0);
                }
            }
            // Each stream that was connected can be found on the accepting side.
            let mut peers: Vec<_> = streams.iter().map(|stream| stream.peer_addr().unwrap()).collect();
            let wanted: Vec<_> = streams
                .iter()
                .filter(|stream| stream.peer_addr().unwrap() == address)
                .map(|stream| stream.local_addr().unwrap())
                .collect();
            assert_eq!(wanted.len(), connected);
            while !wanted.iter().all(|address| peers.contains(address)) {
                peers.push(listener.accept().await.unwrap().1);
            }
        });
    });
}

#[test]
fn dropped_datagram_receives_lose_no_datagram() {
    on_typical_backends(|config| {
        check(config, async {
            let ours = UdpSocket::bind(anywhere()).await.unwrap();
            let theirs = UdpSocket::bind(anywhere()).await.unwrap();
            let mut random = Random(29);
            for n in 0..500_u32 {
                theirs.send_to(n.to_be_bytes().to_vec(), ours.local_addr().unwrap()).await.unwrap();
                let datagram = loop {
                    match try_for(random.below(3), ours.recv_from()).await {
                        Some(datagram) => break datagram.unwrap(),
                        None => yield_now().await,
                    }
                };
                assert_eq!(datagram.lease[..], n.to_be_bytes());
            }
        });
    });
}

#[test]
fn dropped_sleeps_leave_no_timer_and_reads_of_files_give_their_buffer_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_typical_backends(|config: Config| {
        peer::write_file(&path, pattern(100_000)).unwrap();
        check(config, async {
            let mut random = Random(31);
            let file = File::open(&path).await.unwrap();
            for _ in 0..100 {
                let offset = random.below(90_000);
                let read = file.read_at(offset, 5_000);
                if let Some(bytes) = try_for(random.below(3), read).await {
                    let bytes = bytes.unwrap();
                    assert_eq!(bytes[..], pattern(100_000)[offset as usize..offset as usize + bytes.len()]);
                }
                let far = sleep(Duration::from_secs(3600));
                assert!(try_for(random.below(3), far).await.is_none());
            }
        });
    });
}

#[test]
fn a_dropped_flush_or_shutdown_goes_on_by_itself() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, theirs) = with_peer();
            ours.send(pattern(300_000)).await.unwrap();
            assert!(timeout(Duration::ZERO, ours.flush()).await.is_err());
            assert!(timeout(Duration::ZERO, ours.shutdown(std::net::Shutdown::Write)).await.is_err());
            let reader = peer::spawn(move || {
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).unwrap();
                all
            });
            while !reader.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            assert!(reader.join().unwrap() == pattern(300_000), "the bytes differ");
        });
    });
}
