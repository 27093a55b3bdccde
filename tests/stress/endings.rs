//! Connections end in eight ways, seen by futures and by completions in turn.

use crate::common::is_wine;
use crate::tools::{Sequence, after_polls, scenario};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Close, Completion, EndpointId, Event, Shard, sleep, spawn, timeout};
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The ways, as the client's first byte tells them to the server.
const PEER_FIN: u8 = 0;
const PEER_RESET: u8 = 1;
const HALF_CLOSE: u8 = 2;
const OUR_ABORT: u8 = 3;
const OUR_DROP: u8 = 4;
const TIME_OUT: u8 = 5;
const OUTBOUND_BOUND: u8 = 6;
const SHARD_END: u8 = 7;
const WAYS: [&str; 8] =
    ["peer FIN", "peer reset", "half-close", "abort", "drop", "time-out", "bound", "end of the shard"];

const CLIENTS: usize = 8;
const REPLY_BYTES: usize = 1000;

#[test]
fn connections_end_in_eight_ways() {
    scenario("eight endings", |run| {
        let (rounds, of_round) = (run.size(6, 100), run.size(160, 1000));
        let counts: [AtomicUsize; 8] = Default::default();
        let (refused, full) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (mut rng, mut limits_hit) = (run.rng(), 0);
        for round in 0..rounds {
            run.progress(round * of_round, rounds * of_round);
            let mut config = run.config.clone();
            config.limits.outbound_bytes_max = 128 * 1024;
            // Every third round runs into the bound of endpoints.
            let tight = round % 3 == 2;
            if tight {
                config.limits.endpoints_max = 3;
            }
            let shard = Shard::new(config).expect("a shard");
            // The completion API in turn with futures.
            let any = SocketAddr::from(([0, 0, 0, 0], 0));
            let events = (round % 2 == 1).then(|| shard.listen(any).expect("an address"));
            let listener = std::net::TcpListener::bind(any).unwrap();
            let port = match events {
                Some(id) => shard.local_addr(id).unwrap().port(),
                None => listener.local_addr().unwrap().port(),
            };
            let over = Arc::new(AtomicBool::new(false));
            let clients = Clients { port, tight, of_round, counts: &counts, refused: &refused };
            let kept = std::thread::scope(|scope| {
                let end = Arc::clone(&over);
                let fork = rng.fork();
                let clients = scope.spawn(move || clients.run(fork, &end));
                match events {
                    None => serve(&shard, listener, &over, &full),
                    Some(id) => serve_events(&shard, id, &over, &full),
                }
                clients.join().expect("the clients end well")
            });
            limits_hit += run.settle(shard).refusals;
            kept.into_iter()
                .for_each(|socket| ended(socket).expect("the end of the shard ends its connections"));
        }
        assert!(full.load(Ordering::Relaxed) > 0, "the bound of endpoints was not reached");
        let each: Vec<_> = WAYS
            .iter()
            .zip(&counts)
            .map(|(way, count)| format!("{way} {}", count.load(Ordering::Relaxed)))
            .collect();
        run.say(format_args!(
            "{}; endpoints_max reached {} times, {} clients turned away; refusals {limits_hit}",
            each.join(", "),
            full.load(Ordering::Relaxed),
            refused.load(Ordering::Relaxed)
        ));
    });
}

// The clients: threads with sockets of the standard library.

#[derive(Clone, Copy)]
struct Clients<'a> {
    port: u16,
    tight: bool,
    of_round: usize,
    counts: &'a [AtomicUsize; 8],
    refused: &'a AtomicUsize,
}

impl Clients<'_> {
    /// Opens the connections of a round; gives those that the end of the shard has to end.
    fn run(self, mut rng: crate::tools::Rng, over: &AtomicBool) -> Vec<std::net::TcpStream> {
        let kept = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let mut rng = rng.fork();
                    scope.spawn(move || {
                        let connections = 0..self.of_round / CLIENTS;
                        connections.filter_map(|_| self.connect(&mut rng)).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a client ends well")).collect()
        });
        over.store(true, Ordering::Release);
        kept
    }

    fn connect(&self, rng: &mut crate::tools::Rng) -> Option<std::net::TcpStream> {
        // Many addresses, so that ports in TIME_WAIT do not run out.
        let address = SocketAddr::from(([127, 0, rng.below(200) as u8, 1 + rng.below(200) as u8], self.port));
        // A connection that stays would keep the few endpoints of a tight round for ever.
        let way = rng.below(if self.tight { 7 } else { 8 }) as u8;
        match client(address, way) {
            Ok(kept) => {
                self.counts[way as usize].fetch_add(1, Ordering::Relaxed);
                kept
            }
            Err(_) if self.tight => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(error) => panic!("{}: {error}", WAYS[way as usize]),
        }
    }
}

/// One connection, ended in the given way and checked for it.
fn client(address: SocketAddr, way: u8) -> io::Result<Option<std::net::TcpStream>> {
    let mut socket = std::net::TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    socket.write_all(&[way])?;
    match way {
        PEER_FIN => {}
        PEER_RESET => socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?,
        HALF_CLOSE => {
            socket.shutdown(Shutdown::Write)?;
            let mut reply = Vec::new();
            socket.read_to_end(&mut reply)?;
            if reply != Sequence::new(u64::from(way)).peek(REPLY_BYTES) {
                return Err(io::Error::other(format!("{} bytes of the reply came", reply.len())));
            }
        }
        OUR_ABORT | OUTBOUND_BOUND => match socket.read_to_end(&mut Vec::new()) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            // It forgets a reset that comes before the read.
            Ok(_) if is_wine() => {}
            other => return Err(io::Error::other(format!("a reset was expected, {other:?} came"))),
        },
        OUR_DROP | TIME_OUT => match socket.read(&mut [0])? {
            0 => {}
            _ => return Err(io::Error::other("an end was expected")),
        },
        _ => {
            socket.read_exact(&mut [0])?;
            return Ok(Some(socket));
        }
    }
    Ok(None)
}

fn ended(mut socket: std::net::TcpStream) -> io::Result<()> {
    match socket.read(&mut [0]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(io::Error::other(format!("it goes on: {other:?}"))),
    }
}

// The server with futures.

fn serve(shard: &Shard, listener: std::net::TcpListener, over: &AtomicBool, full: &AtomicUsize) {
    shard.block_on(async {
        let listener = TcpListener::from_std(listener).unwrap();
        while !over.load(Ordering::Acquire) {
            match timeout(Duration::from_millis(5), listener.accept()).await {
                Err(_) => {}
                Ok(Ok((stream, _))) => spawn(handle(stream)).detach(),
                Ok(Err(error)) => {
                    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
                    full.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
}

async fn handle(mut stream: TcpStream) {
    // A reset may overtake the first byte.
    let Ok(Some(first)) = stream.recv().await else { return };
    match first[0] {
        PEER_FIN => assert!(stream.recv().await.expect("an orderly end").is_none()),
        PEER_RESET => assert!(!matches!(stream.recv().await, Ok(Some(_)))),
        HALF_CLOSE => {
            assert!(stream.recv().await.expect("an orderly end").is_none());
            stream.send(Sequence::new(u64::from(HALF_CLOSE)).peek(REPLY_BYTES)).await.unwrap();
            stream.close().await.expect("the peer reads the reply");
        }
        OUR_ABORT => stream.abort(),
        OUR_DROP => drop(stream),
        TIME_OUT => {
            let waited = timeout(Duration::from_micros(500), stream.recv()).await;
            assert_eq!(waited.expect_err("the peer is silent").kind(), ErrorKind::TimedOut);
        }
        OUTBOUND_BOUND => {
            for sends in 0.. {
                if after_polls(0, stream.send(vec![7; 48 * 1024])).await.is_none() {
                    assert_eq!(sends, 2, "128 KiB is the bound");
                    break;
                }
            }
            stream.abort();
        }
        _ => {
            stream.send("k").await.unwrap();
            let never = stream.recv().await;
            panic!("the peer is silent, the shard should have ended: {never:?}");
        }
    }
}

// The server with completions.

const ACCEPT: u64 = 1;
const FIRST: u64 = 2;
const REST: u64 = 3;
const SEND: u64 = 4;
const CLOSE: u64 = 5;
/// And above: the time-out of the connection with this number.
const TIMER: u64 = 100;

#[derive(Default)]
struct Server {
    ways: HashMap<EndpointId, u8>,
    timers: HashMap<u64, EndpointId>,
    closing: HashSet<EndpointId>,
}

fn serve_events(shard: &Shard, listener: EndpointId, over: &AtomicBool, full: &AtomicUsize) {
    shard.submit_accept_multi(listener, ACCEPT).unwrap();
    let mut server = Server::default();
    while !over.load(Ordering::Acquire) {
        let mut completions = Vec::new();
        shard.poll(Some(Duration::from_millis(5)), |completion| completions.push(completion)).unwrap();
        for completion in completions {
            if matches!((completion.tag, &completion.event), (ACCEPT, Event::Failed(_))) {
                full.fetch_add(1, Ordering::Relaxed);
            } else {
                server.on_completion(shard, completion);
            }
        }
    }
}

impl Server {
    fn on_completion(&mut self, shard: &Shard, completion: Completion) {
        let Completion { tag, endpoint: id, event, .. } = completion;
        match (tag, event) {
            (ACCEPT, Event::Accepted(id)) => shard.submit_recv(id, FIRST).expect("a new connection is open"),
            (FIRST, Event::Received(lease)) => {
                self.ways.insert(id, lease[0]);
                self.begin(shard, id, lease[0]);
            }
            (REST, Event::Received(lease)) => {
                panic!("{} bytes more than a client sends", lease.len())
            }
            (FIRST, Event::End | Event::Failed(_)) => self.close(shard, id, Close::Flush),
            (REST, Event::End) if self.ways[&id] == HALF_CLOSE => {
                let reply = Sequence::new(u64::from(HALF_CLOSE)).peek(REPLY_BYTES);
                shard.submit_send(id, reply, SEND).expect("room").expect("the peer still reads");
            }
            // The end of the receive that the time-out has closed.
            (REST, Event::Failed(_)) if self.closing.contains(&id) => {}
            (REST, Event::End | Event::Failed(_)) => self.close(shard, id, Close::Flush),
            (SEND, Event::Sent) if self.ways[&id] == HALF_CLOSE => self.close(shard, id, Close::Flush),
            (SEND, Event::Sent | Event::Failed(_)) => {}
            (CLOSE, Event::Closed) => {
                assert!(self.closing.remove(&id), "{id:?} closes once");
                self.ways.remove(&id);
            }
            (timer @ TIMER.., Event::Elapsed) => {
                let id = self.timers.remove(&timer).expect("a time-out elapses once");
                self.close(shard, id, Close::Flush);
            }
            (tag, event) => panic!("tag {tag} got {event:?}"),
        }
    }

    fn begin(&mut self, shard: &Shard, id: EndpointId, way: u8) {
        match way {
            OUR_ABORT => self.close(shard, id, Close::Abort),
            OUR_DROP => self.close(shard, id, Close::Flush),
            TIME_OUT => {
                let timer = TIMER + id.as_u64();
                self.timers.insert(timer, id);
                shard.submit_recv(id, REST).unwrap();
                shard.submit_timeout(Duration::from_micros(500), timer).unwrap();
            }
            OUTBOUND_BOUND => {
                let sent =
                    (0..).take_while(|_| shard.submit_send(id, vec![7; 48 * 1024], SEND).is_ok()).count();
                assert_eq!(sent, 2, "128 KiB is the bound");
                self.close(shard, id, Close::Abort);
            }
            SHARD_END => {
                shard.submit_send(id, "k", SEND).expect("room").expect("an open connection");
                shard.submit_recv_multi(id, REST).unwrap();
            }
            _ => shard.submit_recv_multi(id, REST).unwrap(),
        }
    }

    fn close(&mut self, shard: &Shard, id: EndpointId, how: Close) {
        assert!(self.closing.insert(id));
        shard.submit_close(id, how, CLOSE).expect("it is open");
    }
}
