//! The bad network of the examples: packets are delayed, overtaken, lost, doubled and corrupted, and every byte
//! arrives all the same, on each of the system's backends.
#![forbid(unsafe_code)]

mod common;

use common::program::program;
use std::process::Command;

/// Runs the check; says loudly if this machine has no network to spoil.
fn check(flags: &str) -> Option<String> {
    let output = Command::new(program("bad_network")).arg("--check").args(flags.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(75) {
        eprintln!("NOT COVERED: connections over a bad network: {errors}");
        return None;
    }
    assert!(output.status.success(), "{}: {said}{errors}", output.status);
    println!("{said}");
    Some(said)
}

/// The numbers of a backend's line in the table.
fn numbers(said: &str, backend: &str) -> Vec<f64> {
    let is_line = |line: &&str| line.starts_with('|') && line.contains(backend);
    let line = said.lines().find(is_line).unwrap_or_else(|| panic!("no line for {backend}: {said}"));
    line.split('|').filter_map(|cell| cell.trim().parse().ok()).collect()
}

#[test]
fn every_byte_arrives_over_a_bad_network() {
    let flags = "--seed 7 --bytes 400000 --delay-ms 5 --jitter-ms 3 --loss 0.02 --duplicate 0.02 --corrupt 0.01 --seconds 60";
    let Some(said) = check(flags) else { return };
    for (backend, _) in common::real_backends() {
        let numbers = numbers(&said, &backend);
        let [forwarded, lost, duplicated, corrupted, reordered, bytes, _seconds] = numbers[..] else {
            panic!("{numbers:?}")
        };
        assert_eq!(bytes, 400_000.0);
        assert!(forwarded >= 400_000.0 / 1400.0, "the bytes went over the network");
        assert!(
            lost > 0.0 && duplicated > 0.0 && corrupted > 0.0 && reordered > 0.0,
            "it was bad: {numbers:?}"
        );
    }
    let ledgers = said.lines().filter(|line| line.contains("ledger: ")).count();
    assert_eq!(ledgers, 2 * common::real_backends().len());
}

#[test]
fn a_network_that_loses_everything_ends_by_the_time_limit() {
    let mut command = Command::new(program("bad_network"));
    let output = command
        .args(["--check", "--loss", "1", "--seconds", "1", "--backend", "readiness"])
        .output()
        .unwrap();
    match output.status.code() {
        Some(75) => eprintln!("NOT COVERED: a network that loses everything"),
        Some(1) => assert!(String::from_utf8_lossy(&output.stderr).contains("error on readiness")),
        other => panic!("{other:?}: {}", String::from_utf8_lossy(&output.stdout)),
    }
}
