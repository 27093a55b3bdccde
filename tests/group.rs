//! Groups of shards: shared listeners, balance, threads.
#![deny(unsafe_code)]

mod common;

use anabranch::net::TcpListener;
#[cfg(unix)]
use anabranch::net::UdpSocket;
use anabranch::{
    Context, Counters, Distribution, Pinning, Runtime, ShardEnd, current, sleep, spawn, yield_now,
};
use common::net::{anywhere, on_real_backends};
use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SHARDS: usize = 4;

/// Tells each client which shard serves it, and keeps the connection until the client ends.
async fn serve(
    context: Context,
    distribution: Distribution,
    late: Duration,
    listening: Arc<AtomicUsize>,
) -> io::Result<()> {
    let listener = TcpListener::bind_group(&context, anywhere(), distribution)?;
    listening.fetch_add(1, Ordering::SeqCst);
    // While the loop stands still connections queue up in the kernel and come all at once.
    thread::sleep(late);
    loop {
        let (mut stream, _) = listener.accept().await?;
        let index = context.index() as u8;
        spawn(async move {
            stream.send(vec![index]).await?;
            while stream.recv().await?.is_some() {}
            stream.close().await
        })
        .detach();
    }
}

struct Group {
    runtime: Runtime,
    address: SocketAddr,
    clients: Vec<(TcpStream, u8)>,
}

impl Group {
    fn start(config: anabranch::Config, distribution: Distribution, late: Duration) -> Group {
        let listening = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&listening);
        let runtime = Runtime::builder()
            .shards(SHARDS)
            .config(config)
            .start(move |context| serve(context, distribution, late, Arc::clone(&counted)))
            .unwrap();
        let address = loop {
            match runtime.shared_listener(anywhere()) {
                Some((address, _)) => break address,
                None => thread::yield_now(),
            }
        };
        // Every shard has to listen, or the first connections come to those that do.
        while late.is_zero() && listening.load(Ordering::SeqCst) < SHARDS {
            thread::yield_now();
        }
        Group { runtime, address, clients: Vec::new() }
    }

    fn connect(&mut self, count: usize) {
        let mut streams: Vec<_> = (0..count).map(|_| TcpStream::connect(self.address).unwrap()).collect();
        for stream in &mut streams {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        for mut stream in streams {
            let mut index = [0];
            stream.read_exact(&mut index).unwrap();
            self.clients.push((stream, index[0]));
        }
    }

    fn live(&self) -> Vec<usize> {
        self.runtime.shared_listener(self.address).unwrap().1
    }

    fn served(&self) -> Vec<usize> {
        (0..SHARDS)
            .map(|shard| self.clients.iter().filter(|(_, index)| *index == shard as u8).count())
            .collect()
    }

    /// Ends the clients of one shard and waits until it has noticed.
    fn leave(&mut self, shard: u8) {
        self.clients.retain(|(_, index)| *index != shard);
        let end = Instant::now() + Duration::from_secs(20);
        while self.live()[shard as usize] > 0 {
            assert!(Instant::now() < end, "{:?} connections are counted", self.live());
            thread::yield_now();
        }
    }

    fn stop(self) -> Vec<Counters> {
        self.runtime.stop();
        self.runtime.join().into_iter().map(settled).collect()
    }
}

fn settled(end: ShardEnd) -> Counters {
    end.result.unwrap();
    end.counters.settled().unwrap();
    end.counters
}

fn check_end(end: ShardEnd) {
    settled(end);
}

fn assert_balanced(counts: &[usize]) {
    let (fewest, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    let mean = counts.iter().sum::<usize>() / counts.len();
    assert!(most - fewest <= mean / 10 + 2, "{counts:?} differ by more than a tenth");
}

#[test]
fn balanced_shards_have_equal_counts_however_connections_come_and_go() {
    on_real_backends(|config| {
        let mut group = Group::start(config, Distribution::Balanced, Duration::ZERO);
        group.connect(120);
        assert_balanced(&group.served());
        assert_eq!(group.live(), group.served());
        // One shard loses all of its connections: the next ones have to make up for that.
        for shard in 0..SHARDS as u8 {
            group.leave(shard);
            group.connect(30);
            assert_balanced(&group.served());
        }
        assert_eq!(group.live(), group.served());
        let counters = group.stop();
        assert!(counters.iter().map(|one| one.handed_over).sum::<u64>() > 0, "nothing was handed over");
        assert_eq!(counters.iter().map(|one| one.accepts).sum::<u64>(), 240);
    });
}

#[test]
fn connections_that_come_all_at_once_are_balanced_too() {
    on_real_backends(|config| {
        for distribution in [Distribution::Balanced, Distribution::OneAcceptor] {
            let mut group = Group::start(config.clone(), distribution, Duration::from_millis(100));
            group.connect(200);
            assert_balanced(&group.served());
            group.stop();
        }
    });
}

#[test]
fn one_acceptor_hands_over_what_the_others_serve() {
    on_real_backends(|config| {
        let mut group = Group::start(config, Distribution::OneAcceptor, Duration::ZERO);
        group.connect(80);
        assert_balanced(&group.served());
        let elsewhere = 80 - group.served()[0] as u64;
        let counters = group.stop();
        assert_eq!(counters[0].accepts, 80);
        assert_eq!(counters[0].handed_over, elsewhere);
        assert!(counters[1..].iter().all(|one| one.accepts == 0 && one.handed_over == 0));
    });
}

// Not on Windows: its listeners cannot share a port.
#[cfg(unix)]
#[test]
fn by_the_kernels_choice_nothing_is_handed_over() {
    on_real_backends(|config| {
        let mut group = Group::start(config, Distribution::ReusePort, Duration::ZERO);
        group.connect(120);
        let served = group.served();
        assert!(served.iter().filter(|count| **count > 0).count() > 1, "{served:?}");
        let counters = group.stop();
        for (one, served) in counters.iter().zip(served) {
            assert_eq!((one.handed_over, one.accepts), (0, served as u64));
        }
    });
}

#[test]
fn all_shards_of_a_group_listen_on_one_port() {
    on_real_backends(|config| {
        for distribution in [Distribution::ReusePort, Distribution::Balanced, Distribution::OneAcceptor] {
            let ports = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&ports);
            let runtime = Runtime::builder().shards(SHARDS).config(config.clone()).start(move |context| {
                let seen = Arc::clone(&seen);
                async move {
                    let listener = TcpListener::bind_group(&context, anywhere(), distribution)?;
                    seen.lock().unwrap().push(listener.local_addr()?.port());
                    while seen.lock().unwrap().len() < SHARDS {
                        yield_now().await;
                    }
                    Ok(())
                }
            });
            runtime.unwrap().join().into_iter().for_each(check_end);
            let ports = ports.lock().unwrap();
            assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
        }
    });
}

// Not on Windows: its datagram sockets cannot share a port.
#[cfg(unix)]
#[test]
fn datagram_sockets_of_a_group_share_a_port_and_a_sender_stays_with_its_shard() {
    on_real_backends(|config| {
        let port = std::net::UdpSocket::bind(anywhere()).unwrap().local_addr().unwrap();
        let runtime = Runtime::builder().shards(2).config(config).start(move |context| async move {
            let socket = UdpSocket::bind_group(&context, port)?;
            loop {
                let datagram = socket.recv_from().await?;
                socket.send_to(vec![context.index() as u8], datagram.from).await?;
            }
        });
        let runtime = runtime.unwrap();
        thread::sleep(Duration::from_millis(50));
        let mut shards = HashSet::new();
        for _ in 0..20 {
            let client = std::net::UdpSocket::bind(anywhere()).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let ask = || {
                let mut index = [0];
                client.send_to(b"who?", port).unwrap();
                client.recv(&mut index).unwrap();
                index[0]
            };
            let first = ask();
            assert_eq!(ask(), first);
            shards.insert(first);
        }
        assert_eq!(shards.len(), 2, "the kernel spreads senders");
        runtime.stop();
        runtime.join().into_iter().for_each(check_end);
    });
}

#[test]
fn hooks_run_on_threads_with_names() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let (starting, stopping, running) = (Arc::clone(&said), Arc::clone(&said), Arc::clone(&said));
    let say = |said: &Mutex<Vec<String>>, what: &str, index: usize| {
        let name = thread::current().name().unwrap_or("nobody").to_owned();
        said.lock().unwrap().push(format!("{name} {what} {index}"));
    };
    Runtime::builder()
        .shards(2)
        .name("worker")
        .on_start(move |index| say(&starting, "starts", index))
        .on_stop(move |index| say(&stopping, "stops", index))
        .run(move |context| {
            say(&running, "runs", context.index());
            async { Ok(()) }
        })
        .unwrap();
    let said = said.lock().unwrap();
    for index in 0..2 {
        let name = format!("worker-{index}");
        let of_one: Vec<&String> = said.iter().filter(|line| line.starts_with(&name)).collect();
        let expected = ["starts", "runs", "stops"].map(|what| format!("{name} {what} {index}"));
        assert_eq!(of_one, expected.iter().collect::<Vec<_>>());
    }
}

/// The processors that this thread may run on.
#[cfg(unix)]
fn own_processors() -> Vec<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    use nix::unistd::Pid;
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect()
}

/// The processors that this thread may run on.
#[cfg(windows)]
#[allow(unsafe_code, reason = "the standard library does not tell")]
fn own_processors() -> Vec<usize> {
    use windows_sys::Win32::System::Threading::{
        GetCurrentProcess, GetCurrentThread, GetProcessAffinityMask, SetThreadAffinityMask,
    };
    let (mut all, mut online) = (0, 0);
    // SAFETY: plain system calls on this thread, which is given back what it had.
    let mask = unsafe {
        assert!(GetProcessAffinityMask(GetCurrentProcess(), &mut all, &mut online) != 0);
        let own = SetThreadAffinityMask(GetCurrentThread(), all);
        SetThreadAffinityMask(GetCurrentThread(), own);
        own
    };
    (0..usize::BITS as usize).filter(|cpu| mask >> cpu & 1 != 0).collect()
}

#[test]
fn pinned_threads_run_where_they_were_put() {
    let allowed = own_processors();
    let (first, last) = (allowed[0], *allowed.last().unwrap());
    let cases = [
        (Pinning::None, [allowed.clone(), allowed.clone()]),
        (Pinning::On(vec![last]), [vec![last], vec![last]]),
        (Pinning::On(vec![first, last]), [vec![first], vec![last]]),
        (Pinning::On(vec![]), [allowed.clone(), allowed.clone()]),
        // A processor that does not exist is no reason not to serve.
        (Pinning::On(vec![1000]), [allowed.clone(), allowed.clone()]),
    ];
    for (pinning, expected) in cases {
        Runtime::builder()
            .shards(2)
            .pinning(pinning)
            .run(move |context| {
                assert_eq!(own_processors(), expected[context.index()]);
                async { Ok(()) }
            })
            .unwrap();
    }
    if allowed.len() < 2 {
        eprintln!("NOT COVERED: a processor per shard (there is one)");
        return;
    }
    let run = Runtime::builder().shards(2).pinning(Pinning::PerShard).run(move |context| {
        assert_eq!(own_processors(), [allowed[context.index()]]);
        async { Ok(()) }
    });
    run.unwrap();
}

#[test]
fn a_shard_may_stop_its_group_and_all_hear_of_it() {
    on_real_backends(|config| {
        let runtime = Runtime::builder().shards(3).config(config).start(|context| async move {
            assert_eq!(context.shards(), 3);
            if context.index() == 2 {
                sleep(Duration::from_millis(10)).await;
                context.stop();
            }
            let waiting = context.clone();
            let task = spawn(async move { waiting.stopped().await });
            context.stopped().await;
            drop(task);
            Ok(())
        });
        let runtime = runtime.unwrap();
        assert_eq!(runtime.reports().len(), 3);
        runtime.join().into_iter().for_each(check_end);
    });
}

#[test]
fn the_default_is_at_least_one_shard_and_each_knows_itself() {
    let ids = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&ids);
    let runtime = Runtime::builder()
        .start(move |_| {
            seen.lock().unwrap().insert(current().unwrap().id());
            async { Ok(()) }
        })
        .unwrap();
    let count = runtime.shards();
    assert!(count >= 1);
    assert_eq!(runtime.join().len(), count);
    assert_eq!(ids.lock().unwrap().len(), count, "ids tell shards apart");
}
