//! The receive pools of a driver: one for streams, where it is asked for one for streams whose bytes are given away, and
//! one for datagrams from the first receive of those on.
//!
//! A kernel that fills a stream's buffer piece by piece would cut datagrams at its end, and streams want few large
//! buffers where datagrams want many that hold one each.
#![forbid(unsafe_code)]

use super::op::{Attempt, Means, Op};
use super::slot::Scratch;
use super::sys::Wake;
use crate::buf::{BufferId, Memory, Pool, Purpose};
use crate::config::Config;
use std::io;

/// The receive pools of a driver.
pub(crate) struct Pools {
    pub(crate) streams: Pool,
    /// Whose buffers lie apart.
    pub(crate) apart: Option<Pool>,
    pub(crate) datagrams: Option<Pool>,
}

impl Pools {
    /// The pools of streams alone: `count` buffers of `bytes`, and perhaps buffers apart.
    pub(crate) fn new(
        config: &Config,
        (count, bytes): (usize, usize),
        apart: bool,
        wake: Wake,
    ) -> io::Result<Pools> {
        let memory = Memory::block(count, bytes).ok_or(io::ErrorKind::OutOfMemory)?;
        let (count, bytes) = config.limits.apart_buffers();
        let apart = apart.then(|| make(Memory::apart(count, bytes), Purpose::Apart, config, wake.clone()));
        Ok(Pools { streams: make(memory, Purpose::Streams, config, wake), apart, datagrams: None })
    }

    /// Makes the pool of datagrams.
    pub(crate) fn add_datagrams(&mut self, config: &Config, wake: Wake) -> io::Result<&Pool> {
        let (count, bytes) = (config.limits.datagram_buffers, config.limits.datagram_buffer_bytes);
        let memory = Memory::block(count, bytes).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(self.datagrams.insert(make(memory, Purpose::Datagrams, config, wake)))
    }

    /// The pool that an operation receives into.
    pub(crate) fn of_op(&self, op: &Op) -> &Pool {
        match op {
            Op::RecvMsgMulti(_) => self.of(Purpose::Datagrams),
            Op::RecvMulti(receive) if receive.apart => self.of(Purpose::Apart),
            _ => &self.streams,
        }
    }

    /// Attempts an operation, moving at most so many bytes.
    pub(crate) fn attempt(&self, op: &mut Op, scratch: *mut Scratch, bytes_max: usize) -> Attempt {
        let means = Means { pool: self.of_op(op), bytes_max };
        op.attempt(scratch, &means)
    }

    /// The pool that a buffer belongs to.
    pub(crate) fn of_buffer(&self, buffer: BufferId) -> &Pool {
        self.of(buffer.purpose())
    }

    fn of(&self, purpose: Purpose) -> &Pool {
        match purpose {
            Purpose::Streams => &self.streams,
            Purpose::Apart => self.apart.as_ref().expect("made with the driver if there are such receives"),
            Purpose::Datagrams => self.datagrams.as_ref().expect("made with the first receive of datagrams"),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Pool> {
        [Some(&self.streams), self.apart.as_ref(), self.datagrams.as_ref()].into_iter().flatten()
    }

    /// Takes home what came back from other threads.
    pub(crate) fn collect(&self) {
        self.all().for_each(Pool::collect);
    }

    /// Pieces ever lent and ever returned.
    pub(crate) fn ledger(&self) -> (u64, u64) {
        let ledgers = self.all().map(Pool::ledger);
        ledgers.fold((0, 0), |sum, ledger| (sum.0 + ledger.0, sum.1 + ledger.1))
    }
}

fn make(memory: Memory, purpose: Purpose, config: &Config, wake: Wake) -> Pool {
    Pool::over(memory, purpose, config.zero_on_return, Box::new(move || wake.wake()))
}
