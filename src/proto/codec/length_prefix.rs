//! [`LengthPrefix`]: messages behind their length.
#![forbid(unsafe_code)]

use super::{BOUND_MAX, Codec, CodecError, Decoded, PAYLOAD_BYTES_MAX};

/// How many bytes a length field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    U8,
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
    /// Eight bytes.
    U64,
}

/// The order of the bytes of a length field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// The highest byte first, the order of networks.
    Big,
    /// The lowest byte first.
    Little,
}

/// Messages behind a header with their length; by default 4 bytes, big endian, which do not count themselves.
///
/// The header does not belong to the messages, unless the length has [an offset](Self::offset) in it.
///
/// ```
/// use anabranch::codec::{Endian, LengthPrefix, Width};
///
/// // Two bytes, the lowest first, with a length that counts them too; messages of at most 4 KiB.
/// let codec = LengthPrefix::new(Width::U16, Endian::Little).counts_header(true).max(4096);
/// ```
#[derive(Clone, Debug)]
pub struct LengthPrefix {
    width: Width,
    endian: Endian,
    counts_header: bool,
    offset: u8,
    max: usize,
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Width::U8 => 1,
            Width::U16 => 2,
            Width::U32 => 4,
            Width::U64 => 8,
        }
    }

    /// The largest number in a field of this width.
    fn max(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

impl LengthPrefix {
    /// A length field of this form at the beginning of each frame, which does not count itself; messages of at most
    /// [`PAYLOAD_BYTES_MAX`] bytes.
    pub fn new(width: Width, endian: Endian) -> LengthPrefix {
        LengthPrefix { width, endian, counts_header: false, offset: 0, max: PAYLOAD_BYTES_MAX }
    }

    /// Whether the length counts the header too, which is the length field and what is before it.
    pub fn counts_header(self, counts_header: bool) -> LengthPrefix {
        LengthPrefix { counts_header, ..self }
    }

    /// So many bytes stand before the length field.
    ///
    /// They carry something that this codec does not know, such as a type. So with an offset the header belongs to the
    /// message: received messages have it, and those to send must bring it, with their length filled in (which
    /// [`fill_in`](Self::fill_in) does).
    pub fn offset(self, bytes: u8) -> LengthPrefix {
        LengthPrefix { offset: bytes, ..self }
    }

    /// The most bytes behind the header, of messages that are sent and taken. The width of the length field may allow
    /// fewer.
    ///
    /// # Panics
    ///
    /// If it is more than `isize::MAX`.
    pub fn max(self, bytes: usize) -> LengthPrefix {
        assert!(bytes <= BOUND_MAX, "no message can be longer than `isize::MAX` bytes");
        LengthPrefix { max: bytes, ..self }
    }

    /// Writes the length of a message that has its header into the length field.
    ///
    /// # Errors
    ///
    /// [`CodecError::Header`] if it is shorter than a header; [`CodecError::Length`] if it is longer than the maximum.
    /// Then it is left as it was.
    pub fn fill_in(&self, message: &mut [u8]) -> Result<(), CodecError> {
        let behind = message.len().checked_sub(self.header_bytes()).ok_or(CodecError::Header)?;
        let field = self.field(behind)?;
        let width = self.width.bytes();
        message[usize::from(self.offset)..][..width].copy_from_slice(&field[..width]);
        Ok(())
    }

    fn header_bytes(&self) -> usize {
        usize::from(self.offset) + self.width.bytes()
    }

    /// What a length says beyond the bytes behind the header.
    fn counted(&self) -> u64 {
        if self.counts_header { self.header_bytes() as u64 } else { 0 }
    }

    /// How many bytes stand behind the header, by the value of its length field.
    fn behind(&self, length: u64) -> Result<usize, CodecError> {
        let min = self.counted();
        let max = self.width.max().min(self.max as u64 + min);
        let is_taken = (min..=max).contains(&length);
        if is_taken { Ok((length - min) as usize) } else { Err(CodecError::Length { length, min, max }) }
    }

    /// The bytes of the length field, and zeros behind them.
    fn field(&self, behind: usize) -> Result<[u8; 8], CodecError> {
        let length = behind as u64 + self.counted();
        self.behind(length)?;
        let mut field = length.to_le_bytes();
        if self.endian == Endian::Big {
            field[..self.width.bytes()].reverse();
        }
        Ok(field)
    }

    /// The value of the length field; nothing if it is not there.
    fn read(&self, bytes: &[u8]) -> Option<u64> {
        let width = self.width.bytes();
        let mut field = [0; 8];
        field[..width].copy_from_slice(bytes.get(usize::from(self.offset)..)?.get(..width)?);
        if self.endian == Endian::Big {
            field[..width].reverse();
        }
        Some(u64::from_le_bytes(field))
    }
}

impl Default for LengthPrefix {
    fn default() -> LengthPrefix {
        LengthPrefix::new(Width::U32, Endian::Big)
    }
}

impl Codec for LengthPrefix {
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError> {
        let header = self.header_bytes();
        let Some(length) = self.read(buffered) else {
            return Ok(Decoded::Incomplete { missing_min: header - buffered.len() });
        };
        let behind = self.behind(length)?;
        let belongs = self.offset > 0;
        Ok(if belongs {
            super::frame(buffered, 0, header + behind)
        } else {
            super::frame(buffered, header, behind)
        })
    }

    fn encode_head(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        if self.offset == 0 {
            out.extend_from_slice(&self.field(payload.len())?[..self.width.bytes()]);
            return Ok(());
        }
        let length = self.read(payload).ok_or(CodecError::Header)?;
        let is_right = self.behind(length)? == payload.len() - self.header_bytes();
        if is_right { Ok(()) } else { Err(CodecError::Header) }
    }

    fn frame_bytes_max(&self) -> usize {
        self.header_bytes() + self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(codec: &mut LengthPrefix, payload: usize) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        codec.encode_head(&vec![0; payload], &mut out).map(|()| out)
    }

    #[test]
    fn lengths_have_each_width_and_order() {
        let of = |width, endian| head(&mut LengthPrefix::new(width, endian), 0xfe).unwrap();
        assert_eq!(of(Width::U8, Endian::Big), [0xfe]);
        assert_eq!(of(Width::U16, Endian::Big), [0, 0xfe]);
        assert_eq!(of(Width::U16, Endian::Little), [0xfe, 0]);
        assert_eq!(of(Width::U32, Endian::Big), [0, 0, 0, 0xfe]);
        assert_eq!(of(Width::U32, Endian::Little), [0xfe, 0, 0, 0]);
        assert_eq!(of(Width::U64, Endian::Big), [0, 0, 0, 0, 0, 0, 0, 0xfe]);
        assert_eq!(of(Width::U64, Endian::Little), [0xfe, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_length_that_counts_its_header_is_never_smaller_than_it() {
        let mut codec = LengthPrefix::new(Width::U16, Endian::Big).counts_header(true).max(5);
        assert_eq!(head(&mut codec, 3).unwrap(), [0, 5]);
        assert_eq!(codec.decode(&[0, 5, 1, 2, 3]), Ok(Decoded::Frame { head: 2, payload: 3, tail: 0 }));
        let refused = |length| Err(CodecError::Length { length, min: 2, max: 7 });
        assert_eq!(codec.decode(&[0, 1]), refused(1));
        assert_eq!(codec.decode(&[0, 8]), refused(8));
        assert_eq!(head(&mut codec, 6).map(drop), refused(8).map(drop));
    }

    #[test]
    fn a_field_that_cannot_say_a_length_refuses_it() {
        let mut codec = LengthPrefix::new(Width::U8, Endian::Big);
        assert_eq!(head(&mut codec, 255).unwrap(), [255]);
        assert_eq!(head(&mut codec, 256), Err(CodecError::Length { length: 256, min: 0, max: 255 }));
    }

    #[test]
    fn the_largest_length_is_refused_and_overflows_nothing() {
        let mut codec = LengthPrefix::new(Width::U64, Endian::Little).counts_header(true).max(BOUND_MAX);
        assert!(matches!(codec.decode(&[0xff; 8]), Err(CodecError::Length { length: u64::MAX, .. })));
        assert!(codec.frame_bytes_max() > BOUND_MAX);
    }

    #[test]
    fn with_an_offset_the_header_belongs_to_the_message() {
        let mut codec = LengthPrefix::new(Width::U16, Endian::Big).offset(1);
        assert_eq!(codec.decode(&[7]), Ok(Decoded::Incomplete { missing_min: 2 }));
        assert_eq!(codec.decode(&[7, 0, 2, 8, 9]), Ok(Decoded::Frame { head: 0, payload: 5, tail: 0 }));
        let mut message = [7, 0, 0, 8, 9];
        assert_eq!(codec.encode_head(&message, &mut Vec::new()), Err(CodecError::Header));
        assert_eq!(codec.encode_head(&message[..2], &mut Vec::new()), Err(CodecError::Header));
        codec.fill_in(&mut message).unwrap();
        assert_eq!(message, [7, 0, 2, 8, 9]);
        let mut out = Vec::new();
        assert_eq!(codec.encode_head(&message, &mut out), Ok(()));
        assert!(out.is_empty(), "the message brings its header");
        assert_eq!(codec.fill_in(&mut message[..2]), Err(CodecError::Header));
    }
}
