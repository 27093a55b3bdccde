//! A bad network on one machine: two network namespaces with a TUN device each, and between them a relay that delays,
//! reorders, loses, doubles and corrupts packets as a seed has it. It needs root, and changes nothing outside of
//! itself.
//!
//! With `--check` an echo server at one end and a client at the other, on each backend, prove that every byte
//! arrives all the same; exit code 1 says that one did not. Without it, the network stands until Ctrl-C, and the
//! program prints how to run a command at either end. Where it cannot run, the exit code is 75.
//!
//! Try it: `cargo run --release --example bad_network -- --check --loss 0.05`
#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
mod check;
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod relay;
#[cfg(target_os = "linux")]
mod tun;

use clap::Parser;
use std::process::ExitCode;

/// Two network namespaces with a bad network between them.
#[derive(Parser, Clone, Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
struct Flags {
    /// Where all choices come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Milliseconds that a packet takes.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    delay_ms: u64,
    /// Milliseconds by which that varies, both ways; packets overtake each other then.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    jitter_ms: u64,
    /// Part of the packets that are lost.
    #[arg(long, default_value_t = 0.02, value_parser = part)]
    loss: f64,
    /// Part of the packets that arrive twice.
    #[arg(long, default_value_t = 0.01, value_parser = part)]
    duplicate: f64,
    /// Part of the packets of which a bit is flipped.
    #[arg(long, default_value_t = 0.001, value_parser = part)]
    corrupt: f64,
    /// Seconds after which it ends: the network, or each transfer of the check.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Echo over the network and check every byte.
    #[arg(long)]
    check: bool,
    /// Bytes that the check sends there and back.
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    bytes: u64,
    /// Backend of the check.
    #[arg(long, default_value = "both", value_parser = ["uring", "readiness", "both"])]
    backend: String,
}

fn part(text: &str) -> Result<f64, String> {
    let part: f64 = text.parse().map_err(|_| "this is no number".to_owned())?;
    if (0.0..=1.0).contains(&part) { Ok(part) } else { Err("a part lies between 0 and 1".into()) }
}

fn main() -> ExitCode {
    start(&Flags::parse())
}

#[cfg(not(target_os = "linux"))]
fn start(_: &Flags) -> ExitCode {
    eprintln!("NOT RUN: network namespaces are a facility of Linux");
    ExitCode::from(75)
}

#[cfg(target_os = "linux")]
use linux::start;

#[cfg(target_os = "linux")]
mod linux {
    use crate::check::{self, Checked};
    use crate::network::Network;
    use crate::relay::{Faults, Tally};
    use crate::{Flags, common};
    use anabranch::{Backend, Config, Shard};
    use indicatif::{ProgressBar, ProgressStyle};
    use std::io;
    use std::process::ExitCode;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    pub(crate) fn start(flags: &Flags) -> ExitCode {
        // The first network shows whether there can be any.
        if let Err(error) = Network::new(flags.faults()) {
            eprintln!(
                "NOT RUN: no namespaces with devices can be made here, which needs root, /dev/net/tun and ip: {error}"
            );
            return ExitCode::from(75);
        }
        match if flags.check { check(flags) } else { stand(flags) } {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("bad_network: {error}");
                ExitCode::FAILURE
            }
        }
    }

    impl Flags {
        pub(crate) fn faults(&self) -> Faults {
            Faults {
                seed: self.seed,
                delay: Duration::from_millis(self.delay_ms),
                jitter: Duration::from_millis(self.jitter_ms),
                loss: self.loss,
                duplicate: self.duplicate,
                corrupt: self.corrupt,
            }
        }
    }

    /// Lets the network stand until its time is over or Ctrl-C comes.
    fn stand(flags: &Flags) -> io::Result<bool> {
        let stop = common::stop_flag();
        let network = Network::new(flags.faults())?;
        for side in &network.sides {
            println!("at {}: {} COMMAND", side.address, side.prefix());
        }
        let bar = bar(flags.seconds * 1000, "{elapsed_precise} [{bar:40}] {msg}")?;
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) && start.elapsed().as_secs() < flags.seconds {
            std::thread::sleep(Duration::from_millis(100));
            bar.set_position(start.elapsed().as_millis() as u64);
            bar.set_message(numbers(&network.tally).join(" "));
        }
        bar.finish_and_clear();
        println!("{}\n{}", HEAD[1..6].join(" | "), numbers(&*network.end()?).join(" | "));
        Ok(true)
    }

    /// Checks each backend, shows a table, and tells whether every byte was right.
    fn check(flags: &Flags) -> io::Result<bool> {
        println!(
            "seed {}, {} ms ± {} ms, loss {}, duplicate {}, corrupt {}",
            flags.seed, flags.delay_ms, flags.jitter_ms, flags.loss, flags.duplicate, flags.corrupt
        );
        let mut all = Vec::new();
        for backend in [Backend::Uring, Backend::Readiness] {
            if flags.backend != "both" && flags.backend != backend.to_string() {
                continue;
            }
            let to_be_had = Shard::new(Config::new().backend(backend)).map(|shard| shard.report().backend);
            if !to_be_had.as_ref().is_ok_and(|kind| kind.to_string() == backend.to_string()) {
                println!("no run on {backend}: {to_be_had:?}");
                continue;
            }
            let bar = bar(flags.bytes, "{prefix:>9} [{bar:40}] {bytes}/{total_bytes}")?;
            bar.set_prefix(backend.to_string());
            all.push(check::run(flags, backend, &bar)?);
            bar.finish_and_clear();
        }
        println!("{}", render(&all));
        for checked in &all {
            let [client, server] = &checked.counters;
            println!("{} client ledger: {client}", checked.backend);
            println!("{} server ledger: {server}", checked.backend);
            if let Some(error) = &checked.error {
                eprintln!("error on {}: {error}", checked.backend);
            }
        }
        Ok(!all.is_empty() && all.iter().all(|checked| checked.error.is_none()))
    }

    fn bar(length: u64, template: &str) -> io::Result<ProgressBar> {
        let style = ProgressStyle::with_template(template).map_err(io::Error::other)?;
        Ok(ProgressBar::new(length).with_style(style.progress_chars("=> ")))
    }

    const HEAD: [&str; 8] =
        ["backend", "forwarded", "lost", "duplicated", "corrupted", "reordered", "bytes verified", "seconds"];

    fn numbers(tally: &Tally) -> [String; 5] {
        [&tally.forwarded, &tally.lost, &tally.duplicated, &tally.corrupted, &tally.reordered]
            .map(|counter| counter.load(Ordering::Relaxed).to_string())
    }

    fn render(all: &[Checked]) -> String {
        let line = |cells: &[String]| {
            let padded: Vec<String> = cells
                .iter()
                .zip(HEAD)
                .map(|(cell, head)| format!("{cell:>width$}", width = head.len().max(9)))
                .collect();
            format!("| {} |", padded.join(" | "))
        };
        let mut lines = vec![line(&HEAD.map(str::to_owned))];
        for checked in all {
            let mut cells = vec![checked.backend.to_string()];
            cells.extend(numbers(&checked.tally));
            cells.extend([checked.bytes.to_string(), format!("{:.1}", checked.seconds)]);
            lines.push(line(&cells));
        }
        lines.join("\n")
    }
}
