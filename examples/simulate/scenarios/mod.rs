//! The scenarios: what runs in a simulation, and what must hold in it.
//!
//! Each one is a function from a seed and faults to a simulation. Its programs use the public interface of the crate
//! and nothing else; beside them stands a model of what they may see, which they share with the checks.
#![forbid(unsafe_code)]

mod broadcast;
mod churn;
mod completion;
mod crashes;
mod datagrams;
mod drain;
mod files;
mod groups;
mod messages;
mod model;
mod offload;
mod requests;
mod session;
mod streams;
mod timers;
mod unix;

use anabranch::sim::{Builder, Fault, Faults};

/// A scenario.
pub(crate) struct Scenario {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// What it is about, in one line.
    pub(crate) about: &'static str,
    build: fn(u64, Faults) -> Builder,
}

/// Every scenario.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "streams",
        about: "random operations on TCP connections, against a model",
        build: streams::build,
    },
    Scenario {
        name: "completion",
        about: "the completion API: every submission ends exactly once",
        build: completion::build,
    },
    Scenario {
        name: "requests",
        about: "requests that are tried again until each has its one answer",
        build: requests::build,
    },
    Scenario {
        name: "broadcast",
        about: "messages to many, some of whom read slowly or leave",
        build: broadcast::build,
    },
    Scenario { name: "groups", about: "listeners and work over several shards", build: groups::build },
    Scenario {
        name: "messages",
        about: "work from shard to shard, and nothing else that could wake one",
        build: messages::build,
    },
    Scenario {
        name: "datagrams",
        about: "datagrams to one and to many, and a protocol that gets all of its through",
        build: datagrams::build,
    },
    Scenario {
        name: "unix",
        about: "random operations on Unix connections and pairs, against a model",
        build: unix::build,
    },
    Scenario { name: "files", about: "a write-ahead log through crashes", build: files::build },
    Scenario {
        name: "churn",
        about: "hundreds of short connections that end in every phase",
        build: churn::build,
    },
    Scenario {
        name: "timers",
        about: "sleeps, intervals and time-outs, never early, always there",
        build: timers::build,
    },
    Scenario {
        name: "offload",
        about: "blocking work, storms of tasks, aborts, panics, names",
        build: offload::build,
    },
    Scenario { name: "drain", about: "shards that end in the middle of their traffic", build: drain::build },
    Scenario {
        name: "crashes",
        about: "requests while hosts crash and the network is cut",
        build: crashes::build,
    },
];

/// How much goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// As [`Faults::rough`], but nothing in every third seed.
    Rough,
    /// Several times as much, but nothing in every third seed.
    Harsh,
}

impl Scenario {
    /// The simulation of one seed.
    pub(crate) fn builder(&self, seed: u64, level: Level) -> Builder {
        let calm = level == Level::None || seed % 3 == 0;
        let faults = match level {
            _ if calm => Faults::none(),
            Level::Harsh => harsh(),
            _ => Faults::rough(),
        };
        (self.build)(seed, faults).seed(seed)
    }
}

/// Rates at which programs with retries still get somewhere.
fn harsh() -> Faults {
    Fault::ALL.iter().fold(Faults::rough(), |faults, fault| {
        let rate = faults.rate(*fault);
        let more = match fault {
            Fault::UnsyncedLoss => rate,
            _ if fault.is_timed() => rate * 4.0,
            _ => (rate * 4.0).min(0.3),
        };
        faults.with(*fault, more)
    })
}
