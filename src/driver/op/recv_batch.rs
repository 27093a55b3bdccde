//! Many datagrams at once.
#![forbid(unsafe_code)]

use super::*;
use crate::driver::datagram::{Exchange, Segments};
use crate::driver::sys::NO_BUFFERS;
use std::cell::Cell;
use std::rc::Rc;

/// Waits for datagrams and receives those that are there, into buffers for datagrams.
#[derive(Debug)]
pub struct RecvBatch {
    /// The socket.
    pub socket: FdRef,
    /// Whether the socket brings control messages; that may change while this waits.
    pub control: Rc<Cell<bool>>,
    max: usize,
    exchange: Rc<Exchange>,
    received: Vec<Segments>,
}

impl RecvBatch {
    /// Receives at most `max` messages (and at most what one call brings).
    pub fn new(socket: FdRef, exchange: Rc<Exchange>, max: usize, control: Rc<Cell<bool>>) -> RecvBatch {
        RecvBatch { socket, control, max, exchange, received: Vec::new() }
    }
}

impl Kernel for RecvBatch {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Read))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        io_uring::opcode::PollAdd::new(ring_fd(&self.socket), nix::libc::POLLIN as u32).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        self.received = self.exchange.take_list();
        let socket = self.socket.descriptor();
        let result = self.exchange.receive(socket, self.max, self.control.get(), &mut self.received);
        if self.received.is_empty() {
            // Sockets that wait need no list.
            self.exchange.keep_list(std::mem::take(&mut self.received));
        }
        attempted(result)
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        let socket = self.socket.clone();
        flight.when_readable(&socket, step, || self.attempt(flight.scratch, flight.means))
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        match completion.result {
            result if result == -NO_BUFFERS => Done::Starved,
            result if result < 0 => Done::Datagrams(Err(Error::from_raw(result))),
            _ => Done::Datagrams(Ok(self.received)),
        }
    }
}
