//! Ending one or both directions of a connection.
#![forbid(unsafe_code)]

use super::*;
use std::os::fd::AsRawFd;

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

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let how = match self.how {
            std::net::Shutdown::Read => nix::libc::SHUT_RD,
            std::net::Shutdown::Write => nix::libc::SHUT_WR,
            std::net::Shutdown::Both => nix::libc::SHUT_RDWR,
        };
        io_uring::opcode::Shutdown::new(io_uring::types::Fd(self.socket.as_raw_fd()), how).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        match self.socket.descriptor().shutdown(self.how) {
            Ok(()) => Attempt::Done(0),
            Err(error) => Attempt::Done(-error.raw_os_error().unwrap_or(nix::libc::EINVAL)),
        }
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
