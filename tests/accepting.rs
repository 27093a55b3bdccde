//! Listeners that pause and stop: nothing that was accepted is lost, and nothing is accepted any more.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{ListenOptions, ListeningSockets, ShardListeners, TcpListener, TcpStream};
#[cfg(unix)]
use anabranch::net::{UnixListener, UnixStream};
use anabranch::{Config, Distribution, Error, Event, Runtime, sleep, spawn, timeout};
use common::net::{Driven, anywhere, check, counted, on_real_backends, on_typical_backends};
use common::{on_every_backend, peer};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Long enough for a connection to be accepted by whoever would.
const A_WHILE: Duration = Duration::from_millis(20);

fn is_stopped(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    error.kind() == ErrorKind::NotConnected && matches!(inner, Some(Error::Stopped))
}

#[test]
fn a_stopped_listener_gives_what_it_had_accepted_and_then_says_that_there_are_no_more() {
    on_every_backend(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let first = TcpStream::connect(address).await.unwrap();
            let (_taken, _) = listener.accept().await.unwrap();
            let mut ours = Vec::new();
            for _ in 0..5 {
                ours.push(TcpStream::connect(address).await.unwrap());
            }
            let before = anabranch::counters().unwrap().accepts;
            listener.stop_accepting().await;
            let mut taken = 1;
            while listener.next().await.unwrap().is_some() {
                taken += 1;
            }
            assert!(is_stopped(&listener.accept().await.unwrap_err()));
            assert!(listener.next().await.unwrap().is_none(), "it says so again");
            let accepted = anabranch::counters().unwrap().accepts;
            assert_eq!(taken, accepted, "what was accepted is given out");
            assert!(accepted >= before);
            // The socket is open, and nobody accepts on it.
            let _late = TcpStream::connect(address).await.unwrap();
            sleep(A_WHILE).await;
            assert_eq!(anabranch::counters().unwrap().accepts, accepted);
            drop((first, ours));
            listener.close().await;
            let refused = TcpStream::connect(address).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn what_a_stopped_listener_left_in_the_backlog_goes_to_whoever_has_the_socket() {
    on_real_backends(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let first = peer::TcpStream::connect(address).unwrap();
            listener.accept().await.unwrap();
            let heir = listener.duplicate().unwrap();
            listener.stop_accepting().await;
            let late: Vec<_> = (0..20).map(|_| TcpStream::connect(address)).collect();
            let mut clients = Vec::new();
            for connecting in late {
                clients.push(connecting.await.unwrap());
            }
            assert!(listener.next().await.unwrap().is_none());
            listener.close().await;
            let heir = TcpListener::from_std(heir).unwrap();
            let mut peers: Vec<SocketAddr> =
                clients.iter().map(|client| client.local_addr().unwrap()).collect();
            for _ in 0..20 {
                let (_, peer) = heir.accept().await.unwrap();
                peers.retain(|known| *known != peer);
            }
            assert!(peers.is_empty(), "{peers:?} were lost");
            drop(first);
        });
    });
}

#[test]
fn whoever_waits_for_a_connection_hears_that_there_are_no_more() {
    on_every_backend(|config| {
        check(config, async {
            let listener = Rc::new(TcpListener::bind(anywhere()).await.unwrap());
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let listener = Rc::clone(&listener);
                    spawn(async move { listener.next().await.unwrap().is_none() })
                })
                .collect();
            sleep(Duration::from_millis(2)).await;
            // Given up after its first look, it goes on all the same.
            let _ = timeout(Duration::ZERO, listener.stop_accepting()).await;
            for task in waiting {
                assert!(task.await.unwrap());
            }
            listener.stop_accepting().await;
            listener.resume_accepting();
            assert!(listener.next().await.unwrap().is_none(), "what has stopped stays so");
        });
    });
}

#[test]
fn what_waits_in_the_backlog_when_a_listener_stops_is_served() {
    on_every_backend(|config| {
        let ((), counters) = counted(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let mut waiting = Vec::new();
            for _ in 0..10 {
                waiting.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            }
            listener.stop_accepting().await;
            for _ in 0..10 {
                assert!(listener.next().await.unwrap().is_some());
            }
            assert!(listener.next().await.unwrap().is_none());
        });
        assert_eq!(counters.accepts, 10);
    });
}

#[test]
fn the_end_of_accepting_needs_no_room_in_the_table_of_endpoints() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.endpoints_max = 2);
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let _peer = peer::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let _taken = listener.accept().await.unwrap();
            listener.stop_accepting().await;
            assert!(listener.next().await.unwrap().is_none());
        });
    });
}

#[test]
fn a_paused_listener_leaves_connections_in_the_backlog_until_it_resumes() {
    on_every_backend(|config| {
        check(config, async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let _first = TcpStream::connect(address).await.unwrap();
            listener.accept().await.unwrap();
            for _ in 0..3 {
                listener.pause_accepting();
                listener.pause_accepting();
                sleep(A_WHILE).await;
                let before = anabranch::counters().unwrap().accepts;
                let mut waiting = Vec::new();
                for _ in 0..4 {
                    waiting.push(TcpStream::connect(address).await.unwrap());
                }
                let none = timeout(A_WHILE, listener.accept()).await;
                assert_eq!(none.unwrap_err().kind(), ErrorKind::TimedOut);
                assert_eq!(anabranch::counters().unwrap().accepts, before, "nothing is accepted");
                listener.resume_accepting();
                let mut peers: Vec<_> = waiting.iter().map(|one| one.local_addr().unwrap()).collect();
                while !peers.is_empty() {
                    let (_, peer) = listener.accept().await.unwrap();
                    peers.retain(|known| *known != peer);
                }
            }
            listener.pause_accepting();
            listener.stop_accepting().await;
            assert!(listener.next().await.unwrap().is_none(), "a paused listener may stop");
        });
    });
}

#[test]
fn submitted_accepts_end_when_a_listener_stops() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let listener = driven.shard.listen(anywhere()).unwrap();
        let address = driven.shard.local_addr(listener).unwrap();
        driven.shard.submit_accept_multi(listener, 1).unwrap();
        let clients: Vec<_> = (0..6).map(|_| peer::TcpStream::connect(address).unwrap()).collect();
        driven.until(|events| events.iter().filter(|one| one.tag == 1).count() >= 3);
        driven.shard.stop_accepting(listener).unwrap();
        driven.until(|events| events.iter().any(|one| one.tag == 1 && !one.more));
        let last = driven.events.iter().rfind(|one| one.tag == 1).unwrap();
        assert!(matches!(last.event, Event::Failed(Error::Stopped)), "{last:?}");
        driven.shard.submit_accept(listener, 2).unwrap();
        driven.until(|events| events.iter().any(|one| one.tag == 2));
        let refused = driven.events.iter().find(|one| one.tag == 2).unwrap();
        assert!(matches!(refused.event, Event::Failed(Error::Stopped)) && !refused.more, "{refused:?}");
        drop(clients);
    });
}

#[test]
fn submitted_accepts_wait_while_a_listener_pauses() {
    on_typical_backends(|config| {
        let mut driven = Driven::new(config);
        let listener = driven.shard.listen(anywhere()).unwrap();
        let address = driven.shard.local_addr(listener).unwrap();
        driven.shard.pause_accepting(listener).unwrap();
        driven.shard.submit_accept(listener, 1).unwrap();
        let _client = peer::TcpStream::connect(address).unwrap();
        driven.shard.submit_timeout(A_WHILE, 2).unwrap();
        driven.until(|events| events.iter().any(|one| one.tag == 2));
        assert!(driven.events.iter().all(|one| one.tag != 1), "{:?}", driven.events);
        driven.shard.resume_accepting(listener).unwrap();
        driven.until(|events| events.iter().any(|one| one.tag == 1));
    });
}

// Not on Windows: it has no Unix sockets with completions.
#[cfg(unix)]
#[test]
fn a_unix_listener_stops_in_the_same_way() {
    on_typical_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        check(config, async {
            let path = folder.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            let _one = UnixStream::connect(&path).await.unwrap();
            listener.accept().await.unwrap();
            let _two = UnixStream::connect(&path).await.unwrap();
            let _three = UnixStream::connect(&path).await.unwrap();
            listener.stop_accepting().await;
            let mut taken = 1;
            while listener.next().await.unwrap().is_some() {
                taken += 1;
            }
            assert_eq!(taken, anabranch::counters().unwrap().accepts);
        });
    });
}

/// Clients that connect as fast as they can, each for one byte, until told to stop or refused. How many were served,
/// and how many connected and were not.
fn hurry(
    address: SocketAddr,
    stop: &Arc<AtomicBool>,
    connects_max: usize,
) -> thread::JoinHandle<(usize, usize)> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let (mut served, mut lost) = (0, 0);
        for _ in 0..connects_max {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let Ok(mut stream) = std::net::TcpStream::connect(address) else { break };
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            match stream.read(&mut [0]) {
                Ok(1) => served += 1,
                other => {
                    eprintln!("lost: {other:?}");
                    lost += 1;
                }
            }
        }
        (served, lost)
    })
}

async fn greet(mut stream: TcpStream) -> io::Result<()> {
    stream.send("x").await?;
    stream.close().await
}

/// Serves all that comes to these listeners until there is no more; how many.
async fn serve_all(listeners: Vec<TcpListener>, served: Arc<AtomicUsize>) -> io::Result<()> {
    let mut tasks = Vec::new();
    for listener in listeners {
        let served = Arc::clone(&served);
        tasks.push(spawn(async move {
            let mut greetings = VecDeque::new();
            while let Some((stream, _)) = listener.next().await? {
                served.fetch_add(1, Ordering::SeqCst);
                greetings.push_back(spawn(greet(stream)));
            }
            for greeting in greetings {
                // A client may have gone meanwhile.
                let _ = greeting.await;
            }
            listener.close().await;
            io::Result::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// A generation of servers on given sockets; it serves until `stop`.
struct Generation {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl Generation {
    fn start(
        config: &Config,
        sockets: ListeningSockets,
        shards: usize,
        distribution: Distribution,
    ) -> Generation {
        let parts: Vec<_> = sockets.spread(shards, distribution).unwrap().into_iter().map(Some).collect();
        let parts = Arc::new(Mutex::new(parts));
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopping, serving) = (Arc::clone(&stop), Arc::clone(&served));
        let runtime = Runtime::builder().shards(shards).config(config.clone()).start(move |context| {
            let part = parts.lock().unwrap()[context.index()].take().unwrap();
            live(part, Arc::clone(&stopping), Arc::clone(&serving))
        });
        Generation { runtime: runtime.unwrap(), stop, served }
    }

    /// Stops accepting and serves what is left: how many it has served.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        for end in self.runtime.join() {
            end.result.unwrap();
            end.counters.settled().unwrap();
        }
        self.served.load(Ordering::SeqCst)
    }
}

async fn live(part: ShardListeners, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) -> io::Result<()> {
    let listeners: Vec<Rc<TcpListener>> = part.open()?.into_iter().map(Rc::new).collect();
    let mut tasks = Vec::new();
    for listener in &listeners {
        let (listener, served) = (Rc::clone(listener), Arc::clone(&served));
        tasks.push(spawn(async move {
            let mut greetings = Vec::new();
            while let Some((stream, _)) = listener.next().await? {
                served.fetch_add(1, Ordering::SeqCst);
                greetings.push(spawn(greet(stream)));
            }
            for greeting in greetings {
                let _ = greeting.await;
            }
            io::Result::Ok(())
        }));
    }
    while !stop.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(1)).await;
    }
    for listener in &listeners {
        listener.stop_accepting().await;
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Two generations of servers with the same sockets under clients that never rest: each connection is served.
fn replace(
    config: &Config,
    before: usize,
    after: usize,
    distribution: Distribution,
    options: &ListenOptions,
) {
    let sockets = ListeningSockets::bind(anywhere(), before, options).unwrap();
    let address = sockets.local_addr().unwrap();
    let heirs = sockets.duplicate().unwrap();
    let first = Generation::start(config, sockets, before, distribution);
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4).map(|_| hurry(address, &done, 2_000)).collect();
    while first.served.load(Ordering::SeqCst) < 50 {
        thread::yield_now();
    }
    let second = Generation::start(config, ListeningSockets::from_std(heirs).unwrap(), after, distribution);
    let old = first.end();
    let until = second.served.load(Ordering::SeqCst) + 50;
    while second.served.load(Ordering::SeqCst) < until && clients.iter().any(|client| !client.is_finished()) {
        thread::yield_now();
    }
    done.store(true, Ordering::SeqCst);
    let (mut served, mut lost) = (0, 0);
    for client in clients {
        let (these, those) = client.join().unwrap();
        served += these;
        lost += those;
    }
    let new = second.end();
    assert_eq!(lost, 0, "of {} connections", served + lost);
    assert_eq!(served, old + new, "{old} by the first, {new} by the second");
}

#[test]
fn nothing_is_lost_when_one_shard_stops_accepting_under_load() {
    on_real_backends(|config| {
        replace(&config, 1, 1, Distribution::ReusePort, &ListenOptions::default());
    });
}

#[test]
fn nothing_is_lost_when_a_group_stops_accepting_under_load() {
    on_real_backends(|config| {
        for distribution in [Distribution::ReusePort, Distribution::Balanced, Distribution::OneAcceptor] {
            replace(&config, 3, 3, distribution, &ListenOptions::default());
        }
    });
}

#[test]
fn a_group_of_another_size_takes_over_all_sockets() {
    on_real_backends(|config| {
        for (before, after) in [(3, 2), (2, 3), (4, 1)] {
            for distribution in [Distribution::Balanced, Distribution::OneAcceptor] {
                replace(&config, before, after, distribution, &ListenOptions::default());
            }
        }
    });
}

#[test]
fn shards_may_share_one_socket() {
    on_real_backends(|config| {
        let mut options = ListenOptions::default();
        options.reuse_port = false;
        replace(&config, 3, 2, Distribution::Balanced, &options);
    });
}

#[test]
fn a_shard_that_stops_gets_what_the_others_were_handing_over() {
    on_real_backends(|config| {
        for round in 0..5 {
            let sockets = ListeningSockets::bind(anywhere(), 1, &ListenOptions::default()).unwrap();
            let address = sockets.local_addr().unwrap();
            let parts = sockets.spread(3, Distribution::OneAcceptor).unwrap();
            let parts: Mutex<Vec<_>> = Mutex::new(parts.into_iter().map(Some).collect());
            let served = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&served);
            let runtime = Runtime::builder().shards(3).config(config.clone()).start(move |context| {
                let part = parts.lock().unwrap()[context.index()].take().unwrap();
                let (served, index) = (Arc::clone(&counted), context.index());
                async move {
                    let listeners = part.open()?;
                    if index > 0 {
                        // The others leave one after the other, while connections are on their way to them.
                        let listener = &listeners[0];
                        while served.load(Ordering::SeqCst) < 40 * index {
                            let next = timeout(Duration::from_millis(1), listener.next()).await;
                            if let Ok(Ok(Some((stream, _)))) = next {
                                served.fetch_add(1, Ordering::SeqCst);
                                greet(stream).await?;
                            }
                        }
                        listener.stop_accepting().await;
                    }
                    serve_all(listeners, served).await
                }
            });
            let runtime = runtime.unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let clients: Vec<_> = (0..4).map(|_| hurry(address, &done, 100)).collect();
            let served_clients: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
            runtime.stop();
            drop(runtime);
            assert_eq!(served_clients, [(100, 0); 4], "round {round}");
            assert_eq!(served.load(Ordering::SeqCst), 400);
        }
    });
}

#[test]
fn what_waits_in_the_mailbox_of_a_shard_that_stops_is_served() {
    on_real_backends(|config| {
        let sockets = ListeningSockets::bind(anywhere(), 1, &ListenOptions::default()).unwrap();
        let address = sockets.local_addr().unwrap();
        let parts = sockets.spread(2, Distribution::OneAcceptor).unwrap();
        let parts: Mutex<Vec<_>> = Mutex::new(parts.into_iter().map(Some).collect());
        let (handed, here) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (told, open) = (Arc::clone(&handed), Arc::clone(&here));
        let runtime = Runtime::builder().shards(2).config(config).start(move |context| {
            let part = parts.lock().unwrap()[context.index()].take().unwrap();
            let (handed, here) = (Arc::clone(&told), Arc::clone(&open));
            async move {
                let listener = part.open()?.remove(0);
                if context.index() == 0 {
                    // Every second connection goes to the other one.
                    let mut kept = Vec::new();
                    while anabranch::counters()?.handed_over < 2 {
                        let next = timeout(Duration::from_millis(1), listener.accept()).await;
                        kept.extend(next.and_then(|accepted| accepted));
                    }
                    handed.store(2, Ordering::SeqCst);
                    return Ok(());
                }
                here.store(true, Ordering::SeqCst);
                // The shard stands still, so what comes lies in its mailbox.
                while handed.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
                listener.stop_accepting().await;
                for _ in 0..2 {
                    let (stream, _) = listener.next().await?.expect("it was on its way");
                    greet(stream).await?;
                }
                assert!(listener.next().await?.is_none());
                Ok(())
            }
        });
        let runtime = runtime.unwrap();
        while !here.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let _clients: Vec<_> = (0..4).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        for end in runtime.join() {
            end.result.unwrap();
        }
    });
}

#[test]
fn what_is_wrong_with_an_address_is_told_before_there_are_shards() {
    let taken = std::net::TcpListener::bind(anywhere()).unwrap();
    let address = taken.local_addr().unwrap();
    let refused = ListeningSockets::bind(address, 2, &ListenOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    let nobody = ListeningSockets::bind(anywhere(), 0, &ListenOptions::default()).unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::InvalidInput);
    assert_eq!(ListeningSockets::from_std(Vec::new()).unwrap_err().kind(), ErrorKind::InvalidInput);
    let sockets = ListeningSockets::from_std(vec![taken]).unwrap();
    assert_eq!(sockets.spread(0, Distribution::Balanced).unwrap_err().kind(), ErrorKind::InvalidInput);
}
