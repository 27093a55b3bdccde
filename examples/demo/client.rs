//! The clients: threads that know nothing of the crate, each with several connections and one `poll`.
//!
//! What a connection sends is a walk through one table of noise that starts somewhere else for each connection. So
//! the byte at each position is known, and a byte that is lost, doubled, out of order or from another connection
//! differs from it.

use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Threads at most.
const THREADS_MAX: usize = 8;
/// How long outstanding echoes may take at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Bytes of one read or write at most.
const CHUNK: usize = 64 * 1024;
/// Length of the noise before it repeats; a prime, so that no power of two of bytes is a whole walk.
const NOISE: usize = 1_048_573;
/// Error texts that are kept; the others are counted.
const TEXTS_MAX: usize = 8;

/// Noise, longer by a chunk, so that each chunk is one slice.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut table: Vec<u8> = (0..NOISE as u64).map(|at| mix(at) as u8).collect();
    table.extend_from_within(..CHUNK);
    table
});

/// SplitMix64.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What the clients do.
pub(crate) struct Load<'a> {
    pub(crate) server: SocketAddr,
    pub(crate) size: u64,
    pub(crate) pipeline: usize,
    pub(crate) until: Instant,
    /// Ends it before its time.
    pub(crate) stop: &'a AtomicBool,
    /// Messages that have come back so far.
    pub(crate) count: &'a AtomicU64,
}

/// What the clients saw.
pub(crate) struct Tally {
    pub(crate) messages: u64,
    /// Nanoseconds from the first byte's write to the last byte's return.
    pub(crate) latency: Histogram<u64>,
    pub(crate) error_count: u64,
    /// The first of the errors.
    pub(crate) errors: Vec<String>,
}

impl Default for Tally {
    fn default() -> Tally {
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds in order");
        Tally { messages: 0, latency, error_count: 0, errors: Vec::new() }
    }
}

impl Tally {
    /// Both together.
    pub(crate) fn add(mut self, other: Tally) -> Tally {
        self.messages += other.messages;
        self.latency += other.latency;
        self.error_count += other.error_count;
        self.errors.extend(other.errors);
        self.errors.truncate(TEXTS_MAX);
        self
    }

    /// Counts an error.
    pub(crate) fn fail(&mut self, text: String) {
        self.error_count += 1;
        if self.errors.len() < TEXTS_MAX {
            self.errors.push(text);
        }
    }

    /// Whether nothing went wrong and something was measured.
    pub(crate) fn is_clean(&self) -> bool {
        self.error_count == 0 && self.messages > 0
    }
}

/// Starts the threads, with the connections dealt out to them.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    load: &'scope Load<'scope>,
    conns: u64,
) -> Vec<ScopedJoinHandle<'scope, Tally>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(THREADS_MAX).min(conns as usize);
    let deal = move |thread| (0..conns).filter(move |conn| *conn as usize % threads == thread);
    (0..threads).map(|thread| scope.spawn(move || drive(load, deal(thread)))).collect()
}

/// One thread.
fn drive(load: &Load<'_>, numbers: impl Iterator<Item = u64>) -> Tally {
    let mut tally = Tally::default();
    let mut conns = Vec::new();
    for number in numbers {
        match Conn::open(load.server, number) {
            Ok(conn) => conns.push(conn),
            Err(error) => tally.fail(format!("connection {number}: connect: {error}")),
        }
    }
    let mut chunk = vec![0; CHUNK];
    let mut until = load.until;
    while !conns.is_empty() {
        let now = Instant::now();
        if load.stop.load(Ordering::Relaxed) {
            until = until.min(now);
        }
        let more = now < until;
        if now > until + DRAIN {
            conns.drain(..).for_each(|conn| {
                let (number, missing) = (conn.number, conn.sent - conn.received);
                tally.fail(format!(
                    "connection {number}: {missing} byte(s) or the end of the stream never came"
                ));
            });
            break;
        }
        let mut kept = Vec::with_capacity(conns.len());
        for (mut conn, ready) in ready(conns) {
            match conn.go_on(load, more, ready, &mut chunk, &mut tally) {
                Ok(true) => kept.push(conn),
                Ok(false) => {}
                Err(error) => tally.fail(format!("connection {}: {error}", conn.number)),
            }
        }
        conns = kept;
    }
    tally
}

/// Waits until some connections can go on; pairs each with whether it has something to read.
#[cfg(unix)]
fn ready(conns: Vec<Conn>) -> Vec<(Conn, bool)> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let wants = |conn: &Conn| match conn.wants_to_write() {
        true => PollFlags::POLLIN | PollFlags::POLLOUT,
        false => PollFlags::POLLIN,
    };
    let mut polled: Vec<_> = conns.iter().map(|conn| PollFd::new(conn.stream.as_fd(), wants(conn))).collect();
    // A signal interrupts it, which is as good as a time-out.
    let _ = poll(&mut polled, PollTimeout::from(50u8));
    let ready: Vec<bool> = polled
        .iter()
        .map(|polled| polled.revents().is_some_and(|events| events.intersects(!PollFlags::POLLOUT)))
        .collect();
    conns.into_iter().zip(ready).collect()
}

/// A moment later every connection is tried; the standard library has no way to wait for several.
#[cfg(not(unix))]
fn ready(conns: Vec<Conn>) -> Vec<(Conn, bool)> {
    thread::sleep(Duration::from_micros(500));
    conns.into_iter().map(|conn| (conn, true)).collect()
}

/// A connection.
struct Conn {
    number: u64,
    stream: TcpStream,
    /// Where its walk through the noise starts.
    start: u64,
    /// Bytes of the messages that were begun.
    begun: u64,
    sent: u64,
    received: u64,
    /// When the messages on their way were begun.
    times: VecDeque<Instant>,
    ended: bool,
}

impl Conn {
    fn open(server: SocketAddr, number: u64) -> io::Result<Conn> {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (start, times) = (mix(!number) % NOISE as u64, VecDeque::new());
        Ok(Conn { number, stream, start, begun: 0, sent: 0, received: 0, times, ended: false })
    }

    fn wants_to_write(&self) -> bool {
        self.sent < self.begun
    }

    /// The next at most `len` bytes of the walk from `position`.
    fn walk(&self, position: u64, len: u64) -> &'static [u8] {
        let from = ((self.start + position) % NOISE as u64) as usize;
        &TABLE[from..from + len.min(CHUNK as u64) as usize]
    }

    /// Receives, begins new messages, sends; tells whether the connection goes on.
    fn go_on(
        &mut self,
        load: &Load<'_>,
        more: bool,
        ready: bool,
        chunk: &mut [u8],
        tally: &mut Tally,
    ) -> Result<bool, String> {
        if ready && !self.receive(load, chunk, tally)? {
            return Ok(false);
        }
        while more && self.times.len() < load.pipeline {
            self.times.push_back(Instant::now());
            self.begun += load.size;
        }
        while self.wants_to_write() {
            match self.stream.write(self.walk(self.sent, self.begun - self.sent)) {
                Ok(written) => self.sent += written as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("write: {error}")),
            }
        }
        // After the last echo there must be the end, and not one byte more.
        if !more && self.times.is_empty() && !self.ended {
            self.ended = true;
            self.stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
        }
        Ok(true)
    }

    fn receive(&mut self, load: &Load<'_>, chunk: &mut [u8], tally: &mut Tally) -> Result<bool, String> {
        let read = match self.stream.read(chunk) {
            Ok(0) if self.ended => return Ok(false),
            Ok(0) => return Err(format!("the server ended the stream after {} bytes", self.received)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(format!("read: {error}")),
        };
        let got = &chunk[..read];
        if self.received + read as u64 > self.sent {
            return Err(format!("{read} bytes at {} are more than was sent", self.received));
        }
        let expected = self.walk(self.received, read as u64);
        if got != expected {
            let at = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
            return Err(format!("the byte at {} is wrong", self.received + at as u64));
        }
        self.received += read as u64;
        let now = Instant::now();
        // The messages that are still on their way are the last ones.
        while self.begun - load.size * (self.times.len() as u64 - 1) <= self.received {
            let begun = self.times.pop_front().expect("a message that comes back was begun");
            tally.latency.saturating_record((now - begun).as_nanos() as u64);
            tally.messages += 1;
            load.count.fetch_add(1, Ordering::Relaxed);
            if self.times.is_empty() {
                break;
            }
        }
        Ok(true)
    }
}
