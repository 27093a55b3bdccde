//! Nothing, which completes like everything else. For tests and measurements.
#![forbid(unsafe_code)]

use super::*;

/// Completes at the next turn.
#[derive(Debug)]
pub struct Nop;

impl Kernel for Nop {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        None
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        io_uring::opcode::Nop::new().build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        Attempt::Done(0)
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
