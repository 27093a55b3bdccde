//! Connections: the inbound queue, the outbound queue, arming and disarming.
//!
//! At most one receive is armed and one send in flight (invariant 9). The standing receive begins with the first
//! reader; above the inbound bound it is cancelled, below a quarter of it armed again, and what the kernel
//! delivered meanwhile is kept (invariant 15). Data that has to wait while the pool is low is copied out of its
//! buffer, in both directions, so that a slow connection cannot pin the pool.
#![forbid(unsafe_code)]

mod fanout;
mod outbound;

use self::fanout::Fan;
pub(crate) use fanout::{Gone, Offer, Piece, Taken};

use super::endpoint::{Common, EndpointId, Farewell};
use super::engine::Engine;
use super::event::Event;
use super::list::List;
use super::waiter::Waiter;
use crate::buf::{Lease, Payload};
use crate::config::APART_BYTES;
use crate::driver::completion::{Completion, Done, Received};
use crate::driver::op::{Connect, Op, RecvMulti, Send, SendMsg, Shutdown};
use crate::driver::{FdRef, Rare, Token};
use crate::error::{Error, Full};
use socket2::SockAddr;

/// After a piece as large as that, receives fill buffers that can be given away: half of such a buffer.
const LARGE_BYTES: usize = APART_BYTES / 2;
/// So many smaller pieces in a row end it.
const SMALL_PIECES: u8 = 16;

/// The state of a connection: what each message touches, and the rest in a box that idle connections do without.
#[derive(Default)]
pub(crate) struct Stream {
    /// The standing receive, while it is with the driver.
    receive: Option<Token>,
    /// The send in flight.
    sending: Option<Token>,
    reader: Waiter,
    /// Received and not read; the leases lie in [`Engine::inbound`].
    inbound: List,
    inbound_bytes: usize,
    /// To be sent; the payloads lie in [`Engine::outbound`].
    outbound: List,
    /// Bytes queued or in flight.
    outbound_bytes: usize,
    standing: Standing,
    /// Buffers of the pool in the outbound queue.
    pooled: u16,
    dirty: bool,
    /// The end has come, but the send in flight may know that it is a failure.
    end_held: bool,
    /// The descriptor is about to be given away: no receive is armed any more.
    leaving: bool,
    /// Receives fill buffers that can be given away.
    apart: bool,
    /// Pieces in a row that were too small for that.
    small: u8,
    cold: Option<Box<Cold>>,
}

const _: () = assert!(size_of::<Stream>() <= 80);

/// What most connections lack most of the time.
#[derive(Default)]
struct Cold {
    /// How the inbound side ended.
    end: Option<End>,
    writer: Waiter,
    flusher: Waiter,
    /// Submissions with a tag, by the count of sent bytes at which they are done; they lie in [`Engine::tags`].
    tags: List,
    /// Bytes that have left since somebody has wanted to know: since the first tag, say.
    sent_total: u64,
    zero_copy: ZeroCopy,
    /// The bytes of the last zero-copy send.
    in_place_bytes: usize,
    /// Zero-copy sends that are done but still hold their payload.
    unreleased: u32,
    /// What members of a broadcast count.
    fan: Option<Fan>,
    send_error: Option<Error>,
    connecting: Option<Connecting>,
    shutdown: Shut,
    farewell: Farewell,
}

/// The standing receive.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Standing {
    /// Not armed.
    #[default]
    Idle,
    Armed,
    /// Cancelled, and not yet ended.
    Ending,
    /// Waits for a buffer or a slot.
    Waiting,
}

enum End {
    Fin,
    Failed(Error),
}

/// Whether large sends may leave without a copy.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum ZeroCopy {
    /// No large send has been made yet.
    #[default]
    Unknown,
    Wanted,
    /// The peer is on this machine, or the kernel copied all the same.
    Useless,
}

enum Connecting {
    /// To be submitted.
    Wanted(Box<SockAddr>, Waiter),
    InFlight(Token, Waiter),
    Failed(Error),
}

/// Shutting down the outbound side.
#[derive(Default)]
enum Shut {
    #[default]
    No,
    /// When everything queued has left.
    Wanted(std::net::Shutdown, Waiter),
    InFlight(Waiter),
    Done,
}

/// What a reader finds.
pub(crate) enum Read {
    Data(Lease),
    End,
    Failed(Error),
    Nothing,
}

/// What a reader finds who wants to do without the standing receive.
pub(crate) enum Paused {
    Data(Lease),
    End,
    Failed(Error),
    /// Nothing waits, and no receive is armed.
    Quiet,
}

impl Stream {
    /// A stream that has yet to connect.
    pub(crate) fn connecting_to(to: SockAddr, waiter: Waiter) -> Stream {
        let connecting = Some(Connecting::Wanted(Box::new(to), waiter));
        Stream { cold: Some(Box::new(Cold { connecting, ..Cold::default() })), ..Stream::default() }
    }

    fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// What it keeps while it closes, if there is something.
    pub(super) fn farewell(&mut self) -> Option<&mut Farewell> {
        self.cold.as_mut().map(|cold| &mut cold.farewell)
    }

    /// The same, made if need be.
    pub(super) fn farewell_mut(&mut self) -> &mut Farewell {
        &mut self.cold().farewell
    }

    fn connecting(&self) -> Option<&Connecting> {
        self.cold.as_ref()?.connecting.as_ref()
    }

    fn end(&self) -> Option<&End> {
        self.cold.as_ref()?.end.as_ref()
    }

    fn send_error(&self) -> Option<&Error> {
        self.cold.as_ref()?.send_error.as_ref()
    }

    /// Whether the outbound side is to be shut down when everything queued has left.
    fn wants_shutdown(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| matches!(cold.shutdown, Shut::Wanted(..)))
    }

    #[inline]
    pub(crate) fn on_completion(&mut self, core: &mut Common, engine: &mut Engine, completion: Completion) {
        let Completion { token, more, done, .. } = completion;
        match done {
            Done::Received(received) => self.on_received(core, engine, received, more),
            Done::Starved => self.on_starved(core, engine),
            Done::Sent(result, payload) => self.on_sent(core, engine, token, result, payload),
            Done::SentBatch(result, batch) => self.on_sent_batch(core, engine, result, batch),
            Done::SentCopied(result, payload) => {
                engine.zero_copy_copied += 1;
                self.cold().zero_copy = ZeroCopy::Useless;
                self.on_sent(core, engine, token, result, payload);
            }
            Done::SentEarly(result) => self.on_sent_early(core, engine, result),
            Done::Ended(result) if matches!(self.connecting(), Some(Connecting::InFlight(..))) => {
                self.on_connected(core, engine, result);
            }
            Done::Ended(result) => self.on_shut_down(core, engine, result),
            other => debug_assert!(false, "a stream got {other:?}"),
        }
    }

    #[inline]
    pub(crate) fn on_turn(&mut self, core: &mut Common, engine: &mut Engine) {
        self.dirty = false;
        self.connect(core, engine);
        self.flush(core, engine);
        if self.standing == Standing::Waiting {
            self.standing = Standing::Idle;
        }
        if !self.reader.is_none() || self.inbound_bytes > 0 {
            self.arm(core, engine);
        }
    }

    fn make_dirty(&mut self, id: EndpointId, engine: &mut Engine) {
        if !self.dirty {
            self.dirty = true;
            engine.dirty.push(id);
        }
    }

    // Connecting.

    fn connect(&mut self, core: &mut Common, engine: &mut Engine) {
        let Some(cold) = &mut self.cold else { return };
        let Some(Connecting::Wanted(to, waiter)) =
            cold.connecting.take_if(|c| matches!(c, Connecting::Wanted(..)))
        else {
            return;
        };
        let address = (*to).clone();
        cold.connecting = match core.submit(engine, Connect::new(core.fd().clone(), address)) {
            Ok(token) => Some(Connecting::InFlight(token, waiter)),
            Err(_) => Some(Connecting::Wanted(to, waiter)),
        };
    }

    fn on_connected(&mut self, core: &mut Common, engine: &mut Engine, result: Result<(), Error>) {
        let Some(Connecting::InFlight(_, waiter)) = self.cold().connecting.take() else { return };
        if let Err(error) = &result {
            self.cold().connecting = Some(Connecting::Failed(error.duplicate()));
            self.fail_outbound(core.id, engine, error);
        }
        waiter.notify(engine, core.id, false, || match result {
            Ok(()) => Event::Connected,
            Err(error) => Event::Failed(error),
        });
        if self.connecting().is_none() {
            self.make_dirty(core.id, engine);
        }
    }

    /// Whether the connect has ended and how; puts the waiter in place if not.
    pub(crate) fn connected(&mut self, waiter: Waiter, engine: &mut Engine) -> Option<Result<(), Error>> {
        match self.cold.as_mut().and_then(|cold| cold.connecting.as_mut()) {
            None => Some(Ok(())),
            Some(Connecting::Failed(error)) => Some(Err(error.duplicate())),
            Some(Connecting::Wanted(_, place) | Connecting::InFlight(_, place)) => {
                waiter.replace(place, engine);
                None
            }
        }
    }

    // The inbound side.

    #[inline]
    fn arm(&mut self, core: &mut Common, engine: &mut Engine) {
        let wanted = core.is_open() && self.end().is_none() && self.connecting().is_none() && !self.leaving;
        if self.standing != Standing::Idle || !wanted || self.end_held || self.is_inbound_high(engine) {
            return;
        }
        self.receive = core.submit(engine, RecvMulti { socket: core.fd().clone(), apart: self.apart }).ok();
        self.standing = if self.receive.is_some() { Standing::Armed } else { Standing::Waiting };
    }

    #[inline]
    fn is_inbound_high(&self, engine: &Engine) -> bool {
        let crowded = engine.inbound_total >= engine.limits.inbound_bytes_total_max && self.inbound_bytes > 0;
        crowded || self.inbound_bytes >= engine.limits.inbound_bytes_max
    }

    fn disarm(&mut self, engine: &mut Engine) {
        if let (Standing::Armed, Some(token)) = (self.standing, self.receive) {
            engine.driver.cancel(token);
            self.standing = Standing::Ending;
        }
    }

    #[inline]
    fn on_received(&mut self, core: &mut Common, engine: &mut Engine, received: Received, more: bool) {
        if !more {
            self.standing = Standing::Idle;
            self.receive = None;
        }
        match received {
            Received::Data(lease) => {
                engine.bytes_in += lease.len() as u64;
                if engine.driver.gives_buffers() {
                    self.suit(engine, lease.len());
                }
                if core.is_open() {
                    self.deliver(core, engine, lease);
                }
            }
            Received::End => self.on_fin(core, engine),
            // Our own doing: the bound was reached, or the endpoint closes.
            Received::Failed(Error::Canceled) => {}
            Received::Failed(error) => self.on_end(core.id, engine, End::Failed(error)),
        }
        if !more && self.leaving {
            self.reader.wake(engine);
        }
        let wanted = !self.reader.is_none() || self.inbound_bytes > 0;
        if !more && wanted && self.is_inbound_low(engine) {
            self.arm(core, engine);
        }
    }

    /// A stream that brings much receives into buffers that can be given away, one to a receive; others share buffers,
    /// which are warmer and take many messages each. To change that costs arming the receive anew.
    fn suit(&mut self, engine: &mut Engine, bytes: usize) {
        let is_large = bytes >= LARGE_BYTES;
        self.small = if is_large { 0 } else { self.small.saturating_add(1) };
        if self.apart != is_large && (is_large || self.small >= SMALL_PIECES) {
            self.apart = is_large;
            self.disarm(engine);
        }
    }

    #[inline]
    fn deliver(&mut self, core: &mut Common, engine: &mut Engine, lease: Lease) {
        if let Some((tag, more)) = self.reader.take_tag() {
            engine.emit(tag, core.id, more, Event::Received(lease));
            return;
        }
        // Data that waits must not pin a buffer while buffers are short.
        let lease = engine.made_to_wait(lease);
        self.inbound_bytes += lease.len();
        engine.inbound_total += lease.len();
        engine.inbound.push_back(&mut self.inbound, lease);
        self.reader.wake(engine);
        if self.is_inbound_high(engine) || engine.is_rare(Rare::InboundFull) {
            self.disarm(engine);
        }
    }

    /// The stream has ended, or so it seems. A system tells why a connection failed only once; if that was told to a
    /// send, a receive finds no more than the end, and whoever reads must not take what came for everything.
    fn on_fin(&mut self, core: &mut Common, engine: &mut Engine) {
        let is_gone = || core.fd.as_ref().is_some_and(|fd| fd.descriptor().peer_addr().is_err());
        if self.sending.is_some() && is_gone() {
            // The send ends at once, since there is no connection any more, and says whether it was told.
            self.end_held = true;
            return;
        }
        let end = match self.send_error() {
            Some(error) if error.breaks_connection() => End::Failed(error.duplicate()),
            _ => End::Fin,
        };
        self.on_end(core.id, engine, end);
    }

    fn on_end(&mut self, id: EndpointId, engine: &mut Engine, end: End) {
        if let Waiter::Tag(tag) | Waiter::Standing(tag) = self.reader {
            self.reader = Waiter::None;
            engine.emit(tag, id, false, end.event());
        }
        self.cold().end = Some(end);
        self.reader.wake(engine);
    }

    fn on_starved(&mut self, core: &mut Common, engine: &mut Engine) {
        self.standing = Standing::Waiting;
        self.receive = None;
        // What is fed next are shared buffers.
        self.apart = false;
        engine.starve(core.id);
        if self.leaving {
            self.reader.wake(engine);
        }
    }

    fn is_inbound_low(&self, engine: &Engine) -> bool {
        !self.is_inbound_high(engine) && self.inbound_bytes <= engine.limits.inbound_bytes_max / 4
    }

    /// Takes what waits; puts the waiter in place and arms the receive if nothing does.
    #[inline]
    pub(crate) fn read(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        waiter: impl FnOnce() -> Waiter,
    ) -> Read {
        if let Some(lease) = engine.inbound.pop_front(&mut self.inbound) {
            self.inbound_bytes -= lease.len();
            engine.inbound_total -= lease.len();
            if self.standing == Standing::Idle && self.is_inbound_low(engine) {
                self.arm(core, engine);
            }
            return Read::Data(lease);
        }
        match self.end() {
            Some(End::Fin) => Read::End,
            Some(End::Failed(error)) => Read::Failed(error.duplicate()),
            None if !core.is_open() => Read::Failed(Error::Closed),
            None => {
                waiter().replace(&mut self.reader, engine);
                self.arm(core, engine);
                Read::Nothing
            }
        }
    }

    /// Puts bytes back at the head of the inbound queue.
    pub(crate) fn unread(&mut self, engine: &mut Engine, lease: Lease) {
        if !lease.is_empty() {
            let lease = engine.made_to_wait(lease);
            self.inbound_bytes += lease.len();
            engine.inbound_total += lease.len();
            engine.inbound.push_front(&mut self.inbound, lease);
        }
    }

    /// Starts a receive of the completion API.
    ///
    /// # Errors
    ///
    /// `false` if another one is waiting.
    #[inline]
    pub(crate) fn submit_read(&mut self, core: &mut Common, engine: &mut Engine, waiter: Waiter) -> bool {
        if self.reader.is_tag() {
            return false;
        }
        let standing = matches!(waiter, Waiter::Standing(_));
        self.reader = waiter;
        while !self.inbound.is_empty() && self.reader.is_tag() {
            let Read::Data(lease) = self.read(core, engine, || Waiter::None) else { break };
            let Some((tag, more)) = self.reader.take_tag() else { break };
            engine.emit(tag, core.id, more, Event::Received(lease));
        }
        if let (Some(end), Waiter::Tag(tag) | Waiter::Standing(tag)) = (self.end(), &self.reader) {
            engine.emit(*tag, core.id, false, end.event());
            self.reader = Waiter::None;
        }
        if standing || self.reader.is_tag() {
            self.arm(core, engine);
        }
        true
    }

    /// Ends the standing receive for good, before the descriptor is given away.
    pub(crate) fn stop_reading(&mut self, engine: &mut Engine) {
        self.leaving = true;
        self.disarm(engine);
    }

    /// Ends the standing receive until further notice. Takes what it has brought; puts the waiter in place if it has
    /// not ended yet.
    pub(crate) fn pause_reading(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        waiter: impl FnOnce() -> Waiter,
    ) -> Option<Paused> {
        self.stop_reading(engine);
        let ending = matches!(self.standing, Standing::Armed | Standing::Ending) || self.end_held;
        if ending && self.inbound.is_empty() && self.end().is_none() && core.is_open() {
            waiter().replace(&mut self.reader, engine);
            return None;
        }
        Some(match self.read(core, engine, || Waiter::None) {
            Read::Data(lease) => Paused::Data(lease),
            Read::End => Paused::End,
            Read::Failed(error) => Paused::Failed(error),
            Read::Nothing => Paused::Quiet,
        })
    }

    /// Receives may be armed again.
    pub(crate) fn resume_reading(&mut self) {
        self.leaving = false;
    }

    /// Takes everything that was received and not read.
    pub(crate) fn take_inbound(&mut self, engine: &mut Engine) -> Vec<Lease> {
        engine.inbound_total -= self.inbound_bytes;
        self.inbound_bytes = 0;
        engine.inbound.drain(&mut self.inbound).collect()
    }

    /// The endpoint ends: nothing stays in the queues.
    pub(crate) fn end_queues(&mut self, id: EndpointId, engine: &mut Engine) {
        if self.outbound_bytes > 0 || self.cold.is_some() {
            self.fail_outbound(id, engine, &Error::Closed);
        }
        if !self.inbound.is_empty() {
            drop(self.take_inbound(engine));
        }
    }

    /// The endpoint closes: ends the receive and, if the rest shall not be waited for, the send.
    pub(crate) fn stop(&mut self, core: &mut Common, engine: &mut Engine) {
        let id = core.id;
        self.disarm(engine);
        self.reader.fail(engine, id, &Error::Closed);
        let wanted = |connecting: &mut Connecting| matches!(connecting, Connecting::Wanted(..));
        let unsubmitted = self.cold.as_mut().and_then(|cold| cold.connecting.take_if(wanted));
        if let Some(Connecting::Wanted(_, mut waiter)) = unsubmitted {
            waiter.fail(engine, id, &Error::Closed);
            self.cold().connecting = Some(Connecting::Failed(Error::Closed));
            self.fail_outbound(id, engine, &Error::Closed);
        }
        if let Some(Connecting::InFlight(token, _)) = self.connecting() {
            engine.driver.cancel(*token);
        }
        if !core.is_hurrying() {
            return;
        }
        if let Some(token) = self.sending {
            engine.driver.cancel(token);
            // A kernel may not find the send that it shall cancel; this ends it in any case.
            let socket = core.fd().descriptor();
            let _ = match core.is_aborting() {
                true => socket.disconnect().or_else(|_| socket.shutdown(std::net::Shutdown::Both)),
                false => socket.shutdown(std::net::Shutdown::Write),
            };
            return;
        }
        if !core.is_aborting() {
            self.push_out(core, engine);
        }
        if self.outbound_bytes > 0 {
            self.fail_outbound(id, engine, &Error::Closed);
        }
    }
}

impl End {
    fn event(&self) -> Event {
        match self {
            End::Fin => Event::End,
            End::Failed(error) => Event::Failed(error.duplicate()),
        }
    }
}
