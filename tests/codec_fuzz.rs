//! Random and damaged streams in random pieces, and random calls of `Pull`: nothing panics, what comes out is what a plain
//! parser finds, and the memory held is within the bound, counted by an allocator of this program.
//!
//! `ANABRANCH_FUZZ_EXECUTIONS` says how many executions per codec, `ANABRANCH_FUZZ_SEED` which ones;
//! `scripts/fuzz_codecs.sh` makes ten million.
#![allow(unsafe_code, reason = "the allocator that counts")]

#[path = "codec/kinds.rs"]
mod kinds;

use anabranch::codec::{Framer, Pull};
use anabranch::{Full, Lease};
use bytes::Bytes;
use kinds::Kind;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has allocated and not freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get() + layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Chance from a seed (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Bytes that are often those of lengths, marks and delimiters.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let alphabet = self.one_of(&[&b"aab"[..], b"aab\0\x01\x02\x03\r\n\x80\xff", b""]);
        let mut byte = || if alphabet.is_empty() { self.next() as u8 } else { self.one_of(alphabet) };
        (0..len).map(|_| byte()).collect()
    }

    /// Mostly small, at times around the bounds of the codecs.
    fn len(&mut self) -> usize {
        let most = self.one_of(&[2, 6, 25, 25, 45, 310, 720]);
        self.below(most)
    }
}

fn leased(bytes: &[u8]) -> Lease {
    Lease::from_bytes(Bytes::copy_from_slice(bytes))
}

/// A stream of anything, or of frames that may be damaged.
fn stream(chance: &mut Chance, kind: Kind) -> Vec<u8> {
    if chance.below(4) == 0 {
        let len = chance.len();
        return chance.bytes(len);
    }
    let (mut framer, mut out) = (kind.framer(), Vec::new());
    for _ in 0..chance.below(4) {
        let len = if let Kind::Fixed { bytes } = kind { bytes } else { chance.len() };
        let mut payload = chance.bytes(len);
        if let Kind::Length { offset: 1.., .. } = kind {
            let _ = kind.length_prefix().fill_in(&mut payload);
        }
        let _ = framer.encode(payload, &mut out);
    }
    let mut stream: Vec<u8> = out.iter().flat_map(|piece| piece.iter().copied()).collect();
    for _ in 0..chance.one_of(&[0, 0, 1, 2]) {
        let (at, value) = (chance.below(stream.len() + 1), chance.bytes(1)[0]);
        match chance.below(4) {
            0 => stream.insert(at, value),
            1 => stream.truncate(at),
            2 if at < stream.len() => drop(stream.remove(at)),
            _ if at < stream.len() => stream[at] = value,
            _ => {}
        }
    }
    stream
}

/// How long the next piece is, of so many bytes that are left.
fn piece(chance: &mut Chance, style: usize, left: usize) -> usize {
    match style {
        0 => left,
        1 => 1,
        2 => 1 + chance.below(left.min(8)),
        _ => 1 + chance.below(left),
    }
}

/// One stream through one framer, against the plain parser.
fn frame(chance: &mut Chance, kind: Kind) {
    let stream = stream(chance, kind);
    let expected = kind.outcome(&stream);
    let style = chance.below(4);
    let mut framer = kind.framer();
    let held_max = kind.frame_bytes_max() + 256;
    let before = LIVE.get();
    let (mut at, mut told) = (0, 0);
    let mut end = Ok(());
    while at < stream.len() && end.is_ok() {
        let len = piece(chance, style, stream.len() - at);
        framer.push(leased(&stream[at..at + len])).expect("there was no further message");
        at += len;
        end = take(&mut framer, &expected.messages, &mut told, chance);
        assert!(framer.buffered() <= held_max, "{kind:?} keeps {}", framer.buffered());
        assert!(LIVE.get() - before <= held_max as isize, "{kind:?} has {} bytes", LIVE.get() - before);
    }
    let end = end.and_then(|()| framer.finish());
    assert!(
        told == expected.messages.len() && end == expected.end,
        "{kind:?}, style {style}: {told} messages and {end:?} instead of {expected:?} in {stream:?}"
    );
}

/// Takes all messages that there are, which must be the next ones.
fn take(
    framer: &mut Framer,
    expected: &[Vec<u8>],
    told: &mut usize,
    chance: &mut Chance,
) -> Result<(), anabranch::codec::CodecError> {
    while let Some(message) = framer.next()? {
        assert_eq!(Some(&*message), expected.get(*told).map(|message| &message[..]), "message {told}");
        *told += 1;
        if chance.below(16) == 0 {
            framer.detach();
        }
    }
    Ok(())
}

/// Random calls of one `Pull`, against a plain sequence of bytes.
fn pull(chance: &mut Chance) {
    let max = chance.one_of(&[0, 10, 300, 4000]);
    let (mut pull, mut model) = (Pull::new(max), Vec::new());
    let before = LIVE.get() - model.capacity() as isize;
    let delimiters: [&[u8]; 4] = [b"a", b"aab", b"\r\n", b"aabaa"];
    let mut delimiter = chance.one_of(&delimiters);
    for _ in 0..chance.below(24) {
        match chance.below(6) {
            0..=2 => {
                let len = if chance.below(16) == 0 { 1500 } else { chance.len() };
                let bytes = chance.bytes(len);
                let fits = model.is_empty() || model.len() + len <= max;
                match pull.push(leased(&bytes)) {
                    Ok(()) if fits || len == 0 => model.extend_from_slice(&bytes),
                    Err(Full(back)) if !fits => assert_eq!(*back, *bytes),
                    other => panic!("{other:?} for {len} bytes behind {} of {max}", model.len()),
                }
            }
            3 => {
                let n = chance.below(model.len() + 3);
                assert_eq!(pull.peek(n).as_deref(), model.get(..n));
                let fetched = pull.fetch(n);
                assert_eq!(fetched.as_deref(), model.get(..n));
                model.drain(..fetched.map_or(0, |fetched| fetched.len()));
            }
            4 => {
                let n = chance.below(model.len() + 3);
                let is_there = n <= model.len();
                assert_eq!(pull.skip(n), is_there);
                model.drain(..if is_there { n } else { 0 });
            }
            _ => {
                if chance.below(4) == 0 {
                    delimiter = chance.one_of(&delimiters);
                }
                let found = model.windows(delimiter.len()).position(|window| window == delimiter);
                assert_eq!(pull.find(delimiter), found);
            }
        }
        assert_eq!(pull.len(), model.len());
        assert!(pull.len() <= max.max(1500));
        // Twice the bytes while vectors grow, and what leases and their queue take.
        let held = LIVE.get() - before - model.capacity() as isize;
        assert!(held <= 2 * max.max(1500) as isize + 2048, "{held} bytes for {} of {max}", pull.len());
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

fn fuzz(name: &str, mut execute: impl FnMut(&mut Chance)) {
    let (executions, seed) = (number("ANABRANCH_FUZZ_EXECUTIONS", 20_000), number("ANABRANCH_FUZZ_SEED", 1));
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..executions {
        execute(&mut chance);
    }
    println!("{name}: {executions} executions with seed {seed}");
}

fn fuzz_kinds(name: &str, kinds: &[Kind]) {
    fuzz(name, |chance| {
        let kind = chance.one_of(kinds);
        frame(chance, kind);
    });
}

#[test]
fn random_packs() {
    fuzz_kinds("pack", kinds::PACKS);
}

#[test]
fn random_length_prefixes() {
    fuzz_kinds("length_prefix", kinds::LENGTHS);
}

#[test]
fn random_messages_of_a_fixed_size() {
    fuzz_kinds("fixed_size", kinds::FIXED);
}

#[test]
fn random_delimiters() {
    fuzz_kinds("delimiter", kinds::DELIMITED);
}

#[test]
fn random_heads_and_tails() {
    fuzz_kinds("head_tail", kinds::MARKED);
}

#[test]
fn random_varints() {
    fuzz_kinds("varint", kinds::VARINTS);
}

#[test]
fn random_pulls() {
    fuzz("pull", pull);
}
