//! The standing receive of a stream, into pool buffers.
#![allow(unsafe_code)]

use super::*;
use crate::driver::completion::Received;
use crate::driver::sys::{BUFFER_GROUP, NO_BUFFERS};
use nix::libc;
use std::os::fd::AsRawFd;

/// Receives from a stream into pool buffers until the stream ends, a buffer is wanting, or it is cancelled.
#[derive(Debug)]
pub struct RecvMulti {
    /// The socket.
    pub socket: FdRef,
}

impl Kernel for RecvMulti {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Read))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
        use io_uring::{opcode, squeue::Flags, types::Fd};
        let socket = Fd(self.socket.as_raw_fd());
        match encoding {
            Encoding::Plain => opcode::RecvMulti::new(socket, BUFFER_GROUP).build(),
            Encoding::Single => opcode::Recv::new(socket, std::ptr::null_mut(), 0)
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(Flags::BUFFER_SELECT),
            Encoding::Wait => opcode::PollAdd::new(socket, libc::POLLIN as u32).build(),
        }
    }

    fn attempt(&mut self, _: *mut Scratch, means: &Means<'_>) -> Attempt {
        let Some(id) = means.pool.take() else { return Attempt::Done(-NO_BUFFERS) };
        let len = means.pool.buffer_bytes().min(means.bytes_max);
        let start = means.pool.pointer(id);
        // SAFETY: invariant 1: the buffer was just taken from the pool and is at least `len` bytes long.
        match attempted(unsafe { self.socket.descriptor().receive(start.cast(), len) }) {
            Attempt::Done(bytes) if bytes > 0 => Attempt::More(bytes, Some(id)),
            other => {
                means.pool.untake(id);
                other
            }
        }
    }

    fn more(&mut self, completion: RawCompletion, pool: &Pool) -> Done {
        received(completion, pool)
    }

    fn finish(self, completion: RawCompletion, pool: &Pool) -> Done {
        received(completion, pool)
    }
}

fn received(completion: RawCompletion, pool: &Pool) -> Done {
    // Even a failed receive may have picked a buffer; making the lease first brings it home.
    let filled = usize::try_from(completion.result).unwrap_or(0);
    let lease = completion.buffer.map(|id| pool.lend(id, 0, filled));
    match (completion.result, lease) {
        (result, _) if result == -NO_BUFFERS => Done::Starved,
        (result, _) if result < 0 => Done::Received(Received::Failed(Error::from_raw(result))),
        (0, _) | (_, None) => Done::Received(Received::End),
        (_, Some(lease)) => Done::Received(Received::Data(lease)),
    }
}
