//! Looking after standing receives that the kernel has forgotten to end.
//!
//! The wake-ups of its socket drive a multishot receive. Where the last bytes and a reset come back to back, the two can
//! be one wake-up: the receive takes the bytes, finds no more of them, and waits for the next wake-up, which never
//! comes (Linux 6.18, a few in 100 000 resets; the end of a stream is not concerned). So once a second, while there are
//! such receives, a part of them is asked after with one `poll(2)`; one whose socket has failed is cancelled and
//! submitted again, and then finds the error.
#![forbid(unsafe_code)]

use crate::driver::op::Op;
use crate::driver::slot::Slots;
use crate::driver::sys::os;
use crate::driver::token::Token;
use io_uring::squeue::Entry;
use io_uring::{opcode, types::Timespec};
use std::os::fd::AsRawFd;

/// The most slots that one look passes: a bound on what it costs.
const SLOTS_MAX: usize = 4096;

/// Who looks, when, and at which receives next.
pub(super) struct Lookout {
    /// The time between two looks, where the kernel reads it.
    pause: Box<Timespec>,
    armed: bool,
    /// There may be receives to look after.
    wanted: bool,
    /// The slot to begin with.
    next: usize,
    /// Receives that were cancelled to be submitted again.
    renewed: Vec<Token>,
}

impl Lookout {
    pub(super) fn new() -> Lookout {
        let pause = Box::new(Timespec::new().sec(1));
        Lookout { pause, armed: false, wanted: false, next: 0, renewed: Vec::new() }
    }

    /// A standing receive was submitted.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether its entry is in flight.
    pub(super) fn is_armed(&self) -> bool {
        self.armed
    }

    /// The entry that completes when it is time for the next look.
    pub(super) fn arm(&mut self) -> Option<Entry> {
        if self.armed || !self.wanted {
            return None;
        }
        self.armed = true;
        Some(opcode::Timeout::new(&*self.pause).build())
    }

    /// It is time: the receives to be cancelled.
    pub(super) fn look(&mut self, slots: &mut Slots) -> Vec<Token> {
        self.armed = false;
        self.renewed.clear();
        let (mut tokens, mut sockets) = (Vec::new(), Vec::new());
        for (token, op) in slots.part(self.next, SLOTS_MAX) {
            if let Op::RecvMulti(receive) = op {
                tokens.push(token);
                sockets.push(receive.socket.as_raw_fd());
            }
        }
        let rest = slots.reach().saturating_sub(self.next + SLOTS_MAX);
        let passes_all = self.next == 0 && rest == 0;
        self.next = if rest == 0 { 0 } else { self.next + SLOTS_MAX };
        self.wanted = !tokens.is_empty() || !passes_all;
        let failed = os::have_failed(&sockets);
        let forgotten = tokens.into_iter().zip(failed).filter(|(_, failed)| *failed);
        self.renewed.extend(forgotten.map(|(token, _)| token));
        self.renewed.clone()
    }

    /// Whether a receive that ended as cancelled is to be submitted again.
    pub(super) fn renews(&mut self, token: Token) -> bool {
        let found = self.renewed.iter().position(|other| *other == token);
        found.map(|index| self.renewed.swap_remove(index)).is_some()
    }

    /// Whether any may have to be submitted again.
    pub(super) fn has_renewed(&self) -> bool {
        !self.renewed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::fd::{Census, FdRef};
    use crate::driver::op::{Nop, RecvMulti};
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;
    use std::time::Duration;

    fn receive(socket: TcpStream, census: &Rc<Census>) -> Op {
        RecvMulti::new(FdRef::new(socket.into(), census)).into()
    }

    #[test]
    fn a_receive_on_a_connection_that_was_reset_is_renewed_once_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (near, listener.accept().unwrap().0)
        };
        let (census, mut slots) = (Rc::default(), Slots::new(8));
        let ((healthy, _peer), (reset, peer)) = (pair(), pair());
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        slots.insert(Nop.into(), 0).unwrap();
        slots.insert(receive(healthy, &census), 0).unwrap();
        let forgotten = slots.insert(receive(reset, &census), 0).unwrap();
        let mut lookout = Lookout::new();
        assert!(lookout.arm().is_none(), "nobody asked for it");
        lookout.want();
        assert!(lookout.arm().is_some() && lookout.arm().is_none(), "one entry at a time");
        assert_eq!(lookout.look(&mut slots), [forgotten]);
        assert!(lookout.renews(forgotten) && !lookout.renews(forgotten));
        assert!(lookout.arm().is_some(), "there are receives to look after");
        slots.tokens().into_iter().for_each(|token| drop(slots.remove(token)));
        assert_eq!(lookout.look(&mut slots), []);
        assert!(lookout.arm().is_none(), "there is nothing left to look after");
    }
}
