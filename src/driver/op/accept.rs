//! Accepting connections, one or many.
#![allow(unsafe_code)]

use super::*;

/// Accepts from a listening socket.
#[derive(Debug)]
pub struct Accept {
    /// The listening socket.
    pub listener: FdRef,
    /// Go on after each connection (multishot) until cancelled or refused.
    pub repeat: bool,
}

impl Accept {
    fn accepted(&self, result: i32) -> Done {
        // SAFETY: invariant 1: each completion of this accept is made something of once.
        Done::Accepted(counted(result).map(|_| unsafe { self.listener.descriptor().accepted(result) }))
    }
}

impl Kernel for Accept {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.listener, Direction::Read))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
        use io_uring::opcode;
        let listener = ring_fd(&self.listener);
        if self.repeat && encoding == Encoding::Plain {
            opcode::AcceptMulti::new(listener).flags(libc::SOCK_CLOEXEC).build()
        } else {
            let nowhere = std::ptr::null_mut();
            opcode::Accept::new(listener, nowhere, nowhere.cast()).flags(libc::SOCK_CLOEXEC).build()
        }
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        match attempted(self.listener.descriptor().accept()) {
            Attempt::Done(fd) if fd >= 0 && self.repeat => Attempt::More(fd, None),
            // The connection died in the queue. That says nothing about the listener.
            Attempt::Done(error) if error == -libc::ECONNABORTED => Attempt::More(error, None),
            other => other,
        }
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let result = match step {
            Step::Landed(result) => flight.accepted(&self.listener, result),
            _ => match self.attempt(flight.scratch, flight.means) {
                Attempt::Blocked => match flight.accept(&self.listener) {
                    Begun::Pending => return Attempt::Blocked,
                    Begun::Now(result) => result,
                },
                other => return other,
            },
        };
        // A connection that died in the queue says nothing about the listener.
        let died = result == -libc::ECONNABORTED || result == -libc::EPROTO;
        if died || result >= 0 && self.repeat { Attempt::More(result, None) } else { Attempt::Done(result) }
    }

    fn more(&mut self, completion: RawCompletion, _: &Pool) -> Done {
        self.accepted(completion.result)
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        self.accepted(completion.result)
    }
}
