//! The end of a shard and of a group of shards.
#![forbid(unsafe_code)]

mod common;

use anabranch::fs::File;
use anabranch::net::{TcpListener, TcpStream, UdpSocket};
use anabranch::{Config, JoinError, PanicPolicy, Runtime, Shard, offload, sleep, spawn, yield_now};
use common::net::{anywhere, on_real_backends, on_typical_backends, pair, pattern, with_peer};
use common::{on_every_backend, peer};
use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::io::{self, ErrorKind, Read};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

/// Counts when it is dropped.
struct Counts(Rc<Cell<usize>>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_shard_that_ends_in_the_middle_of_everything_settles_its_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_every_backend(|config| {
        peer::write_file(&path, pattern(100_000)).unwrap();
        let dropped = Rc::new(Cell::new(0));
        let shard = Shard::new(config).unwrap();
        let kept = shard.block_on(async {
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let address = listener.local_addr().unwrap();
            for _ in 0..5 {
                let counts = Counts(Rc::clone(&dropped));
                spawn(async move {
                    let _counts = counts;
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    stream.send(vec![0; 10_000]).await.unwrap();
                    stream.recv().await
                })
                .detach();
            }
            let counts = Counts(Rc::clone(&dropped));
            spawn(async move {
                let _counts = counts;
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    spawn(async move { stream.recv_exact(1_000_000).await }).detach();
                }
            })
            .detach();
            let (counts, path) = (Counts(Rc::clone(&dropped)), path.clone());
            spawn(async move {
                let _counts = counts;
                let file = File::open(path).await.unwrap();
                loop {
                    file.read_at(0, 100_000).await.unwrap();
                }
            })
            .detach();
            let counts = Counts(Rc::clone(&dropped));
            spawn(async move {
                let _counts = counts;
                let socket = UdpSocket::bind(anywhere()).await.unwrap();
                let _ = anabranch::timeout(Duration::from_secs(3600), socket.recv_from()).await;
            })
            .detach();
            for _ in 0..20 {
                yield_now().await;
            }
            // These live on when the shard is gone.
            (with_peer(), UdpSocket::bind(anywhere()).await.unwrap(), sleep(Duration::from_secs(3600)))
        });
        let start = peer::now();
        let counters = shard.finish();
        assert!((peer::now() - start) < Duration::from_millis(1500), "it took {:?}", (peer::now() - start));
        counters.settled().unwrap();
        assert_eq!(counters.stale, 0);
        assert_eq!(dropped.get(), 8, "a task was not dropped");
        drop(kept);
    });
}

#[test]
fn bytes_that_were_queued_leave_before_a_shard_ends() {
    on_every_backend(|config| {
        let shard = Shard::new(config).unwrap();
        let (mut kept, peer) = shard.block_on(async { with_peer() });
        let reader = peer::spawn(move || {
            let mut all = Vec::new();
            (&peer).read_to_end(&mut all).map(|_| all)
        });
        shard.block_on(async {
            let (mut gone, mut theirs) = pair().await;
            gone.send("of a task").await.unwrap();
            spawn(async move {
                let _gone = gone;
                pending::<()>().await;
            })
            .detach();
            kept.send(pattern(100_000)).await.unwrap();
            let _ = theirs.recv().await;
        });
        let counters = shard.finish();
        counters.settled().unwrap();
        assert!(reader.join().unwrap().unwrap() == pattern(100_000), "the bytes differ");
    });
}

#[test]
fn a_peer_that_never_reads_cannot_hold_up_the_end_of_a_shard() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.drain_ms = 200;
            limits.outbound_bytes_max = 64 << 20;
        });
        let shard = Shard::new(config).unwrap();
        let _peer = shard.block_on(async {
            let (mut ours, theirs) = with_peer();
            ours.send(vec![0; 32 << 20]).await.unwrap();
            theirs
        });
        let start = peer::now();
        shard.finish().settled().unwrap();
        assert!((peer::now() - start) < Duration::from_secs(2), "it took {:?}", (peer::now() - start));
    });
}

#[test]
fn an_operation_whose_future_is_kept_does_not_hold_up_the_end_of_a_shard() {
    common::on(
        common::not_simulated(
            "an_operation_whose_future_is_kept_does_not_hold_up_the_end_of_a_shard",
            common::every_backend(),
        ),
        |config| {
            let shard = Shard::new(config).unwrap();
            let (readable, _writer) = peer::system_pair().unwrap();
            let ready = shard.block_on(async { anabranch::os::Ready::new(&readable).unwrap() });
            let mut waiting = pin!(ready.readable());
            shard.block_on(poll_fn(|context| {
                assert!(waiting.as_mut().poll(context).is_pending());
                Poll::Ready(())
            }));
            let start = peer::now();
            let counters = shard.finish();
            assert!((peer::now() - start) < Duration::from_secs(1), "it took {:?}", (peer::now() - start));
            assert_eq!(counters.submitted, counters.completed);
            let outcome = anabranch::block_on(waiting).unwrap();
            assert!(outcome.is_err(), "the shard has ended");
        },
    );
}

#[test]
fn the_outcome_of_a_task_whose_shard_ended_is_aborted() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let handle = shard.spawn(pending::<()>());
        shard.block_on(yield_now());
        drop(shard);
        let outcome = anabranch::block_on(handle).unwrap();
        assert!(matches!(outcome, Err(JoinError::Aborted)), "{outcome:?}");
    });
}

#[test]
fn a_task_may_use_its_sockets_while_it_is_dropped_by_the_end() {
    struct Farewell(Option<TcpStream>);
    impl Drop for Farewell {
        fn drop(&mut self) {
            let mut stream = self.0.take().unwrap();
            spawn(async move { stream.send("never").await }).detach();
        }
    }
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let mut theirs = shard.block_on(async {
            let (ours, theirs) = with_peer();
            let farewell = Farewell(Some(ours));
            spawn(async move {
                let _farewell = farewell;
                pending::<()>().await;
            })
            .detach();
            yield_now().await;
            theirs
        });
        shard.finish().settled().unwrap();
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0, "the end, and nothing before it");
    });
}

#[test]
fn a_panic_in_a_task_is_contained_counted_and_told_to_who_joins_it() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        shard.block_on(async {
            let joined: Result<(), _> = spawn(async { panic!("told") }).await;
            let error = joined.unwrap_err();
            assert!(matches!(error, JoinError::Panicked(_)));
            assert_eq!(error.to_string(), "the task panicked: told");
            spawn(async { panic!("nobody joins this one") }).detach();
            yield_now().await;
            let (mut ours, mut theirs) = pair().await;
            ours.send("alive").await.unwrap();
            assert_eq!(theirs.recv_exact(5).await.unwrap(), "alive");
        });
        let counters = shard.finish();
        counters.settled().unwrap();
        assert_eq!(counters.panics, 2);
    });
}

#[test]
fn a_panic_of_the_main_future_reaches_the_caller_and_the_shard_can_go_on() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            shard.block_on(async {
                let _held = pair().await;
                panic!("up");
            })
        }));
        assert!(outcome.is_err());
        assert_eq!(shard.block_on(async { 7 }), 7);
        shard.finish().settled().unwrap();
    });
}

fn group(config: &Config) -> anabranch::Builder {
    Runtime::builder().shards(3).config(config.clone())
}

#[test]
fn a_group_stops_when_told_and_every_ledger_is_settled() {
    on_real_backends(|config| {
        let runtime = group(&config)
            .start(|context| async move {
                let listener = TcpListener::bind_group(&context, anywhere(), Default::default())?;
                loop {
                    let (mut stream, _) = listener.accept().await?;
                    spawn(async move { stream.recv().await.map(drop) }).detach();
                }
            })
            .unwrap();
        assert_eq!(runtime.shards(), 3);
        let address = loop {
            match runtime.shared_listener(anywhere()) {
                Some((address, _)) => break address,
                None => thread::yield_now(),
            }
        };
        let _peers: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        runtime.stop();
        let ends = runtime.join();
        assert_eq!(ends.iter().map(|end| end.index).collect::<Vec<_>>(), [0, 1, 2]);
        for end in ends {
            end.result.unwrap();
            end.counters.settled().unwrap();
        }
    });
}

#[test]
fn dropping_a_group_stops_it() {
    let ended = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&ended);
    let runtime = group(&Config::new())
        .on_stop(move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
        })
        .start(|_| pending())
        .unwrap();
    drop(runtime);
    assert_eq!(ended.load(Ordering::SeqCst), 3);
}

#[test]
fn an_error_of_a_main_future_is_the_error_of_run() {
    let run = group(&Config::new()).run(|context| async move {
        match context.index() {
            1 => Err(io::Error::new(ErrorKind::AddrInUse, "one of three")),
            _ => Ok(()),
        }
    });
    let error = run.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::AddrInUse, "one of three"));
}

#[test]
fn stop_all_ends_the_group_when_a_main_future_panics() {
    on_real_backends(|config| {
        let runtime = group(&config).panic_policy(PanicPolicy::StopAll).start(|context| async move {
            sleep(Duration::from_millis(10)).await;
            assert_ne!(context.index(), 1, "this one panics");
            pending().await
        });
        let ends = runtime.unwrap().join();
        assert!(ends[0].result.is_ok() && ends[2].result.is_ok());
        let error = ends[1].result.as_ref().unwrap_err();
        assert!(error.to_string().contains("this one panics"), "{error}");
        assert!(ends.iter().all(|end| end.counters.settled().is_ok()));
    });
}

#[test]
fn stop_shard_ends_one_and_leaves_the_others() {
    on_real_backends(|config| {
        let runtime = group(&config).panic_policy(PanicPolicy::StopShard).start(|context| async move {
            assert_ne!(context.index(), 1, "this one panics");
            context.stopped().await;
            Ok(())
        });
        let runtime = runtime.unwrap();
        while runtime.remote(1).run(|| {}).is_ok() {
            thread::yield_now();
        }
        assert!(runtime.remote(0).run(|| {}).is_ok() && runtime.remote(2).run(|| {}).is_ok());
        runtime.stop();
        let ends = runtime.join();
        assert!(ends[0].result.is_ok() && ends[1].result.is_err() && ends[2].result.is_ok());
    });
}

#[test]
fn restart_puts_a_new_shard_in_the_place_of_one_that_panicked() {
    on_real_backends(|config| {
        let starts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&starts);
        let runtime = group(&config).panic_policy(PanicPolicy::Restart).start(move |context| {
            let number = if context.index() == 1 { count.fetch_add(1, Ordering::SeqCst) } else { 9 };
            async move {
                let listener = TcpListener::bind_group(&context, anywhere(), Default::default())?;
                assert!(number >= 2, "restart me");
                if context.index() == 1 {
                    context.stop();
                }
                listener.accept().await.map(drop)
            }
        });
        for end in runtime.unwrap().join() {
            end.result.unwrap();
            end.counters.settled().unwrap();
        }
        assert_eq!(starts.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_shard_that_cannot_be_set_up_is_an_error_of_start() {
    let config = Config::new().with_limits(|limits| limits.buffers = 0);
    let error = group(&config).start(|_| async { Ok(()) }).unwrap_err();
    assert!(error.to_string().contains("Limits::buffers"), "{error}");
    assert!(Runtime::builder().shards(0).start(|_| async { Ok(()) }).is_err());
}

#[test]
fn work_off_the_loop_that_outlives_the_shard_does_no_harm() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        shard.block_on(async {
            spawn(async { offload(|| thread::sleep(Duration::from_millis(100))).await }).detach();
            yield_now().await;
        });
        let start = peer::now();
        shard.finish().settled().unwrap();
        assert!((peer::now() - start) < Duration::from_millis(90), "it waited for foreign work");
    });
}
