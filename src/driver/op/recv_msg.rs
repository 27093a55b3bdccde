//! Receiving datagrams with their sender, once into memory of the caller's or standing into pool buffers.
//!
//! A pool buffer with a datagram begins with the header that io_uring writes, then room for the sender's
//! address, then the payload; attempts write the same, so that completions are read in one way.
#![allow(unsafe_code)]

use super::*;
use crate::driver::completion::Datagram;
use crate::driver::sys::NO_BUFFERS;
use crate::driver::sys::socket::read_address;
use std::net::SocketAddr;

/// Room for an IPv4 or IPv6 address.
const NAME_BYTES: usize = 32;
const HEADER_BYTES: usize = size_of::<Header>();
/// Where the payload begins.
const PAYLOAD_OFFSET: usize = HEADER_BYTES + NAME_BYTES;

/// What io_uring writes in front of a datagram: `struct io_uring_recvmsg_out`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    name_len: u32,
    control_len: u32,
    payload_len: u32,
    flags: u32,
}

/// Receives one datagram, appending it to a buffer that the operation owns meanwhile.
#[derive(Debug)]
pub struct RecvMsg {
    /// The socket.
    pub socket: FdRef,
    /// The datagram is appended up to its capacity; a longer one is cut.
    pub buffer: Vec<u8>,
    from: Option<SocketAddr>,
    scratch: *mut Scratch,
}

impl RecvMsg {
    /// Receives a datagram from `socket` into the spare capacity of `buffer`.
    pub fn new(socket: FdRef, buffer: Vec<u8>) -> RecvMsg {
        RecvMsg { socket, buffer, from: None, scratch: std::ptr::null_mut() }
    }

    /// Fills the scratch with a message header for the spare capacity.
    fn prepare(&mut self, scratch: *mut Scratch, bytes_max: usize) -> *mut libc::msghdr {
        let room = self.buffer.spare_capacity_mut();
        // SAFETY: invariant 1: the scratch is this slot's own and the room belongs to the operation's buffer;
        // neither moves before the terminal completion.
        unsafe {
            (*scratch).vector =
                libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len().min(bytes_max) };
            address_header(scratch, size_of::<libc::sockaddr_storage>() as libc::socklen_t)
        }
    }
}

/// Points the scratch's message header at its address (of `name_len` bytes) and its one vector.
///
/// # Safety
///
/// `scratch` is the caller's own, and its vector has been set.
unsafe fn address_header(scratch: *mut Scratch, name_len: libc::socklen_t) -> *mut libc::msghdr {
    // SAFETY: the caller's promise; a zeroed header is valid.
    unsafe {
        let header = &raw mut (*scratch).header;
        header.write_bytes(0, 1);
        (*header).msg_name = (&raw mut (*scratch).address).cast();
        (*header).msg_namelen = name_len;
        (*header).msg_iov = &raw mut (*scratch).vector;
        (*header).msg_iovlen = 1;
        header
    }
}

impl Kernel for RecvMsg {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Read))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, scratch: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let header = self.prepare(scratch, usize::MAX);
        self.scratch = scratch;
        io_uring::opcode::RecvMsg::new(ring_fd(&self.socket), header).build()
    }

    fn attempt(&mut self, scratch: *mut Scratch, means: &Means<'_>) -> Attempt {
        let header = self.prepare(scratch, means.bytes_max);
        self.scratch = scratch;
        // SAFETY: invariant 1: `prepare` set the header to memory that this operation owns.
        attempted(unsafe { self.socket.descriptor().receive_message(header) })
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let begun = step.or_begin(|| {
            let header = self.prepare(flight.scratch, usize::MAX);
            self.scratch = flight.scratch;
            // SAFETY: invariant 1: `prepare` set the header to memory that this operation owns.
            unsafe { flight.receive_message(&self.socket, header) }
        });
        match begun.attempt() {
            // Longer than the room: it is cut.
            Attempt::Done(result) if result == -libc::EMSGSIZE => {
                Attempt::Done(self.buffer.spare_capacity_mut().len().min(i32::MAX as usize) as i32)
            }
            Attempt::Done(result) => Attempt::Done(os::unreached(result)),
            other => other,
        }
    }

    fn finish(mut self, completion: RawCompletion, _: &Pool) -> Done {
        let received = counted(completion.result);
        super::recv::filled(&mut self.buffer, received.as_ref().copied().unwrap_or(0));
        if received.is_ok() {
            // SAFETY: invariant 1: the driver calls `finish` before the slot's scratch is used again, and a
            // successful receive has written the address.
            self.from = unsafe {
                let header = &(*self.scratch).header;
                read_address((&raw const (*self.scratch).address).cast(), header.msg_namelen as usize)
            };
        }
        let from = self.from.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        Done::FilledFrom(received.map(|bytes| (bytes, from)), self.buffer)
    }
}

/// Receives datagrams into pool buffers until it is cancelled or a buffer is wanting. The ring ends it with an
/// empty datagram, too.
#[derive(Debug)]
pub struct RecvMsgMulti {
    /// The socket.
    pub socket: FdRef,
}

impl Kernel for RecvMsgMulti {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Read))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, scratch: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
        use crate::driver::sys::DATAGRAM_GROUP;
        use io_uring::opcode;
        let socket = ring_fd(&self.socket);
        if encoding != Encoding::Plain {
            return opcode::PollAdd::new(socket, libc::POLLIN as u32).build();
        }
        // SAFETY: invariant 1: the scratch is this slot's own; the kernel reads the header of a standing
        // receive as long as it stands.
        let header = unsafe {
            let header = &raw mut (*scratch).header;
            header.write_bytes(0, 1);
            (*header).msg_namelen = NAME_BYTES as libc::socklen_t;
            header
        };
        opcode::RecvMsgMulti::new(socket, header, DATAGRAM_GROUP).build()
    }

    fn attempt(&mut self, scratch: *mut Scratch, means: &Means<'_>) -> Attempt {
        let Some(id) = means.pool.take() else { return Attempt::Done(-NO_BUFFERS) };
        let attempt = attempt_into_buffer(&self.socket, scratch, means, id);
        match attempt {
            Attempt::Done(bytes) if bytes >= 0 => Attempt::More(bytes, Some(id)),
            other => {
                means.pool.untake(id);
                other
            }
        }
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let socket = self.socket.clone();
        flight.when_readable(&socket, step, || self.attempt(flight.scratch, flight.means))
    }

    fn more(&mut self, completion: RawCompletion, pool: &Pool) -> Done {
        received(completion, pool)
    }

    fn finish(self, completion: RawCompletion, pool: &Pool) -> Done {
        received(completion, pool)
    }
}

/// Receives into the buffer as io_uring would: header, address, payload. The result counts all three.
fn attempt_into_buffer(socket: &FdRef, scratch: *mut Scratch, means: &Means<'_>, id: BufferId) -> Attempt {
    let start = means.pool.pointer(id);
    let room = means.pool.buffer_bytes() - PAYLOAD_OFFSET;
    // SAFETY: invariant 1: the scratch is this slot's own; the buffer was just taken, and `Limits` keeps it
    // larger than `PAYLOAD_OFFSET`.
    unsafe {
        (*scratch).vector = libc::iovec { iov_base: start.add(PAYLOAD_OFFSET).cast(), iov_len: room };
        let header = address_header(scratch, NAME_BYTES as libc::socklen_t);
        let attempt = attempted(socket.descriptor().receive_message(header));
        let Attempt::Done(bytes) = attempt else { return attempt };
        let Ok(payload) = u32::try_from(bytes) else { return attempt };
        let name_len = ((*header).msg_namelen as usize).min(NAME_BYTES);
        let name = (&raw const (*scratch).address).cast::<u8>();
        start.add(HEADER_BYTES).copy_from_nonoverlapping(name, name_len);
        let flags = (*header).msg_flags as u32;
        let out = Header { name_len: name_len as u32, control_len: 0, payload_len: payload, flags };
        start.cast::<Header>().write_unaligned(out);
        Attempt::Done(bytes + PAYLOAD_OFFSET as i32)
    }
}

fn received(completion: RawCompletion, pool: &Pool) -> Done {
    let filled = usize::try_from(completion.result).unwrap_or(0);
    let lease = completion.buffer.map(|id| pool.lend(id, 0, filled));
    match (completion.result, lease) {
        (result, _) if result == -NO_BUFFERS => {
            pool.note_starved();
            Done::Starved
        }
        (result, _) if result < 0 => Done::Datagram(Err(Error::from_raw(result))),
        (_, Some(lease)) if lease.len() >= PAYLOAD_OFFSET => Done::Datagram(parse(lease)),
        _ => Done::Datagram(Err(Error::Io(std::io::ErrorKind::InvalidData.into()))),
    }
}

fn parse(mut lease: crate::buf::Lease) -> Result<Datagram, Error> {
    // SAFETY: the caller checked that the lease is longer than the header; any bytes are a valid header.
    let header = unsafe { lease.as_ptr().cast::<Header>().read_unaligned() };
    let name_len = (header.name_len as usize).min(NAME_BYTES);
    // SAFETY: the lease is at least `PAYLOAD_OFFSET` long, so `name_len` bytes follow the header.
    let from = unsafe { read_address(lease.as_ptr().add(HEADER_BYTES), name_len) };
    let cut = header.flags & libc::MSG_TRUNC as u32 != 0
        || header.payload_len as usize > lease.len() - PAYLOAD_OFFSET;
    lease.advance(PAYLOAD_OFFSET);
    lease.truncate(header.payload_len as usize);
    let from = from.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
    Ok(Datagram { lease, from, truncated: cut, ecn: None, local: None })
}
