//! Signals of the operating system, as something to wait for.
#![forbid(unsafe_code)]

use super::unix::UnixStream;
use crate::driver::sys::os::libc;
use crate::driver::sys::signal::{Subscription, subscribe};
use std::fmt;
use std::io;

/// A signal that the process gets. Every `Signal` of the same kind sees it; the default action of the signal is
/// replaced for the rest of the process's life.
pub struct Signal {
    /// Ends before the stream does.
    _subscription: Subscription,
    stream: UnixStream,
}

/// Which signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SignalKind {
    /// Ctrl-C, SIGINT.
    Interrupt,
    /// The polite request to end, SIGTERM.
    Terminate,
    /// The terminal has gone, or "read the configuration again": SIGHUP.
    Hangup,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
}

impl SignalKind {
    fn number(self) -> i32 {
        match self {
            SignalKind::Interrupt => libc::SIGINT,
            SignalKind::Terminate => libc::SIGTERM,
            SignalKind::Hangup => libc::SIGHUP,
            SignalKind::User1 => libc::SIGUSR1,
            SignalKind::User2 => libc::SIGUSR2,
        }
    }
}

impl Signal {
    /// Begins to listen for a signal on the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here, the system is out of descriptors, or it has no such signal: Windows has `Interrupt` and
    /// `Terminate` only. There Ctrl-Break and the end of the console, of the session and of the system are `Terminate`; but
    /// for the first, a few seconds are left.
    pub fn new(kind: SignalKind) -> io::Result<Signal> {
        let (ours, subscription) = subscribe(kind.number())?;
        Ok(Signal { _subscription: subscription, stream: UnixStream::from_descriptor(ours)? })
    }

    /// Completes when the signal has arrived since the last call; several may count as one. Cancel-safe.
    ///
    /// # Errors
    ///
    /// If the shard has ended.
    pub async fn recv(&mut self) -> io::Result<()> {
        match self.stream.recv().await? {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signal")
    }
}

/// Completes at the next Ctrl-C (SIGINT) that arrives after the first poll.
///
/// # Errors
///
/// As [`Signal::new`].
pub async fn ctrl_c() -> io::Result<()> {
    Signal::new(SignalKind::Interrupt)?.recv().await
}
