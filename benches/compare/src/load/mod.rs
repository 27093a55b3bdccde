//! The load generator: one thread over epoll. It checks every byte it gets and reads the server's bill.

mod churn;
mod echo;
mod fanout;
mod idle;
mod tls;
mod udp;

use crate::pattern::Pattern;
use crate::process::{self, Bill};
use crate::results::Metrics;
use crate::scenario::Scenario;
use crate::sys::{self, Epoll, WRITE};
use hdrhistogram::Histogram;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scenario: Scenario,
    pub address: SocketAddr,
    /// The process whose bill is read.
    pub server: u32,
    pub warm: Duration,
    pub measure: Duration,
}

/// A run in which server or load were ready for a larger part of the time while others had their core says
/// nothing; nor does one in which the server, under a load that fills it, had next to no time on a core.
const WAITED_SHARE_MAX: f64 = 0.12;
const BUSY_MIN: f64 = 0.3;

/// Without progress for so long, a load has failed.
const PATIENCE: Duration = Duration::from_secs(8);

/// Runs a load; an error is a failed cell.
pub fn run(plan: &Plan) -> io::Result<Metrics> {
    match plan.scenario {
        Scenario::Echo { connections, size, outstanding, spin } => {
            echo::run(plan, connections, size, outstanding, spin)
        }
        Scenario::Tls { connections, size, outstanding } => tls::run(plan, connections, size, outstanding),
        Scenario::Udp { sockets, outstanding } => udp::run(plan, sockets, 32, outstanding, 1),
        Scenario::BulkUdp { sockets } => udp::run(plan, sockets, 1200, 64, 16),
        Scenario::FanOut { subscribers, ahead } => fanout::run(plan, subscribers, ahead),
        Scenario::Stalled { subscribers } => fanout::stalled(plan, subscribers),
        Scenario::Churn { parallel } => churn::run(plan, parallel),
        Scenario::Idle { connections } => idle::run(plan, connections),
        Scenario::Timers { .. } | Scenario::Tasks { .. } => Err(failure("no load is needed")),
    }
}

fn failure(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

/// Whether a call would have to wait.
fn blocked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// The clock and the books of a run: nothing counts until it is warm.
struct Meter {
    server: u32,
    begun: Instant,
    measure_from: Duration,
    measure: Duration,
    /// When what is measured began, and the bills then.
    mark: Option<Mark>,
    latencies: Histogram<u64>,
    messages: u64,
    lost: u64,
    progress: (u64, Instant),
}

struct Mark {
    at: Instant,
    server: Bill,
    client: Bill,
    messages: u64,
}

impl Meter {
    fn new(plan: &Plan) -> Meter {
        let now = Instant::now();
        Meter {
            server: plan.server,
            begun: now,
            measure_from: plan.warm,
            measure: plan.measure,
            mark: None,
            latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid"),
            messages: 0,
            lost: 0,
            progress: (0, now),
        }
    }

    /// Nanoseconds since the run began.
    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Counts a message that was sent at `sent` and has come back at `now`.
    fn count(&mut self, sent: u64, now: u64) {
        self.messages += 1;
        if self.mark.is_some() {
            self.latencies.saturating_record(now.saturating_sub(sent).max(1));
        }
    }

    /// Starts and ends the measurement; `ready` holds it back. The metrics, when it is over.
    fn tick(&mut self, ready: bool) -> io::Result<Option<Metrics>> {
        let now = Instant::now();
        if self.progress.0 != self.messages {
            self.progress = (self.messages, now);
        } else if now - self.progress.1 > PATIENCE {
            return Err(failure(format!("stalled after {} messages", self.messages)));
        }
        let Some(mark) = &self.mark else {
            if ready && now - self.begun >= self.measure_from {
                let (server, client) = (process::bill(self.server)?, process::bill(std::process::id())?);
                self.mark = Some(Mark { at: now, server, client, messages: self.messages });
            }
            return Ok(None);
        };
        let messages = self.messages - mark.messages;
        if now - mark.at < self.measure || messages == 0 {
            return Ok(None);
        }
        let bill = process::bill(self.server)?;
        let (seconds, n) = ((now - mark.at).as_secs_f64(), messages as f64);
        let cpu = (bill.cpu - mark.server.cpu).as_secs_f64();
        let user = (bill.user_ticks - mark.server.user_ticks) as f64;
        let system = (bill.system_ticks - mark.server.system_ticks) as f64;
        let client_bill = process::bill(std::process::id())?;
        let client = (client_bill.cpu - mark.client.cpu).as_secs_f64();
        let waited = (bill.waited - mark.server.waited).max(client_bill.waited - mark.client.waited);
        let mut metrics = Metrics::new();
        metrics.insert("messages".into(), n);
        metrics.insert("messages_with_warm_up".into(), self.messages as f64);
        metrics.insert("rate".into(), n / seconds);
        metrics.insert("cpu_us".into(), cpu * 1e6 / n);
        metrics.insert("user_share".into(), user / (user + system).max(1.0));
        metrics.insert("busy".into(), cpu / seconds);
        metrics.insert("client_cpu_us".into(), client * 1e6 / n);
        metrics.insert("lost".into(), self.lost as f64);
        let disturbed = waited.as_secs_f64() / seconds > WAITED_SHARE_MAX || cpu / seconds < BUSY_MIN;
        metrics.insert("disturbed".into(), f64::from(u8::from(disturbed)));
        if !self.latencies.is_empty() {
            for (name, quantile) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
                metrics.insert(name.into(), self.latencies.value_at_quantile(quantile) as f64 / 1e3);
            }
        }
        Ok(Some(metrics))
    }
}

/// Connects so many times, a bounded number at once so that the listener's queue suffices.
fn connect_all(address: SocketAddr, count: usize) -> io::Result<Vec<socket2::Socket>> {
    const AT_ONCE: usize = 256;
    let mut connected = Vec::with_capacity(count);
    while connected.len() < count {
        let mut epoll = Epoll::new()?;
        let begun: Vec<socket2::Socket> = (connected.len()..count.min(connected.len() + AT_ONCE))
            .map(|_| sys::begin_connect(address, None))
            .collect::<io::Result<_>>()?;
        for (at, socket) in begun.iter().enumerate() {
            epoll.add(socket.as_raw_fd(), at as u64, WRITE | libc::EPOLLONESHOT as u32)?;
        }
        let (mut waiting, limit) = (begun.len(), Instant::now() + PATIENCE);
        while waiting > 0 {
            for at in 0..epoll.wait(100)? {
                let socket = &begun[epoll.event(at).0 as usize];
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
                waiting -= 1;
            }
            if Instant::now() > limit {
                return Err(failure(format!("{waiting} connections are not accepted")));
            }
        }
        connected.extend(begun);
    }
    Ok(connected)
}

/// Compares received bytes with what they should be.
fn check(pattern: &Pattern, id: usize, position: u64, got: &[u8]) -> io::Result<()> {
    let expected = pattern.at(id, position, got.len());
    if expected == got {
        return Ok(());
    }
    let at = expected.iter().zip(got).position(|(a, b)| a != b).unwrap_or(0);
    Err(failure(format!("WRONG BYTES: connection {id} at position {}", position + at as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Echoes over one connection, but changes what `lie` says.
    fn outcome_with(lie: fn(u64, &mut [u8])) -> io::Result<Metrics> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let plan = Plan {
            scenario: "c1-s1024-k4".parse().map_err(failure)?,
            address: listener.local_addr()?,
            server: std::process::id(),
            warm: Duration::ZERO,
            measure: Duration::from_millis(50),
        };
        std::thread::spawn(move || -> io::Result<()> {
            let (mut stream, mut buffer, mut position) = (listener.accept()?.0, vec![0; 4096], 0);
            loop {
                let n = stream.read(&mut buffer)?;
                lie(position, &mut buffer[..n]);
                position += n as u64;
                stream.write_all(&buffer[..n])?;
            }
        });
        run(&plan)
    }

    #[test]
    fn a_server_that_echoes_is_measured() {
        assert!(outcome_with(|_, _| ()).unwrap()["messages"] > 0.0);
    }

    #[test]
    fn one_changed_bit_fails_the_cell() {
        let outcome = outcome_with(|position, bytes| {
            if position > 10_000 {
                bytes[0] ^= 1;
            }
        });
        assert!(outcome.unwrap_err().to_string().contains("WRONG BYTES"));
    }

    #[test]
    fn two_pieces_in_the_wrong_order_fail_the_cell() {
        let outcome = outcome_with(|_, bytes| bytes.rotate_left(1));
        assert!(outcome.unwrap_err().to_string().contains("WRONG BYTES"));
    }
}
