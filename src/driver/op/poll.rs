//! Waiting until a foreign descriptor is ready.
#![forbid(unsafe_code)]

use super::*;
use std::os::fd::AsRawFd;

/// Completes once when the descriptor can be read from or written to.
#[derive(Debug)]
pub struct Poll {
    /// The descriptor.
    pub fd: FdRef,
    /// What to wait for.
    pub direction: Direction,
}

impl Kernel for Poll {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.fd, self.direction))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let events = match self.direction {
            Direction::Read => nix::libc::POLLIN,
            Direction::Write => nix::libc::POLLOUT,
        };
        io_uring::opcode::PollAdd::new(io_uring::types::Fd(self.fd.as_raw_fd()), events as u32).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        if self.fd.descriptor().is_ready(self.direction) { Attempt::Done(0) } else { Attempt::Blocked }
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
