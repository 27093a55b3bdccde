//! Servers among clients that mean no good: slow ones of every kind, resets, and a shutdown with everybody still there.

use crate::common::net::{Random, raise_descriptors};
use crate::slow_readers::{GOOD, best_p99, echo};
use crate::tools::{Helper, Run, resident, role, scenario, trim, wait_until};
use anabranch::codec::FixedSize;
use anabranch::component::{Admission, Builder, Closed, Conn, Failure, Handler, Peer, Policy, Server};
use anabranch::{Lease, Runtime};
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A message.
const BYTES: usize = 64;
const PATIENCE: Duration = Duration::from_secs(120);

/// Echoes messages; the first one is the handshake. Counts the ends that it was told.
struct Echo(Arc<AtomicUsize>);

impl Handler for Echo {
    type State = bool;

    fn on_accept(&self, _: &Peer) -> Admission<bool> {
        Admission::Accept(false)
    }

    async fn on_handshake(&self, conn: &mut Conn<bool>) -> Result<(), Failure> {
        let hello = conn.recv().await?.ok_or("it left without a hello")?;
        Ok(conn.send(hello).await?)
    }

    async fn on_receive(&self, conn: &mut Conn<bool>, message: Lease) -> Result<(), Failure> {
        Ok(conn.send(message).await?)
    }

    fn on_close(&self, conn: &mut Conn<bool>, _: &Closed) {
        assert!(!std::mem::replace(&mut conn.state, true), "each end is told once");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A server on shards of its own.
struct Serving {
    runtime: Runtime,
    server: Server,
    ends: Arc<AtomicUsize>,
}

impl Serving {
    fn start(run: &Run, policy: Policy) -> Serving {
        Serving::with(run, Server::builder().policy(policy).codec(|| FixedSize::new(BYTES)))
    }

    fn with(run: &Run, builder: Builder) -> Serving {
        let settings = Runtime::builder().shards(1).config(run.config.clone());
        let runtime = settings.start(|group| async move {
            group.stopped().await;
            Ok(())
        });
        let (runtime, ends) = (runtime.expect("shards"), Arc::new(AtomicUsize::new(0)));
        let builder = builder.listen("127.0.0.1:0".parse().unwrap());
        let server = builder.start(&runtime, Echo(Arc::clone(&ends))).expect("a server");
        Serving { runtime, server, ends }
    }

    fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    /// Ends it and checks that what was opened has been closed, each with one event.
    fn end(self, run: &Run) {
        self.server.shutdown(Duration::ZERO);
        self.server.wait();
        let totals = self.server.totals();
        assert_eq!(totals.opened, totals.closed_total(), "{totals:?}");
        assert_eq!(totals.opened as usize, self.ends.load(Ordering::Relaxed));
        assert_eq!((totals.live, totals.handshaking, totals.errors), (0, 0, 0));
        self.runtime.stop();
        for end in self.runtime.join() {
            end.result.expect("the shard ends well");
            run.check(&end.counters, 0);
        }
    }
}

/// What the process with the clients is told: how many of what, and where.
fn play(role: &str) {
    let words: Vec<_> = role.split(' ').collect();
    let [kind, address, count] = words[..] else { panic!("{role:?} is no role") };
    let (address, count) = (address.parse().unwrap(), count.parse().unwrap());
    raise_descriptors();
    match kind {
        "slow" => be_slow(address, count),
        "stay" => stay(address, count),
        other => panic!("{other:?} is no role"),
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).unwrap();
    stream
}

/// A third says hello and nothing more, a third says it byte by byte, a third talks byte by byte; once a second.
fn be_slow(address: SocketAddr, count: usize) {
    let mut clients: Vec<_> = (0..count).map(|_| connect(address)).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        if index % 3 != 1 {
            client.write_all(&[b'h'; BYTES]).unwrap();
        }
    }
    println!("connected: {count}");
    let over = std::thread::spawn(|| std::io::stdin().lock().lines().next());
    while !over.is_finished() {
        for (index, client) in clients.iter_mut().enumerate() {
            if index % 3 != 0 {
                // Those that were ended are written to in vain.
                let _ = client.write(b"x");
            }
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Half of them say something again and again, half of them nothing, until they are told.
fn stay(address: SocketAddr, count: usize) {
    let mut clients: Vec<_> = (0..count).map(|_| connect(address)).collect();
    for client in &mut clients {
        client.write_all(&[b'h'; BYTES]).unwrap();
    }
    for client in &mut clients {
        client.read_exact(&mut [0; BYTES]).expect("the echo of the hello");
    }
    println!("connected: {count}");
    let over = std::thread::spawn(|| std::io::stdin().lock().lines().next());
    while !over.is_finished() {
        for client in clients.iter_mut().step_by(2) {
            if client.write_all(&[b'a'; BYTES]).is_ok() {
                let _ = client.read(&mut [0; BYTES]);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// As many clients as the limits of descriptors allow.
fn clients_of(run: &Run, small: usize, full: usize) -> usize {
    let (count, most) = (run.size(small, full), raise_descriptors().saturating_sub(500));
    if count > most {
        run.say(format_args!("NOT COVERED: {count} clients; the limit of descriptors allows {most}"));
    }
    count.min(most)
}

fn good_clients(address: SocketAddr) -> Vec<TcpStream> {
    let connected = (0..GOOD).map(|_| {
        let client = connect(address);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    });
    connected.collect()
}

#[test]
fn each_kind_of_slow_client_is_ended_by_its_own_limit_and_slows_nobody_down() {
    if let Some(role) = role() {
        return play(&role);
    }
    scenario("slow clients", |run| {
        let count = clients_of(run, 300, 9_999) / 3 * 3;
        let mut policy = Policy::new();
        policy.handshake_timeout = Some(Duration::from_secs(run.size(2, 10) as u64));
        policy.message_timeout = Some(Duration::from_secs(run.size(2, 10) as u64));
        policy.idle_timeout = Some(Duration::from_secs(run.size(3, 15) as u64));
        let serving = Serving::start(run, policy);
        let (address, full) = (serving.address(), run.full);
        let mut good = good_clients(address);
        let before = best_p99(3, || echo(&mut good, full));
        let test = "hostile::each_kind_of_slow_client_is_ended_by_its_own_limit_and_slows_nobody_down";
        let mut helper = Helper::start(test, &format!("slow {address} {count}"));
        helper.hear("connected");
        let closed = |name: &str| serving.server.totals().closed_for(name) as usize;
        let mut worst_best = Duration::ZERO;
        let names = ["idle_timeout", "handshake_timeout", "message_timeout"];
        wait_until("all of them are ended", PATIENCE, || {
            worst_best = worst_best.max(best_p99(3, || echo(&mut good, full)));
            names.iter().all(|name| closed(name) == count / 3)
        });
        run.say(format_args!(
            "{count} clients, a third each for {names:?}; p99 of good ones {before:.0?} before, {worst_best:.0?} at worst"
        ));
        let times = if full { 2 } else { 20 };
        let bound = before * times + Duration::from_millis(if full { 0 } else { 20 });
        assert!(worst_best < bound, "{worst_best:?} among slow clients, {before:?} without");
        helper.tell("over");
        helper.end();
        assert_eq!(serving.server.connections(), GOOD);
        drop(good);
        serving.end(run);
    });
}

#[test]
fn a_storm_of_resets_leaves_nothing_behind() {
    scenario("storm of resets", |run| {
        let serving = Serving::start(run, Policy::new());
        let (address, mut random) = (serving.address(), Random(run.seed | 1));
        let rounds = run.size(500, 20_000);
        for round in 0..rounds {
            let mut client = connect(address);
            let bytes = random.below(3 * BYTES as u64) as usize;
            // The server may have ended it first.
            let _ = client.write_all(&vec![b'r'; bytes]);
            if random.below(2) == 0 {
                let _ = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
            }
            drop(client);
            run.progress(round, rounds);
        }
        wait_until("all of them are gone", PATIENCE, || {
            let totals = serving.server.totals();
            totals.live == 0 && totals.opened > 0
        });
        serving.end(run);
    });
}

#[test]
fn readers_that_never_read_cost_no_more_than_the_cap_and_stall() {
    scenario("readers that never read", |run| {
        let count = clients_of(run, 100, 2_000);
        let mut policy = Policy::new();
        policy.write_stall_timeout = Some(Duration::from_secs(run.size(1, 5) as u64));
        let mut config = run.config.clone();
        config.limits.outbound_bytes_total_max = 16 << 20;
        config.limits.buffers = 32;
        let cap = (16 << 20) + 32 * config.limits.buffer_bytes + count * 128 * 1024;
        let settings = Runtime::builder().shards(1).config(config);
        let runtime = settings.start(|group| async move {
            group.stopped().await;
            Ok(())
        });
        let runtime = runtime.expect("shards");
        let pour = async |conn: &mut Conn| -> Result<(), Failure> {
            loop {
                conn.send(vec![b'p'; 16 * 1024]).await?;
            }
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let server =
            Server::builder().policy(policy).listen(address).serve(&runtime, pour).expect("a server");
        trim();
        let before = resident();
        let clients: Vec<_> = (0..count).map(|_| connect(server.addresses()[0])).collect();
        let mut grown_max = 0;
        wait_until("all of them have stalled", PATIENCE, || {
            grown_max = grown_max.max(resident().saturating_sub(before));
            server.totals().closed_for("write_stall") as usize == count
        });
        run.say(format_args!("{count} clients: {grown_max} bytes more at most, the cap is {cap}"));
        assert!(grown_max <= cap, "{grown_max} bytes more; the cap is {cap}");
        drop(clients);
        server.shutdown(Duration::ZERO);
        server.wait();
        runtime.stop();
        for end in runtime.join() {
            run.check(&end.counters, 0);
        }
    });
}

#[test]
fn a_shutdown_ends_everybody_by_its_deadline_with_one_event_each() {
    if let Some(role) = role() {
        return play(&role);
    }
    scenario("shutdown", |run| {
        let count = clients_of(run, 400, 10_000);
        let serving = Serving::start(run, Policy::new());
        let test = "hostile::a_shutdown_ends_everybody_by_its_deadline_with_one_event_each";
        let mut helper = Helper::start(test, &format!("stay {} {count}", serving.address()));
        helper.hear("connected");
        assert_eq!(serving.server.connections(), count);
        let patience = Duration::from_secs(2);
        let start = Instant::now();
        serving.server.shutdown(patience);
        serving.server.wait();
        let took = start.elapsed();
        run.say(format_args!(
            "{count} connections, half of them busy: ended {took:.3?} after a shutdown with {patience:?}"
        ));
        assert!(took >= patience, "they may finish until the deadline");
        let late = Duration::from_millis(if run.full { 100 } else { 5_000 });
        assert!(took <= patience + late, "{took:?} for a shutdown with {patience:?}");
        assert_eq!(serving.ends.load(Ordering::Relaxed), count);
        assert_eq!(serving.server.totals().closed_for("drained") as usize, count);
        helper.tell("over");
        helper.end();
        serving.end(run);
    });
}
