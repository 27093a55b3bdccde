//! [`Varint`]: a length in as few bytes as it takes.
#![forbid(unsafe_code)]

use super::{BOUND_MAX, Codec, CodecError, Decoded, PAYLOAD_BYTES_MAX};

/// 64 bits, 7 in each byte.
const VARINT_BYTES_MAX: usize = 10;

/// Messages behind their length as a varint: the framing of delimited protobuf messages (`writeDelimitedTo`,
/// `parseDelimitedFrom`).
///
/// A varint (LEB128) has 7 bits in each byte, the lowest first; all bytes but the last have the highest bit set. One that
/// is longer than its value needs is refused, so each frame has one encoding. A message may be empty.
#[derive(Clone, Debug)]
pub struct Varint {
    max: usize,
}

impl Varint {
    /// Messages of at most [`PAYLOAD_BYTES_MAX`] bytes.
    pub fn new() -> Varint {
        Varint { max: PAYLOAD_BYTES_MAX }
    }

    /// The longest message that is sent and taken, in bytes.
    ///
    /// # Panics
    ///
    /// If it is more than `isize::MAX`.
    pub fn max(self, bytes: usize) -> Varint {
        assert!(bytes <= BOUND_MAX, "no message can be longer than `isize::MAX` bytes");
        Varint { max: bytes }
    }

    fn checked(&self, length: u64) -> Result<usize, CodecError> {
        let max = self.max as u64;
        if length <= max { Ok(length as usize) } else { Err(CodecError::Length { length, min: 0, max }) }
    }
}

impl Default for Varint {
    fn default() -> Varint {
        Varint::new()
    }
}

impl Codec for Varint {
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError> {
        match read(buffered)? {
            Some((length, head)) => Ok(super::frame(buffered, head, self.checked(length)?)),
            None => Ok(Decoded::Incomplete { missing_min: 1 }),
        }
    }

    fn encode_head(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        let mut rest = self.checked(payload.len() as u64)?;
        while rest > 0x7f {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
        Ok(())
    }

    fn frame_bytes_max(&self) -> usize {
        VARINT_BYTES_MAX + self.max
    }
}

/// A varint at the beginning, and how many bytes it takes; nothing if its end is not there yet.
fn read(bytes: &[u8]) -> Result<Option<(u64, usize)>, CodecError> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        let is_last = byte & 0x80 == 0;
        // The tenth byte has room for the 64th bit alone. A last byte without a bit says nothing (but for zero itself).
        let overflows = at + 1 == VARINT_BYTES_MAX && (!is_last || bits > 1);
        if overflows || (is_last && bits == 0 && at > 0) {
            return Err(CodecError::Varint);
        }
        value |= bits << (7 * at);
        if is_last {
            return Ok(Some((value, at + 1)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_those_of_protobuf() {
        // The examples of protobuf's documentation of its encoding: 1 and 150.
        assert_eq!(read(&[0x01]), Ok(Some((1, 1))));
        assert_eq!(read(&[0x96, 0x01]), Ok(Some((150, 2))));
        let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(read(&longest), Ok(Some((u64::MAX, 10))));
        assert_eq!(read(&longest[..9]), Ok(None));
    }

    #[test]
    fn overlong_varints_are_refused() {
        assert_eq!(read(&[0x00]), Ok(Some((0, 1))));
        assert_eq!(read(&[0x80, 0x00]), Err(CodecError::Varint));
        assert_eq!(read(&[0x96, 0x81, 0x00]), Err(CodecError::Varint));
        assert_eq!(read(&[0x80; 10]), Err(CodecError::Varint));
        let mut more_than_64_bits = [0xff; 10];
        more_than_64_bits[9] = 0x02;
        assert_eq!(read(&more_than_64_bits), Err(CodecError::Varint));
    }

    #[test]
    fn a_length_above_the_maximum_is_refused_as_soon_as_it_is_known() {
        let refused = Err(CodecError::Length { length: 150, min: 0, max: 149 });
        assert_eq!(Varint::new().max(149).decode(&[0x96, 0x01]), refused);
        assert_eq!(Varint::new().max(149).encode_head(&[0; 150], &mut Vec::new()), refused.map(drop));
    }
}
