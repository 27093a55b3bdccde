//! What the tests share: every backend, and a shard that checks its ledger at the end.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod cpp;
pub(crate) mod net;
pub(crate) mod peer;
pub(crate) mod program;

use anabranch::{Backend, Capability, Config, Counters, Script, Shard};
use std::sync::OnceLock;

/// Whether Windows is played by Wine, which tells some things in another way; `scripts/windows.sh` says so.
pub(crate) fn is_wine() -> bool {
    cfg!(windows) && std::env::var_os("ANABRANCH_TEST_WINE").is_some()
}

/// The number of the error that a file is not open for that.
#[cfg(unix)]
pub(crate) const BAD_FILE: i32 = nix::libc::EBADF;
/// The same of Windows, ERROR_ACCESS_DENIED.
#[cfg(windows)]
pub(crate) const BAD_FILE: i32 = 5;

/// The number of the error that a datagram is too long.
#[cfg(unix)]
pub(crate) const TOO_LONG: i32 = nix::libc::EMSGSIZE;
/// The same of Winsock, WSAEMSGSIZE.
#[cfg(windows)]
pub(crate) const TOO_LONG: i32 = 10040;

/// Whether io_uring can be used here; says so once, loudly, if not.
pub(crate) fn has_uring() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| match Shard::new(Config::new().backend(Backend::Uring)) {
        Ok(shard) if shard.report().backend == anabranch::BackendKind::Uring => true,
        Ok(shard) => {
            eprintln!("NOT COVERED: io_uring and its masked variants ({})", shard.report().reason);
            false
        }
        Err(error) => {
            eprintln!("NOT COVERED: io_uring and its masked variants ({error})");
            false
        }
    })
}

/// The system's own backends, by name.
#[cfg(windows)]
pub(crate) fn real_backends() -> Vec<(String, Config)> {
    vec![("iocp".to_owned(), Config::new().backend(Backend::Iocp))]
}

/// The system's own backends, by name.
#[cfg(unix)]
pub(crate) fn real_backends() -> Vec<(String, Config)> {
    let mut all = vec![("readiness".to_owned(), Config::new().backend(Backend::Readiness))];
    if has_uring() {
        all.push(plain_or_asked_for());
    }
    all
}

/// io_uring as it comes, or the variant that `ANABRANCH_TEST_BACKEND` names in its place, so that tests of the system's
/// own backends run on that, too.
fn plain_or_asked_for() -> (String, Config) {
    let only = only();
    let asked_for = variants().into_iter().find(|(name, _)| *name == only);
    asked_for.unwrap_or_else(|| ("uring".to_owned(), Config::new().backend(Backend::Uring)))
}

/// io_uring with one capability masked off at a time, with all of them, and restricted to what it needs.
fn variants() -> Vec<(String, Config)> {
    let ring = || Config::new().backend(Backend::Uring);
    let masked = |capability| (format!("uring without {capability}"), ring().without(capability));
    let mut all: Vec<_> = Capability::ALL.into_iter().map(masked).collect();
    all.push((
        "uring without anything".to_owned(),
        Capability::ALL.into_iter().fold(ring(), Config::without),
    ));
    all.push(("uring hardened".to_owned(), ring().hardened(true)));
    all
}

/// The variants of io_uring that [`real_backends`] has not.
pub(crate) fn masked_backends() -> Vec<(String, Config)> {
    if !has_uring() {
        return Vec::new();
    }
    let (taken, _) = plain_or_asked_for();
    variants().into_iter().filter(|(name, _)| *name != taken).collect()
}

/// The scripted backend, calm and rough.
pub(crate) fn scripted_backends() -> Vec<(String, Config)> {
    let script = |name: &str, script: Script| (format!("script ({name})"), Config::new().script(script));
    vec![
        script("calm", Script::calm(1)),
        script("rough 1", Script::rough(1)),
        script("rough 2", Script::rough(2)),
    ]
}

/// Simulated machines, calm and rough, each in a world of its own.
#[cfg(feature = "sim")]
pub(crate) fn simulated_backends() -> Vec<(String, Config)> {
    use anabranch::sim::alone::Alone;
    use anabranch::sim::{Fault, Faults};
    // What a correct program need not notice: the faults of the kernel's completions, and none of the network's
    // that change an outcome.
    let rough = Faults::none()
        .with(Fault::LateCompletion, 0.1)
        .with(Fault::ReorderedCompletion, 0.1)
        .with(Fault::LateSuccess, 0.3)
        .with(Fault::NoBuffers, 0.05)
        .with(Fault::TurnRefused, 0.05)
        .with(Fault::ShortRead, 0.1)
        .with(Fault::ShortWrite, 0.1)
        .with(Fault::Segmentation, 0.2)
        .with(Fault::DoubleWake, 0.1)
        .with(Fault::SpuriousReady, 0.1)
        .with(Fault::Buggify, 0.05);
    let mut all = Vec::new();
    for seed in [1, 2] {
        for (name, faults) in [("calm", Faults::none()), ("rough", rough.clone())] {
            let config = Alone::new(seed, faults).config(Config::new());
            all.push((format!("simulation ({name} {seed})"), config));
        }
    }
    all
}

/// Without the feature there is no simulation.
#[cfg(not(feature = "sim"))]
pub(crate) fn simulated_backends() -> Vec<(String, Config)> {
    Vec::new()
}

/// The tests that cannot run on a simulated machine, and why.
const NOT_SIMULATED: &[(&str, &str)] = &[
    (
        "a_connection_given_away_keeps_its_unread_bytes_and_blocks_again",
        "a simulated socket cannot leave its simulation",
    ),
    (
        "a_connection_given_away_while_bytes_arrive_loses_none",
        "a simulated socket cannot leave its simulation",
    ),
    (
        "an_option_that_is_set_is_that_of_the_socket_of_the_system",
        "it looks at a socket through the system, which knows no simulated one",
    ),
    ("a_stream_of_the_standard_library_comes_in_and_goes_out", "it is about sockets of the system"),
    ("a_regular_file_is_always_ready", "readiness is waited for on descriptors of the system"),
    (
        "a_foreign_descriptor_is_waited_for_and_may_be_closed_meanwhile",
        "readiness is waited for on descriptors of the system",
    ),
    (
        "an_operation_whose_future_is_kept_does_not_hold_up_the_end_of_a_shard",
        "readiness is waited for on descriptors of the system",
    ),
    (
        "metadata_are_those_of_the_system_and_a_directory_cannot_be_read",
        "a simulated machine has neither directories nor metadata of the system",
    ),
    (
        "blocking_work_runs_beside_the_loop",
        "a simulation has one thread, on which such work runs between two turns",
    ),
    (
        "a_full_queue_of_blocking_work_refuses_and_recovers",
        "its work waits for the shard, and a simulation has one thread for both",
    ),
    ("a_signal_reaches_everybody_who_listens_for_it", "signals are those of the system"),
    ("signals_that_came_while_nobody_waited_are_told_once_at_least", "signals are those of the system"),
];

/// The backends without the simulated ones; only for a test of the table above.
pub(crate) fn not_simulated(test: &str, backends: Vec<(String, Config)>) -> Vec<(String, Config)> {
    let why = NOT_SIMULATED.iter().find(|(name, _)| *name == test).map(|(_, why)| *why);
    let why = why.expect("a test that is not simulated stands in the table, with the reason");
    let (simulated, others): (Vec<_>, Vec<_>) =
        backends.into_iter().partition(|(_, config)| peer::is_simulated(config));
    if !simulated.is_empty() {
        println!("NOT COVERED: {test} on a simulated machine: {why}");
    }
    others
}

/// Every backend there is.
pub(crate) fn every_backend() -> Vec<(String, Config)> {
    let mut all = real_backends();
    all.extend(masked_backends());
    all.extend(scripted_backends());
    all.extend(simulated_backends());
    all
}

/// What `ANABRANCH_TEST_BACKEND` limits the tests to.
fn only() -> String {
    std::env::var("ANABRANCH_TEST_BACKEND").unwrap_or_default()
}

/// Whether a backend of this name is to be tested: it is the one asked for, or of that kind.
fn is_asked_for(name: &str, only: &str) -> bool {
    only.is_empty() || name == only || name.starts_with(&format!("{only} "))
}

/// Runs a test on each of `backends` and says which it covered; a panic names the backend.
///
/// `ANABRANCH_TEST_BACKEND=simulation` runs only those of that kind, `ANABRANCH_TEST_BACKEND="uring hardened"` only that.
pub(crate) fn on(backends: Vec<(String, Config)>, test: impl Fn(Config)) {
    let only = only();
    for (name, config) in backends.into_iter().filter(|(name, _)| is_asked_for(name, &only)) {
        peer::enter(&config);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(config)));
        if let Err(panic) = outcome {
            eprintln!("FAILED on backend: {name}");
            std::panic::resume_unwind(panic);
        }
        println!("covered: {name}");
    }
}

/// Runs a test on every backend.
pub(crate) fn on_every_backend(test: impl Fn(Config)) {
    on(every_backend(), test);
}

/// Runs `future` on a shard of its own, ends the shard, and checks that the ledger is settled.
pub(crate) fn run<F: Future>(config: Config, future: F) -> (F::Output, Counters) {
    let shard = Shard::new(config).expect("a shard");
    let output = shard.block_on(future);
    let counters = shard.finish();
    counters.settled().expect("the ledger is settled");
    assert_eq!(counters.stale, 0, "no stale completion");
    (output, counters)
}
