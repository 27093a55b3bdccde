//! What is sent: its order, its bounds, and what is told of it.
#![forbid(unsafe_code)]

use super::{PATIENCE, new, on_each_backend, told, wait};
use anabranch::Config;
use anabranch::event::{Event, OpenSocket, Trouble};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::mpsc;
use std::thread;

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
