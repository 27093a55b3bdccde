//! Many more clients than the process may have descriptors: some are served, the others wait in the backlog, and
//! nobody spins.

use crate::common::net::anywhere;
use crate::common::net::raise_descriptors;
use crate::tools::{Helper, Run, role, scenario_alone};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Shard, Warning, sleep, spawn, timeout};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use std::cell::Cell;
use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const DESCRIPTORS: u64 = 256;
const CLIENTS: usize = 1000;
/// Connections that are in use all the time.
const OLD: usize = 20;
/// Served connections that end to make room.
const FREED: usize = 100;

#[test]
fn a_thousand_clients_of_a_process_with_few_descriptors_are_all_served_in_the_end() {
    scenario_alone(
        "exhaustion::a_thousand_clients_of_a_process_with_few_descriptors_are_all_served_in_the_end",
        "descriptor exhaustion",
        exhaust,
    );
}

/// The clients are a process of their own, with enough descriptors. This does nothing unless started as such.
#[test]
fn the_clients_of_the_exhausted_process() {
    let Some(address) = role() else { return };
    raise_descriptors();
    clients(address.parse().expect("an address"));
}

fn exhaust(run: &Run) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Before any accept is armed: one that stands in the ring keeps the limit that it began with.
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, hard).expect("the limit may be lowered");
    let warnings = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&warnings);
    let config = run.config.clone().on_warning(move |warning| {
        assert!(matches!(warning, Warning::AcceptPaused { .. }), "{warning:?}");
        count.fetch_add(1, Ordering::Relaxed);
    });
    let shard = Shard::new(config).expect("a shard");
    shard.block_on(timed(async {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let helper = Helper::start("exhaustion::the_clients_of_the_exhausted_process", &address.to_string());
        let taken = Rc::new(Cell::new(0));
        let accepting = spawn(accept_all(listener, Rc::clone(&taken)));
        watch(run, &taken, &warnings, helper).await;
        accepting.await.unwrap();
    }));
    let counters = run.settle(shard);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the limit may be raised again");
    assert_eq!(counters.accepts, CLIENTS as u64);
    let episodes = warnings.load(Ordering::Relaxed) as u64;
    assert_eq!(counters.accept_pauses, episodes, "one warning for each episode");
    run.say(format_args!("{CLIENTS} clients, {DESCRIPTORS} descriptors: all served, in {episodes} episodes"));
}

async fn timed(scenario: impl Future<Output = ()>) {
    timeout(Duration::from_secs(60), scenario).await.expect("the scenario hangs");
}

async fn accept_all(listener: TcpListener, taken: Rc<Cell<usize>>) {
    for _ in 0..CLIENTS {
        let (stream, _) = listener.accept().await.expect("a listener only pauses");
        taken.set(taken.get() + 1);
        spawn(echo(stream)).detach();
    }
}

async fn echo(mut stream: TcpStream) {
    while let Some(bytes) = stream.recv().await.expect("clients end in order") {
        stream.send(bytes).await.expect("clients read");
    }
}

/// The course of the scenario as the server sees it.
async fn watch(run: &Run, taken: &Cell<usize>, warnings: &AtomicUsize, helper: Helper) {
    let helper = anabranch::offload(|| {
        let mut helper = helper;
        helper.hear("connected");
        helper
    });
    let mut helper = helper.await.expect("the clients connect");
    sleep(Duration::from_millis(300)).await;
    let (full, start, used) = (taken.get(), Instant::now(), processor_time());
    assert!((OLD + FREED..CLIENTS).contains(&full), "{full} connections are served");
    assert_eq!(warnings.load(Ordering::Relaxed), 1, "one warning for an episode");
    sleep(Duration::from_secs(if run.full { 5 } else { 1 })).await;
    let share = (processor_time() - used).as_secs_f64() / start.elapsed().as_secs_f64();
    assert_eq!((taken.get(), warnings.load(Ordering::Relaxed)), (full, 1), "nothing has changed");
    assert!(share < 0.10, "{:.1} % of a processor while it waits for descriptors", share * 100.0);
    helper.tell("free");
    // The end of so many is heard one after the other; the descriptor of the first is free soonest.
    let freed = Instant::now();
    while taken.get() == full {
        sleep(Duration::from_millis(1)).await;
        assert!(freed.elapsed() < Duration::from_secs(20), "nobody is accepted any more");
    }
    let recovery = freed.elapsed();
    assert!(recovery < Duration::from_secs(1), "accepting again after {recovery:.1?}");
    let slowest = anabranch::offload(move || {
        let slowest = helper.hear("slowest");
        helper.end();
        slowest
    });
    let slowest = slowest.await.expect("the clients end well");
    run.say(format_args!(
        "{full} served at first, {:.1} % of a processor while exhausted, accepting again after {recovery:.1?}; \
         old connections: slowest echo {slowest} us",
        share * 100.0
    ));
}

fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the usage of this process");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros as u64)
}

// The clients: one thread with blocking sockets.

fn clients(server: SocketAddr) {
    let mut all: Vec<std::net::TcpStream> =
        (0..CLIENTS).map(|number| connect(server, number as u64)).collect();
    // The backlog is in order, so these are served whoever else is.
    let mut young = all.split_off(OLD);
    for (number, stream) in all.iter_mut().enumerate() {
        expect(stream, number as u64);
    }
    println!("connected: {CLIENTS}");
    let (sender, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let line = std::io::stdin().lock().lines().next();
        sender.send(line.is_some())
    });
    let mut slowest = Duration::ZERO;
    while told.try_recv().is_err() {
        slowest = slowest.max(pulse(&mut all));
    }
    // Those that are served end, and so make room for the next, until there are none.
    let mut number = OLD as u64;
    while !young.is_empty() {
        for mut stream in young.drain(..FREED.min(young.len())) {
            expect(&mut stream, number);
            number += 1;
        }
        slowest = slowest.max(pulse(&mut all));
    }
    println!("slowest: {}", slowest.as_micros());
    all.iter().for_each(|stream| stream.shutdown(Shutdown::Write).unwrap());
    all.iter_mut().for_each(|stream| assert_eq!(stream.read(&mut [0]).unwrap(), 0));
}

fn connect(server: SocketAddr, number: u64) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(server).expect("the backlog has room");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(&number.to_le_bytes()).unwrap();
    stream
}

fn expect(stream: &mut std::net::TcpStream, number: u64) {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).expect("an echo");
    assert_eq!(u64::from_le_bytes(bytes), number, "an echo of another");
}

/// An echo on each of the old connections; the slowest.
fn pulse(streams: &mut [std::net::TcpStream]) -> Duration {
    let slowest = streams.iter_mut().enumerate().map(|(number, stream)| {
        let start = Instant::now();
        stream.write_all(&(number as u64).to_be_bytes()).unwrap();
        expect(stream, (number as u64).swap_bytes());
        start.elapsed()
    });
    let slowest = slowest.max().unwrap_or_default();
    std::thread::sleep(Duration::from_millis(50));
    slowest
}
