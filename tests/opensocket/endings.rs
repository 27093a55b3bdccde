//! The end of sockets: each is told once, whatever ends it.
#![forbid(unsafe_code)]

use super::{PATIENCE, Told, listener, new, on_each_backend, told, wait};
use anabranch::Config;
use anabranch::event::{Event, OpenSocket, SocketId, Sockets};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// Connections of the stress test; `OPENSOCKET_STRESS=100000` runs it whole.
fn stress_connections() -> usize {
    std::env::var("OPENSOCKET_STRESS").ok().and_then(|count| count.parse().ok()).unwrap_or(3_000)
}

/// Who has the connections that the stress test makes, and those of them that it closes from its own thread.
const CLIENT: usize = 3;
const CLOSED_CLIENT: usize = 4;
/// Who closes these. A close of an id that lives no longer is answered as well, so the answer must be told from the end.
const CLOSER: usize = 5;
/// Who asks last.
const BARRIER: usize = 77;

/// How ids ended.
#[derive(Default)]
struct Ends {
    /// The ids that were seen, with the uid that the end was told to.
    of: HashMap<SocketId, Option<usize>>,
    /// Those that had ended by themselves when they were closed from outside, which was answered once.
    answered_late: HashSet<SocketId>,
    /// What else came after an end.
    after: Vec<Told>,
    /// The connections that were accepted.
    accepted: Vec<SocketId>,
}

impl Ends {
    /// Takes an event down; whether it is the end of its id.
    fn see(&mut self, event: &Told) -> bool {
        self.accepted.extend((event.kind == 'A').then_some(event.accepted));
        let end = self.of.entry(event.id).or_default();
        let Some(told_to) = *end else {
            *end = matches!(event.kind, 'C' | 'E').then_some(event.uid);
            return end.is_some();
        };
        // There is one call from outside, and it is answered once: by the end or after it.
        let is_answer = (event.kind, event.uid) == ('C', CLOSER)
            && told_to != CLOSER
            && self.answered_late.insert(event.id);
        if !is_answer {
            self.after.push(event.clone());
        }
        false
    }

    fn missing(&self, ids: &[SocketId]) -> usize {
        ids.iter().filter(|id| !matches!(self.of.get(id), Some(Some(_)))).count()
    }

    /// Ids that were closed from outside, as far as anything tells it.
    fn closed(&self) -> impl Iterator<Item = &SocketId> {
        let by_closer = self.of.iter().filter(|(_, end)| **end == Some(CLOSER)).map(|(id, _)| id);
        by_closer.chain(&self.answered_late)
    }
}

/// The callback of the stress test: what is accepted is started, closed before that, or both, by turns.
fn end_in_many_ways(sockets: &Sockets, event: &Event) {
    match event {
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
        // Those of the other uid are closed from outside; the callback must not do it, too.
        Event::Data { id, uid: CLIENT, .. } if id % 2 == 0 => sockets.close(CLIENT, *id),
        Event::Data { id, uid: CLIENT, .. } => sockets.shutdown(CLIENT, *id),
        _ => {}
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
                end_in_many_ways(sockets, &event);
                sender.send(told(&event)).unwrap();
            })
            .unwrap();
        let (listener, port) = listener(&sockets);
        let (mut ends, mut clients, mut closed) = (Ends::default(), Vec::new(), HashSet::new());
        let next = || events.recv_timeout(PATIENCE).expect("something goes on");
        let mut close = |id| {
            sockets.close(CLOSER, id);
            closed.insert(id);
        };
        let (mut to_close, mut live) = (VecDeque::new(), 0);
        while clients.len() < connections || live > 0 {
            while clients.len() < connections && live < AT_ONCE {
                // Some find nobody who listens.
                let to = if clients.len() % 50 == 7 { 1 } else { port };
                // Some are closed from here: at once, so mostly while they connect, or when some more have been made,
                // so that most have ended by themselves.
                let closes = clients.len() % 10 == 3;
                let uid = if closes { CLOSED_CLIENT } else { CLIENT };
                let id = sockets.connect(uid, "127.0.0.1", to).unwrap();
                // It may have been refused already.
                let _ = sockets.send(id, "hello");
                match clients.len() % 20 {
                    3 => close(id),
                    13 => to_close.push_back(id),
                    _ => {}
                }
                if to_close.len() > 15 {
                    to_close.pop_front().into_iter().for_each(&mut close);
                }
                clients.push(id);
                live += 1;
            }
            if clients.len() == connections {
                to_close.drain(..).for_each(&mut close);
            }
            let event = next();
            let is_end = ends.see(&event);
            live -= usize::from(is_end && matches!(event.uid, CLIENT | CLOSED_CLIENT | CLOSER));
        }
        while ends.missing(&ends.accepted) > 0 {
            ends.see(&next());
        }
        // The calls of this thread are done in their order, so the answers to all of them come before this one.
        sockets.close(BARRIER, i32::MAX);
        loop {
            let event = next();
            ends.see(&event);
            if event.uid == BARRIER {
                break;
            }
        }
        assert_eq!((ends.missing(&clients), ends.of.get(&listener)), (0, Some(&None)));
        assert_eq!(ends.after, [], "nothing comes after the end but the answer to a call");
        assert!(ends.closed().all(|id| closed.contains(id)), "only who called is answered");
        let late = ends.answered_late.len();
        println!(
            "{backend}: {} clients, {} accepted, each ended once; {} closed from outside, {late} of them too late",
            clients.len(),
            ends.accepted.len(),
            closed.len()
        );
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
