//! [`Fleet`]: the handle of a running component, whichever side its connections were made from.
#![forbid(unsafe_code)]

use super::handler::{Handler, Trouble};
use super::id::ConnId;
use super::member::{Founding, Local, MakeFramer, Member, local};
use super::metrics::{Snapshot, Tally};
use super::phase::{Phase, Phases, Place};
use super::policy::Policy;
use super::registry::{Registry, Shared as Common};
use super::secure::Security;
use super::session::{Refused, Session, WhyRefused};
use super::shards::Shards;
use crate::api::task::spawn;
use crate::shard::{Core, Remote};
use bytes::Bytes;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The connections of a running component on all its shards, as a handle for any thread: what a
/// [`Server`](super::Server), an [`Agent`](super::Agent) and a [`Client`](super::Client) have in common, each of which
/// dereferences to it. Dropping it ends nothing: the component lives as long as its shards, until it is
/// [shut down](Self::shutdown).
#[derive(Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
}

struct Shared {
    key: u64,
    remotes: Vec<Remote>,
    tallies: Vec<Arc<Tally>>,
    /// The number of the next connection, by shard: ids are given on any thread.
    serials: Vec<Arc<AtomicU64>>,
    phases: Arc<Phases>,
}

/// What the parts of a component have in common.
pub(super) struct Plan<H> {
    pub(super) handler: Arc<H>,
    pub(super) policy: Policy,
    pub(super) make_framer: Option<MakeFramer>,
    /// TLS of connections that are accepted.
    pub(super) security: Option<Security>,
}

impl<H> Clone for Plan<H> {
    fn clone(&self) -> Plan<H> {
        let Plan { handler, policy, make_framer, security } = self;
        Plan {
            handler: Arc::clone(handler),
            policy: policy.clone(),
            make_framer: make_framer.clone(),
            security: security.clone(),
        }
    }
}

/// What one shard needs to begin.
struct Part<H, F> {
    key: (u64, usize),
    plan: Plan<H>,
    common: Common,
    prepare: F,
    /// Given up with the part, if its shard has no member in the end.
    place: Place,
}

impl<H: Handler, F, W> Part<H, F>
where
    F: FnOnce() -> io::Result<W>,
    W: FnOnce(&Rc<Member<H>>),
{
    /// On its shard: founds the member and starts its tasks.
    fn begin(self) -> io::Result<()> {
        let Part { key, plan: Plan { handler, policy, make_framer, security }, common, prepare, place } =
            self;
        let first = prepare()?;
        let core = Core::current().expect("a message of a shard runs on it");
        let policy = Rc::new(policy);
        let framer = make_framer.as_ref().map(|make| make());
        let registry = Registry::new(core, Rc::clone(&policy), key.1, common, framer);
        let member = Member::found(Founding { key, place, handler, registry, policy, make_framer, security });
        first(&member);
        spawn(super::memory::watch(Rc::clone(&member))).detach();
        spawn(super::drain::drain(member)).detach();
        Ok(())
    }
}

impl Fleet {
    /// Founds a member on each shard. `prepare` gives for the member of this index what is to be done on its shard before it
    /// is there, which gives what it does first.
    ///
    /// A plain thread waits until all have begun; a shard's thread waits for nobody, because another one may wait for it.
    pub(super) fn found<H: Handler, F, W>(
        shards: &Shards,
        plan: Plan<H>,
        mut prepare: impl FnMut(usize) -> F,
    ) -> io::Result<Fleet>
    where
        F: FnOnce() -> io::Result<W> + Send + 'static,
        W: FnOnce(&Rc<Member<H>>),
    {
        let fleet = Fleet::new(shards, &plan.policy)?;
        let shared = &fleet.shared;
        let live = Arc::new(AtomicUsize::new(0));
        let parts = (0..shared.remotes.len()).map(|index| Part {
            key: (shared.key, index),
            place: Place::new(&shared.phases),
            plan: plan.clone(),
            common: Common {
                tally: Arc::clone(&shared.tallies[index]),
                serial: Arc::clone(&shared.serials[index]),
                live: Arc::clone(&live),
                fleet: fleet.clone(),
            },
            prepare: prepare(index),
        });
        let parts = parts.collect();
        fleet.begin(parts).inspect_err(|_| fleet.shutdown(Duration::ZERO))?;
        Ok(fleet)
    }

    fn new(shards: &Shards, policy: &Policy) -> io::Result<Fleet> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        policy.check().map_err(invalid)?;
        let remotes = shards.remotes();
        if remotes.is_empty() {
            return Err(invalid("a component needs a shard".to_owned()));
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let shared = Shared {
            key: NEXT.fetch_add(1, Ordering::Relaxed),
            remotes: remotes.to_vec(),
            tallies: remotes.iter().map(|_| Arc::default()).collect(),
            serials: remotes.iter().map(|_| Arc::new(AtomicU64::new(1))).collect(),
            phases: Arc::new(Phases::new(remotes.len())),
        };
        Ok(Fleet { shared: Arc::new(shared) })
    }

    fn begin<H: Handler, F, W>(&self, parts: Vec<Part<H, F>>) -> io::Result<()>
    where
        F: FnOnce() -> io::Result<W> + Send + 'static,
        W: FnOnce(&Rc<Member<H>>),
    {
        let (begun, outcomes) = mpsc::channel();
        let outcomes = Core::current().is_none().then_some(outcomes);
        let mut first = Ok(());
        for part in parts {
            let remote = &self.shared.remotes[part.key.1];
            if first.is_err() {
                // What is left gives up its place.
            } else if Core::with_current(|core| core.is_some_and(|core| core.link.id == remote.id())) {
                first = part.begin();
            } else {
                let (begun, handler) = (begun.clone(), Arc::clone(&part.plan.handler));
                let sent = remote.run(move || {
                    if let Err(mpsc::SendError(Err(error))) = begun.send(part.begin()) {
                        handler.on_error(&Trouble::Listen(&error));
                    }
                });
                first = sent.map_err(|_| Busy { shards: 1 }.into());
            }
        }
        drop(begun);
        // Whoever dropped its sender without a word has ended.
        outcomes.into_iter().flatten().fold(first, |first, outcome| first.and(outcome))
    }

    pub(super) fn shards(&self) -> usize {
        self.shared.remotes.len()
    }

    /// An id for a connection that is to be made on this shard.
    pub(super) fn next_id(&self, shard: usize) -> ConnId {
        ConnId::new(shard, self.shared.serials[shard].fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn has_ended(&self, shard: usize) -> bool {
        self.shared.remotes[shard].link.has_ended()
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.shared.phases.get()
    }

    /// Connections that are there now, over all shards.
    pub fn connections(&self) -> usize {
        self.shared.tallies.iter().map(|tally| tally.live.get() as usize).sum()
    }

    /// What each shard has counted.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.shared.tallies.iter().map(|tally| tally.snapshot()).collect()
    }

    /// What all shards have counted.
    pub fn totals(&self) -> Snapshot {
        let mut totals = Snapshot::default();
        self.snapshots().iter().for_each(|snapshot| totals.add(snapshot));
        totals
    }

    /// Does `work` with the member on one shard: at once if that shard runs on this thread, else soon.
    pub(super) fn on_shard(
        &self,
        index: usize,
        work: impl FnOnce(&Local) + Send + 'static,
    ) -> Result<(), Busy> {
        let (key, remote) = (self.shared.key, &self.shared.remotes[index]);
        let is_here = Core::with_current(|core| core.is_some_and(|core| core.link.id == remote.id()));
        if is_here {
            if let Some(local) = local(key, index) {
                work(&local);
            }
            return Ok(());
        }
        let sent = remote.run(move || {
            if let Some(local) = local(key, index) {
                work(&local);
            }
        });
        sent.map_err(|_| Busy { shards: 1 })
    }

    pub(super) fn on_all(&self, work: impl Fn(&Local) + Clone + Send + 'static) -> Result<(), Busy> {
        let refused = |index: &usize| self.on_shard(*index, work.clone()).is_err();
        match (0..self.shared.remotes.len()).filter(refused).count() {
            0 => Ok(()),
            shards => Err(Busy { shards }),
        }
    }

    /// Sends a message to one connection, as [`Session::push`]. What becomes of it there is counted, not told:
    /// [`undelivered`](Snapshot::undelivered) if the connection is not open, [`dropped`](Snapshot::dropped) if it is too slow.
    ///
    /// # Errors
    ///
    /// If its shard took no message.
    pub fn send(&self, id: ConnId, message: impl Into<Bytes>) -> Result<(), Busy> {
        let message = message.into();
        self.on_shard(id.shard().min(self.shards() - 1), move |local| {
            let pushed = local.registry.find(id).map(|session| session.push(message));
            if matches!(pushed, None | Some(Err(Refused { why: WhyRefused::Closed, .. }))) {
                local.registry.tally.undelivered.add(1);
            }
        })
    }

    /// Does something with a connection on its shard, at once if that is this thread's, else soon; nothing if it has gone.
    ///
    /// # Errors
    ///
    /// If its shard took no message.
    pub fn on_connection(
        &self,
        id: ConnId,
        work: impl FnOnce(&Rc<Session>) + Send + 'static,
    ) -> Result<(), Busy> {
        if id.shard() >= self.shared.remotes.len() {
            return Ok(());
        }
        self.on_shard(id.shard(), move |local| {
            if let Some(session) = local.registry.find(id) {
                work(&session);
            }
        })
    }

    /// Does something with each connection that is there, on its shard.
    ///
    /// # Errors
    ///
    /// If a shard took no message; the others did.
    pub fn for_each(&self, work: impl Fn(&Rc<Session>) + Clone + Send + 'static) -> Result<(), Busy> {
        self.on_all(move |local| local.registry.all().iter().for_each(&work))
    }

    /// Gathers something of each connection, over all shards, in the order of their ids.
    ///
    /// # Errors
    ///
    /// If a shard took no message.
    pub async fn gather<T: Send + 'static>(
        &self,
        read: impl Fn(&Session) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, Busy> {
        let mut all = Vec::new();
        for (index, remote) in self.shared.remotes.iter().enumerate() {
            let (key, read) = (self.shared.key, read.clone());
            let answer = remote.spawn_on(move || async move {
                let sessions = local(key, index).map(|local| local.registry.all()).unwrap_or_default();
                sessions.iter().map(|session| read(session)).collect::<Vec<T>>()
            });
            let answer = answer.map_err(|_| Busy { shards: 1 })?;
            all.extend(answer.await.map_err(|_| Busy { shards: 1 })?);
        }
        Ok(all)
    }

    /// Sends a message to every connection. The bytes are shared, not copied for each (except over TLS, where each has its
    /// own). Those that are too slow are treated as [`Policy::slow`] says. Broadcasts of one thread keep their order.
    ///
    /// # Errors
    ///
    /// If a shard took no message; the others did.
    pub fn broadcast(&self, message: impl Into<Bytes>) -> Result<(), Busy> {
        self.broadcast_all(None, vec![message.into()])
    }

    /// Sends a message to the members of a group; see [`Session::join`].
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast).
    pub fn broadcast_to(&self, group: &str, message: impl Into<Bytes>) -> Result<(), Busy> {
        self.broadcast_all(Some(group), vec![message.into()])
    }

    /// Sends several messages to everybody, or to a group, for little more than one costs.
    ///
    /// # Errors
    ///
    /// As [`broadcast`](Self::broadcast).
    pub fn broadcast_all(&self, group: Option<&str>, messages: Vec<Bytes>) -> Result<(), Busy> {
        let group = group.map(str::to_owned);
        let messages: Arc<[Bytes]> = messages.into();
        self.on_all(move |local| {
            if local.registry.broadcast(group.as_deref(), &messages).is_err() {
                // The codec refuses it for everybody.
                local.registry.tally.dropped.add(messages.len() as u64);
            }
        })
    }

    /// Ends one connection; what is queued on it is sent first. One that is being made, now or again, is given up.
    ///
    /// # Errors
    ///
    /// If its shard took no message.
    pub fn disconnect(&self, id: ConnId) -> Result<(), Busy> {
        if id.shard() >= self.shared.remotes.len() {
            return Ok(());
        }
        self.on_shard(id.shard(), move |local| {
            local.dials.call_off(id);
            if let Some(session) = local.registry.find(id) {
                session.disconnect();
            }
        })
    }

    /// Ends all connections, and gives up those that are being made; the component goes on.
    ///
    /// # Errors
    ///
    /// If a shard took no message; the others did.
    pub fn disconnect_all(&self) -> Result<(), Busy> {
        self.on_all(|local| {
            local.dials.call_off_all();
            local.registry.all().iter().for_each(|session| session.disconnect());
        })
    }

    /// Ends those that have been idle for so long.
    ///
    /// # Errors
    ///
    /// If a shard took no message; the others did.
    pub fn disconnect_idle(&self, idle: Duration) -> Result<(), Busy> {
        self.for_each(move |session| {
            if session.idle() >= idle {
                session.disconnect()
            }
        })
    }

    /// Ends those that have been open for so long.
    ///
    /// # Errors
    ///
    /// If a shard took no message; the others did.
    pub fn disconnect_older(&self, age: Duration) -> Result<(), Busy> {
        self.for_each(move |session| {
            if session.age() >= age {
                session.disconnect()
            }
        })
    }

    /// Shuts down: accepts no more and makes none, lets connections finish for `patience`, then ends the rest, each with its own `on_close`.
    /// Returns at once. A second call may only bring the end nearer; `Duration::ZERO` ends at once.
    ///
    /// Each connection is told by [`Handler::on_drain`] and [`Session::is_draining`].
    pub fn shutdown(&self, patience: Duration) {
        self.shared.phases.drain();
        let deadline = crate::api::time::far(crate::api::time::now(), patience);
        for index in 0..self.shared.remotes.len() {
            let mut order = self.on_shard(index, move |local| local.drain(deadline));
            // An order to end is not given up because a mailbox is full for a moment; a shard that has ended needs none.
            while order.is_err() && !self.shared.remotes[index].link.has_ended() {
                std::thread::sleep(Duration::from_millis(1));
                order = self.on_shard(index, move |local| local.drain(deadline));
            }
        }
    }

    /// Completes when the last connection has ended after a [`shutdown`](Self::shutdown), or with the last shard. Cancel-safe.
    pub async fn ended(&self) {
        poll_fn(|context| self.shared.phases.poll_ended(context)).await;
    }

    /// Blocks this thread until then; not for the thread of one of its shards, which would wait for itself.
    pub fn wait(&self) {
        self.shared.phases.wait();
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("phase", &self.phase())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// A message for a shard that has no room for it, or has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy {
    /// How many shards did not take it.
    pub shards: usize,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} shard(s) took no message: a mailbox is full (Limits::mailbox_max), or the shard has ended",
            self.shards
        )
    }
}

impl std::error::Error for Busy {}

impl From<Busy> for io::Error {
    fn from(busy: Busy) -> io::Error {
        io::Error::new(io::ErrorKind::WouldBlock, busy)
    }
}
