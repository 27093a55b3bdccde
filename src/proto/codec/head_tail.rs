//! [`HeadTail`]: messages between two marks.
#![forbid(unsafe_code)]

use super::search::Terminated;
use super::{BOUND_MAX, Codec, CodecError, Decoded, PAYLOAD_BYTES_MAX};

/// Messages that begin with one mark and end with another, as devices on serial lines send them (STX and ETX); the
/// head-and-tail receive adapter of HP-Socket's .NET wrapper.
///
/// The marks do not belong to the messages. A stream in which anything else stands between the tail of one message and
/// the head of the next is refused. A payload with the tail in it is refused when it is sent. A message may be empty.
#[derive(Clone, Debug)]
pub struct HeadTail {
    head: Box<[u8]>,
    /// How many bytes of the head of the current message were there.
    head_seen: usize,
    messages: Terminated,
}

impl HeadTail {
    /// Messages between these marks, of at most [`PAYLOAD_BYTES_MAX`] bytes.
    ///
    /// # Panics
    ///
    /// If one of the marks is empty.
    pub fn new(head: impl AsRef<[u8]>, tail: impl AsRef<[u8]>) -> HeadTail {
        let head: Box<[u8]> = head.as_ref().into();
        assert!(
            !head.is_empty(),
            "the head has at least one byte; for messages without one there is `Delimiter`"
        );
        HeadTail { head, head_seen: 0, messages: Terminated::new(tail.as_ref(), PAYLOAD_BYTES_MAX) }
    }

    /// The longest message that is sent and taken, in bytes, without its marks.
    ///
    /// # Panics
    ///
    /// If it is more than `isize::MAX`.
    pub fn max(mut self, bytes: usize) -> HeadTail {
        assert!(bytes <= BOUND_MAX, "no message can be longer than `isize::MAX` bytes");
        self.messages.max = bytes;
        self
    }

    /// Compares what there is of the head; whether all of it is.
    fn sees_head(&mut self, buffered: &[u8]) -> Result<bool, CodecError> {
        while self.head_seen < self.head.len() {
            match buffered.get(self.head_seen) {
                None => return Ok(false),
                Some(byte) if *byte == self.head[self.head_seen] => self.head_seen += 1,
                Some(_) => return Err(CodecError::Head { at: self.head_seen }),
            }
        }
        Ok(true)
    }
}

impl Codec for HeadTail {
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError> {
        if self.sees_head(buffered)? {
            let (head, tail) = (self.head.len(), self.messages.end.len());
            if let Some(payload) = self.messages.payload(&buffered[head..])? {
                self.head_seen = 0;
                return Ok(Decoded::Frame { head, payload, tail });
            }
        }
        // One byte may be the last of the tail, or a wrong one.
        Ok(Decoded::Incomplete { missing_min: 1 })
    }

    fn encode_head(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.messages.check(payload)?;
        out.extend_from_slice(&self.head);
        Ok(())
    }

    fn encode_tail(&mut self, _payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(self.messages.end.bytes());
    }

    fn frame_bytes_max(&self) -> usize {
        self.messages.max.saturating_add(self.head.len()).saturating_add(self.messages.end.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_lies_between_its_marks() {
        let mut codec = HeadTail::new("<<", ">>");
        assert_eq!(codec.decode(b"<<a>"), Ok(Decoded::Incomplete { missing_min: 1 }));
        assert_eq!(codec.decode(b"<<a>><<"), Ok(Decoded::Frame { head: 2, payload: 1, tail: 2 }));
        assert_eq!(codec.decode(b"<<>>"), Ok(Decoded::Frame { head: 2, payload: 0, tail: 2 }));
    }

    #[test]
    fn a_wrong_head_is_refused_at_its_first_wrong_byte() {
        assert_eq!(HeadTail::new("<<", ">>").decode(b"<"), Ok(Decoded::Incomplete { missing_min: 1 }));
        assert_eq!(HeadTail::new("<<", ">>").decode(b"<a"), Err(CodecError::Head { at: 1 }));
        assert_eq!(HeadTail::new("<<", ">>").decode(b"a"), Err(CodecError::Head { at: 0 }));
    }

    #[test]
    fn marks_may_be_the_same_and_the_tail_begins_behind_the_head() {
        let mut codec = HeadTail::new("~~", "~~");
        assert_eq!(codec.decode(b"~~~"), Ok(Decoded::Incomplete { missing_min: 1 }));
        assert_eq!(codec.decode(b"~~~~"), Ok(Decoded::Frame { head: 2, payload: 0, tail: 2 }));
    }

    #[test]
    fn the_maximum_is_without_the_marks() {
        let mut codec = HeadTail::new("<", ">").max(2);
        assert_eq!(codec.decode(b"<ab>"), Ok(Decoded::Frame { head: 1, payload: 2, tail: 1 }));
        assert_eq!(codec.decode(b"<abc"), Err(CodecError::Delimiter { max: 2 }));
        let refused = Err(CodecError::Length { length: 3, min: 0, max: 2 });
        assert_eq!(codec.encode_head(b"abc", &mut Vec::new()), refused);
    }
}
