//! Datagram components: a node without connections, sessions by peer address, and a participant in multicast or broadcast.
//!
//! | Component | What it is |
//! | --- | --- |
//! | [`UdpNode`] | a socket that receives from anybody and sends to anybody, in one object with counters and a handle for other threads |
//! | [`UdpSessions`] | virtual connections: a session for each peer address, with a typed state, expiry and a registry |
//! | [`UdpCast`] | a member of a multicast group, or a socket that sends to everybody on a network |
//!
//! All of them have a form for [handlers](NodeHandler) and an async form, take datagrams in the batches in which the
//! system gives them, and report what a datagram met with its peer. Nothing that a peer sends stops them, and nothing is
//! sent to an address unless the program does it: what comes in is never answered by itself, so none of them can be
//! made to send more to a forged address than the program sends.
//!
//! Datagrams have no more than `datagram_bytes_max` bytes in either direction; by default
//! [`DATAGRAM_BYTES`], which every usual network carries in one piece. A longer one is refused with
//! [`SendError::TooLong`] when it is to be sent, and never delivered when it comes in, but reported as
//! [`UdpError::TooLong`] and counted.
#![forbid(unsafe_code)]

mod accept;
mod cast;
mod endpoint;
mod handle;
mod node;
mod serve;
mod sessions;
mod table;

pub use accept::UdpSession;
pub use cast::{MulticastOptions, UdpCast};
pub use endpoint::UdpCounters;
pub use handle::NodeHandle;
pub use node::{NodeHandler, NodeOptions, UdpNode};
pub use serve::{Session, SessionHandler};
pub use sessions::{Refusals, SessionOptions, UdpSessions};
pub use table::{SessionEnd, SessionId, SessionInfo};

use std::error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Bytes of a datagram unless something else is said: a packet of 1500 bytes less the headers of IPv6 and UDP and some
/// room for tunnels.
pub const DATAGRAM_BYTES: usize = 1432;

/// Why a datagram was not taken. Nothing of it is sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError {
    /// It is longer than datagrams may be.
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// How many are allowed.
        max: usize,
    },
    /// There is no room now: [`Limits::datagrams_outbound_max`](crate::Limits), or the bound that the call names.
    Full,
    /// There is no such session (any more).
    NoSession,
    /// The node or the sessions have been stopped.
    Stopped,
    /// What the system or the socket says.
    Io(io::Error),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::TooLong { bytes, max } => {
                write!(f, "a datagram has at most {max} bytes here, this one has {bytes}")
            }
            SendError::Full => f.write_str("there is no room for the datagram now"),
            SendError::NoSession => f.write_str("there is no such session any more"),
            SendError::Stopped => f.write_str("it has been stopped"),
            SendError::Io(error) => error.fmt(f),
        }
    }
}

impl error::Error for SendError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            SendError::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> io::Error {
        let kind = match error {
            SendError::TooLong { .. } => io::ErrorKind::InvalidInput,
            SendError::Full => io::ErrorKind::WouldBlock,
            SendError::NoSession | SendError::Stopped => io::ErrorKind::NotConnected,
            SendError::Io(error) => return error,
        };
        io::Error::new(kind, error)
    }
}

/// What was met with a datagram. None of it stops a component.
#[derive(Debug)]
#[non_exhaustive]
pub enum UdpError {
    /// One came in that was longer than datagrams may be, or than a receive buffer
    /// ([`Limits::datagram_buffer_bytes`](crate::Limits)). It was dropped.
    TooLong {
        /// Its sender, or who claims to be it.
        peer: SocketAddr,
        /// Its bytes; of one that was cut, those that were left.
        bytes: usize,
        /// How many are allowed.
        max: usize,
    },
    /// The system refused to send one that had been queued.
    Send {
        /// Where it was to go.
        peer: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The system refused to receive.
    Receive {
        /// What it says.
        error: io::Error,
    },
}

impl UdpError {
    /// The other end, if it is known.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            UdpError::TooLong { peer, .. } | UdpError::Send { peer, .. } => Some(*peer),
            UdpError::Receive { .. } => None,
        }
    }

    /// Whether it was met on the way out.
    pub fn is_send(&self) -> bool {
        matches!(self, UdpError::Send { .. })
    }
}

impl fmt::Display for UdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UdpError::TooLong { peer, bytes, max } => write!(
                f,
                "a datagram of {peer} was dropped: at most {max} bytes are allowed, it had {bytes} or more"
            ),
            UdpError::Send { peer, error } => write!(f, "a datagram to {peer} was not sent: {error}"),
            UdpError::Receive { error } => write!(f, "receiving failed: {error}"),
        }
    }
}

impl error::Error for UdpError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            UdpError::TooLong { .. } => None,
            UdpError::Send { error, .. } | UdpError::Receive { error } => Some(error),
        }
    }
}

impl From<UdpError> for io::Error {
    fn from(error: UdpError) -> io::Error {
        let kind = match &error {
            UdpError::TooLong { .. } => io::ErrorKind::InvalidData,
            UdpError::Send { error, .. } | UdpError::Receive { error } => error.kind(),
        };
        io::Error::new(kind, error)
    }
}
