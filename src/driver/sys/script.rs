//! The scripted backend for tests: operations are really attempted, but when and how the seed has it.
//!
//! It plays what kernels do once a month: results come late and in another order, reads and writes are short,
//! buffers are wanting, submissions and whole turns are refused, a cancelled operation succeeds after all. It
//! keeps the same contract as every backend; whatever a correct program does over the others it must do here.
//! It polls, so it is slow and busy.
#![forbid(unsafe_code)]

use super::os::Raw;
use super::{CANCELED, NO_BUFFERS, Wake, Workbench};
use crate::config::Config;
use crate::driver::completion::RawCompletion;
use crate::driver::op::{Attempt, Op};
use crate::driver::token::Token;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How the scripted backend misbehaves. Rates are chances out of 256 at each opportunity.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Script {
    /// Where its choices come from; the same seed makes the same choices.
    pub seed: u64,
    /// An operation is not attempted in this turn.
    pub late: u8,
    /// A read or write moves only a few bytes.
    pub short: u8,
    /// A result is held back while later ones go ahead.
    pub held: u8,
    /// A submission is refused as if the table were full.
    pub refused: u8,
    /// A whole turn fails as `EAGAIN` or `EBUSY` on enter would: nothing is attempted or reported.
    pub turn_refused: u8,
    /// A standing receive ends for want of buffers though there are some.
    pub no_buffers: u8,
    /// A cancelled operation is attempted once more first, and perhaps succeeds.
    pub late_success: u8,
}

impl Script {
    /// A script that does everything at once and right.
    pub fn calm(seed: u64) -> Script {
        Script {
            seed,
            late: 0,
            short: 0,
            held: 0,
            refused: 0,
            turn_refused: 0,
            no_buffers: 0,
            late_success: 0,
        }
    }

    /// A script that does everything that kernels do, often.
    pub fn rough(seed: u64) -> Script {
        Script {
            seed,
            late: 64,
            short: 64,
            held: 48,
            refused: 0,
            turn_refused: 24,
            no_buffers: 16,
            late_success: 128,
        }
    }

    /// As it is, with submissions refused at this rate too.
    pub fn refusing(mut self, rate: u8) -> Script {
        self.refused = rate;
        self
    }
}

/// The scripted backend.
pub(crate) struct ScriptBackend {
    script: Script,
    random: Random,
    /// Operations in flight, in order of submission.
    pending: Vec<Pending>,
    /// Results on their way.
    held: Vec<RawCompletion>,
    woken: Arc<AtomicBool>,
}

struct Pending {
    token: Token,
    cancel_asked: bool,
}

/// A small generator of random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, of_256: u8) -> bool {
        of_256 > 0 && (self.next() & 0xff) < u64::from(of_256)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// How long it sleeps when nothing happens.
const NAP: Duration = Duration::from_micros(100);

impl ScriptBackend {
    pub(crate) fn new(script: Script, _: &Config) -> io::Result<ScriptBackend> {
        let random = Random(script.seed);
        Ok(ScriptBackend { script, random, pending: Vec::new(), held: Vec::new(), woken: Arc::default() })
    }

    pub(crate) fn wake(&self) -> Wake {
        Wake::flag(Arc::clone(&self.woken))
    }

    pub(crate) fn refuses(&mut self) -> bool {
        self.random.chance(self.script.refused)
    }

    pub(crate) fn submit(&mut self, token: Token) {
        self.pending.push(Pending { token, cancel_asked: false });
    }

    pub(crate) fn cancel(&mut self, token: Token) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.token == token) {
            pending.cancel_asked = true;
        }
    }

    pub(crate) fn wait(&mut self, bench: &mut Workbench<'_>, timeout: Option<Duration>) -> io::Result<()> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if !self.random.chance(self.script.turn_refused) {
                self.attempt_all(bench);
                self.deliver(bench);
            }
            let woken = self.woken.swap(false, Ordering::SeqCst);
            let late = end.is_some_and(|end| Instant::now() >= end);
            if !bench.out.is_empty() || woken || late {
                return Ok(());
            }
            std::thread::sleep(NAP);
        }
    }

    fn attempt_all(&mut self, bench: &mut Workbench<'_>) {
        let mut blocked = Vec::new();
        let mut index = 0;
        while index < self.pending.len() {
            if self.attempt(index, bench, &mut blocked) {
                self.pending.remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Attempts one operation; true if it has ended. Operations behind another one on the same descriptor and
    /// direction wait for it.
    fn attempt(&mut self, index: usize, bench: &mut Workbench<'_>, blocked: &mut Vec<(Raw, u8)>) -> bool {
        let Pending { token, cancel_asked } = self.pending[index];
        let Some((op, scratch)) = bench.slots.parts(token) else { return true };
        let place = place(op);
        if place.is_some_and(|place| blocked.contains(&place)) && !cancel_asked {
            return false;
        }
        if cancel_asked && !self.random.chance(self.script.late_success) {
            return self.end(token, -CANCELED);
        }
        let standing = matches!(op, Op::RecvMulti(_) | Op::RecvMsgMulti(_) | Op::RecvBatch(_));
        if standing && self.random.chance(self.script.no_buffers) {
            return self.end(token, -NO_BUFFERS);
        }
        let attempt = if self.random.chance(self.script.late) {
            Attempt::Blocked
        } else {
            let short = self.random.chance(self.script.short) && !is_datagram(op);
            let bytes_max = if short { 1 + self.random.below(64) } else { usize::MAX };
            bench.pools.attempt(op, scratch, bytes_max)
        };
        match attempt {
            Attempt::Done(result) => return self.end(token, result),
            Attempt::More(result, buffer) | Attempt::Drained(result, buffer) => {
                self.held.push(RawCompletion { token, result, more: true, buffer });
            }
            Attempt::Blocked => blocked.extend(place),
        }
        if cancel_asked { self.end(token, -CANCELED) } else { false }
    }

    fn end(&mut self, token: Token, result: i32) -> bool {
        self.held.push(RawCompletion::terminal(token, result));
        true
    }

    /// Reports results, some later than others, those of one operation in order.
    fn deliver(&mut self, bench: &mut Workbench<'_>) {
        let mut kept: Vec<RawCompletion> = Vec::new();
        let mut going = Vec::new();
        for completion in self.held.drain(..) {
            let behind = kept.iter().any(|other| other.token == completion.token);
            let full = bench.out.len() + going.len() >= bench.budget;
            if behind || full || self.random.chance(self.script.held) {
                kept.push(completion);
            } else {
                going.push(completion);
            }
        }
        self.held = kept;
        bench.out.append(&mut going);
    }
}

/// Datagrams are never read or written in parts.
fn is_datagram(op: &Op) -> bool {
    op.waits_for().is_some_and(|(fd, _)| fd.descriptor().is_datagram())
}

/// The queue an operation stands in: its descriptor and direction.
fn place(op: &Op) -> Option<(Raw, u8)> {
    op.waits_for().map(|(fd, direction)| (fd.raw(), direction as u8))
}
