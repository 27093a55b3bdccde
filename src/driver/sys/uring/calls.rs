//! Operations that are system calls, made by the wait itself: batches of datagrams, and the ends of sockets. A close by the
//! ring costs a seventh of a short connection more (an entry and a completion for what is over at once), and a shutdown
//! goes through one of the kernel's threads.
#![forbid(unsafe_code)]

use super::{MARK_WAIT, Uring};
use crate::driver::completion::RawCompletion;
use crate::driver::op::{Attempt, Direction, Encoding, Op};
use crate::driver::sys::Workbench;
use crate::report::Capability;

impl Uring {
    /// The queue of an operation that is a call. A hardened ring does not take what is for tests only.
    pub(super) fn call_queue(&self, op: &Op) -> Option<usize> {
        match op {
            Op::RecvBatch(_) => Some(Direction::Read as usize),
            Op::SendBatch(_) | Op::Shutdown(_) | Op::Close(_) => Some(Direction::Write as usize),
            Op::Nop(_) if self.hardened => Some(Direction::Write as usize),
            _ => None,
        }
    }

    /// Makes the calls, receives last: whoever waits for the others may answer meanwhile. A socket that is not ready is
    /// waited for by the ring.
    pub(super) fn run_calls(&mut self, bench: &mut Workbench<'_>) {
        for queue in [Direction::Write as usize, Direction::Read as usize] {
            for _ in 0..self.calls[queue].len() {
                if bench.out.len() >= bench.budget {
                    return;
                }
                let Some(token) = self.calls[queue].pop_front() else { break };
                let Some((op, scratch)) = bench.slots.parts(token) else { continue };
                match bench.pools.attempt(op, scratch, usize::MAX) {
                    Attempt::Done(result) => bench.out.push(RawCompletion::terminal(token, result)),
                    _ => {
                        let entry = op.sqe(scratch, Encoding::Wait).user_data(token.marked(MARK_WAIT));
                        if !self.push(entry) {
                            bench.slots.get_mut(token).into_iter().for_each(|slot| slot.waiting = true);
                        }
                    }
                }
            }
        }
    }

    /// Whether there are results and the kernel has nothing to tell; never twice in a row, as submissions wait.
    pub(super) fn may_skip_enter(&mut self, bench: &Workbench<'_>) -> bool {
        let tells = self.capabilities.has(Capability::DeferTaskrun);
        let skip = tells
            && !bench.out.is_empty()
            && !self.skipped_enter
            && !self.insisted
            && self.ring.completion().is_empty()
            && !self.ring.submission().taskrun();
        self.skipped_enter = skip;
        skip
    }
}
