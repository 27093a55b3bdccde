//! The tables.

use crate::charts::{Chart, bare_cpu, short};
use crate::results::{Cell, Results};
use crate::scenario::Scenario;
use crate::servers::SERVERS;
use std::fmt::Write;

/// A table for each scenario.
pub fn tables(results: &Results) -> String {
    let mut text = String::new();
    for name in results.scenarios() {
        let Ok(scenario) = name.parse::<Scenario>() else { continue };
        let _ = writeln!(text, "### {name}\n\n{}.\n", capital(&scenario.describe()));
        match scenario {
            Scenario::Idle { .. } => memory(results, name, &mut text),
            _ => costs(results, name, scenario, &mut text),
        }
        text.push('\n');
    }
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn rows<'a>(results: &'a Results, name: &'a str) -> impl Iterator<Item = &'a Cell> {
    SERVERS.iter().filter_map(move |server| results.cell(name, server.name))
}

/// What stands in a row instead of numbers.
fn instead(cell: &Cell) -> Option<String> {
    let line = |text: &str| text.lines().next().unwrap_or("").replace('|', "/");
    match (&cell.missing, cell.failures.first()) {
        (Some(reason), _) => Some(line(reason)),
        (None, Some(reason)) => Some(format!(
            "**FAILED** {} of {}: {}",
            cell.failures.len(),
            cell.failures.len() + cell.runs.len(),
            line(reason)
        )),
        (None, None) if cell.runs.is_empty() => Some("not measured".into()),
        (None, None) if cell.is_disturbed() => Some("disturbed: other processes had the cores".into()),
        _ => None,
    }
}

fn costs(results: &Results, name: &str, scenario: Scenario, text: &mut String) {
    let (unit, bare) = (scenario.unit(), bare_cpu(results, name));
    let micro = scenario.is_micro();
    if micro {
        let _ = writeln!(text, "| server | ns of CPU per {unit} |\n| --- | ---: |");
    } else {
        let _ = writeln!(
            text,
            "| server | µs CPU per {unit} | against bare | {} per s | per server CPU s | p50 µs | p99 µs | server busy | calls per {unit} | lost |",
            scenario.units()
        );
        let _ = writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    }
    for cell in rows(results, name) {
        let number = |metric: &str| cell.median(metric).map_or("–".into(), short);
        if let Some(reason) = instead(cell) {
            let rest = if micro { "" } else { " – | – | – | – | – | – | – | – |" };
            let _ = writeln!(text, "| {} | {reason} |{rest}", cell.server);
        } else if micro {
            let nanoseconds = cell.median("cpu_us").map_or("–".into(), |cpu| short(cpu * 1e3));
            let _ = writeln!(text, "| {} | {nanoseconds} |", cell.server);
        } else {
            let cpu = cell.median("cpu_us");
            let ratio = cpu.zip(bare).map_or("–".into(), |(cpu, bare)| format!("{:.2}", cpu / bare));
            let per_cpu = cpu.map_or("–".into(), |cpu| short(1e6 / cpu));
            let calls = cell.calls.map_or("not measured".into(), short);
            let busy = cell.median("busy").map_or("–".into(), |busy| format!("{:.0} %", busy * 100.0));
            let _ = writeln!(
                text,
                "| {} | {} | {ratio} | {} | {per_cpu} | {} | {} | {busy} | {calls} | {:.0} |",
                cell.server,
                number("cpu_us"),
                number("rate"),
                number("p50_us"),
                number("p99_us"),
                cell.median("lost").unwrap_or(0.0)
            );
        }
    }
}

fn memory(results: &Results, name: &str, text: &mut String) {
    let _ = writeln!(
        text,
        "| server | bytes per connection, as opened | after one message each | KiB without connections |\n| --- | ---: | ---: | ---: |"
    );
    for cell in rows(results, name) {
        let number = |metric: &str| cell.median(metric).map_or("–".into(), |value| format!("{value:.0}"));
        match instead(cell) {
            Some(reason) => drop(writeln!(text, "| {} | {reason} | – | – |", cell.server)),
            None => {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} |",
                    cell.server,
                    number("bytes_per_connection"),
                    number("bytes_per_connection_touched"),
                    number("base_kib")
                );
            }
        }
    }
}

/// The whole document.
pub fn document(results: &Results, charts: &[Chart]) -> String {
    let mut text = String::from(
        "# Performance\n\nWritten by `cargo run --release -- all` in `benches/compare`; do not edit. The raw results are in \
         [results.json](results.json).\n\n",
    );
    let fact = |name: &str| results.facts.get(name).map_or("unknown", String::as_str);
    for name in ["date", "processor", "kernel", "compiler", "commit", "peers", "congestion control"] {
        let _ = writeln!(text, "- {}: {}", capital(name), fact(name));
    }
    let _ = writeln!(
        text,
        "- {} round(s), {} s per cell, {} scheduling, load average at the start {}, {} s in all\n",
        fact("rounds"),
        fact("seconds per cell"),
        fact("scheduling"),
        fact("load average at the start"),
        fact("seconds")
    );
    text.push_str(METHOD);
    text.push_str("\n## Servers\n\n| server | what it is |\n| --- | --- |\n");
    for server in SERVERS.iter().filter(|server| results.cells.iter().any(|cell| cell.server == server.name))
    {
        let _ = writeln!(text, "| {} | {} |", server.name, server.about);
    }
    text.push_str("\n## Charts\n");
    for chart in charts {
        let _ = writeln!(text, "\n### {0}\n\n![{0}]({1})", chart.title, chart.file);
    }
    text.push_str("\n## Tables\n\n");
    text.push_str(tables(results).trim_end());
    text.push('\n');
    text
}

const METHOD: &str = "\
## Method

- Each cell has a fresh server process on the first core and a fresh load generator on the second, over `127.0.0.1`, both with
  real-time scheduling where the user may (so that other processes count less). Cells are interleaved: each round runs every
  server in every scenario, and begins with another one. Numbers are medians over the rounds.
- The main number is **CPU time of the server per message**: what the scheduler counts for all threads of the process
  (`schedstat`), kernel work included, network softirqs in its context too. It does not depend on how fast the client is.
  Differences below 5 % in one cell mean nothing; look for a pattern over cells.
- \"Against bare\" is the ratio to the better of the two bare loops: what a program could reach without any runtime.
- The load generator checks every byte: each connection has its own place in a sequence that does not repeat with any message
  size. A cell with wrong, missing or reordered bytes is FAILED and has no numbers.
- Scenario names: `c100-s32-k16` is 100 connections, 32-byte messages, 16 outstanding on each. `-spin`: the client never
  sleeps, so that the server does not pay for waking it. Receive buffers have 16 KiB, for datagrams 2 KiB.
- `accept`: connect, 32 bytes there and back, the client closes. `udp1` has 16 datagrams outstanding on one socket, `udp100`
  one on each of 100. `bulk-udp`: 1200-byte datagrams, which the client sends in bursts of 16 by segmentation offload.
- `fanout`: a subscriber has a backlog of 1 MiB; a message that finds no room is dropped for it alone. Every server keeps that
  bound (the smoke test has a subscriber that does not read). The publisher is 64 messages ahead of the deliveries
  at most, or as many as the name of a cell says.
- `timers`: in the server's process, without load: that many timers are armed about a minute away; random ones are moved, 64
  per turn of the loop. compio cannot move a timer, so the old one is dropped and a new one armed. `tasks`: tasks that
  yield, per poll.
- `idle`: resident user memory (`Rss` of `smaps_rollup`) less what the process had before the first connection, divided by the
  number of connections; as opened, and after one 32-byte echo on each. Rings and sockets of the kernel are not in it. One round.
- A run is disturbed, and does not count, if server or load waited for their core for more than 12 % of the time or the server
  ran for less than 30 % of it. It is tried again up to two times.
- System calls are counted in a run of their own, by `perf stat -e raw_syscalls:sys_enter`, or `strace -c` where that is not
  allowed; a counted run gives no other number.
- All servers use one thread. Loopback has no network card: on a real one the kernel's part is different.
";
