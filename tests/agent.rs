//! Agents: connections that are made from here, what becomes of attempts, and each end told once.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{
    Admission, Agent, AgentBuilder, Closed, Conn, ConnId, ConnectError, Failure, Handler, Peer, Phase,
    Policy, Reconnect, Server, Shards, Target, Trouble,
};
use anabranch::{Lease, Runtime, random, sleep, timeout};
use common::net::{Random, anywhere, check, nobody, on_real_backends, on_typical_backends};
use common::peer;
use socket2::Domain;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(25);
const MILLISECOND: Duration = Duration::from_millis(1);

/// What was told of one id.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Entry {
    accepted: usize,
    closed: Vec<&'static str>,
    /// Attempts that failed: whether another one followed.
    failed: Vec<bool>,
}

/// A handler that writes down what it is told, and does what its peer says.
#[derive(Clone, Default)]
struct Keeper {
    all: Arc<Mutex<BTreeMap<u64, Entry>>>,
    tags: Arc<Mutex<Vec<u64>>>,
    refuses: Arc<AtomicBool>,
    prepared: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Keeper {
    fn note(&self, id: ConnId, note: impl FnOnce(&mut Entry)) {
        note(self.all.lock().unwrap().entry(id.as_u64()).or_default());
    }

    fn entry(&self, id: ConnId) -> Entry {
        self.all.lock().unwrap().get(&id.as_u64()).cloned().unwrap_or_default()
    }

    fn closed(&self) -> usize {
        self.all.lock().unwrap().values().map(|entry| entry.closed.len()).sum()
    }

    fn accepted(&self) -> usize {
        self.all.lock().unwrap().values().map(|entry| entry.accepted).sum()
    }
}

impl Handler for Keeper {
    type State = ();

    fn on_prepare_connect(&self, _: &dyn anabranch::os::Lend) -> io::Result<()> {
        self.prepared.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn on_accept(&self, peer: &Peer) -> Admission<()> {
        self.tags.lock().unwrap().push(peer.target.as_ref().expect("it was made from here").tagged());
        if self.refuses.load(Ordering::Relaxed) {
            return Admission::Refuse;
        }
        self.note(peer.id, |entry| entry.accepted += 1);
        Admission::Accept(())
    }

    async fn on_receive(&self, _: &mut Conn, message: Lease) -> Result<(), Failure> {
        match message[0] {
            b'e' => Err("it was asked to fail".into()),
            b'p' => panic!("it was asked to panic"),
            _ => Ok(()),
        }
    }

    fn on_close(&self, conn: &mut Conn, closed: &Closed) {
        self.note(conn.id(), |entry| entry.closed.push(closed.reason.name()));
    }

    fn on_error(&self, trouble: &Trouble<'_>) {
        let Trouble::Connect { id, again, .. } = trouble else { panic!("{trouble:?}") };
        self.note(*id, |entry| entry.failed.push(again.is_some()));
    }

    fn on_shutdown(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

fn here() -> Shards {
    Shards::current().unwrap()
}

/// Waits until something is so.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            sleep(MILLISECOND).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("it never came that {what}"));
}

async fn ended(agent: &Agent) {
    agent.shutdown(Duration::ZERO);
    timeout(PATIENCE, agent.ended()).await.expect("the agent ends");
    assert_eq!((agent.phase(), agent.targets()), (Phase::Ended, 0));
}

/// A server that sends back what it gets.
fn echo_at(address: SocketAddr) -> io::Result<Server> {
    Server::builder().listen(address).serve(here(), async |conn: &mut Conn| {
        while let Some(bytes) = conn.recv().await? {
            conn.send(bytes).await?;
        }
        Ok(())
    })
}

fn echo() -> (Server, SocketAddr) {
    let server = echo_at(anywhere()).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

fn soon() -> Reconnect {
    Reconnect::every(Duration::from_millis(5))
}

/// An agent whose handler is a keeper.
fn agent(builder: AgentBuilder) -> (Agent, Keeper) {
    let keeper = Keeper::default();
    (builder.start(here(), keeper.clone()).unwrap(), keeper)
}

#[test]
fn a_connection_is_made_used_and_ended_by_its_id() {
    on_typical_backends(|config| {
        check(config, async {
            let (server, address) = echo();
            let (agent, keeper) = agent(Agent::builder());
            let connecting = agent.connect(Target::from(address).tag(7)).unwrap();
            let id = connecting.id();
            assert_eq!((connecting.await.unwrap(), agent.targets()), (id, 1));
            agent.send(id, "hello").unwrap();
            until("it answers", || agent.totals().bytes_in == 5).await;
            agent.disconnect(id).unwrap();
            until("it ends", || keeper.closed() == 1).await;
            let expected = Entry { accepted: 1, closed: vec!["disconnected"], failed: vec![] };
            assert_eq!(keeper.entry(id), expected);
            assert_eq!(*keeper.tags.lock().unwrap(), [7]);
            assert_eq!(keeper.prepared.load(Ordering::Relaxed), usize::from(cfg!(unix)));
            until("its place is free", || agent.targets() == 0).await;
            ended(&agent).await;
            assert_eq!(keeper.ended.load(Ordering::Relaxed), 1);
            server.shutdown(Duration::ZERO);
        });
    });
}

#[test]
fn a_refused_attempt_is_told_and_counted_and_has_no_close() {
    on_typical_backends(|config| {
        check(config, async {
            let (agent, keeper) = agent(Agent::builder());
            let connecting = agent.connect(nobody()).unwrap();
            let id = connecting.id();
            match connecting.await {
                Err(ConnectError::Failed(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused)
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(keeper.entry(id), Entry { failed: vec![false], ..Entry::default() });
            let totals = agent.totals();
            assert_eq!((totals.connects_failed, totals.opened, totals.closed_total()), (1, 0, 0));
            ended(&agent).await;
        });
    });
}

#[test]
fn an_attempt_that_takes_too_long_is_told_as_that() {
    on_typical_backends(|config| {
        check(config, async {
            // What nobody accepts fills its backlog, and those that come then hear nothing.
            let listener = peer::FreshSocket::new(Domain::IPV4).unwrap();
            listener.bind(anywhere()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let (agent, keeper) = agent(Agent::builder().connect_timeout(Duration::from_millis(200)));
            let attempts: Vec<_> = (0..5).map(|_| agent.connect(address).unwrap()).collect();
            let mut late = 0;
            for attempt in attempts {
                let id = attempt.id();
                match timeout(PATIENCE, attempt).await.expect("it ends") {
                    Ok(_) => {}
                    Err(ConnectError::Failed(error)) => {
                        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
                        assert_eq!(keeper.entry(id).failed, [false]);
                        late += 1;
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            assert!(late > 0, "some hear nothing");
            assert_eq!(agent.totals().connects_failed, late);
            ended(&agent).await;
        });
    });
}

#[test]
fn attempts_are_made_again_until_the_last_one() {
    on_typical_backends(|config| {
        check(config, async {
            let reconnect = at_most(3);
            let (agent, keeper) = agent(Agent::builder().reconnect(reconnect));
            let connecting = agent.connect(nobody()).unwrap();
            let id = connecting.id();
            assert!(matches!(connecting.await, Err(ConnectError::Failed(_))));
            assert_eq!(keeper.entry(id).failed, [true, true, false]);
            assert_eq!((agent.totals().connects_failed, agent.totals().errors), (3, 3));
            ended(&agent).await;
        });
    });
}

/// So many attempts, with short pauses of chance.
fn at_most(attempts: u32) -> Reconnect {
    let mut reconnect = Reconnect::new();
    (reconnect.first, reconnect.max) = (MILLISECOND, Duration::from_millis(8));
    reconnect.attempts_max = Some(attempts);
    reconnect
}

#[test]
fn a_server_that_restarts_is_found_again_under_the_same_id() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut server, address) = echo();
            let (agent, keeper) = agent(Agent::builder().reconnect(soon()));
            let id = agent.connect(address).unwrap().await.unwrap();
            for round in 1..=2 {
                agent.send(id, "x").unwrap();
                until("it answers", || agent.totals().messages_in > 0).await;
                server.shutdown(Duration::ZERO);
                server.ended().await;
                until("the end is told", || keeper.entry(id).closed.len() == round).await;
                until("attempts fail", || !keeper.entry(id).failed.is_empty()).await;
                server = loop {
                    match echo_at(address) {
                        Ok(server) => break server,
                        Err(_) => sleep(MILLISECOND).await,
                    }
                };
                until("it is there again", || keeper.entry(id).accepted == round + 1).await;
            }
            assert!(keeper.entry(id).failed.iter().all(|again| *again));
            // It ends for good when we want it to.
            agent.disconnect(id).unwrap();
            until("it is over", || agent.targets() == 0).await;
            let entry = keeper.entry(id);
            assert_eq!((entry.accepted, entry.closed.len(), entry.closed[2]), (3, 3, "disconnected"));
            ended(&agent).await;
            server.shutdown(Duration::ZERO);
        });
    });
}

#[test]
fn what_is_being_made_can_be_called_off() {
    on_typical_backends(|config| {
        check(config, async {
            let reconnect = Reconnect::every(Duration::from_secs(3600));
            let (agent, keeper) = agent(Agent::builder().reconnect(reconnect));
            let attempts: Vec<_> = (0..3).map(|_| agent.connect(nobody()).unwrap()).collect();
            until("all wait for the next attempt", || agent.totals().connects_failed == 3).await;
            agent.disconnect(attempts[0].id()).unwrap();
            for (index, attempt) in attempts.into_iter().enumerate() {
                if index == 1 {
                    // The second by its like, the third by the end of all.
                    agent.disconnect_all().unwrap();
                }
                assert!(matches!(attempt.await, Err(ConnectError::Cancelled)), "{index}");
            }
            let last = agent.connect(nobody()).unwrap();
            agent.shutdown(Duration::from_secs(3600));
            assert!(matches!(last.await, Err(ConnectError::Cancelled)));
            timeout(PATIENCE, agent.ended()).await.expect("nothing is waited for");
            assert!(matches!(agent.connect(nobody()), Err(ConnectError::Ended)));
            assert_eq!((keeper.closed(), agent.targets()), (0, 0));
        });
    });
}

#[test]
fn no_more_connections_are_made_than_the_policy_allows_and_none_that_the_handler_refuses() {
    on_typical_backends(|config| {
        check(config, async {
            let (server, address) = echo();
            let mut policy = Policy::new();
            policy.connections_max = 2;
            let (agent, keeper) = agent(Agent::builder().policy(policy));
            let first = agent.connect(address).unwrap().await.unwrap();
            let second = agent.connect(address).unwrap();
            assert!(matches!(agent.connect(address), Err(ConnectError::Limit(2))));
            agent.disconnect(first).unwrap();
            until("there is room", || agent.targets() < 2).await;
            second.await.unwrap();
            keeper.refuses.store(true, Ordering::Relaxed);
            assert!(matches!(agent.connect(address).unwrap().await, Err(ConnectError::Refused)));
            assert_eq!((agent.totals().refused, keeper.accepted()), (1, 2));
            ended(&agent).await;
            assert_eq!(keeper.closed(), 2);
            server.shutdown(Duration::ZERO);
        });
    });
}

#[test]
fn an_id_that_was_kept_too_long_names_nobody() {
    on_typical_backends(|config| {
        check(config, async {
            let (server, address) = echo();
            let (agent, keeper) = agent(Agent::builder());
            let mut ids = Vec::new();
            for round in 1..=4 {
                let id = agent.connect(address).unwrap().await.unwrap();
                for old in &ids {
                    agent.send(*old, "e").unwrap();
                    agent.disconnect(*old).unwrap();
                }
                until("it is counted", || agent.totals().undelivered == (0..round as u64).sum()).await;
                assert!(!ids.contains(&id));
                ids.push(id);
                agent.send(id, "x").unwrap();
                let before = agent.totals().messages_in;
                until("it answers", || agent.totals().messages_in > before).await;
                assert_eq!((agent.connections(), keeper.closed()), (1, round - 1));
                agent.disconnect(id).unwrap();
                until("it ends", || keeper.closed() == round).await;
            }
            ended(&agent).await;
            server.shutdown(Duration::ZERO);
        });
    });
}

#[test]
fn a_peer_that_takes_nothing_holds_no_end_up() {
    on_typical_backends(|config| {
        // What is queued would have an hour.
        let config = config.with_limits(|limits| limits.close_flush_ms = 3_600_000);
        check(config, async {
            let silent = peer::TcpListener::bind(anywhere()).unwrap();
            let agent = Agent::builder().serve(here(), async |conn: &mut Conn| {
                conn.send(vec![0; 16 << 20]).await?;
                Ok(())
            });
            let agent = agent.unwrap();
            agent.connect(silent.local_addr().unwrap()).unwrap().await.unwrap();
            until("it is sent", || agent.totals().messages_out == 1).await;
            ended(&agent).await;
            assert_eq!(agent.totals().closed_total(), 1);
        });
    });
}

#[test]
fn a_local_address_may_be_given() {
    on_typical_backends(|config| {
        check(config, async {
            let (server, address) = echo();
            let (agent, _) = agent(Agent::builder());
            let from = SocketAddr::from(([127, 0, 0, 1], 0));
            agent.connect(Target::from(address).local(from)).unwrap().await.unwrap();
            let of_other_family = Target::from(address).local("[::1]:0".parse().unwrap());
            let error = agent.connect(of_other_family).unwrap().await.unwrap_err();
            assert!(
                matches!(&error, ConnectError::Failed(error) if error.kind() == io::ErrorKind::InvalidInput),
                "{error:?}"
            );
            let locals = agent.gather(|session| session.local_addr()).await.unwrap();
            assert_eq!(locals.len(), 1);
            assert_eq!(locals[0].unwrap().ip(), from.ip());
            ended(&agent).await;
            server.shutdown(Duration::ZERO);
        });
    });
}

// Not on Windows: it has no Unix sockets with completions.
#[cfg(unix)]
#[test]
fn a_unix_socket_is_a_target_too() {
    on_typical_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        check(config, async {
            let path = folder.path().join("socket");
            let server = Server::builder().listen_unix(&path).serve(here(), async |conn: &mut Conn| {
                while let Some(bytes) = conn.recv().await? {
                    conn.send(bytes).await?;
                }
                Ok(())
            });
            let server = server.unwrap();
            let (agent, keeper) = agent(Agent::builder());
            let id = agent.connect_unix(&path).unwrap().await.unwrap();
            agent.send(id, "x").unwrap();
            until("it answers", || agent.totals().messages_in > 0).await;
            agent.disconnect(id).unwrap();
            until("it ends", || keeper.closed() == 1).await;
            let nothing = agent.connect_unix(folder.path().join("nothing")).unwrap().await;
            assert!(matches!(nothing, Err(ConnectError::Failed(_))), "{nothing:?}");
            ended(&agent).await;
            server.shutdown(Duration::ZERO);
        });
    });
}

/// What a peer of the stress does, chosen by chance: it answers, ends in order, resets, or makes the handler fail.
async fn capricious(conn: &mut Conn) -> Result<(), Failure> {
    let choice = random();
    sleep(Duration::from_micros(choice % 5000)).await;
    match choice % 6 {
        0 => return Ok(()),
        // The handler's error ends this side; the agent sees an end.
        1 => return Err("enough".into()),
        2 => conn.send("e").await?,
        3 => conn.send("p").await?,
        4 => conn.send("x").await?,
        _ => {}
    }
    while conn.recv().await?.is_some() {}
    Ok(())
}

#[test]
fn each_connection_ends_once_whatever_ends_it() {
    const ROUNDS: usize = 120;
    on_typical_backends(|config| {
        check(config, async {
            let server = Server::builder().listen(anywhere()).serve(here(), capricious).unwrap();
            let resets = peer::TcpListener::bind(anywhere()).unwrap().adopt().unwrap();
            let (address, resetting) = (server.addresses()[0], resets.local_addr().unwrap());
            let reset = anabranch::spawn(async move {
                while let Ok((stream, _)) = resets.accept().await {
                    stream.abort();
                }
            });
            let (agent, keeper) = agent(Agent::builder().reconnect(at_most(2)));
            let mut chance = Random(random() | 1);
            let mut ids = Vec::new();
            for round in 0..ROUNDS {
                let target = [address, address, resetting, nobody()][chance.below(4) as usize];
                let connecting = agent.connect(target).unwrap();
                ids.push(connecting.id());
                let other = ids[chance.below(ids.len() as u64) as usize];
                match chance.below(5) {
                    0 => agent.disconnect(other).unwrap(),
                    1 => agent.send(other, "x").unwrap(),
                    2 => drop(connecting.await),
                    3 if round > ROUNDS / 2 => agent.disconnect_all().unwrap(),
                    _ => sleep(Duration::from_micros(chance.below(1000))).await,
                }
            }
            // Some are there yet, some are being made.
            ended(&agent).await;
            let all = keeper.all.lock().unwrap().clone();
            for (id, entry) in &all {
                assert_eq!(entry.accepted, entry.closed.len(), "{id}: {entry:?}");
            }
            let totals = agent.totals();
            assert_eq!((totals.live, totals.handshaking), (0, 0));
            assert_eq!(
                (totals.opened, totals.closed_total()),
                (keeper.accepted() as u64, keeper.closed() as u64)
            );
            let failed: usize = all.values().map(|entry| entry.failed.len()).sum();
            assert_eq!(totals.connects_failed, failed as u64);
            assert_eq!(keeper.ended.load(Ordering::Relaxed), 1);
            server.shutdown(Duration::ZERO);
            server.ended().await;
            let mut reset = reset;
            reset.abort();
        });
    });
}

#[test]
fn a_thousand_connections_of_one_agent_are_spread_over_its_shards_and_waited_for_by_a_thread() {
    const CONNECTIONS: usize = 1000;
    on_real_backends(|config| {
        let start = |name: &str, shards| {
            let settings = Runtime::builder().shards(shards).name(name).config(config.clone());
            let started = settings.start(|group| async move {
                group.stopped().await;
                Ok(())
            });
            started.expect("shards")
        };
        let (serving, calling) = (start("serving", 1), start("calling", 2));
        let server = Server::builder().listen(anywhere()).serve(&serving, async |conn: &mut Conn| {
            while let Some(bytes) = conn.recv().await? {
                conn.send(bytes).await?;
            }
            Ok(())
        });
        let server = server.unwrap();
        let answered = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&answered);
        let agent = Agent::builder().serve(&calling, async move |conn: &mut Conn| {
            conn.pull(100);
            conn.send(conn.id().as_u64().to_le_bytes().to_vec()).await?;
            let answer = conn.fetch(8).await?.ok_or("it ended")?;
            assert_eq!(&*answer, conn.id().as_u64().to_le_bytes());
            counted.fetch_add(1, Ordering::Relaxed);
            while conn.recv().await?.is_some() {}
            Ok(())
        });
        let agent = agent.unwrap();
        let name = format!("localhost:{}", server.addresses()[0].port());
        let attempts = (0..CONNECTIONS).map(|index| match index {
            0 => agent.connect(&*name).unwrap(),
            _ => agent.connect(server.addresses()[0]).unwrap(),
        });
        let attempts: Vec<_> = attempts.collect();
        for attempt in attempts {
            attempt.wait().unwrap();
        }
        while answered.load(Ordering::Relaxed) < CONNECTIONS {
            std::thread::sleep(MILLISECOND);
        }
        let opened: Vec<u64> = agent.snapshots().iter().map(|snapshot| snapshot.opened).collect();
        assert_eq!(opened, [CONNECTIONS as u64 / 2; 2]);
        agent.shutdown(Duration::ZERO);
        agent.wait();
        assert_eq!(agent.totals().closed_for("drained"), CONNECTIONS as u64);
        server.shutdown(Duration::ZERO);
        server.wait();
        calling.stop();
        calling.join().into_iter().for_each(|end| end.counters.settled().unwrap());
        // Its shards have gone, and say so.
        assert!(matches!(agent.connect(nobody()), Err(ConnectError::Ended)));
        serving.stop();
    });
}

#[test]
fn whoever_waits_for_a_connection_hears_of_the_end_of_its_shard() {
    on_real_backends(|config| {
        let settings = Runtime::builder().shards(1).config(config);
        let runtime = settings.start(|group| async move {
            group.stopped().await;
            Ok(())
        });
        let runtime = runtime.unwrap();
        let reconnect = Reconnect::every(Duration::from_secs(3600));
        let agent = Agent::builder().reconnect(reconnect).start(&runtime, Keeper::default()).unwrap();
        let connecting = agent.connect(nobody()).unwrap();
        runtime.stop();
        let ends = runtime.join();
        assert!(ends[0].result.is_ok());
        assert!(matches!(connecting.wait(), Err(ConnectError::Ended)));
        agent.wait();
    });
}

#[test]
fn settings_that_nothing_can_live_with_are_refused() {
    check(anabranch::Config::new(), async {
        let mut zero = Reconnect::new();
        zero.first = Duration::ZERO;
        let mut never = Reconnect::new();
        never.attempts_max = Some(0);
        let builders = [
            Agent::builder().reconnect(zero),
            Agent::builder().reconnect(never),
            Agent::builder().connect_timeout(Duration::ZERO),
        ];
        for builder in builders {
            let error = builder.start(here(), Keeper::default()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
        let (agent, _) = agent(Agent::builder());
        let connecting = agent.connect(nobody()).unwrap();
        assert!(matches!(connecting.wait(), Err(ConnectError::OnShard)), "it would wait for itself");
        ended(&agent).await;
    });
}
