//! The names of connections.
#![forbid(unsafe_code)]

use std::fmt;

/// Which connection of a component. A number is never given to another connection of the same component, so an id that
/// was kept too long finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

/// Bits of the number within a shard.
const SERIAL_BITS: u32 = 50;

impl ConnId {
    pub(crate) fn new(shard: usize, serial: u64) -> ConnId {
        debug_assert!(serial < 1 << SERIAL_BITS);
        ConnId((shard as u64) << SERIAL_BITS | serial)
    }

    /// The shard where it lives, counted among those of its component.
    pub fn shard(self) -> usize {
        (self.0 >> SERIAL_BITS) as usize
    }

    /// The id as a number, for logs and for foreign tables.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The id that [`as_u64`](Self::as_u64) gave. Any number is an id, perhaps of nobody.
    pub fn from_u64(id: u64) -> ConnId {
        ConnId(id)
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.shard(), self.0 & ((1 << SERIAL_BITS) - 1))
    }
}
