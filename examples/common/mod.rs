//! What the examples share: the flags of the echo servers, and waiting for the end.
#![allow(dead_code, reason = "each example uses a part of it")]

use anabranch::os::{Signal, SignalKind};
use anabranch::{Backend, BackendReport, Config, Context, Shard, spawn, yield_now};
use clap::Parser;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;

/// Flags of an echo server.
#[derive(Parser, Clone, Debug)]
pub(crate) struct Flags {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:7000")]
    pub(crate) addr: SocketAddr,
    /// Protocol.
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp"])]
    pub(crate) proto: String,
    /// Bytes of one receive buffer for datagrams.
    #[arg(long, default_value_t = 16384, value_parser = clap::value_parser!(u64).range(512..=1 << 23))]
    pub(crate) size: u64,
    /// Shards; one thread each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) shards: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    pub(crate) backend: Backend,
    /// Let a ring take nothing but what the crate asks of it.
    #[arg(long)]
    pub(crate) hardened: bool,
    /// Print nothing.
    #[arg(long)]
    pub(crate) quiet: bool,
}

impl Flags {
    /// Says where the server listens, and on which backend.
    pub(crate) fn announce(&self, report: &BackendReport, bound: SocketAddr) {
        if !self.quiet {
            println!("{report}");
            println!("echoing {} on {bound}", self.proto);
        }
    }

    /// The configuration of a shard.
    pub(crate) fn config(&self) -> Config {
        let bytes = self.size as usize;
        let config = Config::new().backend(self.backend).hardened(self.hardened);
        config.with_limits(|limits| limits.datagram_buffer_bytes = bytes)
    }
}

/// What hears of signals: a ring would be too much for that.
const SIGNALS: Backend = if cfg!(windows) { Backend::Auto } else { Backend::Readiness };

/// A small shard that hears of signals, for a thread beside those that serve.
pub(crate) fn signal_shard() -> io::Result<Shard> {
    Shard::new(Config::new().backend(SIGNALS).with_limits(|limits| limits.buffers = 8))
}

/// A flag that SIGINT and SIGTERM set.
pub(crate) fn stop_flag() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    thread::spawn(move || {
        let asked = signal_shard().and_then(|shard| shard.block_on(asked_to_end()));
        flag.store(asked.is_ok(), Ordering::Relaxed);
    });
    stop
}

/// Completes at SIGINT or SIGTERM.
pub(crate) async fn asked_to_end() -> io::Result<()> {
    let (mut interrupt, mut terminate) =
        (Signal::new(SignalKind::Interrupt)?, Signal::new(SignalKind::Terminate)?);
    either(interrupt.recv(), terminate.recv()).await
}

/// Runs `main` until it ends by itself, or SIGINT or SIGTERM arrives; it is dropped then.
pub(crate) async fn until_asked_to_end(main: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    // The signals are heard before `main` says that it is there.
    either(asked_to_end(), main).await
}

/// The output of whichever completes first; the other is dropped. The first one is looked at first.
pub(crate) async fn either<T>(first: impl Future<Output = T>, second: impl Future<Output = T>) -> T {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|task| match first.as_mut().poll(task) {
        Poll::Pending => second.as_mut().poll(task),
        output => output,
    })
    .await
}

/// Stops the group when SIGINT or SIGTERM arrives; both are heard when this has completed.
pub(crate) async fn stop_when_asked(context: &Context) {
    if context.index() == 0 {
        let context = context.clone();
        spawn(async move {
            let _ = asked_to_end().await;
            context.stop();
        })
        .detach();
        // The new task runs first and registers.
        yield_now().await;
    }
}

/// Raises the limit of descriptors to so many, as far as it may; how many this process may have.
#[cfg(unix)]
pub(crate) fn descriptors(wanted: u64) -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let raised = hard.min(wanted);
    match soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
        true => raised,
        false => soft,
    }
}

/// Handles have no limit that matters here.
#[cfg(not(unix))]
pub(crate) fn descriptors(wanted: u64) -> u64 {
    wanted
}

/// Runs so many shards until the runtime is stopped.
pub(crate) fn shards(name: &str, count: u64, config: &Config) -> io::Result<anabranch::Runtime> {
    let settings = anabranch::Runtime::builder().shards(count as usize).name(name).config(config.clone());
    settings.start(|group| async move {
        group.stopped().await;
        Ok(())
    })
}
