//! A pool of equal buffers, allocated once.
//!
//! The memory belongs to a reference-counted [`Region`] that outlives the ring, the driver and every lease. A
//! free buffer has exactly one home: the pool's free list, or the kernel's buffer ring that the driver fills
//! from that list. A lent buffer is held by one [`Lease`], or by one [`Bytes`](bytes::Bytes) made from it,
//! which may end on another thread; such a buffer comes home through a queue that can hold every buffer of the
//! pool, so a return never fails and never blocks.
//!
//! This file must not submit operations or know who waits for a buffer; the shard asks [`Pool::is_low`].
#![allow(unsafe_code)]

use super::lease::Lease;
use crossbeam_queue::ArrayQueue;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names one buffer of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferId(pub(crate) u16);

/// Most buffers a pool can have; the kernel's buffer rings end here too.
pub(crate) const BUFFERS_MAX: usize = 32_768;

const ALIGN: usize = 16;
const PAGE: usize = 4096;

/// The memory of a pool. Freed when the last lease, `Bytes`, ring or pool that refers to it is gone.
pub(crate) struct Region {
    memory: NonNull<u8>,
    layout: Layout,
    /// Bytes before the first buffer.
    skipped: usize,
    buffer_bytes: usize,
    count: usize,
    /// Buffers whose `Bytes` ended, perhaps on another thread.
    returns: ArrayQueue<u16>,
    /// Set while somebody starves: a return must then wake the shard.
    hungry: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

// SAFETY: the memory is plain bytes; a buffer is reached only through its one lease or `Bytes`, or by the
// kernel while neither exists (invariant 1), so no two threads touch the same buffer.
unsafe impl Send for Region {}
// SAFETY: as above; `returns` and `hungry` are synchronised themselves.
unsafe impl Sync for Region {}

impl Region {
    /// None if the system does not have that much memory.
    fn new(count: usize, buffer_bytes: usize, wake: Box<dyn Fn() + Send + Sync>) -> Option<Arc<Region>> {
        let bytes = count.checked_mul(buffer_bytes)?.checked_add(PAGE)?;
        // With a small alignment the zeroed pages come from the system untouched, hence lazily; the buffers begin
        // at the first page boundary, which makes the kernel's copies cheaper.
        let layout = Layout::from_size_align(bytes, ALIGN).ok()?;
        // SAFETY: invariant 1 (memory rules): the layout has a size above zero, as it includes a page.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skipped = memory.as_ptr().align_offset(PAGE).min(PAGE);
        let returns = ArrayQueue::new(count);
        Some(Arc::new(Region {
            memory,
            layout,
            skipped,
            buffer_bytes,
            count,
            returns,
            hungry: AtomicBool::new(false),
            wake,
        }))
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    pub(crate) fn pointer(&self, id: BufferId) -> *mut u8 {
        assert!((id.0 as usize) < self.count, "the pool has no buffer {}", id.0);
        // SAFETY: invariant 1: the index was checked, so the offset stays inside the one allocation.
        unsafe { self.memory.as_ptr().add(self.skipped + id.0 as usize * self.buffer_bytes) }
    }

    /// A buffer comes home from wherever its `Bytes` ended.
    pub(crate) fn give_back(&self, id: BufferId) {
        let pushed = self.returns.push(id.0);
        debug_assert!(pushed.is_ok(), "the queue holds every buffer of the pool");
        if self.hungry.load(Ordering::SeqCst) {
            (self.wake)();
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: invariant 1: the memory came from `alloc_zeroed` with this layout, and the last holder is gone.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} x {} bytes)", self.count, self.buffer_bytes)
    }
}

/// Equal buffers, allocated once, lent as [`Lease`]s.
///
/// A clone names the same pool. A pool is `!Send`: it belongs to its shard's thread.
#[derive(Clone, Debug)]
pub struct Pool {
    home: Rc<Home>,
}

/// The shard-side half of a pool.
#[derive(Debug)]
pub(crate) struct Home {
    region: Arc<Region>,
    free: RefCell<Vec<u16>>,
    /// Buffers that lie in the kernel's ring: free, but not ours to lend.
    in_kernel: Cell<usize>,
    low_water: usize,
    zero_on_return: bool,
    lent: Cell<u64>,
    returned: Cell<u64>,
}

impl Pool {
    /// A pool of `count` buffers of `buffer_bytes` each.
    ///
    /// The memory is zeroed and taken from the system lazily, page by page, as buffers are first used.
    /// `wake` is called, from any thread, when a buffer comes home while [`set_hungry`](Self::set_hungry) is on.
    ///
    /// # Panics
    ///
    /// If either number is zero, `count` exceeds 32 768, or there is not enough memory.
    pub fn new(count: usize, buffer_bytes: usize, wake: Box<dyn Fn() + Send + Sync>) -> Pool {
        Pool::try_new(count, buffer_bytes, false, wake).expect("memory for a pool")
    }

    /// As [`new`](Self::new), or nothing if there is not enough memory; with `zero_on_return` a buffer is overwritten
    /// with zeros when it comes home.
    pub fn try_new(
        count: usize,
        buffer_bytes: usize,
        zero_on_return: bool,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Option<Pool> {
        assert!(count > 0 && buffer_bytes > 0, "a pool needs at least one buffer of at least one byte");
        assert!(count <= BUFFERS_MAX, "a pool has at most {BUFFERS_MAX} buffers");
        let free = (0..count as u16).rev().collect();
        let home = Home {
            region: Region::new(count, buffer_bytes, wake)?,
            free: RefCell::new(free),
            in_kernel: Cell::new(0),
            low_water: (count / 4).max(1),
            zero_on_return,
            lent: Cell::new(0),
            returned: Cell::new(0),
        };
        Some(Pool { home: Rc::new(home) })
    }

    /// Bytes of one buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.home.region.buffer_bytes
    }

    /// Buffers in all.
    pub fn count(&self) -> usize {
        self.home.region.count
    }

    /// Buffers nobody holds, those in the kernel's ring included.
    pub fn available(&self) -> usize {
        self.home.free.borrow().len() + self.home.in_kernel.get()
    }

    /// True while fewer than a quarter of the buffers are available: data that has to wait is then copied
    /// out of its buffer, and starved receives stay unarmed.
    pub fn is_low(&self) -> bool {
        self.available() < self.home.low_water
    }

    /// Buffers ever lent and ever returned; equal when nobody holds one.
    pub fn ledger(&self) -> (u64, u64) {
        (self.home.lent.get(), self.home.returned.get())
    }

    /// Says whether somebody starves for a buffer, so that a return from another thread wakes the shard.
    pub fn set_hungry(&self, hungry: bool) {
        self.home.region.hungry.store(hungry, Ordering::SeqCst);
    }

    /// Takes home the buffers that came back from other threads.
    pub fn collect(&self) {
        while let Some(id) = self.home.region.returns.pop() {
            self.home.take_home(BufferId(id));
        }
    }

    /// Takes a free buffer to receive into; nothing if none is free.
    pub(crate) fn take(&self) -> Option<BufferId> {
        let id = self.home.free.borrow_mut().pop()?;
        self.home.lent.set(self.home.lent.get() + 1);
        Some(BufferId(id))
    }

    /// Gives back a buffer that [`take`](Self::take) or the kernel gave, unused.
    pub(crate) fn untake(&self, id: BufferId) {
        self.home.take_home(id);
    }

    /// Where the kernel may write while the buffer is taken or in its ring.
    pub(crate) fn pointer(&self, id: BufferId) -> *mut u8 {
        self.home.region.pointer(id)
    }

    /// Makes the lease of a buffer that [`take`](Self::take) gave, or that the kernel picked and
    /// [`left_kernel`](Self::left_kernel) recorded. `offset + len` bytes of it have been filled.
    pub(crate) fn lend(&self, id: BufferId, offset: usize, len: usize) -> Lease {
        Lease::from_pool(Rc::clone(&self.home), id, offset, len)
    }

    /// Moves every free buffer to the kernel's ring; `each` publishes one.
    pub(crate) fn move_to_kernel(&self, mut each: impl FnMut(BufferId)) {
        let mut free = self.home.free.borrow_mut();
        self.home.in_kernel.set(self.home.in_kernel.get() + free.len());
        for id in free.drain(..) {
            each(BufferId(id));
        }
    }

    /// Whether [`move_to_kernel`](Self::move_to_kernel) has anything to do.
    pub(crate) fn has_free(&self) -> bool {
        !self.home.free.borrow().is_empty()
    }

    /// Records that the kernel picked a buffer from its ring.
    pub(crate) fn left_kernel(&self) {
        self.home.in_kernel.set(self.home.in_kernel.get() - 1);
        self.home.lent.set(self.home.lent.get() + 1);
    }

    /// Keeps the memory alive for the holder's lifetime.
    pub(crate) fn region(&self) -> Arc<Region> {
        Arc::clone(&self.home.region)
    }
}

impl Home {
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(crate) fn take_home(&self, id: BufferId) {
        if self.zero_on_return {
            // SAFETY: invariant 1: the buffer is nobody's at this point, neither a lease's nor the kernel's.
            unsafe { self.region.pointer(id).write_bytes(0, self.region.buffer_bytes) }
        }
        self.free.borrow_mut().push(id.0);
        self.returned.set(self.returned.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: usize, bytes: usize) -> Pool {
        Pool::new(count, bytes, Box::new(|| {}))
    }

    fn filled(pool: &Pool, bytes: &[u8]) -> Lease {
        let id = pool.take().expect("a free buffer");
        // SAFETY: the buffer was just taken, so it is ours alone, and it is large enough.
        unsafe { pool.pointer(id).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        pool.lend(id, 0, bytes.len())
    }

    #[test]
    fn a_lease_shows_filled_bytes_only_and_returns_itself() {
        let pool = pool(2, 64);
        let lease = filled(&pool, b"hello");
        assert_eq!(&*lease, b"hello");
        assert_eq!(pool.available(), 1);
        drop(lease);
        assert_eq!(pool.available(), 2);
        assert_eq!(pool.ledger(), (1, 1));
    }

    #[test]
    fn bytes_made_from_a_lease_come_home_from_another_thread() {
        let pool = pool(1, 64);
        let bytes = filled(&pool, b"across").into_bytes();
        std::thread::spawn(move || assert_eq!(&bytes[..], b"across")).join().unwrap();
        assert_eq!(pool.available(), 0);
        pool.collect();
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.ledger(), (1, 1));
    }

    #[test]
    fn leases_and_bytes_outlive_the_pool() {
        let pool = pool(2, 64);
        let lease = filled(&pool, b"one");
        let bytes = filled(&pool, b"two").into_bytes();
        drop(pool);
        assert_eq!((&*lease, &bytes[..]), (&b"one"[..], &b"two"[..]));
    }

    #[test]
    fn a_return_from_elsewhere_wakes_a_hungry_pool_only() {
        let woken = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&woken);
        let pool = Pool::new(1, 8, Box::new(move || seen.store(true, Ordering::SeqCst)));
        drop(filled(&pool, b"a").into_bytes());
        assert!(!woken.load(Ordering::SeqCst));
        pool.collect();
        pool.set_hungry(true);
        drop(filled(&pool, b"a").into_bytes());
        assert!(woken.load(Ordering::SeqCst));
    }

    #[test]
    fn stale_bytes_are_never_shown_and_zeroing_erases_them() {
        let pool = Pool::try_new(1, 16, true, Box::new(|| {})).expect("a little memory");
        drop(filled(&pool, b"secret"));
        let id = pool.take().unwrap();
        let lease = pool.lend(id, 0, 16);
        assert_eq!(&*lease, &[0; 16]);
    }

    #[test]
    fn a_leaked_lease_is_a_leak_and_nothing_else() {
        let pool = pool(2, 8);
        let leaked = std::mem::ManuallyDrop::new(filled(&pool, b"x"));
        assert_eq!(pool.available(), 1);
        drop(pool);
        assert_eq!(&**leaked, b"x", "its memory stays as long as it could be used");
        // Freed in the end, so that checkers of leaks have nothing to report.
        drop(std::mem::ManuallyDrop::into_inner(leaked));
    }
}
