//! [`Payload`]: bytes on their way out.
#![forbid(unsafe_code)]

use super::lease::Lease;
use bytes::{Buf, Bytes};
use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::ops::{Deref, Range};
use std::rc::Rc;

/// Owned bytes to send: a received [`Lease`] passed on, `Bytes`, a `Vec<u8>`, a `String`, or static bytes.
///
/// None of the conversions copies. The runtime owns the payload from the moment a send accepts it until the
/// kernel no longer needs it.
pub struct Payload(Hold);

// Payloads are moved often, into a slot and back, and an operation with one makes the slot as large as it is.
const _: () = assert!(size_of::<Payload>() <= 32);

enum Hold {
    Heap(Bytes),
    Held(Held),
}

/// What is shorter than `Bytes`: apart, so that the compiler finds room for telling which.
enum Held {
    Lease(Lease),
    Part(Part),
    /// A part of its first message has left.
    Begun(Part),
}

/// What is left to send of messages that many connections send.
struct Part {
    block: Rc<Block>,
    from: u32,
    to: u32,
}

/// Messages that many connections of a shard send, one after the other.
///
/// Small ones are gathered: until the first send reads the block, at the end of the turn, more can be appended, and a
/// connection that got the one before needs no more than a longer [`Part`]. Blocks are counted without atomics, and who
/// is not the last holder may let go of one while the shard is borrowed, because no destructor runs.
pub(crate) struct Block {
    growing: RefCell<Vec<u8>>,
    bytes: OnceCell<Bytes>,
    units: RefCell<Vec<Unit>>,
}

/// Messages that stay together: where they end in their block, and how many they are.
#[derive(Clone, Copy)]
struct Unit {
    end: usize,
    messages: u32,
}

/// Most bytes of a block that is gathered.
const GATHERED_BYTES_MAX: usize = 16 * 1024;

impl Block {
    /// A block of one payload. Bytes of the pool are copied out of it: the slowest connection says how long they are held.
    pub(crate) fn of(payload: Payload, messages: u32) -> Rc<Block> {
        let bytes = payload.detach().into_bytes();
        let units = vec![Unit { end: bytes.len(), messages }].into();
        Rc::new(Block { growing: RefCell::default(), bytes: bytes.into(), units })
    }

    /// A block to be gathered.
    pub(crate) fn gathered() -> Rc<Block> {
        let growing = Vec::with_capacity(512).into();
        Rc::new(Block { growing, bytes: OnceCell::new(), units: RefCell::default() })
    }

    /// Appends messages that stay together; gives their place, or nothing if they have to go to another block.
    pub(crate) fn append(&self, bytes: &[u8], messages: u32) -> Option<Range<usize>> {
        let mut growing = self.growing.borrow_mut();
        let (from, to) = (growing.len(), growing.len() + bytes.len());
        if self.bytes.get().is_some() || to > GATHERED_BYTES_MAX {
            return None;
        }
        growing.extend_from_slice(bytes);
        self.units.borrow_mut().push(Unit { end: to, messages });
        Some(from..to)
    }

    /// The messages in a range that begins and ends with one: their places, and how many each stands for.
    pub(crate) fn split(&self, range: &Range<usize>) -> impl Iterator<Item = (Range<usize>, u32)> {
        let (mut from, to) = (range.start, range.end);
        std::iter::from_fn(move || {
            let unit = (from < to).then(|| self.unit_at(from))?;
            Some((std::mem::replace(&mut from, unit.end)..unit.end, unit.messages))
        })
    }

    /// Whether a range that begins with a message ends with it.
    pub(crate) fn is_one(&self, range: &Range<usize>) -> bool {
        self.unit_at(range.start).end == range.end
    }

    /// The messages that a byte belongs to.
    fn unit_at(&self, place: usize) -> Unit {
        let units = self.units.borrow();
        units[units.partition_point(|unit| unit.end <= place)]
    }

    /// The bytes, which do not grow any more.
    fn bytes(&self) -> &Bytes {
        self.bytes.get_or_init(|| self.growing.take().into())
    }
}

impl Part {
    fn range(&self) -> Range<usize> {
        self.from as usize..self.to as usize
    }

    /// Without its first bytes.
    fn advanced(mut self, n: usize) -> Held {
        assert!(n <= self.range().len(), "cannot advance past the end of a payload");
        self.from += n as u32;
        let is_end = |from| self.block.units.borrow().binary_search_by_key(&from, |unit| unit.end).is_ok();
        if self.from == 0 || is_end(self.from as usize) { Held::Part(self) } else { Held::Begun(self) }
    }

    /// Leaves out the first message, or the first ones that stay together: their bytes and their number.
    fn drop_first(&mut self) -> (usize, u32) {
        let unit = self.block.unit_at(self.from as usize);
        let bytes = unit.end - self.from as usize;
        self.from = unit.end as u32;
        (bytes, unit.messages)
    }
}

impl Payload {
    /// A part of a block that many connections send. One of more than 4 GiB is like a payload of the connection's own,
    /// and not droppable.
    pub(crate) fn part(block: Rc<Block>, range: Range<usize>) -> Payload {
        match (u32::try_from(range.start), u32::try_from(range.end)) {
            (Ok(from), Ok(to)) => Payload(Hold::Held(Held::Part(Part { block, from, to }))),
            _ => block.bytes().slice(range).into(),
        }
    }

    /// Makes it longer by the part of a block that follows it; `false` if it is something else.
    pub(crate) fn extend(&mut self, block: &Rc<Block>, range: &Range<usize>) -> bool {
        let Hold::Held(Held::Part(part) | Held::Begun(part)) = &mut self.0 else { return false };
        match u32::try_from(range.end) {
            Ok(end) if part.range().end == range.start && Rc::ptr_eq(&part.block, block) => {
                part.to = end;
                true
            }
            _ => false,
        }
    }

    /// Whether it may be dropped: it belongs to a broadcast, and no message of it has begun to leave.
    pub(crate) fn is_droppable(&self) -> bool {
        matches!(&self.0, Hold::Held(Held::Part(_)))
    }

    /// Drops the first message of one that may be dropped: its bytes, and how many messages those were.
    pub(crate) fn drop_first(&mut self) -> (usize, u32) {
        match &mut self.0 {
            Hold::Held(Held::Part(part)) => part.drop_first(),
            _ => (0, 0),
        }
    }

    /// Whether letting go of it runs no destructor of a user's.
    pub(crate) fn is_plain(&self) -> bool {
        match &self.0 {
            Hold::Heap(_) => false,
            Hold::Held(Held::Lease(lease)) => lease.is_pooled(),
            Hold::Held(Held::Part(part) | Held::Begun(part)) => Rc::strong_count(&part.block) > 1,
        }
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Hold::Heap(bytes) => bytes.len(),
            Hold::Held(Held::Lease(lease)) => lease.len(),
            Hold::Held(Held::Part(part) | Held::Begun(part)) => part.range().len(),
        }
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the first `n` bytes, which have been sent.
    pub(crate) fn advance(&mut self, n: usize) {
        match &mut self.0 {
            Hold::Heap(bytes) => Buf::advance(bytes, n),
            Hold::Held(Held::Lease(lease)) => lease.advance(n),
            shared => {
                let whole = std::mem::replace(shared, Hold::Heap(Bytes::new()));
                if let Hold::Held(Held::Part(part) | Held::Begun(part)) = whole {
                    *shared = Hold::Held(part.advanced(n));
                }
            }
        }
    }

    /// Whether it holds a buffer of the shard's pool.
    pub(crate) fn is_pooled(&self) -> bool {
        matches!(&self.0, Hold::Held(Held::Lease(lease)) if lease.is_pooled())
    }

    /// The lease that it was made of, or one of its bytes.
    pub(crate) fn into_lease(self) -> Lease {
        match self.0 {
            Hold::Held(Held::Lease(lease)) => lease,
            _ => Lease::from_bytes(self.into_bytes()),
        }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        match self.0 {
            Hold::Heap(bytes) => bytes,
            Hold::Held(Held::Lease(lease)) => lease.into_bytes(),
            Hold::Held(Held::Part(part) | Held::Begun(part)) => part.block.bytes().slice(part.range()),
        }
    }

    /// Copies the bytes out of the pool, if they are in it.
    pub(crate) fn detach(self) -> Payload {
        if self.is_pooled() { Bytes::copy_from_slice(&self).into() } else { self }
    }

    /// See [`Lease::unpinned`].
    pub(crate) fn unpinned(self, reserve: usize) -> Payload {
        match &self.0 {
            Hold::Held(Held::Lease(lease)) if lease.pins(reserve) => self.detach(),
            _ => self,
        }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Hold::Heap(bytes) => bytes,
            Hold::Held(Held::Lease(lease)) => lease,
            Hold::Held(Held::Part(part) | Held::Begun(part)) => &part.block.bytes()[part.range()],
        }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

impl Default for Payload {
    /// No bytes.
    fn default() -> Payload {
        Bytes::new().into()
    }
}

impl From<Lease> for Payload {
    fn from(lease: Lease) -> Payload {
        Payload(Hold::Held(Held::Lease(lease)))
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        Payload(Hold::Heap(bytes))
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Bytes::from(bytes).into()
    }
}

impl From<Box<[u8]>> for Payload {
    fn from(bytes: Box<[u8]>) -> Payload {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Payload {
        Bytes::from(text).into()
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Payload {
        Bytes::from_static(bytes).into()
    }
}

impl<const N: usize> From<&'static [u8; N]> for Payload {
    fn from(bytes: &'static [u8; N]) -> Payload {
        Bytes::from_static(bytes).into()
    }
}

impl From<&'static str> for Payload {
    fn from(text: &'static str) -> Payload {
        Bytes::from_static(text.as_bytes()).into()
    }
}
