//! Hunts bugs of the runtime: runs scenarios in the simulation, seed after seed, and checks what must hold.
//!
//! Each seed is a whole world of hosts, network, clocks and faults; the same seed is the same run. What is found is
//! shown with the seed and the command that runs it again.
//!
//! Try it: `cargo run --release --features sim --example simulate -- --seeds 0..1000`.
#![forbid(unsafe_code)]

mod scenarios;
mod sweep;
mod table;

use clap::{Parser, ValueEnum};
use scenarios::{Level, Scenario};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use sweep::{Outcome, Sweep};

/// Runs scenarios in the simulation, seed after seed, and checks what must hold.
#[derive(Parser, Clone, Debug)]
struct Flags {
    /// The seeds, the last one not included.
    #[arg(long, default_value = "0..1000", value_parser = parse_seeds)]
    seeds: Range<u64>,
    /// A scenario, or `all`; may be given several times.
    #[arg(long = "scenario", default_value = "all")]
    scenarios: Vec<String>,
    /// Stop after so many minutes, perhaps with a fraction.
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads, each of which runs one seed at a time; one per processor if not said.
    #[arg(long)]
    threads: Option<usize>,
    /// Write a line for each run that held, `scenario seed hash lines`, in order.
    #[arg(long)]
    hashes: Option<PathBuf>,
    /// Write the log of the last run.
    #[arg(long)]
    log: Option<PathBuf>,
    /// No progress bar and no tables, only violations.
    #[arg(long)]
    quiet: bool,
    /// Show the scenarios and end.
    #[arg(long)]
    list: bool,
    /// How much goes wrong; in every third seed nothing does.
    #[arg(long, value_enum, default_value_t = Asked::Rough)]
    faults: Asked,
    /// Stop at the first violation.
    #[arg(long)]
    fail_fast: bool,
    /// Succeed only if there is a violation, and tell after how many runs it came: for a runtime that was broken on
    /// purpose. Stops at the first one.
    #[arg(long)]
    expect_violation: bool,
}

/// How much goes wrong.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Asked {
    None,
    Rough,
    Harsh,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sweeps, shows, and tells whether it came out as expected.
fn run(flags: &Flags) -> io::Result<bool> {
    if flags.list {
        scenarios::ALL.iter().for_each(|scenario| println!("{:<12} {}", scenario.name, scenario.about));
        return Ok(true);
    }
    let level = match flags.faults {
        Asked::None => Level::None,
        Asked::Rough => Level::Rough,
        Asked::Harsh => Level::Harsh,
    };
    let threads = match flags.threads {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism()?.get(),
    };
    let limit = flags.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0));
    let sweep = Sweep {
        scenarios: chosen(&flags.scenarios)?,
        seeds: flags.seeds.clone(),
        level,
        threads,
        until: limit.map(|limit| Instant::now() + limit),
        stops_at_violation: flags.fail_fast || flags.expect_violation,
        keeps_hashes: flags.hashes.is_some(),
        keeps_log: flags.log.is_some(),
        quiet: flags.quiet,
    };
    let outcome = sweep.run()?;
    if let Some(path) = &flags.hashes {
        write_hashes(path, &outcome)?;
    }
    if let Some(path) = &flags.log {
        std::fs::write(path, &outcome.log)?;
    }
    if !flags.quiet {
        println!("{}", table::render(&outcome, threads));
    }
    for violation in &outcome.violations {
        println!("{}", table::violation(violation));
    }
    if flags.expect_violation {
        return Ok(tell_expected(&outcome));
    }
    Ok(outcome.violations.is_empty())
}

fn tell_expected(outcome: &Outcome) -> bool {
    let runs = outcome.runs();
    match outcome.violations.first() {
        Some(violation) => println!("a violation, as expected, after {runs} runs: {}", violation.what),
        None => println!("no violation in {runs} runs, but one was expected"),
    }
    !outcome.violations.is_empty()
}

fn chosen(names: &[String]) -> io::Result<Vec<&'static Scenario>> {
    if names.iter().any(|name| name == "all") {
        return Ok(scenarios::ALL.iter().collect());
    }
    let find = |name: &String| {
        let found = scenarios::ALL.iter().find(|scenario| scenario.name == name);
        found.ok_or_else(|| io::Error::other(format!("no scenario is called {name:?}; see --list")))
    };
    names.iter().map(find).collect()
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let bounds = text.split_once("..").and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    bounds
        .filter(|range: &Range<u64>| !range.is_empty())
        .ok_or_else(|| "seeds are written A..B, with A < B".into())
}

fn write_hashes(path: &Path, outcome: &Outcome) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    let mut hashes: Vec<_> = outcome.hashes.iter().collect();
    hashes.sort();
    for (scenario, seed, hash, lines) in hashes {
        writeln!(file, "{scenario} {seed} {hash:016x} {lines}")?;
    }
    file.flush()
}
