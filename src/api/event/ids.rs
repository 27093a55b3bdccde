//! Ids of sockets: small integers in the order in which they are given out, and what any thread may know of one.
//!
//! An id has a place in a table, its value modulo [`PLACES`]; a place that is taken is skipped, so that many sockets may
//! be open at once and an id comes back only after 2^31 others. The word in the place tells whether the id lives, and
//! where: which shard has it, and its row there. Only the shard takes a word out; others read it, without a lock.
#![forbid(unsafe_code)]

use super::pages::Pages;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Names a socket of one [`OpenSocket`](super::OpenSocket): 1, 2, 3 and so on, never a descriptor of the system.
pub type SocketId = i32;

/// Sockets that may be open at once.
pub(super) const PLACES: usize = 1 << 20;

/// Places made at once: 8 KiB.
const PER_PAGE: usize = 1024;

/// Shards that a word can name.
pub(super) const SHARDS_MAX: usize = 1 << 7;

const ROW_SHIFT: u32 = 32;
const ROW_MASK: u64 = (1 << 21) - 1;
const SHARD_SHIFT: u32 = 53;
const LIVE: u64 = 1 << 60;
const DATAGRAM: u64 = 1 << 61;
const V6: u64 = 1 << 62;
const CONNECTED: u64 = 1 << 63;

/// What is known of an id that lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(u64);

impl Word {
    /// Which shard has the socket.
    pub(super) fn shard(self) -> usize {
        (self.0 >> SHARD_SHIFT) as usize & (SHARDS_MAX - 1)
    }

    /// Its row there, once the shard knows it.
    pub(super) fn row(self) -> Option<usize> {
        ((self.0 >> ROW_SHIFT & ROW_MASK) as usize).checked_sub(1)
    }

    /// For a socket for datagrams, whether it is one of IPv6.
    pub(super) fn datagram_v6(self) -> Option<bool> {
        (self.0 & DATAGRAM != 0).then_some(self.0 & V6 != 0)
    }

    /// Whether a socket for datagrams has a default destination.
    pub(super) fn is_connected(self) -> bool {
        self.0 & CONNECTED != 0
    }
}

/// The ids of one [`OpenSocket`](super::OpenSocket).
pub(super) struct Ids {
    last: AtomicU32,
    words: Pages<AtomicU64>,
}

impl Ids {
    pub(super) fn new() -> Ids {
        Ids { last: AtomicU32::new(0), words: Pages::new(PLACES, PER_PAGE) }
    }

    /// The next id, which lives from now on in the shard that `shard` chooses for it; none if every place is taken.
    /// `datagram_v6` is for sockets for datagrams: whether of IPv6.
    pub(super) fn reserve(
        &self,
        shard: impl Fn(SocketId) -> usize,
        datagram_v6: Option<bool>,
    ) -> Option<SocketId> {
        let kind = datagram_v6.map_or(0, |v6| DATAGRAM | if v6 { V6 } else { 0 });
        (0..PLACES).find_map(|_| {
            let id = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & i32::MAX as u32;
            let word = u64::from(id) | (shard(id as i32) as u64) << SHARD_SHIFT | LIVE | kind;
            let place = &self.words[id as usize % PLACES];
            let taken = place.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok().then_some(id as i32)
        })
    }

    fn place(&self, id: SocketId) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(id).ok()? % PLACES)
    }

    /// What is known of an id; nothing unless it lives.
    #[inline]
    pub(super) fn look(&self, id: SocketId) -> Option<Word> {
        let word = self.place(id)?.load(Ordering::Acquire);
        (word & LIVE != 0 && word as u32 == id as u32).then_some(Word(word))
    }

    /// The shard has given the socket a row.
    pub(super) fn put(&self, id: SocketId, row: usize) {
        self.change(id, |word| word & !(ROW_MASK << ROW_SHIFT) | (row as u64 + 1) << ROW_SHIFT);
    }

    /// A socket for datagrams has a default destination from now on.
    pub(super) fn connect(&self, id: SocketId) {
        self.change(id, |word| word | CONNECTED);
    }

    /// The id lives no longer.
    pub(super) fn release(&self, id: SocketId) {
        self.change(id, |_| 0);
    }

    fn change(&self, id: SocketId, change: impl Fn(u64) -> u64) {
        let Some(place) = self.place(id) else { return };
        let _ = place.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
            (word & LIVE != 0 && word as u32 == id as u32).then(|| change(word))
        });
    }

    #[cfg(test)]
    fn after(last: u32) -> Ids {
        Ids { last: AtomicU32::new(last), ..Ids::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_from_one_and_a_dead_one_is_not_used_again_soon() {
        let ids = Ids::new();
        let next = || ids.reserve(|id| id as usize % 2, None);
        assert_eq!([next(), next(), next()], [Some(1), Some(2), Some(3)]);
        assert_eq!(ids.look(2).map(Word::shard), Some(0));
        assert_eq!(ids.look(3).map(|word| (word.shard(), word.row())), Some((1, None)));
        ids.put(3, 0);
        assert_eq!(ids.look(3).and_then(Word::row), Some(0));
        ids.put(3, PLACES);
        assert_eq!(ids.look(3).and_then(Word::row), Some(PLACES));
        ids.release(3);
        assert_eq!((ids.look(3), ids.look(0), ids.look(-1), ids.look(i32::MAX)), (None, None, None, None));
        assert_eq!(next(), Some(4));
    }

    #[test]
    fn the_count_goes_on_at_zero_and_a_place_that_is_taken_is_skipped() {
        let ids = Ids::after(i32::MAX as u32 - 1);
        let next = || ids.reserve(|_| 0, None);
        assert_eq!([next(), next(), next()], [Some(i32::MAX), Some(0), Some(1)]);
        // The place of the first is that of PLACES - 1, which is taken.
        let ids = Ids { last: AtomicU32::new(PLACES as u32 - 2), words: ids.words };
        assert_eq!(ids.reserve(|_| 0, None), Some(PLACES as i32 + 2));
        assert!(ids.look(i32::MAX).is_some() && ids.look(PLACES as i32 - 1).is_none());
    }

    #[test]
    fn a_socket_for_datagrams_tells_its_family_and_whether_it_is_connected() {
        let ids = Ids::new();
        ids.reserve(|_| 0, Some(true));
        let word = ids.look(1).unwrap();
        assert_eq!((word.datagram_v6(), word.is_connected()), (Some(true), false));
        ids.connect(1);
        assert!(ids.look(1).unwrap().is_connected());
        ids.connect(2);
        assert!(ids.look(2).is_none());
    }
}
