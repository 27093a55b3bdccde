//! What two processes say to each other when one takes over from the other: bytes in, messages out.
//!
//! # The messages, byte by byte
//!
//! Each begins with a head of eight bytes:
//!
//! | Bytes | What |
//! | --- | --- |
//! | 0 to 3 | `ABHO` |
//! | 4 | the version, 1 |
//! | 5 | the kind, below |
//! | 6 and 7 | the length of what follows, the low byte first; at most 256 |
//!
//! | Kind | Who | What follows |
//! | --- | --- | --- |
//! | 1 `Hello` | successor | nothing |
//! | 2 `Offer` | predecessor | how many sockets come, 2 bytes, the low one first, 1 to 1024; then 1 byte, 0 if they do not block, 1 if they do |
//! | 3 `Socket` | predecessor | 1 byte, 1 for the socket of the hand-over itself and else 0; then the name in UTF-8. It carries one descriptor |
//! | 4 `Ready` | successor | nothing |
//! | 5 `Released` | predecessor | nothing |
//!
//! They come in this order, `Socket` as often as was offered, that of the hand-over last. Whoever hears anything else, or
//! a descriptor with another message, closes the connection. A connection that closes before `Released` leaves the
//! predecessor in charge.
#![forbid(unsafe_code)]

use std::{fmt, io};

const MAGIC: &[u8; 4] = b"ABHO";
const VERSION: u8 = 1;
/// Bytes of a head.
pub(super) const HEAD_BYTES: usize = 8;
/// The most bytes that follow a head.
const BODY_BYTES_MAX: usize = 256;
/// The most sockets of one hand-over, its own included.
pub(super) const SOCKETS_MAX: usize = 1024;

/// Why a hand-over came to nothing; the inner error of an [`io::Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HandoverError {
    /// Who answered speaks another protocol.
    NotHandover,
    /// The other process has this version of the protocol, which this one does not know.
    Version(u8),
    /// A message is malformed: what is wrong with it.
    Malformed(&'static str),
    /// A message came out of turn.
    OutOfTurn,
    /// More sockets than one hand-over may have (1024, its own included), or none.
    SocketCount(usize),
    /// The other process belongs to this user, neither to the own one nor to root.
    Stranger(u32),
    /// The two processes run on different kinds of backend: one needs sockets that block, the other such that do not,
    /// and a socket is the same in both.
    OtherBackend,
    /// The predecessor did not release its sockets, and goes on.
    NotReleased,
    /// The sockets have been handed over already.
    Over,
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandoverError::NotHandover => f.write_str("whoever answers at the path knows nothing of hand-overs"),
            HandoverError::Version(version) => {
                write!(f, "the other process speaks version {version} of the hand-over, this one {VERSION}")
            }
            HandoverError::Malformed(what) => write!(f, "a message of the hand-over is malformed: {what}"),
            HandoverError::OutOfTurn => f.write_str("a message of the hand-over came out of turn"),
            HandoverError::SocketCount(count) => {
                write!(f, "{count} sockets cannot be handed over; 1 to {SOCKETS_MAX} can, that of the hand-over included")
            }
            HandoverError::Stranger(user) => write!(f, "the other process belongs to user {user}"),
            HandoverError::OtherBackend => f.write_str(
                "predecessor and successor run on different kinds of backend (ANABRANCH_BACKEND); let both have the same",
            ),
            HandoverError::NotReleased => f.write_str("the predecessor has not released its sockets and goes on"),
            HandoverError::Over => f.write_str("the sockets have been handed over already"),
        }
    }
}

impl std::error::Error for HandoverError {}

impl From<HandoverError> for io::Error {
    fn from(error: HandoverError) -> io::Error {
        let kind = match error {
            HandoverError::NotHandover | HandoverError::Malformed(_) | HandoverError::OutOfTurn => {
                io::ErrorKind::InvalidData
            }
            HandoverError::Version(_) | HandoverError::OtherBackend => io::ErrorKind::Unsupported,
            HandoverError::SocketCount(_) => io::ErrorKind::InvalidInput,
            HandoverError::Stranger(_) => io::ErrorKind::PermissionDenied,
            HandoverError::NotReleased => io::ErrorKind::ConnectionAborted,
            HandoverError::Over => io::ErrorKind::NotConnected,
        };
        io::Error::new(kind, error)
    }
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Message {
    Hello,
    Offer { sockets: usize, blocking: bool },
    Socket { of_handover: bool, name: String },
    Ready,
    Released,
}

/// The head of a message that is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    kind: u8,
    pub(super) body_len: usize,
}

impl Message {
    /// Its bytes. A name has at most 255, so every body fits.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Message::Hello => (1, Vec::new()),
            Message::Offer { sockets, blocking } => {
                let [low, high] = u16::try_from(*sockets).unwrap_or(u16::MAX).to_le_bytes();
                (2, vec![low, high, u8::from(*blocking)])
            }
            Message::Socket { of_handover, name } => {
                let mut body = vec![u8::from(*of_handover)];
                body.extend_from_slice(name.as_bytes());
                (3, body)
            }
            Message::Ready => (4, Vec::new()),
            Message::Released => (5, Vec::new()),
        };
        let [low, high] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_le_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[VERSION, kind, low, high]);
        bytes.extend_from_slice(&body);
        bytes
    }
}

impl Head {
    /// Reads a head.
    pub(super) fn read(bytes: &[u8; HEAD_BYTES]) -> Result<Head, HandoverError> {
        let [a, b, c, d, version, kind, low, high] = *bytes;
        if [a, b, c, d] != *MAGIC {
            return Err(HandoverError::NotHandover);
        }
        if version != VERSION {
            return Err(HandoverError::Version(version));
        }
        let body_len = usize::from(u16::from_le_bytes([low, high]));
        if body_len > BODY_BYTES_MAX {
            return Err(HandoverError::Malformed("it is too long"));
        }
        Ok(Head { kind, body_len })
    }

    /// Reads what follows the head.
    pub(super) fn message(self, body: &[u8]) -> Result<Message, HandoverError> {
        match (self.kind, body) {
            (1, []) => Ok(Message::Hello),
            (2, [low, high, blocking @ (0 | 1)]) => {
                let sockets = usize::from(u16::from_le_bytes([*low, *high]));
                if !(1..=SOCKETS_MAX).contains(&sockets) {
                    return Err(HandoverError::SocketCount(sockets));
                }
                Ok(Message::Offer { sockets, blocking: *blocking == 1 })
            }
            (3, [of_handover @ (0 | 1), name @ ..]) => {
                let name =
                    std::str::from_utf8(name).map_err(|_| HandoverError::Malformed("a name is no UTF-8"))?;
                Ok(Message::Socket { of_handover: *of_handover == 1, name: name.to_owned() })
            }
            (4, []) => Ok(Message::Ready),
            (5, []) => Ok(Message::Released),
            (1..=5, _) => Err(HandoverError::Malformed("its parts are not those of its kind")),
            _ => Err(HandoverError::Malformed("its kind is unknown")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Message, HandoverError> {
        let head: &[u8; HEAD_BYTES] = bytes[..HEAD_BYTES].try_into().expect("a whole head");
        let head = Head::read(head)?;
        assert_eq!(bytes.len(), HEAD_BYTES + head.body_len, "one whole message");
        head.message(&bytes[HEAD_BYTES..])
    }

    #[test]
    fn the_bytes_are_those_of_the_description() {
        let offer = Message::Offer { sockets: 0x0102, blocking: true };
        assert_eq!(offer.encode(), b"ABHO\x01\x02\x03\x00\x02\x01\x01");
        let socket = Message::Socket { of_handover: false, name: "echo".into() };
        assert_eq!(socket.encode(), b"ABHO\x01\x03\x05\x00\x00echo");
        assert_eq!(Message::Hello.encode(), b"ABHO\x01\x01\x00\x00");
        assert_eq!(Message::Ready.encode(), b"ABHO\x01\x04\x00\x00");
        assert_eq!(Message::Released.encode(), b"ABHO\x01\x05\x00\x00");
    }

    #[test]
    fn every_message_comes_back() {
        let name = "n".repeat(255);
        for message in [
            Message::Hello,
            Message::Offer { sockets: SOCKETS_MAX, blocking: false },
            Message::Socket { of_handover: true, name },
            Message::Socket { of_handover: false, name: String::new() },
            Message::Ready,
            Message::Released,
        ] {
            assert_eq!(decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_reason() {
        let cases: [(&[u8], HandoverError); 9] = [
            (b"HTTP/1.1", HandoverError::NotHandover),
            (b"ABHO\x02\x01\x00\x00", HandoverError::Version(2)),
            (b"ABHO\x01\x03\x01\x01", HandoverError::Malformed("it is too long")),
            (b"ABHO\x01\x00\x00\x00", HandoverError::Malformed("its kind is unknown")),
            (b"ABHO\x01\x01\x01\x00x", HandoverError::Malformed("its parts are not those of its kind")),
            (b"ABHO\x01\x03\x00\x00", HandoverError::Malformed("its parts are not those of its kind")),
            (b"ABHO\x01\x03\x02\x00\x00\xff", HandoverError::Malformed("a name is no UTF-8")),
            (b"ABHO\x01\x02\x03\x00\x00\x00\x00", HandoverError::SocketCount(0)),
            (b"ABHO\x01\x02\x03\x00\x01\x04\x00", HandoverError::SocketCount(1025)),
        ];
        for (bytes, error) in cases {
            let head = Head::read(bytes[..HEAD_BYTES].try_into().unwrap());
            let read = head.and_then(|head| head.message(&bytes[HEAD_BYTES..]));
            assert_eq!(read, Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(head: [u8; 2], len: u16, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let [low, high] = len.to_le_bytes();
            let bytes = [b'A', b'B', b'H', b'O', head[0] % 3, head[1] % 8, low, high];
            if let Ok(head) = Head::read(&bytes) {
                prop_assert!(head.body_len <= BODY_BYTES_MAX);
                let _ = head.message(&body);
            }
        }
    }
}
