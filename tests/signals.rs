//! Signals, each test in a process of its own.
#![deny(unsafe_code)]

mod common;

use anabranch::os::{Signal, SignalKind};
use anabranch::{Runtime, ctrl_c, spawn, timeout, yield_now};
use common::net::{alone, check, on_real_backends, typical_backends};
use common::{not_simulated, on};
use std::time::Duration;

/// The kinds that this system has.
#[cfg(unix)]
const KINDS: &[SignalKind] =
    &[SignalKind::User1, SignalKind::User2, SignalKind::Hangup, SignalKind::Terminate, SignalKind::Interrupt];
#[cfg(windows)]
const KINDS: &[SignalKind] = &[SignalKind::Interrupt, SignalKind::Terminate];

/// Those that a process can send to itself.
fn kinds() -> Vec<SignalKind> {
    let mut kinds = KINDS.to_vec();
    if common::is_wine() {
        println!("NOT COVERED: Ctrl-Break, which Wine does not send");
        kinds.retain(|kind| *kind == SignalKind::Interrupt);
    }
    kinds
}

/// Sends a signal to this process.
#[cfg(unix)]
fn raise(kind: SignalKind) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    signal_hook::low_level::raise(match kind {
        SignalKind::Interrupt => SIGINT,
        SignalKind::Terminate => SIGTERM,
        SignalKind::Hangup => SIGHUP,
        SignalKind::User1 => SIGUSR1,
        _ => SIGUSR2,
    })
}

/// Sends a console event to this process, which gets a console of its own for that.
#[cfg(windows)]
#[allow(unsafe_code, reason = "the standard library does not send events")]
fn raise(kind: SignalKind) -> std::io::Result<()> {
    use windows_sys::Win32::System::Console::{
        AllocConsole, CTRL_BREAK_EVENT, CTRL_C_EVENT, FreeConsole, GenerateConsoleCtrlEvent,
    };
    static CONSOLE: std::sync::Once = std::sync::Once::new();
    let event = if kind == SignalKind::Interrupt { CTRL_C_EVENT } else { CTRL_BREAK_EVENT };
    // SAFETY: plain system calls.
    let sent = unsafe {
        CONSOLE.call_once(|| {
            FreeConsole();
            AllocConsole();
        });
        GenerateConsoleCtrlEvent(event, 0)
    };
    if sent == 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn a_signal_reaches_everybody_who_listens_for_it() {
    alone("a_signal_reaches_everybody_who_listens_for_it", || {
        on(not_simulated("a_signal_reaches_everybody_who_listens_for_it", typical_backends()), |config| {
            check(config, async {
                for kind in kinds() {
                    let mut one = Signal::new(kind).unwrap();
                    let mut two = Signal::new(kind).unwrap();
                    let first = timeout(Duration::from_millis(5), one.recv()).await;
                    assert!(first.is_err(), "nothing was raised");
                    raise(kind).unwrap();
                    one.recv().await.unwrap();
                    two.recv().await.unwrap();
                    raise(kind).unwrap();
                    one.recv().await.unwrap();
                }
            });
        });
    });
}

#[test]
fn signals_that_came_while_nobody_waited_are_told_once_at_least() {
    alone("signals_that_came_while_nobody_waited_are_told_once_at_least", || {
        on(
            not_simulated("signals_that_came_while_nobody_waited_are_told_once_at_least", typical_backends()),
            |config| {
                check(config, async {
                    let mut signal = Signal::new(kinds()[0]).unwrap();
                    for _ in 0..10 {
                        raise(kinds()[0]).unwrap();
                    }
                    signal.recv().await.unwrap();
                });
            },
        );
    });
}

#[test]
fn control_c_ends_a_group() {
    alone("control_c_ends_a_group", || {
        on_real_backends(|config| {
            let runtime = Runtime::builder().shards(2).config(config).start(|context| async move {
                if context.index() == 0 {
                    let asked = spawn(ctrl_c());
                    yield_now().await;
                    raise(SignalKind::Interrupt)?;
                    asked.await??;
                    context.stop();
                }
                context.stopped().await;
                Ok(())
            });
            for end in runtime.unwrap().join() {
                end.result.unwrap();
                end.counters.settled().unwrap();
            }
        });
    });
}

// Not on Unix: it has all of them.
#[cfg(windows)]
#[test]
fn a_signal_that_windows_does_not_have_is_refused() {
    on_real_backends(|config| {
        check(config, async {
            for kind in [SignalKind::Hangup, SignalKind::User1, SignalKind::User2] {
                assert_eq!(Signal::new(kind).unwrap_err().kind(), std::io::ErrorKind::Unsupported);
            }
        });
    });
}
