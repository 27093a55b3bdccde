//! [`Framer`]: a codec applied to what one connection receives and sends.
#![forbid(unsafe_code)]

use super::{Codec, CodecError, Decoded};
use crate::buf::{Lease, Payload};
use crate::error::Full;
use std::fmt;

/// So many bytes are gathered at once where a codec does not say how many it needs. Those behind the end of the message
/// were copied in vain.
const STEP_BYTES: usize = 256;

/// Payloads up to this length are copied behind their head: in a send of several pieces, each costs as much as a copy of
/// some hundred bytes.
const JOINED_BYTES_MAX: usize = 1024;

/// Cuts messages out of received bytes, and frames those to send, for one connection.
///
/// [`push`](Self::push) a lease, then take messages with [`next`](Self::next) until there is none. A message that lies
/// within one lease is a piece of it, without a copy; one that several leases bring is gathered on the heap. What is left
/// of a lease when no message is whole is copied, too, so the beginning of a message never keeps a buffer of the pool, and no
/// more of it is kept than the codec's longest frame (and 256 bytes).
///
/// After an error there are no further messages: each call gives the error again, what was received is dropped, and the
/// connection should be closed. Errors of [`encode`](Self::encode) change nothing.
pub struct Framer {
    codec: Box<dyn Codec>,
    /// What was received and not looked at, or not wholly.
    received: Lease,
    /// The beginning of a frame, which the leases before brought; `received` follows.
    begun: Vec<u8>,
    /// As long as fewer bytes of the frame than this are there, the codec need not look.
    wanted: usize,
    failed: Option<CodecError>,
}

/// Where a frame and its payload end, and where the payload begins.
struct Found {
    head: usize,
    payload: usize,
    whole: usize,
}

impl Framer {
    /// With this codec, at the beginning of a stream.
    pub fn new(codec: impl Codec) -> Framer {
        let (received, begun) = (Lease::empty(), Vec::new());
        Framer { codec: Box::new(codec), received, begun, wanted: 0, failed: None }
    }

    /// Takes what was received next.
    ///
    /// # Errors
    ///
    /// Gives the lease back while [`next`](Self::next) has not given `None` for the one before.
    pub fn push(&mut self, lease: Lease) -> Result<(), Full<Lease>> {
        if !self.received.is_empty() {
            return Err(Full(lease));
        }
        if self.failed.is_none() && !lease.is_empty() {
            self.received = lease;
        }
        Ok(())
    }

    /// The next message, without what the codec put around it; `None` if the rest of it has to be received first.
    ///
    /// # Errors
    ///
    /// If what was received is no message; then at each further call.
    #[allow(clippy::should_implement_trait, reason = "after `None` there may be more, and there are errors")]
    pub fn next(&mut self) -> Result<Option<Lease>, CodecError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let found = if self.begun.is_empty() { self.cut() } else { self.gather() };
        found.inspect_err(|error| {
            (self.received, self.begun) = (Lease::empty(), Vec::new());
            self.failed = Some(error.clone());
        })
    }

    /// Whether a message has begun whose rest is still to be received, as [`next`](Self::next) found when it gave `None`.
    pub fn is_partial(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Bytes that were received and are in no message yet.
    pub fn buffered(&self) -> usize {
        self.begun.len() + self.received.len()
    }

    /// Copies what is left of the last lease out of the pool: for who stops taking messages before there is none, so that
    /// a slow consumer keeps no buffer that others could receive into.
    pub fn detach(&mut self) {
        self.received = std::mem::replace(&mut self.received, Lease::empty()).detach();
    }

    /// Tells that the stream has ended, after the last message was taken.
    ///
    /// # Errors
    ///
    /// [`CodecError::Incomplete`] if it ended inside of a message; the error of [`next`](Self::next) if there was one.
    pub fn finish(&mut self) -> Result<(), CodecError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => self.codec.finish(self.buffered()),
        }
    }

    /// Appends to `out` what to send, in this order and with nothing between, so that the peer receives the payload as one
    /// message.
    ///
    /// A payload of more than a kilobyte is passed on without a copy, with a small piece before or behind it where the
    /// codec has any; a smaller one is joined with them.
    ///
    /// # Errors
    ///
    /// If no frame can carry the payload. Then it is dropped, and `out` is as before.
    pub fn encode(&mut self, payload: impl Into<Payload>, out: &mut Vec<Payload>) -> Result<(), CodecError> {
        let payload = payload.into();
        let joined = payload.len() <= JOINED_BYTES_MAX;
        let mut frame = Vec::with_capacity(if joined { payload.len() + 16 } else { 16 });
        self.codec.encode_head(&payload, &mut frame)?;
        if joined {
            frame.extend_from_slice(&payload);
            self.codec.encode_tail(&payload, &mut frame);
            out.push(frame.into());
            return Ok(());
        }
        let mut tail = Vec::new();
        self.codec.encode_tail(&payload, &mut tail);
        let around = |bytes: Vec<u8>| (!bytes.is_empty()).then(|| Payload::from(bytes));
        out.extend(around(frame).into_iter().chain([payload]).chain(around(tail)));
        Ok(())
    }

    /// A message that lies in the lease wholly; else the rest of the lease is its beginning.
    fn cut(&mut self) -> Result<Option<Lease>, CodecError> {
        if self.received.is_empty() {
            return Ok(None);
        }
        let mut rest = std::mem::replace(&mut self.received, Lease::empty());
        let Some(found) = self.look(&rest)? else {
            self.begin(&rest);
            return Ok(None);
        };
        if found.whole < rest.len() {
            self.received = rest.split_off(found.whole);
        }
        Ok(Some(found.message(rest)))
    }

    /// A message whose beginning is there, with as much of the lease as it takes.
    fn gather(&mut self) -> Result<Option<Lease>, CodecError> {
        while !self.received.is_empty() {
            let before = self.begun.len();
            let step = self.wanted.saturating_sub(before).max(STEP_BYTES).min(self.received.len());
            self.make_room(step);
            self.begun.extend_from_slice(&self.received[..step]);
            if self.begun.len() >= self.wanted {
                let begun = std::mem::take(&mut self.begun);
                let found = self.look(&begun)?;
                self.begun = begun;
                if let Some(found) = found {
                    return self.complete(found, before);
                }
            }
            self.consume(step);
        }
        Ok(None)
    }

    /// The message of a frame that was found in what is gathered, of which all behind `before` is in the lease, too.
    fn complete(&mut self, found: Found, before: usize) -> Result<Option<Lease>, CodecError> {
        let new = found.whole.checked_sub(before).filter(|new| *new > 0);
        let new = new.ok_or(CodecError::Broken("a frame ended where it had been incomplete"))?;
        self.consume(new);
        let mut frame = std::mem::take(&mut self.begun);
        frame.truncate(found.whole);
        Ok(Some(found.message(Lease::from_bytes(frame.into()))))
    }

    /// Forgets the first `n` bytes of the lease. One without a byte would keep its buffer all the same.
    fn consume(&mut self, n: usize) {
        if n < self.received.len() {
            self.received.advance(n);
        } else {
            self.received = Lease::empty();
        }
    }

    /// Asks the codec, and checks its answer; notes how many bytes it wants if there is no frame.
    fn look(&mut self, buffered: &[u8]) -> Result<Option<Found>, CodecError> {
        let max = self.codec.frame_bytes_max();
        let too_long = |length: usize| CodecError::Length { length: length as u64, min: 0, max: max as u64 };
        match self.codec.decode(buffered)? {
            Decoded::Incomplete { missing_min } => {
                self.wanted = buffered.len().saturating_add(missing_min.max(1));
                if self.wanted > max { Err(too_long(self.wanted)) } else { Ok(None) }
            }
            Decoded::Frame { head, payload, tail } => {
                let whole = head.saturating_add(payload).saturating_add(tail);
                match whole {
                    0 => Err(CodecError::Broken("a frame has no byte")),
                    _ if whole > buffered.len() => {
                        Err(CodecError::Broken("a frame ends behind what was shown"))
                    }
                    _ if whole > max => Err(too_long(whole)),
                    _ => Ok(Some(Found { head, payload: head + payload, whole })),
                }
            }
        }
    }

    fn begin(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.begun.extend_from_slice(bytes);
    }

    /// Room for so many bytes more. It doubles, so that bytes that come one by one are moved a few times each, but not
    /// beyond the longest frame; and it follows what has come, not what a peer has announced.
    fn make_room(&mut self, more: usize) {
        let (len, capacity) = (self.begun.len(), self.begun.capacity());
        if len + more > capacity {
            let doubled = (2 * capacity).max(STEP_BYTES).min(self.codec.frame_bytes_max());
            self.begun.reserve_exact(doubled.max(len + more) - len);
        }
    }
}

impl Found {
    /// The payload of this frame.
    fn message(&self, mut frame: Lease) -> Lease {
        if self.head == self.payload {
            // Of no bytes, and so not of a buffer.
            return Lease::empty();
        }
        frame.truncate(self.payload);
        frame.advance(self.head);
        frame
    }
}

impl fmt::Debug for Framer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partial, failed) = (self.begun.len(), &self.failed);
        write!(f, "Framer({partial} bytes of a message, {} not looked at, {failed:?})", self.received.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Delimiter, FixedSize, LengthPrefix, Pack};
    use super::*;
    use crate::buf::{Pool, filled};
    use bytes::Bytes;

    fn framed(codec: impl Codec, payloads: &[&'static [u8]]) -> Vec<u8> {
        let (mut framer, mut out) = (Framer::new(codec), Vec::new());
        payloads.iter().for_each(|payload| framer.encode(*payload, &mut out).unwrap());
        out.iter().flat_map(|piece| piece.to_vec()).collect()
    }

    fn pool(count: usize) -> Pool {
        Pool::new(count, 64, Box::new(|| {}))
    }

    #[test]
    fn messages_that_lie_in_one_lease_are_pieces_of_it() {
        let pool = pool(1);
        let mut framer = Framer::new(Pack::new());
        let stream = framed(Pack::new(), &[b"one", b"two", b"three"]);
        framer.push(filled(&pool, &stream)).unwrap();
        for expected in [&b"one"[..], b"two", b"three"] {
            let message = framer.next().unwrap().unwrap();
            assert_eq!(&*message, expected);
            assert!(message.is_pooled());
        }
        assert_eq!(pool.available(), 1, "nothing is held any more");
        assert!(framer.next().unwrap().is_none());
    }

    #[test]
    fn the_beginning_of_a_message_keeps_no_buffer_nor_does_its_end() {
        let pool = pool(1);
        let mut framer = Framer::new(Pack::new());
        let stream = framed(Pack::new(), &[b"one", b"two"]);
        for at in 1..stream.len() {
            let mut messages = Vec::new();
            for piece in [&stream[..at], &stream[at..]] {
                framer.push(filled(&pool, piece)).unwrap();
                while let Some(message) = framer.next().unwrap() {
                    messages.push(message.to_vec());
                }
                assert_eq!(pool.available(), 1, "cut at {at}");
            }
            assert_eq!(messages, [b"one", b"two"]);
        }
        // Nor before it is asked whether there is a further one.
        framer.push(filled(&pool, &stream[..3])).unwrap();
        assert!(framer.next().unwrap().is_none());
        framer.push(filled(&pool, &stream[3..7])).unwrap();
        let message = framer.next().unwrap().unwrap();
        assert_eq!((&*message, pool.available()), (&b"one"[..], 1));
    }

    #[test]
    fn what_is_left_when_nobody_takes_it_can_be_copied_out() {
        let pool = pool(1);
        let mut framer = Framer::new(FixedSize::new(2));
        framer.push(filled(&pool, b"aabb")).unwrap();
        drop(framer.next().unwrap());
        assert_eq!(pool.available(), 0);
        framer.detach();
        assert_eq!(pool.available(), 1);
        assert_eq!(&*framer.next().unwrap().unwrap(), b"bb");
    }

    #[test]
    fn an_empty_message_and_an_error_keep_no_buffer() {
        let pool = pool(1);
        let mut framer = Framer::new(LengthPrefix::default().max(9));
        framer.push(filled(&pool, &[0, 0, 0, 0, 0, 0, 0, 10, 7])).unwrap();
        let empty = framer.next().unwrap().unwrap();
        assert!(empty.is_empty() && !empty.is_pooled());
        framer.next().unwrap_err();
        assert_eq!(pool.available(), 1);
        framer.push(filled(&pool, b"more")).unwrap();
        assert_eq!((pool.available(), framer.buffered()), (1, 0), "there is no use for it");
    }

    #[test]
    fn a_length_that_a_peer_announces_takes_no_memory_before_its_bytes_come() {
        let mut framer = Framer::new(LengthPrefix::default().max(1 << 30));
        for piece in [&[0x3f, 0xff][..], &[0xff, 0xff], &[1]] {
            framer.push(Lease::from_bytes(Bytes::copy_from_slice(piece))).unwrap();
            assert!(framer.next().unwrap().is_none());
        }
        assert_eq!((framer.buffered(), framer.begun.capacity()), (5, STEP_BYTES));
    }

    #[test]
    fn bytes_that_come_one_by_one_are_moved_a_few_times_in_all() {
        let mut framer = Framer::new(Delimiter::new("\n"));
        let (mut moves, mut capacity) = (0, 0);
        for _ in 0..200_000 {
            framer.push(Lease::from_bytes(Bytes::from_static(b"x"))).unwrap();
            assert!(framer.next().unwrap().is_none());
            moves += u32::from(framer.begun.capacity() != capacity);
            capacity = framer.begun.capacity();
        }
        // 256 bytes doubled until they are 256 KiB.
        assert_eq!(moves, 11);
        assert!(capacity <= 262_144 + 1);
    }
}
