//! Who stands still for a while: a client, the server, one shard of several. The others do not notice, and nothing
//! that arrived in the meantime counts as silence.

use crate::common::net::anywhere;
use crate::tools::{Helper, Run, Sequence, percentile, role, scenario};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Backend, Config, Context, Runtime, Shard, sleep, spawn, timeout};
use nix::sys::signal::Signal;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::time::{Duration, Instant};

/// How long something stands still.
fn stall(run: &Run) -> Duration {
    Duration::from_millis(run.size(1_500, 5_000) as u64)
}

// A client stops.

#[test]
fn a_stopped_client_holds_up_nobody_and_goes_on_where_it_stood() {
    scenario("stopped client", |run| {
        let shard = Shard::new(run.config.clone()).expect("a shard");
        let over = Arc::new(AtomicBool::new(false));
        let (address, bound) = mpsc::channel();
        let end = Arc::clone(&over);
        let clients = std::thread::scope(|scope| {
            let pace = stall(run);
            let clients = scope.spawn(move || {
                let outcome = std::panic::catch_unwind(|| two_clients(bound.recv().unwrap(), pace));
                end.store(true, Ordering::Release);
                outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            shard.block_on(echo_until(address, &over));
            clients.join().expect("the clients end well")
        });
        run.settle(shard);
        let (mut before, mut during, bytes) = clients;
        let (before, during) = (percentile(&mut before, 0.99), percentile(&mut during, 0.99));
        run.say(format_args!(
            "the stopped client had {bytes} bytes back in order; the other's p99 {before:.1?} before, {during:.1?} while it stood"
        ));
        assert!(
            during < before * 20 + Duration::from_millis(50),
            "{before:?} before, {during:?} while it stood"
        );
    });
}

async fn echo_until(bound: mpsc::Sender<SocketAddr>, over: &AtomicBool) {
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    bound.send(listener.local_addr().unwrap()).unwrap();
    while !over.load(Ordering::Acquire) {
        if let Ok(accepted) = timeout(Duration::from_millis(20), listener.accept()).await {
            let (stream, _) = accepted.expect("a connection");
            spawn(async move { echo(stream).await.expect("clients end in order") }).detach();
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}

/// Round trips of the client that goes on, before and while the other stands still, and that one's bytes.
fn two_clients(server: SocketAddr, pace: Duration) -> (Vec<Duration>, Vec<Duration>, u64) {
    let mut busy = Helper::start("stalls::the_client_that_is_stopped", &server.to_string());
    busy.hear("began");
    let before = rounds(server, Duration::from_millis(500));
    busy.signal(Signal::SIGSTOP);
    let during = rounds(server, pace);
    busy.signal(Signal::SIGCONT);
    busy.tell("end");
    let bytes = busy.hear("bytes").parse().expect("a number");
    busy.end();
    (before, during, bytes)
}

/// The times of echoes, one after the other.
fn rounds(server: SocketAddr, duration: Duration) -> Vec<Duration> {
    let mut socket = std::net::TcpStream::connect(server).expect("the server goes on");
    socket.set_nodelay(true).unwrap();
    let (end, mut times, mut reply) = (Instant::now() + duration, Vec::new(), [0; 64]);
    while Instant::now() < end {
        let start = Instant::now();
        socket.write_all(&[times.len() as u8; 64]).expect("the server goes on");
        socket.read_exact(&mut reply).expect("the server goes on");
        assert_eq!(reply, [times.len() as u8; 64]);
        times.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    times
}

/// Does nothing unless started as a helper: sends without a pause and checks what comes back.
#[test]
fn the_client_that_is_stopped() {
    let Some(server) = role() else { return };
    let mut socket = std::net::TcpStream::connect(&server).expect("the server listens");
    let told = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&told);
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().lines().next();
        tell.store(true, Ordering::Release);
    });
    let (mut sending, mut receiving) = (Sequence::new(3), Sequence::new(3));
    let mut writer = socket.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        while !told.load(Ordering::Acquire) {
            let bytes = sending.peek(10_000);
            writer.write_all(&bytes).expect("the server reads");
            sending.check(&bytes);
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
        sending.at
    });
    println!("began: yes");
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match socket.read(&mut buffer).expect("the server replies") {
            0 => break,
            count => receiving.check(&buffer[..count]),
        }
    }
    assert_eq!(sender.join().expect("all is sent"), receiving.at, "every byte comes back");
    println!("bytes: {}", receiving.at);
}

// The server stops.

/// Connections of each kind.
const EACH: usize = 50;
/// Its data arrives while the server stands still, before the deadline.
const FED: u8 = 0;
/// Gets nothing: the one that is truly due.
const SILENT: u8 = 1;
/// Has a deadline far off.
const PATIENT: u8 = 2;
const LIMIT: Duration = Duration::from_millis(600);

#[test]
fn a_server_that_was_stopped_times_out_only_who_is_due() {
    scenario("stopped server", |run| {
        let backend = run.config.backend.to_string();
        let mut server = Helper::start("stalls::the_server_that_is_stopped", &backend);
        let address: SocketAddr = server.hear("address").parse().unwrap();
        let mut all = Vec::new();
        for number in 0..3 * EACH {
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            socket.write_all(&[(number % 3) as u8]).unwrap();
            all.push(socket);
        }
        server.hear("waiting");
        std::thread::sleep(Duration::from_millis(50));
        server.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(100));
        all.iter_mut()
            .skip(usize::from(FED))
            .step_by(3)
            .for_each(|socket| socket.write_all(b"in time").unwrap());
        std::thread::sleep(stall(run));
        server.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(200));
        all.iter_mut()
            .skip(usize::from(PATIENT))
            .step_by(3)
            .for_each(|socket| socket.write_all(b"late").unwrap());
        run.say(format_args!("stood for {:.1?}; {}", stall(run), server.hear("outcome")));
        run.say(format_args!("ledger of the server: {}", server.hear("ledger")));
        server.end();
    });
}

/// Does nothing unless started as a helper.
#[test]
fn the_server_that_is_stopped() {
    let Some(backend) = role() else { return };
    let config = Config::new().backend(backend.parse::<Backend>().expect("a backend"));
    let shard = Shard::new(config).expect("a shard");
    shard.block_on(async {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        println!("address: {}", listener.local_addr().unwrap());
        let mut waiting = Vec::new();
        for _ in 0..3 * EACH {
            let (mut stream, _) = listener.accept().await.unwrap();
            let kind = stream.recv_exact(1).await.unwrap()[0];
            waiting.push((kind, stream));
        }
        let tasks: Vec<_> = waiting.into_iter().map(|(kind, stream)| spawn(wait(kind, stream))).collect();
        println!("waiting: {}", tasks.len());
        let mut data = 0;
        for task in tasks {
            data += usize::from(task.await.expect("each gets what it should"));
        }
        println!("outcome: {data} of {} got their data, {EACH} were due and timed out", 2 * EACH);
        assert_eq!(data, 2 * EACH);
    });
    let counters = shard.finish();
    counters.settled().expect("the ledger is settled");
    println!("ledger: {counters}, panics {}", counters.panics);
    assert_eq!((counters.panics, counters.stale), (0, 0));
}

/// Waits for data as its kind does; whether it came.
async fn wait(kind: u8, mut stream: TcpStream) -> bool {
    let limit = if kind == PATIENT { Duration::from_secs(60) } else { LIMIT };
    let came = timeout(limit, stream.recv()).await;
    match (kind, came) {
        (SILENT, Err(error)) => assert_eq!(error.kind(), ErrorKind::TimedOut),
        (FED, Ok(Ok(Some(lease)))) => assert_eq!(&*lease, b"in time"),
        (PATIENT, Ok(Ok(Some(lease)))) => assert_eq!(&*lease, b"late"),
        (kind, came) => panic!("a connection of kind {kind} got {came:?}"),
    }
    kind != SILENT
}

// One shard of several stands still.

#[test]
fn a_shard_that_blocks_does_not_slow_the_others() {
    scenario("blocked shard", |run| {
        let (bound, addresses) = mpsc::channel();
        let config = run.config.clone();
        let runtime =
            Runtime::builder().shards(2).config(config).start(move |context| serve(context, bound.clone()));
        let runtime = runtime.expect("two shards");
        let mut servers: Vec<_> = (0..2).map(|_| addresses.recv().unwrap()).collect();
        servers.sort_unstable();
        let mut before = rounds(servers[0].1, Duration::from_millis(500));
        let pace = stall(run);
        let ticks = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&ticks);
        // A timer beside the task that blocks, which must fire once and not early.
        let ticking = runtime.remote(1).spawn_on(move || async move {
            sleep(pace / 2).await;
            seen.fetch_add(1, Ordering::Relaxed);
        });
        std::thread::sleep(Duration::from_millis(50));
        runtime.remote(1).run(move || std::thread::sleep(pace)).expect("room for a message");
        let on_blocked = servers[1].1;
        let waiter = std::thread::spawn(move || {
            let start = Instant::now();
            ping(on_blocked);
            start.elapsed()
        });
        let mut during = rounds(servers[0].1, pace - Duration::from_millis(300));
        let waited = waiter.join().expect("who waited is served in the end");
        runtime.stop();
        for end in runtime.join() {
            end.result.expect("an orderly end");
            run.check(&end.counters, 0);
        }
        drop(ticking);
        let (before, during) = (percentile(&mut before, 0.99), percentile(&mut during, 0.99));
        run.say(format_args!(
            "p99 on the other shard {before:.1?} before, {during:.1?} during; served by the blocked one after {waited:.1?}"
        ));
        assert!(during < before * 20 + Duration::from_millis(50), "{before:?} before, {during:?} during");
        assert_eq!(ticks.load(Ordering::Relaxed), 1);
    });
}

async fn serve(context: Context, bound: mpsc::Sender<(usize, SocketAddr)>) -> io::Result<()> {
    let listener = TcpListener::bind(anywhere()).await?;
    let _ = bound.send((context.index(), listener.local_addr()?));
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(echo(stream)).detach();
    }
}

fn ping(server: SocketAddr) {
    let mut socket = std::net::TcpStream::connect(server).unwrap();
    socket.write_all(b"ping").unwrap();
    socket.read_exact(&mut [0; 4]).expect("an echo");
}
