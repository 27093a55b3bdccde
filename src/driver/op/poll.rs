//! Waiting until a foreign descriptor is ready.
#![forbid(unsafe_code)]

use super::*;

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
        io_uring::opcode::PollAdd::new(ring_fd(&self.fd), events as u32).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        if self.fd.descriptor().is_ready(self.direction) { Attempt::Done(0) } else { Attempt::Blocked }
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        if self.direction == Direction::Read {
            let fd = self.fd.clone();
            return flight.when_readable(&fd, step, || self.attempt(flight.scratch, flight.means));
        }
        // Nothing tells when there is room.
        match self.attempt(flight.scratch, flight.means) {
            Attempt::Blocked => Attempt::Done(-libc::EOPNOTSUPP),
            other => other,
        }
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
