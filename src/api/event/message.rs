//! [`Event`]: what the callback of an [`OpenSocket`](super::OpenSocket) gets.
#![forbid(unsafe_code)]

use super::ids::SocketId;
use crate::buf::Lease;
use bytes::Bytes;
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What happened to a socket. `uid` is its owner, or, where a call is answered, who made the call.
///
/// The bytes are a [`Lease`] on the shard's thread and [`Bytes`] elsewhere; neither is a copy.
#[derive(Debug)]
pub enum Event<B = Lease> {
    /// Bytes arrived.
    Data {
        /// The connection.
        id: SocketId,
        /// Its owner.
        uid: usize,
        /// The bytes, at least one.
        data: B,
    },
    /// The socket is closed; also the answer to a close of an id that does not live.
    Close {
        /// The socket.
        id: SocketId,
        /// Its owner, or who closed it.
        uid: usize,
    },
    /// The socket can be used, or has another owner.
    Open {
        /// The socket.
        id: SocketId,
        /// Its owner from now on.
        uid: usize,
        /// How that came.
        how: Opened,
    },
    /// A listener has a new connection. It delivers nothing until it is started.
    Accept {
        /// The listener.
        id: SocketId,
        /// Its owner.
        uid: usize,
        /// The connection.
        accepted: SocketId,
        /// Its peer.
        peer: SocketAddr,
    },
    /// Something failed. The socket is gone, and no `Close` follows, unless [`Trouble::is_survived`].
    Error {
        /// The socket.
        id: SocketId,
        /// Its owner, or who made the call.
        uid: usize,
        /// What failed.
        trouble: Trouble,
    },
    /// A datagram arrived.
    Udp {
        /// The socket.
        id: SocketId,
        /// Its owner.
        uid: usize,
        /// Its bytes, perhaps none.
        data: B,
        /// Who sent it.
        from: SocketAddr,
    },
    /// Much waits to be sent, or all of it has left after that was told.
    Warning {
        /// The connection.
        id: SocketId,
        /// Its owner.
        uid: usize,
        /// How much waits, in KiB, rounded up; 0 when all has left.
        pending_kib: usize,
    },
}

/// How a socket was opened. Its text is what the original gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opened {
    /// By `start`: a listener accepts, an accepted connection delivers.
    Started,
    /// By `start` of what delivered before: it has another owner.
    Transferred,
    /// The connection to this address is there.
    Connected(IpAddr),
    /// A descriptor was bound.
    Bound,
}

/// What failed. Its text is that of the system where the system refused something, as in the original at most 128 bytes
/// of it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Trouble {
    /// No such id lives.
    InvalidSocket,
    /// A default destination of another family, or for a connection; the socket lives.
    ProtocolMismatch,
    /// No more sockets can be open, or the descriptor that was bound is none.
    SocketLimit,
    /// A listener is out of descriptors; it lives, and accepts again by itself.
    AcceptPaused(Cow<'static, str>),
    /// The system or the resolver says so.
    System(Cow<'static, str>),
}

impl Trouble {
    /// Whether the socket lives on.
    pub fn is_survived(&self) -> bool {
        matches!(self, Trouble::ProtocolMismatch | Trouble::AcceptPaused(_))
    }

    /// The text of an error of the system, without its number.
    pub(super) fn of(error: &std::io::Error) -> Trouble {
        Trouble::System(text_of(error).into())
    }
}

/// The words of the system or of the resolver.
pub(super) fn text_of(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    cut(text.strip_prefix("failed to lookup address information: ").unwrap_or(text)).to_owned()
}

/// Longest text of an event, in bytes.
const TEXT_BYTES_MAX: usize = 128;

/// The whole characters of a text that are not too many.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Opened::Started => f.write_str("start"),
            Opened::Transferred => f.write_str("transfer"),
            Opened::Connected(ip) => ip.fmt(f),
            Opened::Bound => f.write_str("binding"),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trouble::InvalidSocket => "invalid socket",
            Trouble::ProtocolMismatch => "protocol mismatch",
            Trouble::SocketLimit => "reach skynet socket number limit",
            Trouble::AcceptPaused(text) | Trouble::System(text) => text,
        })
    }
}

impl<B> Event<B> {
    /// The socket it is about; of an accept, the listener.
    pub fn id(&self) -> SocketId {
        match self {
            Event::Data { id, .. }
            | Event::Close { id, .. }
            | Event::Open { id, .. }
            | Event::Accept { id, .. }
            | Event::Error { id, .. }
            | Event::Udp { id, .. }
            | Event::Warning { id, .. } => *id,
        }
    }

    /// Whom it is for.
    pub fn uid(&self) -> usize {
        match self {
            Event::Data { uid, .. }
            | Event::Close { uid, .. }
            | Event::Open { uid, .. }
            | Event::Accept { uid, .. }
            | Event::Error { uid, .. }
            | Event::Udp { uid, .. }
            | Event::Warning { uid, .. } => *uid,
        }
    }

    /// The same event with its bytes turned into something else.
    pub fn map<C>(self, turn: impl FnOnce(B) -> C) -> Event<C> {
        match self {
            Event::Data { id, uid, data } => Event::Data { id, uid, data: turn(data) },
            Event::Udp { id, uid, data, from } => Event::Udp { id, uid, data: turn(data), from },
            Event::Close { id, uid } => Event::Close { id, uid },
            Event::Open { id, uid, how } => Event::Open { id, uid, how },
            Event::Accept { id, uid, accepted, peer } => Event::Accept { id, uid, accepted, peer },
            Event::Error { id, uid, trouble } => Event::Error { id, uid, trouble },
            Event::Warning { id, uid, pending_kib } => Event::Warning { id, uid, pending_kib },
        }
    }
}

impl Event {
    /// The same event for another thread. The bytes are not copied, unless buffers are short: who keeps them long would
    /// keep a whole buffer of the pool from being used anew.
    pub fn into_send(self) -> Event<Bytes> {
        const RESERVE: usize = 4;
        self.map(|lease| lease.unpinned(RESERVE).into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_the_words_of_the_system() {
        let refused = std::io::Error::from_raw_os_error(crate::driver::sys::os::libc::ECONNREFUSED);
        let words = Trouble::of(&refused).to_string();
        assert_eq!(refused.to_string(), format!("{words} (os error {})", refused.raw_os_error().unwrap()));
        let name = std::io::Error::other("failed to lookup address information: Name or service not known");
        assert_eq!(Trouble::of(&name).to_string(), "Name or service not known");
    }

    #[test]
    fn texts_of_more_than_128_bytes_are_cut_behind_a_whole_character() {
        let told = |text: String| Trouble::of(&std::io::Error::other(text)).to_string();
        assert_eq!(told("x".repeat(128)), "x".repeat(128));
        assert_eq!(told("x".repeat(129)), "x".repeat(128));
        // Two bytes each, the first of them at an odd place.
        assert_eq!(told(format!("x{}", "ß".repeat(100))), format!("x{}", "ß".repeat(63)));
        // What is left out before does not count.
        let name = format!("failed to lookup address information: {}", "x".repeat(128));
        assert_eq!(told(name), "x".repeat(128));
    }
}
