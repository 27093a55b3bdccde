//! What the tests share: every backend, and a shard that checks its ledger at the end.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod net;

use anabranch::{Backend, Capability, Config, Counters, Script, Shard};
use std::sync::OnceLock;

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
pub(crate) fn real_backends() -> Vec<(String, Config)> {
    let mut all = vec![("readiness".to_owned(), Config::new().backend(Backend::Readiness))];
    if has_uring() {
        all.push(("uring".to_owned(), Config::new().backend(Backend::Uring)));
    }
    all
}

/// io_uring with one capability masked off at a time.
pub(crate) fn masked_backends() -> Vec<(String, Config)> {
    if !has_uring() {
        return Vec::new();
    }
    let masked = |capability: Capability| {
        (format!("uring without {capability}"), Config::new().backend(Backend::Uring).without(capability))
    };
    Capability::ALL.into_iter().map(masked).collect()
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

/// Every backend there is.
pub(crate) fn every_backend() -> Vec<(String, Config)> {
    let mut all = real_backends();
    all.extend(masked_backends());
    all.extend(scripted_backends());
    all
}

/// Runs a test on each of `backends` and says which it covered; a panic names the backend.
pub(crate) fn on(backends: Vec<(String, Config)>, test: impl Fn(Config)) {
    for (name, config) in backends {
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
