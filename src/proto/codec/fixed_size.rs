//! [`FixedSize`]: messages of one length.
#![forbid(unsafe_code)]

use super::{BOUND_MAX, Codec, CodecError, Decoded};

/// Messages that are all as long, with nothing around them.
#[derive(Clone, Debug)]
pub struct FixedSize {
    bytes: usize,
}

impl FixedSize {
    /// Messages of so many bytes each.
    ///
    /// # Panics
    ///
    /// If it is 0, or more than `isize::MAX`.
    pub fn new(bytes: usize) -> FixedSize {
        assert!((1..=BOUND_MAX).contains(&bytes), "messages of a fixed size have at least one byte");
        FixedSize { bytes }
    }
}

impl Codec for FixedSize {
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError> {
        Ok(super::frame(buffered, 0, self.bytes))
    }

    fn encode_head(&mut self, payload: &[u8], _out: &mut Vec<u8>) -> Result<(), CodecError> {
        let (length, only) = (payload.len() as u64, self.bytes as u64);
        if length == only { Ok(()) } else { Err(CodecError::Length { length, min: only, max: only }) }
    }

    fn frame_bytes_max(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_when_all_its_bytes_are_there() {
        let mut codec = FixedSize::new(3);
        assert_eq!(codec.decode(b"ab"), Ok(Decoded::Incomplete { missing_min: 1 }));
        assert_eq!(codec.decode(b"abcd"), Ok(Decoded::Frame { head: 0, payload: 3, tail: 0 }));
    }

    #[test]
    fn a_payload_of_another_size_is_refused() {
        let refused = Err(CodecError::Length { length: 4, min: 3, max: 3 });
        assert_eq!(FixedSize::new(3).encode_head(b"abcd", &mut Vec::new()), refused);
    }
}
