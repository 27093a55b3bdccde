//! Completions of Windows: an I/O completion port.
//!
//! A submission is started at the next `wait`: the operation makes its first overlapped call (`start`) and stands at
//! the system until a packet comes through the port. The packet names the memory of the call, one place for each slot,
//! which holds the token; the token is checked against the slot before anything is made of the result (invariant 7).
//! Then the operation goes on, starts its next call, or ends. Standing operations go on for ever.
//!
//! Standing receives wait with a receive of no bytes and then take what is there into the pool's buffers: so idle
//! connections pin no buffer. Where a call has succeeded at once and the system posts no packet for that
//! (FILE_SKIP_COMPLETION_PORT_ON_SUCCESS), the operation goes on there and then, inside of `wait` (invariant 5).
//!
//! The places live as long as the backend, and a place is used anew only after the packet of its call has come; what
//! cannot be drained is leaked with the backend (invariant 11).
#![allow(unsafe_code)]

mod calls;
mod port;

pub(crate) use calls::{Begun, Flight};
pub(crate) use port::Port;

use super::elsewhere::Elsewhere;
use super::{CANCELED, Wake, Workbench};
use crate::config::Config;
use crate::driver::completion::RawCompletion;
use crate::driver::fd::FdRef;
use crate::driver::op::{Attempt, Means, Step};
use crate::driver::slot::Slots;
use crate::driver::token::Token;
use calls::Outstanding;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;
use windows_sys::Win32::System::IO::OVERLAPPED;

/// The backend of Windows.
pub(crate) struct Iocp {
    port: Arc<Port>,
    /// What the system works on, one for each slot.
    places: Box<[UnsafeCell<MaybeUninit<Outstanding>>]>,
    /// Packets that were just taken; empty between two waits.
    packets: Vec<*mut OVERLAPPED>,
    /// Operations with a step to make.
    ready: VecDeque<(Token, Step)>,
    /// Results that wait for the next `wait`.
    immediate: VecDeque<RawCompletion>,
    elsewhere: Elsewhere,
    attempts_max: usize,
    /// The last wait left out the port because it had results anyway.
    skipped_port: bool,
}

impl Iocp {
    pub(crate) fn new(config: &Config) -> io::Result<Iocp> {
        let limits = &config.limits;
        let places = Box::<[UnsafeCell<MaybeUninit<Outstanding>>]>::new_uninit_slice(limits.operations_max);
        Ok(Iocp {
            port: Arc::new(Port::new()?),
            // SAFETY: invariant 1 (slot memory): an `UnsafeCell<MaybeUninit<_>>` needs no initialisation.
            places: unsafe { places.assume_init() },
            packets: Vec::new(),
            ready: VecDeque::new(),
            immediate: VecDeque::new(),
            elsewhere: Elsewhere::new(limits),
            attempts_max: limits.attempts_per_event_max,
            skipped_port: false,
        })
    }

    pub(crate) fn wake(&self) -> Wake {
        Wake::port(Arc::clone(&self.port))
    }

    /// The descriptor leaves the port, so that another one may have it.
    pub(crate) fn give_away(&self, fd: &FdRef) {
        self.port.detach(fd);
    }

    fn place(&self, token: Token) -> *mut Outstanding {
        self.places[token.index()].get().cast()
    }

    pub(crate) fn submit(&mut self, token: Token, _: &mut Slots) {
        // SAFETY: invariant 1: the slot was just taken, so the system knows nothing of its place.
        unsafe { self.place(token).write(Outstanding::new(token)) };
        self.ready.push_back((token, Step::First));
    }

    pub(crate) fn cancel(&mut self, token: Token, slots: &mut Slots) {
        if slots.get_mut(token).is_none() {
            return;
        }
        let before = self.ready.len();
        // A result that has landed is not lost; what follows it is cancelled (`go_on`).
        self.ready.retain(|(other, step)| *other != token || matches!(step, Step::Landed(_)));
        if self.ready.len() != before || self.elsewhere.remove_deferred(token) {
            self.immediate.push_back(RawCompletion::terminal(token, -CANCELED));
            return;
        }
        // An operation whose terminal result is on its way, or whose call runs on a thread, ends by itself.
        // SAFETY: invariant 1: the place of a slot in use was written at its submission.
        unsafe { Outstanding::cancel(self.place(token)) };
    }

    pub(crate) fn wait(&mut self, bench: &mut Workbench<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.run_ready(bench);
        self.take_immediate(bench);
        if !bench.out.is_empty() && !self.skipped_port {
            self.skipped_port = true;
            return Ok(());
        }
        self.skipped_port = false;
        let idle = bench.out.is_empty() && self.ready.is_empty() && self.immediate.is_empty();
        self.take_packets(bench, if idle { timeout } else { Some(Duration::ZERO) })?;
        for (token, result) in self.elsewhere.take_results() {
            self.immediate.push_back(RawCompletion::terminal(token, result));
        }
        self.take_immediate(bench);
        Ok(())
    }

    /// The next wait asks the port, whatever it has already.
    pub(crate) fn insist(&mut self) {
        self.skipped_port = true;
    }

    fn take_packets(&mut self, bench: &mut Workbench<'_>, timeout: Option<Duration>) -> io::Result<()> {
        let room = bench.budget.saturating_sub(bench.out.len());
        let mut packets = std::mem::take(&mut self.packets);
        let taken = self.port.take(room, timeout, &mut packets);
        for place in packets.drain(..) {
            let Some(place) = self.own(place) else { continue };
            // SAFETY: invariant 1: the packet names a place of this backend, and comes once for each call.
            let (token, result) = unsafe { Outstanding::land(place) };
            if place != self.place(token) || bench.slots.get_mut(token).is_none() {
                // Invariant 7: counted as stale, and nothing is made of it.
                bench.out.push(RawCompletion::terminal(token, result));
                continue;
            }
            // What the budget has no room for goes on in the next wait.
            match bench.out.len() < bench.budget {
                true => self.go_on(token, Step::Landed(result), bench),
                false => self.ready.push_back((token, Step::Landed(result))),
            }
        }
        self.packets = packets;
        taken
    }

    /// The place that a packet names. One of a call that somebody else made, on a foreign socket that was waited for here,
    /// names none.
    fn own(&self, named: *mut OVERLAPPED) -> Option<*mut Outstanding> {
        let own = self.places.as_ptr_range().contains(&named.cast_const().cast());
        own.then_some(named.cast())
    }

    fn run_ready(&mut self, bench: &mut Workbench<'_>) {
        self.elsewhere.run_deferred();
        for _ in 0..self.ready.len() {
            if bench.out.len() >= bench.budget {
                return;
            }
            let Some((token, step)) = self.ready.pop_front() else { return };
            let Some((op, _)) = bench.slots.parts(token) else { continue };
            if let Some(call) = op.blocking() {
                self.elsewhere.run(token, call, self.wake());
                continue;
            }
            self.go_on(token, step, bench);
        }
    }

    /// Lets an operation make steps until it waits, has ended, or has had its share.
    fn go_on(&mut self, token: Token, mut step: Step, bench: &mut Workbench<'_>) {
        for _ in 0..self.attempts_max {
            let Some((slot, scratch)) = bench.slots.with_scratch(token) else { return };
            let cancel_asked = slot.cancel_asked;
            let means = Means { pool: bench.pools.of_op(&slot.op), bytes_max: usize::MAX };
            let flight = Flight { port: &self.port, place: self.place(token), scratch, means: &means };
            let (result, buffer, next) = match slot.op.start(step, &flight) {
                Attempt::Blocked => {
                    if cancel_asked {
                        // The cancel came between two calls and has met neither.
                        // SAFETY: invariant 1: the place of a slot in use was written at its submission.
                        unsafe { Outstanding::cancel(self.place(token)) };
                    }
                    return;
                }
                Attempt::Done(result) => {
                    bench.out.push(RawCompletion::terminal(token, result));
                    return;
                }
                Attempt::More(result, buffer) => (result, buffer, Step::Again),
                Attempt::Drained(result, buffer) => (result, buffer, Step::Drained),
            };
            bench.out.push(RawCompletion { token, result, more: true, buffer });
            if cancel_asked {
                bench.out.push(RawCompletion::terminal(token, -CANCELED));
                return;
            }
            step = next;
            if bench.out.len() >= bench.budget {
                break;
            }
        }
        self.ready.push_back((token, step));
    }

    fn take_immediate(&mut self, bench: &mut Workbench<'_>) {
        let room = bench.budget.saturating_sub(bench.out.len()).min(self.immediate.len());
        bench.out.extend(self.immediate.drain(..room));
    }
}
