//! Memory for the headers of many datagrams, and the calls that receive and send them at once.
//!
//! The calls end before they return, so the kernel refers to nothing of this afterwards. What one call did not use
//! is ready for the next; headers are set up once, and only what the kernel or a caller changes is written again.
#![allow(unsafe_code)]

use super::NO_BUFFERS;
use super::control::{self, RECEIVED_BYTES, SENT_BYTES, Sent};
use super::descriptor::Descriptor;
use super::os::libc;
use super::socket::{read_address, write_address};
use crate::buf::{BufferId, Pool};
use crate::driver::datagram::{Exchange, Outgoing, SEGMENTED_BYTES_MAX, SEGMENTS_MAX, Segments};
use std::net::SocketAddr;
use std::ptr::NonNull;

/// Messages of one call.
pub(crate) const MESSAGES_MAX: usize = 64;
/// Ranges of bytes of one sending call, several of which may make one message.
const RANGES_MAX: usize = 256;
/// Room for an IPv4 or IPv6 address.
const NAME_BYTES: usize = 32;

/// A message header and the number of its bytes: `struct mmsghdr`.
#[repr(C)]
pub(crate) struct Message {
    pub(crate) header: libc::msghdr,
    pub(crate) len: libc::c_uint,
}

#[repr(C, align(8))]
struct Aligned<const N: usize>([u8; N]);

/// Zeroed memory of its own that is reached by pointer only, as the kernel and headers in it refer to it.
struct Memory<T>(NonNull<T>);

impl<T> Memory<T> {
    /// # Safety
    ///
    /// Zeros are a valid `T`.
    unsafe fn zeroed() -> Memory<T> {
        // SAFETY: invariant 1 (memory of headers): the caller's promise.
        let memory = Box::new(unsafe { std::mem::zeroed::<T>() });
        Memory(NonNull::from(Box::leak(memory)))
    }

    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: invariant 1: the memory came from a box, and no call is under way that refers to it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[repr(C)]
struct Incoming {
    messages: [Message; MESSAGES_MAX],
    ranges: [libc::iovec; MESSAGES_MAX],
    names: [Aligned<NAME_BYTES>; MESSAGES_MAX],
    controls: [Aligned<RECEIVED_BYTES>; MESSAGES_MAX],
}

/// Receives datagrams into buffers of a pool.
pub(crate) struct Inbox {
    memory: Memory<Incoming>,
    /// The buffer that each message goes to, set aside from the pool.
    buffers: [Option<BufferId>; MESSAGES_MAX],
    /// Whether the headers ask for control messages.
    control: bool,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        // SAFETY: invariant 1: zeros are valid headers, ranges and bytes.
        let memory = unsafe { Memory::<Incoming>::zeroed() };
        let start = memory.get();
        for index in 0..MESSAGES_MAX {
            // SAFETY: invariant 1: the memory was just made and the index is inside its arrays.
            unsafe {
                let header = &raw mut (*start).messages[index].header;
                (*header).msg_name = (&raw mut (*start).names[index]).cast();
                (*header).msg_namelen = NAME_BYTES as libc::socklen_t;
                (*header).msg_iov = &raw mut (*start).ranges[index];
                (*header).msg_iovlen = 1;
            }
        }
        Inbox { memory, buffers: [None; MESSAGES_MAX], control: false }
    }

    /// Receives at most `max` messages; their number, or a negated error number.
    pub(crate) fn receive(
        &mut self,
        socket: &Descriptor,
        pool: &Pool,
        max: usize,
        control: bool,
        into: &mut Vec<Segments>,
    ) -> i32 {
        let count = self.set_aside(pool, max.min(MESSAGES_MAX));
        if count == 0 {
            return -NO_BUFFERS;
        }
        if control != self.control {
            self.control = control;
            (0..MESSAGES_MAX).for_each(|index| self.reset(index));
        }
        let messages = self.memory.get().cast::<Message>();
        // SAFETY: invariant 1: `count` headers refer to memory of this inbox and to buffers that were set aside.
        let received = unsafe { socket.receive_messages(messages, count) };
        for index in 0..usize::try_from(received).unwrap_or(0).min(count) {
            if let Some(id) = self.buffers[index].take() {
                into.push(self.parse(index, id, pool));
                self.reset(index);
            }
        }
        received
    }

    /// Sees that the first `wanted` messages have buffers; gives how many have.
    fn set_aside(&mut self, pool: &Pool, wanted: usize) -> usize {
        let mut last = MESSAGES_MAX;
        for index in 0..wanted {
            if self.buffers[index].is_some() {
                continue;
            }
            let mut id = pool.set_aside();
            while id.is_none() && last > index + 1 {
                last -= 1;
                id = self.buffers[last].take();
            }
            let Some(id) = id else { return index };
            self.buffers[index] = Some(id);
            let range = libc::iovec { iov_base: pool.pointer(id).cast(), iov_len: pool.buffer_bytes() };
            // SAFETY: invariant 1: the memory is this inbox's and no call is under way.
            unsafe { (*self.memory.get()).ranges[index] = range };
        }
        wanted
    }

    /// Makes a header that was used, or is to be used otherwise, ready again.
    fn reset(&mut self, index: usize) {
        let start = self.memory.get();
        let (control, len) = match self.control {
            // SAFETY: invariant 1: the index is inside the arrays.
            true => (unsafe { (&raw mut (*start).controls[index]).cast() }, RECEIVED_BYTES),
            false => (std::ptr::null_mut(), 0),
        };
        // SAFETY: invariant 1: the memory is this inbox's and no call is under way.
        unsafe {
            let header = &raw mut (*start).messages[index].header;
            (*header).msg_namelen = NAME_BYTES as libc::socklen_t;
            (*header).msg_control = control;
            (*header).msg_controllen = len as _;
        }
    }

    fn parse(&self, index: usize, id: BufferId, pool: &Pool) -> Segments {
        let start = self.memory.get();
        // SAFETY: invariant 1: the call is over; lengths are cut to what there is before anything is read.
        unsafe {
            let message = &(*start).messages[index];
            let header = &message.header;
            let len = (message.len as usize).min(pool.buffer_bytes());
            let lease = pool.lend(pool.left_kernel(id.index, len, false), 0, len);
            let name = (&raw const (*start).names[index]).cast();
            let from = read_address(name, (header.msg_namelen as usize).min(NAME_BYTES));
            let from = from.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
            let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
            if !self.control {
                return Segments::new(lease, from, None).with(truncated, None, None);
            }
            let told: usize = header.msg_controllen as _;
            let bytes = told.min(RECEIVED_BYTES);
            let told = control::read(&(&(*start).controls[index].0)[..bytes]);
            Segments::new(lease, from, told.segment_bytes).with(truncated, told.ecn, told.local)
        }
    }
}

#[repr(C)]
struct Outbound {
    messages: [Message; MESSAGES_MAX],
    ranges: [libc::iovec; RANGES_MAX],
    names: [libc::sockaddr_storage; MESSAGES_MAX],
    controls: [Aligned<SENT_BYTES>; MESSAGES_MAX],
}

/// What a message is made of.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// The first item.
    item: usize,
    /// How many items were joined.
    items: usize,
    /// Bytes, of the one item that it is a part of.
    bytes: usize,
    /// The kernel cuts it in datagrams of this size.
    segment_bytes: Option<usize>,
}

/// Sends datagrams.
pub(crate) struct Outbox {
    memory: Memory<Outbound>,
    entries: [Entry; MESSAGES_MAX],
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        // SAFETY: invariant 1: zeros are valid headers, ranges, addresses and bytes.
        Outbox { memory: unsafe { Memory::zeroed() }, entries: [Entry::default(); MESSAGES_MAX] }
    }

    /// Sends what is left of `items` from `first` on: the index of the first that has to wait for room. What an
    /// item meets is its own; the others go on.
    pub(crate) fn send(
        &mut self,
        socket: &Descriptor,
        items: &mut [Outgoing],
        first: usize,
        exchange: &Exchange,
    ) -> usize {
        let mut at = first;
        while at < items.len() {
            let count = self.fill(items, at, exchange);
            let messages = self.memory.get().cast::<Message>();
            // SAFETY: invariant 1: `count` headers refer to memory of this outbox and to payloads in `items`.
            let sent = unsafe { socket.send_messages(messages, count) };
            match sent {
                // WouldBlock has the same number where these systems are.
                number if number == -libc::EAGAIN || number == 0 => return at,
                number if number < 0 => at = self.refuse(items, -number, exchange),
                sent => {
                    for index in 0..(sent as usize).min(count) {
                        at = finish(items, &self.entries[index], 0);
                    }
                }
            }
        }
        at
    }

    /// Makes messages of items; gives their number, at least one.
    fn fill(&mut self, items: &[Outgoing], first: usize, exchange: &Exchange) -> usize {
        let (mut count, mut ranges) = (0, 0);
        let (mut index, mut done) = (first, items[first].done as usize);
        while count < MESSAGES_MAX && index < items.len() {
            let item = &items[index];
            let left = item.payload.len() - done;
            let cuts = exchange.segments.get() && !item.apart;
            let size = item.segment_bytes.map(|size| size as usize).filter(|size| *size < left);
            let joined = if cuts { run_of(&items[index..], exchange.joined_bytes_max.get()) } else { 1 };
            if ranges + joined > RANGES_MAX {
                break;
            }
            let entry = match size {
                Some(size) if !cuts => Entry { item: index, items: 1, bytes: size, segment_bytes: None },
                Some(_) => Entry { item: index, items: 1, bytes: left, segment_bytes: size },
                None if joined > 1 => {
                    Entry { item: index, items: joined, bytes: 0, segment_bytes: Some(left) }
                }
                None => Entry { item: index, items: 1, bytes: left, segment_bytes: None },
            };
            self.entries[count] = entry;
            self.write(count, ranges, &entry, items, done);
            (count, ranges) = (count + 1, ranges + joined);
            if joined == 1 && entry.bytes < left {
                done += entry.bytes;
            } else {
                (index, done) = (index + joined, 0);
            }
        }
        count
    }

    /// Writes the header of one message.
    fn write(&mut self, index: usize, ranges: usize, entry: &Entry, items: &[Outgoing], done: usize) {
        let start = self.memory.get();
        let item = &items[entry.item];
        let sent = Sent {
            segment_bytes: entry.segment_bytes,
            ecn: item.ecn,
            source: item.source.as_deref().copied(),
        };
        // SAFETY: invariant 1: the memory is this outbox's, no call is under way, and `fill` keeps the indices
        // inside the arrays. Ranges are those of payloads that `items` holds.
        unsafe {
            for (offset, item) in items[entry.item..entry.item + entry.items].iter().enumerate() {
                let base = item.payload.as_ptr().cast_mut();
                let range = &raw mut (*start).ranges[ranges + offset];
                *range = if entry.items == 1 {
                    libc::iovec { iov_base: base.add(done).cast(), iov_len: entry.bytes }
                } else {
                    libc::iovec { iov_base: base.cast(), iov_len: item.payload.len() }
                };
            }
            let header = &raw mut (*start).messages[index].header;
            let name = &raw mut (*start).names[index];
            (*header).msg_namelen = item.to.map_or(0, |to| write_address(name, to));
            (*header).msg_name = if item.to.is_some() { name.cast() } else { std::ptr::null_mut() };
            (*header).msg_iov = &raw mut (*start).ranges[ranges];
            (*header).msg_iovlen = entry.items as _;
            let control = &raw mut (*start).controls[index];
            let is_plain = sent.segment_bytes.is_none() && sent.ecn.is_none() && sent.source.is_none();
            let len = if is_plain { 0 } else { control::write(&mut (*control).0, &sent, item.to) };
            (*header).msg_control = if len == 0 { std::ptr::null_mut() } else { control.cast() };
            (*header).msg_controllen = len as _;
        }
    }

    /// The first message was refused: joined or cut datagrams are tried one by one if that may help, else its first
    /// item has failed. Gives the item to go on with.
    fn refuse(&mut self, items: &mut [Outgoing], number: i32, exchange: &Exchange) -> usize {
        let entry = self.entries[0];
        let cannot = matches!(number, libc::EIO | libc::ENOPROTOOPT | libc::EOPNOTSUPP);
        let will_not = matches!(number, libc::EINVAL | libc::EMSGSIZE);
        match entry.segment_bytes {
            // Older kernels, devices without checksums, transformed routes: never again.
            Some(_) if cannot => {
                exchange.segments.set(false);
                exchange.refusal.set(Some(number));
            }
            // Larger than the path takes in one piece: joined sends become smaller.
            Some(size) if will_not && entry.items > 1 => {
                exchange.joined_bytes_max.set(exchange.joined_bytes_max.get().min(size - 1));
            }
            Some(_) if will_not => {}
            _ => return finish(items, &Entry { items: 1, ..entry }, number),
        }
        items[entry.item..entry.item + entry.items].iter_mut().for_each(|item| item.apart = true);
        entry.item
    }
}

/// Records what came of a message; gives the item to go on with.
fn finish(items: &mut [Outgoing], entry: &Entry, error: i32) -> usize {
    for item in &mut items[entry.item..entry.item + entry.items] {
        if item.error == 0 {
            item.error = error;
        }
        let is_part = entry.items == 1 && entry.segment_bytes.is_none();
        item.done = if is_part { item.done + entry.bytes as u32 } else { item.payload.len() as u32 };
        if (item.done as usize) < item.payload.len() {
            return entry.item;
        }
    }
    entry.item + entry.items
}

/// How many of the first items the kernel may send as segments of one payload: of one size, to one peer.
fn run_of(items: &[Outgoing], bytes_max: usize) -> usize {
    let first = &items[0];
    let size = first.payload.len();
    let joins = |item: &Outgoing| item.segment_bytes.is_none() && item.source.is_none() && !item.apart;
    let has_port = first.to.is_none_or(|to| to.port() != 0);
    if size == 0 || size > bytes_max || !joins(first) || !has_port {
        return 1;
    }
    let mut total = size;
    let mut count = 1;
    for item in &items[1..items.len().min(SEGMENTS_MAX)] {
        let len = item.payload.len();
        total += len;
        let alike = len > 0 && len <= size && total <= SEGMENTED_BYTES_MAX;
        if !alike || !joins(item) || item.to != first.to || item.ecn != first.ecn {
            break;
        }
        count += 1;
        // Only the last may be shorter.
        if len < size {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(len: usize, port: u16) -> Outgoing {
        Outgoing::new(vec![0; len].into(), Some(([127, 0, 0, 1], port).into()))
    }

    #[test]
    fn datagrams_of_one_size_to_one_peer_are_joined() {
        let cases: [(&[(usize, u16)], usize); 9] = [
            (&[(10, 1)], 1),
            (&[(10, 1), (10, 1), (10, 1)], 3),
            (&[(10, 1), (4, 1), (4, 1)], 2),
            (&[(10, 1), (11, 1)], 1),
            (&[(10, 1), (10, 2)], 1),
            (&[(0, 1), (0, 1)], 1),
            (&[(10, 1), (0, 1)], 1),
            (&[(10, 0), (10, 0)], 1),
            (&[(40_000, 1), (40_000, 1)], 1),
        ];
        for (items, expected) in cases {
            let items: Vec<_> = items.iter().map(|(len, port)| to(*len, *port)).collect();
            assert_eq!(run_of(&items, SEGMENTED_BYTES_MAX), expected, "{items:?}");
        }
        let many: Vec<_> = (0..100).map(|_| to(10, 1)).collect();
        assert_eq!(run_of(&many, SEGMENTED_BYTES_MAX), SEGMENTS_MAX);
        assert_eq!(run_of(&many, 9), 1, "larger than the path takes");
    }

    #[test]
    fn a_refusal_of_the_whole_is_answered_by_parts_and_that_of_one_is_its_own() {
        let pool = Pool::new(1, 512, Box::new(|| {}));
        let exchange = Exchange::new(pool, true);
        let mut outbox = Outbox::new();
        let mut items: Vec<_> = (0..3).map(|_| to(10, 1)).collect();
        assert_eq!(outbox.fill(&items, 0, &exchange), 1);
        assert_eq!(outbox.refuse(&mut items, libc::EMSGSIZE, &exchange), 0);
        assert_eq!(exchange.joined_bytes_max.get(), 9);
        assert_eq!(outbox.fill(&items, 0, &exchange), 3, "each by itself");
        assert_eq!(outbox.refuse(&mut items, libc::ECONNREFUSED, &exchange), 1, "the next goes on");
        assert_eq!((items[0].error, items[1].error), (libc::ECONNREFUSED, 0));
        assert_eq!(outbox.fill(&items, 1, &exchange), 2);

        let mut items = vec![Outgoing { segment_bytes: Some(4), ..to(10, 1) }];
        assert_eq!(outbox.fill(&items, 0, &exchange), 1);
        assert_eq!(outbox.refuse(&mut items, libc::EIO, &exchange), 0);
        assert!(!exchange.segments.get());
        assert_eq!(outbox.fill(&items, 0, &exchange), 3, "4, 4 and 2 bytes");
        assert_eq!(outbox.refuse(&mut items, libc::EPERM, &exchange), 0, "its other parts are tried");
        assert_eq!((items[0].done, items[0].error), (4, libc::EPERM));
        assert_eq!(outbox.fill(&items, 0, &exchange), 2);
    }
}
