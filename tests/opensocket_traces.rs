//! The 72 recorded scenarios of the original OpenSocket, replayed against the facade on both backends.
//!
//! A scenario makes the same situation; events and results of calls must be those of the trace, except for what varies
//! by its nature, and where the original has a defect that the facade does not have (`facade` in the trace file).

#![allow(unsafe_code, reason = "a descriptor is bound by its number, as C++ programs do it")]

#[path = "opensocket_traces/closing.rs"]
mod closing;
mod common;
#[cfg(feature = "capi")]
#[path = "opensocket_traces/cpp.rs"]
mod cpp;
#[path = "opensocket_traces/datagrams.rs"]
mod datagrams;
#[path = "opensocket_traces/life.rs"]
mod life;
#[path = "opensocket_traces/rust.rs"]
mod rust;
#[path = "opensocket_traces/sending.rs"]
mod sending;
#[path = "opensocket_traces/trace.rs"]
mod trace;
#[path = "opensocket_traces/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use trace::{Seen, Trace};
use world::World;

/// What may differ from the trace.
#[derive(Clone, Copy)]
enum Vary {
    /// The result of this call, which the scenario has looked at itself.
    Call(&'static str),
    /// Calls are made by two threads.
    OrderOfCalls,
    /// The words of the system or the resolver.
    Text,
    /// Whether a socket ends with Close or Error.
    End,
    /// How much waits, which the scenario has looked at itself; whether to leave the warnings out altogether.
    Warnings { leave_out: bool },
    /// How a stream is cut into pieces.
    Pieces,
    /// Which of two sockets is told of first: only causality orders them.
    OrderOfSockets,
    /// The original never closes it; the facade must, exactly once.
    OneMoreClose,
}

type Scenario = (&'static str, fn(&World), &'static [Vary]);

macro_rules! scenarios {
    ($($module:ident::$name:ident $([$($vary:expr),*])?,)*) => {
        &[$((stringify!($name), $module::$name, &[$($($vary),*)?])),*]
    };
}

const SCENARIOS: &[Scenario] = scenarios![
    life::echo_close_by_client,
    closing::close_by_server,
    closing::close_uid_differs_from_owner,
    closing::shutdown_pending [Vary::Call("peer_got_bytes")],
    closing::close_pending,
    closing::close_pending_peer_sends,
    closing::close_pending_peer_closes [Vary::End],
    closing::close_then_shutdown_pending,
    closing::close_twice,
    life::connect_refused,
    life::listen_port_in_use,
    life::listen_bad_host [Vary::Call("port_70000")],
    life::listen_port_zero,
    sending::warning_queue_8m [Vary::Warnings { leave_out: true }],
    sending::warning_single_send_8m,
    sending::warning_while_connecting [Vary::Warnings { leave_out: true }],
    sending::lowprio_order,
    sending::lowprio_idle,
    sending::lowprio_partial [Vary::Warnings { leave_out: false }],
    datagrams::udp_echo [Vary::OrderOfCalls],
    datagrams::udp_connect_errors [Vary::Call("udpSend_mismatch")],
    datagrams::udp_connect_on_tcp,
    datagrams::udp_closed_port,
    datagrams::udp_bind_twice,
    datagrams::udp_ephemeral,
    datagrams::udp6_echo,
    datagrams::udp_big,
    datagrams::udp_source_address_unconnected,
    life::ipv6_echo,
    life::connect_localhost_v4_only,
    life::double_start_listen,
    life::transfer,
    life::start_after_connect,
    closing::close_before_start,
    life::start_late_peer_sent_and_closed,
    sending::send_to_unstarted,
    sending::start_then_send_same_thread,
    life::invalid_ids,
    life::never_used_slot_zero,
    life::many_connections_200,
    life::accept_many_then_data_order,
    closing::peer_reset,
    closing::peer_reset_after_data,
    closing::peer_half_close,
    closing::peer_half_close_pending_output,
    closing::peer_half_close_echo_in_callback,
    life::listen_without_start,
    closing::close_unstarted_listen,
    closing::close_listen_keeps_conns,
    life::nodelay,
    sending::send_while_connecting,
    life::connect_dns_failure [Vary::Text],
    life::connect_bad_args [Vary::Text],
    life::bind_adopt [Vary::Call("got_before_close"), Vary::Call("wbuffer"), Vary::Call("got_after_close")],
    life::bind_bad_fd,
    life::bind_tcp_twice_start,
    life::info_fields,
    sending::read_sizes [Vary::Pieces],
    sending::send_zero_and_negative,
    life::id_sequence,
    closing::close_in_open_callback,
    closing::send_after_close_same_thread,
    closing::send_after_peer_closed_rst [Vary::End],
    life::emfile_accept [Vary::Call("errors_gt_100_in_100ms")],
    closing::close_all_types_order,
    life::close_while_connecting,
    life::start_while_connecting [Vary::OrderOfSockets],
    closing::transfer_then_close_order [Vary::OneMoreClose],
    life::listen_dualstack,
    life::listen_hostname_empty,
    sending::concurrent_send_atomic,
    closing::server_close_unread_input,
];

/// The scenarios that change the whole process.
const ALONE: &[&str] = &["emfile_accept"];

/// The scenarios that Windows has no means for, and why.
const NOT_ON_WINDOWS: &[(&str, &str)] = &[
    ("emfile_accept", "its table of handles has no limit that could be lowered"),
    ("udp_bind_twice", "two sockets cannot have one port there"),
];

/// What varies on Windows beside what varies everywhere: a listener cannot be shut down there, so it refuses only when its
/// accept in flight has ended, a little after its Close.
const VARIES_ON_WINDOWS: &[(&str, Vary)] = &[("close_listen_keeps_conns", Vary::Call("peer_connect"))];

/// The scenarios of which Wine does not tell the end.
const NOT_UNDER_WINE: &[&str] = &["peer_reset", "peer_reset_after_data", "server_close_unread_input"];

/// Why a scenario cannot be played here.
fn left_out(name: &str) -> Option<&'static str> {
    if common::is_wine() && NOT_UNDER_WINE.contains(&name) {
        return Some("Wine tells an end in the place of a reset");
    }
    NOT_ON_WINDOWS.iter().find(|(other, _)| cfg!(windows) && *other == name).map(|(_, why)| *why)
}

/// Takes what may differ out of what is compared.
fn level(vary: Vary, events: &mut Vec<Seen>, calls: &mut Vec<(String, String)>) {
    match vary {
        Vary::Call(name) => calls.retain(|(call, _)| call != name),
        Vary::OrderOfCalls => calls.sort(),
        Vary::Text => events.iter_mut().filter(|event| event.ev == "Error").for_each(|event| {
            assert!(event.text.as_ref().is_some_and(|text| text.len() + 1 == event.size));
            (event.text, event.size) = (None, 0);
        }),
        Vary::End => events.iter_mut().filter(|event| event.ev == "Error").for_each(|event| {
            (event.ev, event.text, event.size) = ("Close".into(), None, 0);
        }),
        Vary::Warnings { leave_out: true } => events.retain(|event| event.ev != "Warning"),
        Vary::Warnings { leave_out: false } => {
            // The second one is told of what the system has left.
            let warnings = events.iter_mut().filter(|event| event.ev == "Warning" && event.size > 0);
            warnings.skip(1).for_each(|event| event.size = 1);
        }
        Vary::Pieces => events.dedup_by(|next, first| {
            let same = next.ev == "Data" && first.ev == "Data" && next.fd == first.fd;
            if same {
                first.size += next.size;
                first.text = None;
            }
            same
        }),
        Vary::OrderOfSockets => events.sort_by(|a, b| a.fd.cmp(&b.fd)),
        Vary::OneMoreClose => events.retain(|event| event.ev != "Close"),
    }
}

fn replay(scenario: &Scenario, trace: &Trace, world: &World) -> Result<(), String> {
    let (name, run, vary) = scenario;
    let on_windows = VARIES_ON_WINDOWS.iter().filter(|(other, _)| cfg!(windows) && other == name);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        run(world);
        world.settle();
    }));
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<String>().cloned();
        return Err(text.unwrap_or_else(|| "it panicked".into()));
    }
    let (mut events, mut calls) = (world.seen(), world.noted());
    let mut expected = trace.clone();
    for vary in vary.iter().chain(on_windows.map(|(_, vary)| vary)) {
        if matches!(vary, Vary::OneMoreClose) {
            let closes = events.iter().filter(|event| event.ev == "Close");
            assert!(closes.clone().count() == 1 && closes.clone().all(|close| [2, 3].contains(&close.uid)));
        }
        level(*vary, &mut events, &mut calls);
        level(*vary, &mut expected.events, &mut expected.calls);
    }
    expected.compare(&events, &calls)
}

/// Replays all scenarios that match; panics with everything that differs.
fn replay_all(what: &str, backend: &str, make: &dyn Fn() -> World) {
    let traces = Trace::all();
    let (mut wrong, mut played) = (Vec::new(), 0);
    for scenario in SCENARIOS {
        let name = scenario.0;
        let trace = &traces[name];
        if let Some(why) = left_out(name) {
            println!("NOT COVERED: the scenario {name}: {why}");
            continue;
        }
        played += 1;
        let result = if ALONE.contains(&name) {
            in_a_process(what, name, backend)
        } else {
            replay(scenario, trace, &make())
        };
        if let Err(text) = result {
            wrong.push(format!("{name} (original: {}): {text}", trace.original));
        }
    }
    println!("{what} on {backend}: {played} scenarios of {}", SCENARIOS.len());
    assert!(
        wrong.is_empty(),
        "{what} on {backend}: {} scenarios differ\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

/// A scenario, or all of them, in a process of its own: this program again.
fn in_a_process(what: &str, name: &str, backend: &str) -> Result<(), String> {
    let output = Command::new(std::env::current_exe().expect("a test has a path"))
        .args(["one_scenario_in_a_process_of_its_own", "--exact", "--nocapture"])
        .env("OPENSOCKET_SCENARIO", format!("{what} {name} {backend}"))
        .env("ANABRANCH_BACKEND", backend)
        .output()
        .expect("this program starts");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn make(what: &str, backend: &str) -> World {
    let (_, config) =
        common::real_backends().into_iter().find(|(name, _)| name == backend).expect("a backend");
    match what {
        "rust" => rust::world(&config),
        // The class chooses by the environment, which `in_a_process` has set.
        #[cfg(feature = "capi")]
        "cpp" => cpp::world(),
        other => panic!("no facade is called {other}"),
    }
}

/// Does nothing unless `in_a_process` has started it.
#[test]
fn one_scenario_in_a_process_of_its_own() {
    let Ok(wanted) = std::env::var("OPENSOCKET_SCENARIO") else { return };
    let mut words = wanted.split(' ');
    let mut word = || words.next().expect("three words");
    let (what, name, backend) = (word(), word(), word());
    if name == "all" {
        return replay_all(what, backend, &|| make(what, backend));
    }
    let scenario = SCENARIOS.iter().find(|scenario| scenario.0 == name).expect("a scenario");
    if let Err(text) = replay(scenario, &Trace::all()[name], &make(what, backend)) {
        panic!("{text}");
    }
}

#[test]
fn every_trace_has_its_scenario() {
    let traces = Trace::all();
    let scenarios: BTreeMap<&str, ()> = SCENARIOS.iter().map(|scenario| (scenario.0, ())).collect();
    assert_eq!(traces.len(), 72);
    assert_eq!(
        traces.keys().map(String::as_str).collect::<Vec<_>>(),
        scenarios.into_keys().collect::<Vec<_>>()
    );
    let broken = traces.values().filter(|trace| trace.original != "same").count();
    assert_eq!(broken, 14, "what the original does not survive");
    assert!(traces.values().any(|trace| trace.facade.is_some()));
}

#[cfg(windows)]
#[test]
fn the_rust_facade_does_what_the_original_does_on_iocp() {
    replay_all("rust", "iocp", &|| make("rust", "iocp"));
}

// Not on Windows: it has completions.
#[cfg(unix)]
#[test]
fn the_rust_facade_does_what_the_original_does_on_readiness() {
    replay_all("rust", "readiness", &|| make("rust", "readiness"));
}

#[test]
fn the_rust_facade_does_what_the_original_does_on_uring() {
    if common::has_uring() {
        replay_all("rust", "uring", &|| make("rust", "uring"));
    }
}

#[cfg(feature = "capi")]
fn replay_cpp(backend: &str) {
    if common::cpp::compiler().is_some() {
        in_a_process("cpp", "all", backend).unwrap_or_else(|text| panic!("{text}"));
    }
}

#[cfg(feature = "capi")]
#[test]
fn the_cpp_class_does_what_the_original_does_on_readiness() {
    replay_cpp("readiness");
}

#[cfg(feature = "capi")]
#[test]
fn the_cpp_class_does_what_the_original_does_on_uring() {
    if common::has_uring() {
        replay_cpp("uring");
    }
}
