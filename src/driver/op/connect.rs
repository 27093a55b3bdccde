//! Connecting a socket.
#![forbid(unsafe_code)]

use super::*;
use socket2::SockAddr;

/// Connects a stream socket, or sets the peer of a datagram socket.
#[derive(Debug)]
pub struct Connect {
    /// The socket.
    pub socket: FdRef,
    /// Where to.
    pub address: Box<SockAddr>,
    started: bool,
}

impl Connect {
    /// Connects `socket` to `address`.
    pub fn new(socket: FdRef, address: SockAddr) -> Connect {
        Connect { socket, address: Box::new(address), started: false }
    }
}

impl Kernel for Connect {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        Some((&self.socket, Direction::Write))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        // The boxed address belongs to the operation and does not move (invariant 1).
        let address = self.address.as_ptr().cast::<libc::sockaddr>();
        let socket = ring_fd(&self.socket);
        io_uring::opcode::Connect::new(socket, address, self.address.len()).build()
    }

    fn attempt(&mut self, _: *mut Scratch, _: &Means<'_>) -> Attempt {
        let socket = self.socket.descriptor();
        if !self.started {
            self.started = true;
            const GOES_ON: [i32; 2] = [-libc::EINPROGRESS, -libc::EINTR];
            let result = socket.connect(&self.address);
            return if GOES_ON.contains(&result) { Attempt::Blocked } else { Attempt::Done(result) };
        }
        if socket.is_ready(Direction::Write) { Attempt::Done(socket.take_error()) } else { Attempt::Blocked }
    }

    #[cfg(windows)]
    fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
        if self.socket.descriptor().is_datagram() {
            return self.attempt(flight.scratch, flight.means);
        }
        match step.or_begin(|| flight.connect(&self.socket, &self.address)) {
            Begun::Pending => Attempt::Blocked,
            Begun::Now(result) => Attempt::Done(flight.connected(&self.socket, result)),
        }
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        ended(completion)
    }
}
