//! What codecs promise, over bytes alone: the same messages however a stream is cut, within their bounds.
#![forbid(unsafe_code)]

#[path = "codec/kinds.rs"]
mod kinds;

use anabranch::codec::*;
use anabranch::{Lease, Payload};
use bytes::Bytes;
use kinds::{Kind, Outcome};
use proptest::prelude::*;

/// What a framer makes of a stream that comes in these pieces.
fn received<'a>(mut framer: Framer, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut messages = Vec::new();
    for piece in pieces {
        framer.push(Lease::from_bytes(Bytes::copy_from_slice(piece))).expect("there was no further message");
        loop {
            match framer.next() {
                Ok(Some(message)) => messages.push(message.to_vec()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(framer.finish(), Err(error.clone()), "it stays");
                    assert_eq!(framer.buffered(), 0, "and nothing is kept");
                    return Outcome { messages, end: Err(error) };
                }
            }
        }
        assert_eq!(framer.is_partial(), framer.buffered() > 0);
    }
    Outcome { messages, end: framer.finish() }
}

fn frames(kind: Kind, payloads: &[Vec<u8>]) -> Result<Vec<u8>, CodecError> {
    let (mut framer, mut out) = (kind.framer(), Vec::new());
    for payload in payloads {
        framer.encode(payload.clone(), &mut out)?;
    }
    Ok(out.iter().flat_map(|piece| piece.to_vec()).collect())
}

/// Whole, cut once at each offset, and byte by byte, it is as expected.
fn is_in_every_split(kind: Kind, stream: &[u8], expected: &Outcome) {
    for at in 0..=stream.len() {
        let (first, second) = stream.split_at(at);
        assert_eq!(&received(kind.framer(), [first, second]), expected, "{kind:?} cut at {at}");
    }
    assert_eq!(&received(kind.framer(), stream.chunks(1)), expected, "{kind:?} byte by byte");
}

fn outcome(messages: &[&[u8]], end: Result<(), CodecError>) -> Outcome {
    Outcome { messages: messages.iter().map(|message| message.to_vec()).collect(), end }
}

/// A stream and its messages.
type Right = (Kind, &'static [u8], &'static [&'static [u8]]);
/// A stream, its messages, and what is wrong behind them.
type Wrong = (Kind, &'static [u8], &'static [&'static [u8]], CodecError);

const WIDE: usize = PAYLOAD_BYTES_MAX;

#[test]
fn every_codec_finds_its_messages_wherever_the_stream_is_cut() {
    let length = |width, endian, counts_header, offset| Kind::Length {
        width,
        endian,
        counts_header,
        offset,
        max: WIDE,
    };
    let vectors: &[Right] = &[
        (Kind::Pack { flag: 0, max: WIDE }, b"\x01\0\0\0a\x05\x00\x40\xa9hello", &[b"a", b"hello"]),
        (Kind::Pack { flag: 0x2a5, max: 5 }, b"\x05\x00\x40\xa9hello", &[b"hello"]),
        (length(Width::U8, Endian::Big, false, 0), b"\x02ab\0\x01c", &[b"ab", b"", b"c"]),
        (length(Width::U16, Endian::Big, false, 0), b"\0\x02ab\0\0\0\x01c", &[b"ab", b"", b"c"]),
        (length(Width::U16, Endian::Little, true, 0), b"\x04\0ab\x02\0\x03\0c", &[b"ab", b"", b"c"]),
        (length(Width::U32, Endian::Little, false, 0), b"\x02\0\0\0ab\x01\0\0\0c", &[b"ab", b"c"]),
        (length(Width::U32, Endian::Big, true, 0), b"\0\0\0\x06ab\0\0\0\x05c", &[b"ab", b"c"]),
        (length(Width::U64, Endian::Big, false, 0), b"\0\0\0\0\0\0\0\x02ab", &[b"ab"]),
        (length(Width::U64, Endian::Little, false, 0), b"\x02\0\0\0\0\0\0\0ab", &[b"ab"]),
        (length(Width::U16, Endian::Big, false, 1), b"x\0\x02aby\0\0", &[b"x\0\x02ab", b"y\0\0"]),
        (Kind::Fixed { bytes: 3 }, b"abcdef", &[b"abc", b"def"]),
        (
            Kind::Delimited { by: b"\r\n", keep: false, max: 9 },
            b"a\rb\r\n\r\nc\r\r\n",
            &[b"a\rb", b"", b"c\r"],
        ),
        (Kind::Delimited { by: b"\n", keep: true, max: 9 }, b"ab\n\nc\n", &[b"ab\n", b"\n", b"c\n"]),
        (Kind::Delimited { by: b"aab", keep: false, max: 9 }, b"aaaab\0aab", &[b"aa", b"\0"]),
        (Kind::Marked { head: b"\x02", tail: b"\x03", max: 9 }, b"\x02ab\x03\x02\x03", &[b"ab", b""]),
        (Kind::Marked { head: b"--", tail: b"--", max: 9 }, b"--a-b----c--", &[b"a-b", b"c"]),
        (Kind::Varint { max: WIDE }, b"\x02ab\0\x01c", &[b"ab", b"", b"c"]),
    ];
    for (kind, stream, messages) in vectors {
        is_in_every_split(*kind, stream, &outcome(messages, Ok(())));
        if !matches!(kind, Kind::Pack { flag: 0, .. }) {
            let payloads: Vec<Vec<u8>> = messages.iter().map(|message| message.to_vec()).collect();
            assert_eq!(frames(*kind, &payloads).as_deref(), Ok(*stream), "{kind:?} sends what it receives");
        }
        let (last, short) = (messages.len() - 1, &stream[..stream.len() - 1]);
        let Outcome { messages: before, end } = received(kind.framer(), [short]);
        assert_eq!(before, outcome(&messages[..last], Ok(())).messages);
        assert!(matches!(end, Err(CodecError::Incomplete { left: 1.. })), "{kind:?} ended early: {end:?}");
    }
}

#[test]
fn the_four_headers_of_hp_socket_come_back_as_their_messages() {
    let vectors: [(u16, usize, [u8; 4]); 4] = [
        (0, 1, [0x01, 0x00, 0x00, 0x00]),
        (0, 262_144, [0x00, 0x00, 0x04, 0x00]),
        (0x2a5, 5, [0x05, 0x00, 0x40, 0xa9]),
        (0x3ff, 0x3f_ffff, [0xff, 0xff, 0xff, 0xff]),
    ];
    for (flag, length, header) in vectors {
        let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let stream = [&header[..], &payload].concat();
        let kind = Kind::Pack { flag, max: length };
        assert!(
            frames(kind, std::slice::from_ref(&payload)).unwrap() == stream,
            "flag {flag:#x}, length {length}"
        );
        for at in (0..=8.min(length)).chain([stream.len() / 2, stream.len() - 1]) {
            let (first, second) = stream.split_at(at);
            let got = received(kind.framer(), [first, second]);
            assert!(got.messages == [&payload[..]] && got.end.is_ok(), "flag {flag:#x} cut at {at}");
        }
    }
}

#[test]
fn what_is_wrong_is_told_wherever_the_stream_is_cut_and_after_what_was_right() {
    let too_long = |length, min, max| CodecError::Length { length, min, max };
    let vectors: &[Wrong] = &[
        (Kind::Pack { flag: 0, max: 5 }, b"\x01\0\0\0a\0\0\0\0b", &[b"a"], too_long(0, 1, 5)),
        (Kind::Pack { flag: 0, max: 5 }, b"\x06\0\0\0", &[], too_long(6, 1, 5)),
        (Kind::Pack { flag: 9, max: 5 }, b"\x01\0\0\0a", &[], CodecError::Flag { found: 0, expected: 9 }),
        (
            Kind::Length { width: Width::U64, endian: Endian::Big, counts_header: false, offset: 0, max: 5 },
            b"\xff\xff\xff\xff\xff\xff\xff\xff",
            &[],
            too_long(u64::MAX, 0, 5),
        ),
        (
            Kind::Delimited { by: b"\r\n", keep: false, max: 3 },
            b"abc\r\nabcd",
            &[b"abc"],
            CodecError::Delimiter { max: 3 },
        ),
        (Kind::Marked { head: b"<<", tail: b">", max: 3 }, b"<<a><a", &[b"a"], CodecError::Head { at: 1 }),
        (Kind::Marked { head: b"<<", tail: b">", max: 3 }, b"<<abcd", &[], CodecError::Delimiter { max: 3 }),
        (Kind::Varint { max: 300 }, b"\x01a\x80\0", &[b"a"], CodecError::Varint),
        (Kind::Varint { max: 300 }, b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", &[], CodecError::Varint),
        (Kind::Varint { max: 299 }, b"\xac\x02", &[], too_long(300, 0, 299)),
    ];
    for (kind, stream, messages, error) in vectors {
        is_in_every_split(*kind, stream, &outcome(messages, Err(error.clone())));
    }
}

#[test]
fn a_lease_is_given_back_until_the_one_before_was_looked_at() {
    let mut framer = Framer::new(FixedSize::new(2));
    framer.push(Lease::from_bytes("abcde".into())).unwrap();
    let refused = framer.push(Lease::from_bytes("f".into())).unwrap_err();
    assert_eq!(&*framer.next().unwrap().unwrap(), b"ab");
    let refused = framer.push(refused.0).unwrap_err();
    assert_eq!(framer.buffered(), 3);
    assert_eq!(&*framer.next().unwrap().unwrap(), b"cd");
    assert!(framer.next().unwrap().is_none());
    framer.push(refused.0).unwrap();
    assert_eq!(&*framer.next().unwrap().unwrap(), b"ef");
    assert!(!framer.is_partial());
}

#[test]
fn large_payloads_are_passed_on_where_they_lie_and_small_ones_leave_in_one_piece() {
    let mut framer = Framer::new(HeadTail::new("<", ">"));
    let mut out: Vec<Payload> = Vec::new();
    let large = Bytes::from(vec![7; 10_000]);
    framer.encode(large.clone(), &mut out).unwrap();
    framer.encode("small", &mut out).unwrap();
    assert_eq!(out.iter().map(Payload::len).collect::<Vec<_>>(), [1, 10_000, 1, 7]);
    assert_eq!(out[1].as_ptr(), large.as_ptr(), "not copied");
    assert_eq!(&*out[3], b"<small>");
    assert_eq!(framer.encode("a>b", &mut out), Err(CodecError::DelimiterInside));
    assert_eq!(out.len(), 4, "what is refused adds nothing");
}

/// A codec that answers anything.
struct Answering(Vec<Decoded>);

impl Codec for Answering {
    fn decode(&mut self, _buffered: &[u8]) -> Result<Decoded, CodecError> {
        Ok(self.0.pop().unwrap_or(Decoded::Incomplete { missing_min: usize::MAX }))
    }

    fn encode_head(&mut self, _payload: &[u8], _out: &mut Vec<u8>) -> Result<(), CodecError> {
        Err(CodecError::Other("nothing can be sent".into()))
    }

    fn frame_bytes_max(&self) -> usize {
        100
    }
}

#[test]
fn a_codec_that_breaks_its_contract_ends_with_an_error() {
    let answer = |answers: &[Decoded], pieces: &[&'static [u8]]| {
        received(Framer::new(Answering(answers.to_vec())), pieces.iter().copied()).end
    };
    let frame = |payload| Decoded::Frame { head: 0, payload, tail: 0 };
    assert!(matches!(answer(&[frame(0)], &[b"a"]), Err(CodecError::Broken(_))));
    assert!(matches!(answer(&[frame(2)], &[b"a"]), Err(CodecError::Broken(_))));
    let overflowing = Decoded::Frame { head: usize::MAX, payload: usize::MAX, tail: 1 };
    assert!(matches!(answer(&[overflowing], &[b"a"]), Err(CodecError::Broken(_))));
    let late = [frame(1), Decoded::Incomplete { missing_min: 0 }];
    assert!(matches!(answer(&late, &[b"ab", b"c"]), Err(CodecError::Broken(_))));
    // More than it says that it may want, or gives.
    assert!(matches!(answer(&[], &[b"a"]), Err(CodecError::Length { max: 100, .. })));
    assert!(matches!(
        answer(&[frame(101)], &[&[0; 101]]),
        Err(CodecError::Length { length: 101, max: 100, .. })
    ));
}

/// Counts how often the codec within is asked.
struct Counting<C>(C, std::rc::Rc<std::cell::Cell<usize>>);

impl<C: Codec> Codec for Counting<C> {
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError> {
        self.1.set(self.1.get() + 1);
        self.0.decode(buffered)
    }

    fn encode_head(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.0.encode_head(payload, out)
    }

    fn frame_bytes_max(&self) -> usize {
        self.0.frame_bytes_max()
    }
}

#[test]
fn a_codec_that_knows_the_length_is_asked_three_times_a_message_however_many_pieces_come() {
    let asked = std::rc::Rc::default();
    let framer = Framer::new(Counting(LengthPrefix::default(), std::rc::Rc::clone(&asked)));
    let stream = frames(LENGTH_OF_FOUR, &[vec![1; 50_000], vec![2; 10]]).unwrap();
    let got = received(framer, stream.chunks(1));
    assert_eq!(got.messages.iter().map(Vec::len).collect::<Vec<_>>(), [50_000, 10]);
    assert_eq!(asked.get(), 2 * 3, "at the first byte, with the header, and with the last byte");
}

const LENGTH_OF_FOUR: Kind =
    Kind::Length { width: Width::U32, endian: Endian::Big, counts_header: false, offset: 0, max: WIDE };

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(kinds::all().collect::<Vec<_>>())
}

/// Bytes that are often those of lengths, marks and delimiters.
fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => prop::sample::select(&b"aab\0\x01\x02\x03\r\n\x80"[..]), 1 => any::<u8>()];
    prop::collection::vec(byte, 0..most)
}

/// The pieces of a stream that is cut at these places.
fn cut<'a>(stream: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_stream_in_any_pieces_is_what_a_plain_parser_makes_of_it(
        kind in kind(),
        stream in bytes(700),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        prop_assert_eq!(received(kind.framer(), cut(&stream, &places)), kind.outcome(&stream));
    }

    #[test]
    fn what_was_framed_comes_back_in_any_pieces(
        kind in kind(),
        payloads in prop::collection::vec(bytes(1500), 0..5),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut sent = Vec::new();
        let (mut framer, mut out) = (kind.framer(), Vec::new());
        for mut payload in payloads {
            if let Kind::Length { offset: 1.., .. } = kind {
                let _ = kind.length_prefix().fill_in(&mut payload);
            }
            if framer.encode(payload.clone(), &mut out).is_ok() {
                if let Kind::Delimited { by, keep: true, .. } = kind {
                    if !payload.ends_with(by) {
                        payload.extend_from_slice(by);
                    }
                }
                sent.push(payload);
            }
        }
        let stream: Vec<u8> = out.iter().flat_map(|piece| piece.to_vec()).collect();
        let expected = Outcome { messages: sent, end: Ok(()) };
        prop_assert_eq!(received(kind.framer(), cut(&stream, &places)), expected);
    }
}
