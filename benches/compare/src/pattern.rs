//! The bytes that are sent, so that each received byte can be checked: a sequence without short period, entered at
//! another place by each connection.

/// A prime, so that no message size divides it.
const PERIOD: u64 = 65_521;

/// The most bytes that can be asked for at once.
pub const PIECE_MAX: usize = 256 * 1024;

/// The sequence, long enough that each piece of it is one slice.
pub struct Pattern(Vec<u8>);

impl Pattern {
    pub fn new() -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut period = Vec::with_capacity(PERIOD as usize);
        for _ in 0..PERIOD {
            // xorshift64: period and seed are what matter here, not quality.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            period.push((state >> 32) as u8);
        }
        let bytes = period.iter().copied().cycle().take(PERIOD as usize + PIECE_MAX).collect();
        Pattern(bytes)
    }

    /// `len` bytes of stream `id` from `position` on.
    pub fn at(&self, id: usize, position: u64, len: usize) -> &[u8] {
        let start = (id as u64 * 7919 + position) % PERIOD;
        &self.0[start as usize..][..len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_parts_of_one_sequence() {
        let pattern = Pattern::new();
        let whole = pattern.at(3, 100, 1000).to_vec();
        assert_eq!(whole[500..600], *pattern.at(3, 600, 100));
        assert_ne!(whole[..32], *pattern.at(4, 100, 32));
        assert_eq!(pattern.at(9, 65_520, PIECE_MAX).len(), PIECE_MAX);
    }
}
