//! What the bare io_uring loops share: the ring, and the ring of receive buffers.

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, squeue};
use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

/// A ring as it is best for one thread.
pub fn ring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_no_sqarray();
    builder.setup_clamp().setup_cqsize(4096).build(1024)
}

/// Queues a submission; makes room first where there is none.
pub fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    loop {
        // SAFETY: every caller keeps what the entry points to alive until its completion.
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return Ok(());
        }
        ring.submit()?;
    }
}

/// Submits and waits for at least one completion; appends all there are as user data, result and flags.
pub fn turn(ring: &mut IoUring, completions: &mut Vec<(u64, i32, u32)>) -> io::Result<()> {
    match ring.submit_and_wait(1) {
        Ok(_) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
        Err(error) => return Err(error),
    }
    completions.extend(ring.completion().map(|cqe| (cqe.user_data(), cqe.result(), cqe.flags())));
    Ok(())
}

/// Equal receive buffers, and the kernel's ring of free ones. It lives as long as the process.
pub struct BufferRing {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    count: u16,
    bytes_each: usize,
    tail: u16,
}

const PAGE: usize = 4096;

fn allocate(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, PAGE).expect("a valid layout");
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() { handle_alloc_error(layout) } else { memory }
}

impl BufferRing {
    /// Registers `count` (a power of two) buffers as group 0.
    pub fn new(ring: &IoUring, count: u16, bytes_each: usize) -> io::Result<BufferRing> {
        let entries = allocate(usize::from(count) * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let memory = allocate(usize::from(count) * bytes_each);
        let mut this = BufferRing { entries, memory, count, bytes_each, tail: 0 };
        // SAFETY: the memory is aligned to a page, large enough, and never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, count, 0, 0)? };
        (0..count).for_each(|id| this.give(id));
        this.publish();
        Ok(this)
    }

    /// The bytes of a buffer that the kernel has handed out.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        // SAFETY: the identifier is one of ours, and the kernel does not write to a buffer it has handed out.
        unsafe { std::slice::from_raw_parts(self.pointer(id), len.min(self.bytes_each)) }
    }

    pub fn pointer(&self, id: u16) -> *mut u8 {
        // SAFETY: the identifier is one of ours, so the place lies in the memory.
        unsafe { self.memory.add(usize::from(id) * self.bytes_each) }
    }

    /// Puts a buffer back; the kernel sees it after [`publish`](Self::publish).
    pub fn give(&mut self, id: u16) {
        let (address, at) = (self.pointer(id) as u64, usize::from(self.tail & (self.count - 1)));
        // SAFETY: the index is masked, and the kernel does not read beyond the published tail.
        let entry = unsafe { &mut *self.entries.add(at) };
        entry.set_addr(address);
        entry.set_len(self.bytes_each as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    pub fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry and is aligned for a u16.
        unsafe {
            let tail = BufRingEntry::tail(self.entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}
