//! Instances: their calls, callbacks and threads, and their end.
#![forbid(unsafe_code)]

use super::{PATIENCE, listener, new, on_each_backend, told, wait};
use anabranch::event::{Event, InfoKind, OpenSocket, SocketId, Sockets};
use std::collections::HashMap;
use std::io::Read;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Instant;

#[test]
fn two_instances_count_and_call_for_themselves_also_from_each_others_callback() {
    on_each_backend(|backend| {
        let (first, second) = (new(backend), new(backend));
        let (sender, events) = mpsc::channel();
        let (of_first, of_second) = (sender.clone(), sender);
        let other = second.sockets().clone();
        first
            .run(move |_, event| {
                if event.uid() == 77 {
                    other.close(88, 12_345);
                }
                of_first.send(told(&event)).unwrap();
            })
            .unwrap();
        second.run(move |_, event| of_second.send(told(&event)).unwrap()).unwrap();
        assert_eq!((listener(&first).0, listener(&second).0), (1, 1));
        first.close(77, 54_321);
        wait(&events, |event| (event.kind, event.id, event.uid) == ('C', 12_345, 88));
        assert_eq!(first.run(|_, _| ()).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    });
}

#[test]
fn ten_thousand_calls_in_one_callback_are_all_answered_in_order() {
    const CALLS: i32 = 10_000;
    on_each_backend(|backend| {
        let sockets = new(backend);
        let (sender, events) = mpsc::channel();
        sockets
            .run(move |sockets, event| {
                if event.uid() == 77 {
                    (1..=CALLS).for_each(|call| sockets.close(1, 1_000_000 + call));
                }
                sender.send(told(&event)).unwrap();
            })
            .unwrap();
        sockets.close(77, 999_999);
        wait(&events, |event| event.uid == 77);
        for call in 1..=CALLS {
            assert_eq!(wait(&events, |_| true).id, 1_000_000 + call);
        }
    });
}

#[test]
fn calls_before_run_wait_for_it_and_are_done_in_order() {
    on_each_backend(|backend| {
        let sockets = new(backend);
        let listener = sockets.listen(1, "127.0.0.1", 0, 16).unwrap();
        let udp = sockets.udp(2, "127.0.0.1", 0).unwrap();
        sockets.start(3, listener);
        sockets.start(4, udp);
        sockets.close(5, udp);
        assert!(sockets.send(listener, "dropped").is_ok() && sockets.send(udp, "no destination").is_err());
        assert!(sockets.socket_info().is_empty());
        let (sender, events) = mpsc::channel();
        sockets.run(move |_, event| sender.send(told(&event)).unwrap()).unwrap();
        let seen: Vec<(char, SocketId, usize)> =
            events.iter().take(3).map(|event| (event.kind, event.id, event.uid)).collect();
        assert_eq!(seen, [('O', listener, 3), ('O', udp, 4), ('C', udp, 5)]);
    });
}

#[test]
fn destruction_with_a_thousand_open_sockets_is_followed_by_no_callback() {
    // Two sockets of the instance for the first half, one for the second.
    const CONNECTIONS: usize = 700;
    crate::common::net::raise_descriptors();
    on_each_backend(|backend| {
        let sockets = new(backend);
        let alive = Arc::new(AtomicBool::new(true));
        let (opened, inside) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&alive));
        let count = Arc::clone(&opened);
        sockets
            .run(move |sockets, event| {
                assert!(inside.load(Ordering::SeqCst), "a callback after the end");
                match event {
                    Event::Accept { accepted, .. } => sockets.start(2, accepted),
                    Event::Open { id, uid: 2 | 3, .. } => {
                        count.fetch_add(1, Ordering::SeqCst);
                        sockets.send(id, vec![7; 100_000]).unwrap();
                    }
                    _ => {}
                }
            })
            .unwrap();
        let (_, port) = listener(&sockets);
        // Half of them never read what is sent to them.
        let _peers: Vec<TcpStream> = (0..CONNECTIONS / 2)
            .map(|_| {
                sockets.connect(3, "127.0.0.1", port).unwrap();
                TcpStream::connect(("127.0.0.1", port)).unwrap()
            })
            .collect();
        let until = Instant::now() + PATIENCE;
        while opened.load(Ordering::SeqCst) < CONNECTIONS / 2 * 3 {
            assert!(Instant::now() < until, "{} opened", opened.load(Ordering::SeqCst));
            thread::yield_now();
        }
        let begun = Instant::now();
        drop(sockets);
        alive.store(false, Ordering::SeqCst);
        println!("{backend}: {} sockets closed in {:?}", CONNECTIONS / 2 * 3 + 1, begun.elapsed());
    });
}

#[test]
fn an_instance_may_be_ended_from_inside_its_own_callback() {
    on_each_backend(|backend| {
        let place: Arc<Mutex<Option<OpenSocket>>> = Arc::default();
        let (inside, (sender, ended)) = (Arc::clone(&place), mpsc::channel());
        let sockets = new(backend);
        let handle = sockets.sockets().clone();
        sockets
            .run(move |_, _| {
                drop(inside.lock().unwrap().take());
                sender.send(()).unwrap();
            })
            .unwrap();
        *place.lock().unwrap() = Some(sockets);
        handle.close(1, 12_345);
        handle.close(1, 12_346);
        ended.recv_timeout(PATIENCE).expect("the callback ran");
        assert!(ended.recv_timeout(PATIENCE).is_err(), "no callback after the end");
        assert!(handle.connect(1, "127.0.0.1", 1).is_err());
    });
}

#[test]
fn a_callback_that_panics_ends_the_instance_and_later_calls_fail() {
    on_each_backend(|backend| {
        let sockets = new(backend);
        let (_, peer) = {
            sockets.run(|_, event| assert_ne!(event.uid(), 77, "on purpose")).unwrap();
            let (id, port) = listener(&sockets);
            (id, TcpStream::connect(("127.0.0.1", port)).unwrap())
        };
        sockets.close(77, 12_345);
        let until = Instant::now() + PATIENCE;
        while sockets.listen(1, "127.0.0.1", 0, 1).is_ok() {
            assert!(Instant::now() < until, "it goes on");
            thread::yield_now();
        }
        // Its sockets have gone with it.
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(!matches!((&peer).read(&mut [0]), Ok(1)));
    });
}

#[test]
fn datagrams_and_connections_are_spread_over_shards_and_keep_their_order() {
    const CLIENTS: usize = 40;
    on_each_backend(|backend| {
        let sockets = OpenSocket::builder().shards(3).config(|config| config.backend(backend)).build();
        assert!(sockets.run(|_, _| ()).is_err(), "several shards need a callback each");
        let (sender, events) = mpsc::channel();
        let threads: Arc<Mutex<HashMap<SocketId, thread::ThreadId>>> = Arc::default();
        let seen = Arc::clone(&threads);
        sockets
            .run_each(|_| {
                let (sender, seen) = (sender.clone(), Arc::clone(&seen));
                move |sockets: &Sockets, event: Event| {
                    let thread =
                        *seen.lock().unwrap().entry(event.id()).or_insert_with(|| thread::current().id());
                    assert_eq!(thread, thread::current().id(), "a socket stays where it is");
                    match &event {
                        Event::Accept { accepted, .. } => sockets.start(2, *accepted),
                        Event::Data { id, uid: 2, data } => sockets.send(*id, data.to_vec()).unwrap(),
                        _ => {}
                    }
                    sender.send(told(&event)).unwrap();
                }
            })
            .unwrap();
        let (_, port) = listener(&sockets);
        let clients: Vec<SocketId> =
            (0..CLIENTS).map(|_| sockets.connect(3, "127.0.0.1", port).unwrap()).collect();
        clients.iter().for_each(|id| sockets.send(*id, "hello").unwrap());
        let mut bytes = 0;
        while bytes < CLIENTS * 5 {
            bytes += wait(&events, |event| event.uid == 3 && event.kind == 'D').bytes;
        }
        let places: std::collections::HashSet<_> = threads.lock().unwrap().values().copied().collect();
        assert_eq!(places.len(), 3);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = sockets.udp(4, "127.0.0.1", 0).unwrap();
        sockets.udp_send(udp, peer.local_addr().unwrap(), "hello").unwrap();
        let mut datagram = [0; 10];
        let (len, from) = peer.recv_from(&mut datagram).unwrap();
        assert_eq!(&datagram[..len], b"hello");
        peer.send_to(b"answer", from).unwrap();
        wait(&events, |event| (event.kind, event.id, event.bytes) == ('U', udp, 6));
    });
}

#[test]
fn channels_deliver_to_whom_it_concerns() {
    on_each_backend(|backend| {
        let sockets = new(backend);
        let channels = sockets.run_channels().unwrap();
        let (server, client) = (channels.register(2), channels.register(3));
        let (of_listener, (_, port)) = (channels.register(1), listener(&sockets));
        let id = sockets.connect(3, "127.0.0.1", port).unwrap();
        sockets.send(id, "hello").unwrap();
        let accepted = of_listener.iter().find_map(|event| match event {
            Event::Accept { accepted, .. } => Some(accepted),
            _ => None,
        });
        sockets.start(2, accepted.unwrap());
        let data = server.iter().find_map(|event| match event {
            Event::Data { id, data, .. } => Some((id, data)),
            _ => None,
        });
        let (from, data) = data.unwrap();
        assert_eq!(data, "hello");
        // Another thread sends what it got without a copy.
        sockets.send(from, data).unwrap();
        assert!(client.iter().any(|event| matches!(event, Event::Data { data, .. } if data == "hello")));
        drop((sockets, channels));
        assert_eq!(client.iter().count(), 0, "the channel ends with the sockets");
    });
}

#[test]
fn what_there_is_to_know_of_a_thousand_sockets_is_told_without_waiting_for_the_callback() {
    const SOCKETS: usize = 1000;
    on_each_backend(|backend| {
        let sockets = new(backend);
        let (sender, reached) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        sockets
            .run(move |_, event| {
                if event.uid() == 77 {
                    sender.send(()).unwrap();
                    let _ = gate.recv();
                }
            })
            .unwrap();
        for _ in 0..SOCKETS {
            sockets.udp(5, "127.0.0.1", 0).unwrap();
        }
        sockets.close(77, 12_345);
        reached.recv_timeout(PATIENCE).unwrap();
        // The callback waits, perhaps for this very thread.
        let begun = Instant::now();
        let all = sockets.socket_info();
        println!("{backend}: {} sockets in {:?}", all.len(), begun.elapsed());
        assert_eq!(all.len(), SOCKETS);
        assert!(all.iter().enumerate().all(|(index, info)| info.id == index as i32 + 1));
        assert!(all.iter().all(|info| info.kind == InfoKind::Udp && info.uid == 5));
        open.send(()).unwrap();
    });
}
