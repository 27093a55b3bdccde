//! Foreign code that panics, in every place where the runtime calls it; what a child process inherits; and memory
//! that cannot be had.
//!
//! Memory that the allocator refuses elsewhere than for the pool cannot be survived: the standard collections abort.
//! What grows with a load is bounded by `Limits`, and each bound refuses with `Full` or waits: see
//! tests/backpressure.rs and `starvation`.

use crate::common::net::{anywhere, with_peer};
use crate::tools::{Run, descriptors, pair, scenario, scenario_alone};
use anabranch::fs::File;
use anabranch::net::{TcpListener, TcpStream, UdpSocket};
use anabranch::os::{Signal, SignalKind};
use anabranch::{Config, Context, Event, PanicPolicy, Runtime, Shard, offload, sleep, spawn, timeout};
use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once, mpsc};
use std::time::Duration;

/// What each panic of these scenarios says, so that it is not printed.
const MEANT: &str = "this panic is meant";

fn crash() -> ! {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>() != Some(&MEANT) {
                usual(info);
            }
        }));
    });
    std::panic::panic_any(MEANT)
}

/// Bytes whose destructor panics.
struct Fragile([u8; 100]);

impl AsRef<[u8]> for Fragile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        crash();
    }
}

#[test]
fn tasks_and_destructors_that_panic_disturb_no_other_connection() {
    scenario("panics in tasks and destructors", |run| {
        let rounds = run.size(50, 5_000);
        let shard = Shard::new(run.config.clone()).expect("a shard");
        shard.block_on(async {
            let (mut good, mut peer) = with_peer();
            for round in 0..rounds {
                run.progress(round, rounds);
                let (mut stream, mut theirs) = with_peer();
                // Two leave in one batch, the third is dropped by the abort.
                let task = spawn(async move {
                    stream.send(Bytes::from_owner(Fragile([1; 100]))).await.unwrap();
                    stream.send(Bytes::from_owner(Fragile([2; 100]))).await.unwrap();
                    stream.flush().await.unwrap();
                    stream.send(Bytes::from_owner(Fragile([3; 100]))).await.unwrap();
                    stream.abort();
                    crash();
                });
                assert!(task.await.is_err(), "who joins is told");
                theirs.read_exact(&mut [0; 200]).expect("what was flushed has left");
                peer.write_all(&[round as u8; 40]).unwrap();
                assert_eq!(&*good.recv_exact(40).await.unwrap(), &[round as u8; 40]);
            }
        });
        let counters = shard.finish();
        run.check_crashed(&counters, 4 * rounds as u64);
    });
}

#[test]
fn a_callback_that_panics_loses_no_other_completion() {
    scenario("panics in the callback of a poll", |run| {
        const COUNT: u64 = 40;
        let listener = std::net::TcpListener::bind(anywhere()).unwrap();
        let shard = Shard::new(run.config.clone()).expect("a shard");
        let peers: Vec<_> = (0..COUNT)
            .map(|tag| {
                let (ours, mut theirs) = pair(&listener);
                let id = shard.adopt_stream(ours).expect("room");
                shard.submit_recv(id, tag).expect("it is open");
                theirs.write_all(&tag.to_le_bytes()).unwrap();
                theirs
            })
            .collect();
        let (mut seen, mut panics) = (Vec::new(), 0);
        while seen.len() < COUNT as usize {
            let polled = catch_unwind(AssertUnwindSafe(|| {
                shard.poll(Some(Duration::from_secs(5)), |completion| {
                    let Event::Received(lease) = completion.event else { panic!("{:?}", completion.event) };
                    assert_eq!(*lease, completion.tag.to_le_bytes());
                    seen.push(completion.tag);
                    if completion.tag % 2 == 0 {
                        crash();
                    }
                })
            }));
            panics += u64::from(polled.is_err());
        }
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..COUNT), "each comes once: {seen:?}");
        assert_eq!(panics, COUNT / 2, "the caller gets each panic");
        drop(peers);
        run.settle(shard);
    });
}

#[test]
fn a_main_future_that_panics_ends_what_its_policy_says() {
    scenario("panics of a main future", |run| {
        for policy in [PanicPolicy::StopAll, PanicPolicy::StopShard, PanicPolicy::Restart] {
            end_by(run, policy);
        }
    });
}

fn end_by(run: &Run, policy: PanicPolicy) {
    let (bound, addresses) = mpsc::channel();
    let builder = Runtime::builder().shards(2).config(run.config.clone()).panic_policy(policy);
    let runtime = builder.start(move |context| serve(context, bound.clone())).expect("two shards");
    let mut servers: Vec<(usize, SocketAddr)> = (0..2).map(|_| addresses.recv().unwrap()).collect();
    servers.sort_unstable();
    let mut good = std::net::TcpStream::connect(servers[0].1).unwrap();
    let mut bad = std::net::TcpStream::connect(servers[1].1).unwrap();
    ping(&mut good).expect("it is served");
    ping(&mut bad).expect("it is served");
    // The next connection of the second shard makes its main future panic.
    let _last = std::net::TcpStream::connect(servers[1].1).unwrap();
    assert!(!matches!(bad.read(&mut [0]), Ok(1..)), "the connections of the shard end with it");
    let after = match policy {
        PanicPolicy::StopAll => ping_until_it_ends(&mut good),
        PanicPolicy::StopShard => ping(&mut good),
        _ => {
            let (index, address) = addresses.recv_timeout(Duration::from_secs(10)).expect("a new shard");
            assert_eq!(index, 1, "in the place of the old one");
            ping(&mut std::net::TcpStream::connect(address).unwrap()).expect("it serves");
            ping(&mut good)
        }
    };
    assert_eq!(after.is_err(), policy == PanicPolicy::StopAll, "{after:?}");
    runtime.stop();
    let ends = runtime.join();
    let failed: Vec<usize> = ends.iter().filter(|end| end.result.is_err()).map(|end| end.index).collect();
    let expected = if policy == PanicPolicy::Restart { vec![] } else { vec![1] };
    assert_eq!(failed, expected, "who ended with the panic");
    ends.iter().for_each(|end| run.check(&end.counters, 0));
    run.say(format_args!("{policy:?}: the ledgers of {} shards are settled", ends.len()));
}

/// Echoes; the second connection of the second shard is one too many.
async fn serve(context: Context, bound: mpsc::Sender<(usize, SocketAddr)>) -> io::Result<()> {
    let listener = TcpListener::bind(anywhere()).await?;
    let _ = bound.send((context.index(), listener.local_addr()?));
    for number in 0.. {
        let (mut stream, _) = listener.accept().await?;
        if context.index() == 1 && number == 1 {
            crash();
        }
        spawn(async move {
            while let Ok(Some(bytes)) = stream.recv().await {
                if stream.send(bytes).await.is_err() {
                    return;
                }
            }
        })
        .detach();
    }
    Ok(())
}

fn ping(socket: &mut std::net::TcpStream) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.write_all(b"ping")?;
    socket.read_exact(&mut [0; 4])
}

fn ping_until_it_ends(socket: &mut std::net::TcpStream) -> io::Result<()> {
    for _ in 0..1000 {
        ping(socket)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn a_hook_that_panics_does_not_stop_a_listener() {
    let name = "crashes::a_hook_that_panics_does_not_stop_a_listener";
    scenario_alone(name, "panics in the hook for warnings", |run| {
        // Before any accept is armed: one that stands in the ring keeps the limit that it began with.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 128, hard).expect("the limit may be lowered");
        let warned = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&warned);
        let shard = Shard::new(run.config.clone().on_warning(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            crash();
        }));
        let shard = shard.expect("a shard");
        shard.block_on(async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut held = Vec::new();
            while let Ok(file) = std::fs::File::open("/dev/null") {
                held.push(file);
            }
            held.pop();
            let _peer = std::net::TcpStream::connect(address).expect("one descriptor is left");
            assert!(timeout(Duration::from_millis(100), listener.accept()).await.is_err());
            drop(held);
            timeout(Duration::from_secs(5), listener.accept()).await.expect("it goes on").unwrap();
        });
        let counters = shard.finish();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the limit may be raised again");
        run.check_crashed(&counters, warned.load(Ordering::Relaxed) as u64);
        assert_eq!(counters.panics, 1, "one warning for the episode");
    });
}

#[test]
fn a_child_process_inherits_no_descriptor() {
    scenario("descriptors of a child", |run| {
        let before = of_a_child();
        let shard = Shard::new(run.config.clone()).expect("a shard");
        shard.block_on(async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut near = TcpStream::connect(address).await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            let datagrams = UdpSocket::bind(anywhere()).await.unwrap();
            let file = File::open("/dev/zero").await.unwrap();
            let signal = Signal::new(SignalKind::User2).unwrap();
            file.read_at(0, 8).await.unwrap();
            // A standing receive, a standing accept, a timer and a thread for work that blocks.
            let waiting = spawn(async move { (far.recv().await.map(drop), far) });
            sleep(Duration::from_millis(1)).await;
            let during = offload(of_a_child).await.unwrap();
            assert!(descriptors() > during.len() + 5, "there is something to inherit");
            assert_eq!(during, before, "descriptors of a child, by number");
            near.send("end").await.unwrap();
            waiting.await.unwrap().0.unwrap();
            drop((datagrams, file, signal));
        });
        run.settle(shard);
        run.say(format_args!("a child has {} descriptors, as without a shard", before.len()));
    });
}

/// The descriptors of a child process: number, and what kind it is.
fn of_a_child() -> BTreeMap<String, String> {
    let mut child = Command::new("sleep");
    let mut child = child.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a child");
    let folder = format!("/proc/{}/fd", child.id());
    // `spawn` has come back, so the new program runs, and what closes at its start is closed; it may still hold a
    // file of its own start for a moment.
    std::thread::sleep(Duration::from_millis(100));
    let list = std::fs::read_dir(folder).expect("the descriptors of a child").filter_map(|entry| {
        let entry = entry.ok()?;
        let kind = std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        let kind = kind.split('[').next().unwrap_or_default().to_owned();
        Some((entry.file_name().to_string_lossy().into_owned(), kind))
    });
    let list = list.collect();
    child.kill().and_then(|()| child.wait()).expect("the child ends");
    list
}

#[test]
fn a_pool_that_the_system_has_no_memory_for_is_an_error() {
    let name = "crashes::a_pool_that_the_system_has_no_memory_for_is_an_error";
    scenario_alone(name, "memory refused", |run| {
        let (old, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        setrlimit(Resource::RLIMIT_AS, 4 << 30, hard).expect("the limit may be lowered");
        let huge: Config = run.config.clone().with_limits(|limits| {
            (limits.buffers, limits.buffer_bytes) = (32_768, 1 << 20);
        });
        let refused = Shard::new(huge).expect_err("32 GiB are too many");
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
        let shard = Shard::new(run.config.clone()).expect("a usual one can be had");
        shard.block_on(sleep(Duration::from_millis(1)));
        run.settle(shard);
        setrlimit(Resource::RLIMIT_AS, old, hard).expect("the limit may be raised again");
    });
}
