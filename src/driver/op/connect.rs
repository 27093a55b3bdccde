//! Connecting a socket.
#![forbid(unsafe_code)]

use super::*;
use nix::libc;
use socket2::SockAddr;
use std::os::fd::AsRawFd;

/// Connects a stream socket, or sets the peer of a datagram socket.
#[derive(Debug)]
pub struct Connect {
    /// The socket.
    pub socket: FdRef,
    /// Where to.
    pub address: Box<SockAddr>,
    started: bool,
}

impl Connect {
    /// Connects `socket` to `address`.
    pub fn new(socket: FdRef, address: SockAddr) -> Connect {
        Connect { socket, address: Box::new(address), started: false }
    }
}

impl Kernel for Connect {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        // The boxed address belongs to the operation and does not move (invariant 1).
        let address = self.address.as_ptr().cast::<libc::sockaddr>();
        let socket = io_uring::types::Fd(self.socket.as_raw_fd());
        io_uring::opcode::Connect::new(socket, address, self.address.len()).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        let socket = socket2::SockRef::from(&self.socket);
        if !self.started {
            self.started = true;
            return match socket.connect(&self.address) {
                Ok(()) => Attempt::Done(0),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINPROGRESS | libc::EINTR) => Attempt::Blocked,
                    number => Attempt::Done(-number.unwrap_or(libc::EINVAL)),
                },
            };
        }
        if !crate::driver::sys::socket::is_ready(&self.socket, Direction::Write) {
            return Attempt::Blocked;
        }
        match socket.take_error() {
            Ok(None) => Attempt::Done(0),
            Ok(Some(error)) | Err(error) => Attempt::Done(-error.raw_os_error().unwrap_or(libc::EINVAL)),
        }
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
