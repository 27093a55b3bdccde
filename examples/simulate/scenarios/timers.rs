//! Sleeps, intervals and time-outs: nothing is early, everything comes, whatever wall clocks do.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, one_in, small_config, within};
use anabranch::sim::{Builder, Faults};
use anabranch::time::{MissedTicks, interval, now};
use anabranch::{sleep, sleep_until, spawn, timeout};
use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How late something may be where nothing goes wrong: a tick of the wheel, and turns of a busy loop.
const LATE_MAX: Duration = Duration::from_millis(10);

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "timers");
    let verdict = Verdict::default();
    let calm = is_calm(&faults);
    let mut builder =
        Builder::new().faults(faults).config(small_config(&mut choice)).time_limit(Duration::from_secs(7200));
    for host in 0..choice.within(1..3) {
        let name = format!("host-{host}");
        for _ in 0..choice.within(0..4) {
            let (name, by) = (name.clone(), choice.within(0..7_200_000) as i64 - 3_600_000);
            let at = Duration::from_millis(choice.within(1..60_000));
            builder = builder.at(at, move |world| world.step_wall_clock(&name, by));
        }
        let (verdict, tasks) = (verdict.clone(), choice.within(4..60));
        let starts = Rc::new(Cell::new(0));
        builder = builder.host(name, move || {
            starts.set(starts.get() + 1);
            run(Clock { verdict: verdict.clone(), calm, starts: starts.get(), last: Rc::default() }, tasks)
        });
    }
    verdict.watch(builder)
}

#[derive(Clone)]
struct Clock {
    verdict: Verdict,
    calm: bool,
    /// How often the host has started. One that crashes every other minute must not sleep for a quarter of an hour.
    starts: u64,
    /// The latest deadline that has fired.
    last: Rc<Cell<Option<Instant>>>,
}

impl Clock {
    fn check(&self, what: &str, deadline: Instant) {
        let now = now();
        self.verdict.require(now >= deadline, || format!("{what} fired {:?} early", deadline - now));
        let late = now.saturating_duration_since(deadline);
        self.verdict.require(!self.calm || late <= LATE_MAX, || format!("{what} fired {late:?} late"));
        let last = self.last.get().map_or(deadline, |last| last.max(deadline));
        self.last.set(Some(last));
        // In a shard that was stalled, a task that runs first may ask for a time that has passed already, and has
        // it before those that were woken and wait for their turn.
        let behind = last - deadline;
        self.verdict.require(!self.calm || behind <= LATE_MAX, || {
            format!("{what} fired after one that was due {behind:?} later")
        });
    }
}

async fn run(clock: Clock, tasks: u64) {
    let all: Vec<_> = (0..tasks)
        .map(|_| {
            let clock = clock.clone();
            spawn(async move {
                for _ in 0..within(1..8) {
                    wait(&clock).await;
                }
            })
        })
        .collect();
    for one in all {
        let _ = one.await;
    }
}

fn span(clock: &Clock) -> Duration {
    match within(0..10) {
        0 if clock.starts == 1 => Duration::from_secs(within(1..900)),
        1..=3 if clock.starts <= 2 => Duration::from_millis(within(1..5000)),
        4 => Duration::ZERO,
        _ => Duration::from_micros(within(1..100_000)),
    }
}

async fn wait(clock: &Clock) {
    let (span, start) = (span(clock), now());
    match within(0..6) {
        0 => {
            sleep(span).await;
            clock.check("a sleep", start + span);
        }
        1 => {
            sleep_until(start + span).await;
            clock.check("a sleep to a deadline", start + span);
        }
        2 => {
            let ended = timeout(span, pending::<()>()).await;
            clock.verdict.require(ended.is_err(), || "what never ends has ended".into());
            clock.check("a time-out", start + span);
        }
        3 => {
            let inner = span / 2;
            let ended = timeout(span + LATE_MAX * 3, sleep(inner)).await;
            clock.verdict.require(ended.is_ok() || !clock.calm, || "a time-out cut what was in time".into());
        }
        4 => reset(clock, start, span).await,
        _ => beat(clock).await,
    }
}

/// A sleep that is put off, or made to come sooner, while it waits.
async fn reset(clock: &Clock, start: Instant, first: Duration) {
    let mut sleeping = std::pin::pin!(sleep(first));
    for _ in 0..within(1..4) {
        if timeout(Duration::from_micros(within(1..20_000)), sleeping.as_mut()).await.is_ok() {
            clock
                .verdict
                .require(now() >= sleeping.deadline(), || "a sleep that was reset fired early".into());
            return;
        }
        sleeping.as_mut().reset(now() + span(clock) / 4);
    }
    sleeping.as_mut().await;
    clock.verdict.require(now() >= sleeping.deadline(), || "a sleep that was reset fired early".into());
    clock.verdict.require(now() >= start, || "time went back".into());
}

/// Ticks keep to their beat; in a burst none is left out.
async fn beat(clock: &Clock) {
    let period = Duration::from_micros(within(1..200_000));
    let bursts = one_in(2);
    let missed = if bursts { MissedTicks::Burst } else { MissedTicks::Skip };
    let mut interval = interval(period).missed_ticks(missed);
    let first = interval.tick().await;
    let mut last = first;
    for _ in 0..within(1..12) {
        let tick = interval.tick();
        let due = match timeout(Duration::from_micros(within(1..400_000)), tick).await {
            Ok(due) => due,
            // A tick that was not taken is not lost.
            Err(_) => interval.tick().await,
        };
        clock.verdict.require(now() >= due, || "a tick was early".into());
        let off = (due - first).as_nanos() % period.as_nanos();
        clock.verdict.require(off == 0, || "a tick left the beat".into());
        let next = due - last == period;
        clock
            .verdict
            .require(next || (!bursts && due > last), || "a tick was left out, or came twice".into());
        last = due;
        if one_in(4) {
            sleep(span(clock) / 8).await;
        }
    }
}
