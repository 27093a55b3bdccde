//! The crate's error type and the only place where an operating system's error number becomes one.
//!
//! `io::Result` is what the surfaces return, so that plain `?` works. [`Error`] is what travels below them;
//! it tells a cancelled operation from a timed-out one and from one that the system refused.
#![forbid(unsafe_code)]

use std::{fmt, io};

/// Why an operation ended without its result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused it.
    Io(io::Error),
    /// It was cancelled by a call of this program (or by the end of its shard) before it could complete.
    Canceled,
    /// The endpoint was closed on this side before the operation was asked for or could complete.
    Closed,
    /// The listener was asked to accept no more, and every connection that it had accepted was given out.
    Stopped,
    /// A deadline set by this program passed.
    TimedOut,
    /// No call fits: the shard that owned the endpoint has ended.
    ShardGone,
}

impl Error {
    /// The error for a raw kernel result, which is a negated error number.
    pub(crate) fn from_raw(result: i32) -> Error {
        debug_assert!(result < 0, "{result} is no error");
        let number = result.wrapping_neg();
        if number == crate::driver::sys::CANCELED {
            Error::Canceled
        } else {
            Error::Io(io::Error::from_raw_os_error(crate::driver::sys::os::as_told(number)))
        }
    }

    /// Whether it says that a connection failed before its peer had ended it. (A broken pipe does not: systems say
    /// that of a connection which the peer had ended.)
    pub(crate) fn breaks_connection(&self) -> bool {
        use io::ErrorKind as Kind;
        let Error::Io(error) = self else { return false };
        matches!(
            error.kind(),
            Kind::ConnectionReset
                | Kind::ConnectionAborted
                | Kind::TimedOut
                | Kind::HostUnreachable
                | Kind::NetworkUnreachable
        )
    }

    /// The same error again, for an endpoint that reports it to each further call.
    pub(crate) fn duplicate(&self) -> Error {
        match self {
            Error::Io(error) => Error::Io(match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
            Error::Canceled => Error::Canceled,
            Error::Closed => Error::Closed,
            Error::Stopped => Error::Stopped,
            Error::TimedOut => Error::TimedOut,
            Error::ShardGone => Error::ShardGone,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error {
            Error::Io(inner) => return inner,
            Error::Canceled => io::ErrorKind::Other,
            Error::Closed | Error::Stopped | Error::ShardGone => io::ErrorKind::NotConnected,
            Error::TimedOut => io::ErrorKind::TimedOut,
        };
        io::Error::new(kind, error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => error.fmt(f),
            Error::Canceled => f.write_str("the operation was cancelled"),
            Error::Closed => f.write_str("the endpoint is closed on this side"),
            Error::Stopped => f.write_str("the listener was asked to accept no more"),
            Error::TimedOut => f.write_str("the deadline passed"),
            Error::ShardGone => f.write_str("the shard that owned this endpoint has ended; keep it running as long as its endpoints are used"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// A refusal by a bound that gives the refused value back, so that nothing is lost.
///
/// The bound is a field of [`Limits`](crate::Limits); try again when earlier work has completed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bound of `Limits` is reached; the value is given back, try again when earlier work has completed")
    }
}

impl<T> std::error::Error for Full<T> {}
