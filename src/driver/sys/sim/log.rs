//! What happened in a simulation, as lines of text, and a hash over all of them.
//!
//! Two runs are the same if their hashes are. Only the last lines are kept unless everything is asked for, and the
//! strings are used again, because a simulation writes millions of lines.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::time::Duration;

/// So many lines are kept in any case.
const TAIL: usize = 256;

/// So many of the marked lines are kept.
const MARKED: usize = 24;

/// The log of a simulation.
#[derive(Debug)]
pub(crate) struct Log {
    hash: u64,
    lines: u64,
    line: String,
    ring: Vec<String>,
    everything: Option<String>,
    /// The last lines that matter more than others, with their numbers.
    marked: VecDeque<(u64, String)>,
}

impl Log {
    pub(crate) fn new(keep_all: bool) -> Log {
        Log {
            hash: 0x51_7c_c1_b7_27_22_0a_95,
            lines: 0,
            line: String::new(),
            ring: Vec::new(),
            everything: keep_all.then(String::new),
            marked: VecDeque::new(),
        }
    }

    /// Appends one line.
    pub(crate) fn write(&mut self, now: Duration, what: fmt::Arguments<'_>) {
        self.line.clear();
        // Writing to a string cannot fail.
        let _ = write!(self.line, "{}.{:06} {}", now.as_secs(), now.subsec_micros(), what);
        self.hash = mix(self.hash, self.line.as_bytes());
        if let Some(everything) = &mut self.everything {
            everything.push_str(&self.line);
            everything.push('\n');
        }
        let place = (self.lines % TAIL as u64) as usize;
        match self.ring.get_mut(place) {
            Some(kept) => std::mem::swap(kept, &mut self.line),
            None => self.ring.push(std::mem::take(&mut self.line)),
        }
        self.lines += 1;
    }

    /// The last line matters: it is kept longer than others, as what explains a failure is often further back.
    pub(crate) fn mark(&mut self) {
        let Some(number) = self.lines.checked_sub(1) else { return };
        if self.marked.len() == MARKED {
            self.marked.pop_front();
        }
        let line = self.ring[(number % TAIL as u64) as usize].clone();
        self.marked.push_back((number, line));
    }

    /// The marked lines that came before the last `count` lines, the oldest first.
    pub(crate) fn marked_before(&self, count: usize) -> impl Iterator<Item = &str> {
        let before = self.lines.saturating_sub(count as u64);
        self.marked.iter().filter(move |(number, _)| *number < before).map(|(_, line)| line.as_str())
    }

    /// From now on every line is kept.
    pub(crate) fn keep_all(&mut self) {
        self.everything.get_or_insert_with(String::new);
    }

    /// A hash over all lines so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The number of lines so far.
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// The last lines, the oldest first; at most 256.
    pub(crate) fn tail(&self, count: usize) -> Vec<&str> {
        let kept = self.ring.len();
        let newest = (self.lines % TAIL as u64) as usize;
        let oldest = if kept < TAIL { 0 } else { newest };
        let skipped = kept.saturating_sub(count);
        (skipped..kept).map(|index| self.ring[(oldest + index) % kept].as_str()).collect()
    }

    /// Every line, if they are kept; otherwise nothing.
    pub(crate) fn all(&self) -> &str {
        self.everything.as_deref().unwrap_or("")
    }
}

fn mix(mut hash: u64, bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut step = |word: u64| hash = (hash.rotate_left(29) ^ word).wrapping_mul(FACTOR);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        step(u64::from_le_bytes(word));
    }
    let mut word = [0; 8];
    word[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    step(u64::from_le_bytes(word));
    // The length keeps "a" and "a\0" apart.
    step(bytes.len() as u64);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_every_line_and_on_its_time() {
        let hash = |time, text: &str| {
            let mut log = Log::new(false);
            log.write(Duration::from_micros(time), format_args!("{text}"));
            log.hash()
        };
        assert_eq!(hash(1, "one"), hash(1, "one"));
        assert_ne!(hash(1, "one"), hash(2, "one"));
        assert_ne!(hash(1, "one"), hash(1, "two"));
    }

    #[test]
    fn marked_lines_outlive_the_tail() {
        let mut log = Log::new(false);
        for number in 0..1000 {
            log.write(Duration::from_secs(number), format_args!("line {number}"));
            if number % 100 == 0 {
                log.mark();
            }
        }
        let marked: Vec<&str> = log.marked_before(100).collect();
        assert_eq!((marked.len(), marked[0]), (9, "0.000000 line 0"));
        assert_eq!(log.marked_before(99).last(), Some("900.000000 line 900"));
    }

    #[test]
    fn the_tail_is_the_last_lines_in_order() {
        let mut log = Log::new(true);
        for number in 0..1000 {
            log.write(Duration::from_secs(number), format_args!("line {number}"));
        }
        assert_eq!(log.tail(2), ["998.000000 line 998", "999.000000 line 999"]);
        assert_eq!(log.tail(5000).len(), 256);
        assert_eq!(log.tail(5000)[0], "744.000000 line 744");
        assert_eq!(log.all().lines().count(), 1000);
        assert_eq!(log.lines(), 1000);
    }
}
