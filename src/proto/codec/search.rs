//! Looking for a sequence of bytes in a stream, each byte of which is looked at once.
//!
//! The search is that of Knuth, Morris and Pratt: what it remembers of the bytes before is how many of the last ones are a
//! beginning of the pattern. So a stream may arrive in any pieces, and no input makes it slower than linear.
#![forbid(unsafe_code)]

use super::CodecError;

/// A sequence of bytes to look for.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    bytes: Box<[u8]>,
    /// For each beginning of the pattern by its length less one: the longest shorter beginning that it ends with.
    borders: Box<[usize]>,
}

#[cfg(test)]
thread_local! {
    /// Bytes that searches of this thread have looked at.
    pub(super) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How far a search has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes looked at.
    seen: usize,
    /// How many of the last ones are a beginning of the pattern.
    matched: usize,
}

impl Pattern {
    /// # Panics
    ///
    /// If it is empty.
    pub(super) fn new(bytes: &[u8]) -> Pattern {
        assert!(!bytes.is_empty(), "a delimiter has at least one byte");
        let mut borders = vec![0; bytes.len()];
        let mut border = 0;
        for at in 1..bytes.len() {
            border = longer(bytes, &borders, border, bytes[at]);
            borders[at] = border;
        }
        Pattern { bytes: bytes.into(), borders: borders.into() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Looks at the bytes that follow those seen, up to the end of the pattern; whether it was found. Then the bytes seen
    /// end with it, and it must not go on.
    pub(super) fn find(&self, progress: &mut Progress, bytes: &[u8]) -> bool {
        let (mut at, mut matched) = (0, progress.matched);
        while at < bytes.len() && matched < self.len() {
            if matched == 0 {
                at += skip(&bytes[at..], self.bytes[0]);
                if at == bytes.len() {
                    break;
                }
            }
            matched = longer(&self.bytes, &self.borders, matched, bytes[at]);
            at += 1;
        }
        #[cfg(test)]
        LOOKED_AT.set(LOOKED_AT.get() + at);
        *progress = Progress { seen: progress.seen + at, matched };
        matched == self.len()
    }
}

/// The length of the beginning that is matched with one byte more.
fn longer(pattern: &[u8], borders: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && pattern[matched] != byte {
        matched = borders[matched - 1];
    }
    matched + usize::from(pattern[matched] == byte)
}

/// How many bytes stand before the first one with this value; all if there is none.
fn skip(bytes: &[u8], value: u8) -> usize {
    /// So many are compared at once: without an early end the compiler uses wide registers.
    const BLOCK: usize = 32;
    let has_it = |block: &[u8]| block.iter().fold(false, |found, byte| found | (*byte == value));
    let free = bytes.chunks_exact(BLOCK).take_while(|block| !has_it(block)).count() * BLOCK;
    bytes[free..].iter().position(|byte| *byte == value).map_or(bytes.len(), |at| free + at)
}

impl Progress {
    pub(super) fn seen(&self) -> usize {
        self.seen
    }

    /// Where the pattern begins that was found, or is the first place where it could.
    pub(super) fn candidate(&self) -> usize {
        self.seen - self.matched
    }

    /// Forgets the first `n` bytes of the stream; begins anew if what is matched is among them.
    pub(super) fn forget(&mut self, n: usize) {
        match self.candidate().checked_sub(n) {
            Some(_) => self.seen -= n,
            None => *self = Progress::default(),
        }
    }
}

/// Payloads that end where a pattern stands.
#[derive(Clone, Debug)]
pub(super) struct Terminated {
    pub(super) end: Pattern,
    pub(super) max: usize,
    progress: Progress,
}

impl Terminated {
    pub(super) fn new(end: &[u8], max: usize) -> Terminated {
        Terminated { end: Pattern::new(end), max, progress: Progress::default() }
    }

    /// The length of the payload before the end, if that is there. It is shown the same bytes and more until it is.
    pub(super) fn payload(&mut self, buffered: &[u8]) -> Result<Option<usize>, CodecError> {
        let to = buffered.len().min(self.max.saturating_add(self.end.len()));
        let unseen = buffered.get(self.progress.seen()..to).unwrap_or_default();
        let found = self.end.find(&mut self.progress, unseen);
        let payload = self.progress.candidate();
        if payload > self.max {
            return Err(CodecError::Delimiter { max: self.max });
        }
        if found {
            self.progress = Progress::default();
        }
        Ok(found.then_some(payload))
    }

    /// Whether a receiver would find this payload, with the end behind it.
    pub(super) fn check(&self, payload: &[u8]) -> Result<(), CodecError> {
        if payload.len() > self.max {
            let (length, max) = (payload.len() as u64, self.max as u64);
            return Err(CodecError::Length { length, min: 0, max });
        }
        let mut progress = Progress::default();
        // The end may also stand partly in the payload: "a" with the end "aa" has it one byte early.
        let inside = self.end.find(&mut progress, payload)
            || (self.end.find(&mut progress, self.end.bytes()) && progress.candidate() < payload.len());
        if inside { Err(CodecError::DelimiterInside) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the pattern ends first, by trying every place.
    fn plainly(pattern: &[u8], bytes: &[u8]) -> Option<usize> {
        bytes.windows(pattern.len()).position(|window| window == pattern).map(|at| at + pattern.len())
    }

    proptest! {
        #[test]
        fn it_finds_what_trying_every_place_finds_in_whatever_pieces(
            pattern in prop::collection::vec(0_u8..3, 1..6),
            pieces in prop::collection::vec(prop::collection::vec(0_u8..3, 0..40), 0..6),
        ) {
            let searched = Pattern::new(&pattern);
            let mut progress = Progress::default();
            let found = pieces.iter().any(|piece| searched.find(&mut progress, piece));
            let all = pieces.concat();
            let expected = plainly(&pattern, &all);
            prop_assert_eq!(found.then_some(progress.seen()), expected);
            if !found {
                prop_assert_eq!(progress.seen(), all.len());
                // What is matched is the longest end that the pattern begins with.
                let longest = (0..pattern.len()).rev().find(|n| all.ends_with(&pattern[..*n]));
                prop_assert_eq!(progress.candidate(), all.len() - longest.unwrap());
            }
        }
    }

    #[test]
    fn skipping_stops_at_the_first_of_them() {
        for len in 0..100 {
            let mut bytes = vec![0; len];
            assert_eq!(skip(&bytes, 1), len);
            for at in (0..len).rev() {
                bytes[at] = 1;
                assert_eq!(skip(&bytes, 1), at);
            }
        }
    }

    #[test]
    fn forgetting_keeps_a_match_in_progress_that_stays() {
        let pattern = Pattern::new(b"abc");
        let mut progress = Progress::default();
        assert!(!pattern.find(&mut progress, b"xxab"));
        let mut kept = progress;
        kept.forget(2);
        assert!(pattern.find(&mut kept, b"c"));
        assert_eq!(kept.candidate(), 0);
        progress.forget(3);
        assert!(!pattern.find(&mut progress, b"c"));
    }

    #[test]
    fn no_byte_is_looked_at_twice_when_they_come_one_by_one() {
        let mut messages = Terminated::new(b"aab", 100_000);
        let stream = vec![b'a'; 20_000];
        let before = LOOKED_AT.get();
        for len in 0..=stream.len() {
            assert_eq!(messages.payload(&stream[..len]), Ok(None));
        }
        assert_eq!(LOOKED_AT.get() - before, stream.len());
    }

    #[test]
    fn a_payload_that_moves_its_end_is_refused() {
        let lines = Terminated::new(b"aa", 10);
        assert_eq!(lines.check(b"x"), Ok(()));
        assert_eq!(lines.check(b"xa"), Err(CodecError::DelimiterInside));
        assert_eq!(lines.check(b"xaax"), Err(CodecError::DelimiterInside));
        assert_eq!(lines.check(&[b'x'; 11]), Err(CodecError::Length { length: 11, min: 0, max: 10 }));
    }
}
