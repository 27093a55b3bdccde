//! The connections of a component on one shard: finding, counting, grouping, ending.
#![forbid(unsafe_code)]

use super::close::CloseReason;
use super::fleet::Fleet;
use super::id::ConnId;
use super::metrics::Tally;
use super::policy::Policy;
use super::session::Session;
use crate::api::broadcast::Broadcast;
use crate::buf::Payload;
use crate::codec::{CodecError, Framer};
use crate::shard::{Core, Departure, EndpointId};
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;

/// How the connections of a component come to their end, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(super) enum Ending {
    /// They do not.
    Not,
    /// They are told, and may finish.
    Finishing,
    /// At once.
    Now,
}

/// The connections of a component on one shard. In the order of their ids, so that a simulation can be replayed.
pub(super) struct Registry {
    pub(super) core: Rc<Core>,
    pub(super) tally: Arc<Tally>,
    policy: Rc<Policy>,
    shard: usize,
    serial: Arc<AtomicU64>,
    sessions: RefCell<BTreeMap<ConnId, Rc<Session>>>,
    /// Everybody, once somebody has spoken to everybody.
    everybody: RefCell<Option<Room>>,
    rooms: RefCell<BTreeMap<String, Room>>,
    /// Encodes what goes to many.
    framer: RefCell<Option<Framer>>,
    /// The component that it belongs to.
    pub(super) fleet: Fleet,
    /// Connections of the component on all shards.
    live: Arc<AtomicUsize>,
    /// Who waits for an end of a connection.
    waiting: RefCell<Vec<Waker>>,
    /// Who waits for the first connection.
    awaits_first: RefCell<Option<Waker>>,
    over_memory: Cell<bool>,
    ending: Cell<Ending>,
}

/// What a registry shares with other threads.
pub(super) struct Shared {
    pub(super) tally: Arc<Tally>,
    /// The number of the next connection.
    pub(super) serial: Arc<AtomicU64>,
    /// Connections of the component on all shards.
    pub(super) live: Arc<AtomicUsize>,
    /// The component that it belongs to.
    pub(super) fleet: Fleet,
}

/// Connections that get the same messages.
struct Room {
    /// Those that share the bytes.
    sharing: Broadcast,
    names: HashMap<EndpointId, Rc<Session>>,
    /// Those that need bytes of their own, because they encrypt.
    others: BTreeMap<ConnId, Rc<Session>>,
}

impl Registry {
    pub(super) fn new(
        core: Rc<Core>,
        policy: Rc<Policy>,
        shard: usize,
        shared: Shared,
        framer: Option<Framer>,
    ) -> Registry {
        let Shared { tally, serial, live, fleet } = shared;
        Registry {
            core,
            tally,
            policy,
            shard,
            serial,
            sessions: RefCell::default(),
            everybody: RefCell::default(),
            rooms: RefCell::default(),
            framer: RefCell::new(framer),
            fleet,
            live,
            waiting: RefCell::default(),
            awaits_first: RefCell::default(),
            over_memory: Cell::new(false),
            ending: Cell::new(Ending::Not),
        }
    }

    pub(super) fn next_id(&self) -> ConnId {
        ConnId::new(self.shard, self.serial.fetch_add(1, Ordering::Relaxed))
    }

    /// Connections of the component, on all shards.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.borrow().is_empty()
    }

    /// A connection was admitted.
    pub(super) fn open(&self, session: &Rc<Session>) {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.tally.live.add(1);
        self.tally.handshaking.add(1);
        self.tally.opened.add(1);
        self.sessions.borrow_mut().insert(session.id(), Rc::clone(session));
        self.lead_to_end(session);
        if let Some(waker) = self.awaits_first.take() {
            waker.wake();
        }
    }

    /// Ends all connections in this way, those too that are still to be opened.
    pub(super) fn come_to_an_end(&self, ending: Ending) {
        self.ending.set(ending);
        self.all().iter().for_each(|session| self.lead_to_end(session));
    }

    fn lead_to_end(&self, session: &Session) {
        match self.ending.get() {
            Ending::Not => {}
            Ending::Finishing => session.start_draining(),
            Ending::Now => session.end(CloseReason::Drained),
        }
    }

    /// Wakes when the next connection is opened.
    pub(super) fn wake_at_next_opening(&self, waker: &Waker) {
        self.awaits_first.replace(Some(waker.clone()));
    }

    /// Whether the process holds too much for connections to take in more of them.
    pub(super) fn is_over_memory(&self) -> bool {
        self.over_memory.get()
    }

    pub(super) fn set_over_memory(&self, over: bool) {
        self.over_memory.set(over);
    }

    /// Its handshake is done.
    pub(super) fn greet(&self, session: &Rc<Session>) {
        self.tally.handshaking.subtract(1);
        if let Some(everybody) = self.everybody.borrow_mut().as_mut() {
            everybody.add(session);
        }
    }

    /// It has ended.
    pub(super) fn close(&self, session: &Session, reason: &CloseReason) {
        if session.stage() != super::close::Stage::Open {
            self.tally.handshaking.subtract(1);
        }
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.tally.live.subtract(1);
        self.tally.closed[reason.index()].add(1);
        if let Some(everybody) = self.everybody.borrow_mut().as_mut() {
            everybody.remove(session);
        }
        self.rooms.borrow_mut().retain(|_, room| {
            room.remove(session);
            !room.is_empty()
        });
        self.sessions.borrow_mut().remove(&session.id());
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Wakes when the next connection ends.
    pub(super) fn wake_at_next_end(&self, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    pub(super) fn find(&self, id: ConnId) -> Option<Rc<Session>> {
        self.sessions.borrow().get(&id).cloned()
    }

    /// All connections, as they are now.
    pub(super) fn all(&self) -> Vec<Rc<Session>> {
        self.sessions.borrow().values().cloned().collect()
    }

    pub(super) fn join(&self, group: &str, session: &Rc<Session>) {
        let mut rooms = self.rooms.borrow_mut();
        match rooms.get_mut(group) {
            Some(room) => room.add(session),
            None => {
                let mut room = Room::new(&self.core, &self.policy);
                room.add(session);
                rooms.insert(group.to_owned(), room);
            }
        }
    }

    pub(super) fn leave(&self, group: &str, session: &Session) {
        let mut rooms = self.rooms.borrow_mut();
        let Some(room) = rooms.get_mut(group) else { return };
        room.remove(session);
        if room.is_empty() {
            rooms.remove(group);
        }
    }

    /// From now on a connection gets bytes of its own, because it goes over to TLS: nothing may be put into its queue past it.
    #[cfg(feature = "tls")]
    pub(super) fn stop_sharing(&self, session: &Rc<Session>) {
        let (mut everybody, mut rooms) = (self.everybody.borrow_mut(), self.rooms.borrow_mut());
        everybody.iter_mut().chain(rooms.values_mut()).for_each(|room| room.stop_sharing(session));
    }

    /// Sends messages to everybody, or to the members of a group. How many connections got something.
    ///
    /// # Errors
    ///
    /// If the codec cannot send one of them; none is sent then.
    pub(super) fn broadcast(&self, group: Option<&str>, messages: &[Bytes]) -> Result<usize, CodecError> {
        let encoded = self.encode_all(messages)?;
        Ok(match group {
            Some(name) => match self.rooms.borrow_mut().get_mut(name) {
                Some(room) => room.send(&self.tally, messages, encoded),
                None => 0,
            },
            None => {
                let mut everybody = self.everybody.borrow_mut();
                let everybody = everybody.get_or_insert_with(|| {
                    let mut room = Room::new(&self.core, &self.policy);
                    self.sessions.borrow().values().for_each(|session| room.add(session));
                    room
                });
                everybody.send(&self.tally, messages, encoded)
            }
        })
    }

    fn encode_all(&self, messages: &[Bytes]) -> Result<Vec<Payload>, CodecError> {
        let mut framer = self.framer.borrow_mut();
        let Some(framer) = framer.as_mut() else {
            return Ok(messages.iter().map(|message| message.clone().into()).collect());
        };
        let mut pieces = Vec::new();
        let joined = messages.iter().map(|message| {
            framer.encode(message.clone(), &mut pieces)?;
            Ok(join(&mut pieces))
        });
        joined.collect()
    }
}

/// One message is one payload in a broadcast, so that it is dropped as a whole.
fn join(pieces: &mut Vec<Payload>) -> Payload {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Payload::len).sum());
    pieces.drain(..).for_each(|piece| joined.extend_from_slice(&piece));
    joined.freeze().into()
}

impl Room {
    fn new(core: &Rc<Core>, policy: &Policy) -> Room {
        let sharing = Broadcast::of(Rc::clone(core)).slow(policy.slow);
        let sharing = sharing.backlog_bytes_max(policy.outbound_bytes_max);
        Room { sharing, names: HashMap::new(), others: BTreeMap::new() }
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.others.is_empty()
    }

    fn add(&mut self, session: &Rc<Session>) {
        if !session.shares_bytes() {
            self.others.insert(session.id(), Rc::clone(session));
        } else if self.sharing.join(session.endpoint()).is_ok() {
            self.names.insert(session.endpoint(), Rc::clone(session));
        }
    }

    #[cfg(feature = "tls")]
    fn stop_sharing(&mut self, session: &Rc<Session>) {
        if self.names.remove(&session.endpoint()).is_some() {
            self.sharing.leave(session.endpoint());
            self.others.insert(session.id(), Rc::clone(session));
        }
    }

    fn remove(&mut self, session: &Session) {
        if self.names.remove(&session.endpoint()).is_some() {
            self.sharing.leave(session.endpoint());
        }
        self.others.remove(&session.id());
    }

    fn send(&mut self, tally: &Tally, messages: &[Bytes], encoded: Vec<Payload>) -> usize {
        let bytes: u64 = messages.iter().map(|message| message.len() as u64).sum();
        let delivered = self.sharing.send_all(encoded);
        tally.dropped.add(delivered.dropped);
        for departed in delivered.departed {
            // Those that failed notice it themselves.
            if let (Some(session), Departure::TooSlow) = (self.names.remove(&departed.id), departed.why) {
                session.end(CloseReason::SlowReader);
            }
        }
        tally.messages_out.add(delivered.queued as u64 * messages.len() as u64);
        tally.bytes_out.add(delivered.queued as u64 * bytes);
        let pushed = |session: &&Rc<Session>| {
            let taken = messages.iter().map(|message| session.push(message.clone()).is_ok());
            taken.fold(false, |any, taken| any | taken)
        };
        delivered.queued + self.others.values().filter(pushed).count()
    }
}
