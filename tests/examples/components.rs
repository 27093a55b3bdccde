//! The examples of components that print what they do and end by themselves.
#![forbid(unsafe_code)]

use super::backends;
use super::running::run;

/// The lines that an example prints.
fn lines(name: &str, flags: &[&str]) -> Vec<String> {
    let output = run(name, flags);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {flags:?}: {}, {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn service_prints_the_order_of_dispatched_and_posted_work() {
    let expected = [
        "started",
        "1 begins: dispatched from another thread",
        "2: dispatched inside 1",
        "3 begins: dispatched inside 1",
        "4: dispatched inside 3",
        "3 ends",
        "1 ends",
        "5: posted inside 1",
        "6: posted inside 3",
        "error: 7: what work fails with reaches the handler",
        "stopped",
    ];
    for backend in backends() {
        assert_eq!(lines("service", &["--backend", backend]), expected);
        assert_eq!(lines("service", &["--backend", backend, "--threads", "3", "--polling"]), expected);
    }
}

#[test]
fn timer_prints_what_expires_and_what_is_canceled() {
    let expected = [
        "blocking, relative: expired",
        "awaited, absolute: expired",
        "awaited, cancelled half way: canceled",
        "the cancel found 1 wait",
        "callback 1: expired",
        "callback 2: expired",
        "callback 3: expired",
        "callback at the end: canceled",
    ];
    for backend in backends() {
        assert_eq!(lines("timer", &["--unit-ms", "400", "--backend", backend]), expected);
    }
}
