//! A protocol of your own, a bug in it, and the simulation that finds it.
//!
//! A counter lives on a primary and two replicas. A client that hears nothing asks again, so the primary remembers
//! which request of each client it has done. `Ids::InMemory` is the planted bug: the replicas get the value but not
//! these numbers, so a primary that crashes between doing and answering does the repeated request twice.
//!
//! Try it: `cargo run --release --features sim --example replicated_counter`.
#![forbid(unsafe_code)]

use anabranch::net::{TcpListener, TcpStream};
use anabranch::sim::{self, Builder, Failure, Fault, Faults};
use anabranch::{JoinHandle, sleep, spawn, timeout};
use clap::Parser;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

const REPLICAS: [&str; 2] = ["replica-1:7000", "replica-2:7000"];
/// Who hears nothing for so long tries again over another connection.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// Where the primary keeps which requests it has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ids {
    /// The bug.
    InMemory,
    /// The fix.
    Replicated,
}

// ---- The protocol: code of production, which does not know of any simulation. ----

/// What is replicated, as a line: `version value client=request …`.
#[derive(Clone, Default)]
struct State {
    version: u64,
    value: u64,
    /// The last request of each client that is in the value.
    done: BTreeMap<String, u64>,
}

impl State {
    fn to_line(&self, ids: Ids) -> String {
        let done = self.done.iter().filter(|_| ids == Ids::Replicated);
        let done: String = done.map(|(client, request)| format!(" {client}={request}")).collect();
        format!("{} {}{done}\n", self.version, self.value)
    }

    fn parse(line: &str) -> Option<State> {
        let mut words = line.split_whitespace();
        let (version, value) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let done = words.map(|word| {
            let (client, request) = word.split_once('=')?;
            Some((client.to_owned(), request.parse().ok()?))
        });
        Some(State { version, value, done: done.collect::<Option<_>>()? })
    }
}

struct Primary {
    ids: Ids,
    state: RefCell<State>,
    /// The version that each replica is known to have.
    held: RefCell<BTreeMap<&'static str, u64>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Primary {
    async fn until(&self, condition: impl Fn(&Primary) -> bool) {
        poll_fn(|task| {
            if condition(self) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(task.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn holds(&self, replica: &'static str, version: u64) {
        self.held.borrow_mut().insert(replica, version);
        self.wake();
    }

    fn wake(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Adds one, unless it did for this request; returns when every replica has it.
    async fn add(&self, client: &str, request: u64) -> u64 {
        let (version, value) = {
            let mut state = self.state.borrow_mut();
            if state.done.get(client).is_none_or(|done| *done < request) {
                state.done.insert(client.to_owned(), request);
                state.version += 1;
                state.value += 1;
            }
            (state.version, state.value)
        };
        self.wake();
        self.until(|primary| primary.held.borrow().values().all(|held| *held >= version)).await;
        value
    }
}

/// The primary. What it knew before a crash it learns from the replicas, both of them.
async fn primary(ids: Ids) -> io::Result<()> {
    let (state, held, waiting) = Default::default();
    let primary = Rc::new(Primary { ids, state, held, waiting });
    for replica in REPLICAS {
        let primary = Rc::clone(&primary);
        spawn(async move {
            loop {
                // However it ended, the next connection begins with what the replica has.
                let _ = feed(replica, &primary).await;
                sleep(PAUSE).await;
            }
        })
        .detach();
    }
    primary.until(|primary| primary.held.borrow().len() == REPLICAS.len()).await;
    let listener = TcpListener::bind("0.0.0.0:7000").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(serve(stream, Rc::clone(&primary))).detach();
    }
}

async fn serve(mut stream: TcpStream, primary: Rc<Primary>) -> io::Result<()> {
    while let Some(line) = line(&mut stream).await? {
        let (client, request) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let request = request.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        let value = primary.add(client, request).await;
        stream.send(format!("{value}\n")).await?;
    }
    stream.close().await
}

/// Hears what a replica has, and sends it what it lacks.
async fn feed(replica: &'static str, primary: &Primary) -> io::Result<()> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(replica)).await??;
    let its = state_from(&mut stream).await?;
    if its.version > primary.state.borrow().version {
        primary.state.replace(its.clone());
    }
    primary.holds(replica, its.version);
    loop {
        primary.until(|it| it.held.borrow()[replica] < it.state.borrow().version).await;
        let state = primary.state.borrow().clone();
        stream.send(state.to_line(primary.ids)).await?;
        primary.holds(replica, state_from(&mut stream).await?.version);
    }
}

/// A replica says what it has, at once and after each change. Of two connections the newer counts.
async fn replica() -> io::Result<()> {
    let state = Rc::new(RefCell::new(State::default()));
    let mut feeder: Option<JoinHandle<io::Result<()>>> = None;
    let listener = TcpListener::bind("0.0.0.0:7000").await?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        // What a primary that has crashed sent late must not follow what its successor was told.
        feeder.as_mut().into_iter().for_each(JoinHandle::abort);
        feeder = Some(spawn(follow(stream, Rc::clone(&state))));
    }
}

async fn follow(mut stream: TcpStream, state: Rc<RefCell<State>>) -> io::Result<()> {
    loop {
        let text = state.borrow().to_line(Ids::Replicated);
        stream.send(text).await?;
        let Some(line) = line(&mut stream).await? else { return stream.close().await };
        state.replace(State::parse(&line).ok_or(io::ErrorKind::InvalidData)?);
    }
}

async fn state_from(stream: &mut TcpStream) -> io::Result<State> {
    let line = timeout(PATIENCE, line(stream)).await??;
    line.and_then(|line| State::parse(&line)).ok_or(io::ErrorKind::UnexpectedEof.into())
}

async fn line(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let line = stream.recv_until(b"\n", 4096).await?;
    Ok(line.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// Adds one to the counter: asks until there is an answer, always with the same number.
async fn add_one(client: &str, request: u64) -> u64 {
    loop {
        let ask = async {
            let mut stream = TcpStream::connect("primary:7000").await?;
            stream.send(format!("{client} {request}\n")).await?;
            line(&mut stream).await
        };
        if let Ok(Ok(Some(answer))) = timeout(PATIENCE, ask).await {
            return answer.parse().expect("a number");
        }
        sleep(PAUSE).await;
    }
}

// ---- Its test: two clients, faults of every kind, and what must hold. ----

/// How often each of the two clients adds one.
const ADDS: u64 = 20;

/// What the clients know; no counter may contradict it.
#[derive(Default)]
struct Clients {
    asked: Cell<u64>,
    answered: Cell<u64>,
    highest: Cell<u64>,
}

async fn client(name: &'static str, clients: Rc<Clients>) {
    for request in 1..=ADDS {
        clients.asked.set(clients.asked.get() + 1);
        sim::note(format_args!("asks for request {request}"));
        let value = add_one(name, request).await;
        sim::note(format_args!("request {request} is done, the value is {value}"));
        clients.answered.set(clients.answered.get() + 1);
        clients.highest.set(clients.highest.get().max(value));
        sleep(Duration::from_millis(anabranch::random() % 100)).await;
    }
}

/// A run of the protocol, not yet started. It is made anew for each run, as its checks count.
pub(crate) fn simulation(ids: Ids, seed: u64) -> Builder {
    let clients = Rc::new(Clients::default());
    let (alice, bob, always, finally) = (clients.clone(), clients.clone(), clients.clone(), clients);
    // The replicas keep their state in memory: of them only one may crash.
    let faults = Faults::rough().with(Fault::HostCrash, 0.1);
    let faults = faults.only_on(Fault::HostCrash, "primary").only_on(Fault::HostCrash, "replica-1");
    Builder::new()
        .seed(seed)
        .faults(faults)
        .server("primary", move || primary(ids))
        .server("replica-1", replica)
        .server("replica-2", replica)
        .host("alice", move || client("alice", alice.clone()))
        .host("bob", move || client("bob", bob.clone()))
        .always(move |_| {
            let (asked, highest) = (always.asked.get(), always.highest.get());
            let text = || format!("a client was told {highest}, but only {asked} requests were made");
            (highest <= asked).then_some(()).ok_or_else(text)
        })
        .finally(move |_| {
            let (answered, highest) = (finally.answered.get(), finally.highest.get());
            let text = || format!("{answered} requests were answered, but the value is {highest}");
            (highest == answered).then_some(()).ok_or_else(text)
        })
}

/// The first of these seeds that fails.
pub(crate) fn first_failure(ids: Ids, seeds: impl IntoIterator<Item = u64>) -> Option<Failure> {
    seeds.into_iter().find_map(|seed| simulation(ids, seed).run().err())
}

/// Finds the planted bug, shows that it happens again, and that the fix holds.
#[derive(Parser)]
struct Flags {
    /// Seeds to run.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
}

#[allow(dead_code, reason = "the tests include this file as a module")]
fn main() -> Result<(), Failure> {
    let flags = Flags::parse();
    let start = Instant::now();
    println!("1. the version with the bug, seed after seed");
    let Some(failure) = first_failure(Ids::InMemory, sim::seeds(0..flags.seeds)) else {
        println!("   {} seeds hold; try more: --seeds", flags.seeds);
        return Ok(());
    };
    println!("{failure}\n");
    println!("2. the same seed again");
    let seed = failure.seed();
    let again = simulation(Ids::InMemory, seed).run().expect_err("the same seed is the same run");
    for run in [&failure, &again] {
        println!("   seed {seed}: {} log lines with hash {:016x}", run.log_lines(), run.log_hash());
    }
    assert_eq!(failure.to_string(), again.to_string());
    println!("3. the fixed version, the same seed\n   {}", simulation(Ids::Replicated, seed).run()?);
    println!("4. the fixed version, seed after seed");
    if let Some(failure) = first_failure(Ids::Replicated, sim::seeds(0..flags.seeds)) {
        return Err(failure);
    }
    println!("   all hold; everything together took {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}
