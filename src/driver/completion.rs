//! The one shape in which every backend reports, and what the driver makes of it.
#![forbid(unsafe_code)]

use super::datagram::{Outgoing, Segments};
use super::op::{Op, Spliced};
use super::sys::descriptor::Descriptor;
use super::token::Token;
use crate::buf::{Batch, BufferId, Lease, Payload};
use crate::error::Error;
use std::net::SocketAddr;

/// What a backend says about an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawCompletion {
    /// Which operation.
    pub token: Token,
    /// Its result, or a negated error number of the operating system.
    pub result: i32,
    /// Whether further completions follow. The one without is terminal (invariant 3).
    pub more: bool,
    /// The pool buffer that was filled.
    pub buffer: Option<BufferId>,
}

impl RawCompletion {
    pub(crate) fn terminal(token: Token, result: i32) -> RawCompletion {
        RawCompletion { token, result, more: false, buffer: None }
    }
}

/// A completion that reached its operation.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub token: Token,
    /// The number that was given with the submission.
    pub owner: u64,
    /// Whether further completions of this operation follow.
    pub more: bool,
    /// What came of it.
    pub done: Done,
}

/// The outcome of an operation, with everything that it hands back. Whatever it owns is given back by dropping
/// it: an accepted descriptor is closed, a lease returns its buffer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Done {
    /// A connection arrived.
    Accepted(Result<Descriptor, Error>),
    /// The end of an operation that yields nothing: connect, shutdown, close, poll, nop, fsync.
    Ended(Result<(), Error>),
    /// Bytes were appended to the buffer that was given; zero bytes are the end of the stream.
    Filled(Result<usize, Error>, Vec<u8>),
    /// A standing receive of a stream.
    Received(Received),
    /// A datagram was appended to the buffer that was given.
    FilledFrom(Result<(usize, SocketAddr), Error>, Vec<u8>),
    /// A standing receive of datagrams.
    Datagram(Result<Datagram, Error>),
    /// Datagrams that arrived together.
    Datagrams(Result<Vec<Segments>, Error>),
    /// Datagrams that were sent, each with what came of it.
    SentDatagrams(Vec<Outgoing>),
    /// No buffer was at hand for a standing receive, which has ended. A kernel has only a part of the free buffers,
    /// which grows with the next [`wait`](super::Driver::wait); arm the receive again if some are free.
    Starved,
    /// Bytes of this payload were sent, or written to a file.
    Sent(Result<usize, Error>, Payload),
    /// As `Sent`, of a zero-copy send of which the kernel says that it copied all the same.
    SentCopied(Result<usize, Error>, Payload),
    /// Bytes of this batch were sent.
    SentBatch(Result<usize, Error>, Batch),
    /// A zero-copy send has sent these many bytes; the kernel still reads the buffer until the terminal
    /// completion.
    SentEarly(Result<usize, Error>),
    /// A splice has ended.
    Spliced(Result<Spliced, Error>),
}

/// What a standing receive of a stream brought.
#[derive(Debug)]
pub enum Received {
    /// Bytes, never none.
    Data(Lease),
    /// The peer has ended its side.
    End,
    /// The receive failed or was cancelled.
    Failed(Error),
}

pub use super::datagram::Datagram;

/// A submission that was refused, with the operation given back.
pub type Refused = crate::error::Full<Op>;
