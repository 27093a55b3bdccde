//! Listeners that several shards share: who accepts, and who gets the connection.
//!
//! Each member has a live count of its connections. A count rises when a connection is assigned, before it is
//! handed over, and falls when the connection's endpoint ends, wherever it lives; so the counts never miss one.
#![forbid(unsafe_code)]

use super::endpoint::EndpointId;
use super::remote::Remote;
use crate::driver::FdRef;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How connections are spread over the shards of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Distribution {
    /// Every shard accepts on its own SO_REUSEPORT listener and keeps what the kernel gives it. No hand-over,
    /// best locality; the kernel spreads by hash, so counts differ by chance.
    ReusePort,
    /// As [`ReusePort`](Self::ReusePort), but a shard that has more connections than the least busy one hands
    /// new ones over to it. The default.
    #[default]
    Balanced,
    /// Shard 0 alone accepts and hands connections over to whoever has fewest. Keeps order of arrival at the
    /// price of one busy shard.
    OneAcceptor,
}

/// Connections a shard may have more than the least busy one before it hands over.
const SLACK: usize = 1;

/// The members of a group of listeners on one address.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) key: u64,
    distribution: Distribution,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    live: AtomicUsize,
    listening: AtomicBool,
    remote: Mutex<Option<Remote>>,
}

impl Group {
    pub(crate) fn new(shards: usize, distribution: Distribution) -> Arc<Group> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let member = || Member {
            live: AtomicUsize::new(0),
            listening: AtomicBool::new(false),
            remote: Mutex::new(None),
        };
        let members = (0..shards).map(|_| member()).collect();
        Arc::new(Group { key: NEXT.fetch_add(1, Ordering::Relaxed) as u64, distribution, members })
    }

    /// Live connections per shard.
    pub(crate) fn live(&self) -> Vec<usize> {
        self.members.iter().map(|member| member.live.load(Ordering::Relaxed)).collect()
    }

    /// Whether a member accepts itself.
    pub(crate) fn accepts(&self, index: usize) -> bool {
        self.distribution != Distribution::OneAcceptor || index == 0
    }

    /// The member that has fewest connections among those that listen.
    fn least(&self) -> Option<(usize, usize)> {
        let listening =
            self.members.iter().enumerate().filter(|(_, member)| member.listening.load(Ordering::Acquire));
        listening.map(|(index, member)| (member.live.load(Ordering::Relaxed), index)).min()
    }

    fn remote(&self, index: usize) -> Option<Remote> {
        self.members[index].remote.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One shard's place in a group.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) group: Arc<Group>,
    index: usize,
}

impl Share {
    /// Joins the group: from now on others may hand connections over to this shard.
    pub(crate) fn join(group: &Arc<Group>, index: usize, remote: Remote) -> Share {
        let member = &group.members[index];
        *member.remote.lock().unwrap_or_else(PoisonError::into_inner) = Some(remote);
        member.listening.store(true, Ordering::Release);
        Share { group: Arc::clone(group), index }
    }

    /// Nobody hands over to this shard any more.
    pub(crate) fn leave(&self) {
        self.group.members[self.index].listening.store(false, Ordering::Release);
    }

    /// Whether this shard accepts itself.
    pub(crate) fn accepts(&self) -> bool {
        self.group.accepts(self.index)
    }

    /// A place for a new connection with another shard, if it does not belong to this one. It is taken at once,
    /// so that the next connection of the same turn finds it in the counts.
    pub(crate) fn place_elsewhere(&self) -> Option<Seat> {
        let own = self.group.members[self.index].live.load(Ordering::Relaxed);
        let (fewest, target) = self.group.least()?;
        let over = match self.group.distribution {
            Distribution::ReusePort => false,
            Distribution::Balanced => own > fewest + SLACK,
            Distribution::OneAcceptor => own > fewest,
        };
        (over && target != self.index).then(|| Seat::take(&self.group, target))
    }

    /// Takes a place for a connection of this shard.
    pub(crate) fn sit(&self) -> Seat {
        Seat::take(&self.group, self.index)
    }
}

/// The place of one connection in the live counts; it is given up when the connection ends.
#[derive(Debug)]
pub(crate) struct Seat {
    group: Arc<Group>,
    index: usize,
}

impl Seat {
    /// Counts a connection for a member.
    pub(crate) fn take(group: &Arc<Group>, index: usize) -> Seat {
        group.members[index].live.fetch_add(1, Ordering::Relaxed);
        Seat { group: Arc::clone(group), index }
    }

    /// The shard that has the place, and the key of its group.
    pub(crate) fn whose(&self) -> (Option<Remote>, u64) {
        (self.group.remote(self.index), self.group.key)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.group.members[self.index].live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that a listener accepted, on its way to an endpoint.
pub(crate) enum Arrival {
    /// A submission of the completion API gets it.
    Here { listener: EndpointId, fd: FdRef, seat: Option<Seat>, tag: u64, more: bool },
    /// It is handed over to another member of the group.
    Elsewhere { listener: EndpointId, fd: FdRef, seat: Seat },
}
