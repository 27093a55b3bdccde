//! Listeners: waiting, queueing, closing, and running out of descriptors.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{TcpListener, TcpStream};
#[cfg(unix)]
use anabranch::{Config, Warning};
use anabranch::{sleep, spawn, timeout};
#[cfg(unix)]
use common::net::{alone, on_real_backends};
use common::net::{anywhere, check, counted, on_typical_backends};
use common::{on_every_backend, peer};
use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
#[cfg(unix)]
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

#[test]
fn connections_are_accepted_with_the_address_of_their_peer() {
    on_every_backend(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            for _ in 0..10 {
                let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (theirs, peer) = listener.accept().await.unwrap();
                assert_eq!(peer, ours.local_addr().unwrap());
                assert_eq!(theirs.local_addr().unwrap(), listener.local_addr().unwrap());
            }
            listener.close().await;
        });
    });
}

#[test]
fn a_listener_of_the_standard_library_is_taken_in() {
    on_typical_backends(|config| {
        check(config, async {
            let std = peer::TcpListener::bind(anywhere()).unwrap();
            let address = std.local_addr().unwrap();
            let listener = std.adopt().unwrap();
            assert_eq!(listener.local_addr().unwrap(), address);
            let _peer = peer::TcpStream::connect(address).unwrap();
            listener.accept().await.unwrap();
        });
    });
}

#[test]
fn a_closed_listener_refuses_connections_at_once() {
    on_typical_backends(|config| {
        check(config, async {
            for _ in 0..50 {
                let listener = TcpListener::bind(anywhere()).await.unwrap();
                let address = listener.local_addr().unwrap();
                let _peer = peer::TcpStream::connect(address).unwrap();
                let _ours = listener.accept().await.unwrap();
                listener.close().await;
                let late = peer::TcpStream::connect(address).map(drop);
                assert_eq!(late.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }
        });
    });
}

#[test]
fn an_address_that_is_taken_or_elsewhere_is_refused() {
    on_typical_backends(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let again = TcpListener::bind(listener.local_addr().unwrap()).await;
            assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse);
            // Addresses for documentation are nobody's.
            let elsewhere = TcpListener::bind("192.0.2.1:0").await;
            assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::AddrNotAvailable);
        });
    });
}

#[test]
fn a_full_queue_disarms_the_accept_and_half_a_queue_arms_it_again() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.accept_queue_max = 4);
        let ((), counters) = counted(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut peers = vec![peer::TcpStream::connect(address).unwrap()];
            listener.accept().await.unwrap();
            for _ in 0..40 {
                peers.push(peer::TcpStream::connect(address).unwrap());
                sleep(Duration::from_millis(1)).await;
            }
            let accepted = anabranch::counters().unwrap().accepts;
            assert!(accepted < 20, "nothing bounds the queue: {accepted} were accepted");
            for _ in 0..40 {
                listener.accept().await.unwrap();
            }
        });
        assert_eq!(counters.accepts, 41);
    });
}

#[test]
fn a_dropped_accept_loses_no_connection() {
    on_every_backend(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut ports = Vec::new();
            let mut peers = Vec::new();
            for _ in 0..10 {
                // Given up before and after the connection comes; the one of the last round may come only now.
                if let Ok(accepted) = timeout(Duration::ZERO, listener.accept()).await {
                    let peer = accepted.unwrap().1;
                    ports.retain(|port| *port != peer);
                }
                let peer = peer::TcpStream::connect(address).unwrap();
                ports.push(peer.local_addr().unwrap());
                peers.push(peer);
                if let Ok(accepted) = timeout(Duration::from_micros(300), listener.accept()).await {
                    let peer = accepted.unwrap().1;
                    ports.retain(|port| *port != peer);
                }
            }
            while !ports.is_empty() {
                let (_, peer) = listener.accept().await.unwrap();
                ports.retain(|port| *port != peer);
            }
        });
    });
}

#[test]
fn two_tasks_wait_on_one_listener_and_each_gets_a_connection() {
    on_every_backend(|config| {
        check(config, async {
            let listener = Rc::new(TcpListener::bind(anywhere()).await.unwrap());
            let address = listener.local_addr().unwrap();
            let accept = |listener: Rc<TcpListener>| spawn(async move { listener.accept().await.unwrap().1 });
            let (one, two) = (accept(Rc::clone(&listener)), accept(Rc::clone(&listener)));
            sleep(Duration::from_millis(2)).await;
            let first = TcpStream::connect(address).await.unwrap();
            let second = TcpStream::connect(address).await.unwrap();
            let mut got = [one.await.unwrap(), two.await.unwrap()];
            let mut expected = [first.local_addr().unwrap(), second.local_addr().unwrap()];
            got.sort();
            expected.sort();
            assert_eq!(got, expected);
        });
    });
}

#[test]
fn closing_a_listener_closes_the_connections_that_nobody_took() {
    on_typical_backends(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut peers: Vec<TcpStream> = Vec::new();
            for _ in 0..4 {
                peers.push(TcpStream::connect(address).await.unwrap());
            }
            let (_taken, peer) = listener.accept().await.unwrap();
            listener.close().await;
            peers.retain(|stream| stream.local_addr().unwrap() != peer);
            assert_eq!(peers.len(), 3);
            for mut left in peers {
                // An end or a reset, as the system has it; never silence.
                assert!(!matches!(left.recv().await, Ok(Some(_))));
            }
            assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn with_a_full_table_of_endpoints_accepts_wait_for_room() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.endpoints_max = 3);
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let _peers: Vec<_> = (0..3).map(|_| peer::TcpStream::connect(address).unwrap()).collect();
            let first = listener.accept().await.unwrap();
            let _second = listener.accept().await.unwrap();
            let waits = timeout(Duration::from_millis(30), listener.accept()).await;
            assert_eq!(waits.unwrap_err().kind(), ErrorKind::TimedOut);
            let refused = TcpStream::connect(address).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
            first.0.close().await.unwrap();
            listener.accept().await.unwrap();
        });
    });
}

/// Leaves `free` descriptors to the process.
#[cfg(unix)]
fn leave_descriptors(free: usize) -> Vec<std::fs::File> {
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held.truncate(held.len() - free);
    held
}

// Not on Windows: its table of handles has no limit that could be lowered.
#[cfg(unix)]
#[test]
fn without_descriptors_a_listener_pauses_warns_once_and_recovers() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    alone("without_descriptors_a_listener_pauses_warns_once_and_recovers", || {
        // Before any accept is armed: one that stands in the ring keeps the limit that it began with.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
        on_real_backends(starve);
    });
}

#[cfg(unix)]
fn starve(config: Config) {
    let warnings = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&warnings);
    let config = config
        .on_warning(move |warning| {
            assert!(matches!(warning, Warning::AcceptPaused { .. }), "{warning:?}");
            seen.fetch_add(1, Ordering::Relaxed);
        })
        .with_limits(|limits| limits.accept_pause_max_ms = 40);
    let ((), counters) = counted(config, async {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut old = TcpStream::connect(address).await.unwrap();
        let (mut served, _) = listener.accept().await.unwrap();
        let mut kept = Vec::new();
        for episode in 1..=2 {
            // One descriptor for each peer below, none for the accepted ends.
            let held = leave_descriptors(2);
            let _peers = [(); 2].map(|()| peer::TcpStream::connect(address).unwrap());
            let waiting = timeout(Duration::from_millis(300), listener.accept()).await;
            assert!(waiting.is_err(), "there was no descriptor left");
            assert_eq!(warnings.load(Ordering::Relaxed), episode, "one warning for each episode");
            old.send("alive").await.unwrap();
            assert_eq!(served.recv_exact(5).await.unwrap(), "alive");
            drop(held);
            for _ in 0..2 {
                kept.push(listener.accept().await.unwrap());
            }
        }
    });
    assert_eq!(counters.accept_pauses, 2);
    // 10, 20, then 40 milliseconds: the pauses of two episodes of 300 ms, far from a spin.
    assert!(counters.turns < 400, "{} turns", counters.turns);
    assert_eq!(warnings.load(Ordering::Relaxed), 2);
}

#[test]
fn an_accept_wakes_the_task_that_waits_and_no_connection_is_taken_twice() {
    on_typical_backends(|config| {
        let ((), counters) = counted(config, async {
            let listener = Rc::new(TcpListener::bind(anywhere()).await.unwrap());
            let address = listener.local_addr().unwrap();
            let taken = Rc::new(Cell::new(0));
            let mut tasks = Vec::new();
            for _ in 0..4 {
                let (listener, taken) = (Rc::clone(&listener), Rc::clone(&taken));
                tasks.push(spawn(async move {
                    while let Ok(accepted) = timeout(Duration::from_millis(300), listener.accept()).await {
                        accepted.unwrap();
                        taken.set(taken.get() + 1);
                    }
                }));
            }
            for _ in 0..50 {
                TcpStream::connect(address).await.unwrap();
            }
            for task in tasks {
                task.await.unwrap();
            }
            // A peer that has gone already has no address; such a connection is passed over.
            assert!(taken.get() <= 50);
        });
        assert_eq!(counters.accepts, 50);
    });
}
