//! Listeners: the standing accept, its queue, and the pause when descriptors run out.
//!
//! A full queue disarms the accept, half a queue arms it again. When the process is out of descriptors the
//! listener pauses, longer each time up to a bound, warns once per episode, and goes on by itself.
#![forbid(unsafe_code)]

use super::endpoint::{Common, EndpointId, Farewell};
use super::engine::{Engine, Timer};
use super::event::Event;
use super::share::{Arrival, Seat, Share};
use super::waiter::{Waiter, Waiters};
use crate::config::Warning;
use crate::driver::completion::{Completion, Done};
use crate::driver::op::Accept;
use crate::driver::{FdRef, Token, sys};
use crate::error::Error;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// The first pause when descriptors run out.
const PAUSE_MS: u64 = 10;

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
    share: Option<Share>,
    pub(super) farewell: Farewell,
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
        let accepts = self.share.as_ref().is_none_or(Share::accepts);
        if self.standing != Standing::Idle || !core.is_open() || !room || !accepts || self.failed.is_some() {
            return;
        }
        if let Ok(token) = core.submit(engine, Accept { listener: core.fd().clone(), repeat: true }) {
            self.standing = Standing::Armed(token);
        }
    }

    pub(crate) fn on_turn(&mut self, core: &mut Common, engine: &mut Engine) {
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
        let wanted = !self.waiters.is_empty() || !self.queue.is_empty() || self.share.is_some();
        if !completion.more && wanted {
            self.arm(core, engine);
        }
    }

    fn on_connection(&mut self, core: &mut Common, engine: &mut Engine, fd: FdRef) {
        engine.accepts += 1;
        self.pause_ms = 0;
        if !core.is_open() {
            return;
        }
        match self.share.as_ref().and_then(Share::place_elsewhere) {
            Some(seat) => engine.arrivals.push(Arrival::Elsewhere { listener: core.id, fd, seat }),
            None => {
                let seat = self.share.as_ref().map(Share::sit);
                self.receive(core.id, engine, (fd, seat));
            }
        }
        if self.queue.len() >= engine.limits.accept_queue_max {
            if let Standing::Armed(token) = self.standing {
                engine.driver.cancel(token);
                self.standing = Standing::Ending;
            }
        }
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
        self.waiters.push(waiter());
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
        self.waiters.push(if standing { Waiter::Standing(tag) } else { Waiter::Tag(tag) });
        self.arm(core, engine);
    }

    /// The listener closes: connections that nobody took are closed with it.
    pub(crate) fn stop(&mut self, id: EndpointId, engine: &mut Engine) {
        if let Standing::Armed(token) = self.standing {
            engine.driver.cancel(token);
            self.standing = Standing::Ending;
        }
        self.fail(id, engine, Error::Closed);
        self.queue.clear();
        if let Some(share) = &self.share {
            share.leave();
        }
    }
}
