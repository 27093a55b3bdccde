//! Why connections end. Each reason has a name and a counter; none is silent.
#![forbid(unsafe_code)]

use crate::codec::CodecError;
use std::fmt;
use std::io;

/// An error of a handler: whatever its code returned. `?` makes one of any error.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How far a connection had come when it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stage {
    /// Between the transport's connection and the end of
    /// [`on_handshake`](crate::component::Handler::on_handshake): the TLS handshake, and the handler's own.
    Handshake,
    /// Open for messages.
    Open,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $(($inner:ty))? = $name:literal,)*) => {
        /// Why a connection ended. [`name`](Self::name) is the label of its counter.
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum CloseReason {
            $($(#[$doc])* $variant $(($inner))?,)*
        }

        impl CloseReason {
            /// The names of all reasons, in the order of their counters.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Its name: lower case, words joined by `_`.
            pub fn name(&self) -> &'static str {
                match self { $(reasons!(@pattern $variant $($inner)?) => $name,)* }
            }

            /// Its place among [`NAMES`](Self::NAMES).
            pub(crate) fn index(&self) -> usize {
                let name = self.name();
                Self::NAMES.iter().position(|known| *known == name).unwrap_or(0)
            }
        }
    };
    (@pattern $variant:ident $inner:ty) => { CloseReason::$variant(_) };
    (@pattern $variant:ident) => { CloseReason::$variant };
}

reasons! {
    /// The peer ended its side in order, and the handler was done.
    PeerClosed = "peer_closed",
    /// The handler returned while the peer was still there.
    Finished = "finished",
    /// Somebody asked for it: [`disconnect`](crate::component::Session::disconnect), by id, by age, or all.
    Disconnected = "disconnected",
    /// The handler returned an error that was not one of the connection.
    Handler(Failure) = "handler",
    /// The handler panicked. The server goes on.
    Panicked = "panicked",
    /// The connection failed: a reset, an unreachable peer, what the system says.
    Failed(io::Error) = "failed",
    /// What the peer sent is no message of the codec, or ended within one.
    Codec(CodecError) = "codec",
    /// TLS failed: certificate, protocol, alert.
    Tls(io::Error) = "tls",
    /// The stream ended without TLS' close_notify: what came last may be missing (RFC 8446, 6.1).
    Truncated = "truncated",
    /// The handshake took longer than [`Policy::handshake_timeout`](crate::component::Policy).
    HandshakeTimeout = "handshake_timeout",
    /// Nothing was received and nothing sent for [`Policy::idle_timeout`](crate::component::Policy).
    IdleTimeout = "idle_timeout",
    /// A message that had begun did not come to its end in time: [`Policy::message_timeout`](crate::component::Policy).
    MessageTimeout = "message_timeout",
    /// The peer took none of what is to be sent for [`Policy::write_stall_timeout`](crate::component::Policy).
    WriteStall = "write_stall",
    /// It was open for [`Policy::lifetime`](crate::component::Policy).
    Lifetime = "lifetime",
    /// Its outbound queue was full, and [`Slow::Disconnect`](crate::Slow) is the policy.
    SlowReader = "slow_reader",
    /// The process held more than [`Policy::memory_bytes_max`](crate::component::Policy), and this connection the most.
    MemoryCap = "memory_cap",
    /// The server was shut down, and the deadline for finishing passed.
    Drained = "drained",
    /// The shard ended, or the connection's task was dropped.
    Stopped = "stopped",
}

impl CloseReason {
    /// What an error of the connection's own operations comes to.
    pub(crate) fn of_error(error: &io::Error) -> CloseReason {
        if let Some(codec) = error.get_ref().and_then(|inner| inner.downcast_ref::<CodecError>()) {
            return CloseReason::Codec(codec.clone());
        }
        if let Some(reason) = super::secure::reason_of(error) {
            return reason;
        }
        CloseReason::Failed(match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(error.kind(), error.to_string()),
        })
    }

    /// Whether what is queued may still be sent: the peer is not the one to blame.
    pub(crate) fn is_orderly(&self) -> bool {
        matches!(
            self,
            CloseReason::PeerClosed
                | CloseReason::Finished
                | CloseReason::Disconnected
                | CloseReason::Handler(_)
                | CloseReason::Codec(_)
                | CloseReason::IdleTimeout
                | CloseReason::Lifetime
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Handler(error) => write!(f, "the handler failed: {error}"),
            CloseReason::Failed(error) => write!(f, "the connection failed: {error}"),
            CloseReason::Codec(error) => write!(f, "the peer sent no valid message: {error}"),
            CloseReason::Tls(error) => write!(f, "TLS failed: {error}"),
            other => f.write_str(match other {
                CloseReason::PeerClosed => "the peer closed the connection",
                CloseReason::Finished => "the handler was done",
                CloseReason::Disconnected => "it was disconnected from here",
                CloseReason::Panicked => "the handler panicked",
                CloseReason::Truncated => "the stream ended without close_notify",
                CloseReason::HandshakeTimeout => "the handshake took too long (Policy::handshake_timeout)",
                CloseReason::IdleTimeout => "nothing came or went for too long (Policy::idle_timeout)",
                CloseReason::MessageTimeout => "a message took too long to arrive (Policy::message_timeout)",
                CloseReason::WriteStall => "the peer took nothing for too long (Policy::write_stall_timeout)",
                CloseReason::Lifetime => "it was open long enough (Policy::lifetime)",
                CloseReason::SlowReader => "the peer reads too slowly (Policy::slow)",
                CloseReason::MemoryCap => "the process held too much memory (Policy::memory_bytes_max)",
                CloseReason::Drained => "the server was shut down and its deadline passed",
                _ => "its shard ended",
            }),
        }
    }
}

/// The end of a connection, told once.
#[derive(Debug)]
#[non_exhaustive]
pub struct Closed {
    /// Why.
    pub reason: CloseReason,
    /// How far it had come.
    pub stage: Stage,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.reason, self.stage)
    }
}
