//! Signals of the operating system, as something to wait for.
#![forbid(unsafe_code)]

use super::unix::UnixStream;
use std::fmt;
use std::io;

/// A signal that the process gets. Every `Signal` of the same kind sees it; the default action of the signal is
/// replaced for the rest of the process's life.
pub struct Signal {
    stream: UnixStream,
    registration: signal_hook::SigId,
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
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
        match self {
            SignalKind::Interrupt => SIGINT,
            SignalKind::Terminate => SIGTERM,
            SignalKind::Hangup => SIGHUP,
            SignalKind::User1 => SIGUSR1,
            SignalKind::User2 => SIGUSR2,
        }
    }
}

impl Signal {
    /// Begins to listen for a signal on the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here, or the system is out of descriptors.
    pub fn new(kind: SignalKind) -> io::Result<Signal> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let stream = UnixStream::from_std(ours)?;
        let registration = signal_hook::low_level::pipe::register(kind.number(), theirs)?;
        Ok(Signal { stream, registration })
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

impl Drop for Signal {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.registration);
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
