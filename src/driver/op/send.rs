//! Sending one payload on a stream.
#![allow(unsafe_code)]

use super::*;
use crate::buf::Payload;

/// Sends a payload whole, unless the connection fails on the way.
#[derive(Debug)]
pub struct Send {
    /// The socket.
    pub socket: FdRef,
    /// What to send.
    pub payload: Payload,
    progress: Progress,
}

/// How far a send has come.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// So many bytes have left, by attempts.
    Bytes(u32),
    /// The same of a payload that the kernel may read in place. The result and the release of the payload are then two
    /// completions (invariant 3).
    InPlace(u32),
    /// A zero-copy send has reported this result and still holds its payload.
    Reported(i32),
}

/// The most that attempts send of one payload: results are `i32`. What is left is a short write.
const BYTES_MAX: usize = 1 << 30;

impl Send {
    /// Sends `payload` on `socket`.
    pub fn new(socket: FdRef, payload: Payload) -> Send {
        Send { socket, payload, progress: Progress::Bytes(0) }
    }

    /// As [`new`](Self::new), without a copy where the kernel can.
    pub fn zero_copy(socket: FdRef, payload: Payload) -> Send {
        Send { socket, payload, progress: Progress::InPlace(0) }
    }

    /// Whether the kernel may read the payload in place.
    pub fn is_zero_copy(&self) -> bool {
        !matches!(self.progress, Progress::Bytes(_))
    }
}

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification tells whether the kernel copied all the same.
#[cfg(target_os = "linux")]
const REPORT_USAGE: u16 = 8;

/// `IORING_NOTIF_USAGE_ZC_COPIED`, the result of such a notification.
pub(crate) const ZERO_COPY_COPIED: i32 = i32::MIN;

impl Kernel for Send {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
        use io_uring::opcode;
        use nix::libc;
        let socket = ring_fd(&self.socket);
        let (start, len) = (self.payload.as_ptr(), u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
        // MSG_WAITALL makes short sends the kernel's business.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        if self.is_zero_copy() && encoding == Encoding::Plain {
            opcode::SendZc::new(socket, start, len).flags(flags).zc_flags(REPORT_USAGE).build()
        } else {
            opcode::Send::new(socket, start, len).flags(flags).build()
        }
    }

    fn attempt(&mut self, _: *mut Scratch, means: &Means<'_>) -> Attempt {
        loop {
            let sent = match self.progress {
                Progress::Bytes(sent) | Progress::InPlace(sent) => sent as usize,
                Progress::Reported(_) => return Attempt::Blocked,
            };
            let rest = &self.payload[sent..];
            let len = rest.len().min(means.bytes_max).min(BYTES_MAX);
            match attempted(self.socket.descriptor().send(&rest[..len])) {
                Attempt::Done(bytes) if bytes >= 0 => {
                    let sent = sent + bytes as usize;
                    self.progress = match self.progress {
                        Progress::InPlace(_) => Progress::InPlace(sent as u32),
                        _ => Progress::Bytes(sent as u32),
                    };
                    if sent == self.payload.len() || sent >= BYTES_MAX {
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

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let mut landed = match step {
            Step::Landed(result) => Some(result),
            _ => None,
        };
        loop {
            let (Progress::Bytes(sent) | Progress::InPlace(sent)) = self.progress else {
                return Attempt::Blocked;
            };
            let sent = sent as usize;
            let rest = &self.payload[sent..];
            let range = os::range(rest.as_ptr(), rest.len().min(BYTES_MAX - sent));
            // SAFETY: invariant 1: the payload belongs to this operation and does not move.
            let begun =
                landed.take().map_or_else(|| unsafe { flight.send(&self.socket, &[range]) }, Begun::Now);
            match begun {
                Begun::Pending => return Attempt::Blocked,
                // What has left is reported first; the next send meets the error again.
                Begun::Now(result) if result < 0 => {
                    return Attempt::Done(if sent > 0 { sent as i32 } else { result });
                }
                Begun::Now(bytes) => {
                    let sent = sent + bytes as usize;
                    self.progress = Progress::Bytes(sent as u32);
                    if sent == self.payload.len() || sent >= BYTES_MAX {
                        return Attempt::Done(sent as i32);
                    }
                }
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
            Progress::Bytes(sent) | Progress::InPlace(sent) if completion.result < 0 && sent > 0 => {
                sent as i32
            }
            _ => completion.result,
        };
        match self.progress {
            Progress::Reported(_) if completion.result == ZERO_COPY_COPIED => {
                Done::SentCopied(counted(result), self.payload)
            }
            _ => Done::Sent(counted(result), self.payload),
        }
    }
}
