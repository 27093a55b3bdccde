//! One receive into memory of the caller's.
#![allow(unsafe_code)]

use super::*;

/// Receives once from a stream, appending to a buffer that the operation owns meanwhile.
#[derive(Debug)]
pub struct Recv {
    /// The socket.
    pub socket: FdRef,
    /// Bytes are appended up to its capacity.
    pub buffer: Vec<u8>,
}

impl Recv {
    fn room(&mut self) -> (*mut u8, usize) {
        let room = self.buffer.spare_capacity_mut();
        (room.as_mut_ptr().cast(), room.len().min(i32::MAX as usize))
    }
}

impl Kernel for Recv {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Read))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let (start, len) = self.room();
        io_uring::opcode::Recv::new(ring_fd(&self.socket), start, len as u32).build()
    }

    fn attempt(&mut self, _: *mut Scratch, means: &Means<'_>) -> Attempt {
        let (start, len) = self.room();
        // SAFETY: invariant 1: the range is spare capacity of the buffer that this operation owns.
        attempted(unsafe { self.socket.descriptor().receive(start, len.min(means.bytes_max)) })
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let (start, len) = self.room();
        if len == 0 {
            // The system would wait for something to receive.
            return Attempt::Done(0);
        }
        // SAFETY: invariant 1: the range is spare capacity of the buffer that this operation owns.
        match step.or_begin(|| unsafe { flight.receive(&self.socket, start, len) }) {
            Begun::Now(result) if result < 0 => Attempt::Done(os::received_nothing(result)),
            begun => begun.attempt(),
        }
    }

    fn finish(mut self, completion: RawCompletion, _: &Pool) -> Done {
        let received = counted(completion.result);
        filled(&mut self.buffer, received.as_ref().copied().unwrap_or(0));
        Done::Filled(received, self.buffer)
    }
}

/// Counts bytes that were written into the spare capacity as part of the buffer.
pub(super) fn filled(buffer: &mut Vec<u8>, bytes: usize) {
    let len = buffer.len() + bytes;
    assert!(len <= buffer.capacity(), "a completion claims more bytes than there was room for");
    // SAFETY: invariant 1: the kernel wrote these bytes into the spare capacity that was offered, and the
    // capacity was checked.
    unsafe { buffer.set_len(len) }
}
