//! The simulation finds the planted bug of the example, again and again in the same way, and lets the fix pass.
#![cfg(feature = "sim")]
#![forbid(unsafe_code)]

#[path = "../examples/replicated_counter.rs"]
#[allow(dead_code, reason = "the tests need neither its main nor its flags")]
mod example;

use anabranch::sim::{Failure, replays, seeds};
use example::{Ids, first_failure, simulation};
use std::process::Command;

/// The bug must show within so many seeds.
const ENOUGH: u64 = 200;

fn found() -> Failure {
    first_failure(Ids::InMemory, 0..ENOUGH).expect("the planted bug is found")
}

#[test]
fn the_planted_bug_is_found_and_its_seed_fails_again_in_the_same_way() {
    let failure = found();
    assert!(failure.what().contains("but only"), "{failure}");
    let again = simulation(Ids::InMemory, failure.seed()).run().expect_err("it fails again");
    assert_eq!(again.to_string(), failure.to_string());
    assert_eq!(again.log_hash(), failure.log_hash());
}

#[test]
fn the_failure_says_what_to_do() {
    let failure = found();
    let text = failure.to_string();
    assert!(text.contains(&format!("seed {} failed at ", failure.seed())), "{text}");
    assert!(text.contains("primary: crash") && text.contains(" is done, the value is "), "{text}");
    assert!(text.ends_with(&format!("run it again with ANABRANCH_SIM_SEED={}", failure.seed())), "{text}");
}

#[test]
fn the_variable_runs_exactly_that_seed_in_another_process_too() {
    let failure = found();
    let run = || {
        let test = std::env::current_exe().expect("a test has a path");
        let mut child = Command::new(test);
        child.args(["--exact", "the_seed_of_the_variable", "--ignored", "--nocapture"]);
        let output = child.env("ANABRANCH_SIM_SEED", failure.seed().to_string()).output();
        let output = String::from_utf8(output.expect("the test runs").stdout).expect("text");
        let from = output.find("hash ").expect("it says the hash");
        let until = output.find("the end\n").expect("it comes to its end");
        output[from..until].to_owned()
    };
    let (one, other) = (run(), run());
    assert_eq!(one, format!("hash {:016x}\n{failure}\n{}", failure.log_hash(), whole_log(failure.seed())));
    assert_eq!(one, other);
}

fn whole_log(seed: u64) -> String {
    let failure = simulation(Ids::InMemory, seed).keep_log().run().expect_err("the bug");
    failure.log().to_owned()
}

/// What the test above starts.
#[test]
#[ignore = "it is a part of another test"]
fn the_seed_of_the_variable() {
    let failure = first_failure(Ids::InMemory, seeds(0..1)).expect("the bug");
    println!("hash {:016x}\n{failure}\n{}the end", failure.log_hash(), whole_log(failure.seed()));
}

#[test]
fn the_fixed_version_holds() {
    let mut crashes = 0;
    for seed in seeds(0..500) {
        let report = simulation(Ids::Replicated, seed).run().unwrap();
        crashes += report.count(anabranch::sim::Fault::HostCrash);
    }
    assert!(crashes > 0 || seeds(0..2).end == 1, "no host has crashed in any run");
}

#[test]
fn both_versions_replay() {
    for seed in seeds(0..20) {
        replays(|| simulation(Ids::Replicated, seed)).unwrap();
    }
    let seed = found().seed();
    let failure = replays(|| simulation(Ids::InMemory, seed)).expect_err("the bug");
    assert!(failure.what().contains("but only"), "{failure}");
}
