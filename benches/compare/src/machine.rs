//! Facts about this machine and this run, for the documents.

use crate::driver::Settings;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

fn says(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn reads(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The version of a dependency, out of the lock file.
fn version(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    // Peers depend on older ones of each other; ours is the last in the file.
    let name = format!("name = \"{name}\"");
    let mut lines = lock.lines();
    let mut version = "?";
    while lines.any(|line| line == name) {
        version = lines.next().and_then(|line| line.strip_prefix("version = ")).unwrap_or(version);
    }
    version.trim_matches('"').to_owned()
}

pub fn facts(settings: &Settings) -> BTreeMap<String, String> {
    let processor = reads("/proc/cpuinfo");
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = processor.lines().filter(|line| line.starts_with("processor")).count();
    let changed =
        if says("git", &["status", "--porcelain", "--", "../../src"]).is_empty() { "" } else { ", changed" };
    let peers = ["tokio", "compio", "monoio", "glommio", "mio"];
    let versions: Vec<String> = peers.iter().map(|name| format!("{name} {}", version(name))).collect();
    let asio = reads("/usr/include/asio/version.hpp");
    let asio = asio.lines().find_map(|line| line.strip_prefix("#define ASIO_VERSION ")).map_or(
        String::new(),
        |hex| {
            let digits = hex.split_whitespace().next().unwrap_or("");
            let number = digits.parse::<u32>().unwrap_or(0);
            format!(", Asio {}.{}.{}", number / 100_000, number / 100 % 1000, number % 100)
        },
    );
    let fifo = settings.fifo && crate::sys::may_use_fifo();
    [
        ("date", says("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("processor", format!("{}, {cores} cores", model.trim_start_matches(['\t', ' ', ':']))),
        ("kernel", format!("Linux {}", reads("/proc/sys/kernel/osrelease"))),
        ("compiler", says("rustc", &["--version"])),
        ("commit", format!("{}{changed}", says("git", &["rev-parse", "--short=12", "HEAD"]))),
        ("peers", format!("{}{asio}", versions.join(", "))),
        ("congestion control", reads("/proc/sys/net/ipv4/tcp_congestion_control")),
        ("rounds", settings.rounds.to_string()),
        ("seconds per cell", settings.secs.to_string()),
        ("scheduling", if fifo { "SCHED_FIFO" } else { "normal" }.to_owned()),
        (
            "load average at the start",
            reads("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
