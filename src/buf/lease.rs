//! [`Lease`]: the exclusive, temporary hold of received bytes.
//!
//! Most leases hold a piece of a pool buffer and give it back when dropped. A lease may also hold bytes on the heap: the
//! shard copies data that has to wait out of the pool when buffers run low, and partial reads put their rest
//! back as heap bytes. A lease shows filled bytes only; there is no way to reach the rest of its buffer.
#![allow(unsafe_code)]

use super::pool::{Home, Region};
use bytes::{Buf, Bytes};
use std::fmt;
use std::ops::Deref;
#[cfg(feature = "capi")]
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

/// Received bytes. Dropping it gives them back to its shard's pool.
///
/// A lease is `!Send`: to hand the bytes to another thread, turn it [into `Bytes`](Self::into_bytes), which
/// does not copy. A lease that is held, however short, keeps a whole buffer of the pool
/// ([`Limits::buffer_bytes`](crate::Limits)) from being used anew: a program that keeps leases for long should
/// [copy them out](Self::detach).
///
/// ```compile_fail
/// fn is_send<T: Send>() {}
/// is_send::<anabranch::Lease>();
/// ```
pub struct Lease {
    hold: Hold,
}

enum Hold {
    /// The index of the buffer as a full word: a lease is moved often, and half words stall the copies.
    Pool { home: Rc<Home>, index: u32, offset: u32, len: u32 },
    /// Boxed, because it is rare and would make every lease longer, and with it every future that waits for one.
    Heap(Box<Bytes>),
    /// No bytes.
    Empty,
}

const _: () = assert!(size_of::<Option<Lease>>() <= 24);

impl Lease {
    /// A lease of a piece that is held for it and has been filled.
    pub(crate) fn from_pool(home: Rc<Home>, index: u16, offset: u32, len: u32) -> Lease {
        debug_assert!((offset + len) as usize <= home.region().buffer_bytes());
        Lease { hold: Hold::Pool { home, index: u32::from(index), offset, len } }
    }

    /// A lease of bytes on the heap, which belong to no pool.
    pub fn from_bytes(bytes: Bytes) -> Lease {
        Lease { hold: Hold::Heap(Box::new(bytes)) }
    }

    /// A lease of nothing.
    pub(crate) fn empty() -> Lease {
        Lease { hold: Hold::Empty }
    }

    /// The number of bytes it holds.
    pub fn len(&self) -> usize {
        match &self.hold {
            Hold::Pool { len, .. } => *len as usize,
            Hold::Heap(bytes) => bytes.len(),
            Hold::Empty => 0,
        }
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it holds a buffer of the shard's pool (rather than bytes on the heap).
    pub fn is_pooled(&self) -> bool {
        matches!(self.hold, Hold::Pool { .. })
    }

    /// Forgets the first `n` bytes.
    ///
    /// # Panics
    ///
    /// If it holds fewer than `n` bytes.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len(), "cannot advance past the end of a lease");
        match &mut self.hold {
            Hold::Pool { offset, len, .. } => {
                *offset += n as u32;
                *len -= n as u32;
            }
            // Not `split_to`: of all bytes it drops the owner, whose destructor is foreign code (invariant 12).
            Hold::Heap(bytes) => Buf::advance(&mut **bytes, n),
            Hold::Empty => {}
        }
    }

    /// Keeps the first `n` bytes and forgets the rest; does nothing if it holds fewer.
    pub fn truncate(&mut self, n: usize) {
        match &mut self.hold {
            Hold::Pool { len, .. } => *len = (*len).min(u32::try_from(n).unwrap_or(u32::MAX)),
            Hold::Heap(bytes) => bytes.truncate(n),
            Hold::Empty => {}
        }
    }

    /// Takes the first `n` bytes off as a lease of their own, without copying them; keeps the rest.
    ///
    /// # Panics
    ///
    /// If it holds fewer than `n` bytes.
    pub fn split_to(&mut self, n: usize) -> Lease {
        assert!(n <= self.len(), "cannot split a lease behind its end");
        match &mut self.hold {
            Hold::Pool { home, index, offset, len } => {
                home.hold_again(*index as u16);
                let first = Lease::from_pool(Rc::clone(home), *index as u16, *offset, n as u32);
                *offset += n as u32;
                *len -= n as u32;
                first
            }
            Hold::Heap(bytes) => Lease::from_bytes(bytes.split_to(n)),
            Hold::Empty => Lease::empty(),
        }
    }

    /// Keeps the first `n` bytes; gives the rest as a lease of its own, without copying it.
    ///
    /// # Panics
    ///
    /// If it holds fewer than `n` bytes.
    pub fn split_off(&mut self, n: usize) -> Lease {
        let first = self.split_to(n);
        std::mem::replace(self, first)
    }

    /// The same bytes as [`Bytes`], without copying them; they may go to any thread.
    ///
    /// The pool gets them back when the last clone of the `Bytes` is dropped, wherever that happens.
    pub fn into_bytes(self) -> Bytes {
        match self.into_hold() {
            Hold::Heap(bytes) => *bytes,
            Hold::Empty => Bytes::new(),
            Hold::Pool { home, index, offset, len } => {
                let region = Arc::clone(home.region());
                Bytes::from_owner(Away { region, index: index as u16, offset, len })
            }
        }
    }

    /// Copies the bytes to the heap and gives the pool its own back at once.
    pub fn detach(self) -> Lease {
        if self.is_pooled() { Lease::from_bytes(Bytes::copy_from_slice(&self)) } else { self }
    }

    /// The bytes as memory of their own, which is the caller's to `free`: the buffer, if it holds one alone from the
    /// beginning and [fills half of it](Home::give_away); else the lease again.
    #[cfg(feature = "capi")]
    pub(crate) fn into_malloced(self) -> Result<NonNull<u8>, Lease> {
        match &self.hold {
            // What is left to give back is the buffer's place in its pool.
            Hold::Pool { home, index, offset: 0, len } => {
                home.give_away(*index as u16, *len as usize).ok_or(self)
            }
            _ => Err(self),
        }
    }

    /// The lease as it may be kept for a while: copied to the heap if it [pins](Self::pins) a buffer.
    pub(crate) fn unpinned(self, reserve: usize) -> Lease {
        if self.pins(reserve) { self.detach() } else { self }
    }

    /// Whether it keeps a buffer that is wanted: less than one in `reserve` of the buffers of its pool is available, or
    /// less than half and it is short.
    pub(crate) fn pins(&self, reserve: usize) -> bool {
        matches!(&self.hold, Hold::Pool { home, len, .. } if home.is_short_for(*len as usize, reserve))
    }

    /// Takes the hold out without running the drop that returns the buffer.
    fn into_hold(self) -> Hold {
        let mut lease = self;
        std::mem::replace(&mut lease.hold, Hold::Empty)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Hold::Pool { home, index, .. } = &self.hold {
            home.give_back(*index as u16, 1);
        }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.hold {
            // SAFETY: invariant 1: while the lease lives nobody writes to its piece: the kernel and receives fill
            // what lies behind, and the buffer does not come home. `Pool::lend` checked that the piece has been
            // filled; the pool zeroed the memory when it was allocated, so every byte is initialised.
            Hold::Pool { home, index, offset, len } => unsafe {
                let start = home.region().pointer(*index as u16).add(*offset as usize);
                std::slice::from_raw_parts(start, *len as usize)
            },
            Hold::Heap(bytes) => bytes,
            Hold::Empty => &[],
        }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes, {})", self.len(), if self.is_pooled() { "pool" } else { "heap" })
    }
}

/// The owner of a piece whose lease became `Bytes`: its drop posts the piece to its home.
struct Away {
    region: Arc<Region>,
    index: u16,
    offset: u32,
    len: u32,
}

impl AsRef<[u8]> for Away {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: invariant 1: the range was checked when the lease was made; until this owner drops nobody
        // writes to the piece, and the region it refers to keeps the memory.
        unsafe {
            let start = self.region.pointer(self.index).add(self.offset as usize);
            std::slice::from_raw_parts(start, self.len as usize)
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.region.give_back(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_leases_advance_and_truncate() {
        let mut lease = Lease::from_bytes(Bytes::from_static(b"abcdef"));
        lease.advance(2);
        lease.truncate(3);
        assert_eq!(&*lease, b"cde");
        assert!(!lease.is_pooled());
    }

    #[test]
    fn a_heap_lease_splits_anywhere() {
        for at in 0..=6 {
            let mut lease = Lease::from_bytes(Bytes::from_static(b"abcdef"));
            let rest = lease.split_off(at);
            assert_eq!((&*lease, &*rest), b"abcdef".split_at(at));
        }
    }

    #[test]
    #[should_panic(expected = "cannot split a lease behind its end")]
    fn splitting_behind_the_end_panics() {
        Lease::from_bytes(Bytes::from_static(b"ab")).split_to(3);
    }

    #[test]
    #[should_panic(expected = "cannot advance past the end")]
    fn advancing_past_the_end_panics() {
        Lease::from_bytes(Bytes::from_static(b"ab")).advance(3);
    }
}
