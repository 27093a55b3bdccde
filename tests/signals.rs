//! Signals, each test in a process of its own.
#![forbid(unsafe_code)]

mod common;

use anabranch::os::{Signal, SignalKind};
use anabranch::{Runtime, ctrl_c, spawn, timeout, yield_now};
use common::net::{alone, check, on_real_backends, typical_backends};
use common::{not_simulated, on};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::raise;
use std::time::Duration;

#[test]
fn a_signal_reaches_everybody_who_listens_for_it() {
    alone("a_signal_reaches_everybody_who_listens_for_it", || {
        on(not_simulated("a_signal_reaches_everybody_who_listens_for_it", typical_backends()), |config| {
            check(config, async {
                for (kind, number) in [
                    (SignalKind::User1, SIGUSR1),
                    (SignalKind::User2, SIGUSR2),
                    (SignalKind::Hangup, SIGHUP),
                    (SignalKind::Terminate, SIGTERM),
                    (SignalKind::Interrupt, SIGINT),
                ] {
                    let mut one = Signal::new(kind).unwrap();
                    let mut two = Signal::new(kind).unwrap();
                    let first = timeout(Duration::from_millis(5), one.recv()).await;
                    assert!(first.is_err(), "nothing was raised");
                    raise(number).unwrap();
                    one.recv().await.unwrap();
                    two.recv().await.unwrap();
                    raise(number).unwrap();
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
                    let mut signal = Signal::new(SignalKind::User1).unwrap();
                    for _ in 0..10 {
                        raise(SIGUSR1).unwrap();
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
                    raise(SIGINT)?;
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
