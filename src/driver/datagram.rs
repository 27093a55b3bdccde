//! Datagrams on their way in and out, in batches.
//!
//! Sockets receive and send by calls that take many datagrams at once (recvmmsg(2), sendmmsg(2)), made when the
//! descriptor is ready or may be. That costs less than one ring operation per datagram, and less still where the
//! kernel joins or cuts datagrams (udp(7): UDP_GRO, UDP_SEGMENT). The calls end before they return, so the memory
//! for their headers belongs to the driver, not to the operations.
#![forbid(unsafe_code)]

use super::sys::descriptor::Descriptor;
use super::sys::messages::{Inbox, Outbox};
use super::{Driver, FdRef};
use crate::buf::{Lease, Payload, Pool};
use crate::error::Error;
use crate::report::Capability;
use std::cell::{Cell, RefCell};
use std::error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// The longest payload of a datagram over IPv4 and IPv6 (RFC 768: the length field counts the 8 bytes of header).
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_535 - 8;
/// The most bytes that one send cuts in segments: what IPv4 carries as one datagram.
pub const SEGMENTED_BYTES_MAX: usize = 65_507;
/// The most segments of one send (udp(7): UDP_MAX_SEGMENTS).
pub const SEGMENTS_MAX: usize = 64;

/// Explicit congestion notification: the two bits of a datagram's header (RFC 3168 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ecn {
    /// The transport does not take part.
    NotEct,
    /// It takes part, codepoint 1 (L4S in RFC 9331).
    Ect1,
    /// It takes part, codepoint 0.
    Ect0,
    /// A router has met congestion.
    Ce,
}

impl Ecn {
    /// The codepoint in the low two bits of a traffic class.
    pub fn from_bits(bits: u8) -> Ecn {
        match bits & 0b11 {
            0b00 => Ecn::NotEct,
            0b01 => Ecn::Ect1,
            0b10 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    /// The codepoint as two bits.
    pub fn bits(self) -> u8 {
        self as u8
    }
}

/// An address of this host and the interface that goes with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LocalAddress {
    /// The address. On an IPv6 socket IPv4 addresses are mapped ones.
    pub ip: IpAddr,
    /// The index of the interface; 0 leaves the choice to the system.
    pub interface: u32,
}

/// A datagram that was received.
#[derive(Debug)]
pub struct Datagram {
    /// Its bytes, perhaps none.
    pub lease: Lease,
    /// Its sender.
    pub from: SocketAddr,
    /// Whether its end was cut off because the buffer was too small.
    pub truncated: bool,
    /// Its congestion codepoint, if the socket asks for it.
    pub ecn: Option<Ecn>,
    /// The address that it was sent to and the interface it came in by, if the socket asks for them.
    pub local: Option<LocalAddress>,
}

/// Datagrams of one sender that the kernel has joined in one buffer; often just one.
///
/// As an iterator it cuts them apart without copying: they share the buffer, which goes home with the last of them.
#[derive(Debug)]
pub struct Segments {
    /// All bytes.
    lease: Lease,
    from: SocketAddr,
    local: Option<LocalAddress>,
    segment_bytes: u32,
    left: u32,
    ecn: Option<Ecn>,
    truncated: bool,
}

impl Segments {
    /// `segment_bytes` is the size of all datagrams but the last; nothing if there is one only.
    pub(crate) fn new(lease: Lease, from: SocketAddr, segment_bytes: Option<usize>) -> Segments {
        let size = segment_bytes.filter(|size| (1..lease.len()).contains(size)).unwrap_or(lease.len());
        let left = if size == 0 { 1 } else { lease.len().div_ceil(size) };
        Segments {
            lease,
            from,
            local: None,
            segment_bytes: size as u32,
            left: left as u32,
            ecn: None,
            truncated: false,
        }
    }

    pub(crate) fn with(mut self, truncated: bool, ecn: Option<Ecn>, local: Option<LocalAddress>) -> Segments {
        (self.truncated, self.ecn, self.local) = (truncated, ecn, local);
        self
    }

    /// How many datagrams there are (left).
    pub fn count_left(&self) -> usize {
        self.left as usize
    }

    /// The bytes of all datagrams (left), one behind the other.
    pub fn bytes(&self) -> &[u8] {
        &self.lease
    }

    /// The bytes of each datagram but the last, which may be shorter.
    pub fn segment_bytes(&self) -> usize {
        self.segment_bytes as usize
    }

    /// The sender.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// Whether the buffer was too small: the end is missing, perhaps whole datagrams.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The congestion codepoint, if the socket asks for it.
    pub fn ecn(&self) -> Option<Ecn> {
        self.ecn
    }

    /// The address they were sent to and the interface they came in by, if the socket asks for them.
    pub fn local(&self) -> Option<LocalAddress> {
        self.local
    }

    /// All bytes as one lease, with [`segment_bytes`](Self::segment_bytes) telling where datagrams end.
    pub fn into_lease(self) -> Lease {
        self.lease
    }

    /// Copies the bytes out of the pool.
    pub(crate) fn detach(self) -> Segments {
        Segments { lease: self.lease.detach(), ..self }
    }

    /// The only datagram that is left.
    pub(crate) fn into_last(self) -> Datagram {
        let Segments { lease, from, local, ecn, truncated, .. } = self;
        Datagram { lease, from, truncated, ecn, local }
    }

    /// The first of several that are left.
    pub(crate) fn split_first(&mut self) -> Datagram {
        self.left -= 1;
        let lease = self.lease.split_to((self.segment_bytes as usize).min(self.lease.len()));
        Datagram { lease, from: self.from, truncated: false, ecn: self.ecn, local: self.local }
    }
}

/// A batch of one.
impl From<Datagram> for Segments {
    fn from(datagram: Datagram) -> Segments {
        let Datagram { lease, from, truncated, ecn, local } = datagram;
        Segments::new(lease, from, None).with(truncated, ecn, local)
    }
}

impl Iterator for Segments {
    type Item = Datagram;

    fn next(&mut self) -> Option<Datagram> {
        match self.left {
            0 => None,
            1 => {
                self.left = 0;
                let lease = std::mem::replace(&mut self.lease, Lease::empty());
                let Segments { from, truncated, ecn, local, .. } = *self;
                Some(Datagram { lease, from, truncated, ecn, local })
            }
            _ => Some(self.split_first()),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count_left(), Some(self.count_left()))
    }
}

impl ExactSizeIterator for Segments {}

/// A datagram on its way out, or several of one size in one payload.
#[derive(Debug)]
pub struct Outgoing {
    /// The bytes.
    pub payload: Payload,
    /// Where to; nothing for a connected socket.
    pub to: Option<SocketAddr>,
    /// The size of each datagram but the last, if the payload holds several.
    pub segment_bytes: Option<u32>,
    /// The congestion codepoint to send.
    pub ecn: Option<Ecn>,
    /// What is the submitter's own.
    pub tag: Option<u64>,
    /// The address to send from; rare, so it is kept elsewhere.
    pub source: Option<Box<LocalAddress>>,
    /// Bytes that have been sent or given up.
    pub(crate) done: u32,
    /// The first error number it met.
    pub(crate) error: i32,
    /// The kernel does not cut or join this one.
    pub(crate) apart: bool,
}

impl Outgoing {
    /// One datagram.
    pub fn new(payload: Payload, to: Option<SocketAddr>) -> Outgoing {
        Outgoing {
            payload,
            to,
            segment_bytes: None,
            ecn: None,
            tag: None,
            source: None,
            done: 0,
            error: 0,
            apart: false,
        }
    }

    /// Refuses what no datagram can be.
    ///
    /// # Errors
    ///
    /// Of kind `InvalidInput`, with an [`InvalidDatagram`] inside.
    pub fn check(&self) -> io::Result<()> {
        let bytes = self.payload.len();
        let (max, segments) = match self.segment_bytes {
            None => (DATAGRAM_BYTES_MAX, 1),
            Some(0) => return Err(InvalidDatagram::EmptySegments.into()),
            Some(size) => (SEGMENTED_BYTES_MAX, bytes.div_ceil(size as usize)),
        };
        if bytes > max {
            return Err(InvalidDatagram::TooLong { bytes, max }.into());
        }
        if segments > SEGMENTS_MAX {
            return Err(InvalidDatagram::TooManySegments { segments, max: SEGMENTS_MAX }.into());
        }
        Ok(())
    }

    /// How many datagrams it makes.
    pub fn datagrams(&self) -> usize {
        self.segment_bytes.map_or(1, |size| self.payload.len().div_ceil(size.max(1) as usize).max(1))
    }

    /// What came of it: the bytes sent, or the error that it (or the first part that failed) met.
    pub fn outcome(&self) -> Result<usize, Error> {
        if self.error == 0 { Ok(self.payload.len()) } else { Err(Error::from_raw(-self.error)) }
    }
}

/// Why a payload cannot be sent: what the `InvalidInput` error of a send holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum InvalidDatagram {
    /// The payload is longer than one datagram, or one send with segments, can be.
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// How many are possible.
        max: usize,
    },
    /// Segments of no byte were asked for.
    EmptySegments,
    /// The payload makes more segments than one send can have.
    TooManySegments {
        /// How many it makes.
        segments: usize,
        /// How many are possible.
        max: usize,
    },
}

impl fmt::Display for InvalidDatagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidDatagram::TooLong { bytes, max } => {
                write!(f, "a datagram has at most {max} bytes, this one has {bytes}")
            }
            InvalidDatagram::EmptySegments => f.write_str("a segment has at least one byte"),
            InvalidDatagram::TooManySegments { segments, max } => {
                write!(f, "one send makes at most {max} datagrams, this one would make {segments}")
            }
        }
    }
}

impl error::Error for InvalidDatagram {}

impl From<InvalidDatagram> for io::Error {
    fn from(error: InvalidDatagram) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// The memory and the buffers by which a driver's sockets receive and send datagrams.
pub struct Exchange {
    pool: Pool,
    inbox: RefCell<Inbox>,
    outbox: RefCell<Outbox>,
    /// Whether the kernel cuts payloads in segments; lowered when it refuses.
    pub(crate) segments: Cell<bool>,
    /// Datagrams of one size to one peer are joined in one send up to this size, which is what the path takes.
    pub(crate) joined_bytes_max: Cell<usize>,
    /// What the kernel refused to cut with, until it is told.
    pub(crate) refusal: Cell<Option<i32>>,
    /// Emptied lists, so that they need not be allocated anew.
    received: Cell<Vec<Segments>>,
    sent: Cell<Vec<Outgoing>>,
}

impl Exchange {
    pub(crate) fn new(pool: Pool, segments: bool) -> Exchange {
        Exchange {
            pool,
            inbox: RefCell::new(Inbox::new()),
            outbox: RefCell::new(Outbox::new()),
            segments: Cell::new(segments),
            joined_bytes_max: Cell::new(SEGMENTED_BYTES_MAX),
            refusal: Cell::default(),
            received: Cell::default(),
            sent: Cell::default(),
        }
    }

    /// The buffers for datagrams.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Receives at most `max` messages; their number, or a negated error number.
    pub(crate) fn receive(
        &self,
        socket: &Descriptor,
        max: usize,
        control: bool,
        into: &mut Vec<Segments>,
    ) -> i32 {
        self.inbox.borrow_mut().receive(socket, &self.pool, max, control, into)
    }

    /// Sends what is left of `items` from `first` on: the index of the first that has to wait.
    pub(crate) fn send(&self, socket: &Descriptor, items: &mut [Outgoing], first: usize) -> usize {
        self.outbox.borrow_mut().send(socket, items, first, self)
    }

    /// An empty list.
    pub(crate) fn take_list(&self) -> Vec<Segments> {
        self.received.take()
    }

    /// Keeps an emptied list for the next batch.
    pub(crate) fn keep_list(&self, list: Vec<Segments>) {
        debug_assert!(list.is_empty());
        self.received.set(list);
    }

    /// An empty list for datagrams to send.
    pub(crate) fn take_outgoing(&self) -> Vec<Outgoing> {
        self.sent.take()
    }

    /// Keeps an emptied list for the next batch.
    pub(crate) fn keep_outgoing(&self, list: Vec<Outgoing>) {
        debug_assert!(list.is_empty());
        self.sent.set(list);
    }
}

impl Driver {
    /// By what sockets receive and send datagrams, made at the first call. `socket` is asked what the kernel can.
    ///
    /// # Errors
    ///
    /// If there is not enough memory for its buffers.
    pub fn exchange(&mut self, socket: &FdRef) -> io::Result<Rc<Exchange>> {
        if let Some(exchange) = &self.exchange {
            return Ok(Rc::clone(exchange));
        }
        let pool = match &self.pools.datagrams {
            Some(pool) => pool.clone(),
            None => self.pools.add_datagrams(&self.config, self.backend.wake())?.clone(),
        };
        let masked = self.config.without.has(Capability::SegmentedSend);
        let cuts = !masked && socket.descriptor().cuts_segments();
        self.report.capabilities.remove(Capability::SegmentedSend);
        if cuts {
            self.report.capabilities.insert(Capability::SegmentedSend);
        }
        Ok(Rc::clone(self.exchange.insert(Rc::new(Exchange::new(pool, cuts)))))
    }

    /// An empty list for datagrams to send.
    pub(crate) fn take_outgoing_list(&self) -> Vec<Outgoing> {
        self.exchange.as_ref().map(|exchange| exchange.take_outgoing()).unwrap_or_default()
    }

    /// Keeps an emptied list of datagrams that were sent for the next batch.
    pub(crate) fn keep_outgoing_list(&self, list: Vec<Outgoing>) {
        if let Some(exchange) = &self.exchange {
            exchange.keep_outgoing(list);
        }
    }

    /// Keeps an emptied list of datagrams for the next batch.
    pub(crate) fn keep_datagram_list(&self, list: Vec<Segments>) {
        if let Some(exchange) = &self.exchange {
            exchange.keep_list(list);
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({:?})", self.pool.available())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(len: usize, size: Option<usize>) -> Segments {
        let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
        Segments::new(Lease::from_bytes(bytes.into()), ([1, 2, 3, 4], 5).into(), size)
    }

    #[test]
    fn joined_datagrams_are_cut_where_they_were_joined() {
        let cases: [(usize, Option<usize>, &[usize]); 8] = [
            (0, None, &[0]),
            (0, Some(10), &[0]),
            (5, None, &[5]),
            (5, Some(0), &[5]),
            (5, Some(5), &[5]),
            (5, Some(9), &[5]),
            (10, Some(5), &[5, 5]),
            (11, Some(4), &[4, 4, 3]),
        ];
        for (len, size, expected) in cases {
            let all = segments(len, size).with(true, Some(Ecn::Ce), None);
            assert_eq!(all.count_left(), expected.len());
            let mut next = 0_u8..;
            let mut lens = Vec::new();
            let count = all.len();
            for (index, datagram) in all.enumerate() {
                assert!(datagram.lease.iter().all(|byte| next.next() == Some(*byte)));
                assert_eq!(datagram.truncated, index + 1 == count, "the last one is cut, if any");
                assert_eq!(datagram.ecn, Some(Ecn::Ce));
                lens.push(datagram.lease.len());
            }
            assert_eq!(lens, expected, "{len} {size:?}");
        }
    }

    #[test]
    fn codepoints_are_their_bits() {
        for bits in 0..4 {
            assert_eq!(Ecn::from_bits(bits | 0xfc).bits(), bits);
        }
    }
}
