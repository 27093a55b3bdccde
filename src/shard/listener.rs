//! Listeners: the standing accept, its queue, and the pause when descriptors run out.
//!
//! A full queue disarms the accept, half a queue arms it again. When the process is out of descriptors the
//! listener pauses, longer each time up to a bound, warns once per episode, and goes on by itself.
//!
//! The program may hold accepting up, or end it for good. Either way the standing accept is cancelled and connections
//! stay in the system's backlog; what had been accepted is still given out, since a cancel is a request (invariant 6)
//! and other members of a group may have connections on their way to this one. After the last of them, and not before,
//! an ended listener says that there are no more. Its socket stays open until it is closed.
//!
//! Where others accept on the same socket (another process, another shard), cancelling the last accept is not enough. A
//! ring waits exclusively: the system wakes one of those who wait for a connection, and if that is the one that is being
//! cancelled, the connection stays in the backlog and nobody is told of it. So a listener that ends looks whether
//! something is there after its accept has ended, and then accepts for another moment. What came before its last look was
//! taken by somebody; what comes after it wakes somebody else.
#![forbid(unsafe_code)]

use super::endpoint::{Common, EndpointId, Farewell};
use super::engine::{Engine, Timer};
use super::event::Event;
use super::share::{Arrival, Seat, Share};
use super::waiter::{Waiter, Waiters};
use crate::config::Warning;
use crate::driver::completion::{Completion, Done};
use crate::driver::op::{Accept, Direction};
use crate::driver::{FdRef, Token, sys};
use crate::error::Error;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// The first pause when descriptors run out.
const PAUSE_MS: u64 = 10;

/// How long a listener that ends accepts again when something is left in the backlog.
const LAST_LOOK: Duration = Duration::from_millis(1);
/// How often it does that at most. Where connections come that fast, others are woken by the next one.
const LAST_LOOKS_MAX: u32 = 16;

/// The state of a listener.
#[derive(Default)]
pub(crate) struct Listener {
    standing: Standing,
    queue: VecDeque<Incoming>,
    /// Who waits for a connection, in order.
    waiters: Waiters,
    /// The pause that the next failure causes; zero outside of an episode.
    pause_ms: u64,
    failed: Option<Error>,
    intake: Intake,
    /// Looks into the backlog that an end has made.
    looks: u32,
    share: Option<Share>,
    pub(super) farewell: Farewell,
}

/// What the program wants of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Intake {
    #[default]
    Open,
    /// No more for now.
    Held,
    /// No more at all.
    Ended,
}

/// The standing accept.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Standing {
    #[default]
    Idle,
    Armed(Token),
    /// Cancelled, and not yet ended.
    Ending,
    /// Until the pause is over.
    Paused,
}

/// A connection with its place in the counts of the group, if there is one.
pub(crate) type Incoming = (FdRef, Option<Seat>);

/// What an accepting party finds.
pub(crate) enum Accepted {
    Connection(FdRef, Option<Seat>),
    Failed(Error),
    Nothing,
}

impl Listener {
    /// A listener, perhaps one of a group over several shards.
    pub(crate) fn new(share: Option<Share>) -> Listener {
        Listener { share, ..Listener::default() }
    }

    pub(crate) fn share(&self) -> Option<&Share> {
        self.share.as_ref()
    }

    /// Arms the accept, unless it is armed, pauses or has failed.
    pub(crate) fn arm(&mut self, core: &mut Common, engine: &mut Engine) {
        let room = self.queue.len() < engine.limits.accept_queue_max;
        if self.intake != Intake::Open || !room || self.failed.is_some() {
            return;
        }
        self.submit(core, engine);
    }

    /// Whether there is a socket to accept on.
    fn has_socket(&self, core: &Common) -> bool {
        core.is_open() && self.share.as_ref().is_none_or(Share::accepts)
    }

    fn submit(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.standing != Standing::Idle || !self.has_socket(core) {
            return;
        }
        if let Ok(token) = core.submit(engine, Accept { listener: core.fd().clone(), repeat: true }) {
            self.standing = Standing::Armed(token);
        }
    }

    pub(crate) fn on_turn(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.intake == Intake::Ended {
            return self.disarm(engine);
        }
        if self.standing == Standing::Paused {
            self.standing = Standing::Idle;
        }
        if !self.waiters.is_empty() || self.share.is_some() {
            self.arm(core, engine);
        }
    }

    pub(crate) fn on_completion(&mut self, core: &mut Common, engine: &mut Engine, completion: Completion) {
        if !completion.more {
            self.standing = Standing::Idle;
        }
        let Done::Accepted(accepted) = completion.done else {
            debug_assert!(false, "a listener got {:?}", completion.done);
            return;
        };
        match accepted {
            Ok(fd) => {
                let fd = engine.driver.adopt_accepted(fd);
                self.on_connection(core, engine, fd);
            }
            Err(Error::Canceled) => {}
            Err(Error::Io(error)) if sys::is_connection_error(&error) => {}
            Err(Error::Io(error)) if sys::is_out_of_descriptors(&error) => self.pause(core.id, engine, error),
            Err(error) => self.fail(core.id, engine, error),
        }
        if !completion.more && self.intake == Intake::Ended {
            self.look_again(core, engine);
        }
        if !completion.more && self.is_wanted() {
            self.arm(core, engine);
        }
    }

    /// Whether somebody has begun to accept.
    fn is_wanted(&self) -> bool {
        !self.waiters.is_empty() || !self.queue.is_empty() || self.share.is_some()
    }

    fn on_connection(&mut self, core: &mut Common, engine: &mut Engine, fd: FdRef) {
        engine.accepts += 1;
        self.pause_ms = 0;
        if !core.is_open() {
            return;
        }
        match self.share.as_ref().and_then(|share| share.place_elsewhere(&mut engine.wakers)) {
            Some((seat, passage)) => {
                engine.arrivals.push(Arrival::Elsewhere { listener: core.id, fd, seat, passage });
            }
            None => {
                let seat = self.share.as_ref().map(Share::sit);
                self.receive(core.id, engine, (fd, seat));
            }
        }
        if self.queue.len() >= engine.limits.accept_queue_max {
            self.disarm(engine);
        }
    }

    fn disarm(&mut self, engine: &mut Engine) {
        if let Standing::Armed(token) = self.standing {
            engine.driver.cancel(token);
            self.standing = Standing::Ending;
        }
    }

    /// Accepts no more until [`resume`](Self::resume); others of the group give it nothing either.
    pub(crate) fn hold(&mut self, engine: &mut Engine) {
        if self.intake == Intake::Open {
            self.intake = Intake::Held;
            self.disarm(engine);
            self.share.iter().for_each(Share::leave);
        }
    }

    /// Accepts again after [`hold`](Self::hold); what has ended or closes stays so.
    pub(crate) fn resume(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.intake == Intake::Held && core.is_open() {
            self.intake = Intake::Open;
            self.share.iter().for_each(Share::come_back);
            if self.is_wanted() {
                self.arm(core, engine);
            }
        }
    }

    /// Accepts no more, for good, but for what waits already.
    pub(crate) fn end(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.intake == Intake::Ended {
            return;
        }
        self.intake = Intake::Ended;
        self.share.iter().for_each(Share::leave);
        self.disarm(engine);
        if self.standing == Standing::Idle {
            self.look_again(core, engine);
        }
    }

    /// After the last accept: accepts for a moment longer if there is something to accept.
    fn look_again(&mut self, core: &mut Common, engine: &mut Engine) {
        let looks = self.looks < LAST_LOOKS_MAX && self.failed.is_none() && self.has_socket(core);
        if looks && core.fd().descriptor().is_ready(Direction::Read) {
            self.looks += 1;
            self.submit(core, engine);
        }
        match self.standing {
            Standing::Armed(_) => {
                let over = engine.now() + LAST_LOOK;
                engine.wheel.insert(over, Timer::AcceptAgain(core.id));
            }
            _ => engine.arrivals.push(Arrival::NoMore { listener: core.id }),
        }
    }

    /// Whether accepting has ended and every connection that was accepted is in the queue.
    fn has_all(&self) -> bool {
        self.intake == Intake::Ended
            && matches!(self.standing, Standing::Idle | Standing::Paused)
            && self.share.as_ref().is_none_or(Share::is_empty)
    }

    /// Whether there will never be a connection again.
    pub(crate) fn is_over(&self) -> bool {
        self.queue.is_empty() && self.has_all()
    }

    /// Tells who waits that accepting has ended; futures also while connections of other members are on their way, so
    /// that they wait for those.
    pub(crate) fn tell_no_more(&mut self, id: EndpointId, engine: &mut Engine) {
        match self.has_all() {
            true => self.waiters.fail_all(engine, id, &Error::Stopped),
            false => self.waiters.wake_all(engine),
        }
    }

    /// Whether every connection that was accepted is in the queue, which waits for the last accept to end.
    pub(crate) fn ended(&mut self, core: &Common, waiter: impl FnOnce() -> Waiter) -> bool {
        // One that closes gives nothing out any more.
        if !core.is_open() || self.has_all() {
            return true;
        }
        self.await_end(waiter())
    }

    /// Puts a waiter in line for the next connection or the last one's arrival; `true` if that was just now.
    fn await_end(&mut self, waiter: Waiter) -> bool {
        if let (Waiter::Future(waker), Some(share), Intake::Ended) = (&waiter, &self.share, self.intake) {
            share.wake_when_empty(waker);
            // It may have arrived, or been given back, before this future could be found.
            if self.has_all() {
                return true;
            }
        }
        self.waiters.push(waiter);
        false
    }

    /// Queues a connection that this shard keeps, or gives it to who waits.
    pub(crate) fn receive(&mut self, id: EndpointId, engine: &mut Engine, (fd, seat): Incoming) {
        if let Some((tag, more)) = self.waiters.take_tag() {
            engine.arrivals.push(Arrival::Here { listener: id, fd, seat, tag, more });
            return;
        }
        self.queue.push_back((fd, seat));
        self.waiters.wake_all(engine);
    }

    fn pause(&mut self, id: EndpointId, engine: &mut Engine, error: io::Error) {
        if self.pause_ms == 0 {
            engine.accept_pauses += 1;
            engine.warnings.push(Warning::AcceptPaused { listener: id.as_u64(), error });
        }
        self.pause_ms = (self.pause_ms * 2).clamp(PAUSE_MS, engine.limits.accept_pause_max_ms.max(PAUSE_MS));
        self.standing = Standing::Paused;
        let again = engine.now() + Duration::from_millis(self.pause_ms);
        engine.wheel.insert(again, Timer::AcceptAgain(id));
    }

    fn fail(&mut self, id: EndpointId, engine: &mut Engine, error: Error) {
        self.waiters.fail_all(engine, id, &error);
        self.failed = Some(error);
    }

    /// Takes a connection; puts the waiter in line and arms the accept if there is none.
    pub(crate) fn accept(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        waiter: impl FnOnce() -> Waiter,
    ) -> Accepted {
        if let Some((fd, seat)) = self.queue.pop_front() {
            if self.queue.len() <= engine.limits.accept_queue_max / 2 {
                self.arm(core, engine);
            }
            return Accepted::Connection(fd, seat);
        }
        if let Some(error) = &self.failed {
            return Accepted::Failed(error.duplicate());
        }
        if !core.is_open() {
            return Accepted::Failed(Error::Closed);
        }
        // The queue was looked at on this thread, which is the only one that fills it.
        if self.has_all() || self.await_end(waiter()) {
            return Accepted::Failed(Error::Stopped);
        }
        self.arm(core, engine);
        Accepted::Nothing
    }

    /// Puts a waiter in line.
    pub(crate) fn wait(&mut self, waiter: Waiter) -> Accepted {
        self.waiters.push(waiter);
        Accepted::Nothing
    }

    /// Lets waiting futures look again.
    pub(crate) fn wake_waiters(&mut self, engine: &mut Engine) {
        self.waiters.wake_all(engine);
    }

    /// Starts accepting for a tag of the completion API.
    pub(crate) fn submit_accept(&mut self, core: &mut Common, engine: &mut Engine, tag: u64, standing: bool) {
        while let Some((fd, seat)) = self.queue.pop_front() {
            engine.arrivals.push(Arrival::Here { listener: core.id, fd, seat, tag, more: standing });
            if !standing {
                return;
            }
        }
        if let Some(error) = &self.failed {
            engine.emit(tag, core.id, false, Event::Failed(error.duplicate()));
            return;
        }
        if self.has_all() {
            // After what the queue still had for this tag.
            self.waiters.push(Waiter::Tag(tag));
            engine.arrivals.push(Arrival::NoMore { listener: core.id });
            return;
        }
        self.waiters.push(if standing { Waiter::Standing(tag) } else { Waiter::Tag(tag) });
        self.arm(core, engine);
    }

    /// The listener closes: connections that nobody took are closed with it.
    pub(crate) fn stop(&mut self, id: EndpointId, engine: &mut Engine) {
        self.disarm(engine);
        self.fail(id, engine, Error::Closed);
        self.queue.clear();
        if let Some(share) = &self.share {
            share.leave();
        }
    }
}
