//! The io_uring backend: ring set-up, encoding, submission, reaping.
//!
//! One `enter` per wait submits everything and waits. An entry that was published is in flight whatever `enter`
//! returned (invariant 2); what finds the ring full waits in the backlog, in order, cancels included, so none is
//! ever lost (invariant 6). What the kernel lacks is emulated: a standing operation becomes single ones that are
//! repeated here, or a wait for readiness and an attempt. Which of these an operation uses travels as a mark in
//! the low byte of its user data.
//!
//! The ring is used by one thread only. It must be drained before it is dropped; the driver sees to that.
#![allow(unsafe_code)]

mod calls;
mod doorway;
mod lookout;
mod restrict;
mod setup;

use self::doorway::{Doorway, GETEVENTS, SQ_WAKEUP};
use self::lookout::Lookout;
use self::restrict::restrict;
use self::setup::{Built, advise, build, require};
use super::uring_bufs::{BufferRing, Buffers};
use super::{APART_GROUP, CANCELED, DATAGRAM_GROUP, Refusal, Wake, Workbench};
use crate::buf::Pool;
use crate::config::{Config, Limits};
use crate::driver::Pools;
use crate::driver::completion::RawCompletion;
use crate::driver::fd::FdRef;
use crate::driver::op::{Attempt, Encoding, Op};
use crate::driver::slot::Slots;
use crate::driver::token::Token;
use crate::report::{BackendKind, BackendReport, Capabilities, Capability};
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode};
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

/// Marks in the low byte of user data.
const MARK_PLAIN: u8 = 0;
/// Plain, with buffers of the pool of datagrams.
const MARK_DATAGRAM: u8 = 1;
const MARK_SINGLE: u8 = 2;
const MARK_WAIT: u8 = 3;
const MARK_OWN: u8 = 0xff;

/// User data of entries that are the backend's own.
const WAKE: u64 = 1 << 8 | MARK_OWN as u64;
const CANCEL: u64 = 2 << 8 | MARK_OWN as u64;
const LOOK: u64 = 3 << 8 | MARK_OWN as u64;

/// The io_uring backend.
pub(crate) struct Uring {
    /// Dropped before the ring, whose descriptor it uses.
    doorway: Doorway,
    ring: IoUring,
    bufs: Buffers,
    capabilities: Capabilities,
    /// Entries that found the ring full, in order.
    backlog: VecDeque<Entry>,
    /// How many of them belong to operations that were cancelled; the kernel never sees those.
    forgotten: usize,
    /// Completions that wait for the next `wait`: of operations that were cancelled in the backlog, and what
    /// was above the budget.
    early: Vec<RawCompletion>,
    /// Calls to make at the next `wait`, receives apart from all others: datagrams move by calls of their own, and the
    /// ring only tells when a socket is ready.
    calls: [VecDeque<Token>; 2],
    /// The last wait left out `enter` because it had results anyway.
    skipped_enter: bool,
    /// Completions that need more than translating: the raw fields.
    special: Vec<(u64, i32, u32)>,
    event: Arc<EventFd>,
    /// Where the kernel writes the event's counter.
    event_count: Box<u64>,
    wake_armed: bool,
    lookout: Lookout,
    ending: bool,
    insisted: bool,
    submission_polling: bool,
    attempts_max: usize,
    hardened: bool,
}

/// A ring, what is emulated on it and why, and what it was restricted to.
type SetUp = (Uring, Vec<(Capability, String)>, Option<String>);

impl Uring {
    pub(crate) fn new(config: &Config, asked: &str) -> Result<(Uring, BackendReport), Refusal> {
        let mut ladder = Vec::new();
        match Uring::set_up(config, &mut ladder) {
            Ok((ring, lowered, hardened)) => {
                let report = BackendReport {
                    backend: BackendKind::Uring,
                    reason: format!("{asked}; io_uring works here"),
                    ladder,
                    capabilities: ring.capabilities,
                    lowered,
                    hardened,
                };
                Ok((ring, report))
            }
            Err(error) => Err(Refusal { error: advise(&error), ladder }),
        }
    }

    fn set_up(config: &Config, ladder: &mut Vec<String>) -> io::Result<SetUp> {
        let mut lowered: Vec<_> = config.without.iter().map(|masked| (masked, "masked".to_owned())).collect();
        let Built { ring, streams, mut capabilities, lowered: refused } = build(config, ladder)?;
        lowered.extend(refused);
        let mut doorway = Doorway::new(ring.as_raw_fd());
        require(&ring, config, &mut capabilities, &mut lowered)?;
        let allowed = |capability| !config.without.has(capability);
        if allowed(Capability::RegisteredRing) {
            match doorway.register() {
                Ok(()) => capabilities.insert(Capability::RegisteredRing),
                Err(error) => lowered.push((Capability::RegisteredRing, error.to_string())),
            }
        }
        let mut bufs = Buffers { streams, apart: None, datagrams: None };
        // From here on a hardened ring takes no other registrations.
        let hardened = config.hardened.then(|| restrict(&ring, capabilities)).transpose();
        let hardened = hardened.inspect_err(|_| bufs.unregister(&ring))?;
        // No probe tells of these: they are believed until the kernel refuses one.
        use Capability::{AddressedSend, MultishotAccept, SegmentedSend};
        for capability in [MultishotAccept, AddressedSend, SegmentedSend] {
            if allowed(capability) {
                capabilities.insert(capability);
            }
        }
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?;
        let ring = Uring {
            doorway,
            ring,
            bufs,
            capabilities,
            backlog: VecDeque::new(),
            forgotten: 0,
            early: Vec::new(),
            calls: Default::default(),
            skipped_enter: false,
            special: Vec::new(),
            event: Arc::new(event),
            event_count: Box::new(0),
            wake_armed: false,
            lookout: Lookout::new(),
            insisted: false,
            ending: false,
            submission_polling: config.submission_polling.is_some(),
            attempts_max: config.limits.attempts_per_event_max,
            hardened: config.hardened,
        };
        Ok((ring, lowered, hardened))
    }

    pub(crate) fn wake(&self) -> Wake {
        Wake::event(Arc::clone(&self.event))
    }

    pub(crate) fn submit(&mut self, token: Token, slots: &mut Slots) {
        let Some((slot, scratch)) = slots.with_scratch(token) else { return };
        if let Some(queue) = self.call_queue(&slot.op) {
            slot.mark = MARK_WAIT;
            return self.calls[queue].push_back(token);
        }
        let (encoding, mark) = self.encoding(&slot.op);
        slot.mark = mark;
        if mark == MARK_PLAIN && matches!(slot.op, Op::RecvMulti(_)) {
            self.lookout.want();
        }
        let entry = slot.op.sqe(scratch, encoding).user_data(token.marked(mark));
        slot.waiting = !self.push(entry);
    }

    /// How the kernel's capabilities let an operation be encoded, and the mark of its completions.
    fn encoding(&self, op: &Op) -> (Encoding, u8) {
        let has = |capability| self.capabilities.has(capability);
        match op {
            Op::Accept(op) if op.repeat && !has(Capability::MultishotAccept) => {
                (Encoding::Single, MARK_SINGLE)
            }
            Op::RecvMulti(_) if !has(Capability::BufferRing) => (Encoding::Wait, MARK_WAIT),
            Op::RecvMulti(_) if !has(Capability::MultishotReceive) => (Encoding::Single, MARK_SINGLE),
            Op::RecvMsgMulti(_) if self.bufs.datagrams.is_none() => (Encoding::Wait, MARK_WAIT),
            Op::RecvMsgMulti(_) => (Encoding::Plain, MARK_DATAGRAM),
            Op::Send(op)
                if op.is_zero_copy() && !(has(Capability::ZeroCopySend) && is_internet(&op.socket)) =>
            {
                (Encoding::Single, MARK_PLAIN)
            }
            Op::SendTo(op) if op.to.is_some() && !has(Capability::AddressedSend) => {
                (Encoding::Single, MARK_PLAIN)
            }
            Op::Splice(_) => (Encoding::Wait, MARK_WAIT),
            _ => (Encoding::Plain, MARK_PLAIN),
        }
    }

    pub(crate) fn cancel(&mut self, token: Token, slots: &mut Slots) {
        let Some(slot) = slots.get_mut(token) else { return };
        let target = token.marked(slot.mark);
        if let Some(queue) = self.call_queue(&slot.op) {
            let before = self.calls[queue].len();
            self.calls[queue].retain(|other| *other != token);
            if self.calls[queue].len() < before {
                return self.early.push(RawCompletion::terminal(token, -CANCELED));
            }
        }
        if std::mem::take(&mut slot.waiting) {
            // The kernel has not seen it and never will: it ends here and now, and is reported at the next wait.
            self.early.push(RawCompletion::terminal(token, -CANCELED));
            self.forget_entry(slots);
            return;
        }
        self.push(opcode::AsyncCancel::new(target).build().user_data(CANCEL));
    }

    /// Puts an entry into the ring, or else into the backlog; true if it found room in the ring.
    fn push(&mut self, entry: Entry) -> bool {
        if self.backlog.is_empty() {
            // SAFETY: invariant 1: what the entry points to belongs to an operation in a slot, or to this
            // backend, until the entry's terminal completion.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return true;
            }
        }
        self.backlog.push_back(entry);
        false
    }

    /// Counts an entry of the backlog whose operation was cancelled, and throws such entries out when they are many:
    /// so a cancel costs no search, and the backlog is at most twice as long as what waits in it.
    fn forget_entry(&mut self, slots: &mut Slots) {
        self.forgotten += 1;
        if self.forgotten > self.backlog.len() / 2 {
            self.backlog.retain(|entry| is_awaited(entry, slots));
            self.forgotten = 0;
        }
    }

    /// Moves what waits into the ring, as far as there is room.
    fn move_backlog(&mut self, slots: &mut Slots) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            if is_awaited(entry, slots) {
                // SAFETY: invariant 1: as in `push`; the operation is in its slot, since it waits.
                if unsafe { queue.push(entry) }.is_err() {
                    return;
                }
                let (token, _) = Token::unmarked(entry.get_user_data());
                slots.get_mut(token).into_iter().for_each(|slot| slot.waiting = false);
            } else {
                self.forgotten -= 1;
            }
            self.backlog.pop_front();
        }
    }

    /// Waits for the event. A standing poll tells of each write by a completion, and nobody need read the counter
    /// or submit anew, which saves a tenth of a wake. If there was a write before the poll it tells of that at once, so
    /// none is lost.
    fn arm_wake(&mut self) {
        if self.wake_armed || self.ending {
            return;
        }
        self.wake_armed = true;
        let event = Fd(self.event.as_fd().as_raw_fd());
        // Polls stand since Linux 5.13, which no probe tells; what came later has one.
        let entry = if self.capabilities.has(Capability::MultishotReceive) {
            opcode::PollAdd::new(event, (libc::EPOLLIN | libc::EPOLLET) as u32).multi(true).build()
        } else {
            let count: *mut u64 = &mut *self.event_count;
            opcode::Read::new(event, count.cast(), size_of::<u64>() as u32).build()
        };
        self.push(entry.user_data(WAKE));
    }

    fn arm_lookout(&mut self) {
        if self.ending {
            return;
        }
        if let Some(entry) = self.lookout.arm() {
            self.push(entry.user_data(LOOK));
        }
    }

    /// Renews receives that the kernel has forgotten to end.
    fn look_out(&mut self, bench: &mut Workbench<'_>) {
        let forgotten = self.lookout.look(bench.slots);
        if self.ending {
            return;
        }
        for token in forgotten {
            let mark = bench.slots.get_mut(token).map_or(MARK_PLAIN, |slot| slot.mark);
            self.push(opcode::AsyncCancel::new(token.marked(mark)).build().user_data(CANCEL));
        }
    }

    pub(crate) fn wait(&mut self, bench: &mut Workbench<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.make_ready(bench.slots, bench.pools);
        if !self.early.is_empty() {
            let room = bench.budget.saturating_sub(bench.out.len()).min(self.early.len());
            bench.out.extend(self.early.drain(..room));
        }
        self.run_calls(bench);
        if self.may_skip_enter(bench) {
            return Ok(());
        }
        let idle = bench.out.is_empty()
            && self.early.is_empty()
            && self.backlog.is_empty()
            && self.ring.completion().is_empty();
        let block = idle && timeout != Some(Duration::ZERO);
        let refused = if block || self.needs_enter() { self.enter(block, timeout)? } else { false };
        let more = std::mem::take(&mut self.insisted) && !self.ring.completion().is_empty();
        self.reap(bench);
        if more {
            self.exhaust(bench)?;
        }
        if refused && bench.out.is_empty() {
            // The kernel wants memory or a flushed completion queue; entries stay published (invariant 2).
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Puts everything into the ring that the kernel shall have, as far as there is room.
    fn make_ready(&mut self, slots: &mut Slots, pools: &Pools) {
        self.bufs.publish(pools);
        self.arm_wake();
        self.arm_lookout();
        self.move_backlog(slots);
    }

    /// Submits without waiting; what has completed stays in the ring.
    pub(crate) fn hand_over(&mut self, slots: &mut Slots, pools: &Pools) -> io::Result<()> {
        self.make_ready(slots, pools);
        // A refusal shows again in the wait that follows: its entries stay in the ring.
        if self.ring.submission().is_empty() { Ok(()) } else { self.enter(false, None).map(drop) }
    }

    /// Whether a wait would find something at once. Looks at memory only.
    pub(crate) fn has_news(&mut self) -> bool {
        let unfinished = !(self.early.is_empty() && self.backlog.is_empty());
        unfinished || !self.ring.completion().is_empty() || self.needs_enter()
    }

    /// Whether a call that does not wait has something to do: entries to take, completions to make, or such that
    /// found the ring full. Where the kernel does not say so in the ring it makes them without being called.
    fn needs_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        self.insisted || !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// The next wait brings everything that has arrived, up to its budget.
    pub(crate) fn insist(&mut self) {
        self.insisted = true;
    }

    /// Asks until a call brings nothing: where the kernel defers its work, one call may do only a part of it
    /// (twenty pieces since Linux 6.13).
    fn exhaust(&mut self, bench: &mut Workbench<'_>) -> io::Result<()> {
        while bench.out.len() < bench.budget {
            self.enter(false, None)?;
            if self.ring.completion().is_empty() {
                break;
            }
            self.reap(bench);
        }
        Ok(())
    }

    /// Submits, and waits for one completion if `block`. True if the kernel could not take everything now.
    fn enter(&mut self, block: bool, timeout: Option<Duration>) -> io::Result<bool> {
        let queue = self.ring.submission();
        let pending = queue.len() as u32;
        let mut flags = GETEVENTS;
        if self.submission_polling && queue.need_wakeup() {
            flags |= SQ_WAKEUP;
        }
        drop(queue);
        match self.doorway.enter(pending, u32::from(block), flags, timeout.filter(|_| block)) {
            Ok(()) => Ok(false),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ETIME) => Ok(false),
                Some(libc::EAGAIN | libc::EBUSY) => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// Copies completions out of the ring; those that need more than that are handled afterwards.
    fn reap(&mut self, bench: &mut Workbench<'_>) {
        let room = bench.budget.saturating_sub(bench.out.len());
        let mut in_order = false;
        for entry in self.ring.completion().take(room) {
            let (data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
            let (token, mark) = Token::unmarked(data);
            // What comes after a refused operation may be its own next completion, so it must not overtake.
            in_order |= is_refusal(result);
            let renewed = result == -CANCELED && self.lookout.has_renewed();
            if mark > MARK_DATAGRAM || in_order || renewed {
                self.special.push((data, result, flags));
            } else {
                let datagram = mark == MARK_DATAGRAM;
                bench.out.push(self.bufs.translate(token, result, flags, datagram, bench.pools));
            }
        }
        if !self.special.is_empty() {
            let special = std::mem::take(&mut self.special);
            special.iter().for_each(|(data, result, flags)| self.on_special(*data, *result, *flags, bench));
            self.special = special;
            self.special.clear();
        }
        // One of them may have brought several; `early` is empty whenever there was room to reap.
        self.early.extend(bench.out.drain(bench.budget.min(bench.out.len())..));
    }

    fn on_special(&mut self, data: u64, result: i32, flags: u32, bench: &mut Workbench<'_>) {
        let (token, mark) = Token::unmarked(data);
        match (data, mark) {
            (WAKE, _) => return self.wake_armed = cqueue::more(flags),
            (LOOK, _) => return self.look_out(bench),
            (_, MARK_OWN) => return,
            (_, MARK_WAIT) => return self.on_ready(token, result, bench),
            _ => {}
        }
        let completion = self.bufs.translate(token, result, flags, mark == MARK_DATAGRAM, bench.pools);
        match mark {
            MARK_SINGLE => self.on_single(completion, bench),
            _ if result == -CANCELED && self.lookout.renews(token) => self.repeat(token, bench),
            _ if is_refusal(result) => self.on_refused(completion, bench),
            _ => bench.out.push(completion),
        }
    }

    /// A single operation that stands for a standing one: repeated after success.
    fn on_single(&mut self, completion: RawCompletion, bench: &mut Workbench<'_>) {
        let stream_end = completion.result == 0 && is_receive(completion.token, bench);
        if completion.result < 0 || stream_end {
            bench.out.push(completion);
            return;
        }
        bench.out.push(RawCompletion { more: true, ..completion });
        self.repeat(completion.token, bench);
    }

    /// The descriptor of a standing receive is ready.
    fn on_ready(&mut self, token: Token, result: i32, bench: &mut Workbench<'_>) {
        if result < 0 {
            bench.out.push(RawCompletion::terminal(token, result));
            return;
        }
        for _ in 0..self.attempts_max {
            let Some((op, scratch)) = bench.slots.parts(token) else { return };
            match bench.pools.attempt(op, scratch, usize::MAX) {
                Attempt::Blocked => break,
                Attempt::Done(result) => {
                    bench.out.push(RawCompletion::terminal(token, result));
                    return;
                }
                Attempt::More(result, buffer) | Attempt::Drained(result, buffer) => {
                    bench.out.push(RawCompletion { token, result, more: true, buffer })
                }
            }
        }
        self.repeat(token, bench);
    }

    /// Submits an emulated operation again, unless it has been cancelled meanwhile: its cancel may have come
    /// between two submissions and found nothing.
    fn repeat(&mut self, token: Token, bench: &mut Workbench<'_>) {
        let canceled = bench.slots.get_mut(token).is_none_or(|slot| slot.cancel_asked);
        if canceled {
            bench.out.push(RawCompletion::terminal(token, -CANCELED));
        } else {
            self.submit(token, bench.slots);
        }
    }

    /// An operation ended with an error by which kernels refuse what they do not know.
    fn on_refused(&mut self, completion: RawCompletion, bench: &mut Workbench<'_>) {
        let Some(slot) = bench.slots.get_mut(completion.token) else {
            bench.out.push(completion);
            return;
        };
        let refused = match &slot.op {
            // An accept on what does not listen (any more) fails on every kernel.
            Op::Accept(op) if op.repeat && is_listener(&op.listener) => Some(Capability::MultishotAccept),
            // Some sockets cannot send without a copy though the kernel can: the notification that follows
            // the result tells, and then there is nothing to repeat.
            Op::Send(op) if op.is_zero_copy() && !completion.more => Some(Capability::ZeroCopySend),
            // Port 0 is refused in the same way, and that is the program's mistake.
            Op::SendTo(op) if op.to.is_some_and(|to| to.port() != 0) => Some(Capability::AddressedSend),
            _ => None,
        };
        let Some(capability) = refused.filter(|capability| self.capabilities.has(*capability)) else {
            bench.out.push(completion);
            return;
        };
        self.capabilities.remove(capability);
        let reason = io::Error::from_raw_os_error(-completion.result).to_string();
        bench.lowered.push((capability, format!("refused: {reason}")));
        self.repeat(completion.token, bench);
    }

    /// Cancels the backend's own read; true once nothing of its own is in flight.
    pub(crate) fn settle_down(&mut self) -> bool {
        if !self.ending {
            self.ending = true;
            if self.wake_armed {
                self.push(opcode::AsyncCancel::new(WAKE).build().user_data(CANCEL));
            }
            if self.lookout.is_armed() {
                self.push(opcode::AsyncCancel::new(LOOK).build().user_data(CANCEL));
            }
        }
        !self.wake_armed && !self.lookout.is_armed() && self.backlog.is_empty()
    }

    /// Takes the buffers back from the kernel. Nothing may be in flight.
    pub(crate) fn release(&mut self) {
        self.bufs.unregister(&self.ring);
    }

    /// The buffers of a pool of streams: piece by piece where the kernel can, else cut up.
    pub(crate) fn stream_buffers(&self, limits: &Limits) -> (usize, usize) {
        let can = |capability| self.capabilities.has(capability);
        if can(Capability::BufferRing) && !can(Capability::IncrementalBuffers) {
            return limits.cut_buffers();
        }
        (limits.buffers, limits.buffer_bytes)
    }

    /// Whether receives may fill so many buffers that lie apart: where the kernel picks the buffers it gets a ring of those.
    pub(crate) fn serves_apart(&mut self, count: usize) -> bool {
        if self.bufs.streams.is_some() {
            self.bufs.apart = BufferRing::register(&self.ring, APART_GROUP, count, false).ok();
        }
        self.bufs.streams.is_none() || self.bufs.apart.is_some()
    }

    /// Shares a pool of datagrams with the kernel; says why that is not to be had.
    pub(crate) fn serve_datagrams(&mut self, pool: &Pool) -> Option<(Capability, String)> {
        let capability = Capability::MultishotReceiveMessage;
        if !self.capabilities.has(Capability::BufferRing) || !self.capabilities.has(capability) {
            return None;
        }
        match BufferRing::register(&self.ring, DATAGRAM_GROUP, pool.count(), false) {
            Ok(made) => {
                self.bufs.datagrams = Some(made);
                None
            }
            Err(error) => {
                self.capabilities.remove(capability);
                Some((capability, error.to_string()))
            }
        }
    }
}

/// Whether an entry of the backlog is the backend's own, or its operation waits: what a cancelled one points to may be gone.
fn is_awaited(entry: &Entry, slots: &mut Slots) -> bool {
    let (token, mark) = Token::unmarked(entry.get_user_data());
    mark == MARK_OWN || slots.get_mut(token).is_some_and(|slot| slot.waiting)
}

/// Whether kernels refuse with this result what they do not know.
fn is_refusal(result: i32) -> bool {
    result == -libc::EINVAL || result == -libc::EOPNOTSUPP
}

/// Other sockets cannot send without a copy.
fn is_internet(socket: &FdRef) -> bool {
    let domain = socket2::SockRef::from(socket).domain();
    domain.is_ok_and(|domain| domain == socket2::Domain::IPV4 || domain == socket2::Domain::IPV6)
}

fn is_listener(socket: &FdRef) -> bool {
    socket2::SockRef::from(socket).is_listener().unwrap_or(false)
}

fn is_receive(token: Token, bench: &mut Workbench<'_>) -> bool {
    bench.slots.get_mut(token).is_some_and(|slot| matches!(slot.op, Op::RecvMulti(_)))
}
