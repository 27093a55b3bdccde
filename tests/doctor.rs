//! The doctor: what it tells a person and a machine, where io_uring works and where it is refused.
// Not on Windows: what it looks at is Linux's.
#![cfg(unix)]
#![forbid(unsafe_code)]

mod common;

use anabranch::{Config, Shard};
use common::program::program;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const SUBJECTS: [&str; 10] = [
    "kernel",
    "io_uring",
    "seccomp",
    "capabilities",
    "hardened",
    "locked memory",
    "descriptors",
    "processors",
    "quota",
    "congestion control",
];

fn doctor() -> Command {
    let mut command = Command::new(program("doctor"));
    command.env_remove("ANABRANCH_BACKEND");
    command
}

fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the doctor starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}: {stdout}{stderr}");
    stdout.into_owned()
}

fn json(command: &mut Command) -> Value {
    let text = said(command.arg("--json"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn finding<'a>(json: &'a Value, subject: &str) -> &'a Value {
    let findings = json["findings"].as_array().expect("a list of findings");
    let found = findings.iter().find(|finding| finding["subject"] == subject);
    found.unwrap_or_else(|| panic!("no finding about {subject}: {json:#}"))
}

fn text<'a>(json: &'a Value, subject: &str, part: &str) -> &'a str {
    finding(json, subject)[part].as_str().expect("a text")
}

/// A launcher that refuses io_uring; `None`, and says so, where it cannot be had.
fn blockring() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/blockring.c");
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("blockring-of-doctor");
        let compiled = Command::new("cc").arg("-O1").arg("-o").arg(&out).arg(source).status();
        let works = compiled.is_ok_and(|status| status.success())
            && Command::new(&out).args(["EPERM", "true"]).status().is_ok_and(|status| status.success());
        if !works {
            eprintln!("NOT COVERED: the doctor where io_uring is refused (no C compiler, or no seccomp)");
        }
        works.then_some(out)
    });
    built.as_deref()
}

/// The doctor under a filter.
fn refused(how: &str) -> Option<Command> {
    let mut command = Command::new(blockring()?);
    command.env_remove("ANABRANCH_BACKEND").arg(how).arg(program("doctor"));
    Some(command)
}

#[test]
fn a_machine_reads_the_backend_and_a_line_of_advice_for_each_finding() {
    let json = json(&mut doctor());
    let report = Shard::new(Config::new()).unwrap().report();
    if std::env::var_os("ANABRANCH_BACKEND").is_none() {
        assert_eq!(json["backend"]["name"], report.backend.to_string());
        assert_eq!(json["backend"]["ladder"].as_array().unwrap().len(), report.ladder.len());
    }
    assert!(json["shards"].as_array().is_some_and(|shards| !shards.is_empty()), "{json:#}");
    for subject in SUBJECTS {
        for part in ["found", "from", "advice"] {
            let text = text(&json, subject, part);
            assert!(!text.is_empty() && !text.contains('\n'), "{subject}, {part}: {text:?}");
        }
        let state = text(&json, subject, "state");
        assert!(["ok", "note", "problem"].contains(&state), "{subject}: {state}");
    }
}

#[test]
fn a_person_reads_the_same() {
    let text = said(&mut doctor());
    let json = json(&mut doctor());
    for subject in SUBJECTS {
        let finding = finding(&json, subject);
        for part in [subject, finding["advice"].as_str().unwrap()] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
    assert!(text.contains(&format!("backend  {}", json["backend"]["name"].as_str().unwrap())), "{text}");
}

#[test]
fn limits_are_those_of_the_process() {
    if !Path::new("/proc/self/limits").exists() {
        return;
    }
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -S -n 123 && exec \"$0\" --json"]).arg(program("doctor"));
    let json: Value = serde_json::from_str(&said(&mut limited)).unwrap();
    assert!(text(&json, "descriptors", "found").contains("123"), "{json:#}");
    assert_eq!(text(&json, "descriptors", "state"), "problem");
    assert!(text(&json, "descriptors", "advice").contains("LimitNOFILE"), "{json:#}");
}

#[test]
fn whoever_switched_io_uring_off_is_told_so() {
    let json = json(doctor().env("ANABRANCH_BACKEND", "readiness"));
    assert_eq!(json["backend"]["name"], "readiness");
    assert!(text(&json, "io_uring", "advice").contains("ANABRANCH_BACKEND"), "{json:#}");
    assert_eq!(text(&json, "io_uring", "state"), "note", "it was meant");
}

#[test]
fn a_filter_that_refuses_io_uring_is_named_with_what_to_do() {
    for how in ["EPERM", "ENOSYS"] {
        let Some(mut command) = refused(how) else { return };
        let json = json(&mut command);
        assert_eq!(json["backend"]["name"], "readiness");
        assert_eq!(text(&json, "io_uring", "state"), "problem");
        assert!(text(&json, "io_uring", "found").contains(how), "{json:#}");
        let advice = text(&json, "io_uring", "advice");
        assert!(advice.contains("seccomp") && advice.contains("io_uring_setup"), "{advice}");
        assert!(text(&json, "seccomp", "found").contains("filter"), "{json:#}");
    }
}

#[test]
fn a_filter_that_kills_takes_only_the_doctors_probe() {
    let Some(mut command) = refused("KILL") else { return };
    let json = json(&mut command);
    assert!(text(&json, "io_uring", "found").contains("kills"), "{json:#}");
    assert!(text(&json, "io_uring", "advice").contains("ANABRANCH_BACKEND=readiness"), "{json:#}");
    assert_eq!(json["backend"]["name"], "readiness", "what the process gets with that setting");
}
