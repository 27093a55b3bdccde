//! Sending one datagram.
#![allow(unsafe_code)]

use super::*;
use crate::buf::Payload;
use crate::driver::sys::socket::write_address;
use std::net::SocketAddr;

/// Sends a payload as one datagram, whole or not at all.
#[derive(Debug)]
pub struct SendTo {
    /// The socket.
    pub socket: FdRef,
    /// The datagram.
    pub payload: Payload,
    /// Where to; nothing for a connected socket.
    pub to: Option<SocketAddr>,
}

impl SendTo {
    /// Writes the address into the scratch, where it stays until the terminal completion; null without one.
    fn address(&self, scratch: *mut Scratch) -> (*mut libc::sockaddr, libc::socklen_t) {
        let Some(to) = self.to else { return (std::ptr::null_mut(), 0) };
        // SAFETY: invariant 1: the scratch is this slot's own.
        unsafe {
            let address = &raw mut (*scratch).address;
            let len = write_address(address, to);
            (address.cast(), len)
        }
    }
}

impl Kernel for SendTo {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, scratch: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
        use io_uring::opcode;
        let socket = ring_fd(&self.socket);
        let (address, len) = self.address(scratch);
        let (start, bytes) = (self.payload.as_ptr(), self.payload.len() as u32);
        if encoding != Encoding::Plain {
            // SAFETY: invariant 1: the scratch is this slot's own, the payload is the operation's. Neither moves
            // before the terminal completion.
            let header = unsafe {
                let header = &raw mut (*scratch).header;
                header.write_bytes(0, 1);
                (*header).msg_name = address.cast();
                (*header).msg_namelen = len;
                let base = start.cast_mut().cast();
                (*scratch).vector = libc::iovec { iov_base: base, iov_len: bytes as usize };
                (*header).msg_iov = &raw mut (*scratch).vector;
                (*header).msg_iovlen = 1;
                header
            };
            return opcode::SendMsg::new(socket, header).flags(libc::MSG_NOSIGNAL as u32).build();
        }
        let send = opcode::Send::new(socket, start, bytes).flags(libc::MSG_NOSIGNAL);
        send.dest_addr(address).dest_addr_len(len).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        attempted(self.socket.descriptor().send_to(&self.payload, self.to))
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let begin = || {
            let (address, len) = self.address(flight.scratch);
            // SAFETY: invariant 1: the payload is the operation's and the address is in its scratch.
            unsafe { flight.send_to(&self.socket, &self.payload, (address.cast(), len)) }
        };
        step.or_begin(begin).attempt()
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        Done::Sent(counted(completion.result), self.payload)
    }
}
