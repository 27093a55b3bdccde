//! A pool of equal buffers, allocated once and filled piece by piece.
//!
//! The memory belongs to a reference-counted [`Region`] that outlives the ring, the driver and every lease; where it
//! lies is said in `memory.rs`. A buffer is in one of three places: *free*, in the pool's list; *filling*, in the kernel's ring or, where receives
//! are attempted in user space, as the pool's current buffer; or *lent*. Each [`Lease`] holds a piece of a buffer,
//! also while the rest of it is still filling; pieces never overlap. A buffer is free again when it is not filling
//! any more and its last piece has ended.
//!
//! A lease that became [`Bytes`](bytes::Bytes) may end on another thread. It is counted there, and the first one
//! to be counted names the buffer in a queue that can hold every buffer of the pool; so a return never fails and
//! never blocks.
//!
//! This file must not submit operations or know who waits for a buffer; the shard asks [`Pool::is_low`].
#![allow(unsafe_code)]

use super::lease::Lease;
use super::memory::Memory;
use crossbeam_queue::ArrayQueue;
use std::cell::{Cell, RefCell};
use std::fmt;
#[cfg(feature = "capi")]
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Names a buffer of a pool, and the piece of it that a receive has filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferId {
    start: u32,
    pub(crate) index: u16,
    purpose: Purpose,
}

impl BufferId {
    /// What the pool that it belongs to is for.
    pub(crate) fn purpose(self) -> Purpose {
        self.purpose
    }
}

/// What a pool is for; a driver has one of each at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Streams, whose bytes may be cut anywhere.
    Streams,
    /// Streams that bring much, whose bytes can be given to the program for good.
    Apart,
    /// Datagrams, each of which needs a buffer of its own.
    Datagrams,
}

/// Most buffers a pool can have; the kernel's buffer rings end here too.
pub(crate) const BUFFERS_MAX: usize = 32_768;

/// Most bytes that one receive in user space asks for: one connection's bytes do not keep others waiting for long.
const PIECE_MAX: usize = 64 * 1024;
/// When less is left of a current buffer, or less than a quarter of a small one, the next one is taken.
const REST_MIN: usize = 4096;
/// What one of many receives that wait for a buffer is expected to take of it.
const SERVING: usize = 16 * 1024;

/// The memory of a pool. Freed when the last lease, `Bytes`, ring or pool that refers to it is gone.
pub(crate) struct Region {
    memory: Memory,
    /// Per buffer, the pieces that ended as `Bytes` and have not been collected.
    returned: Box<[AtomicU32]>,
    /// Buffers whose count above is not zero, each once.
    returns: ArrayQueue<u16>,
    /// Set while somebody starves: a return must then wake the shard.
    hungry: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

// SAFETY: the memory is plain bytes; a piece of a buffer is reached only through its one lease or `Bytes`, and what
// the kernel or a receive fills lies behind all pieces (invariant 1), so no two threads touch the same bytes.
unsafe impl Send for Region {}
// SAFETY: as above; `returned`, `returns` and `hungry` are synchronised themselves.
unsafe impl Sync for Region {}

impl Region {
    fn new(memory: Memory, wake: Box<dyn Fn() + Send + Sync>) -> Arc<Region> {
        let count = memory.count();
        Arc::new(Region {
            memory,
            returned: (0..count).map(|_| AtomicU32::new(0)).collect(),
            returns: ArrayQueue::new(count),
            hungry: AtomicBool::new(false),
            wake,
        })
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        self.memory.buffer_bytes()
    }

    fn count(&self) -> usize {
        self.returned.len()
    }

    pub(crate) fn pointer(&self, index: u16) -> *mut u8 {
        self.memory.pointer(index)
    }

    /// A piece comes home from wherever its `Bytes` ended.
    pub(crate) fn give_back(&self, index: u16) {
        // Whoever collects takes the name out of the queue first and the count after it, so a count above zero is
        // named already, or about to be by the thread that made it one; that thread looks at the flag, too.
        if self.returned[index as usize].fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let pushed = self.returns.push(index);
        debug_assert!(pushed.is_ok(), "the queue holds every buffer of the pool, and each once");
        if self.hungry.load(Ordering::SeqCst) {
            (self.wake)();
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} x {} bytes)", self.count(), self.buffer_bytes())
    }
}

/// Equal buffers, allocated once, lent in pieces as [`Lease`]s.
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
    purpose: Purpose,
    /// What came home last goes first: the processor's caches still have it.
    free: RefCell<Vec<u16>>,
    buffers: Box<[Buffer]>,
    /// The buffer that receives in user space fill.
    current: Cell<Option<u16>>,
    in_kernel: Cell<usize>,
    /// Bytes that the kernel has filled since somebody asked.
    drawn: Cell<usize>,
    /// A receive found no buffer since somebody asked.
    starved: Cell<bool>,
    zero_on_return: bool,
    lent: Cell<u64>,
    returned: Cell<u64>,
}

/// What is known of a buffer.
#[derive(Debug)]
struct Buffer {
    place: Cell<Place>,
    /// Pieces that are held.
    pieces: Cell<u32>,
    /// Where the next piece begins.
    filled: Cell<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    Filling,
    Lent,
}

impl Pool {
    /// A pool of `count` buffers of `buffer_bytes` each, for streams.
    ///
    /// The memory is zeroed and taken from the system lazily, page by page, as buffers are first used.
    /// `wake` is called, from any thread, when a piece comes home while [`set_hungry`](Self::set_hungry) is on.
    ///
    /// # Panics
    ///
    /// If either number is zero, `count` exceeds 32 768, or there is not enough memory.
    pub fn new(count: usize, buffer_bytes: usize, wake: Box<dyn Fn() + Send + Sync>) -> Pool {
        let memory = Memory::block(count, buffer_bytes).expect("memory for a pool");
        Pool::over(memory, Purpose::Streams, false, wake)
    }

    /// A pool of these buffers; with `zero_on_return` a buffer is overwritten with zeros when it comes home.
    pub(crate) fn over(
        memory: Memory,
        purpose: Purpose,
        zero_on_return: bool,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Pool {
        let (count, buffer_bytes) = (memory.count(), memory.buffer_bytes());
        assert!(count > 0 && buffer_bytes > 0, "a pool needs at least one buffer of at least one byte");
        assert!(count <= BUFFERS_MAX, "a pool has at most {BUFFERS_MAX} buffers");
        assert!(u32::try_from(buffer_bytes).is_ok(), "a buffer has less than 4 GiB");
        let unused = || Buffer { place: Cell::new(Place::Free), pieces: Cell::new(0), filled: Cell::new(0) };
        let home = Home {
            region: Region::new(memory, wake),
            purpose,
            free: RefCell::new((0..count as u16).rev().collect()),
            buffers: (0..count).map(|_| unused()).collect(),
            current: Cell::new(None),
            in_kernel: Cell::new(0),
            drawn: Cell::new(0),
            starved: Cell::new(false),
            zero_on_return,
            lent: Cell::new(0),
            returned: Cell::new(0),
        };
        Pool { home: Rc::new(home) }
    }

    /// Bytes of one buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.home.region.buffer_bytes()
    }

    /// Buffers in all.
    pub fn count(&self) -> usize {
        self.home.region.count()
    }

    /// Buffers that can be received into: free ones, and those that are filling.
    pub fn available(&self) -> usize {
        self.home.available()
    }

    /// How many receives the available buffers may serve, a piece of middling size each.
    pub(crate) fn servings(&self) -> usize {
        let each = if self.home.purpose == Purpose::Streams { self.buffer_bytes() / SERVING } else { 1 };
        self.available() * each.max(1)
    }

    /// True while no more than a quarter of the buffers is available: data that has to wait is then copied
    /// out of its buffer.
    pub fn is_low(&self) -> bool {
        self.home.is_short_for(usize::MAX, 4)
    }

    /// Pieces ever lent and ever returned; equal when nobody holds one.
    pub fn ledger(&self) -> (u64, u64) {
        (self.home.lent.get(), self.home.returned.get())
    }

    /// Says whether somebody starves for a buffer, so that a return from another thread wakes the shard.
    pub fn set_hungry(&self, hungry: bool) {
        self.home.region.hungry.store(hungry, Ordering::SeqCst);
    }

    /// Takes home the pieces that came back from other threads.
    pub fn collect(&self) {
        let Home { region, .. } = &*self.home;
        // A pop costs a fence even when there is nothing.
        if region.returns.is_empty() {
            return;
        }
        while let Some(index) = region.returns.pop() {
            let pieces = region.returned[index as usize].swap(0, Ordering::SeqCst);
            self.home.give_back(index, pieces);
        }
    }

    /// Takes a free buffer whole, to receive into; nothing if none is free.
    pub(crate) fn take(&self) -> Option<BufferId> {
        let index = self.home.take_free()?;
        let buffer = &self.home.buffers[index as usize];
        buffer.place.set(Place::Lent);
        buffer.filled.set(self.buffer_bytes() as u32);
        Some(self.home.cut(index, 0))
    }

    /// Gives back what [`take`](Self::take), [`carve`](Self::carve) or the kernel gave, unused.
    pub(crate) fn untake(&self, id: BufferId) {
        self.home.give_back(id.index, 1);
    }

    /// Where the buffer, or the piece, begins.
    pub(crate) fn pointer(&self, id: BufferId) -> *mut u8 {
        assert!(id.start as usize <= self.buffer_bytes(), "{id:?} begins outside of its buffer");
        // SAFETY: invariant 1: the offset stays inside the buffer.
        unsafe { self.home.region.pointer(id.index).add(id.start as usize) }
    }

    /// Where a receive in user space may write, and how much: the rest of the current buffer. Nothing if no buffer
    /// is free. What it has written it takes with [`carve`](Self::carve), before anybody else asks.
    pub(crate) fn room(&self) -> Option<(*mut u8, usize)> {
        let home = &*self.home;
        let index = match home.current.get() {
            Some(index) => index,
            None => {
                let index = home.take_free()?;
                home.buffers[index as usize].place.set(Place::Filling);
                home.current.set(Some(index));
                index
            }
        };
        let buffer = &home.buffers[index as usize];
        if buffer.pieces.get() == 0 {
            // All of it has been read: the warm bytes at its beginning are used again.
            home.wipe(index);
        }
        let id = BufferId { start: buffer.filled.get(), index, purpose: home.purpose };
        let rest = self.buffer_bytes() - id.start as usize;
        Some((self.pointer(id), rest.min(PIECE_MAX)))
    }

    /// Takes the first `bytes` of the [`room`](Self::room), which have been received.
    pub(crate) fn carve(&self, bytes: usize) -> BufferId {
        let home = &*self.home;
        let index = home.current.get().expect("there was room");
        let id = home.fill(index, bytes);
        let rest = self.buffer_bytes() - home.buffers[index as usize].filled.get() as usize;
        // What may be given away is not shared.
        if rest < REST_MIN.min(self.buffer_bytes() / 4).max(1) || home.region.memory.is_apart() {
            home.current.set(None);
            home.stop_filling(index);
        }
        id
    }

    /// Makes the lease of a piece that [`take`](Self::take) or [`carve`](Self::carve) gave, or that the kernel has
    /// filled and [`left_kernel`](Self::left_kernel) recorded. `offset + len` bytes of it have been filled.
    pub(crate) fn lend(&self, id: BufferId, offset: usize, len: usize) -> Lease {
        let filled = self.home.buffers[id.index as usize].filled.get() as usize;
        let start = id.start as usize + offset;
        assert!(
            start + len <= filled,
            "a completion claims {len} bytes from {start} on, where {filled} were filled"
        );
        Lease::from_pool(Rc::clone(&self.home), id.index, start as u32, len as u32)
    }

    /// Moves at most `count` free buffers to the kernel's ring; `each` publishes one.
    pub(crate) fn move_to_kernel(&self, count: usize, mut each: impl FnMut(u16, *mut u8)) {
        let home = &*self.home;
        let mut free = home.free.borrow_mut();
        let wanted = free.len().saturating_sub(count)..;
        let ready = free[wanted].iter().rev().take_while(|index| home.region.memory.take(**index)).count();
        home.in_kernel.set(home.in_kernel.get() + ready);
        let going = free.len() - ready..;
        for index in free.drain(going).rev() {
            let buffer = &home.buffers[index as usize];
            buffer.place.set(Place::Filling);
            buffer.filled.set(0);
            each(index, home.region.pointer(index));
        }
    }

    /// Sets a free buffer aside for a receive: it counts as the kernel's until [`left_kernel`](Self::left_kernel).
    pub(crate) fn set_aside(&self) -> Option<BufferId> {
        let mut aside = None;
        self.move_to_kernel(1, |index, _| aside = Some(index));
        aside.map(|index| BufferId { start: 0, index, purpose: self.home.purpose })
    }

    /// Buffers in the kernel's ring.
    pub(crate) fn in_kernel(&self) -> usize {
        self.home.in_kernel.get()
    }

    /// Whether buffers are free that the kernel does not have.
    pub(crate) fn has_free(&self) -> bool {
        !self.home.free.borrow().is_empty()
    }

    /// Records that the kernel has filled the next `bytes` of a buffer, which `stays` in its ring for more.
    pub(crate) fn left_kernel(&self, index: u16, bytes: usize, stays: bool) -> BufferId {
        let home = &*self.home;
        let id = home.fill(index, bytes);
        home.drawn.set(home.drawn.get() + bytes);
        if !stays {
            home.in_kernel.set(home.in_kernel.get() - 1);
            home.stop_filling(index);
        }
        id
    }

    /// Records that a receive found no buffer.
    pub(crate) fn note_starved(&self) {
        self.home.starved.set(true);
    }

    /// The bytes that the kernel has filled, and whether a receive has starved, since the last call.
    pub(crate) fn take_demand(&self) -> (usize, bool) {
        (self.home.drawn.take(), self.home.starved.take())
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

    fn available(&self) -> usize {
        self.free.borrow().len() + self.in_kernel.get() + usize::from(self.current.get().is_some())
    }

    /// Whether a piece of so many bytes should not keep its buffer: any while no more than one in `reserve` of the buffers
    /// is available, which includes the one that is filling, so the last one always comes home; and while less than half
    /// is, one that is small against its buffer.
    pub(crate) fn is_short_for(&self, bytes: usize, reserve: usize) -> bool {
        let (available, count) = (self.available(), self.buffers.len());
        let small = bytes <= self.region.buffer_bytes() / 64;
        available <= (count / reserve).max(1) || (small && available < count / 2)
    }

    /// Takes the free buffer that came home last.
    fn take_free(&self) -> Option<u16> {
        let mut free = self.free.borrow_mut();
        let index = *free.last()?;
        if self.region.memory.take(index) { free.pop() } else { None }
    }

    /// Gives away the memory of a buffer of which `bytes` from its beginning are held by the caller, who is about to give
    /// the buffer back. Nothing if others hold some of it too, if it lies with others, or if the bytes fill less than
    /// half of it: so who holds what was given holds at most twice as much as was received.
    #[cfg(feature = "capi")]
    pub(crate) fn give_away(&self, index: u16, bytes: usize) -> Option<NonNull<u8>> {
        let buffer = &self.buffers[index as usize];
        let is_sole = buffer.place.get() == Place::Lent && buffer.pieces.get() == 1;
        if !is_sole || bytes < self.region.buffer_bytes().div_ceil(2) {
            return None;
        }
        let given = self.region.memory.give(index)?;
        // There is nothing to erase any more.
        buffer.filled.set(0);
        Some(given)
    }

    /// Takes the next `bytes` of a buffer that is filling.
    fn fill(&self, index: u16, bytes: usize) -> BufferId {
        let buffer = &self.buffers[index as usize];
        assert_eq!(buffer.place.get(), Place::Filling, "buffer {index} is not filling");
        let start = buffer.filled.get();
        let rest = self.region.buffer_bytes() - start as usize;
        assert!(bytes <= rest, "a completion claims {bytes} bytes of a buffer with {rest}");
        buffer.filled.set(start + bytes as u32);
        self.cut(index, start)
    }

    /// Lends a piece.
    fn cut(&self, index: u16, start: u32) -> BufferId {
        self.hold_again(index);
        BufferId { start, index, purpose: self.purpose }
    }

    /// Lends a piece of what is lent already.
    pub(crate) fn hold_again(&self, index: u16) {
        let pieces = &self.buffers[index as usize].pieces;
        pieces.set(pieces.get() + 1);
        self.lent.set(self.lent.get() + 1);
    }

    /// A buffer is full, or the kernel is done with it.
    fn stop_filling(&self, index: u16) {
        let buffer = &self.buffers[index as usize];
        buffer.place.set(Place::Lent);
        if buffer.pieces.get() == 0 {
            self.come_home(index);
        }
    }

    /// So many pieces of a buffer have ended.
    pub(crate) fn give_back(&self, index: u16, pieces: u32) {
        let buffer = &self.buffers[index as usize];
        let left = buffer.pieces.get().checked_sub(pieces).expect("a piece ends once");
        buffer.pieces.set(left);
        self.returned.set(self.returned.get() + u64::from(pieces));
        if left == 0 && buffer.place.get() == Place::Lent {
            self.come_home(index);
        }
    }

    fn come_home(&self, index: u16) {
        self.wipe(index);
        self.buffers[index as usize].place.set(Place::Free);
        self.free.borrow_mut().push(index);
    }

    /// Nobody holds a piece: the buffer begins anew.
    fn wipe(&self, index: u16) {
        let filled = self.buffers[index as usize].filled.replace(0);
        if self.zero_on_return && filled > 0 {
            // SAFETY: invariant 1: no lease holds a piece of the buffer and the kernel does not have it; no more than
            // `filled` bytes of it have been written.
            unsafe { self.region.pointer(index).write_bytes(0, filled as usize) }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
