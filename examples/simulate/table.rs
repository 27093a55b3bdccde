//! What a sweep shows at its end.

use crate::scenarios::Level;
use crate::sweep::{Outcome, Tally, Violation};
use std::fmt::Write;
use std::time::Duration;

/// The tables: scenarios, faults, totals.
pub(crate) fn render(outcome: &Outcome, threads: usize) -> String {
    let mut text = String::new();
    scenarios(outcome, &mut text);
    faults(outcome, &mut text);
    totals(outcome, threads, &mut text);
    text
}

/// A violation with its last events and the command that runs it again.
pub(crate) fn violation(violation: &Violation) -> String {
    let Violation { scenario, seed, level, what, full } = violation;
    let faults = match level {
        Level::None => " --faults none",
        Level::Rough => "",
        Level::Harsh => " --faults harsh",
    };
    let next = seed + 1;
    format!(
        "VIOLATION in {scenario}, seed {seed}: {what}\n{full}\nagain: cargo run --release --features sim --example \
         simulate -- --scenario {scenario} --seeds {seed}..{next}{faults}\n"
    )
}

/// A number with a space between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

// Writing to a string cannot fail, so what `writeln` gives is not looked at.

fn scenarios(outcome: &Outcome, text: &mut String) {
    let _ = writeln!(
        text,
        "{:<12} {:>10} {:>14} {:>12} {:>14} {:>10} {:>9} {:>10}",
        "scenario", "seeds", "simulated", "connections", "steps", "seeds/s", "ms/seed", "violations"
    );
    let mut sum = Tally { scenario: "all", ..Tally::default() };
    for tally in &outcome.tallies {
        line(tally, text);
        sum.runs += tally.runs;
        sum.violations += tally.violations;
        sum.simulated += tally.simulated;
        sum.connections += tally.connections;
        sum.steps += tally.steps;
        sum.busy += tally.busy;
    }
    line(&sum, text);
}

fn line(tally: &Tally, text: &mut String) {
    let busy = tally.busy.as_secs_f64().max(1e-9);
    let _ = writeln!(
        text,
        "{:<12} {:>10} {:>14} {:>12} {:>14} {:>10} {:>9.3} {:>10}",
        tally.scenario,
        grouped(tally.runs),
        span(tally.simulated),
        grouped(tally.connections),
        grouped(tally.steps),
        grouped((tally.runs as f64 / busy) as u64),
        busy * 1000.0 / tally.runs.max(1) as f64,
        tally.violations
    );
}

fn faults(outcome: &Outcome, text: &mut String) {
    let _ = writeln!(text, "\nfaults injected");
    for (fault, count) in outcome.faults.iter() {
        let _ = writeln!(text, "  {:<24} {:>14}", fault.name(), grouped(count));
    }
    let _ = writeln!(text, "  {:<24} {:>14}", "total", grouped(outcome.faults.total()));
}

fn totals(outcome: &Outcome, threads: usize, text: &mut String) {
    let wall = outcome.wall.as_secs_f64().max(1e-9);
    let simulated: f64 = outcome.tallies.iter().map(|tally| tally.simulated.as_secs_f64()).sum();
    let connections: u64 = outcome.tallies.iter().map(|tally| tally.connections).sum();
    let per_core = connections as f64 / wall / threads as f64;
    let _ = writeln!(
        text,
        "\n{} runs in {:.1} s on {threads} threads: {} seeds/s, {} simulated connections/s and core, time {}x as fast",
        grouped(outcome.runs()),
        wall,
        grouped((outcome.runs() as f64 / wall) as u64),
        grouped(per_core as u64),
        grouped((simulated / wall) as u64)
    );
    let _ = write!(text, "violations: {}", outcome.violations.len());
}

/// A span of time in days, hours, minutes and seconds.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    format!("{days}d {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}
