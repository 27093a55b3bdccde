//! Connections: what a broadcast offers them, and what they do if they are too slow for it.
#![forbid(unsafe_code)]

use super::*;
use crate::buf::Block;
use crate::shard::fanout::Slow;
use std::ops::Range;
use std::rc::Rc;

/// What a message that waits costs beside its bytes: its place in the queue.
const PLACE_BYTES: usize = size_of::<Payload>();

/// Messages that are offered to many connections.
pub(crate) struct Offer {
    pub(crate) pieces: Vec<Piece>,
    /// Bytes that may be queued or in flight on a connection.
    pub(crate) backlog_bytes_max: usize,
    /// What every connection may have queued though all of them together have too much.
    pub(crate) quota_bytes: usize,
    pub(crate) slow: Slow,
}

/// Messages that stand together in a block, never none.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) block: Rc<Block>,
    /// Where in the block they are.
    pub(crate) range: Range<usize>,
}

/// What a connection did with an offer.
#[derive(Default)]
pub(crate) struct Taken {
    /// Something of it was queued, unless it was nothing.
    pub(crate) queued: bool,
    /// Messages that were lost: of the offer, or older ones that had to make room.
    pub(crate) lost: u64,
}

/// The connection takes nothing any more; the error, unless it was simply closed.
pub(crate) struct Gone(pub(crate) Option<Error>);

/// What stands in the outbound queue of a connection that was or is a member of a broadcast.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fan {
    /// Payloads in the queue.
    places: usize,
    /// Their bytes.
    bytes: usize,
    droppable: Droppable,
}

/// What could be dropped in all.
#[derive(Clone, Copy, Debug, Default)]
struct Droppable {
    places: usize,
    bytes: usize,
}

impl Fan {
    pub(super) fn count_in(&mut self, payload: &Payload) {
        self.places += 1;
        self.bytes += payload.len();
        if payload.is_droppable() {
            self.droppable.places += 1;
            self.droppable.bytes += payload.len();
        }
    }

    pub(super) fn count_out(&mut self, payload: &Payload) {
        self.places -= 1;
        self.bytes -= payload.len();
        if payload.is_droppable() {
            self.droppable.places -= 1;
            self.droppable.bytes -= payload.len();
        }
    }
}

impl Stream {
    /// Becomes a member of a broadcast, unless a send would fail.
    pub(crate) fn join(&mut self, core: &Common, engine: &Engine) -> Result<(), Error> {
        if let Some(error) = self.send_refusal(core) {
            return Err(error);
        }
        self.fan(engine);
        Ok(())
    }

    /// Queues the messages of a broadcast, each for which there is room or room can be made.
    pub(crate) fn take_all(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        offer: &Offer,
    ) -> Result<Taken, Gone> {
        if let Some(error) = self.send_refusal(core) {
            return Err(Gone(Some(error).filter(|error| !matches!(error, Error::Closed))));
        }
        let mut taken = Taken { queued: offer.pieces.is_empty(), lost: 0 };
        for piece in &offer.pieces {
            if self.fits(engine, offer, piece, Droppable::default()) {
                self.queue_piece(engine, piece);
                taken.queued = true;
            } else {
                let messages = piece.block.split(&piece.range);
                messages.for_each(|(range, messages)| {
                    let piece = Piece { block: Rc::clone(&piece.block), range };
                    self.take(engine, offer, &piece, messages, &mut taken);
                });
            }
        }
        if self.sending.is_none() && !self.outbound.is_empty() {
            self.make_dirty(core.id, engine);
        }
        Ok(taken)
    }

    /// Queues messages that stay together if there is room or room can be made.
    fn take(&mut self, engine: &mut Engine, offer: &Offer, piece: &Piece, messages: u32, taken: &mut Taken) {
        if !self.fits(engine, offer, piece, Droppable::default()) {
            // Nothing is dropped in vain.
            let droppable = self.fan(engine).droppable;
            if offer.slow != Slow::DropOldest || !self.fits(engine, offer, piece, droppable) {
                taken.lost += u64::from(messages);
                return;
            }
            while !self.fits(engine, offer, piece, Droppable::default()) {
                let Some(messages) = self.drop_oldest(engine) else { break };
                taken.lost += u64::from(messages);
            }
        }
        self.queue_piece(engine, piece);
        taken.queued = true;
    }

    /// Whether there is room, or would be without `gone`. As with any send, one message always fits if nothing is queued.
    fn fits(&mut self, engine: &Engine, offer: &Offer, piece: &Piece, gone: Droppable) -> bool {
        let (queued, len) = (self.outbound_bytes - gone.bytes, piece.range.len());
        let places = self.fan(engine).places - gone.places;
        let crowded = engine.outbound_total - gone.bytes + len > engine.limits.outbound_bytes_total_max;
        let bound =
            if crowded { offer.backlog_bytes_max.min(offer.quota_bytes) } else { offer.backlog_bytes_max };
        queued + places * PLACE_BYTES + len <= bound || (queued == 0 && piece.block.is_one(&piece.range))
    }

    /// Queues a part of a block, which costs no place if it follows what was queued last.
    fn queue_piece(&mut self, engine: &mut Engine, Piece { block, range }: &Piece) {
        self.outbound_bytes += range.len();
        engine.outbound_total += range.len();
        let last = engine.outbound.back_mut(&self.outbound);
        let extended = last.and_then(|last| last.extend(block, range).then(|| last.is_droppable()));
        match extended {
            Some(is_droppable) => {
                let fan = self.fan(engine);
                fan.bytes += range.len();
                fan.droppable.bytes += if is_droppable { range.len() } else { 0 };
            }
            None => self.queue(engine, Payload::part(Rc::clone(block), range.clone())),
        }
    }

    /// Drops the oldest message of a broadcast that has not begun to leave: how many it was, if it stood for several.
    fn drop_oldest(&mut self, engine: &mut Engine) -> Option<u32> {
        let mut before = 0;
        let is_droppable = |payload: &Payload| {
            before += if payload.is_droppable() { 0 } else { payload.len() };
            payload.is_droppable()
        };
        let payload = engine.outbound.find_mut(&self.outbound, is_droppable)?;
        let (bytes, messages) = payload.drop_first();
        let emptied = payload.is_empty();
        let outbound_bytes = self.outbound_bytes;
        let fan = self.fan(engine);
        let in_flight = outbound_bytes - fan.bytes;
        fan.bytes -= bytes;
        fan.droppable.bytes -= bytes;
        if emptied {
            // No other payload of the queue is empty.
            let payload = engine.outbound.remove_first(&mut self.outbound, |payload| payload.is_empty())?;
            self.count_out(&payload);
            engine.drop_payload(payload);
        }
        self.outbound_bytes -= bytes;
        engine.release_outbound(bytes);
        // Submissions that were queued behind it are done that much earlier.
        let cold = self.cold();
        let place = cold.sent_total + (in_flight + before) as u64;
        engine.tags.for_each_mut(&cold.tags, |(_, end)| *end -= if *end > place { bytes as u64 } else { 0 });
        Some(messages)
    }

    /// Its counts, by looking at the queue if it has none yet.
    fn fan(&mut self, engine: &Engine) -> &mut Fan {
        let outbound = self.outbound;
        self.cold().fan.get_or_insert_with(|| {
            let mut fan = Fan::default();
            engine.outbound.iter(&outbound).for_each(|payload| fan.count_in(payload));
            fan
        })
    }

    /// Its counts, if it has any.
    #[inline]
    pub(super) fn fan_mut(&mut self) -> Option<&mut Fan> {
        self.cold.as_mut()?.fan.as_mut()
    }
}
