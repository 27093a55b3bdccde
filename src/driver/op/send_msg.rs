//! Sending several payloads at once on a stream.
#![allow(unsafe_code)]

use super::*;
#[cfg(windows)]
use crate::buf::BATCH_MAX;
use crate::buf::Batch;

/// Sends a batch in order, whole unless the connection fails on the way.
#[derive(Debug)]
pub struct SendMsg {
    /// The socket.
    pub socket: FdRef,
    /// What to send.
    pub batch: Batch,
    sent: usize,
}

impl SendMsg {
    /// Sends `batch` on `socket`.
    pub fn new(socket: FdRef, batch: Batch) -> SendMsg {
        SendMsg { socket, batch, sent: 0 }
    }

    /// Points the scratch's message header at the unsent bytes.
    fn prepare(&mut self, scratch: *mut Scratch, bytes_max: usize) -> *mut libc::msghdr {
        let vectors = self.batch.vectors(self.sent, bytes_max);
        // SAFETY: invariant 1: the scratch is this slot's own; the vectors and the payloads belong to the
        // operation's batch and do not move before the terminal completion.
        unsafe {
            let header = &raw mut (*scratch).header;
            header.write_bytes(0, 1);
            (*header).msg_iov = vectors.as_mut_ptr().cast();
            (*header).msg_iovlen = vectors.len() as _;
            header
        }
    }
}

impl Kernel for SendMsg {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, scratch: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let header = self.prepare(scratch, usize::MAX);
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        io_uring::opcode::SendMsg::new(ring_fd(&self.socket), header).flags(flags).build()
    }

    fn attempt(&mut self, scratch: *mut Scratch, means: &Means<'_>) -> Attempt {
        let total = self.batch.bytes();
        loop {
            let header = self.prepare(scratch, means.bytes_max);
            // SAFETY: invariant 1: `prepare` set the header to memory that this operation owns.
            match attempted(unsafe { self.socket.descriptor().send_message(header) }) {
                Attempt::Done(bytes) if bytes >= 0 => {
                    self.sent += bytes as usize;
                    if self.sent >= total {
                        return Attempt::Done(self.sent as i32);
                    }
                    if means.bytes_max < usize::MAX {
                        return Attempt::Blocked;
                    }
                }
                Attempt::Done(_) if self.sent > 0 => return Attempt::Done(self.sent as i32),
                other => return other,
            }
        }
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let total = self.batch.bytes();
        let mut landed = match step {
            Step::Landed(result) => Some(result),
            _ => None,
        };
        loop {
            let vectors = self.batch.vectors(self.sent, i32::MAX as usize);
            let mut ranges = [os::range(std::ptr::null(), 0); BATCH_MAX];
            let count = vectors.len();
            for (range, vector) in ranges.iter_mut().zip(vectors) {
                *range = os::range(vector.start, vector.len);
            }
            // SAFETY: invariant 1: the payloads belong to this operation and do not move.
            let send = || unsafe { flight.send(&self.socket, &ranges[..count]) };
            match landed.take().map_or_else(send, Begun::Now) {
                Begun::Pending => return Attempt::Blocked,
                Begun::Now(result) if result < 0 && self.sent == 0 => return Attempt::Done(result),
                Begun::Now(result) if result < 0 => return Attempt::Done(self.sent as i32),
                Begun::Now(bytes) => {
                    self.sent += bytes as usize;
                    if self.sent >= total {
                        return Attempt::Done(self.sent as i32);
                    }
                }
            }
        }
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        let result =
            if completion.result < 0 && self.sent > 0 { self.sent as i32 } else { completion.result };
        Done::SentBatch(counted(result), self.batch)
    }
}
