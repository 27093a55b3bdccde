//! [`CodecError`]: why bytes are no message.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::{fmt, io};

/// Why received bytes are no message, or why a payload cannot be sent as one.
///
/// After an error of the receiving side the place of the next message is unknown, so the connection is of no more use; one
/// of the sending side concerns that payload alone. As an [`io::Error`] it is of the kind `InvalidData`, and
/// [`Incomplete`](Self::Incomplete) of the kind `UnexpectedEof`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// A header has another flag than was agreed ([`Pack`](super::Pack)); HP-Socket's `EBADMSG`.
    Flag {
        /// The flag of the header.
        found: u16,
        /// The flag of this side.
        expected: u16,
    },
    /// A length is outside of what this side takes or its field can say; HP-Socket's `EMSGSIZE`. All three count as the
    /// length field does, where there is one.
    Length {
        /// The length that was announced, or that of the payload to send.
        length: u64,
        /// The smallest that is taken.
        min: u64,
        /// The largest that is taken.
        max: u64,
    },
    /// No delimiter, or no mark of the end, came within the longest payload.
    Delimiter {
        /// The longest payload in bytes.
        max: usize,
    },
    /// A payload to send has the delimiter, or the mark of the end, in it, so the peer would see its end there.
    DelimiterInside,
    /// A message does not begin with its mark ([`HeadTail`](super::HeadTail)).
    Head {
        /// The first byte, counted from the message's beginning, that differs.
        at: usize,
    },
    /// A varint is longer than its value needs or than 64 bits.
    Varint,
    /// The length field in a message to send, whose header belongs to the message, does not say its length.
    Header,
    /// The stream ended inside of a message.
    Incomplete {
        /// How many bytes of it had come.
        left: usize,
    },
    /// A codec broke the contract of [`Codec`](super::Codec), in these words.
    Broken(&'static str),
    /// An error of a codec of the program's own, in its words.
    Other(Cow<'static, str>),
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodecError::Flag { found, expected } => write!(
                f,
                "the header has the flag {found:#x} instead of {expected:#x}; set the same flag on both sides"
            ),
            CodecError::Length { length, min, max } => write!(
                f,
                "a message of length {length} is outside of {min} to {max}; raise the maximum of the codec on both sides, or split the message"
            ),
            CodecError::Delimiter { max } => write!(
                f,
                "no delimiter within {max} bytes; raise the maximum of the codec, or check that both sides use the same delimiter"
            ),
            CodecError::DelimiterInside => f.write_str(
                "the payload has the delimiter in it; escape it, or use a codec with a length prefix",
            ),
            CodecError::Head { at } => write!(
                f,
                "the message does not begin with its mark (byte {at} differs); check that both sides use the same marks"
            ),
            CodecError::Varint => f.write_str(
                "the length is no varint in its shortest form of at most 64 bits; check that both sides use the same framing",
            ),
            CodecError::Header => f.write_str(
                "the header of the message to send does not say its length; fill in the length field before sending it",
            ),
            CodecError::Incomplete { left } => write!(
                f,
                "the stream ended {left} bytes after the last whole message; treat the connection as broken"
            ),
            CodecError::Broken(how) => write!(f, "the codec broke its contract: {how}; correct the codec"),
            CodecError::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for CodecError {}

impl From<CodecError> for io::Error {
    fn from(error: CodecError) -> io::Error {
        let kind = match error {
            CodecError::Incomplete { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_an_io_error_it_keeps_its_type_and_words() {
        let invalid = io::Error::from(CodecError::Flag { found: 1, expected: 2 });
        assert_eq!(invalid.kind(), io::ErrorKind::InvalidData);
        assert!(invalid.to_string().contains("same flag on both sides"));
        let typed = invalid.get_ref().and_then(|error| error.downcast_ref::<CodecError>());
        assert_eq!(typed, Some(&CodecError::Flag { found: 1, expected: 2 }));
        let ended = io::Error::from(CodecError::Incomplete { left: 3 });
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }
}
