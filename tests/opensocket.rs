//! The event facade beyond the recorded scenarios: many sockets, many threads, its end.
#![forbid(unsafe_code)]

mod common;

use anabranch::event::{Event, InfoKind, OpenSocket, SocketId, Sockets, Trouble};
use anabranch::{Backend, Config};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(30);

fn on_each_backend(test: impl Fn(Backend)) {
    common::on(common::real_backends(), |config: Config| test(config.backend));
}

fn new(backend: Backend) -> OpenSocket {
    OpenSocket::builder().config(|config| config.backend(backend)).build()
}

/// What an event is, without its bytes.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    kind: char,
    id: SocketId,
    uid: usize,
    accepted: SocketId,
    bytes: usize,
}

fn told(event: &Event) -> Told {
    let (mut accepted, mut bytes) = (0, 0);
    let kind = match event {
        Event::Data { data, .. } => {
            bytes = data.len();
            'D'
        }
        Event::Close { .. } => 'C',
        Event::Open { .. } => 'O',
        Event::Accept { accepted: id, .. } => {
            accepted = *id;
            'A'
        }
        Event::Error { .. } => 'E',
        Event::Udp { data, .. } => {
            bytes = data.len();
            'U'
        }
        Event::Warning { .. } => 'W',
    };
    Told { kind, id: event.id(), uid: event.uid(), accepted, bytes }
}

/// Waits for an event that satisfies.
fn wait(events: &mpsc::Receiver<Told>, is_it: impl Fn(&Told) -> bool) -> Told {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).expect("the event comes");
        if is_it(&event) {
            return event;
        }
    }
}

/// A started listener and its port.
fn listener(sockets: &Sockets) -> (SocketId, u16) {
    let id = sockets.listen(1, "127.0.0.1", 0, 1024).unwrap();
    sockets.start(1, id);
    let until = Instant::now() + PATIENCE;
    loop {
        let info = sockets.socket_info().into_iter().find(|info| info.id == id);
        if let Some(address) = info.and_then(|info| info.address) {
            return (id, address.port());
        }
        assert!(Instant::now() < until, "the listener was never started");
        thread::yield_now();
    }
}

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
    common::net::raise_descriptors();
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
fn sends_of_eight_threads_keep_the_order_of_each_thread() {
    const THREADS: usize = 8;
    const RECORDS: usize = 1000;
    on_each_backend(|backend| {
        let sockets = new(backend);
        sockets.run(|_, _| ()).unwrap();
        let raw = TcpListener::bind("127.0.0.1:0").unwrap();
        // From the start, so that some are sent before the connection is there.
        let id = sockets.connect(3, "127.0.0.1", raw.local_addr().unwrap().port()).unwrap();
        let (mut peer, _) = raw.accept().unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let sockets = &sockets;
                scope.spawn(move || {
                    for record in 0..RECORDS {
                        sockets.send(id, format!("{thread:03} {record:011}\n")).unwrap();
                    }
                });
            }
            let mut next = [0; THREADS];
            let mut record = [0; 16];
            for _ in 0..THREADS * RECORDS {
                peer.read_exact(&mut record).unwrap();
                let text = std::str::from_utf8(&record).unwrap();
                let (thread, number) = text.trim().split_once(' ').expect("a whole record");
                let thread: usize = thread.parse().unwrap();
                assert_eq!(number.parse::<usize>().unwrap(), next[thread]);
                next[thread] += 1;
            }
        });
    });
}

/// Connections of the stress test; `OPENSOCKET_STRESS=100000` runs it whole.
fn stress_connections() -> usize {
    std::env::var("OPENSOCKET_STRESS").ok().and_then(|count| count.parse().ok()).unwrap_or(3_000)
}

/// The last events of ids, and ids that got two.
#[derive(Default)]
struct Ends {
    of: HashMap<SocketId, usize>,
    after: Vec<Told>,
}

impl Ends {
    fn see(&mut self, event: &Told) {
        let ends = self.of.entry(event.id).or_default();
        if *ends > 0 {
            self.after.push(event.clone());
        }
        *ends += usize::from(matches!(event.kind, 'C' | 'E'));
    }
}

#[test]
fn each_id_gets_exactly_one_close_or_error_whatever_ends_it() {
    const AT_ONCE: usize = 200;
    on_each_backend(|backend| {
        let connections = stress_connections();
        let sockets = new(backend);
        let (sender, events) = mpsc::channel();
        sockets
            .run(move |sockets, event| {
                match &event {
                    // By turns: started, closed before that, or both.
                    Event::Accept { accepted, .. } => match accepted % 5 {
                        0 => sockets.close(2, *accepted),
                        _ => sockets.start(2, *accepted),
                    },
                    Event::Open { id, uid: 2, .. } if id % 5 == 1 => {
                        sockets.send(*id, "bye").unwrap();
                        sockets.close(2, *id);
                    }
                    Event::Data { id, uid: 2, data } => match id % 5 {
                        2 => sockets.shutdown(2, *id),
                        _ => drop(sockets.send(*id, data.to_vec())),
                    },
                    Event::Data { id, uid: 3, .. } if id % 2 == 0 => sockets.close(3, *id),
                    Event::Data { id, uid: 3, .. } => sockets.shutdown(3, *id),
                    _ => {}
                }
                sender.send(told(&event)).unwrap();
            })
            .unwrap();
        let (listener, port) = listener(&sockets);
        let (mut ends, mut clients, mut accepted) = (Ends::default(), Vec::new(), Vec::new());
        let mut live = 0;
        while clients.len() < connections || live > 0 {
            while clients.len() < connections && live < AT_ONCE {
                // Some find nobody who listens.
                let to = if clients.len() % 50 == 7 { 1 } else { port };
                // Some are closed from here, mostly while they connect. The callback leaves those alone, since a second
                // close would be answered as well.
                let closes = clients.len() % 10 == 3;
                let uid = if closes { 4 } else { 3 };
                let id = sockets.connect(uid, "127.0.0.1", to).unwrap();
                // It may have been refused already.
                let _ = sockets.send(id, "hello");
                if closes {
                    sockets.close(uid, id);
                }
                clients.push(id);
                live += 1;
            }
            let event = events.recv_timeout(PATIENCE).expect("something goes on");
            ends.see(&event);
            accepted.extend((event.kind == 'A').then_some(event.accepted));
            live -= usize::from(matches!(event.uid, 3 | 4) && matches!(event.kind, 'C' | 'E'));
        }
        let missing =
            |ends: &Ends, ids: &[SocketId]| ids.iter().filter(|id| ends.of.get(id) != Some(&1)).count();
        while missing(&ends, &accepted) > 0 {
            let event = events.recv_timeout(PATIENCE).expect("every accepted connection ends");
            ends.see(&event);
            accepted.extend((event.kind == 'A').then_some(event.accepted));
        }
        assert_eq!((missing(&ends, &clients), ends.of.get(&listener)), (0, Some(&0)));
        assert_eq!(ends.after, [], "nothing comes after the end");
        println!("{backend}: {} clients, {} accepted, each ended once", clients.len(), accepted.len());
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
fn a_bound_on_what_waits_ends_the_connection_that_passes_it() {
    on_each_backend(|backend| {
        let limit = |config: Config| {
            config.backend(backend).with_limits(|limits| limits.outbound_bytes_max = 1 << 20)
        };
        let sockets = OpenSocket::builder().config(limit).build();
        let (sender, events) = mpsc::channel();
        sockets
            .run(move |_, event| {
                if let Event::Error { trouble, .. } = &event {
                    assert!(matches!(trouble, Trouble::System(_)), "{trouble}");
                }
                sender.send(told(&event)).unwrap();
            })
            .unwrap();
        let raw = TcpListener::bind("127.0.0.1:0").unwrap();
        let id = sockets.connect(3, "127.0.0.1", raw.local_addr().unwrap().port()).unwrap();
        wait(&events, |event| event.kind == 'O');
        while sockets.send(id, vec![0; 1 << 18]).is_ok() {}
        wait(&events, |event| (event.kind, event.id) == ('E', id));
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

#[test]
fn more_names_are_looked_up_than_there_are_threads_and_places_for_it() {
    on_each_backend(|backend| {
        let few = |config: Config| {
            config.backend(backend).with_limits(|limits| {
                (limits.blocking_threads_max, limits.blocking_queue_max) = (1, 1);
            })
        };
        let sockets = OpenSocket::builder().config(few).build();
        let (sender, events) = mpsc::channel();
        sockets.run(move |_, event| sender.send(told(&event)).unwrap()).unwrap();
        // Nobody listens there, on neither address of the name.
        let ids: Vec<SocketId> = (0..40).map(|_| sockets.connect(3, "localhost", 1).unwrap()).collect();
        let mut ended: Vec<SocketId> =
            ids.iter().map(|_| wait(&events, |event| event.kind == 'E').id).collect();
        ended.sort_unstable();
        assert_eq!(ended, ids);
    });
}

#[test]
fn a_slow_reader_gets_everything_in_order_and_the_close_comes_last() {
    on_each_backend(|backend| {
        let sockets = new(backend);
        let (sender, events) = mpsc::channel();
        sockets.run(move |_, event| sender.send(told(&event)).unwrap()).unwrap();
        let raw = TcpListener::bind("127.0.0.1:0").unwrap();
        let id = sockets.connect(3, "127.0.0.1", raw.local_addr().unwrap().port()).unwrap();
        let (mut peer, _) = raw.accept().unwrap();
        let mut expected = Vec::new();
        for piece in 0..200_u8 {
            let bytes = vec![piece; 50_000];
            expected.extend_from_slice(&bytes);
            sockets.send(id, bytes).unwrap();
        }
        sockets.send_low_priority(id, "low").unwrap();
        expected.extend_from_slice(b"low");
        sockets.close(5, id);
        sockets.send(id, "dropped").unwrap();
        peer.write_all(b"dropped as well").unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
        let close = wait(&events, |event| event.kind == 'C');
        assert!(close.uid == 3 || close.uid == 5);
        assert!(sockets.send(id, "gone").is_err());
    });
}

#[test]
fn datagrams_that_wait_are_counted_and_warned_of() {
    const DATAGRAMS: usize = 20_000;
    on_each_backend(|backend| {
        let sockets = new(backend);
        let to = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        sockets.udp(1, "127.0.0.1", to.port()).unwrap();
        let from = sockets.udp(2, "127.0.0.1", 0).unwrap();
        let (sender, events) = mpsc::channel();
        let (note, noted) = mpsc::channel();
        let mut looked = false;
        sockets
            .run(move |sockets, event| {
                let give =
                    |count| (0..count).for_each(|_| sockets.udp_send(from, to, vec![7; 1000]).unwrap());
                let pending =
                    || sockets.socket_info().iter().find(|info| info.id == from).unwrap().pending_bytes;
                match &event {
                    Event::Close { uid: 77, .. } => {
                        give(DATAGRAMS);
                        // Nothing waited before, so the system could have taken them at once.
                        note.send(pending()).unwrap();
                    }
                    // The first have left, and most have not.
                    Event::Udp { .. } if !looked => {
                        looked = true;
                        give(1);
                        note.send(pending()).unwrap();
                    }
                    Event::Warning { pending_kib, .. } => note.send(*pending_kib).unwrap(),
                    _ => {}
                }
                sender.send(told(&event)).unwrap();
            })
            .unwrap();
        sockets.close(77, 12_345);
        wait(&events, |event| (event.kind, event.id, event.uid) == ('W', from, 2));
        wait(&events, |event| (event.kind, event.id, event.uid) == ('W', from, 2));
        let [at_once, pending, warned, relaxed] =
            std::array::from_fn(|_| noted.recv_timeout(PATIENCE).unwrap());
        assert_eq!((at_once, relaxed), (0, 0));
        assert!(pending > 1 << 20 && pending < DATAGRAMS * 1000, "{pending} bytes");
        assert_eq!(warned, pending.div_ceil(1024));
        assert_eq!(sockets.socket_info().iter().map(|info| info.pending_bytes).max(), Some(0));
    });
}

#[test]
#[cfg_attr(windows, ignore = "there the reset that answers the first write is told, by an Error")]
fn a_write_to_a_peer_that_is_gone_ends_in_a_close_and_never_says_that_the_pipe_is_broken() {
    on_each_backend(|backend| {
        let sockets = new(backend);
        let (sender, events) = mpsc::channel();
        let (gone, is_gone) = mpsc::channel::<()>();
        let (reached, is_reached) = mpsc::channel();
        let texts: Arc<Mutex<Vec<String>>> = Arc::default();
        let inside = Arc::clone(&texts);
        sockets
            .run(move |sockets, event| {
                match &event {
                    Event::Open { id, .. } => {
                        reached.send(()).unwrap();
                        is_gone.recv().unwrap();
                        // The answer to the first is a reset, so the second fails.
                        sockets.send_slice(*id, &[0; 8192], false).unwrap();
                        sockets.send(*id, "x").unwrap();
                    }
                    Event::Error { trouble, .. } => inside.lock().unwrap().push(trouble.to_string()),
                    _ => {}
                }
                sender.send(told(&event)).unwrap();
            })
            .unwrap();
        let raw = TcpListener::bind("127.0.0.1:0").unwrap();
        let id = sockets.connect(3, "127.0.0.1", raw.local_addr().unwrap().port()).unwrap();
        let (peer, _) = raw.accept().unwrap();
        is_reached.recv_timeout(PATIENCE).unwrap();
        drop(peer);
        gone.send(()).unwrap();
        let end = wait(&events, |event| matches!(event.kind, 'C' | 'E'));
        assert_eq!((end.kind, end.id, end.uid), ('C', id, 3), "{:?}", texts.lock().unwrap());
    });
}

#[test]
fn a_closing_connection_waits_for_its_peer_whatever_the_limit_of_other_closes() {
    const BYTES: usize = 8 << 20;
    on_each_backend(|backend| {
        let short = |config: Config| config.backend(backend).with_limits(|limits| limits.close_flush_ms = 1);
        let sockets = OpenSocket::builder().config(short).build();
        let (sender, events) = mpsc::channel();
        sockets.run(move |_, event| sender.send(told(&event)).unwrap()).unwrap();
        let raw = TcpListener::bind("127.0.0.1:0").unwrap();
        let id = sockets.connect(3, "127.0.0.1", raw.local_addr().unwrap().port()).unwrap();
        let (mut peer, _) = raw.accept().unwrap();
        sockets.send(id, vec![0; BYTES]).unwrap();
        sockets.close(5, id);
        thread::sleep(Duration::from_millis(50));
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), BYTES);
        wait(&events, |event| (event.kind, event.id, event.uid) == ('C', id, 3));
    });
}

#[test]
fn a_default_destination_that_is_refused_leaves_the_one_before() {
    on_each_backend(|backend| {
        let sockets = new(backend);
        let (sender, events) = mpsc::channel();
        sockets.run(move |_, event| sender.send(told(&event)).unwrap()).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = peer.local_addr().unwrap();
        let udp = sockets.udp(2, "127.0.0.1", 0).unwrap();
        assert!(sockets.send(udp, "nowhere").is_err());
        sockets.udp_connect(udp, "127.0.0.1", to.port()).unwrap();
        sockets.udp_connect(udp, "::1", 9).unwrap();
        assert!(sockets.udp_connect(udp, "no.such.name.invalid", 9).is_err());
        wait(&events, |event| (event.kind, event.id, event.uid) == ('E', udp, 2));
        sockets.send(udp, "here").unwrap();
        let mut room = [0; 10];
        assert_eq!(peer.recv(&mut room).unwrap(), 4);
        assert_eq!(sockets.socket_info()[0].address, Some(to));
    });
}

#[test]
fn nothing_is_told_of_what_is_not_started_connects_or_closes() {
    on_each_backend(|backend| {
        let sockets = new(backend);
        let (sender, events) = mpsc::channel();
        sockets.run(move |_, event| sender.send(told(&event)).unwrap()).unwrap();
        let raw = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = raw.local_addr().unwrap().port();
        sockets.listen(1, "", 0, 0).unwrap();
        let closing = sockets.connect(3, "127.0.0.1", port).unwrap();
        let (mut peer, _) = raw.accept().unwrap();
        wait(&events, |event| (event.kind, event.id) == ('O', closing));
        assert_eq!(sockets.socket_info().iter().map(|info| info.id).collect::<Vec<_>>(), [closing]);
        sockets.send(closing, vec![0; 8 << 20]).unwrap();
        sockets.close(5, closing);
        sockets.close(77, 12_345);
        wait(&events, |event| event.uid == 77);
        assert_eq!(sockets.socket_info(), []);
        // Full, so that one more connect goes on and on.
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let port = silent.local_addr().unwrap().as_socket().unwrap().port();
        let _first = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let connecting = sockets.connect(3, "127.0.0.1", port).unwrap();
        sockets.close(78, 12_345);
        wait(&events, |event| event.uid == 78);
        assert_eq!(sockets.socket_info(), []);
        sockets.close(6, connecting);
        wait(&events, |event| (event.kind, event.id, event.uid) == ('C', connecting, 6));
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.read_to_end(&mut Vec::new()).unwrap();
        wait(&events, |event| (event.kind, event.id, event.uid) == ('C', closing, 3));
    });
}
