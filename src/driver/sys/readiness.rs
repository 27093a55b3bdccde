//! Completions emulated over readiness: epoll, kqueue or poll.
//!
//! Each descriptor has two queues of tokens, one per direction, so that no waiter is ever lost to another. A
//! submission joins its queue and is attempted at the next `wait`; what would block stays until the descriptor
//! is ready. In edge mode a stop by budget keeps the descriptor on the ready list, because no second edge will
//! come; where there are no edges, interest is set anew after each event. Calls on files go to the pool of
//! blocking threads.
//!
//! The slots own the operations; this file only ever borrows them. A descriptor leaves the poller before it is
//! closed (`forget`).
#![allow(unsafe_code)]

use super::elsewhere::Elsewhere;
use super::poller::Poller;
use super::{Wake, Workbench};
use crate::config::Config;
use crate::driver::completion::RawCompletion;
use crate::driver::fd::FdRef;
use crate::driver::op::{Attempt, Direction};
use crate::driver::slot::Slots;
use crate::driver::sys::{CANCELED, os};
use crate::driver::token::Token;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// The readiness backend.
pub(crate) struct Readiness {
    poller: Poller,
    registrations: Slab<Registration>,
    generation: u32,
    /// Registrations with something to attempt.
    ready: VecDeque<u32>,
    /// Results that wait for the next `wait`.
    immediate: VecDeque<RawCompletion>,
    /// Submissions that wait for no descriptor.
    unattached: VecDeque<Token>,
    elsewhere: Elsewhere,
    attempts_max: usize,
    /// The last wait left out the poller because it had results anyway.
    skipped_poll: bool,
}

/// A descriptor that operations wait on, with a queue of tokens per direction.
struct Registration {
    generation: u32,
    /// The first of each queue.
    first: [Option<Token>; 2],
    /// The others, once there have been any: a connection has one operation per direction at a time.
    rest: Option<Box<[VecDeque<Token>; 2]>>,
    /// On the ready list.
    listed: bool,
    /// Directions that may be ready: attempted when listed.
    maybe: [bool; 2],
    /// A receive that got less than it asked for may have left something.
    has_end: bool,
}

// Each idle connection has one.
const _: () = assert!(size_of::<Registration>() <= 32);

impl Registration {
    fn push(&mut self, direction: Direction, token: Token) {
        match &mut self.first[direction as usize] {
            first @ None => *first = Some(token),
            Some(_) => self.rest.get_or_insert_default()[direction as usize].push_back(token),
        }
    }

    fn pop(&mut self, direction: Direction) {
        let rest = self.rest.as_mut();
        self.first[direction as usize] = rest.and_then(|rest| rest[direction as usize].pop_front());
    }

    fn remove(&mut self, direction: Direction, token: Token) -> bool {
        if self.first[direction as usize] == Some(token) {
            self.pop(direction);
            return true;
        }
        self.rest.as_mut().is_some_and(|rest| remove(&mut rest[direction as usize], token))
    }

    /// Puts the registration on the ready list, once.
    fn list(&mut self, index: u32, ready: &mut VecDeque<u32>) {
        if !self.listed {
            self.listed = true;
            ready.push_back(index);
        }
    }
}

impl Readiness {
    pub(crate) fn new(config: &Config) -> io::Result<Readiness> {
        let poller = Poller::new()?;
        let limits = &config.limits;
        Ok(Readiness {
            poller,
            registrations: Slab::new(),
            generation: 0,
            ready: VecDeque::new(),
            immediate: VecDeque::new(),
            unattached: VecDeque::new(),
            elsewhere: Elsewhere::new(limits),
            attempts_max: limits.attempts_per_event_max,
            skipped_poll: false,
        })
    }

    /// How it learns of readiness, for the report.
    pub(crate) fn describe(&self) -> &'static str {
        match self.poller.has_edges() {
            true => "readiness with edge-triggered events: ok",
            false => "readiness with one-shot events: ok",
        }
    }

    pub(crate) fn wake(&self) -> Wake {
        Wake::poller(self.poller.notifier())
    }

    pub(crate) fn submit(&mut self, token: Token, slots: &mut Slots) -> io::Result<()> {
        let Some((op, _)) = slots.parts(token) else { return Ok(()) };
        let Some((fd, direction)) = op.waits_for() else {
            self.unattached.push_back(token);
            return Ok(());
        };
        let index = match self.registered(fd) {
            // What cannot be polled, a regular file for instance, never blocks.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.unattached.push_back(token);
                return Ok(());
            }
            registered => registered?,
        };
        let registration = &mut self.registrations[index as usize];
        // Behind another operation there is nothing to attempt until that one has ended.
        let first = registration.first[direction as usize].is_none();
        registration.push(direction, token);
        if first {
            registration.maybe[direction as usize] = true;
            self.list(index);
        }
        Ok(())
    }

    pub(crate) fn cancel(&mut self, token: Token, slots: &mut Slots) {
        let Some((op, _)) = slots.parts(token) else { return };
        let removed = match op.waits_for() {
            Some((fd, direction)) => fd
                .registration()
                .is_some_and(|index| self.registrations[index as usize].remove(direction, token)),
            None => self.elsewhere.remove_deferred(token) || remove(&mut self.unattached, token),
        };
        // An operation whose terminal result is on its way, or whose call runs on a thread, ends by itself.
        if removed {
            self.immediate.push_back(RawCompletion::terminal(token, -CANCELED));
            self.attempt_successors(token, slots);
        }
    }

    /// The next in the queue of a cancelled operation may be ready.
    fn attempt_successors(&mut self, token: Token, slots: &mut Slots) {
        let Some((op, _)) = slots.parts(token) else { return };
        let Some((fd, direction)) = op.waits_for() else { return };
        let Some(index) = fd.registration() else { return };
        self.registrations[index as usize].maybe[direction as usize] = true;
        self.list(index);
    }

    pub(crate) fn forget(&mut self, fd: &FdRef) {
        let Some(index) = fd.registration() else { return };
        fd.set_registration(None);
        self.poller.delete(fd.as_fd());
        self.forget_closed(index);
    }

    /// As [`forget`](Self::forget), for a descriptor that has been closed by dropping it.
    pub(crate) fn forget_closed(&mut self, index: u32) {
        // If it stands on the ready list, its place there is skipped.
        self.registrations.remove(index as usize);
    }

    pub(crate) fn wait(&mut self, bench: &mut Workbench<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.run_unattached(bench);
        self.run_ready(bench);
        self.take_immediate(bench);
        if !bench.out.is_empty() && !self.skipped_poll {
            self.skipped_poll = true;
            return Ok(());
        }
        self.skipped_poll = false;
        let idle = bench.out.is_empty() && self.ready.is_empty() && self.immediate.is_empty();
        self.poll(if idle { timeout } else { Some(Duration::ZERO) })?;
        self.run_ready(bench);
        self.take_immediate(bench);
        Ok(())
    }

    /// Whether a wait would find something at once: something to attempt, a result, or an event, which stays in the
    /// poller. One system call, which leaves a wake-up where it is.
    pub(crate) fn has_news(&self) -> bool {
        let queued = !(self.unattached.is_empty() && self.ready.is_empty() && self.immediate.is_empty());
        queued || os::is_ready(&self.poller, Direction::Read)
    }

    /// The next wait asks the poller, whatever it has already.
    pub(crate) fn insist(&mut self) {
        self.skipped_poll = true;
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let Readiness { poller, registrations, ready, .. } = self;
        poller.wait(timeout, |event| {
            let (index, generation) = unpack(event.key);
            // An event of a descriptor that was closed meanwhile names an older generation.
            let known = registrations.get_mut(index as usize).filter(|known| known.generation == generation);
            if let Some(registration) = known {
                registration.maybe[Direction::Read as usize] |= event.readable;
                registration.maybe[Direction::Write as usize] |= event.writable;
                registration.has_end |= event.has_end;
                registration.list(index, ready);
            }
        })?;
        for (token, result) in self.elsewhere.take_results() {
            self.immediate.push_back(RawCompletion::terminal(token, result));
        }
        Ok(())
    }

    fn list(&mut self, index: u32) {
        self.registrations[index as usize].list(index, &mut self.ready);
    }

    /// The registration of a descriptor, made at its first use.
    fn registered(&mut self, fd: &FdRef) -> io::Result<u32> {
        if let Some(index) = fd.registration() {
            return Ok(index);
        }
        self.generation = self.generation.wrapping_add(1) & GENERATION_MASK;
        let index = self.registrations.vacant_key() as u32;
        let key = pack(index, self.generation);
        // SAFETY: invariant 10: the slots' references keep the descriptor open, and the driver calls `forget`
        // before it is closed.
        unsafe { self.poller.add(fd.as_fd(), key)? };
        let registration = Registration {
            generation: self.generation,
            first: [None; 2],
            rest: None,
            listed: false,
            maybe: [false; 2],
            has_end: false,
        };
        self.registrations.insert(registration);
        fd.set_registration(Some(index));
        Ok(index)
    }

    fn run_unattached(&mut self, bench: &mut Workbench<'_>) {
        self.elsewhere.run_deferred();
        for _ in 0..self.unattached.len() {
            if bench.out.len() >= bench.budget {
                return;
            }
            let Some(token) = self.unattached.pop_front() else { return };
            let Some((op, scratch)) = bench.slots.parts(token) else { continue };
            if let Some(call) = op.blocking() {
                self.elsewhere.run(token, call, self.wake());
                continue;
            }
            if let Attempt::Done(result) = bench.pools.attempt(op, scratch, usize::MAX) {
                bench.out.push(RawCompletion::terminal(token, result));
            }
        }
    }

    fn run_ready(&mut self, bench: &mut Workbench<'_>) {
        for _ in 0..self.ready.len() {
            if bench.out.len() >= bench.budget {
                return;
            }
            let Some(index) = self.ready.pop_front() else { return };
            match self.registrations.get_mut(index as usize) {
                Some(registration) if registration.listed => registration.listed = false,
                _ => continue,
            }
            let again =
                [Direction::Write, Direction::Read].map(|direction| self.run_queue(index, direction, bench));
            if again.contains(&true) {
                self.list(index);
            } else if !self.poller.has_edges() {
                self.set_interest(index, bench.slots);
            }
        }
    }

    /// Attempts the operations of one queue in order; true if the budget ended before they did.
    fn run_queue(&mut self, index: u32, direction: Direction, bench: &mut Workbench<'_>) -> bool {
        let registration = &mut self.registrations[index as usize];
        if !registration.maybe[direction as usize] {
            return false;
        }
        for _ in 0..self.attempts_max {
            if bench.out.len() >= bench.budget {
                return true;
            }
            let Some(token) = registration.first[direction as usize] else { return false };
            let Some((op, scratch)) = bench.slots.parts(token) else {
                registration.pop(direction);
                continue;
            };
            match bench.pools.attempt(op, scratch, usize::MAX) {
                Attempt::Blocked => {
                    registration.maybe[direction as usize] = false;
                    return false;
                }
                Attempt::Done(result) => {
                    registration.pop(direction);
                    bench.out.push(RawCompletion::terminal(token, result));
                }
                Attempt::More(result, buffer) => {
                    bench.out.push(RawCompletion { token, result, more: true, buffer });
                }
                Attempt::Drained(result, buffer) => {
                    bench.out.push(RawCompletion { token, result, more: true, buffer });
                    if !registration.has_end {
                        registration.maybe[direction as usize] = false;
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Without edges: asks for the next event of the directions somebody waits for.
    fn set_interest(&mut self, index: u32, slots: &mut Slots) {
        let registration = &self.registrations[index as usize];
        let waits = registration.first.map(|first| first.is_some());
        // Any of those that wait knows the descriptor. If nobody does, at most one event comes for nothing.
        let Some(token) = registration.first.into_iter().flatten().next() else { return };
        if let Some((fd, _)) = slots.parts(token).and_then(|(op, _)| op.waits_for()) {
            self.poller.set_interest(fd.as_fd(), pack(index, registration.generation), waits);
        }
    }

    fn take_immediate(&mut self, bench: &mut Workbench<'_>) {
        let room = bench.budget.saturating_sub(bench.out.len()).min(self.immediate.len());
        bench.out.extend(self.immediate.drain(..room));
    }
}

fn remove(queue: &mut VecDeque<Token>, token: Token) -> bool {
    let before = queue.len();
    queue.retain(|other| *other != token);
    queue.len() != before
}

const GENERATION_MASK: u32 = 0x3fff_ffff;

/// The poller's key of a registration. A generation keeps late events of a closed descriptor apart.
#[cfg(target_pointer_width = "64")]
fn pack(index: u32, generation: u32) -> usize {
    (generation as usize) << 32 | index as usize
}

#[cfg(target_pointer_width = "64")]
fn unpack(key: usize) -> (u32, u32) {
    (key as u32, (key >> 32) as u32)
}

/// On small systems the generation has fewer bits.
#[cfg(target_pointer_width = "32")]
fn pack(index: u32, generation: u32) -> usize {
    ((generation & 0x7f) << 24 | index) as usize
}

#[cfg(target_pointer_width = "32")]
fn unpack(key: usize) -> (u32, u32) {
    (key as u32 & 0xff_ffff, key as u32 >> 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::Pool;
    use crate::driver::Pools;
    use crate::driver::fd::Census;
    use crate::driver::op::{Op, Poll};
    use crate::driver::sys::Backend;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    #[test]
    fn a_descriptor_that_is_dropped_leaves_no_registration_behind() {
        let pools = Pools { streams: Pool::new(1, 512, Box::new(|| {})), apart: None, datagrams: None };
        let (census, mut slots) = (Rc::<Census>::default(), Slots::new(8));
        let mut backend = Backend::Readiness(Box::new(Readiness::new(&Config::new()).expect("a poller")));
        for _ in 0..100 {
            let (ours, _theirs) = UnixStream::pair().expect("a pair");
            let fd = FdRef::new(ours.into(), &census);
            let poll = Op::from(Poll { fd, direction: Direction::Write });
            let token = slots.insert(poll, 0).expect("room");
            backend.submit(token, &mut slots).expect("the poller takes it");
            let (mut out, mut lowered) = (Vec::new(), Vec::new());
            let mut bench = Workbench {
                slots: &mut slots,
                pools: &pools,
                out: &mut out,
                lowered: &mut lowered,
                budget: 8,
            };
            backend.wait(&mut bench, None).expect("a wait");
            assert_eq!(out, [RawCompletion::terminal(token, 0)]);
            // The operation held the last reference.
            slots.remove(token);
            census
                .left_behind
                .take()
                .into_iter()
                .for_each(|registration| backend.forget_closed(registration));
        }
        let Backend::Readiness(readiness) = backend else { return };
        assert_eq!(readiness.registrations.len(), 0);
    }
}
