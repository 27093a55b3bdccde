//! Relays: what one connection receives is sent on another.
//!
//! A relay begins with receives whose buffers are passed on to sends, which is the cheapest way for small messages.
//! When several large pieces have come in a row it goes over to `splice(2)`, where the bytes never come into this
//! program at all, and back when the pieces have become small. While it waits it holds neither a buffer nor a pipe, in
//! either way.
#![forbid(unsafe_code)]

use super::file::run;
use super::stream::Flow;
use super::tcp::{OwnedReadHalf, OwnedWriteHalf, TcpStream};
use super::unix::UnixStream;
use crate::buf::{Lease, Payload};
use crate::driver::completion::Done;
use crate::driver::op::{Direction, Splice, Spliced, Transit};
use crate::error::Error;
use crate::shard::Paused;
use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::task::Poll;

/// A piece of at least so many bytes (or a full buffer, where buffers are smaller) counts as large.
const LARGE_BYTES: usize = 8 * 1024;

/// So many large pieces in a row begin a time of splices.
const STREAK: u32 = 4;

/// Most large pieces in a row that are asked for, where splices have often proved too small.
const STREAK_MAX: u32 = 1024;

/// A splice that moves fewer bytes on average does not pay.
const WORTHWHILE_BYTES: usize = 8 * 1024;

/// How a relay passes bytes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum RelayBy {
    /// As it pays: see [`copy_bidirectional`].
    #[default]
    Auto,
    /// By receives and sends alone.
    Messages,
    /// By splices from the first byte on, where the system has them and a pipe is to be had.
    Splice,
}

impl fmt::Display for RelayBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RelayBy::Auto => "auto",
            RelayBy::Messages => "messages",
            RelayBy::Splice => "splice",
        })
    }
}

/// One of the two connections of a relay, in the order of the arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelaySide {
    /// The first: `a`, or `from`.
    First,
    /// The second: `b`, or `to`.
    Second,
}

/// Why a relay ended before both of its connections had.
#[derive(Debug)]
#[non_exhaustive]
pub struct RelayError {
    /// The connection that failed.
    pub side: RelaySide,
    /// What it met.
    pub error: io::Error,
    /// Bytes that the second connection had accepted.
    pub first_to_second: u64,
    /// Bytes that the first connection had accepted; none of a one-way copy.
    pub second_to_first: u64,
}

impl fmt::Display for RelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            RelaySide::First => "first",
            RelaySide::Second => "second",
        };
        write!(
            f,
            "the {side} connection failed after {} bytes to the second and {} to the first: {}",
            self.first_to_second, self.second_to_first, self.error
        )
    }
}

impl std::error::Error for RelayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// The error of the connection, with its kind.
impl From<RelayError> for io::Error {
    fn from(error: RelayError) -> io::Error {
        io::Error::new(error.error.kind(), error)
    }
}

mod sealed {
    /// A connection, for this module only.
    #[derive(Debug)]
    pub struct Connection<'a>(pub(super) &'a super::Flow);

    pub trait Ends {
        fn connection(&self) -> Connection<'_>;
    }
}

use sealed::{Connection, Ends};

/// What a relay can receive from: connections and their receiving halves.
pub trait Source: Ends {}

/// What a relay can send to: connections and their sending halves.
pub trait Sink: Ends {}

macro_rules! ends {
    ($($name:ty: $($role:ident)*),* $(,)?) => {
        $(impl Ends for $name {
            fn connection(&self) -> Connection<'_> {
                Connection(&self.flow)
            }
        }
        $(impl $role for $name {})*)*
    };
}

ends! {
    TcpStream: Source Sink,
    UnixStream: Source Sink,
    OwnedReadHalf: Source,
    OwnedWriteHalf: Sink,
}

/// Passes everything that `from` receives on to `to`, until `from` ends; gives the number of bytes.
///
/// The end is not passed on: shut `to` down, or go on using it. All bytes have been accepted by `to` then;
/// [`flush`](TcpStream::flush) tells when they are with the kernel. How bytes are passed on, what is bounded, and what
/// dropping the future means is as for [`copy_bidirectional`].
///
/// # Errors
///
/// Of either side; says which, and how many bytes had been accepted.
pub async fn copy(from: &mut impl Source, to: &mut impl Sink) -> Result<u64, RelayError> {
    copy_by(from, to, RelayBy::Auto).await
}

/// As [`copy`], in a way of your choice.
///
/// # Errors
///
/// As [`copy`].
pub async fn copy_by(from: &mut impl Source, to: &mut impl Sink, by: RelayBy) -> Result<u64, RelayError> {
    let way = Way::new(from.connection().0, to.connection().0, by);
    match way.run().await {
        Ok(()) => Ok(way.copied.get()),
        Err(Failed { receiving, error }) => {
            let side = if receiving { RelaySide::First } else { RelaySide::Second };
            Err(RelayError { side, error, first_to_second: way.copied.get(), second_to_first: 0 })
        }
    }
}

/// Passes bytes on between two connections of any family, in both directions at once, until both have ended; gives the
/// bytes from `a` to `b` and from `b` to `a`.
///
/// The end of one direction is passed on: when `a` has sent its last byte and all is passed on, the sending side of `b`
/// is shut down, and the other direction goes on. An error of either connection ends both directions; the connections
/// stay with the caller, who may [`abort`](TcpStream::abort) them so that the other peer sees a failure too.
///
/// **How.** Received buffers are passed on to sends; no byte is copied by this program. When several large pieces came
/// in a row, bytes go through a pipe of the kernel instead (`splice(2)`, Linux), which costs less from about 16 KiB on;
/// when the pieces become small, it goes back. Simulated hosts and other systems know the first way only.
///
/// **Bounds.** Per direction [`Limits::inbound_bytes_max`](crate::Limits) and
/// [`Limits::outbound_bytes_max`](crate::Limits), or one pipe of [`Limits::pipe_bytes`](crate::Limits); a sender is
/// slowed down when its receiver does not keep up. A relay that waits for bytes holds no buffer and no pipe.
///
/// **Cancel-safe.** Dropping the future loses no byte and reorders none: what was accepted by the other connection is
/// sent, and what was received and not accepted yet (one buffer, or what stood in the pipe) is at the head of the
/// connection that received it, for its next `recv`. Both can be used as before, or relayed again. Ends that were passed
/// on stay passed on.
///
/// # Errors
///
/// Of either connection; says which, and how many bytes had been accepted. Bytes that were received and cannot be sent
/// any more can still be received, as above.
pub async fn copy_bidirectional(
    a: &mut (impl Source + Sink),
    b: &mut (impl Source + Sink),
) -> Result<(u64, u64), RelayError> {
    copy_bidirectional_by(a, b, RelayBy::Auto).await
}

/// As [`copy_bidirectional`], in a way of your choice.
///
/// # Errors
///
/// As [`copy_bidirectional`].
pub async fn copy_bidirectional_by(
    a: &mut (impl Source + Sink),
    b: &mut (impl Source + Sink),
    by: RelayBy,
) -> Result<(u64, u64), RelayError> {
    let (a, b) = (a.connection().0, b.connection().0);
    let (forth, back) = (Way::new(a, b, by), Way::new(b, a, by));
    // Afterwards neither goes on, so that the counts are final.
    let outcome = both(forth.run_to_end(), back.run_to_end()).await;
    let (first_to_second, second_to_first) = (forth.copied.get(), back.copied.get());
    match outcome {
        Ok(()) => Ok((first_to_second, second_to_first)),
        Err((first, error)) => {
            let side = if first { RelaySide::First } else { RelaySide::Second };
            Err(RelayError { side, error, first_to_second, second_to_first })
        }
    }
}

/// Runs both directions until both have ended or one fails: whether the first connection failed, and how.
async fn both(
    forth: impl Future<Output = Result<(), Failed>>,
    back: impl Future<Output = Result<(), Failed>>,
) -> Result<(), (bool, io::Error)> {
    let (mut forth, mut back) = (pin!(forth), pin!(back));
    let (mut forth_ended, mut back_ended) = (false, false);
    poll_fn(|context| {
        if !forth_ended {
            match forth.as_mut().poll(context) {
                Poll::Ready(Ok(())) => forth_ended = true,
                Poll::Ready(Err(failed)) => return Poll::Ready(Err((failed.receiving, failed.error))),
                Poll::Pending => {}
            }
        }
        if !back_ended {
            match back.as_mut().poll(context) {
                Poll::Ready(Ok(())) => back_ended = true,
                Poll::Ready(Err(failed)) => return Poll::Ready(Err((!failed.receiving, failed.error))),
                Poll::Pending => {}
            }
        }
        if forth_ended && back_ended { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One direction of a relay.
struct Way<'a> {
    from: &'a Flow,
    to: &'a Flow,
    by: RelayBy,
    copied: Cell<u64>,
}

/// What one direction met.
struct Failed {
    /// The side that receives, or the one that sends.
    receiving: bool,
    error: io::Error,
}

fn receiving(error: impl Into<io::Error>) -> Failed {
    Failed { receiving: true, error: error.into() }
}

fn sending(error: impl Into<io::Error>) -> Failed {
    Failed { receiving: false, error: error.into() }
}

/// How a time of one way of passing on has ended.
#[derive(PartialEq, Eq)]
enum Then {
    /// The stream has ended.
    End,
    /// It is time for the other way.
    Change,
    /// Splices are not to be had here.
    Never,
}

impl<'a> Way<'a> {
    fn new(from: &'a Flow, to: &'a Flow, by: RelayBy) -> Way<'a> {
        Way { from, to, by, copied: Cell::new(0) }
    }

    /// Passes on everything, and the end.
    async fn run_to_end(&self) -> Result<(), Failed> {
        self.run().await?;
        self.to.shutdown(Shutdown::Write).await.map_err(sending)
    }

    async fn run(&self) -> Result<(), Failed> {
        let splices = !self.from.core.config.host.is_simulated();
        let mut streak = match self.by {
            RelayBy::Auto if splices => Some(STREAK),
            RelayBy::Splice if splices => Some(0),
            _ => None,
        };
        loop {
            if self.by_messages(streak).await? == Then::End {
                return Ok(());
            }
            match self.by_splices().await? {
                Then::End => return Ok(()),
                Then::Never => streak = None,
                // Not again at once: something was in the way, or the pieces change between small and large.
                Then::Change => streak = streak.map(|streak| (streak.max(1) * 4).min(STREAK_MAX)),
            }
        }
    }

    /// Passes buffers on, until so many large ones came in a row.
    async fn by_messages(&self, streak: Option<u32>) -> Result<Then, Failed> {
        let large = LARGE_BYTES.min(self.from.core.config.limits.buffer_bytes);
        let mut row = 0;
        while streak.is_none_or(|streak| row < streak) {
            let Some(lease) = self.from.recv().await.map_err(receiving)? else { return Ok(Then::End) };
            row = if lease.len() >= large { row + 1 } else { 0 };
            self.send(lease).await?;
        }
        Ok(Then::Change)
    }

    async fn send(&self, lease: Lease) -> Result<(), Failed> {
        let bytes = lease.len() as u64;
        let mut held = Held { from: self.from, payload: Some(lease.into()) };
        poll_fn(|context| self.to.poll_send(context, &mut held.payload)).await.map_err(sending)?;
        self.copied.set(self.copied.get() + bytes);
        Ok(())
    }

    /// Passes bytes on through a pipe, until that does not pay or cannot be done.
    async fn by_splices(&self) -> Result<Then, Failed> {
        let _paused = ReadingPaused(self.from);
        loop {
            match poll_fn(|context| self.from.poll_pause(context)).await.map_err(receiving)? {
                Paused::Data(lease) => self.send(lease).await?,
                Paused::End => return Ok(Then::End),
                Paused::Failed(error) => return Err(receiving(error)),
                Paused::Quiet => break,
            }
        }
        self.to.flush().await.map_err(sending)?;
        self.from.on_socket(|socket| socket.set_nonblocking(true)).map_err(receiving)?;
        self.to.on_socket(|socket| socket.set_nonblocking(true)).map_err(sending)?;
        let core = &self.from.core;
        let worthwhile = if self.by == RelayBy::Splice { 0 } else { WORTHWHILE_BYTES };
        let transit = core.with(|state| state.engine.driver.transit(worthwhile)).map_err(receiving)?;
        let underway = Underway { way: self, transit };
        underway.run().await
    }
}

/// A payload that may not be accepted; it goes back to where it came from.
struct Held<'a> {
    from: &'a Flow,
    payload: Option<Payload>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.take() {
            self.from.unread_lease(payload.into_lease());
        }
    }
}

/// No receive is armed as long as this lives.
struct ReadingPaused<'a>(&'a Flow);

impl Drop for ReadingPaused<'_> {
    fn drop(&mut self) {
        self.0.resume_reading();
    }
}

/// A time of splices. What is in the pipe at its end goes back to the connection that it came from.
struct Underway<'a> {
    way: &'a Way<'a>,
    transit: Transit,
}

impl Underway<'_> {
    async fn run(&self) -> Result<Then, Failed> {
        let core = &self.way.from.core;
        let mut direction = Direction::Read;
        loop {
            let (Some(from), Some(to)) = (self.way.from.socket(), self.way.to.socket()) else {
                return Err(receiving(Error::Closed));
            };
            let op = Splice { from, to, direction, transit: self.transit.clone() };
            let ended = match run(core, op).await {
                Ok(Done::Spliced(ended)) => ended,
                Ok(_) => return Err(receiving(Error::Closed)),
                // No room for one more operation now.
                Err((error, Some(_))) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Then::Change);
                }
                Err((error, _)) => return Err(receiving(error)),
            };
            self.count();
            match ended {
                Ok(Spliced::End) => return Ok(Then::End),
                Ok(Spliced::Blocked(other)) => direction = other,
                Ok(Spliced::Turn) => direction = Direction::Read,
                Ok(Spliced::Small | Spliced::NoPipe) => return Ok(Then::Change),
                Err(Error::Io(error)) if is_refusal(&error) => return Ok(Then::Never),
                Err(error) if self.transit.failed_to_send() => return Err(sending(error)),
                Err(error) => return Err(receiving(error)),
            }
        }
    }

    fn count(&self) {
        self.way.copied.set(self.way.copied.get() + self.transit.take_sent());
    }
}

/// Whether splices are not to be had for these sockets; what was received is safe, and messages may work.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let rest = self.transit.stop();
        self.count();
        self.way.from.unread(Lease::from_bytes(rest.into()));
    }
}
