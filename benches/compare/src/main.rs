//! A comparison of network runtimes: servers that do the same, one load generator that checks every byte, and what it
//! costs the server. See the README beside this crate.

mod canvas;
mod charts;
mod driver;
mod load;
mod machine;
mod pattern;
mod process;
mod report;
mod results;
mod scenario;
mod servers;
mod sys;

use clap::{Args, Parser, Subcommand};
use driver::{Driver, Settings};
use results::Results;
use scenario::{Role, Scenario};
use servers::{ASIO, Job, Server};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Compares anabranch with other runtimes and with bare loops, on this machine.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures everything and writes tables, charts and raw results.
    All(Measure),
    /// Measures some scenarios and prints the tables; writes files only with `--out`.
    Run(Measure),
    /// Runs every server in every kind of scenario with tiny loads and checks the bytes. No numbers.
    Smoke(Only),
    /// Draws tables and charts again from the raw results in a folder.
    Draw {
        #[arg(long, default_value = "../../docs/performance")]
        out: PathBuf,
    },
    /// Lists servers, scenarios and groups.
    List,
    #[command(hide = true)]
    Serve(Serve),
    #[command(hide = true)]
    Micro(Micro),
    #[command(hide = true)]
    Load(Load),
}

#[derive(Args)]
struct Only {
    /// Servers, separated by commas; all if none.
    #[arg(long, default_value = "")]
    servers: String,
    /// Do not ask for real-time scheduling.
    #[arg(long)]
    no_fifo: bool,
}

#[derive(Args)]
struct Measure {
    #[command(flatten)]
    only: Only,
    /// Scenarios and groups, separated by commas.
    #[arg(long)]
    scenarios: Option<String>,
    /// Less of everything: under two minutes.
    #[arg(long)]
    quick: bool,
    /// How often each cell is measured; the median counts.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds that a cell is measured.
    #[arg(long)]
    secs: Option<f64>,
    /// Folder for tables, charts and raw results.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Where a process of the comparison runs.
#[derive(Args)]
struct Place {
    #[arg(long)]
    core: usize,
    #[arg(long)]
    fifo: bool,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    server: String,
    #[arg(long)]
    role: Role,
    #[arg(long)]
    address: SocketAddr,
}

#[derive(Args)]
struct Micro {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    server: String,
    #[arg(long)]
    role: Role,
    #[arg(long)]
    count: usize,
}

#[derive(Args)]
struct Load {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    scenario: Scenario,
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    server_pid: u32,
    #[arg(long)]
    warm: f64,
    #[arg(long)]
    secs: f64,
}

/// No process of the comparison outlives this.
const LIFE_SECONDS: u32 = 120;

fn main() -> ExitCode {
    sys::raise_descriptor_limit();
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `false` if something was wrong that the output tells about.
fn run(command: Command) -> io::Result<bool> {
    match command {
        Command::All(measure) => {
            let out = measure.out.clone().unwrap_or_else(|| PathBuf::from("../../docs/performance"));
            measure_and_write(&measure, if measure.quick { "quick" } else { "all" }, Some(&out))
        }
        Command::Run(measure) => measure_and_write(&measure, "quick", measure.out.as_deref()),
        Command::Smoke(only) => smoke(&only),
        Command::Draw { out } => write(&Results::read(&out.join("results.json"))?, &out).map(|()| true),
        Command::List => {
            list();
            Ok(true)
        }
        Command::Serve(serve) => {
            settle(&serve.place);
            let (role, address) = (serve.role, serve.address);
            if serve.server == ASIO {
                let role = role_name(role);
                let words = ["serve", &role, &address.ip().to_string(), &address.port().to_string()];
                return Err(driver::become_asio(&words));
            }
            server(&serve.server)?.serve(Job { role, address }).map(|()| true)
        }
        Command::Micro(micro) => {
            settle(&micro.place);
            if micro.server == ASIO {
                return Err(driver::become_asio(&["micro", "timers", &micro.count.to_string()]));
            }
            let nanoseconds = server(&micro.server)?.micro(micro.role, micro.count)?;
            println!("{{\"cpu_us\":{}}}", nanoseconds / 1e3);
            // Dropping a million timers is not what is measured.
            std::process::exit(0);
        }
        Command::Load(load) => {
            settle(&load.place);
            let metrics = load::run(&load::Plan {
                scenario: load.scenario,
                address: load.address,
                server: load.server_pid,
                warm: Duration::from_secs_f64(load.warm),
                measure: Duration::from_secs_f64(load.secs),
            })?;
            println!("{}", serde_json::to_string(&metrics).map_err(io::Error::other)?);
            std::process::exit(0);
        }
    }
}

fn settle(place: &Place) {
    sys::end_with_parent(LIFE_SECONDS);
    sys::settle_on(place.core, place.fifo);
}

fn role_name(role: Role) -> String {
    use clap::ValueEnum;
    role.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn server(name: &str) -> io::Result<&'static Server> {
    servers::find(name).ok_or_else(|| io::Error::other(format!("no server is called {name:?}; see `list`")))
}

fn selected(only: &Only) -> io::Result<Vec<&'static Server>> {
    if only.servers.is_empty() {
        return Ok(servers::SERVERS.iter().collect());
    }
    only.servers.split(',').map(server).collect()
}

fn measure_and_write(measure: &Measure, scenarios: &str, out: Option<&Path>) -> io::Result<bool> {
    let list =
        scenario::parse_list(measure.scenarios.as_deref().unwrap_or(scenarios)).map_err(io::Error::other)?;
    let rounds = measure.rounds.unwrap_or(if measure.quick { 1 } else { 3 });
    let secs = measure.secs.unwrap_or(if measure.quick { 0.4 } else { 0.6 });
    let settings = Settings {
        rounds,
        warm: 0.15,
        secs,
        tries: 3,
        fifo: !measure.only.no_fifo,
        calls: if measure.quick { driver::CALLS_QUICK } else { driver::CALLS },
    };
    let driver = Driver::new(settings);
    let results = driver.measure(&selected(&measure.only)?, &list)?;
    if let Some(out) = out {
        std::fs::create_dir_all(out)?;
        results.write(&out.join("results.json"))?;
        write(&results, out)?;
        eprintln!("written to {}", out.display());
    } else {
        println!("{}", report::tables(&results));
    }
    Ok(results.cells.iter().all(|cell| cell.failures.is_empty()))
}

fn write(results: &Results, out: &Path) -> io::Result<()> {
    let charts = charts::draw_all(results, out)?;
    std::fs::write(out.join("README.md"), report::document(results, &charts))
}

fn smoke(only: &Only) -> io::Result<bool> {
    let settings = Settings { rounds: 1, warm: 0.01, secs: 0.03, tries: 1, fifo: !only.no_fifo, calls: &[] };
    let list = scenario::parse_list("smoke").map_err(io::Error::other)?;
    let results = Driver::new(settings).measure(&selected(only)?, &list)?;
    let failed = results.cells.iter().filter(|cell| !cell.failures.is_empty()).count();
    let missing = results.cells.iter().filter(|cell| cell.missing.is_some()).count();
    println!("smoke: {} cells, {failed} failed, {missing} missing", results.cells.len());
    Ok(failed == 0)
}

fn list() {
    println!("servers:");
    for server in servers::SERVERS {
        println!("  {:<32} {}", server.name, server.about);
    }
    println!("groups (or any of c<connections>-s<bytes>-k<outstanding>[-spin], all):");
    for (name, members) in scenario::GROUPS {
        println!("  {name:<10} {}", members.join(" "));
    }
}
