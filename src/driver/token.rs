//! [`Token`]: the name of an operation in flight.
#![forbid(unsafe_code)]

use std::fmt;
use std::num::NonZeroU64;

/// Names one submitted operation: the index of its slot and the generation of its use (invariant 7).
///
/// A token that outlives its operation names nothing; the next operation in the same slot has another
/// generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(NonZeroU64);

/// Slots that a token can tell apart.
pub const OPERATIONS_MAX: usize = 1 << 24;

/// What names no operation: no slot has this index and generation 0.
const NOTHING: NonZeroU64 = NonZeroU64::new((OPERATIONS_MAX as u64 - 1) << 8).unwrap();

impl Token {
    /// The low byte is left free: the ring backend marks there how it encoded the operation.
    #[inline]
    pub(crate) fn new(index: usize, generation: u32) -> Token {
        debug_assert!(index < OPERATIONS_MAX);
        let bits = u64::from(generation) << 32 | (index as u64) << 8;
        Token(NonZeroU64::new(bits).unwrap_or(NOTHING))
    }

    #[inline]
    pub(crate) fn index(self) -> usize {
        (self.0.get() >> 8) as usize & (OPERATIONS_MAX - 1)
    }

    #[inline]
    pub(crate) fn generation(self) -> u32 {
        (self.0.get() >> 32) as u32
    }

    /// The token with `mark` in its free byte, as it travels through the kernel.
    #[inline]
    pub(crate) fn marked(self, mark: u8) -> u64 {
        self.0.get() | u64::from(mark)
    }

    /// Takes apart what [`marked`](Self::marked) made.
    #[inline]
    pub(crate) fn unmarked(bits: u64) -> (Token, u8) {
        (Token(NonZeroU64::new(bits & !0xff).unwrap_or(NOTHING)), bits as u8)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}:{})", self.index(), self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_way_through_the_kernel() {
        for (index, generation, mark) in [(0, 1, 0), (OPERATIONS_MAX - 1, u32::MAX, 255), (77, 3, 2)] {
            let token = Token::new(index, generation);
            assert_eq!(Token::unmarked(token.marked(mark)), (token, mark));
            assert_eq!((token.index(), token.generation()), (index, generation));
        }
    }
}
