//! Signals, told as bytes that come out of a socket.
//!
//! On Unix a handler writes into a pair of sockets. On Windows the system calls handlers on a thread of their own, for
//! Ctrl-C and Ctrl-Break and for the end of the console; they write into a connection over the loopback interface.
//!
//! A subscription ends when it is dropped.

#[cfg(unix)]
pub(crate) use unix::{Subscription, subscribe};
#[cfg(windows)]
pub(crate) use windows::{Subscription, subscribe};

#[cfg(unix)]
mod unix {
    use crate::driver::Descriptor;
    use signal_hook::SigId;
    use std::io;
    use std::os::unix::net::UnixStream;

    /// A handler that is in place.
    pub(crate) struct Subscription(SigId);

    /// Begins to listen for the signal of this number.
    pub(crate) fn subscribe(number: i32) -> io::Result<(Descriptor, Subscription)> {
        let (ours, theirs) = UnixStream::pair()?;
        let id = signal_hook::low_level::pipe::register(number, theirs)?;
        Ok((ours.into(), Subscription(id)))
    }

    impl Drop for Subscription {
        fn drop(&mut self) {
            signal_hook::low_level::unregister(self.0);
        }
    }
}

#[cfg(windows)]
#[path = "signal/windows.rs"]
mod windows;
