//! [`Waiting`]: the datagrams of one socket that the system has not taken yet.
//!
//! All that is sent in a callback leaves together at its end. So only what is left of earlier turns waits because the
//! system takes no more; where nothing is, what was sent since counts as taken at once, as the original would.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Datagrams given to the endpoint of which it has not told what came.
#[derive(Default)]
pub(super) struct Waiting {
    /// The bytes of each, the oldest first.
    sizes: VecDeque<u32>,
    /// The sum.
    bytes: u64,
    /// The turn of the latest change.
    turn: u64,
    /// As many of the bytes are of earlier turns.
    early: u64,
}

impl Waiting {
    /// One is given to the endpoint.
    pub(super) fn give(&mut self, turn: u64, bytes: usize) {
        self.see(turn);
        // No datagram is as long as that, so nothing is cut.
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.sizes.push_back(size);
        self.bytes += u64::from(size);
    }

    /// The oldest has left, or will not.
    pub(super) fn settle(&mut self, turn: u64) {
        self.see(turn);
        let size = u64::from(self.sizes.pop_front().unwrap_or(0));
        self.bytes -= size;
        self.early = self.early.saturating_sub(size);
    }

    fn see(&mut self, turn: u64) {
        if self.turn != turn {
            (self.turn, self.early) = (turn, self.bytes);
        }
    }

    /// Bytes that wait.
    pub(super) fn pending(&self) -> u64 {
        if self.early > 0 { self.bytes } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_in_one_turn_waits_only_behind_what_is_left_of_others() {
        let mut waiting = Waiting::default();
        waiting.give(1, 100);
        waiting.give(1, 50);
        assert_eq!(waiting.pending(), 0);
        waiting.settle(2);
        assert_eq!(waiting.pending(), 50);
        waiting.give(2, 7);
        assert_eq!(waiting.pending(), 57);
        waiting.settle(2);
        assert_eq!(waiting.pending(), 0, "nothing of an earlier turn is left");
        waiting.settle(3);
        waiting.give(3, 9);
        assert_eq!(waiting.pending(), 0);
    }
}
