//! Many datagrams at once, on their way out.
#![forbid(unsafe_code)]

use super::*;
use crate::driver::datagram::{Exchange, Outgoing};
use nix::libc;
use std::os::fd::AsRawFd;
use std::rc::Rc;

/// Sends datagrams in order, each whole or not at all. What one of them meets is told with it; the others leave.
#[derive(Debug)]
pub struct SendBatch {
    /// The socket.
    pub socket: FdRef,
    /// The datagrams.
    pub items: Vec<Outgoing>,
    /// The first that has not been dealt with.
    next: usize,
    exchange: Rc<Exchange>,
}

impl SendBatch {
    /// Sends `items` on `socket`.
    pub fn new(socket: FdRef, exchange: Rc<Exchange>, items: Vec<Outgoing>) -> SendBatch {
        SendBatch { socket, items, next: 0, exchange }
    }
}

impl Kernel for SendBatch {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let socket = io_uring::types::Fd(self.socket.as_raw_fd());
        io_uring::opcode::PollAdd::new(socket, libc::POLLOUT as u32).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        self.next = self.exchange.send(self.socket.descriptor(), &mut self.items, self.next);
        if self.next < self.items.len() { Attempt::Blocked } else { Attempt::Done(0) }
    }

    /// What was not dealt with has met what the whole has: its cancel, or the error of the wait for room.
    fn finish(mut self, completion: RawCompletion, _: &Pool) -> Done {
        for item in &mut self.items[self.next..] {
            if item.error == 0 {
                item.error = if completion.result < 0 { -completion.result } else { libc::EIO };
            }
        }
        Done::SentDatagrams(self.items)
    }
}
