//! [`Pack`]: the framing of HP-Socket's Pack components.
#![forbid(unsafe_code)]

use super::{Codec, CodecError, Decoded, PAYLOAD_BYTES_MAX};

const HEADER_BYTES: usize = 4;
/// 22 bits of the header are the length, the 10 above them the flag.
const LENGTH_BITS: u32 = 22;
const LENGTH_MAX: u32 = (1 << LENGTH_BITS) - 1;
const FLAG_MAX: u16 = (1 << 10) - 1;

/// Messages behind a header of 4 bytes, as HP-Socket's Pack components frame them, byte for byte.
///
/// The header is `flag << 22 | length`, little endian; the length does not count the header. A message has 1 to 4 194 303
/// bytes, and at most 262 144 unless [`max`](Self::max) says otherwise. A side whose flag is 0 does not check the flag of
/// the other. An empty message cannot be sent and ends the connection of who sends one, as there.
#[derive(Clone, Debug)]
pub struct Pack {
    flag: u16,
    max: u32,
}

impl Pack {
    /// With the flag 0 and messages of at most 262 144 bytes.
    pub fn new() -> Pack {
        Pack { flag: 0, max: PAYLOAD_BYTES_MAX as u32 }
    }

    /// Sends this flag, and if it is not 0 takes messages with it alone.
    ///
    /// # Panics
    ///
    /// If it is larger than 1023.
    pub fn flag(self, flag: u16) -> Pack {
        assert!(flag <= FLAG_MAX, "a flag of Pack has 10 bits: 0 to {FLAG_MAX}");
        Pack { flag, ..self }
    }

    /// The longest message that is sent and taken, in bytes.
    ///
    /// # Panics
    ///
    /// If it is not from 1 to 4 194 303.
    pub fn max(self, bytes: usize) -> Pack {
        let max = u32::try_from(bytes).unwrap_or(u32::MAX);
        assert!((1..=LENGTH_MAX).contains(&max), "messages of Pack have 1 to {LENGTH_MAX} bytes");
        Pack { max, ..self }
    }

    fn checked(&self, length: u64) -> Result<(), CodecError> {
        let max = u64::from(self.max);
        if (1..=max).contains(&length) { Ok(()) } else { Err(CodecError::Length { length, min: 1, max }) }
    }
}

impl Default for Pack {
    fn default() -> Pack {
        Pack::new()
    }
}

impl Codec for Pack {
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError> {
        let Some(header) = buffered.first_chunk::<HEADER_BYTES>() else {
            return Ok(Decoded::Incomplete { missing_min: HEADER_BYTES - buffered.len() });
        };
        let header = u32::from_le_bytes(*header);
        let (found, length) = ((header >> LENGTH_BITS) as u16, header & LENGTH_MAX);
        if self.flag != 0 && found != self.flag {
            return Err(CodecError::Flag { found, expected: self.flag });
        }
        self.checked(u64::from(length))?;
        Ok(super::frame(buffered, HEADER_BYTES, length as usize))
    }

    fn encode_head(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.checked(payload.len() as u64)?;
        let header = u32::from(self.flag) << LENGTH_BITS | payload.len() as u32;
        out.extend_from_slice(&header.to_le_bytes());
        Ok(())
    }

    fn frame_bytes_max(&self) -> usize {
        HEADER_BYTES + self.max as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flag: u16, length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut pack = Pack::new().flag(flag).max(LENGTH_MAX as usize);
        pack.encode_head(&vec![0; length], &mut out).unwrap();
        out
    }

    #[test]
    fn headers_are_those_of_hp_socket() {
        assert_eq!(header(0, 1), [0x01, 0, 0, 0]);
        assert_eq!(header(0, 262_144), [0, 0, 0x04, 0]);
        assert_eq!(header(0x2a5, 5), [0x05, 0x00, 0x40, 0xa9]);
        assert_eq!(header(0x3ff, 0x3f_ffff), [0xff; 4]);
    }

    #[test]
    fn a_flag_of_zero_takes_every_flag_and_another_one_only_itself() {
        let frame = [&header(0x2a5, 5)[..], b"hello"].concat();
        let found = Ok(Decoded::Frame { head: 4, payload: 5, tail: 0 });
        assert_eq!(Pack::new().decode(&frame), found);
        assert_eq!(Pack::new().flag(0x2a5).decode(&frame), found);
        let refused = Err(CodecError::Flag { found: 0x2a5, expected: 1 });
        assert_eq!(Pack::new().flag(1).decode(&frame), refused);
    }

    #[test]
    fn lengths_are_from_one_to_the_maximum_in_both_directions() {
        let mut pack = Pack::new().max(5);
        let refused = |length| Err(CodecError::Length { length, min: 1, max: 5 });
        assert_eq!(pack.decode(&[0, 0, 0, 0]).map(drop), refused(0));
        assert_eq!(pack.decode(&[6, 0, 0, 0]).map(drop), refused(6));
        assert_eq!(pack.decode(&[5, 0, 0, 0]), Ok(Decoded::Incomplete { missing_min: 5 }));
        let mut out = Vec::new();
        assert_eq!(pack.encode_head(b"", &mut out), refused(0));
        assert_eq!(pack.encode_head(b"123456", &mut out), refused(6));
        assert!(out.is_empty());
    }
}
