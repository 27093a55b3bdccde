//! [`Pull`]: received bytes that the program fetches as it likes.
#![forbid(unsafe_code)]

use super::PAYLOAD_BYTES_MAX;
use super::search::{Pattern, Progress};
use crate::buf::Lease;
use crate::error::Full;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

/// What waits is copied while no more than one in so many buffers of its pool is free, as in the queues of a shard.
const RESERVE: usize = 4;

/// Leases up to this length are copied behind others that wait: many of them would take more memory than their bytes.
const JOINED_BYTES_MAX: usize = 1024;

/// Received bytes, kept until the program fetches as many as it wants: HP-Socket's Pull model, with a bound.
///
/// What is fetched within one lease is a piece of it, without a copy; what several brought is gathered. Small leases are
/// joined when they wait, and all are copied out of the pool while it is short of buffers, so a slow consumer cannot
/// starve other connections.
///
/// ```
/// use anabranch::{Lease, codec::Pull};
///
/// let mut pull = Pull::default();
/// pull.push(Lease::from_bytes("GET /".into())).unwrap();
/// assert!(pull.find(b"\r\n").is_none());
/// pull.push(Lease::from_bytes("index\r\nrest".into())).unwrap();
/// let end = pull.find(b"\r\n").unwrap();
/// assert_eq!(&*pull.fetch(end).unwrap(), b"GET /index");
/// assert!(pull.skip(2));
/// assert_eq!(pull.len(), 4);
/// ```
pub struct Pull {
    leases: VecDeque<Lease>,
    /// Small ones that came behind the last lease.
    joined: Vec<u8>,
    len: usize,
    max: usize,
    /// What was looked for last, and how far.
    search: Option<(Pattern, Progress)>,
}

impl Pull {
    /// Keeps at most so many bytes, or one lease of any length. It should not be less than what is fetched at once.
    pub fn new(bytes_max: usize) -> Pull {
        Pull { leases: VecDeque::new(), joined: Vec::new(), len: 0, max: bytes_max, search: None }
    }

    /// The bound.
    pub fn bytes_max(&self) -> usize {
        self.max
    }

    /// Keeps what was received, behind what is there.
    ///
    /// # Errors
    ///
    /// Gives the lease back if there would be more bytes than the bound; fetch some first, and do not receive
    /// meanwhile. One that comes when there are none is always taken.
    pub fn push(&mut self, lease: Lease) -> Result<(), Full<Lease>> {
        if self.len > 0 && lease.len() > self.max.saturating_sub(self.len) {
            return Err(Full(lease));
        }
        if lease.is_empty() {
            return Ok(());
        }
        self.len += lease.len();
        if self.len > lease.len() && lease.len() <= JOINED_BYTES_MAX {
            self.joined.extend_from_slice(&lease);
        } else {
            self.seal();
            self.leases.push_back(lease.unpinned(RESERVE));
        }
        Ok(())
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `n` bytes, which stay; `None` if there are fewer. They are copied only if they do not lie together.
    pub fn peek(&self, n: usize) -> Option<Cow<'_, [u8]>> {
        if n > self.len {
            return None;
        }
        let first = self.pieces().next().unwrap_or_default();
        Some(first.get(..n).map_or_else(|| Cow::Owned(self.gathered(n)), Cow::Borrowed))
    }

    /// Takes the first `n` bytes; `None`, and nothing taken, if there are fewer. They are copied only if they do not lie
    /// together.
    pub fn fetch(&mut self, n: usize) -> Option<Lease> {
        if n > self.len {
            return None;
        }
        if self.leases.is_empty() {
            self.seal();
        }
        let fetched = match self.leases.front_mut() {
            _ if n == 0 => Lease::empty(),
            Some(first) if n < first.len() => first.split_to(n),
            Some(first) if n == first.len() => self.leases.pop_front()?,
            _ => {
                let gathered = self.gathered(n);
                self.remove(n);
                Lease::from_bytes(gathered.into())
            }
        };
        self.forget(n);
        Some(fetched)
    }

    /// Drops the first `n` bytes; `false`, and nothing dropped, if there are fewer.
    pub fn skip(&mut self, n: usize) -> bool {
        let are_there = n <= self.len;
        if are_there {
            self.remove(n);
            self.forget(n);
        }
        are_there
    }

    /// How many bytes stand before the first `delimiter`; `None` if it is not there.
    ///
    /// Asked again for the same delimiter it goes on where it was, also after bytes were pushed or fetched, so no byte is
    /// looked at twice.
    ///
    /// # Panics
    ///
    /// If the delimiter is empty.
    pub fn find(&mut self, delimiter: &[u8]) -> Option<usize> {
        let (pattern, mut progress) = match self.search.take() {
            Some((pattern, progress)) if pattern.bytes() == delimiter => (pattern, progress),
            _ => (Pattern::new(delimiter), Progress::default()),
        };
        // It may have been found before; else it ends in what is new.
        let found = pattern.find(&mut progress, &[])
            || self
                .last(self.len - progress.seen())
                .into_iter()
                .any(|piece| pattern.find(&mut progress, piece));
        let at = progress.candidate();
        self.search = Some((pattern, progress));
        found.then_some(at)
    }

    fn pieces(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.leases
            .iter()
            .map(|lease| &**lease)
            .chain(Some(&self.joined[..]).filter(|joined| !joined.is_empty()))
    }

    /// The last `n` bytes. From behind, to come to what is new without passing by all that is old.
    fn last(&self, mut n: usize) -> Vec<&[u8]> {
        let mut last = Vec::new();
        let mut pieces = self.pieces().rev();
        while n > 0 {
            let Some(piece) = pieces.next() else { break };
            let of_it = n.min(piece.len());
            last.push(&piece[piece.len() - of_it..]);
            n -= of_it;
        }
        last.reverse();
        last
    }

    /// A copy of the first `n` bytes.
    fn gathered(&self, n: usize) -> Vec<u8> {
        let mut gathered = Vec::with_capacity(n);
        for piece in self.pieces() {
            let missing = n - gathered.len();
            gathered.extend_from_slice(&piece[..missing.min(piece.len())]);
            if missing <= piece.len() {
                break;
            }
        }
        gathered
    }

    /// Drops the first `n` bytes of the pieces.
    fn remove(&mut self, mut n: usize) {
        while n > 0 {
            if self.leases.is_empty() {
                self.seal();
            }
            match self.leases.front_mut() {
                Some(first) if n < first.len() => {
                    first.advance(n);
                    return;
                }
                Some(first) => {
                    n -= first.len();
                    self.leases.pop_front();
                }
                None => return,
            }
        }
    }

    /// Counts the first `n` bytes as gone.
    fn forget(&mut self, n: usize) {
        self.len -= n;
        if let Some((_, progress)) = &mut self.search {
            progress.forget(n);
        }
    }

    /// Makes a lease of what is joined.
    fn seal(&mut self) {
        if !self.joined.is_empty() {
            self.leases.push_back(Lease::from_bytes(std::mem::take(&mut self.joined).into()));
        }
    }
}

impl Default for Pull {
    /// Keeps at most [`PAYLOAD_BYTES_MAX`] bytes.
    fn default() -> Pull {
        Pull::new(PAYLOAD_BYTES_MAX)
    }
}

impl fmt::Debug for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pull({} of {} bytes)", self.len, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::super::search::LOOKED_AT;
    use super::*;
    use crate::buf::{Pool, filled};
    use bytes::Bytes;

    fn of(pieces: &[&'static str]) -> Pull {
        let mut pull = Pull::default();
        pieces
            .iter()
            .for_each(|piece| pull.push(Lease::from_bytes(Bytes::from_static(piece.as_bytes()))).unwrap());
        pull
    }

    #[test]
    fn bytes_are_peeked_and_fetched_across_leases_or_not_at_all() {
        for n in 0..=6 {
            let mut pull = of(&["ab", "cd", "ef"]);
            assert_eq!(&*pull.peek(n).unwrap(), &b"abcdef"[..n]);
            assert_eq!(&*pull.fetch(n).unwrap(), &b"abcdef"[..n]);
            assert_eq!(pull.len(), 6 - n);
            assert!(pull.peek(7 - n).is_none() && pull.fetch(7 - n).is_none() && !pull.skip(7 - n));
            assert!(pull.skip(6 - n) && pull.is_empty());
        }
    }

    #[test]
    fn the_bound_gives_the_lease_back_but_for_the_first() {
        let mut pull = Pull::new(4);
        pull.push(Lease::from_bytes("longer".into())).unwrap();
        let Full(back) = pull.push(Lease::from_bytes("x".into())).unwrap_err();
        assert!(pull.skip(3));
        pull.push(back).unwrap();
        assert_eq!(&*pull.fetch(4).unwrap(), b"gerx");
    }

    #[test]
    fn what_is_looked_for_is_found_across_leases_and_again() {
        let mut pull = of(&["ab\r", "\ncd", "\r\n"]);
        assert_eq!((pull.find(b"\r\n"), pull.find(b"\r\n")), (Some(2), Some(2)));
        assert!(pull.skip(1));
        assert_eq!(pull.find(b"\r\n"), Some(1));
        assert!(pull.skip(3));
        assert_eq!((pull.find(b"\r\n"), pull.find(b"\r\n")), (Some(2), Some(2)));
        assert_eq!((pull.find(b"d"), pull.find(b"x")), (Some(1), None));
    }

    #[test]
    fn no_byte_is_looked_at_twice_when_they_come_and_go_one_by_one() {
        let mut pull = Pull::default();
        let before = LOOKED_AT.get();
        for n in 0..20_000 {
            pull.push(Lease::from_bytes(Bytes::from_static(b"a"))).unwrap();
            assert_eq!(pull.find(b"aab"), None);
            if n % 3 == 2 {
                assert!(pull.skip(1));
            }
        }
        assert_eq!(LOOKED_AT.get() - before, 20_000);
        assert!(pull.leases.len() <= 2, "small leases are joined");
    }

    #[test]
    fn what_is_fetched_within_a_lease_is_a_piece_of_it() {
        let pool = Pool::new(8, 4096, Box::new(|| {}));
        let mut pull = Pull::default();
        pull.push(filled(&pool, &[1; 4000])).unwrap();
        pull.push(filled(&pool, &[2; 4000])).unwrap();
        assert!(matches!(pull.peek(4000), Some(Cow::Borrowed(_))));
        assert!(pull.fetch(1000).unwrap().is_pooled());
        assert!(pull.fetch(3000).unwrap().is_pooled());
        assert!(pull.fetch(4000).unwrap().is_pooled());
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn a_slow_consumer_leaves_buffers_to_others() {
        let pool = Pool::new(8, 4096, Box::new(|| {}));
        let mut pull = Pull::new(1 << 20);
        for _ in 0..100 {
            pull.push(filled(&pool, &[1; 4000])).unwrap();
        }
        assert_eq!(pull.len(), 400_000);
        assert!(pool.available() >= 2, "a quarter is left: {}", pool.available());
    }
}
