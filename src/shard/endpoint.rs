//! Endpoints: sockets and single operations that a shard owns, by id.
//!
//! An endpoint owns the operations on its descriptor; surfaces only look at its queues (invariant 8). Closing
//! refuses new work at once and never blocks; the descriptor closes after the last operation has ended
//! (invariant 10). This file holds the table and the life cycle that all kinds share.
#![forbid(unsafe_code)]

use super::datagram::Datagrams;
use super::engine::Engine;
use super::event::Event;
use super::listener::Listener;
use super::single::Single;
use super::stream::Stream;
use super::timer::TimerId;
use super::waiter::{Waiter, Waiters};
use crate::driver::completion::Completion;
use crate::driver::op::Op;
use crate::driver::{FdRef, Token};
use slab::Slab;
use std::fmt;

/// Names an endpoint of one shard: a connection, a listener, a socket.
///
/// An id is never used twice: one that outlives its endpoint names nothing, and calls with it answer
/// [`Error::Closed`](crate::Error::Closed).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

impl EndpointId {
    fn new(index: usize, generation: u32) -> EndpointId {
        EndpointId(u64::from(generation) << 32 | index as u64)
    }

    /// Its place in the table; others have it before and after.
    pub(super) fn index(self) -> usize {
        self.0 as u32 as usize
    }

    /// The id as a plain number, for logs and maps; never zero.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    pub(crate) fn from_owner(owner: u64) -> EndpointId {
        EndpointId(owner)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointId({}:{})", self.0 as u32, self.0 >> 32)
    }
}

/// The endpoints of a shard.
pub(crate) struct Endpoints {
    table: Slab<Endpoint>,
    generation: u32,
}

/// Places that a table begins with. Their memory is taken from the system as they are first used, whereas a table that
/// grows leaves memory behind.
pub(crate) const PLACES_AT_START: usize = 65_536;

impl Endpoints {
    /// A table for `max` endpoints.
    pub(crate) fn new(max: usize) -> Endpoints {
        Endpoints { table: Slab::with_capacity(max.min(PLACES_AT_START)), generation: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn insert(&mut self, fd: Option<FdRef>, kind: Kind) -> EndpointId {
        self.generation = self.generation.wrapping_add(1).max(1);
        let id = EndpointId::new(self.table.vacant_key(), self.generation);
        let endpoint = Endpoint { core: Common { id, fd, in_flight: 0, life: Life::Open, seat: None }, kind };
        self.table.insert(endpoint);
        id
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: EndpointId) -> Option<&mut Endpoint> {
        self.table.get_mut(id.index()).filter(|endpoint| endpoint.core.id == id)
    }

    pub(crate) fn remove(&mut self, id: EndpointId) -> Option<Endpoint> {
        self.get_mut(id)?;
        Some(self.table.remove(id.index()))
    }

    pub(crate) fn ids(&self) -> Vec<EndpointId> {
        self.table.iter().map(|(_, endpoint)| endpoint.core.id).collect()
    }
}

/// One endpoint.
pub(crate) struct Endpoint {
    pub(crate) core: Common,
    pub(crate) kind: Kind,
}

const _: () = assert!(size_of::<Endpoint>() <= 112);

/// What every endpoint has.
pub(crate) struct Common {
    pub(crate) id: EndpointId,
    pub(crate) fd: Option<FdRef>,
    /// Operations that have not had their terminal completion.
    pub(crate) in_flight: u32,
    pub(crate) life: Life,
    /// The place a connection takes in the counts of its group of listeners.
    pub(crate) seat: Option<super::share::Seat>,
}

/// What some closing endpoints have.
#[derive(Default)]
pub(crate) struct Farewell {
    /// Who waits for the end.
    closed: Waiters,
    /// When what is still queued is dropped.
    deadline: Option<TimerId>,
}

/// The life of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// In use.
    Open,
    /// Closing: no new work; what happens to queued bytes is said.
    Closing(Close),
    /// The close itself is in flight.
    Ending,
}

/// What kind of endpoint, with the state that is its own.
pub(crate) enum Kind {
    Stream(Stream),
    Listener(Box<Listener>),
    Datagrams(Box<Datagrams>),
    Single(Box<Single>),
}

impl Kind {
    /// What it keeps while it closes, if there is something.
    fn farewell(&mut self) -> Option<&mut Farewell> {
        match self {
            Kind::Stream(stream) => stream.farewell(),
            other => Some(other.farewell_mut()),
        }
    }

    /// The same, made if need be.
    fn farewell_mut(&mut self) -> &mut Farewell {
        match self {
            Kind::Stream(stream) => stream.farewell_mut(),
            Kind::Listener(listener) => &mut listener.farewell,
            Kind::Datagrams(datagrams) => &mut datagrams.farewell,
            Kind::Single(single) => &mut single.farewell,
        }
    }
}

/// What is left to do after an endpoint was touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Lives,
    /// It has ended: take it out of the table.
    Over,
}

/// How to close, from the mildest to the harshest. An endpoint that closes may be closed again more harshly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Close {
    /// Send what is queued first, for at most [`Limits::close_flush_ms`](crate::Limits).
    Flush,
    /// Give the system what it takes of the queue without waiting and drop the rest of it; the connection ends in
    /// order (where a send is under way its outbound direction is shut down), and what the system took is still
    /// delivered. Datagrams leave as with `Flush`.
    Now,
    /// Drop what is queued; the peer of a TCP connection sees a reset.
    Abort,
}

impl Common {
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.life == Life::Open
    }

    pub(crate) fn is_aborting(&self) -> bool {
        self.life == Life::Closing(Close::Abort)
    }

    /// Whether what cannot be sent without waiting is dropped.
    pub(crate) fn is_hurrying(&self) -> bool {
        matches!(self.life, Life::Closing(how) if how > Close::Flush)
    }

    #[inline]
    pub(crate) fn fd(&self) -> &FdRef {
        self.fd.as_ref().expect("an endpoint that is not ending has its descriptor")
    }

    /// Submits an operation for this endpoint; gives it back if the table is full.
    #[inline]
    pub(crate) fn submit(&mut self, engine: &mut Engine, op: impl Into<Op>) -> Result<Token, Op> {
        match engine.driver.submit(op, self.id.as_u64()) {
            Ok(token) => {
                self.in_flight += 1;
                Ok(token)
            }
            Err(full) => {
                engine.refusals += 1;
                engine.try_again(self.id);
                Err(full.0)
            }
        }
    }
}

impl Endpoint {
    /// One completion of one of its operations.
    #[inline]
    pub(crate) fn on_completion(&mut self, engine: &mut Engine, completion: Completion) -> Fate {
        if !completion.more {
            self.core.in_flight -= 1;
        }
        if self.core.life == Life::Ending {
            return self.over(engine);
        }
        match &mut self.kind {
            Kind::Stream(stream) => stream.on_completion(&mut self.core, engine, completion),
            Kind::Listener(listener) => listener.on_completion(&mut self.core, engine, completion),
            Kind::Datagrams(datagrams) => datagrams.on_completion(&mut self.core, engine, completion),
            Kind::Single(single) => {
                if single.on_completion(&self.core, engine, completion) == Fate::Over {
                    return Fate::Over;
                }
            }
        }
        self.go_on_closing(engine)
    }

    /// Its turn to submit what it has put off: sends, arms that found no slot or no buffer.
    #[inline]
    pub(crate) fn on_turn(&mut self, engine: &mut Engine) -> Fate {
        if self.core.life != Life::Ending {
            match &mut self.kind {
                Kind::Stream(stream) => stream.on_turn(&mut self.core, engine),
                Kind::Listener(listener) => listener.on_turn(&mut self.core, engine),
                Kind::Datagrams(datagrams) => datagrams.on_turn(&mut self.core, engine),
                Kind::Single(_) => {}
            }
        }
        self.go_on_closing(engine)
    }

    /// Begins to close, or closes more harshly.
    pub(crate) fn close(&mut self, engine: &mut Engine, how: Close, waiter: Waiter) -> Fate {
        if !waiter.is_none() {
            self.kind.farewell_mut().closed.push(waiter);
        }
        let begins = self.core.is_open();
        let harsher = match &mut self.core.life {
            life @ Life::Open => {
                *life = Life::Closing(how);
                true
            }
            Life::Closing(before) => how > std::mem::replace(before, how.max(*before)),
            Life::Ending => false,
        };
        if begins && self.has_to_leave() {
            let deadline = engine.start_close_deadline(self.core.id);
            self.kind.farewell_mut().deadline = Some(deadline);
        }
        if how == Close::Abort {
            self.make_abortive();
        }
        if harsher {
            self.cancel_all(engine);
        }
        self.go_on_closing(engine)
    }

    /// A reset instead of an orderly end; other sockets know no difference and refuse.
    fn make_abortive(&self) {
        if let (Kind::Stream(_), Some(fd)) = (&self.kind, &self.core.fd) {
            let _ = fd.descriptor().set_linger_zero();
        }
    }

    fn cancel_all(&mut self, engine: &mut Engine) {
        match &mut self.kind {
            Kind::Stream(stream) => stream.stop(&mut self.core, engine),
            Kind::Listener(listener) => listener.stop(self.core.id, engine),
            Kind::Datagrams(datagrams) => {
                datagrams.stop(self.core.id, engine, self.core.is_aborting());
            }
            Kind::Single(single) => single.stop(engine),
        }
    }

    /// Whether something is queued that is to be sent before the end.
    fn has_to_leave(&self) -> bool {
        !self.core.is_aborting()
            && match &self.kind {
                Kind::Stream(stream) => !self.core.is_hurrying() && stream.has_to_send(),
                Kind::Datagrams(datagrams) => datagrams.has_to_send(),
                _ => false,
            }
    }

    /// Goes on closing, if it has begun to.
    #[inline]
    fn go_on_closing(&mut self, engine: &mut Engine) -> Fate {
        match self.core.life {
            Life::Closing(_) if self.core.in_flight == 0 => self.end(engine),
            _ => Fate::Lives,
        }
    }

    /// Closes the descriptor if nothing has to leave.
    fn end(&mut self, engine: &mut Engine) -> Fate {
        if self.has_to_leave() {
            return Fate::Lives;
        }
        if let Some(deadline) = self.kind.farewell().and_then(|farewell| farewell.deadline.take()) {
            engine.wheel.remove(deadline);
        }
        self.core.life = Life::Ending;
        let Some(fd) = self.core.fd.take() else { return self.over(engine) };
        match engine.driver.close(fd, self.core.id.as_u64()) {
            Ok(_) => {
                self.core.in_flight += 1;
                Fate::Lives
            }
            // No slot is free, or somebody borrows the descriptor: it closes with its last reference.
            Err(full) => {
                engine.driver.retire(full.0);
                self.over(engine)
            }
        }
    }

    /// The close deadline has passed: what is still queued is dropped.
    pub(crate) fn on_close_deadline(&mut self, engine: &mut Engine) -> Fate {
        if let Some(farewell) = self.kind.farewell() {
            farewell.deadline = None;
        }
        self.close(engine, Close::Abort, Waiter::None)
    }

    fn over(&mut self, engine: &mut Engine) -> Fate {
        if let Kind::Stream(stream) = &mut self.kind {
            stream.end_queues(self.core.id, engine);
        }
        if let Some(farewell) = self.kind.farewell() {
            farewell.closed.notify_all(engine, self.core.id, || Event::Closed);
        }
        Fate::Over
    }
}
