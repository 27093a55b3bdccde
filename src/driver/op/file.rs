//! Reading, writing and syncing a file at an offset.
//!
//! A file is always "ready", so readiness cannot help: where there is no ring these calls run on the pool of
//! blocking threads, under the same rule as in the kernel: the slot owns file and buffer until the call has
//! ended.
#![allow(unsafe_code)]

use super::recv::filled;
use super::*;
use crate::buf::Payload;
use crate::driver::sys::os::{self, Raw};

/// Reads at an offset, appending to a buffer that the operation owns meanwhile.
#[derive(Debug)]
pub struct ReadAt {
    /// The file.
    pub file: FdRef,
    /// Bytes are appended up to its capacity.
    pub buffer: Vec<u8>,
    /// Where in the file.
    pub offset: u64,
}

/// Writes a payload at an offset; perhaps not all of it.
#[derive(Debug)]
pub struct WriteAt {
    /// The file.
    pub file: FdRef,
    /// What to write.
    pub payload: Payload,
    /// Where in the file.
    pub offset: u64,
}

/// Waits until a file's content is on its device.
#[derive(Debug)]
pub struct Fsync {
    /// The file.
    pub file: FdRef,
    /// Leave out metadata that is not needed to read the content back.
    pub data_only: bool,
}

/// Memory and descriptor of a blocking call.
struct Range {
    file: Raw,
    start: *mut u8,
    len: usize,
    offset: u64,
}

// SAFETY: invariant 1: the range belongs to an operation in a slot, which keeps buffer and descriptor until the
// terminal completion that this call's end causes; until then the shard does not touch the buffer.
unsafe impl std::marker::Send for Range {}

impl Range {
    fn read(self) -> i32 {
        // SAFETY: invariant 1: see `Send` above; the range is spare capacity of the operation's buffer.
        unsafe { os::read_at(self.file, self.start, self.len, self.offset) }
    }

    fn write(self) -> i32 {
        // SAFETY: invariant 1: see `Send` above; the range is the operation's payload.
        unsafe { os::write_at(self.file, self.start, self.len, self.offset) }
    }
}

impl ReadAt {
    fn range(&mut self) -> Range {
        let room = self.buffer.spare_capacity_mut();
        let len = room.len().min(i32::MAX as usize);
        Range { file: self.file.raw(), start: room.as_mut_ptr().cast(), len, offset: self.offset }
    }
}

impl Kernel for ReadAt {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        None
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let range = self.range();
        let file = ring_fd(&self.file);
        io_uring::opcode::Read::new(file, range.start, range.len as u32).offset(range.offset).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        let Range { start, len, .. } = self.range();
        // SAFETY: invariant 1: the range is spare capacity of the operation's buffer.
        Attempt::Done(unsafe { self.file.descriptor().read_at(start, len, self.offset) })
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let Range { start, len, .. } = self.range();
        // SAFETY: invariant 1: the range is the operation's own and does not move.
        step.or_begin(|| unsafe { flight.read_at(&self.file, start, len, self.offset) }).attempt()
    }

    fn blocking(&mut self) -> Option<BlockingCall> {
        let range = (!self.file.descriptor().is_overlapped_file()).then(|| self.range())?;
        Some(Box::new(move || range.read()))
    }

    fn finish(mut self, completion: RawCompletion, _: &Pool) -> Done {
        let read = counted(completion.result);
        filled(&mut self.buffer, read.as_ref().copied().unwrap_or(0));
        Done::Filled(read, self.buffer)
    }
}

impl WriteAt {
    fn range(&self) -> Range {
        let len = self.payload.len().min(i32::MAX as usize);
        Range { file: self.file.raw(), start: self.payload.as_ptr().cast_mut(), len, offset: self.offset }
    }
}

impl Kernel for WriteAt {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        None
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let range = self.range();
        let file = ring_fd(&self.file);
        io_uring::opcode::Write::new(file, range.start, range.len as u32).offset(range.offset).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        Attempt::Done(self.file.descriptor().write_at(&self.payload, self.offset))
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let Range { start, len, .. } = self.range();
        // SAFETY: invariant 1: the range is the operation's own and does not move.
        step.or_begin(|| unsafe { flight.write_at(&self.file, start, len, self.offset) }).attempt()
    }

    fn blocking(&mut self) -> Option<BlockingCall> {
        let range = (!self.file.descriptor().is_overlapped_file()).then(|| self.range())?;
        Some(Box::new(move || range.write()))
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        Done::Sent(counted(completion.result), self.payload)
    }
}

impl Kernel for Fsync {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        None
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        use io_uring::types::FsyncFlags;
        let flags = if self.data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
        io_uring::opcode::Fsync::new(ring_fd(&self.file)).flags(flags).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        Attempt::Done(self.file.descriptor().sync(self.data_only))
    }

    fn blocking(&mut self) -> Option<BlockingCall> {
        let (file, data_only) = (self.file.raw(), self.data_only);
        // The slot keeps the descriptor open until this call has ended.
        Some(Box::new(move || os::sync(file, data_only)))
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
