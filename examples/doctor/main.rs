//! What this machine gives a server: the backend of each shard and why, the limits and where they come from, and a line
//! of advice for each finding. For a person, or with `--json` for a machine.
//!
//! The ring is tried in a process of its own, because there are filters that kill whoever asks for one.
//!
//! Try it: `cargo run --release --example doctor`, in the container or as the service that shall run the server.
#![forbid(unsafe_code)]

mod findings;
mod probe;
mod system;

use clap::Parser;
use findings::Finding;
use probe::Probed;
use serde_json::json;
use std::io;

/// Looks at what a server finds here, and says what to do about it.
#[derive(Parser, Debug)]
struct Flags {
    /// For a machine.
    #[arg(long)]
    json: bool,
    /// Only tries the backends and tells what came of it, in JSON; for the doctor itself.
    #[arg(long, hide = true)]
    probe: bool,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    if flags.probe {
        println!("{}", probe::try_here()?);
        return Ok(());
    }
    let probed = probe::try_in_child()?;
    let findings = findings::all(&probed);
    if flags.json {
        let findings: Vec<_> = findings.iter().map(Finding::json).collect();
        let all = json!({ "backend": probed.first(), "shards": probed.shards(), "findings": findings });
        println!("{all:#}");
    } else {
        print(&probed, &findings);
    }
    Ok(())
}

fn print(probed: &Probed, findings: &[Finding]) {
    println!("{}\n", probed.printed());
    for finding in findings {
        println!("{:<8} {}: {}", finding.state.name(), finding.subject, finding.found);
        println!("         from   {}", finding.from);
        println!("         advice {}", finding.advice);
    }
}
