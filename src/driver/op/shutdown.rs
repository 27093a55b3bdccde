//! Ending one or both directions of a connection.
#![forbid(unsafe_code)]

use super::*;

/// Shuts a connection down.
#[derive(Debug)]
pub struct Shutdown {
    /// The socket.
    pub socket: FdRef,
    /// Which directions.
    pub how: std::net::Shutdown,
}

impl Kernel for Shutdown {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        None
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        match self.socket.descriptor().shutdown(self.how) {
            Ok(()) => Attempt::Done(0),
            Err(error) => Attempt::Done(-error.raw_os_error().unwrap_or(libc::EINVAL)),
        }
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
