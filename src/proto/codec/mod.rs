//! Messages in a stream of bytes: where each begins and ends, and how to send one.
//!
//! TCP carries bytes, not messages. A [`Codec`] knows how the two ends agreed to mark messages; a [`Framer`] applies it to
//! what a connection receives and sends; [`Pull`] is for programs that would rather fetch as many bytes as they like.
//! Nothing here reads or writes a socket: push what was received, take messages until there is none.
//!
//! | Codec | A message is | As in |
//! | --- | --- | --- |
//! | [`Pack`] | behind a header of 4 bytes with a length and a flag | HP-Socket's Pack components |
//! | [`LengthPrefix`] | behind its length in 1, 2, 4 or 8 bytes | most binary protocols |
//! | [`Varint`] | behind its length in as few bytes as it takes | delimited protobuf messages |
//! | [`FixedSize`] | always as long as the others | telemetry, trackers |
//! | [`Delimiter`] | all up to a delimiter | lines of text |
//! | [`HeadTail`] | between a mark before it and one behind it | STX and ETX of serial protocols |
//!
//! Everything is bounded by default: no codec takes a message of more than [`PAYLOAD_BYTES_MAX`] bytes unless it is told
//! to, and a length that a peer announces is compared with the bound before memory is taken for it.
//!
//! # Example
//!
//! ```
//! use anabranch::codec::{Delimiter, Framer};
//! use anabranch::{Lease, Payload};
//!
//! let mut framer = Framer::new(Delimiter::new(b"\r\n"));
//! // Two deliveries, as `recv().await` would give them.
//! let mut lines = Vec::new();
//! for received in ["PING\r\nPI", "NG again\r\n"] {
//!     framer.push(Lease::from_bytes(received.into())).expect("it was emptied before");
//!     while let Some(message) = framer.next()? {
//!         lines.push(message);
//!     }
//! }
//! framer.finish()?; // the stream ended, and not within a message
//! assert_eq!(lines.iter().map(|line| &line[..]).collect::<Vec<_>>(), [&b"PING"[..], b"PING again"]);
//!
//! let mut out: Vec<Payload> = Vec::new();
//! framer.encode("PONG", &mut out)?; // what to send, in this order
//! assert_eq!(&*out[0], b"PONG\r\n");
//! # Ok::<(), anabranch::codec::CodecError>(())
//! ```
#![forbid(unsafe_code)]

mod delimiter;
mod error;
mod fixed_size;
mod framer;
mod head_tail;
mod length_prefix;
mod pack;
mod pull;
mod search;
mod varint;

pub use delimiter::Delimiter;
pub use error::CodecError;
pub use fixed_size::FixedSize;
pub use framer::Framer;
pub use head_tail::HeadTail;
pub use length_prefix::{Endian, LengthPrefix, Width};
pub use pack::Pack;
pub use pull::Pull;
pub use varint::Varint;

/// The longest payload, in bytes, that a codec takes and sends unless it is told otherwise: 256 KiB, as HP-Socket's.
pub const PAYLOAD_BYTES_MAX: usize = 262_144;

/// No slice of bytes is longer, so sums of a bound and what stands around a payload cannot overflow.
const BOUND_MAX: usize = isize::MAX as usize;

/// Where messages begin and end in a stream, and what to write around one.
///
/// A codec looks and never copies: it is shown bytes and tells where the payload lies among them. It may remember how
/// far it has looked (which is why decoding takes `&mut self`), and one codec serves one connection.
///
/// An implementation must answer by the bytes alone: the same stream gives the same messages in whatever pieces it
/// arrives. [`Framer`] checks the rest of the contract and ends with [`CodecError::Broken`] where it does not hold.
pub trait Codec: 'static {
    /// Looks for the first frame in `buffered`, which holds everything since the end of the frame before.
    ///
    /// While it answers [`Incomplete`](Decoded::Incomplete), the next call shows the same bytes and more behind them.
    /// After a frame the next call begins behind it. After an error there is no next call.
    ///
    /// # Errors
    ///
    /// If the bytes are no beginning of a frame that it takes.
    fn decode(&mut self, buffered: &[u8]) -> Result<Decoded, CodecError>;

    /// Appends to `out` what stands before the payload in a frame.
    ///
    /// # Errors
    ///
    /// If no frame can carry the payload, or none that this codec takes itself. Then nothing is sent.
    fn encode_head(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Appends to `out` what stands behind the payload; called after `encode_head` took it. Nothing by default.
    fn encode_tail(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let _ = (payload, out);
    }

    /// Whether the stream may end where it does, with `left` bytes behind the last frame.
    ///
    /// # Errors
    ///
    /// By default, if any are left: [`CodecError::Incomplete`].
    fn finish(&mut self, left: usize) -> Result<(), CodecError> {
        if left == 0 { Ok(()) } else { Err(CodecError::Incomplete { left }) }
    }

    /// The longest frame that it takes, in bytes, with all that stands around the payload. No more than this is kept
    /// of an incomplete frame.
    fn frame_bytes_max(&self) -> usize;
}

/// What a [`Codec`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A whole frame: `head` bytes, then the payload, then `tail` bytes; all three lie in the bytes shown, and not all
    /// are zero.
    Frame {
        /// Bytes before the payload.
        head: usize,
        /// Bytes of the payload.
        payload: usize,
        /// Bytes behind the payload.
        tail: usize,
    },
    /// Neither a frame nor an error can be told yet.
    Incomplete {
        /// With fewer further bytes than this the answer would be the same; at least 1.
        missing_min: usize,
    },
}

/// A frame of `head` bytes and a payload behind them, if all of it is there.
fn frame(buffered: &[u8], head: usize, payload: usize) -> Decoded {
    match (head + payload).saturating_sub(buffered.len()) {
        0 => Decoded::Frame { head, payload, tail: 0 },
        missing_min => Decoded::Incomplete { missing_min },
    }
}
