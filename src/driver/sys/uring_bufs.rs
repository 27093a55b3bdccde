//! The ring of receive buffers that is shared with the kernel.
//!
//! Entries are written first; then one *release* store of the tail publishes them all. The kernel takes them
//! in order and never gives one back unless a completion names it. Where it can, it fills a buffer piece by piece
//! and says with each whether it goes on with the same one. The ring keeps the pool's memory alive and must be
//! unregistered, with nothing in flight, before its own memory is freed; else it is leaked whole.
//!
//! The kernel does not get every free buffer: it uses them in turn, and what it uses in turn should fit into the
//! processor's caches. [`Supply`] says how many.
#![allow(unsafe_code)]

use crate::buf::{BufferId, Pool, Region};
use crate::driver::Pools;
use crate::driver::completion::RawCompletion;
use crate::driver::sys::APART_GROUP;
use crate::driver::token::Token;
use io_uring::{IoUring, cqueue};
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
/// `IOU_PBUF_RING_INC`: buffers are consumed incrementally (Linux 6.12).
const INCREMENTAL: u16 = 2;
/// In the name of a buffer, which is below 32 768 otherwise: it lies apart.
const APART: u16 = 1 << 15;

/// The rings of a backend.
pub(crate) struct Buffers {
    pub(crate) streams: Option<BufferRing>,
    pub(crate) apart: Option<BufferRing>,
    pub(crate) datagrams: Option<BufferRing>,
}

impl Buffers {
    /// Moves free buffers to the kernel.
    pub(crate) fn publish(&mut self, pools: &Pools) {
        if let Some(bufs) = &mut self.streams {
            bufs.publish(&pools.streams);
        }
        if let (Some(bufs), Some(pool)) = (&mut self.apart, &pools.apart) {
            bufs.publish(pool);
        }
        if let (Some(bufs), Some(pool)) = (&mut self.datagrams, &pools.datagrams) {
            bufs.publish(pool);
        }
    }

    /// The raw completion of an entry; `datagram` says which ring its buffer is of. To be asked once for each entry,
    /// in order. The release of a zero-copy send's payload is its terminal completion.
    #[inline]
    pub(crate) fn translate(
        &self,
        token: Token,
        result: i32,
        flags: u32,
        datagram: bool,
        pools: &Pools,
    ) -> RawCompletion {
        let buffer = cqueue::buffer_select(flags).and_then(|name| match (datagram, &self.streams) {
            (false, Some(bufs)) if name & APART == 0 => bufs.picked(&pools.streams, name, result, flags),
            (false, _) => self.apart.as_ref()?.picked(pools.apart.as_ref()?, name & !APART, result, flags),
            (true, _) => self.datagrams.as_ref()?.picked(pools.datagrams.as_ref()?, name, result, flags),
        });
        RawCompletion { token, result, more: cqueue::more(flags), buffer }
    }

    /// Takes the rings from the kernel. Nothing may be in flight.
    pub(crate) fn unregister(&mut self, ring: &IoUring) {
        for bufs in [self.streams.take(), self.apart.take(), self.datagrams.take()].into_iter().flatten() {
            bufs.unregister(ring);
        }
    }
}

/// The kernel's ring of free buffers.
pub(crate) struct BufferRing {
    entries: NonNull<Entry>,
    layout: Layout,
    mask: u16,
    tail: u16,
    group: u16,
    incremental: bool,
    /// The pool that it serves and how much of it the kernel shall have, from the first time it is published to.
    serves: Option<(Arc<Region>, Supply)>,
}

impl BufferRing {
    /// Registers an empty ring that can hold `count` buffers, at most 32 768. With `incremental` the kernel fills
    /// each piece by piece, or refuses the ring if it cannot.
    pub(crate) fn register(
        ring: &IoUring,
        group: u16,
        count: usize,
        incremental: bool,
    ) -> io::Result<BufferRing> {
        let count = count.next_power_of_two();
        let layout = Layout::array::<Entry>(count)
            .and_then(|layout| layout.align_to(PAGE))
            .map_err(io::Error::other)?;
        // SAFETY: invariant 1 (ring memory): the layout is not empty.
        let entries =
            NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?.cast::<Entry>();
        let address = entries.as_ptr() as u64;
        let mask = (count - 1) as u16;
        let mut bufs = BufferRing { entries, layout, mask, tail: 0, group, incremental, serves: None };
        let flags = if incremental { INCREMENTAL } else { 0 };
        // SAFETY: invariant 11: the memory is page-aligned, large enough, and lives until `unregister` or for
        // ever.
        let registered =
            unsafe { ring.submitter().register_buf_ring_with_flags(address, count as u16, group, flags) };
        match registered {
            Ok(()) => Ok(bufs),
            Err(error) => {
                bufs.free();
                Err(error)
            }
        }
    }

    /// Moves free buffers of the pool to the kernel, as many as it shall have. It is always the same pool.
    fn publish(&mut self, pool: &Pool) {
        let first = if self.group == APART_GROUP { APART_BYTES_AT_FIRST } else { BYTES_AT_FIRST };
        let (_, supply) = self.serves.get_or_insert_with(|| {
            assert!(pool.count() <= self.mask as usize + 1, "the ring can hold every buffer of the pool");
            (pool.region(), Supply::new(pool.count(), pool.buffer_bytes(), first))
        });
        let (drawn, starved) = pool.take_demand();
        supply.on_turn(drawn, starved);
        let missing = supply.target.saturating_sub(pool.in_kernel());
        if missing == 0 || !pool.has_free() {
            return;
        }
        let len = pool.buffer_bytes() as u32;
        let (entries, mask) = (self.entries, self.mask);
        let name = if self.group == APART_GROUP { APART } else { 0 };
        let mut tail = self.tail;
        pool.move_to_kernel(missing, |index, address| {
            // SAFETY: invariant 1: the index is masked, and the kernel does not read entries at or beyond the
            // published tail. The fields are written one by one, so the tail inside entry 0 is left alone.
            unsafe {
                let entry = entries.as_ptr().add((tail & mask) as usize);
                (&raw mut (*entry).address).write(address as u64);
                (&raw mut (*entry).len).write(len);
                (&raw mut (*entry).id).write(name | index);
            }
            tail = tail.wrapping_add(1);
        });
        self.tail = tail;
        // SAFETY: invariant 1: the tail of the first entry is aligned for a u16 and is shared with the kernel,
        // which reads it with acquire; release makes the entries above visible first.
        unsafe { AtomicU16::from_ptr(&raw mut (*self.entries.as_ptr()).tail).store(tail, Ordering::Release) };
    }

    /// The piece that a completion with this result and these flags has filled.
    #[inline]
    fn picked(&self, pool: &Pool, index: u16, result: i32, flags: u32) -> Option<BufferId> {
        if !self.incremental {
            return Some(pool.left_kernel(index, pool.buffer_bytes(), false));
        }
        // A receive that brought nothing has taken nothing, whatever it names: the buffer stays the kernel's.
        let bytes = usize::try_from(result).ok().filter(|bytes| *bytes > 0)?;
        Some(pool.left_kernel(index, bytes, cqueue::buffer_more(flags)))
    }

    /// Takes the ring from the kernel and frees it. Nothing may be in flight.
    fn unregister(mut self, ring: &IoUring) {
        match ring.submitter().unregister_buf_ring(self.group) {
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

/// What the kernel has at first.
const BYTES_AT_FIRST: usize = 1 << 20;
/// The same of buffers that lie apart, which not every program comes to use.
const APART_BYTES_AT_FIRST: usize = 1 << 17;
/// How many turns of little use make the supply smaller.
const QUIET_TURNS: u32 = 4096;

/// How many buffers the kernel shall have. A receive that finds none ends and has to be armed anew, which is dear;
/// so the supply grows as soon as one turn takes more than half of it, and falls slowly.
#[derive(Debug)]
struct Supply {
    target: usize,
    least: usize,
    most: usize,
    buffer_bytes: usize,
    /// Since the supply was looked at last: turns, and the most bytes that one of them took.
    turns: u32,
    peak: usize,
}

impl Supply {
    fn new(count: usize, buffer_bytes: usize, first_bytes: usize) -> Supply {
        let least = (first_bytes / buffer_bytes).max(2).min(count);
        Supply { target: least, least, most: count, buffer_bytes, turns: 0, peak: 0 }
    }

    /// One turn has drawn so many bytes, or more than there were.
    fn on_turn(&mut self, drawn: usize, starved: bool) {
        self.turns += 1;
        self.peak = self.peak.max(drawn);
        if starved || drawn > self.target * self.buffer_bytes / 2 {
            self.target = (self.target * 2).min(self.most);
            (self.turns, self.peak) = (0, 0);
        } else if self.turns >= QUIET_TURNS {
            if self.peak < self.target * self.buffer_bytes / 8 {
                self.target = (self.target / 2).max(self.least);
            }
            (self.turns, self.peak) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supply_grows_at_once_up_to_everything_and_falls_slowly() {
        let mut supply = Supply::new(64, 256 * 1024, BYTES_AT_FIRST);
        assert_eq!(supply.target, 4, "a megabyte");
        supply.on_turn(512 * 1024, false);
        assert_eq!(supply.target, 4, "half of it was enough");
        supply.on_turn(512 * 1024 + 1, false);
        assert_eq!(supply.target, 8);
        for _ in 0..10 {
            supply.on_turn(0, true);
        }
        assert_eq!(supply.target, 64);
        for halved in [32, 16, 8, 4, 4] {
            (0..QUIET_TURNS).for_each(|_| supply.on_turn(1000, false));
            assert_eq!(supply.target, halved);
        }
    }

    #[test]
    fn what_is_used_now_and_then_stays() {
        let mut supply = Supply::new(1024, 16 * 1024, BYTES_AT_FIRST);
        supply.on_turn(0, true);
        for turn in 0..10 * QUIET_TURNS {
            supply.on_turn(if turn % 1000 == 0 { 300 * 1024 } else { 0 }, false);
        }
        assert_eq!(supply.target, 128);
    }

    #[test]
    fn a_small_pool_is_supplied_whole() {
        for count in 1..=2 {
            let mut supply = Supply::new(count, 16 << 20, BYTES_AT_FIRST);
            supply.on_turn(100 << 20, true);
            assert_eq!(supply.target, count);
        }
        assert_eq!(Supply::new(3, 16 << 20, BYTES_AT_FIRST).target, 2);
    }
}
