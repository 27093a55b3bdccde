//! Sending one payload on a stream.
#![forbid(unsafe_code)]

use super::*;
use crate::buf::Payload;
use nix::libc;
use std::os::fd::AsRawFd;

/// Sends a payload whole, unless the connection fails on the way.
#[derive(Debug)]
pub struct Send {
    /// The socket.
    pub socket: FdRef,
    /// What to send.
    pub payload: Payload,
    /// Let the kernel read the payload in place. The result and the release of the payload are then two
    /// completions (invariant 3).
    pub zero_copy: bool,
    progress: Progress,
}

/// How far a send has come.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// So many bytes have left, by attempts.
    Bytes(usize),
    /// A zero-copy send has reported this result and still holds its payload.
    Reported(i32),
}

impl Send {
    /// Sends `payload` on `socket`.
    pub fn new(socket: FdRef, payload: Payload) -> Send {
        Send { socket, payload, zero_copy: false, progress: Progress::Bytes(0) }
    }

    /// As [`new`](Self::new), without a copy where the kernel can.
    pub fn zero_copy(socket: FdRef, payload: Payload) -> Send {
        Send { zero_copy: true, ..Send::new(socket, payload) }
    }
}

const FLAGS: i32 = libc::MSG_NOSIGNAL;

impl Kernel for Send {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
        use io_uring::{opcode, types::Fd};
        let socket = Fd(self.socket.as_raw_fd());
        let (start, len) = (self.payload.as_ptr(), u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
        // MSG_WAITALL makes short sends the kernel's business.
        let flags = FLAGS | libc::MSG_WAITALL;
        if self.zero_copy && encoding == Encoding::Plain {
            opcode::SendZc::new(socket, start, len).flags(flags).build()
        } else {
            opcode::Send::new(socket, start, len).flags(flags).build()
        }
    }

    fn attempt(&mut self, _: *mut Scratch, means: &Means<'_>) -> Attempt {
        loop {
            let Progress::Bytes(sent) = self.progress else { return Attempt::Blocked };
            let rest = &self.payload[sent..];
            let len = rest.len().min(means.bytes_max);
            match attempted(self.socket.descriptor().send(&rest[..len])) {
                Attempt::Done(bytes) if bytes >= 0 => {
                    let sent = sent + bytes as usize;
                    self.progress = Progress::Bytes(sent);
                    if sent == self.payload.len() {
                        return Attempt::Done(sent as i32);
                    }
                    if means.bytes_max < usize::MAX {
                        return Attempt::Blocked;
                    }
                }
                // What has left is reported first; the next send meets the error again.
                Attempt::Done(_) if sent > 0 => return Attempt::Done(sent as i32),
                other => return other,
            }
        }
    }

    fn more(&mut self, completion: RawCompletion, _: &Pool) -> Done {
        self.progress = Progress::Reported(completion.result);
        Done::SentEarly(counted(completion.result))
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        let result = match self.progress {
            Progress::Reported(result) => result,
            // A cancelled send tells what had left before.
            Progress::Bytes(sent) if completion.result < 0 && sent > 0 => sent as i32,
            Progress::Bytes(_) => completion.result,
        };
        Done::Sent(counted(result), self.payload)
    }
}
