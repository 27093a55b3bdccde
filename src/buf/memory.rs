//! [`Memory`]: where the buffers of a pool lie.
//!
//! Mostly in one block, which is taken from the system page by page as it is touched. Or apart, each in memory of its
//! own from `malloc`, so that one that was filled can become the program's without a copy; then each is taken when its
//! buffer is first received into, and again after it was given away.
//!
//! This file must not know who holds a buffer: the pool asks only where that is settled.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

unsafe extern "C" {
    fn malloc(bytes: usize) -> *mut c_void;
    fn free(memory: *mut c_void);
}

const ALIGN: usize = 16;
const PAGE: usize = 4096;

/// The memory of so many buffers of so many bytes. Freed with it, except what was given away.
pub(crate) struct Memory {
    count: usize,
    buffer_bytes: usize,
    buffers: Buffers,
}

enum Buffers {
    Block {
        start: NonNull<u8>,
        layout: Layout,
        /// Bytes before the first buffer.
        skipped: usize,
    },
    /// Null where nothing has been taken yet.
    Apart(Box<[AtomicPtr<u8>]>),
}

impl Memory {
    /// One block of zeros; none if the system does not have that much.
    pub(crate) fn block(count: usize, buffer_bytes: usize) -> Option<Memory> {
        let bytes = count.checked_mul(buffer_bytes)?.checked_add(PAGE)?;
        // With a small alignment the zeroed pages come from the system untouched, hence lazily; the buffers begin
        // at the first page boundary, which makes the kernel's copies cheaper.
        let layout = Layout::from_size_align(bytes, ALIGN).ok()?;
        // SAFETY: invariant 1 (memory rules): the layout has a size above zero, as it includes a page.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skipped = start.as_ptr().align_offset(PAGE).min(PAGE);
        Some(Memory { count, buffer_bytes, buffers: Buffers::Block { start, layout, skipped } })
    }

    /// Buffers apart from each other.
    pub(crate) fn apart(count: usize, buffer_bytes: usize) -> Memory {
        let buffers = Buffers::Apart((0..count).map(|_| AtomicPtr::default()).collect());
        Memory { count, buffer_bytes, buffers }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    pub(super) fn is_apart(&self) -> bool {
        matches!(self.buffers, Buffers::Apart(_))
    }

    /// Where a buffer begins. One that lies apart must have been [taken](Self::take), else it begins nowhere.
    #[inline]
    pub(super) fn pointer(&self, index: u16) -> *mut u8 {
        assert!((index as usize) < self.count, "the pool has no buffer {index}");
        match &self.buffers {
            Buffers::Block { start, skipped, .. } => {
                // SAFETY: invariant 1: the index was checked, so the offset stays inside the one allocation.
                unsafe { start.as_ptr().add(skipped + index as usize * self.buffer_bytes) }
            }
            // Whoever was handed a piece of the buffer has also been handed what was stored before.
            Buffers::Apart(buffers) => buffers[index as usize].load(Ordering::Relaxed),
        }
    }

    /// Sees to it that there is memory for a buffer, which nobody has; `false` if the system has none. What it
    /// holds is not initialised, unlike that of a block: only what was received may be shown.
    #[inline]
    pub(super) fn take(&self, index: u16) -> bool {
        match &self.buffers {
            Buffers::Block { .. } => true,
            Buffers::Apart(buffers) => {
                let place = &buffers[index as usize];
                if place.load(Ordering::Relaxed).is_null() {
                    place.store(self.fresh(), Ordering::Relaxed);
                }
                !place.load(Ordering::Relaxed).is_null()
            }
        }
    }

    /// Memory for a buffer; null if there is none.
    fn fresh(&self) -> *mut u8 {
        // SAFETY: invariant 1 (memory rules): a pool's buffer has at least one byte.
        unsafe { malloc(self.buffer_bytes) }.cast()
    }

    /// Gives the memory of a buffer away for good, to be freed with `free`; none of a block. The caller sees to it that
    /// nobody else reaches the buffer, now or before it is taken again.
    #[cfg(feature = "capi")]
    pub(super) fn give(&self, index: u16) -> Option<NonNull<u8>> {
        match &self.buffers {
            Buffers::Block { .. } => None,
            Buffers::Apart(buffers) => {
                let place = &buffers[index as usize];
                // At once, and not when the buffer is used next: if everything that a turn brought was free at the same
                // time, the allocator would give it back to the system and have it zeroed anew in the next turn.
                NonNull::new(place.swap(self.fresh(), Ordering::Relaxed))
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &mut self.buffers {
            // SAFETY: invariant 1: it came from `alloc_zeroed` with this layout, and the last holder is gone.
            Buffers::Block { start, layout, .. } => unsafe { dealloc(start.as_ptr(), *layout) },
            Buffers::Apart(buffers) => {
                for buffer in buffers {
                    // SAFETY: invariant 1: it came from `malloc` or is null, was not given away, and the last holder
                    // is gone.
                    unsafe { free(buffer.get_mut().cast()) }
                }
            }
        }
    }
}
