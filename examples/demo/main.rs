//! The main job, measured here and now: an echo server on every shard, on each backend that this machine has.
//!
//! Threads of its own drive the server over loopback and check every byte that comes back: a byte that is lost,
//! doubled, out of order or somebody else's ends the run with exit code 1. At the end there are a table and a chart.
//!
//! Try it: `cargo run --release --example demo`. Ctrl-C ends it early and shows what was measured until then.
#![forbid(unsafe_code)]

mod chart;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod table;

use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Backend, BackendKind, Config, Context, Distribution, Runtime, Shard, spawn};
use clap::Parser;
use client::{Load, Tally};
use indicatif::{ProgressBar, ProgressStyle};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Measures an echo server on this machine, on each backend, and checks every byte.
#[derive(Parser, Clone, Debug)]
struct Flags {
    /// Seconds that all runs take together.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    secs: u64,
    /// Connections.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    conns: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    size: u64,
    /// Messages on their way at once, per connection.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pipeline: u64,
    /// Shards of the server; one per processor if not said.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
    shards: Option<u64>,
    /// Backend; `both` takes the best one first, then the other.
    #[arg(long, default_value = "both", value_parser = ["auto", "uring", "readiness", "iocp", "both"])]
    backend: String,
    /// Where the chart is written; `demo.svg` in the target directory if not said.
    #[arg(long)]
    chart: Option<PathBuf>,
}

/// What was measured on one backend.
struct Measured {
    backend: BackendKind,
    conns: u64,
    size: u64,
    seconds: f64,
    tally: Tally,
    /// Seconds since the start and messages per second around that time.
    samples: Vec<(f64, f64)>,
    /// What all shards' threads used, where the system tells.
    cpu: Option<Duration>,
}

impl Measured {
    fn messages_per_second(&self) -> f64 {
        self.tally.messages as f64 / self.seconds
    }

    fn mebibytes_per_second(&self) -> f64 {
        self.messages_per_second() * self.size as f64 / f64::from(1 << 20)
    }

    fn latency_us(&self, quantile: f64) -> f64 {
        self.tally.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, shows, and tells whether every byte was right.
fn run(flags: &Flags) -> io::Result<bool> {
    let stop = common::stop_flag();
    let backends = backends(&flags.backend);
    if backends.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "no backend that was asked for can be had here",
        ));
    }
    let each = Duration::from_secs(flags.secs) / backends.len() as u32;
    let bar = ProgressBar::new(flags.secs * 1000);
    let style = ProgressStyle::with_template("{prefix:>9} [{bar:40}] {percent:>3}% {msg}");
    bar.set_style(style.map_err(io::Error::other)?.progress_chars("=> "));
    let mut all = Vec::new();
    for backend in backends {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        all.push(measure(flags, backend, each, &stop, &bar)?);
    }
    bar.finish_and_clear();
    if stop.load(Ordering::Relaxed) {
        println!("ended early; this is what was measured until then:");
    }
    println!("{}", table::render(&all));
    let path = flags.chart.clone().unwrap_or_else(default_chart);
    chart::write(&path, flags, &all)?;
    println!("chart: {}", path.display());
    for measured in &all {
        let errors = measured.tally.errors.iter();
        errors.for_each(|error| eprintln!("error on {}: {error}", measured.backend));
    }
    Ok(all.iter().all(|measured| measured.tally.is_clean()))
}

/// The backends to measure, the best one first; says which cannot be had.
fn backends(asked: &str) -> Vec<Backend> {
    let kind = |backend| Shard::new(Config::new().backend(backend)).map(|shard| shard.report().backend);
    let wanted = match (asked, kind(Backend::Auto)) {
        ("both", Ok(BackendKind::Readiness)) => vec![Backend::Readiness, Backend::Uring],
        ("both", Ok(BackendKind::Iocp)) => vec![Backend::Iocp],
        ("both", _) => vec![Backend::Uring, Backend::Readiness],
        ("auto", _) => vec![Backend::Auto],
        ("uring", _) => vec![Backend::Uring],
        ("iocp", _) => vec![Backend::Iocp],
        _ => vec![Backend::Readiness],
    };
    let to_be_had = |backend: &Backend| match kind(*backend) {
        Ok(found) if *backend == Backend::Auto || found.to_string() == backend.to_string() => true,
        Ok(found) => {
            println!("no run on {backend}: ANABRANCH_BACKEND makes it {found}");
            false
        }
        Err(error) => {
            println!("no run on {backend}: {error}");
            false
        }
    };
    wanted.into_iter().filter(to_be_had).collect()
}

fn measure(
    flags: &Flags,
    backend: Backend,
    duration: Duration,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> io::Result<Measured> {
    let cpu_us = Arc::new(AtomicU64::new(0));
    let (runtime, server) = start_server(flags, backend, &cpu_us)?;
    let report = runtime.reports().swap_remove(0);
    bar.suspend(|| println!("{report}\nshards   {}, echoing tcp on {server}\n", runtime.shards()));
    bar.set_prefix(report.backend.to_string());

    let count = AtomicU64::new(0);
    let start = Instant::now();
    let load = Load {
        server,
        size: flags.size,
        pipeline: flags.pipeline as usize,
        until: start + duration,
        stop,
        count: &count,
    };
    let (tally, samples) = thread::scope(|scope| {
        let clients = client::start(scope, &load, flags.conns);
        let samples = watch(&load, start, bar, || clients.iter().all(|client| client.is_finished()));
        let tallies = clients.into_iter().map(|client| client.join().expect("a client panicked"));
        (tallies.fold(Tally::default(), Tally::add), samples)
    });
    let seconds = start.elapsed().as_secs_f64();

    runtime.stop();
    let mut tally = tally;
    for end in runtime.join() {
        end.result.unwrap_or_else(|error| tally.fail(format!("shard {}: {error}", end.index)));
        end.counters.settled().unwrap_or_else(|error| tally.fail(format!("shard {}: {error}", end.index)));
    }
    let cpu = thread_cpu_us().map(|_| Duration::from_micros(cpu_us.load(Ordering::Relaxed)));
    let (conns, size, backend) = (flags.conns, flags.size, report.backend);
    Ok(Measured { backend, conns, size, seconds, tally, samples, cpu })
}

/// Moves the bar and takes a sample of the throughput ten times a second, until the time is over.
fn watch(load: &Load<'_>, start: Instant, bar: &ProgressBar, ended: impl Fn() -> bool) -> Vec<(f64, f64)> {
    const PERIOD: Duration = Duration::from_millis(100);
    let (mut samples, mut last, mut last_count) = (Vec::new(), start, 0);
    while !ended() {
        thread::sleep(PERIOD);
        let (now, count) = (Instant::now(), load.count.load(Ordering::Relaxed));
        let step = now - last;
        let rate = (count - last_count) as f64 / step.as_secs_f64();
        bar.inc(step.as_millis() as u64);
        bar.set_message(format!("{} messages/s", table::grouped(rate as u64)));
        if now <= load.until {
            samples.push((((last + step / 2) - start).as_secs_f64(), rate));
        }
        (last, last_count) = (now, count);
    }
    samples
}

/// The server, and where it listens.
fn start_server(
    flags: &Flags,
    backend: Backend,
    cpu_us: &Arc<AtomicU64>,
) -> io::Result<(Runtime, SocketAddr)> {
    // What a thread had used before its shard started does not count.
    let (before, after) = (Arc::clone(cpu_us), Arc::clone(cpu_us));
    let mut settings = Runtime::builder()
        .name("echo")
        .config(Config::new().backend(backend))
        .on_start(move |_| {
            before.fetch_sub(thread_cpu_us().unwrap_or(0), Ordering::Relaxed);
        })
        .on_stop(move |_| {
            after.fetch_add(thread_cpu_us().unwrap_or(0), Ordering::Relaxed);
        });
    if let Some(shards) = flags.shards {
        settings = settings.shards(shards as usize);
    }
    let (bound, address) = mpsc::channel();
    let runtime = settings.start(move |context| serve(context, bound.clone()))?;
    // The clients begin when every shard listens.
    let mut server = Err(io::Error::other("no shard listens"));
    for _ in 0..runtime.shards() {
        server = address.recv_timeout(Duration::from_secs(10)).map_err(io::Error::other)?;
    }
    Ok((runtime, server?))
}

async fn serve(context: Context, bound: mpsc::Sender<io::Result<SocketAddr>>) -> io::Result<()> {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = match TcpListener::bind_group(&context, any_port, Distribution::Balanced) {
        Ok(listener) => listener,
        Err(error) => {
            let _ = bound.send(Err(error));
            return Ok(());
        }
    };
    let _ = bound.send(listener.local_addr());
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(echo(stream)).detach();
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}

/// Processor time that the calling thread has used, in microseconds.
#[cfg(target_os = "linux")]
fn thread_cpu_us() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
    u64::try_from((usage.user_time() + usage.system_time()).num_microseconds()).ok()
}

/// Processor time that the calling thread has used, which this system does not tell.
#[cfg(not(target_os = "linux"))]
fn thread_cpu_us() -> Option<u64> {
    None
}

/// The target directory holds this very program in `<profile>/examples/`.
fn default_chart() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().nth(3).map(PathBuf::from);
    target.unwrap_or_else(|| PathBuf::from("target")).join("demo.svg")
}
