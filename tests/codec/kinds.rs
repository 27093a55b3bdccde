//! Codecs with their parameters, and what each must make of a stream, told in the plainest way.
#![allow(dead_code, reason = "each test file uses a part of it")]

use anabranch::codec::{
    CodecError, Delimiter, Endian, FixedSize, Framer, HeadTail, LengthPrefix, Pack, Varint, Width,
};

/// A codec and its parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Pack { flag: u16, max: usize },
    Length { width: Width, endian: Endian, counts_header: bool, offset: u8, max: usize },
    Fixed { bytes: usize },
    Delimited { by: &'static [u8], keep: bool, max: usize },
    Marked { head: &'static [u8], tail: &'static [u8], max: usize },
    Varint { max: usize },
}

/// What stands at the beginning of a stream.
enum First {
    Message { payload: Vec<u8>, whole: usize },
    Beginning,
    Wrong(CodecError),
}

/// The messages of a stream and how it ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) messages: Vec<Vec<u8>>,
    pub(crate) end: Result<(), CodecError>,
}

fn too_long(length: u128, min: u128, max: u128) -> First {
    First::Wrong(CodecError::Length { length: length as u64, min: min as u64, max: max as u64 })
}

fn behind(bytes: &[u8], head: usize, payload: usize) -> First {
    match bytes.get(head..head + payload) {
        Some(payload) => First::Message { payload: payload.to_vec(), whole: head + payload.len() },
        None => First::Beginning,
    }
}

impl Kind {
    pub(crate) fn framer(self) -> Framer {
        match self {
            Kind::Pack { flag, max } => Framer::new(Pack::new().flag(flag).max(max)),
            Kind::Length { .. } => Framer::new(self.length_prefix()),
            Kind::Fixed { bytes } => Framer::new(FixedSize::new(bytes)),
            Kind::Delimited { by, keep, max } => Framer::new(Delimiter::new(by).keep(keep).max(max)),
            Kind::Marked { head, tail, max } => Framer::new(HeadTail::new(head, tail).max(max)),
            Kind::Varint { max } => Framer::new(Varint::new().max(max)),
        }
    }

    pub(crate) fn length_prefix(self) -> LengthPrefix {
        let Kind::Length { width, endian, counts_header, offset, max } = self else { panic!("{self:?}") };
        LengthPrefix::new(width, endian).counts_header(counts_header).offset(offset).max(max)
    }

    /// The longest frame.
    pub(crate) fn frame_bytes_max(self) -> usize {
        match self {
            Kind::Pack { max, .. } => 4 + max,
            Kind::Length { offset, max, .. } => usize::from(offset) + 8 + max,
            Kind::Fixed { bytes } => bytes,
            Kind::Delimited { by, max, .. } => by.len() + max,
            Kind::Marked { head, tail, max } => head.len() + max + tail.len(),
            Kind::Varint { max } => 10 + max,
        }
    }

    pub(crate) fn outcome(self, stream: &[u8]) -> Outcome {
        let (mut messages, mut at) = (Vec::new(), 0);
        loop {
            let left = &stream[at..];
            match if left.is_empty() { First::Beginning } else { self.first(left) } {
                First::Message { payload, whole } => {
                    messages.push(payload);
                    at += whole;
                }
                First::Wrong(error) => return Outcome { messages, end: Err(error) },
                First::Beginning => {
                    let left = left.len();
                    let end = if left == 0 { Ok(()) } else { Err(CodecError::Incomplete { left }) };
                    return Outcome { messages, end };
                }
            }
        }
    }

    fn first(self, bytes: &[u8]) -> First {
        match self {
            Kind::Pack { flag, max } => first_pack(bytes, flag, max),
            Kind::Length { .. } => self.first_length(bytes),
            Kind::Fixed { bytes: size } => behind(bytes, 0, size),
            Kind::Delimited { by, keep, max } => match first_end(bytes, by, max) {
                First::Message { payload, whole } if keep => {
                    First::Message { payload: [&payload[..], by].concat(), whole }
                }
                other => other,
            },
            Kind::Marked { head, tail, max } => first_marked(bytes, head, tail, max),
            Kind::Varint { max } => first_varint(bytes, max),
        }
    }

    fn first_length(self, bytes: &[u8]) -> First {
        let Kind::Length { width, endian, counts_header, offset, max } = self else { panic!("{self:?}") };
        let width = match width {
            Width::U8 => 1,
            Width::U16 => 2,
            Width::U32 => 4,
            Width::U64 => 8,
        };
        let header = usize::from(offset) + width;
        let Some(field) = bytes.get(usize::from(offset)..header) else { return First::Beginning };
        let digits: Vec<u8> =
            if endian == Endian::Big { field.to_vec() } else { field.iter().rev().copied().collect() };
        let length = digits.iter().fold(0_u128, |value, digit| value * 256 + u128::from(*digit));
        let min = if counts_header { header as u128 } else { 0 };
        let max = (max as u128 + min).min((1 << (8 * width)) - 1);
        if length < min || length > max {
            return too_long(length, min, max);
        }
        let payload = (length - min) as usize;
        if offset > 0 { behind(bytes, 0, header + payload) } else { behind(bytes, header, payload) }
    }
}

fn first_pack(bytes: &[u8], flag: u16, max: usize) -> First {
    let &[a, b, c, d, ..] = bytes else { return First::Beginning };
    let length = usize::from(a) + 256 * usize::from(b) + 65536 * (usize::from(c) % 64);
    let found = u16::from(c) / 64 + 4 * u16::from(d);
    if flag != 0 && found != flag {
        return First::Wrong(CodecError::Flag { found, expected: flag });
    }
    if length == 0 || length > max {
        too_long(length as u128, 1, max as u128)
    } else {
        behind(bytes, 4, length)
    }
}

fn first_end(bytes: &[u8], end: &[u8], max: usize) -> First {
    let found = bytes.windows(end.len()).position(|window| window == end);
    // Without an end, it may begin where what is left is a beginning of it.
    let earliest = found.or_else(|| (0..=bytes.len()).find(|at| end.starts_with(&bytes[*at..])));
    match earliest {
        Some(at) if at > max => First::Wrong(CodecError::Delimiter { max }),
        _ => match found {
            Some(at) => First::Message { payload: bytes[..at].to_vec(), whole: at + end.len() },
            None => First::Beginning,
        },
    }
}

fn first_marked(bytes: &[u8], head: &[u8], tail: &[u8], max: usize) -> First {
    if let Some(at) = bytes.iter().zip(head).position(|(byte, mark)| byte != mark) {
        return First::Wrong(CodecError::Head { at });
    }
    match bytes.get(head.len()..).map(|bytes| first_end(bytes, tail, max)) {
        Some(First::Message { payload, whole }) => First::Message { payload, whole: head.len() + whole },
        Some(other) => other,
        None => First::Beginning,
    }
}

fn first_varint(bytes: &[u8], max: usize) -> First {
    let Some(last) = bytes.iter().position(|byte| *byte < 128) else {
        return if bytes.len() >= 10 { First::Wrong(CodecError::Varint) } else { First::Beginning };
    };
    if last >= 10 {
        return First::Wrong(CodecError::Varint);
    }
    let value = bytes[..=last].iter().rev().fold(0_u128, |value, byte| value * 128 + u128::from(byte % 128));
    if value > u128::from(u64::MAX) || (last > 0 && bytes[last] == 0) {
        return First::Wrong(CodecError::Varint);
    }
    if value > max as u128 {
        too_long(value, 0, max as u128)
    } else {
        behind(bytes, last + 1, value as usize)
    }
}

const fn length(width: Width, endian: Endian, counts_header: bool, offset: u8, max: usize) -> Kind {
    Kind::Length { width, endian, counts_header, offset, max }
}

/// Each codec in a few forms, with small bounds that are soon reached.
pub(crate) const PACKS: &[Kind] = &[
    Kind::Pack { flag: 0, max: 300 },
    Kind::Pack { flag: 0x2a5, max: 20 },
    Kind::Pack { flag: 1, max: 0x3f_ffff },
];
pub(crate) const LENGTHS: &[Kind] = &[
    length(Width::U8, Endian::Big, false, 0, 300),
    length(Width::U8, Endian::Little, true, 2, 20),
    length(Width::U16, Endian::Big, true, 0, 300),
    length(Width::U16, Endian::Little, false, 1, 20),
    length(Width::U32, Endian::Big, false, 0, 1),
    length(Width::U32, Endian::Little, true, 3, 700),
    length(Width::U64, Endian::Big, false, 0, 40),
    length(Width::U64, Endian::Little, true, 0, 300),
];
pub(crate) const FIXED: &[Kind] =
    &[Kind::Fixed { bytes: 1 }, Kind::Fixed { bytes: 7 }, Kind::Fixed { bytes: 300 }];
pub(crate) const DELIMITED: &[Kind] = &[
    Kind::Delimited { by: b"\n", keep: false, max: 20 },
    Kind::Delimited { by: b"\r\n", keep: true, max: 300 },
    Kind::Delimited { by: b"aab", keep: false, max: 5 },
    Kind::Delimited { by: b"aa", keep: false, max: 40 },
    Kind::Delimited { by: b"aabaa", keep: true, max: 1 },
    Kind::Delimited { by: b"b", keep: false, max: 0 },
];
pub(crate) const MARKED: &[Kind] = &[
    Kind::Marked { head: b"\x02", tail: b"\x03", max: 20 },
    Kind::Marked { head: b"aa", tail: b"aa", max: 300 },
    Kind::Marked { head: b"ab", tail: b"aab", max: 3 },
];
pub(crate) const VARINTS: &[Kind] =
    &[Kind::Varint { max: 300 }, Kind::Varint { max: 1 }, Kind::Varint { max: 20_000 }];

pub(crate) fn all() -> impl Iterator<Item = Kind> {
    [PACKS, LENGTHS, FIXED, DELIMITED, MARKED, VARINTS].into_iter().flatten().copied()
}
