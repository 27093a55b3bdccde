//! Many datagrams at once, on their way out.
#![allow(unsafe_code)]

use super::*;
use crate::driver::datagram::{Exchange, Outgoing};
#[cfg(windows)]
use crate::driver::sys::socket::write_address;
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

/// The next datagram of an item.
#[cfg(windows)]
fn piece(item: &Outgoing) -> &[u8] {
    let rest = &item.payload[item.done as usize..];
    &rest[..rest.len().min(item.segment_bytes.map_or(usize::MAX, |bytes| bytes as usize))]
}

/// Records what came of an item's next datagram; true if that was its last.
#[cfg(windows)]
fn note(item: &mut Outgoing, result: i32) -> bool {
    if result < 0 && item.error == 0 {
        item.error = -result;
    }
    item.done += piece(item).len() as u32;
    item.done as usize >= item.payload.len()
}

impl Kernel for SendBatch {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        io_uring::opcode::PollAdd::new(ring_fd(&self.socket), libc::POLLOUT as u32).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        self.next = self.exchange.send(self.socket.descriptor(), &mut self.items, self.next);
        if self.next < self.items.len() { Attempt::Blocked } else { Attempt::Done(0) }
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        if let Step::Landed(result) = step {
            let item = &mut self.items[self.next];
            self.next += usize::from(note(item, result));
        }
        while self.attempt(flight.scratch, flight.means) == Attempt::Blocked {
            // No room: one datagram is left to the system, which sends it when there is.
            let item = &mut self.items[self.next];
            let begun = match item.to {
                // SAFETY: invariant 1: the scratch is this slot's own, and the payload is the operation's.
                Some(to) => unsafe {
                    let address = &raw mut (*flight.scratch).address;
                    let len = write_address(address, to);
                    flight.send_to(&self.socket, piece(item), (address, len))
                },
                // SAFETY: invariant 1: the payload is the operation's.
                None => unsafe { flight.send_to(&self.socket, piece(item), (std::ptr::null(), 0)) },
            };
            match begun {
                Begun::Pending => return Attempt::Blocked,
                Begun::Now(result) => self.next += usize::from(note(item, result)),
            }
        }
        Attempt::Done(0)
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
