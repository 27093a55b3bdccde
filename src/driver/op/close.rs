//! Closing a descriptor.
#![forbid(unsafe_code)]

use super::*;
use crate::driver::sys::descriptor::Descriptor;
use std::os::fd::{AsFd, AsRawFd};

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

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let fd = self.fd.as_ref().map_or(-1, |fd| fd.as_fd().as_raw_fd());
        io_uring::opcode::Close::new(io_uring::types::Fd(fd)).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        drop(self.fd.take());
        Attempt::Done(0)
    }

    fn finish(mut self, completion: RawCompletion, _: &Pool) -> Done {
        let untouched = completion.result == -crate::driver::sys::CANCELED;
        if let Some(fd) = self.fd.take().filter(|_| !untouched) {
            // The kernel has closed it, even where it reports an error; the number is no longer ours.
            fd.was_closed();
        }
        ended(completion)
    }
}
