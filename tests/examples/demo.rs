//! The demo: what it measures, shows and writes.
#![forbid(unsafe_code)]

use super::backends;
use super::common::has_uring;
use super::running::run;
#[cfg(unix)]
use super::running::{Example, Signal};
use std::sync::{Mutex, PoisonError};

/// The demo measures; two of them at once would only measure each other.
fn demo_alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_demo_shows_a_table_and_writes_a_chart() {
    let _alone = demo_alone();
    let directory = tempfile::tempdir().expect("a directory");
    let chart = directory.path().join("chart.svg");
    let path = chart.to_str().expect("a plain path");
    let flags =
        ["--secs", "2", "--conns", "5", "--size", "100", "--pipeline", "3", "--shards", "2", "--chart", path];
    let output = run("demo", &flags);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    assert!(text.contains(&format!("chart: {path}")), "{text}");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    let svg = std::fs::read_to_string(&chart).expect("a chart");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    let mut expected = backends();
    expected.reverse();
    assert_eq!(rows.len(), expected.len(), "{text}");
    for (row, backend) in rows.iter().zip(expected) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!((cells[1], cells[2], cells[9]), (backend, "5", "0"), "{text}");
        assert!(
            svg.contains(&format!("{backend}: {} messages/s", cells[3])),
            "{backend} is not in the chart"
        );
    }
    for words in ["messages per second", "latency [µs]", "percentile [%]", "p99.9"] {
        assert!(svg.contains(words), "the chart does not say {words:?}");
    }
    if cfg!(unix) && !has_uring() {
        assert!(text.contains("no run on uring"), "{text}");
    }
}

#[test]
fn the_demo_checks_large_messages_too() {
    let _alone = demo_alone();
    let directory = tempfile::tempdir().expect("a directory");
    let chart = directory.path().join("chart.svg");
    for backend in backends() {
        let path = chart.to_str().expect("a plain path");
        let flags = [
            "--secs",
            "1",
            "--conns",
            "3",
            "--size",
            "300001",
            "--pipeline",
            "7",
            "--backend",
            backend,
            "--chart",
            path,
        ];
        let output = run("demo", &flags);
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    }
}

// Not on Windows: signals cannot be sent to other processes there.
#[cfg(unix)]
#[test]
fn the_demo_ends_early_when_asked() {
    let _alone = demo_alone();
    let directory = tempfile::tempdir().expect("a directory");
    let chart = directory.path().join("chart.svg");
    let path = chart.to_str().expect("a plain path");
    let mut example = Example::start("demo", &["--secs", "600", "--conns", "4", "--chart", path]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    example.signal(Signal::SIGINT);
    example.line_with("ended early");
    example.line_with("chart: ");
    assert!(example.wait().success());
}
