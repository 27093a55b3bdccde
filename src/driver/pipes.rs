//! The pipes of a shard, lent to relays for as long as bytes stand in them.
//!
//! A relay that waits for bytes holds none, so a few pipes serve any number of relays: as many as have a receiver that
//! does not keep up, and one. Those that come home are kept for the next, up to
//! [`Limits::pipes_idle_max`](crate::Limits).
#![forbid(unsafe_code)]

use super::sys::pipe::Pipe;
use crate::config::Limits;
use crate::counters::Counters;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The pipes of a shard.
#[derive(Clone, Debug)]
pub(crate) struct Pipes(Rc<Shelf>);

#[derive(Debug)]
struct Shelf {
    idle: RefCell<Vec<Pipe>>,
    open_max: usize,
    idle_max: usize,
    pipe_bytes: usize,
    opened: Cell<u64>,
    lent: Cell<u64>,
    returned: Cell<u64>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

impl Pipes {
    pub(crate) fn new(limits: &Limits) -> Pipes {
        Pipes(Rc::new(Shelf {
            idle: RefCell::default(),
            open_max: limits.pipes_max,
            idle_max: limits.pipes_idle_max,
            pipe_bytes: limits.pipe_bytes,
            opened: Cell::new(0),
            lent: Cell::new(0),
            returned: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
        }))
    }

    /// An empty pipe; none if [`Limits::pipes_max`](crate::Limits) are lent, or the system has no more.
    pub(crate) fn lend(&self) -> Option<Pipe> {
        let shelf = &*self.0;
        let lent = shelf.lent.get() - shelf.returned.get();
        if lent >= shelf.open_max as u64 {
            return None;
        }
        let kept = shelf.idle.borrow_mut().pop();
        let pipe = match kept {
            Some(pipe) => pipe,
            None => {
                let pipe = Pipe::open(shelf.pipe_bytes).ok()?;
                add(&shelf.opened, 1);
                pipe
            }
        };
        add(&shelf.lent, 1);
        Some(pipe)
    }

    /// Takes an empty pipe back.
    pub(crate) fn give_back(&self, pipe: Pipe) {
        add(&self.0.returned, 1);
        let mut idle = self.0.idle.borrow_mut();
        if idle.len() < self.0.idle_max {
            idle.push(pipe);
        }
    }

    /// Bytes have come into a pipe.
    pub(crate) fn count_received(&self, bytes: usize) {
        add(&self.0.received, bytes as u64);
    }

    /// Bytes have left a pipe for a socket.
    pub(crate) fn count_sent(&self, bytes: usize) {
        add(&self.0.sent, bytes as u64);
    }

    pub(crate) fn count(&self, counters: &mut Counters) {
        counters.pipes_opened = self.0.opened.get();
        counters.pipes_lent = self.0.lent.get();
        counters.pipes_returned = self.0.returned.get();
        counters.bytes_spliced = self.0.sent.get();
        counters.bytes_in += self.0.received.get();
        counters.bytes_out += self.0.sent.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipes(open_max: usize, idle_max: usize) -> Pipes {
        let mut limits = Limits::default();
        (limits.pipes_max, limits.pipes_idle_max) = (open_max, idle_max);
        Pipes::new(&limits)
    }

    #[test]
    fn no_more_pipes_are_lent_than_the_bound_says_and_few_are_kept() {
        if Pipe::open(4096).is_err() {
            return; // There are none here.
        }
        let pipes = pipes(3, 1);
        let lent: Vec<_> = (0..4).filter_map(|_| pipes.lend()).collect();
        assert_eq!(lent.len(), 3);
        lent.into_iter().for_each(|pipe| pipes.give_back(pipe));
        assert_eq!(pipes.0.idle.borrow().len(), 1);
        let again = pipes.lend().expect("one is kept");
        pipes.give_back(again);
        let mut counters = Counters::default();
        pipes.count(&mut counters);
        assert_eq!((counters.pipes_opened, counters.pipes_lent, counters.pipes_returned), (3, 4, 4));
    }
}
