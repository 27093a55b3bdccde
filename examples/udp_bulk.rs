//! A flood of datagrams, and what it costs: datagrams per second of the clock and of the processor.
//!
//! Try it: `cargo run --release --example udp_bulk -- receive`, and `cargo run --release --example udp_bulk -- send`
//! in another terminal; then both with `--gso off --gro off`. Both end by themselves.
#![forbid(unsafe_code)]

use anabranch::net::UdpSocket;
use anabranch::{Backend, Capability, Config, Shard, sleep, spawn, timeout};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Sends or receives datagrams as fast as it can.
#[derive(Parser, Clone)]
struct Flags {
    /// What to do.
    #[arg(value_enum)]
    mode: Mode,
    /// Where the receiver listens.
    #[arg(long, default_value = "127.0.0.1:7003")]
    addr: SocketAddr,
    /// Bytes of a datagram.
    #[arg(long, default_value_t = 1200, value_parser = clap::value_parser!(u64).range(1..=65_507))]
    size: u64,
    /// How long to send, or to receive after the first datagram.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How long the receiver waits for the first datagram, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    patience: u64,
    /// The kernel cuts what is sent.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    gso: Switch,
    /// The kernel joins what is received.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    gro: Switch,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Send,
    Receive,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Switch {
    On,
    Off,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let mut config = Config::new().backend(flags.backend);
    if flags.gso == Switch::Off {
        config = config.without(Capability::SegmentedSend);
    }
    Shard::new(config)?.block_on(async {
        match flags.mode {
            Mode::Send => send(&flags).await,
            Mode::Receive => receive(&flags).await,
        }
    })
}

async fn send(flags: &Flags) -> io::Result<()> {
    let here: SocketAddr =
        if flags.addr.is_ipv6() { ([0_u16; 8], 0).into() } else { ([0, 0, 0, 0], 0).into() };
    let socket = UdpSocket::bind(here).await?;
    let size = flags.size as usize;
    let count = if flags.gso == Switch::On { (65_507 / size).clamp(1, 64) } else { 1 };
    let payload = Bytes::from(vec![0x5a; size * count]);
    let meter = Meter::start(flags);
    let mut sent = 0;
    while !meter.is_over() {
        for _ in 0..64 {
            // What one datagram met is no reason to stop.
            let outcome = match flags.gso {
                Switch::On => socket.send_segments(payload.clone(), size, flags.addr).await,
                Switch::Off => socket.send_to(payload.clone(), flags.addr).await,
            };
            sent += if outcome.is_ok() { count as u64 } else { 0 };
        }
        // Also a sender that never has to wait gives the others their turn.
        anabranch::yield_now().await;
    }
    meter.report("sent", sent);
    socket.close().await;
    Ok(())
}

async fn receive(flags: &Flags) -> io::Result<()> {
    let socket = UdpSocket::bind(flags.addr).await?;
    // As large as the system allows.
    let _ = socket.set_buffer_sizes(4 << 20, 4 << 20);
    if flags.gro == Switch::On {
        socket.set_gro(true)?;
    }
    println!("receiving on {}", socket.local_addr()?);
    let Ok(first) = timeout(Duration::from_secs(flags.patience), socket.recv_from()).await else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no datagram came"));
    };
    drop(first?);
    let meter = Meter::start(flags);
    let mut received = 1;
    let flood = async {
        while !meter.is_over() {
            for _ in 0..64 {
                received += match flags.gro {
                    Switch::On => {
                        socket.recv_segments().await.map_or(0, |segments| segments.count_left() as u64)
                    }
                    Switch::Off => u64::from(socket.recv_from().await.is_ok()),
                };
            }
        }
    };
    let _ = timeout(Duration::from_secs(flags.seconds) + Duration::from_millis(200), flood).await;
    meter.report("received", received);
    Ok(())
}

/// The clock and the processor time since its start.
struct Meter {
    begun: Instant,
    processor: Duration,
    length: Duration,
}

impl Meter {
    fn start(flags: &Flags) -> Meter {
        let length = Duration::from_secs(flags.seconds);
        spawn(show(length)).detach();
        Meter { begun: Instant::now(), processor: processor(), length }
    }

    fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.length
    }

    fn report(&self, what: &str, datagrams: u64) {
        let (clock, processor) = (self.begun.elapsed(), processor().saturating_sub(self.processor));
        let count = datagrams as f64;
        println!(
            "{what} {datagrams} datagrams in {:.2} s: {:.0}/s, {:.0} per processor second ({:.2} s)",
            clock.as_secs_f64(),
            count / clock.as_secs_f64(),
            count / processor.as_secs_f64().max(1e-6),
            processor.as_secs_f64(),
        );
    }
}

/// The processor time of this process, the kernel's part included.
#[cfg(unix)]
fn processor() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
    })
}

/// The processor time of this process, which the standard library does not tell.
#[cfg(not(unix))]
fn processor() -> Duration {
    Duration::ZERO
}

/// A bar on a terminal; elsewhere it shows nothing.
async fn show(length: Duration) {
    let bar = ProgressBar::new(length.as_millis() as u64);
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let begun = Instant::now();
    while begun.elapsed() < length {
        bar.set_position(begun.elapsed().as_millis() as u64);
        sleep(Duration::from_millis(100)).await;
    }
    bar.finish_and_clear();
}
