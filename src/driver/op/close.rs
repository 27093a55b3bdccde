//! Closing a descriptor.
#![forbid(unsafe_code)]

use super::*;
use crate::driver::sys::descriptor::Descriptor;

/// Closes a descriptor that no other operation uses. Made by [`Driver::close`](crate::driver::Driver::close).
#[derive(Debug)]
pub struct Close {
    fd: Option<Descriptor>,
}

impl Close {
    pub(crate) fn new(fd: Descriptor) -> Close {
        Close { fd: Some(fd) }
    }
}

impl Kernel for Close {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        None
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        drop(self.fd.take());
        Attempt::Done(0)
    }

    /// One that was cancelled before it was attempted closes here.
    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
