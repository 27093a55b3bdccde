//! Starts servers and loads, one fresh pair for each cell, and collects what they give.

use crate::machine;
use crate::results::{Cell, Metrics, Results, is_disturbed};
use crate::scenario::{Role, Scenario};
use crate::servers::{ASIO, Server};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    pub rounds: usize,
    /// Seconds before and while it counts.
    pub warm: f64,
    pub secs: f64,
    /// How often a run that others disturbed is tried.
    pub tries: usize,
    pub fifo: bool,
    /// Scenarios in which system calls are counted as well.
    pub calls: &'static [&'static str],
}

pub struct Driver {
    settings: Settings,
    /// The cores of servers and load.
    cores: (usize, usize),
    /// Why there is no Asio.
    asio: Result<(), String>,
}

/// A server's process, ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Driver {
    pub fn new(settings: Settings) -> Driver {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let asio = build_asio();
        if let Err(reason) = &asio {
            eprintln!("**** asio: {reason}. Its cells stay empty. ****");
        }
        Driver { settings, cores: (0, 1 % cores), asio }
    }

    /// Measures each server in each scenario, in interleaved rounds.
    pub fn measure(&self, servers: &[&Server], scenarios: &[Scenario]) -> io::Result<Results> {
        let mut results = Results { facts: machine::facts(&self.settings), cells: Vec::new() };
        for scenario in scenarios {
            for server in servers {
                let missing = self.missing(server, scenario.role());
                results.cell_mut(&scenario.to_string(), server.name).missing = missing;
            }
        }
        let begun = Instant::now();
        let once = scenarios.iter().filter(|scenario| scenario.once_is_enough()).count();
        let runs = scenarios.len() + (scenarios.len() - once) * (self.settings.rounds - 1);
        let bar = progress(runs * servers.len());
        for round in 0..self.settings.rounds {
            for scenario in scenarios.iter().filter(|scenario| round == 0 || !scenario.once_is_enough()) {
                for at in 0..servers.len() {
                    // Each round begins with another server.
                    let server = servers[(at + round) % servers.len()];
                    bar.set_message(format!("{scenario} {}", server.name));
                    let cell = results.cell_mut(&scenario.to_string(), server.name);
                    self.cell(server, *scenario, cell, &bar);
                    bar.inc(1);
                }
            }
        }
        self.count_calls(servers, scenarios, &mut results, &bar);
        bar.finish_and_clear();
        results.facts.insert("seconds".into(), begun.elapsed().as_secs().to_string());
        Ok(results)
    }

    fn missing(&self, server: &Server, role: Role) -> Option<String> {
        match &self.asio {
            Err(reason) if server.name == ASIO => Some(reason.clone()),
            _ => server.lacks(role).map(str::to_owned),
        }
    }

    fn cell(&self, server: &Server, scenario: Scenario, cell: &mut Cell, bar: &ProgressBar) {
        if cell.missing.is_some() {
            return;
        }
        let run = || {
            if scenario.is_micro() { self.micro(server, scenario) } else { self.loaded(server, scenario) }
        };
        let mut outcome = run();
        for _ in 1..self.settings.tries {
            if outcome.as_ref().is_ok_and(is_disturbed) {
                outcome = run();
            }
        }
        match outcome {
            Ok(metrics) => cell.runs.push(metrics),
            Err(reason) => {
                let reason = reason.trim().to_owned();
                bar.suspend(|| eprintln!("**** FAILED: {} in {scenario}: {reason} ****", server.name));
                cell.failures.push(reason);
            }
        }
    }

    /// This program as one of its children.
    fn child(&self, command: &str, core: usize) -> io::Result<Command> {
        let mut child = Command::new(std::env::current_exe()?);
        child.arg(command).arg("--core").arg(core.to_string()).stdin(Stdio::null());
        // Each server runs on the backend that its name says.
        child.env_remove("ANABRANCH_BACKEND");
        if self.settings.fifo {
            child.arg("--fifo");
        }
        Ok(child)
    }

    fn start(&self, server: &Server, scenario: Scenario) -> io::Result<(Running, SocketAddr)> {
        let address = free_address()?;
        let mut child = self.child("serve", self.cores.0)?;
        child.args(["--server", server.name, "--role", &crate::role_name(scenario.role())]);
        child.args(["--address", &address.to_string()]).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut running = Running(child.spawn()?);
        let mut line = String::new();
        if let Some(out) = running.0.stdout.as_mut() {
            BufReader::new(out).read_line(&mut line)?;
        }
        if line.trim() == "ready" {
            Ok((running, address))
        } else {
            Err(io::Error::other("the server did not start"))
        }
    }

    fn load(&self, scenario: Scenario, address: SocketAddr, server: &Running) -> Result<Metrics, String> {
        let mut child = self.child("load", self.cores.1).map_err(|error| error.to_string())?;
        child.args(["--scenario", &scenario.to_string(), "--address", &address.to_string()]);
        child.args(["--server-pid", &server.0.id().to_string()]);
        child.args(["--warm", &self.settings.warm.to_string(), "--secs", &self.settings.secs.to_string()]);
        metrics_of(child)
    }

    fn loaded(&self, server: &Server, scenario: Scenario) -> Result<Metrics, String> {
        let (mut running, address) = self.start(server, scenario).map_err(|error| error.to_string())?;
        let outcome = self.load(scenario, address, &running);
        match running.0.try_wait() {
            Ok(None) => outcome,
            ended => Err(format!("the server ended: {ended:?}; {}", outcome.err().unwrap_or_default())),
        }
    }

    fn micro(&self, server: &Server, scenario: Scenario) -> Result<Metrics, String> {
        let (Scenario::Timers { armed: count } | Scenario::Tasks { tasks: count }) = scenario else {
            return Err("it needs a load".into());
        };
        let mut child = self.child("micro", self.cores.0).map_err(|error| error.to_string())?;
        child.args(["--server", server.name, "--role", &crate::role_name(scenario.role())]);
        child.args(["--count", &count.to_string()]);
        metrics_of(child)
    }

    /// One more run of some scenarios under a counter of system calls. It slows the server, so its other numbers do
    /// not count.
    fn count_calls(
        &self,
        servers: &[&Server],
        scenarios: &[Scenario],
        results: &mut Results,
        bar: &ProgressBar,
    ) {
        let counted = |scenario: &&Scenario| self.settings.calls.contains(&scenario.to_string().as_str());
        for scenario in scenarios.iter().filter(counted) {
            for server in servers {
                let cell = results.cell_mut(&scenario.to_string(), server.name);
                if cell.missing.is_some() || !cell.failures.is_empty() {
                    continue;
                }
                bar.set_message(format!("system calls: {scenario} {}", server.name));
                cell.calls = self.calls(server, *scenario);
            }
        }
    }

    fn calls(&self, server: &Server, scenario: Scenario) -> Option<f64> {
        let (running, address) = self.start(server, scenario).ok()?;
        let mut counter = Counter::attach(running.0.id())?;
        let metrics = self.load(scenario, address, &running);
        drop(running);
        let calls = counter.finish()?;
        Some(calls / metrics.ok()?.get("messages_with_warm_up")?)
    }
}

/// Where system calls are counted, and where in a quick run.
pub const CALLS: &[&str] =
    &["c1-s32-k1-spin", "c100-s32-k1", "c100-s16384-k16", "c1000-s32-k1", "udp100", "fanout100"];

pub const CALLS_QUICK: &[&str] = &["c100-s32-k1"];

fn progress(cells: usize) -> ProgressBar {
    let bar = ProgressBar::new(cells as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}, {eta} left  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Runs a child that prints its metrics as one line of JSON.
fn metrics_of(mut child: Command) -> Result<Metrics, String> {
    let output = child.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// A port where nobody is, below those that the system gives to clients.
fn free_address() -> io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + (std::process::id() % 200) as u16 * 100;
    for _ in 0..20_000 {
        let port = 12_000 + (first - 12_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Counts the system calls of a process: `perf` where it may, because it hardly slows the process; else `strace`.
enum Counter {
    Perf(Child),
    Strace(Child),
}

impl Counter {
    fn attach(pid: u32) -> Option<Counter> {
        let quiet = |command: &mut Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()
        };
        let pid = pid.to_string();
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pid]);
        if let Some(mut child) = quiet(&mut perf) {
            std::thread::sleep(std::time::Duration::from_millis(200));
            if matches!(child.try_wait(), Ok(None)) {
                return Some(Counter::Perf(child));
            }
        }
        let mut strace = Command::new("strace");
        let child = quiet(strace.args(["-c", "-f", "-p", &pid]))?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        Some(Counter::Strace(child))
    }

    /// The calls, after the process has ended.
    fn finish(&mut self) -> Option<f64> {
        let (Counter::Perf(child) | Counter::Strace(child)) = self;
        let mut text = String::new();
        child.stderr.take()?.read_to_string(&mut text).ok()?;
        let _ = child.wait();
        match self {
            Counter::Perf(_) => {
                let line = text.lines().find(|line| line.contains("sys_enter"))?;
                line.split(',').next()?.parse().ok()
            }
            Counter::Strace(_) => {
                let line = text.lines().find(|line| line.trim_end().ends_with(" total"))?;
                line.split_whitespace().nth(3)?.parse().ok()
            }
        }
    }
}

fn asio_program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("asio-server"))
}

/// Replaces this process by the Asio server.
pub fn become_asio(words: &[&str]) -> io::Error {
    match asio_program() {
        Ok(program) => Command::new(program).args(words).exec(),
        Err(error) => error,
    }
}

/// Builds the Asio server, unless that is done.
fn build_asio() -> Result<(), String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("native/asio.cpp");
    let program = asio_program().map_err(|error| error.to_string())?;
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    if changed(&program).is_some_and(|built| Some(built) > changed(&source)) {
        return Ok(());
    }
    if !["/usr/include/asio.hpp", "/usr/local/include/asio.hpp"].iter().any(|path| Path::new(path).exists()) {
        return Err("not built: libasio-dev missing".into());
    }
    let mut compiler = Command::new("g++");
    compiler
        .args(["-O3", "-std=c++17", "-DASIO_STANDALONE"])
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .arg("-lpthread");
    match compiler.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!(
                "not built: {}",
                text.lines().find(|line| line.contains("error")).unwrap_or("g++ failed")
            ))
        }
        Err(error) => Err(format!("not built: g++: {error}")),
    }
}
