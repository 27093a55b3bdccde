//! Endpoints and engine together: routing completions, and the work before and after a wait.
#![forbid(unsafe_code)]

use super::datagram::Datagrams;
use super::endpoint::{Close, Common, Endpoint, EndpointId, Endpoints, Fate, Kind};
use super::engine::{Engine, Timer};
use super::event::Event;
use super::listener::{Accepted, Listener};
use super::remote::Message;
use super::share::{Arrival, Passage, Seat};
use super::single::Single;
use super::stream::Stream;
use super::waiter::Waiter;
use crate::buf::Pool;
use crate::counters::Counters;
use crate::driver::completion::{Completion, Done};
use crate::driver::op::Op;
use crate::driver::{Descriptor, FdRef, Rare, RawCompletion};
use crate::error::{Error, Full};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::task::Waker;
use std::time::{Duration, Instant};

/// How soon to try again what found no slot.
const RETRY: Duration = Duration::from_millis(1);

/// The state of a shard that is borrowed while it works.
pub(crate) struct State {
    pub(crate) engine: Engine,
    endpoints: Endpoints,
    /// Endpoints that have ended, to be dropped when nothing is borrowed.
    graves: Vec<Endpoint>,
    /// Listeners that belong to a group, by its key.
    groups: HashMap<u64, EndpointId>,
    due: Vec<Timer>,
    /// Endpoints whose turn it is; kept so that the list need not be allocated anew.
    turns: Vec<EndpointId>,
    /// Listeners whose accepts wait until fewer than `Limits::endpoints_max` endpoints are open.
    waiting_for_room: Vec<EndpointId>,
    /// The time before the driver was asked, if there are timers. Only timers that were due then expire: what
    /// came before their deadlines has been routed, however long the process stood still in the wait.
    asked: Option<Instant>,
}

impl State {
    pub(crate) fn new(engine: Engine) -> State {
        State {
            endpoints: Endpoints::new(engine.limits.endpoints_max),
            engine,
            graves: Vec::new(),
            groups: HashMap::new(),
            due: Vec::new(),
            turns: Vec::new(),
            waiting_for_room: Vec::new(),
            asked: None,
        }
    }

    /// Bytes held for connections: received and not read, or to be sent.
    pub(crate) fn held_bytes(&self) -> usize {
        self.engine.inbound_total + self.engine.outbound_total
    }

    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Takes a descriptor under the shard's care as an endpoint.
    pub(crate) fn open(&mut self, fd: Descriptor, kind: Kind) -> io::Result<EndpointId> {
        self.open_perhaps(Some(fd), kind)
    }

    /// Makes a listener; one that only gets connections from other shards has no descriptor.
    pub(crate) fn open_listener(
        &mut self,
        fd: Option<Descriptor>,
        listener: Listener,
    ) -> io::Result<EndpointId> {
        let group = listener.share().map(|share| share.group.key);
        let id = self.open_perhaps(fd, Kind::Listener(Box::new(listener)))?;
        self.groups.extend(group.map(|key| (key, id)));
        Ok(id)
    }

    fn open_perhaps(&mut self, fd: Option<Descriptor>, kind: Kind) -> io::Result<EndpointId> {
        if self.is_full() {
            return Err(full());
        }
        let fd = fd.map(|fd| self.engine.driver.adopt(fd)).transpose()?;
        let id = self.insert(fd, kind, None);
        self.engine.dirty.push(id);
        Ok(id)
    }

    /// Makes the endpoint of an accepted connection.
    pub(crate) fn open_accepted(&mut self, fd: FdRef, seat: Option<Seat>) -> io::Result<EndpointId> {
        if self.is_full() {
            self.engine.refusals += 1;
            return Err(full());
        }
        Ok(self.insert(Some(fd), Kind::Stream(Stream::default()), seat))
    }

    pub(crate) fn is_full(&self) -> bool {
        self.endpoints.len() >= self.engine.limits.endpoints_max
    }

    /// Makes an endpoint; a single operation has no descriptor of its own.
    pub(crate) fn insert(&mut self, fd: Option<FdRef>, kind: Kind, seat: Option<Seat>) -> EndpointId {
        self.engine.opens += 1;
        let id = self.endpoints.insert(fd, kind);
        if let Some(endpoint) = self.endpoints.get_mut(id) {
            endpoint.core.seat = seat;
        }
        id
    }

    /// Works on a stream.
    #[inline]
    pub(crate) fn stream<R>(
        &mut self,
        id: EndpointId,
        work: impl FnOnce(&mut Stream, &mut Common, &mut Engine) -> R,
    ) -> Result<R, Error> {
        match self.endpoints.get_mut(id) {
            Some(Endpoint { core, kind: Kind::Stream(stream) }) => Ok(work(stream, core, &mut self.engine)),
            _ => Err(Error::Closed),
        }
    }

    /// Takes a connection of a listener; waits if there is none, or no room for its endpoint.
    pub(crate) fn accept(
        &mut self,
        id: EndpointId,
        waiter: impl FnOnce() -> Waiter,
    ) -> Result<Accepted, Error> {
        let full = self.is_full();
        let (accepted, waits) = self.listener_mut(id, |listener, core, engine| {
            // The end needs no room.
            let waits = full && !listener.is_over();
            let accepted =
                if waits { listener.wait(waiter()) } else { listener.accept(core, engine, waiter) };
            (accepted, waits)
        })?;
        if waits {
            self.waiting_for_room.push(id);
        }
        Ok(accepted)
    }

    /// A reference to an endpoint's descriptor.
    pub(crate) fn fd(&mut self, id: EndpointId) -> Option<FdRef> {
        self.endpoints.get_mut(id)?.core.fd.clone()
    }

    /// Works on a listener.
    pub(crate) fn listener_mut<R>(
        &mut self,
        id: EndpointId,
        work: impl FnOnce(&mut Listener, &mut Common, &mut Engine) -> R,
    ) -> Result<R, Error> {
        match self.endpoints.get_mut(id) {
            Some(Endpoint { core, kind: Kind::Listener(listener) }) => {
                Ok(work(listener, core, &mut self.engine))
            }
            _ => Err(Error::Closed),
        }
    }

    /// Works on a datagram socket.
    pub(crate) fn datagrams<R>(
        &mut self,
        id: EndpointId,
        work: impl FnOnce(&mut Datagrams, &mut Common, &mut Engine) -> R,
    ) -> Result<R, Error> {
        match self.endpoints.get_mut(id) {
            Some(Endpoint { core, kind: Kind::Datagrams(datagrams) }) => {
                Ok(work(datagrams, core, &mut self.engine))
            }
            _ => Err(Error::Closed),
        }
    }

    /// Starts a single operation.
    pub(crate) fn start_single(&mut self, op: impl Into<Op>) -> Result<EndpointId, Full<Op>> {
        if self.is_full() {
            self.engine.refusals += 1;
            return Err(Full(op.into()));
        }
        let id = self.insert(None, Kind::Single(Box::new(Single::new())), None);
        let submitted = self.endpoint(id, |core, kind, engine| match (core.submit(engine, op), kind) {
            (Ok(token), Kind::Single(single)) => {
                single.started(token);
                Ok(())
            }
            (Err(op), _) => Err(Full(op)),
            _ => Ok(()),
        });
        match submitted {
            Ok(Err(full)) => {
                self.bury(id);
                Err(full)
            }
            _ => Ok(id),
        }
    }

    /// The outcome of a single operation, which ends it; puts the waiter in place if there is none yet.
    pub(crate) fn single_outcome(
        &mut self,
        id: EndpointId,
        waiter: impl FnOnce() -> Waiter,
    ) -> Result<Option<Done>, Error> {
        let outcome = self.endpoint(id, |_, kind, engine| match kind {
            Kind::Single(single) => single.outcome(engine, waiter),
            _ => None,
        })?;
        if outcome.is_some() {
            self.bury(id);
        }
        Ok(outcome)
    }

    /// Works on an endpoint of any kind.
    pub(crate) fn endpoint<R>(
        &mut self,
        id: EndpointId,
        work: impl FnOnce(&mut Common, &mut Kind, &mut Engine) -> R,
    ) -> Result<R, Error> {
        let endpoint = self.endpoints.get_mut(id).ok_or(Error::Closed)?;
        Ok(work(&mut endpoint.core, &mut endpoint.kind, &mut self.engine))
    }

    #[inline]
    fn touch(&mut self, id: EndpointId, work: impl FnOnce(&mut Endpoint, &mut Engine) -> Fate) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(id) else { return false };
        if work(endpoint, &mut self.engine) == Fate::Over {
            self.bury(id);
        }
        true
    }

    fn bury(&mut self, id: EndpointId) {
        let Some(mut endpoint) = self.endpoints.remove(id) else { return };
        self.engine.closes += 1;
        if let Kind::Stream(stream) = &mut endpoint.kind {
            stream.end_queues(id, &mut self.engine);
        }
        // A descriptor that was not closed by an operation leaves the poller before it closes.
        if let Some(fd) = endpoint.core.fd.take() {
            self.engine.driver.retire(fd);
        }
        self.graves.push(endpoint);
        for listener in std::mem::take(&mut self.waiting_for_room) {
            let _ = self.listener_mut(listener, |listener, _, engine| listener.wake_waiters(engine));
        }
    }

    /// Closes an endpoint; `false` if it has ended already.
    pub(crate) fn close(&mut self, id: EndpointId, how: Close, waiter: Waiter) -> bool {
        self.touch(id, |endpoint, engine| endpoint.close(engine, how, waiter))
    }

    /// Nobody wants the outcome of a single operation.
    pub(crate) fn abandon_single(&mut self, id: EndpointId) {
        self.touch(id, |endpoint, engine| match &mut endpoint.kind {
            Kind::Single(single) => single.abandon(engine),
            _ => Fate::Lives,
        });
    }

    /// Takes an endpoint out of the shard's care if nothing of it is in flight: its descriptor, in blocking mode.
    pub(crate) fn give_away(&mut self, id: EndpointId) -> Option<Result<Descriptor, Error>> {
        let Some(endpoint) = self.endpoints.get_mut(id) else { return Some(Err(Error::Closed)) };
        if endpoint.core.in_flight > 0 {
            return None;
        }
        let fd = endpoint.core.fd.take();
        self.bury(id);
        let released = fd.map(|fd| self.engine.driver.release(fd).map_err(|_| Error::Closed));
        Some(released.unwrap_or(Err(Error::Closed)))
    }

    /// Hands one completion to its operation's endpoint.
    #[inline]
    pub(crate) fn route(&mut self, raw: RawCompletion) {
        let Some(completion) = self.engine.driver.settle(raw) else { return };
        let id = EndpointId::from_owner(completion.owner);
        self.engine.company.note(id.index());
        match self.endpoints.get_mut(id) {
            Some(endpoint) => {
                if endpoint.on_completion(&mut self.engine, completion) == Fate::Over {
                    self.bury(id);
                }
                self.settle_arrivals();
            }
            None => {
                let Completion { done, .. } = completion;
                self.engine.discard(done);
            }
        }
    }

    /// Before a wait: sends what is queued, then arms what starves. Says how long the wait may be at most; not at
    /// all if there are completions and whoever waits hands them out.
    pub(crate) fn prepare(&mut self, wait: Option<Duration>, hands_out: bool) -> Option<Duration> {
        let mut turns = std::mem::take(&mut self.turns);
        turns.append(&mut self.engine.dirty);
        turns.append(&mut self.engine.refused);
        for id in turns.drain(..) {
            self.touch(id, Endpoint::on_turn);
        }
        self.turns = turns;
        let hurry = self.feed_starved();
        self.settle_arrivals();
        let engine = &mut self.engine;
        let deadline = engine.wheel.next_deadline();
        self.asked = deadline.map(|_| engine.now());
        let timer = deadline.zip(self.asked).map(|(deadline, now)| deadline.saturating_duration_since(now));
        if timer == Some(Duration::ZERO) {
            engine.driver.insist();
        }
        let pending = !engine.wakers.is_empty()
            || (hands_out && !engine.events.is_empty())
            || !self.graves.is_empty()
            || !engine.dirty.is_empty();
        if hurry || pending {
            return Some(Duration::ZERO);
        }
        let retry = (!engine.refused.is_empty()).then_some(RETRY);
        [wait, retry, timer].into_iter().flatten().min()
    }

    /// Gives endpoints that wait for buffers a turn; true if some still wait though buffers are free.
    fn feed_starved(&mut self) -> bool {
        let streams = !self.engine.starved.is_empty() && {
            let pool = self.engine.driver.pool().clone();
            self.feed(&pool, |engine| &mut engine.starved)
        };
        let datagrams = !self.engine.starved_of_datagrams.is_empty() && {
            let pool = self.engine.driver.datagram_pool().cloned();
            pool.is_some_and(|pool| self.feed(&pool, |engine| &mut engine.starved_of_datagrams))
        };
        streams || datagrams
    }

    /// Feeds those that wait for one pool, as many as its buffers may serve.
    fn feed(&mut self, pool: &Pool, waiting: fn(&mut Engine) -> &mut VecDeque<EndpointId>) -> bool {
        pool.collect();
        let count = pool.servings().min(waiting(&mut self.engine).len());
        for _ in 0..count {
            let Some(id) = waiting(&mut self.engine).pop_front() else { break };
            self.touch(id, Endpoint::on_turn);
        }
        let still = !waiting(&mut self.engine).is_empty();
        pool.set_hungry(still);
        // A buffer may have come home between the look and the flag.
        pool.collect();
        still && pool.available() > 0
    }

    /// After a wait: expires timers and settles what listeners accepted.
    pub(crate) fn after_wait(&mut self) {
        self.expire();
        self.settle_arrivals();
    }

    fn expire(&mut self) {
        if self.engine.is_rare(Rare::LateTimers) {
            return;
        }
        let Some(now) = self.asked.take() else { return };
        let mut due = std::mem::take(&mut self.due);
        let budget = self.engine.limits.completions_per_turn_max;
        self.engine.wheel.expire(now, budget, &mut due);
        for timer in due.drain(..) {
            self.on_timer(timer);
        }
        self.due = due;
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Sleep(waker) => self.engine.wakers.extend(waker),
            Timer::Tag(tag) => self.engine.emit(tag, EndpointId::from_owner(0), false, Event::Elapsed),
            Timer::CloseDeadline(id) => drop(self.touch(id, Endpoint::on_close_deadline)),
            Timer::AcceptAgain(id) => drop(self.touch(id, Endpoint::on_turn)),
        }
    }

    /// Gives accepted connections to whom they are meant for.
    pub(crate) fn settle_arrivals(&mut self) {
        if self.engine.arrivals.is_empty() {
            return;
        }
        let mut arrivals = std::mem::take(&mut self.engine.arrivals);
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Here { listener, fd, seat, tag, more } => {
                    let event = match self.open_accepted(fd, seat) {
                        Ok(id) => Event::Accepted(id),
                        Err(error) => Event::Failed(error.into()),
                    };
                    self.engine.emit(tag, listener, more, event);
                }
                Arrival::Elsewhere { listener, fd, seat, passage } => {
                    self.hand_over(listener, fd, seat, passage);
                }
                Arrival::NoMore { listener } => {
                    let _ = self.listener_mut(listener, |listener, core, engine| {
                        listener.tell_no_more(core.id, engine);
                    });
                }
            }
        }
        if self.engine.arrivals.is_empty() {
            self.engine.arrivals = arrivals;
        }
    }

    /// Sends a connection to another member of the listener's group; keeps it if that one cannot take it.
    fn hand_over(&mut self, id: EndpointId, fd: FdRef, seat: Seat, passage: Passage) {
        let (Some(remote), group) = seat.whose() else { return self.keep(id, fd) };
        let fd = match self.engine.driver.release(fd) {
            Ok(fd) => fd,
            Err(_) => return self.engine.wakers.extend(passage.end()),
        };
        let message = Message::Connection { group, fd, seat, passage };
        match remote.send(message) {
            Ok(()) => self.engine.handed_over += 1,
            Err(refused) => {
                let Message::Connection { fd, seat, passage, .. } = refused.into_inner() else { return };
                drop(seat);
                self.engine.wakers.extend(passage.end());
                if let Ok(fd) = self.engine.driver.adopt(fd) {
                    self.keep(id, fd);
                }
            }
        }
    }

    fn keep(&mut self, id: EndpointId, fd: FdRef) {
        let _ = self.listener_mut(id, |listener, _, engine| {
            let seat = listener.share().map(|share| share.sit());
            listener.receive(id, engine, (fd, seat));
        });
    }

    /// A connection that another member of the group accepted.
    pub(crate) fn receive_connection(&mut self, group: u64, fd: Descriptor, seat: Seat, passage: Passage) {
        // Whoever waits for the last one looks when it is in the queue.
        self.engine.wakers.extend(passage.end());
        let Some(id) = self.groups.get(&group).copied() else { return };
        let Ok(fd) = self.engine.driver.adopt(fd) else { return };
        let _ = self.listener_mut(id, |listener, core, engine| {
            if core.is_open() {
                listener.receive(id, engine, (fd, Some(seat)));
            }
        });
    }

    /// The shard ends: nobody polls for completions any more, and every endpoint begins to close.
    pub(crate) fn begin_end(&mut self, how: Close) {
        self.engine.ending = true;
        self.engine.events.clear();
        self.close_all(how);
    }

    /// Begins to close every endpoint.
    pub(crate) fn close_all(&mut self, how: Close) {
        for id in self.endpoints.ids() {
            self.close(id, how, Waiter::None);
        }
    }

    /// The end: drains the driver and ends every endpoint that is left. What users own of them is handed out.
    pub(crate) fn finish(&mut self) -> Option<Leftovers> {
        self.engine.driver.drain();
        for id in self.endpoints.ids() {
            self.bury(id);
        }
        self.take_leftovers()
    }

    /// After [`finish`](Self::finish), when what it handed out is gone: descriptors and buffers that came home.
    pub(crate) fn give_up_rest(&mut self) {
        self.engine.driver.give_up_retired();
        self.engine.driver.collect_buffers();
    }

    /// The counters that are kept here and below.
    pub(crate) fn count(&self) -> Counters {
        let engine = &self.engine;
        let mut counters = Counters::default();
        engine.driver.count(&mut counters);
        counters.starved = engine.starvations;
        counters.accepts = engine.accepts;
        counters.accept_pauses = engine.accept_pauses;
        counters.handed_over = engine.handed_over;
        counters.refusals = engine.refusals;
        counters.bytes_in += engine.bytes_in;
        counters.bytes_out += engine.bytes_out;
        counters.zero_copy_copied = engine.zero_copy_copied;
        counters.truncated = engine.truncated;
        counters.opens = engine.opens;
        counters.closes = engine.closes;
        counters.messages_dropped = engine.messages_dropped;
        counters
    }

    /// What must be woken and dropped when nothing is borrowed; often there is nothing.
    pub(crate) fn take_leftovers(&mut self) -> Option<Leftovers> {
        let engine = &mut self.engine;
        engine.driver.move_warnings(&mut engine.warnings);
        let nothing = engine.wakers.is_empty()
            && engine.warnings.is_empty()
            && engine.remains.is_empty()
            && self.graves.is_empty();
        (!nothing).then(|| Leftovers {
            wakers: std::mem::take(&mut engine.wakers),
            warnings: std::mem::take(&mut engine.warnings),
            remains: std::mem::take(&mut engine.remains),
            graves: std::mem::take(&mut self.graves),
        })
    }

    /// Gives the emptied lists back, so that they need not be allocated anew.
    pub(crate) fn reuse(&mut self, wakers: Vec<Waker>, remains: Vec<crate::buf::Payload>) {
        if self.engine.wakers.is_empty() {
            self.engine.wakers = wakers;
        }
        if self.engine.remains.is_empty() {
            self.engine.remains = remains;
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.engine.now()
    }
}

/// Foreign code that waits until nothing is borrowed.
pub(crate) struct Leftovers {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) warnings: Vec<crate::config::Warning>,
    pub(crate) remains: Vec<crate::buf::Payload>,
    pub(crate) graves: Vec<Endpoint>,
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "the shard has Limits::endpoints_max endpoints open")
}
