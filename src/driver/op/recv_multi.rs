//! The standing receive of a stream, into pool buffers.
#![allow(unsafe_code)]

use super::*;
use crate::driver::completion::Received;
use crate::driver::sys::NO_BUFFERS;

/// Receives from a stream into pool buffers until the stream ends, a buffer is wanting, or it is cancelled.
#[derive(Debug)]
pub struct RecvMulti {
    /// The socket.
    pub socket: FdRef,
    /// Into whole buffers that lie apart; only where the driver [has such](crate::driver::Driver::gives_buffers).
    pub(crate) apart: bool,
}

impl RecvMulti {
    /// One that fills the buffers of the pool of streams.
    pub fn new(socket: FdRef) -> RecvMulti {
        RecvMulti { socket, apart: false }
    }
}

impl Kernel for RecvMulti {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Read))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
        use crate::driver::sys::{APART_GROUP, BUFFER_GROUP};
        use io_uring::{opcode, squeue::Flags};
        let socket = ring_fd(&self.socket);
        let group = if self.apart { APART_GROUP } else { BUFFER_GROUP };
        match encoding {
            Encoding::Plain => opcode::RecvMulti::new(socket, group).build(),
            Encoding::Single => opcode::Recv::new(socket, std::ptr::null_mut(), 0)
                .buf_group(group)
                .build()
                .flags(Flags::BUFFER_SELECT),
            Encoding::Wait => opcode::PollAdd::new(socket, nix::libc::POLLIN as u32).build(),
        }
    }

    fn attempt(&mut self, _: *mut Scratch, means: &Means<'_>) -> Attempt {
        let Some((start, room)) = means.pool.room() else { return Attempt::Done(-NO_BUFFERS) };
        let len = room.min(means.bytes_max);
        // SAFETY: invariant 1: nobody else has the pool's room, which is at least `len` bytes long.
        match attempted(unsafe { self.socket.descriptor().receive(start.cast(), len) }) {
            Attempt::Done(bytes) if bytes > 0 => {
                let buffer = Some(means.pool.carve(bytes as usize));
                match (bytes as usize) < len {
                    true => Attempt::Drained(bytes, buffer),
                    false => Attempt::More(bytes, buffer),
                }
            }
            other => other,
        }
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let socket = self.socket.clone();
        flight.when_readable(&socket, step, || self.attempt(flight.scratch, flight.means))
    }

    fn more(&mut self, completion: RawCompletion, pool: &Pool) -> Done {
        received(completion, pool)
    }

    fn finish(self, completion: RawCompletion, pool: &Pool) -> Done {
        received(completion, pool)
    }
}

#[inline]
fn received(completion: RawCompletion, pool: &Pool) -> Done {
    // Even a failed receive may have taken a piece; making the lease first brings it home.
    let filled = usize::try_from(completion.result).unwrap_or(0);
    let lease = completion.buffer.map(|id| pool.lend(id, 0, filled));
    match (completion.result, lease) {
        (result, _) if result == -NO_BUFFERS => {
            pool.note_starved();
            Done::Starved
        }
        (result, _) if result < 0 => Done::Received(Received::Failed(Error::from_raw(result))),
        (0, _) | (_, None) => Done::Received(Received::End),
        (_, Some(lease)) => Done::Received(Received::Data(lease)),
    }
}
