//! Sessions with a handler: how they begin, what bounds them, and that each ends once, whatever ends it.

use crate::common::net::{anywhere, check, on_real_backends, on_typical_backends, pattern};
use crate::common::{on_every_backend, peer};
use anabranch::component::udp::{
    SendError, Session, SessionEnd, SessionHandler, SessionId, SessionInfo, SessionOptions, UdpError,
    UdpSessions,
};
use anabranch::net::{Datagram, UdpSocket};
use anabranch::{JoinHandle, sleep, spawn, yield_now};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// What the handler has heard.
#[derive(Default)]
struct Seen {
    accepted: Vec<SocketAddr>,
    received: Vec<(SessionId, Vec<u8>)>,
    /// Peer, the number of datagrams in its state, and why.
    closed: Vec<(SessionInfo, usize, String)>,
    errors: usize,
    shutdowns: usize,
}

/// Does what the first byte of a datagram says: `e`cho, `x` an error, `c`lose itself, `a`ll closed, `b`roadcast.
#[derive(Clone, Default)]
struct Script {
    seen: Rc<RefCell<Seen>>,
    refuses: Rc<RefCell<Vec<SocketAddr>>>,
}

impl SessionHandler for Script {
    type State = usize;

    fn on_accept(&mut self, sessions: &UdpSessions, peer: SocketAddr, first: &[u8]) -> Option<usize> {
        assert_eq!(sessions.find(peer), None);
        if self.refuses.borrow().contains(&peer) || first == b"go away" {
            return None;
        }
        self.seen.borrow_mut().accepted.push(peer);
        Some(0)
    }

    fn on_receive(&mut self, session: &mut Session<'_, usize>, datagram: Datagram) -> io::Result<()> {
        *session.state += 1;
        self.seen.borrow_mut().received.push((session.id(), datagram.lease.to_vec()));
        assert_eq!(session.sessions().find(session.peer()), Some(session.id()));
        match datagram.lease.first() {
            Some(b'e') => session.send(datagram.lease).map_err(io::Error::from),
            Some(b'x') => Err(io::Error::other("the handler says so")),
            Some(b'c') => {
                session.close();
                assert!(matches!(session.send("late"), Err(SendError::NoSession)));
                Ok(())
            }
            Some(b'a') => {
                session.sessions().close_all();
                Ok(())
            }
            Some(b'b') => {
                session.sessions().broadcast("to all").map(drop)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_close(&mut self, sessions: &UdpSessions, session: SessionInfo, state: usize, end: SessionEnd) {
        assert!(sessions.info(session.id).is_none() && !sessions.close(session.id), "it is over");
        let end = match end {
            SessionEnd::Handler(error) => format!("handler: {error}"),
            other => format!("{other:?}"),
        };
        self.seen.borrow_mut().closed.push((session, state, end));
    }

    fn on_error(&mut self, _: &UdpSessions, _: UdpError) {
        self.seen.borrow_mut().errors += 1;
    }

    fn on_shutdown(&mut self) {
        self.seen.borrow_mut().shutdowns += 1;
    }
}

impl Script {
    /// The ends so far, sorted.
    fn ends(&self) -> Vec<String> {
        let mut ends: Vec<_> = self.seen.borrow().closed.iter().map(|(.., end)| end.clone()).collect();
        ends.sort();
        ends
    }

    fn accepted(&self) -> usize {
        self.seen.borrow().accepted.len()
    }

    /// Each session that was accepted has ended once.
    fn assert_each_ended_once(&self) {
        let seen = self.seen.borrow();
        let mut ids: Vec<_> = seen.closed.iter().map(|(info, ..)| info.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!((ids.len(), seen.closed.len()), (seen.accepted.len(), seen.accepted.len()));
        assert_eq!(seen.shutdowns, 1);
    }
}

struct Served {
    sessions: UdpSessions,
    script: Script,
    task: JoinHandle<io::Result<()>>,
    to: SocketAddr,
}

fn serve(options: SessionOptions) -> Served {
    let sessions = UdpSessions::bind(anywhere(), options).unwrap();
    let (script, to) = (Script::default(), sessions.local_addr().unwrap());
    let (mut handler, served) = (script.clone(), sessions.clone());
    let task = spawn(async move { served.serve(&mut handler).await });
    Served { sessions, script, task, to }
}

impl Served {
    /// Stops, and checks that each session has ended once.
    async fn stop(self) -> Script {
        self.sessions.stop();
        self.task.await.unwrap().unwrap();
        assert!(self.sessions.is_empty());
        self.script.assert_each_ended_once();
        self.script
    }
}

async fn socket() -> UdpSocket {
    UdpSocket::bind(anywhere()).await.unwrap()
}

/// Peers that each have a session, and have heard its first echo.
async fn peers(served: &Served, count: usize) -> Vec<UdpSocket> {
    let mut peers = Vec::new();
    for _ in 0..count {
        let peer = socket().await;
        exchange(&peer, served.to).await;
        peers.push(peer);
    }
    peers
}

async fn exchange(peer: &UdpSocket, to: SocketAddr) {
    peer.send_to("echo", to).await.unwrap();
    assert_eq!(&*peer.recv_from().await.unwrap().lease, b"echo");
}

/// Lets the shard run until it is so.
async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn the_first_datagram_of_an_address_makes_a_session_and_is_delivered() {
    on_every_backend(|config| {
        check(config, async {
            let served = serve(SessionOptions::new());
            let (one, other) = (socket().await, socket().await);
            for (peer, bytes) in [(&one, "first"), (&other, ""), (&one, "second"), (&other, "echo")] {
                peer.send_to(bytes, served.to).await.unwrap();
            }
            other.recv_from().await.unwrap();
            until(|| served.script.seen.borrow().received.len() == 4).await;
            let id_of = |peer: &UdpSocket| served.sessions.find(peer.local_addr().unwrap()).unwrap();
            let (first, second) = (id_of(&one), id_of(&other));
            let info = served.sessions.info(first).unwrap();
            assert_eq!((info.datagrams_in, info.bytes_in, info.datagrams_out), (2, 11, 0));
            let info = served.sessions.info(second).unwrap();
            assert_eq!((info.datagrams_in, info.bytes_in), (2, 4));
            assert_eq!((info.datagrams_out, info.bytes_out, info.peer), (1, 4, other.local_addr().unwrap()));
            let mut ids = served.sessions.ids();
            ids.sort();
            assert_eq!((ids, served.sessions.len()), (vec![first.min(second), first.max(second)], 2));
            assert_eq!(served.sessions.infos().len(), 2);
            let script = served.stop().await;
            let seen = script.seen.borrow();
            // Between peers no order is promised.
            let heard = |of: SessionId| -> Vec<&[u8]> {
                seen.received.iter().filter(|(id, _)| *id == of).map(|(_, bytes)| bytes.as_slice()).collect()
            };
            assert_eq!(heard(first), [&b"first"[..], b"second"]);
            assert_eq!(heard(second), [&b""[..], b"echo"]);
            assert_eq!(seen.closed.iter().map(|(_, state, _)| *state).collect::<Vec<_>>(), [2, 2]);
        });
    });
}

#[test]
fn each_session_ends_once_with_what_ended_it() {
    on_every_backend(|config| {
        check(config, async {
            let served = serve(SessionOptions::new());
            let peers = peers(&served, 5).await;
            let id_of = |n: usize| served.sessions.find(peers[n].local_addr().unwrap()).unwrap();
            let (first, second) = (id_of(0), id_of(1));
            assert!(served.sessions.close(first) && !served.sessions.close(first), "closed twice");
            peers[1].send_to("x", served.to).await.unwrap();
            // What comes behind the datagram that ended it begins a new one.
            peers[2].send_to("c", served.to).await.unwrap();
            peers[2].send_to("echo", served.to).await.unwrap();
            peers[2].recv_from().await.unwrap();
            until(|| served.script.ends().len() == 3).await;
            assert_eq!(served.script.ends(), ["Closed", "Closed", "handler: the handler says so"]);
            assert_eq!(served.sessions.len(), 3);
            assert!(served.sessions.info(second).is_none());
            let script = served.stop().await;
            assert_eq!(script.ends().iter().filter(|end| *end == "Shutdown").count(), 3);
        });
    });
}

#[test]
fn an_old_id_never_names_the_next_session_of_its_address_or_slot() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().sessions_max(1));
            let peer = socket().await;
            let mut old: Vec<SessionId> = Vec::new();
            for _ in 0..50 {
                exchange(&peer, served.to).await;
                let id = served.sessions.find(peer.local_addr().unwrap()).unwrap();
                for stale in &old {
                    assert_ne!(*stale, id);
                    assert!(served.sessions.info(*stale).is_none() && !served.sessions.close(*stale));
                    assert!(matches!(served.sessions.try_send(*stale, "x"), Err(SendError::NoSession)));
                    assert!(matches!(served.sessions.send(*stale, "x").await, Err(SendError::NoSession)));
                }
                assert!(served.sessions.info(id).is_some(), "a stale id has ended it");
                old.push(id);
                served.sessions.close(id);
                until(|| served.script.ends().len() == old.len()).await;
            }
            served.stop().await;
        });
    });
}

#[test]
fn a_full_table_refuses_new_addresses_silently_and_serves_the_others() {
    on_every_backend(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().sessions_max(3));
            let members = peers(&served, 3).await;
            let stranger = socket().await;
            stranger.send_to("echo", served.to).await.unwrap();
            until(|| served.sessions.refusals().full == 1).await;
            assert_eq!(served.sessions.counters().datagrams_out, 3, "nothing is sent to who was refused");
            exchange(&members[0], served.to).await;
            // A place that is free is taken.
            served.sessions.close(served.sessions.find(members[1].local_addr().unwrap()).unwrap());
            until(|| served.script.ends().len() == 1).await;
            exchange(&stranger, served.to).await;
            assert_eq!(served.sessions.len(), 3);
            served.stop().await;
        });
    });
}

#[test]
fn forged_addresses_cost_a_bounded_number_of_sessions() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().sessions_per_second_max(5).idle(None));
            let mut strangers = Vec::new();
            let start = anabranch::time::now();
            for _ in 0..60 {
                let stranger = socket().await;
                stranger.send_to("hello", served.to).await.unwrap();
                strangers.push(stranger);
            }
            let known = || served.script.accepted() as u64 + served.sessions.refusals().rate;
            until(|| known() == 60).await;
            // Five at once, and what the rate allows for as long as it took.
            let allowed = 5 + start.elapsed_since() / 200 + 1;
            assert!(served.script.accepted() as u128 <= allowed, "{}", served.script.accepted());
            assert!(served.script.accepted() >= 5);
            served.stop().await;
        });
    });
}

/// Milliseconds since, by the clock of the machine that the test runs on.
trait Elapsed {
    fn elapsed_since(&self) -> u128;
}

impl Elapsed for std::time::Instant {
    fn elapsed_since(&self) -> u128 {
        anabranch::time::now().duration_since(*self).as_millis()
    }
}

#[test]
fn a_handler_may_refuse_an_address_and_change_its_mind() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new());
            let peer = socket().await;
            served.script.refuses.borrow_mut().push(peer.local_addr().unwrap());
            peer.send_to("echo", served.to).await.unwrap();
            until(|| served.sessions.refusals().handler == 1).await;
            assert!(served.sessions.is_empty());
            served.script.refuses.borrow_mut().clear();
            peer.send_to("go away", served.to).await.unwrap();
            until(|| served.sessions.refusals().handler == 2).await;
            exchange(&peer, served.to).await;
            let script = served.stop().await;
            assert_eq!(script.ends(), ["Shutdown"], "who was refused is not told of");
        });
    });
}

#[test]
fn a_silent_session_ends_and_one_that_talks_does_not() {
    on_every_backend(|config| {
        check(config, async {
            let idle = Duration::from_millis(300);
            let served = serve(SessionOptions::new().idle(idle));
            let peers = peers(&served, 3).await;
            let talker = peers[0].local_addr().unwrap();
            let first = served.sessions.find(talker).unwrap();
            // As long as somebody talks, time passes for the others.
            while served.script.ends().len() < 2 {
                exchange(&peers[0], served.to).await;
                sleep(Duration::from_millis(5)).await;
            }
            let mut ended: Vec<_> = served.script.seen.borrow().closed.clone();
            for (info, state, end) in &ended {
                assert_eq!((end.as_str(), *state), ("Idle", 1));
                // A machine that stood still for so long may have lost the talker, too.
                assert!(info.idle >= idle, "{info:?}");
            }
            ended.retain(|(info, ..)| info.peer == talker);
            if ended.is_empty() {
                assert_eq!(served.sessions.find(talker), Some(first));
            }
            // The last one goes when it falls silent, too.
            until(|| served.sessions.is_empty()).await;
            until(|| served.script.ends().len() >= 3).await;
            served.stop().await;
        });
    });
}

#[test]
fn a_datagram_that_came_in_time_keeps_its_session_though_the_process_stood_still() {
    // Real kernels only: one that is played may hold back what has arrived.
    on_real_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().idle(Duration::from_millis(300)));
            let (talker, silent) = (peer::UdpSocket::bind(anywhere()).unwrap(), socket().await);
            talker.send_to(b"hello", served.to).unwrap();
            exchange(&silent, served.to).await;
            until(|| served.sessions.len() == 2).await;
            talker.send_to(b"in time", served.to).unwrap();
            // The shard's own thread sleeps.
            peer::pause(Duration::from_millis(500));
            until(|| served.script.ends().len() == 2).await;
            let ended: Vec<_> = served
                .script
                .seen
                .borrow()
                .closed
                .iter()
                .map(|(info, state, _)| (info.peer, *state))
                .collect();
            assert_eq!(ended, [(silent.local_addr().unwrap(), 1), (talker.local_addr().unwrap(), 2)]);
            served.stop().await;
        });
    });
}

#[test]
fn what_is_sent_to_a_silent_peer_does_not_keep_its_session() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().idle(Duration::from_millis(50)));
            let peer = &peers(&served, 1).await[0];
            let id = served.sessions.find(peer.local_addr().unwrap()).unwrap();
            while served.sessions.try_send(id, "are you there?").is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
            until(|| !served.script.ends().is_empty()).await;
            assert_eq!(served.script.ends(), ["Idle"]);
            served.stop().await;
        });
    });
}

#[test]
fn sessions_are_ended_by_idle_by_age_and_all_at_once() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().idle(None));
            let old = peers(&served, 4).await;
            sleep(Duration::from_millis(400)).await;
            let new = peers(&served, 3).await;
            exchange(&old[0], served.to).await;
            assert_eq!(served.sessions.close_idle(Duration::from_secs(3600)), 0);
            assert_eq!(served.sessions.close_older(Duration::from_secs(3600)), 0);
            let open = |peer: &UdpSocket| served.sessions.find(peer.local_addr().unwrap()).is_some();
            let least = |idle: bool, of: &[UdpSocket]| {
                let infos = served.sessions.infos();
                let of: Vec<_> = of.iter().map(|peer| peer.local_addr().unwrap()).collect();
                let of = infos.iter().filter(|info| of.contains(&info.peer));
                of.map(|info| if idle { info.idle } else { info.age }).min().unwrap()
            };
            assert_eq!(served.sessions.close_idle(least(true, &old[1..])), 3);
            assert!(open(&old[0]) && !open(&old[1]) && !open(&old[3]) && new.iter().all(open));
            assert_eq!(served.sessions.close_older(least(false, &old[..1])), 1);
            assert_eq!(served.sessions.close_all(), 3);
            assert!(served.sessions.is_empty());
            until(|| served.script.ends().len() == 7).await;
            served.stop().await;
        });
    });
}

#[test]
fn a_broadcast_reaches_every_session_in_order_though_it_is_larger_than_the_queue() {
    on_every_backend(|config| {
        let config = config.with_limits(|limits| limits.datagrams_outbound_max = 4);
        check(config, async {
            let served = serve(SessionOptions::new());
            let peers = peers(&served, 20).await;
            let gone = served.sessions.find(peers[7].local_addr().unwrap()).unwrap();
            let payload = bytes::Bytes::from(pattern(1000));
            assert_eq!(served.sessions.broadcast(payload.clone()).unwrap(), 20);
            assert_eq!(served.sessions.broadcast("second").unwrap(), 20);
            served.sessions.close(gone);
            let late = socket().await;
            exchange(&late, served.to).await;
            for (n, peer) in peers.iter().enumerate().filter(|(n, _)| *n != 7) {
                assert_eq!(*peer.recv_from().await.unwrap().lease, payload[..], "peer {n}");
                assert_eq!(&*peer.recv_from().await.unwrap().lease, b"second");
            }
            // Neither who was gone nor who came later got one.
            assert_eq!(served.sessions.counters().datagrams_out, 21 + 2 * 19);
            let short = served.sessions.info(served.sessions.find(peers[0].local_addr().unwrap()).unwrap());
            assert_eq!(short.map(|info| (info.datagrams_out, info.bytes_out)), Some((3, 1010)));
            served.stop().await;
        });
    });
}

#[test]
fn broadcasts_that_wait_are_bounded() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().broadcasts_max(2).datagram_bytes_max(100));
            let peers = peers(&served, 2).await;
            served.sessions.broadcast("1").unwrap();
            served.sessions.broadcast("2").unwrap();
            assert!(matches!(served.sessions.broadcast("3"), Err(SendError::Full)));
            let long = served.sessions.broadcast(vec![0; 101]);
            assert!(matches!(long, Err(SendError::TooLong { bytes: 101, max: 100 })));
            for expected in ["1", "2"] {
                assert_eq!(&*peers[1].recv_from().await.unwrap().lease, expected.as_bytes());
            }
            peers[0].send_to("b", served.to).await.unwrap();
            for expected in ["1", "2", "to all"] {
                assert_eq!(&*peers[0].recv_from().await.unwrap().lease, expected.as_bytes());
            }
            served.stop().await;
        });
    });
}

#[test]
fn a_session_that_ends_all_the_others_ends_each_once() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new());
            // More than are told of in one go.
            let options = SessionOptions::new().sessions_per_second_max(100_000);
            let many = serve(options);
            let crowd = peers(&many, 400).await;
            crowd[200].send_to("all", many.to).await.unwrap();
            until(|| many.script.ends().len() == 400).await;
            assert!(many.sessions.is_empty());
            many.stop().await;
            served.stop().await;
        });
    });
}

#[test]
fn a_service_that_is_dropped_ends_every_session() {
    on_every_backend(|config| {
        check(config, async {
            let mut served = serve(SessionOptions::new());
            let peers = peers(&served, 3).await;
            served.sessions.close(served.sessions.find(peers[0].local_addr().unwrap()).unwrap());
            served.task.abort();
            until(|| served.script.seen.borrow().shutdowns == 1).await;
            assert_eq!(served.script.ends(), ["Closed", "Shutdown", "Shutdown"]);
            served.script.assert_each_ended_once();
            let again = served.sessions.serve(&mut Script::default()).await.unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
            assert!(matches!(served.sessions.broadcast("late"), Err(SendError::Stopped)));
        });
    });
}

#[test]
fn a_shard_that_ends_ends_every_session() {
    on_typical_backends(|config| {
        let script = Script::default();
        check(config, async {
            let sessions = UdpSessions::bind(anywhere(), SessionOptions::new()).unwrap();
            let (peer, mut handler) = (socket().await, script.clone());
            let to = sessions.local_addr().unwrap();
            spawn(async move { sessions.serve(&mut handler).await }).detach();
            exchange(&peer, to).await;
        });
        assert_eq!(script.ends(), ["Shutdown"]);
        script.assert_each_ended_once();
    });
}

#[test]
fn what_is_too_long_is_told_and_neither_begins_nor_ends_a_session() {
    on_typical_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new().datagram_bytes_max(100));
            let (member, stranger) = (&peers(&served, 1).await[0], socket().await);
            member.send_to(vec![b'e'; 101], served.to).await.unwrap();
            stranger.send_to(vec![b'e'; 101], served.to).await.unwrap();
            until(|| served.script.seen.borrow().errors == 2).await;
            assert_eq!((served.sessions.len(), served.sessions.counters().dropped_in), (1, 2));
            let id = served.sessions.find(member.local_addr().unwrap()).unwrap();
            let long = served.sessions.send(id, vec![0; 101]).await;
            assert!(matches!(long, Err(SendError::TooLong { bytes: 101, max: 100 })));
            exchange(member, served.to).await;
            served.stop().await;
        });
    });
}

#[test]
fn a_burst_from_one_peer_is_delivered_in_order_on_one_session() {
    on_real_backends(|config| {
        check(config, async {
            let served = serve(SessionOptions::new());
            let peer = socket().await;
            peer.send_segments(pattern(10_000), 500, served.to).await.unwrap();
            until(|| served.script.seen.borrow().received.len() == 20).await;
            let all: Vec<u8> =
                served.script.seen.borrow().received.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            // The script may have been told to do something by a first byte; only the last session counts then.
            assert!(all.len() == 10_000 && all == pattern(10_000));
            served.stop().await;
        });
    });
}

#[test]
fn dropping_the_last_hold_stops_the_service() {
    on_typical_backends(|config| {
        check(config, async {
            let sessions = UdpSessions::bind(anywhere(), SessionOptions::new()).unwrap();
            // The async form drives them by a task of its own.
            let waiting = sessions.clone();
            let accepting = spawn(async move { waiting.accept().await.map(drop) });
            yield_now().await;
            let to = sessions.local_addr().unwrap();
            drop((sessions, accepting));
            // A peer that is connected to it hears that nobody is there any more, or nothing; no answer comes.
            let peer = socket().await;
            peer.send_to("echo", to).await.unwrap();
        });
    });
}
