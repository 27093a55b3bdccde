//! Trying the backends, in a child process that may be killed for it.

use anabranch::{Backend, BackendReport, Config, Runtime, Shard};
use serde_json::{Value, json};
use std::io;
use std::process::Command;

/// What came of trying.
pub(crate) struct Probed {
    /// What the child told; of readiness alone if asking for a ring kills.
    told: Value,
    /// How the child ended that asked for a ring, if it did not end well.
    pub(crate) killed: Option<String>,
}

/// Starts the shards of a server, and one with a hardened ring; what they are, in JSON.
pub(crate) fn try_here() -> io::Result<Value> {
    let runtime = Runtime::builder().start(|context| async move {
        // It runs once all shards are set up, so that each has its ring beside the others.
        context.stop();
        Ok(())
    })?;
    let reports = runtime.reports();
    runtime.join();
    let hardened = match Shard::new(Config::new().backend(Backend::Auto).hardened(true)) {
        Ok(shard) => described(&shard.report()),
        Err(error) => json!({ "error": error.to_string() }),
    };
    let reports: Vec<_> = reports.iter().map(described).collect();
    Ok(json!({ "reports": reports, "hardened": hardened }))
}

fn described(report: &BackendReport) -> Value {
    let uses: Vec<_> = report.capabilities.iter().map(|capability| capability.name()).collect();
    let emulates: Vec<_> =
        report.lowered.iter().map(|(what, why)| json!({ "what": what.name(), "why": why })).collect();
    json!({
        "name": report.backend.to_string(),
        "reason": report.reason,
        "ladder": report.ladder,
        "uses": uses,
        "emulates": emulates,
        "hardened": report.hardened,
        "printed": report.to_string(),
    })
}

/// Does the same in a child, and without a ring in another one if that was killed.
pub(crate) fn try_in_child() -> io::Result<Probed> {
    let program = std::env::current_exe()?;
    let output = Command::new(&program).arg("--probe").output()?;
    if output.status.success() {
        return Ok(Probed { told: parsed(&output.stdout)?, killed: None });
    }
    // A program that ends by itself has a code; then no filter is to blame.
    if output.status.code().is_some() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let killed = Some(output.status.to_string());
    let output = Command::new(&program).arg("--probe").env("ANABRANCH_BACKEND", "readiness").output()?;
    Ok(Probed { told: parsed(&output.stdout)?, killed })
}

fn parsed(text: &[u8]) -> io::Result<Value> {
    serde_json::from_slice(text).map_err(io::Error::other)
}

impl Probed {
    /// The report of the first shard.
    pub(crate) fn first(&self) -> &Value {
        &self.told["reports"][0]
    }

    /// The backend of each shard.
    pub(crate) fn shards(&self) -> Vec<&str> {
        self.told["reports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|report| report["name"].as_str())
            .collect()
    }

    /// What a hardened shard is, or the error.
    pub(crate) fn hardened(&self) -> &Value {
        &self.told["hardened"]
    }

    /// The report as a person reads it.
    pub(crate) fn printed(&self) -> &str {
        self.first()["printed"].as_str().unwrap_or("no shard could be started")
    }

    /// A text of the first report.
    pub(crate) fn text(&self, part: &str) -> &str {
        self.first()[part].as_str().unwrap_or("-")
    }

    /// What the first shard emulates.
    pub(crate) fn emulated(&self) -> Vec<&str> {
        let all = self.first()["emulates"].as_array();
        all.into_iter().flatten().filter_map(|one| one["what"].as_str()).collect()
    }
}
