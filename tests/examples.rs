//! Each example as a process of its own: it does what its head says, and ends with status 0 when asked to.
#![forbid(unsafe_code)]

mod common;
#[path = "examples/components.rs"]
mod components;
#[path = "examples/demo.rs"]
mod demo;
#[path = "examples/echo.rs"]
mod echo;
#[path = "examples/running.rs"]
mod running;
#[path = "examples/servers.rs"]
mod servers;

use common::has_uring;
use common::program::examples;
use running::run;

/// The backends to run an example on, as values of its flag.
pub(crate) fn backends() -> Vec<&'static str> {
    if cfg!(windows) {
        return vec!["iocp"];
    }
    let mut all = vec!["readiness"];
    all.extend(has_uring().then_some("uring"));
    all
}

/// Bytes that differ from place to place.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 16) as u8).collect()
}

#[test]
fn a_wrong_flag_is_refused_with_a_message() {
    for name in examples() {
        for flags in [["--backend", "epol"], ["--no-such-flag", "1"]] {
            let output = run(&name, &flags);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{name} {flags:?}");
            assert!(errors.contains(flags[0]) && errors.contains("error"), "{name} {flags:?}: {errors}");
        }
    }
    let output = run("demo", &["--conns", "0"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn an_address_in_use_is_an_error_not_a_hang() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    for name in [
        "echo",
        "echo_completion",
        "opensocket_echo",
        "opensocket_http_server",
        "chat",
        "file_server",
        "pinned_shards",
        "ctrl_c",
    ] {
        let output = run(name, &["--addr", &address]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {errors}");
        assert!(errors.contains("in use") || errors.contains("AddrInUse"), "{name}: {errors}");
    }
}
