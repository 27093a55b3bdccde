//! Fan-out: one payload for many connections of a shard.
//!
//! The members of a broadcast are a list of endpoint ids. A broadcast, of one message or of several, goes over it once,
//! while the shard is borrowed once: each connection that has room gets one more reference to the bytes into its
//! outbound queue, and all of them leave with the submissions of the turn. No member is waited for and none is woken.
#![forbid(unsafe_code)]

use super::endpoint::{Close, EndpointId};
use super::state::State;
use super::stream::{Gone, Offer, Piece, Taken};
use super::waiter::Waiter;
use crate::buf::{Block, Payload};
use crate::error::Error;
use std::collections::HashMap;
use std::rc::Rc;

/// What happens to a member that does not keep up: whose backlog has no room for the next message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Slow {
    /// It does not get the new message. It goes on with what it has, and later messages get to it when there is room
    /// again.
    #[default]
    DropNewest,
    /// It loses the oldest messages, as many as must go. Only whole messages that have not begun to leave are dropped,
    /// and only those of broadcasts: what was sent to this connection alone stays. If that makes no room, the new
    /// message is dropped.
    DropOldest,
    /// Its connection is closed, as with [`Close::Abort`]: what is queued is dropped, whoever receives from it or sends
    /// on it gets an error, and its peer sees a reset as soon as the program has dropped its stream.
    Disconnect,
}

/// What came of a broadcast.
#[derive(Debug, Default)]
#[must_use = "it tells who lost messages and who is no member any more"]
pub struct Delivered {
    /// Members into whose queue the message went; of several, at least one of them.
    pub queued: usize,
    /// Messages that members lost through this broadcast: the new ones, or older ones that had to make room. One for each
    /// member that lost it.
    pub dropped: u64,
    /// Members that have left, by this broadcast or since the one before. Each is reported once.
    pub departed: Vec<Departed>,
}

/// A member that has left a broadcast by itself.
#[derive(Debug)]
pub struct Departed {
    /// Who.
    pub id: EndpointId,
    /// Why.
    pub why: Departure,
    /// Messages that it lost while it was a member.
    pub dropped: u64,
}

/// Why a member has left.
#[derive(Debug)]
#[non_exhaustive]
pub enum Departure {
    /// Its connection, or the outbound side of it, was closed from here.
    Closed,
    /// Its connection failed.
    Failed(Error),
    /// It was too slow, and [`Slow::Disconnect`] is the policy.
    TooSlow,
}

struct Member {
    id: EndpointId,
    dropped: u64,
}

/// The members of a broadcast.
pub(crate) struct Members {
    list: Vec<Member>,
    places: HashMap<EndpointId, usize>,
    /// Members that have left and have not been reported.
    departed: Vec<Departed>,
    /// Small messages of this turn.
    gathered: Rc<Block>,
    /// Empty; kept so that a broadcast allocates nothing.
    pieces: Vec<Piece>,
    /// Above so many members the list is searched for those that have gone.
    sweep_at: usize,
    pub(crate) backlog_bytes_max: usize,
    pub(crate) slow: Slow,
    pub(crate) dropped: u64,
}

/// A payload up to this long is copied once, to those sent before in the same turn, so that members send them as one.
const GATHER_BYTES_MAX: usize = 1024;

/// Fewer members are not searched for those that have gone.
const SWEEP_MIN: usize = 64;

impl Members {
    pub(crate) fn new(backlog_bytes_max: usize) -> Members {
        Members {
            list: Vec::new(),
            places: HashMap::new(),
            departed: Vec::new(),
            gathered: Block::gathered(),
            pieces: Vec::new(),
            sweep_at: SWEEP_MIN,
            backlog_bytes_max,
            slow: Slow::default(),
            dropped: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn dropped_of(&self, id: EndpointId) -> Option<u64> {
        self.places.get(&id).map(|place| self.list[*place].dropped)
    }

    pub(crate) fn contains(&self, id: EndpointId) -> bool {
        self.places.contains_key(&id)
    }

    fn add(&mut self, id: EndpointId) {
        self.places.insert(id, self.list.len());
        self.list.push(Member { id, dropped: 0 });
    }

    /// Takes a member out; the last one takes its place. The number of messages that it lost.
    pub(crate) fn remove(&mut self, id: EndpointId) -> Option<u64> {
        let place = self.places.remove(&id)?;
        let member = self.list.swap_remove(place);
        if let Some(moved) = self.list.get(place) {
            self.places.insert(moved.id, place);
        }
        Some(member.dropped)
    }

    fn depart(&mut self, id: EndpointId, why: Departure) {
        if let Some(dropped) = self.remove(id) {
            self.departed.push(Departed { id, why, dropped });
        }
    }

    /// The shard has ended, and every connection with it.
    pub(crate) fn all_departed(&mut self) -> Delivered {
        while let Some(member) = self.list.last() {
            self.depart(member.id, Departure::Closed);
        }
        Delivered { departed: std::mem::take(&mut self.departed), ..Delivered::default() }
    }
}

impl State {
    /// Makes a connection a member; nothing happens if it is one.
    pub(crate) fn join(&mut self, members: &mut Members, id: EndpointId) -> Result<(), Error> {
        self.stream(id, |stream, core, engine| stream.join(core, engine))??;
        if members.contains(id) {
            return Ok(());
        }
        if members.len() >= members.sweep_at {
            self.sweep(members);
        }
        members.add(id);
        Ok(())
    }

    /// Takes out members whose connection has gone, so that a broadcast that is not used does not grow by them. Half
    /// the list is new when it is searched, which makes a join cheap. What is to be reported is bounded like the
    /// endpoints.
    fn sweep(&mut self, members: &mut Members) {
        let mut is_open = |id| matches!(self.stream(id, |_, core, _| core.is_open()), Ok(true));
        let gone: Vec<_> = members.list.iter().map(|member| member.id).filter(|id| !is_open(*id)).collect();
        gone.into_iter().for_each(|id| members.depart(id, Departure::Closed));
        let excess = members.departed.len().saturating_sub(self.engine.limits.endpoints_max);
        members.departed.drain(..excess);
        members.sweep_at = (members.len() * 2).max(SWEEP_MIN);
    }

    /// Offers messages to every member, some of which may stand for several that stay together: payloads with their
    /// numbers of messages.
    pub(crate) fn broadcast(
        &mut self,
        members: &mut Members,
        messages: impl Iterator<Item = (Payload, u32)>,
    ) -> Delivered {
        let mut pieces = std::mem::take(&mut members.pieces);
        messages.for_each(|(payload, messages)| self.gather(members, payload, messages, &mut pieces));
        let limits = &self.engine.limits;
        let offer = Offer {
            pieces,
            backlog_bytes_max: members.backlog_bytes_max.min(limits.outbound_bytes_max),
            quota_bytes: limits.outbound_bytes_total_max / members.len().max(1),
            slow: members.slow,
        };
        let mut delivered = Delivered::default();
        let mut place = 0;
        while let Some(member) = members.list.get_mut(place) {
            let id = member.id;
            let taken = self
                .stream(id, |stream, core, engine| stream.take_all(core, engine, &offer))
                .unwrap_or(Err(Gone(None)));
            let Taken { queued, lost } = match taken {
                Ok(taken) => taken,
                Err(Gone(error)) => {
                    members.depart(id, error.map_or(Departure::Closed, Departure::Failed));
                    continue;
                }
            };
            place += 1;
            delivered.queued += usize::from(queued);
            if lost > 0 {
                member.dropped += lost;
                delivered.dropped += lost;
                if offer.slow == Slow::Disconnect {
                    place -= 1;
                    members.depart(id, Departure::TooSlow);
                    self.close(id, Close::Abort, Waiter::None);
                }
            }
        }
        members.dropped += delivered.dropped;
        self.engine.messages_dropped += delivered.dropped;
        delivered.departed = std::mem::take(&mut members.departed);
        members.pieces = offer.pieces;
        for Piece { block, range } in members.pieces.drain(..) {
            // The last holder may be this one, and the bytes' owner foreign code (invariant 12).
            self.engine.drop_payload(Payload::part(block, range));
        }
        delivered
    }

    /// Puts a payload behind `pieces`: into the block that is gathered in this turn if it is small.
    fn gather(&mut self, members: &mut Members, payload: Payload, messages: u32, pieces: &mut Vec<Piece>) {
        let len = payload.len();
        if len == 0 {
            return self.engine.drop_payload(payload);
        }
        if len > GATHER_BYTES_MAX {
            return pieces.push(Piece { block: Block::of(payload, messages), range: 0..len });
        }
        let range = match members.gathered.append(&payload, messages) {
            Some(range) => range,
            None => {
                members.gathered = Block::gathered();
                let range = members.gathered.append(&payload, messages);
                range.expect("a small payload fits into a new block")
            }
        };
        self.engine.drop_payload(payload);
        match pieces.last_mut() {
            Some(last) if Rc::ptr_eq(&last.block, &members.gathered) => last.range.end = range.end,
            _ => pieces.push(Piece { block: Rc::clone(&members.gathered), range }),
        }
    }
}
