//! Choosing a backend, and what is refused with a reason.
#![forbid(unsafe_code)]

mod common;

use anabranch::{Backend, BackendKind, Capability, Config, Limits, Shard};
use common::has_uring;
use common::net::{in_child, is_child, on_real_backends, on_typical_backends};
use std::io::ErrorKind;

/// Says in a child process what a shard with this configuration became.
fn tell(config: Config) {
    match Shard::new(config) {
        Ok(shard) => println!("TOLD: {}", shard.report().to_string().replace('\n', " | ")),
        Err(error) => println!("TOLD: error {:?}: {error}", error.kind()),
    }
}

fn told(test: &str, value: &str) -> String {
    let output = in_child(test, &[("ANABRANCH_BACKEND", value)]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find_map(|line| line.split_once("TOLD: "));
    line.unwrap_or_else(|| panic!("the child said nothing: {said}")).1.to_owned()
}

// Not on Windows: it has one backend.
#[cfg(unix)]
#[test]
fn the_environment_overrides_the_configuration() {
    if is_child() {
        return tell(Config::new().backend(Backend::Uring));
    }
    let text = told("the_environment_overrides_the_configuration", "readiness");
    assert!(text.starts_with("backend  readiness") && text.contains("ANABRANCH_BACKEND"), "{text}");
}

#[test]
fn the_environment_may_ask_for_the_ring() {
    if is_child() {
        return tell(Config::new().backend(Backend::Readiness));
    }
    if !has_uring() {
        return;
    }
    let text = told("the_environment_may_ask_for_the_ring", "uring");
    assert!(text.starts_with("backend  uring") && text.contains("ANABRANCH_BACKEND"), "{text}");
}

#[test]
fn a_backend_that_does_not_exist_is_an_error_that_names_those_that_do() {
    if is_child() {
        return tell(Config::new());
    }
    let text = told("a_backend_that_does_not_exist_is_an_error_that_names_those_that_do", "kqueue");
    assert!(text.starts_with("error InvalidInput"), "{text}");
    for word in ["ANABRANCH_BACKEND", "kqueue", "auto", "uring", "readiness"] {
        assert!(text.contains(word), "{text} does not say {word}");
    }
}

#[test]
fn a_report_takes_five_lines_and_names_backend_and_reason() {
    on_real_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let report = shard.report();
        let text = report.to_string();
        let heads: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().0).collect();
        assert_eq!(heads, ["backend", "reason", "ladder", "uses", "emulates"], "{text}");
        assert!(text.contains(&report.reason) && !report.reason.is_empty());
        assert_eq!(shard.block_on(async { anabranch::report() }).unwrap(), report);
    });
}

#[test]
fn a_masked_capability_is_reported_as_emulated() {
    if !has_uring() {
        return;
    }
    for capability in Capability::ALL {
        let shard = Shard::new(Config::new().backend(Backend::Uring).without(capability)).unwrap();
        let report = shard.report();
        assert_eq!(report.backend, BackendKind::Uring);
        assert!(!report.capabilities.has(capability), "{report}");
        assert!(report.lowered.iter().any(|(lowered, _)| *lowered == capability), "{report}");
    }
}

#[test]
fn a_ring_without_shared_buffers_is_taken_only_if_asked_for() {
    if !has_uring() || std::env::var_os("ANABRANCH_BACKEND").is_some() {
        return;
    }
    // What a kernel before Linux 5.19 lacks.
    let old = Config::new().without(Capability::BufferRing);
    let report = Shard::new(old.clone()).unwrap().report();
    assert_eq!(report.backend, BackendKind::Readiness, "{report}");
    assert!(report.reason.contains("5.19") && report.reason.contains("Backend::Uring"), "{report}");
    assert!(report.ladder.len() >= 2, "the ring that was tried and what was taken: {report}");
    let asked_for = Shard::new(old.backend(Backend::Uring)).unwrap().report();
    assert_eq!(asked_for.backend, BackendKind::Uring, "{asked_for}");
}

#[test]
fn a_hardened_ring_echoes_and_the_report_says_what_it_takes() {
    on_real_backends(|config| {
        let shard = Shard::new(config.hardened(true)).unwrap();
        let report = shard.report();
        let said = report.hardened.as_deref().expect("it was asked for");
        let words = if report.backend == BackendKind::Uring {
            ["recv ", "accept ", "EACCES"]
        } else {
            ["no ring", "nothing", "restrict"]
        };
        assert!(words.iter().all(|word| said.contains(word)), "{report}");
        assert!(!said.contains("nop") && report.to_string().ends_with(said), "{report}");
        shard.block_on(async {
            let (mut ours, mut theirs) = common::net::pair().await;
            ours.send("through the ring").await.unwrap();
            assert_eq!(theirs.recv_exact(16).await.unwrap(), "through the ring");
        });
        shard.finish().settled().unwrap();
    });
    assert_eq!(Shard::new(Config::new()).unwrap().report().hardened, None);
}

#[test]
fn a_hardened_ring_may_have_a_kernel_thread_that_submits() {
    if !has_uring() {
        return;
    }
    let config = Config::new().backend(Backend::Uring).hardened(true);
    common::net::check(config.submission_polling(std::time::Duration::from_millis(20)), async {
        let (mut ours, mut theirs) = common::net::pair().await;
        ours.send("by another thread").await.unwrap();
        assert_eq!(theirs.recv_exact(17).await.unwrap(), "by another thread");
    });
}

#[test]
fn impossible_limits_are_refused_by_name() {
    type Change = fn(&mut Limits);
    let changes: [(&str, Change); 11] = [
        ("operations_max", |limits| limits.operations_max = 0),
        ("operations_max", |limits| limits.operations_max = usize::MAX),
        ("endpoints_max", |limits| limits.endpoints_max = 0),
        ("buffers", |limits| limits.buffers = 0),
        ("buffers", |limits| limits.buffers = 100_000),
        ("buffer_bytes", |limits| limits.buffer_bytes = 1),
        ("datagram_buffers", |limits| limits.datagram_buffers = 100_000),
        ("datagram_buffer_bytes", |limits| limits.datagram_buffer_bytes = 1),
        ("inbound_bytes_max", |limits| limits.inbound_bytes_max = 0),
        ("mailbox_max", |limits| limits.mailbox_max = 0),
        ("accept_queue_max", |limits| limits.accept_queue_max = 0),
    ];
    for (name, change) in changes {
        let error = Shard::new(Config::new().with_limits(change)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&format!("Limits::{name}")), "{error} does not name {name}");
    }
}

#[test]
fn small_limits_and_odd_rings_are_possible() {
    on_typical_backends(|config| {
        let config = config.ring_entries(3).with_limits(|limits| {
            *limits = Limits::default();
            limits.buffers = 1;
            limits.buffer_bytes = 512;
            limits.completions_per_turn_max = 1;
            limits.polls_per_turn_max = 1;
            limits.attempts_per_event_max = 1;
        });
        common::net::check(config, async {
            let (mut ours, mut theirs) = common::net::pair().await;
            ours.send(common::net::pattern(20_000)).await.unwrap();
            drop(ours);
            let got = common::net::recv_all(&mut theirs).await.unwrap();
            assert!(got == common::net::pattern(20_000), "the bytes differ");
        });
    });
}

#[test]
fn a_kernel_thread_submits_when_asked_for() {
    if !common::has_uring() {
        return;
    }
    let config =
        Config::new().backend(Backend::Uring).submission_polling(std::time::Duration::from_millis(20));
    let (_, counters) = common::run(config, async {
        let listener = anabranch::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut ours = anabranch::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut theirs, _) = listener.accept().await.unwrap();
        for round in 0..50 {
            // Longer than the thread stays awake, so that it must be woken, too.
            if round % 25 == 0 {
                anabranch::sleep(std::time::Duration::from_millis(40)).await;
            }
            ours.send("round and round").await.unwrap();
            let heard = theirs.recv_exact(15).await.unwrap();
            theirs.send(heard).await.unwrap();
            assert_eq!(ours.recv_exact(15).await.unwrap(), "round and round");
        }
    });
    assert_eq!(counters.panics, 0);
}
