//! The ring of free receive buffers that is shared with the kernel.
//!
//! Entries are written first; then one *release* store of the tail publishes them all. The kernel takes them
//! in order and never gives one back unless a completion names it. The ring keeps the pool's memory alive and
//! must be unregistered, with nothing in flight, before its own memory is freed; else it is leaked whole.
#![allow(unsafe_code)]

use crate::buf::{Pool, Region};
use io_uring::IoUring;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// One entry: `struct io_uring_buf`.
#[repr(C)]
struct Entry {
    address: u64,
    len: u32,
    id: u16,
    /// In the first entry this is the ring's tail.
    tail: u16,
}

const PAGE: usize = 4096;

/// The kernel's ring of free buffers.
pub(crate) struct BufferRing {
    entries: NonNull<Entry>,
    layout: Layout,
    mask: u16,
    tail: u16,
    _region: Arc<Region>,
}

impl BufferRing {
    /// Registers a ring that can hold every buffer of `pool`.
    pub(crate) fn register(ring: &IoUring, pool: &Pool, group: u16) -> io::Result<BufferRing> {
        let count = pool.count().next_power_of_two();
        let layout = Layout::array::<Entry>(count)
            .and_then(|layout| layout.align_to(PAGE))
            .map_err(io::Error::other)?;
        // SAFETY: invariant 1 (ring memory): the layout is not empty.
        let entries =
            NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?.cast::<Entry>();
        let address = entries.as_ptr() as u64;
        let mut bufs =
            BufferRing { entries, layout, mask: (count - 1) as u16, tail: 0, _region: pool.region() };
        // SAFETY: invariant 11: the memory is page-aligned, large enough, and lives until `unregister` or for
        // ever.
        let registered =
            unsafe { ring.submitter().register_buf_ring_with_flags(address, count as u16, group, 0) };
        match registered {
            Ok(()) => {
                bufs.publish(pool);
                Ok(bufs)
            }
            Err(error) => {
                bufs.free();
                Err(error)
            }
        }
    }

    /// Moves the pool's free buffers to the kernel.
    pub(crate) fn publish(&mut self, pool: &Pool) {
        if !pool.has_free() {
            return;
        }
        let len = pool.buffer_bytes() as u32;
        let (entries, mask) = (self.entries, self.mask);
        let mut tail = self.tail;
        pool.move_to_kernel(|id| {
            // SAFETY: invariant 1: the index is masked, and the kernel does not read entries at or beyond the
            // published tail. The fields are written one by one, so the tail inside entry 0 is left alone.
            unsafe {
                let entry = entries.as_ptr().add((tail & mask) as usize);
                (&raw mut (*entry).address).write(pool.pointer(id) as u64);
                (&raw mut (*entry).len).write(len);
                (&raw mut (*entry).id).write(id.0);
            }
            tail = tail.wrapping_add(1);
        });
        self.tail = tail;
        // SAFETY: invariant 1: the tail of the first entry is aligned for a u16 and is shared with the kernel,
        // which reads it with acquire; release makes the entries above visible first.
        unsafe { AtomicU16::from_ptr(&raw mut (*self.entries.as_ptr()).tail).store(tail, Ordering::Release) };
    }

    /// Takes the ring from the kernel and frees it. Nothing may be in flight.
    pub(crate) fn unregister(mut self, ring: &IoUring, group: u16) {
        match ring.submitter().unregister_buf_ring(group) {
            Ok(()) => self.free(),
            Err(_) => std::mem::forget(self),
        }
    }

    fn free(&mut self) {
        // SAFETY: invariant 11: allocated with this layout in `register`; the kernel does not know it (any
        // more), and both callers drop or forget `self` right after.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) }
    }
}
