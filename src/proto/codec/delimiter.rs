//! [`Delimiter`]: messages that end with a sequence of bytes.
#![forbid(unsafe_code)]

use super::search::Terminated;
use super::{BOUND_MAX, Codec, CodecError, Decoded, PAYLOAD_BYTES_MAX};

/// Messages that each end with a delimiter, such as lines.
///
/// The delimiter may be any bytes; it does not belong to the messages unless [`keep`](Self::keep) says so. It is looked for
/// without looking at any byte twice, however the stream arrives. A payload with the delimiter in it is refused when it is
/// sent, because the peer would take it for several messages. A message may be empty.
#[derive(Clone, Debug)]
pub struct Delimiter {
    messages: Terminated,
    keep: bool,
}

impl Delimiter {
    /// Messages that end with these bytes, of at most [`PAYLOAD_BYTES_MAX`] bytes before them.
    ///
    /// # Panics
    ///
    /// If it is empty.
    pub fn new(delimiter: impl AsRef<[u8]>) -> Delimiter {
        Delimiter { messages: Terminated::new(delimiter.as_ref(), PAYLOAD_BYTES_MAX), keep: false }
    }

    /// The most bytes before the delimiter, of messages that are sent and taken.
    ///
    /// # Panics
    ///
    /// If it is more than `isize::MAX`.
    pub fn max(mut self, bytes: usize) -> Delimiter {
        assert!(bytes <= BOUND_MAX, "no message can be longer than `isize::MAX` bytes");
        self.messages.max = bytes;
        self
    }

    /// Received messages keep their delimiter. One to send may end with it, and else gets it.
    pub fn keep(self, keep: bool) -> Delimiter {
        Delimiter { keep, ..self }
    }

    /// Whether a payload to send brings its delimiter.
    fn has_its_own(&self, payload: &[u8]) -> bool {
        self.keep && payload.ends_with(self.messages.end.bytes())
    }
}

impl Codec for Delimiter {
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError> {
        let delimiter = self.messages.end.len();
        Ok(match self.messages.payload(buffered)? {
            Some(payload) if self.keep => Decoded::Frame { head: 0, payload: payload + delimiter, tail: 0 },
            Some(payload) => Decoded::Frame { head: 0, payload, tail: delimiter },
            // One byte may complete the delimiter, or make the message too long.
            None => Decoded::Incomplete { missing_min: 1 },
        })
    }

    fn encode_head(&mut self, payload: &[u8], _out: &mut Vec<u8>) -> Result<(), CodecError> {
        let end = if self.has_its_own(payload) { self.messages.end.len() } else { 0 };
        self.messages.check(&payload[..payload.len() - end])
    }

    fn encode_tail(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if !self.has_its_own(payload) {
            out.extend_from_slice(self.messages.end.bytes());
        }
    }

    fn frame_bytes_max(&self) -> usize {
        self.messages.max.saturating_add(self.messages.end.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(codec: &mut Delimiter, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        codec.encode_head(payload, &mut out)?;
        out.extend_from_slice(payload);
        codec.encode_tail(payload, &mut out);
        Ok(out)
    }

    #[test]
    fn a_message_may_be_empty_and_may_keep_its_delimiter() {
        let mut codec = Delimiter::new("\r\n");
        assert_eq!(codec.decode(b"\r\nx"), Ok(Decoded::Frame { head: 0, payload: 0, tail: 2 }));
        let mut codec = Delimiter::new("\r\n").keep(true);
        assert_eq!(codec.decode(b"ab\r\nx"), Ok(Decoded::Frame { head: 0, payload: 4, tail: 0 }));
    }

    #[test]
    fn the_maximum_counts_what_is_before_the_delimiter() {
        let mut codec = Delimiter::new("\r\n").max(3);
        assert_eq!(codec.decode(b"abc\r\n"), Ok(Decoded::Frame { head: 0, payload: 3, tail: 2 }));
        assert_eq!(codec.decode(b"abc\r"), Ok(Decoded::Incomplete { missing_min: 1 }));
        assert_eq!(codec.decode(b"abc\rd"), Err(CodecError::Delimiter { max: 3 }));
        assert_eq!(Delimiter::new("\r\n").max(3).decode(b"abcd\r\n"), Err(CodecError::Delimiter { max: 3 }));
    }

    #[test]
    fn what_is_sent_ends_with_one_delimiter() {
        let mut codec = Delimiter::new("\n");
        assert_eq!(sent(&mut codec, b"ab").unwrap(), b"ab\n");
        assert_eq!(sent(&mut codec, b"ab\n"), Err(CodecError::DelimiterInside));
        let mut codec = codec.keep(true);
        assert_eq!(sent(&mut codec, b"ab").unwrap(), b"ab\n");
        assert_eq!(sent(&mut codec, b"ab\n").unwrap(), b"ab\n");
        assert_eq!(sent(&mut codec, b"a\nb\n"), Err(CodecError::DelimiterInside));
    }

    #[test]
    #[should_panic(expected = "at least one byte")]
    fn an_empty_delimiter_panics() {
        Delimiter::new("");
    }
}
