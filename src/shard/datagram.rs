//! Datagram sockets: the inbound queue, and the batch that is being sent.
//!
//! Datagrams come and go in batches: one receive brings what is there, as far as there is room, and is renewed while
//! the queue has room; what is queued during a turn leaves as one send. What a datagram meets (too long, refused by
//! the peer's host) is reported by the next call on the socket, as the socket itself would. Nothing is promised
//! about the order of datagrams.
//!
//! The queue holds what the kernel joined as it came; it is cut when it is read. Bounds count datagrams, not buffers.
#![forbid(unsafe_code)]

use super::endpoint::{Common, EndpointId, Farewell};
use super::engine::Engine;
use super::event::Event;
use super::waiter::{Waiter, Waiters};
use crate::driver::Token;
use crate::driver::completion::{Completion, Done};
use crate::driver::datagram::{Datagram, Outgoing, SEGMENTED_BYTES_MAX, SEGMENTS_MAX, Segments};
use crate::driver::op::{Op, RecvBatch, SendBatch};
use crate::error::{Error, Full};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

/// Datagrams of one send; more leave with the next one, so that others have their turn.
const BATCH_MAX: usize = 512;

/// The state of a datagram socket.
#[derive(Default)]
pub(crate) struct Datagrams {
    receive: Receive,
    inbound: VecDeque<Segments>,
    /// Datagrams in the queue, counted singly.
    inbound_datagrams: usize,
    inbound_bytes: usize,
    readers: Waiters,
    outbound: Vec<Outgoing>,
    /// Datagrams to send, counted singly, those in flight included.
    outbound_datagrams: usize,
    sending: Option<Token>,
    writers: Waiters,
    /// What the last operation met.
    error: Option<Error>,
    dirty: bool,
    /// What datagrams met, for a reader who asked to be told of each with its peer; then `error` is not used.
    failures: Option<Box<Failures>>,
    /// The kernel may join datagrams.
    joins: bool,
    /// The kernel tells something with each datagram. Never lowered, so that nothing it still tells is missed.
    control: Rc<Cell<bool>>,
    pub(super) farewell: Farewell,
}

/// The receive.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Receive {
    #[default]
    Idle,
    Armed(Token),
    /// Cancelled, and not yet ended.
    Ending,
    /// Waits for a slot.
    Waiting,
    /// Waits for a buffer, in line with others.
    Starving,
}

/// What a socket can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// Datagrams that the kernel has joined.
    Joined,
    /// The congestion codepoint of each.
    Ecn,
    /// The local address of each.
    Local,
}

/// Failures that wait to be told; what comes on top is only counted.
const FAILURES_MAX: usize = 256;

#[derive(Default)]
struct Failures {
    waiting: VecDeque<SendFailure>,
    untold: u64,
}

/// What a send met, or (without an address) a receive.
#[derive(Debug)]
pub(crate) struct SendFailure {
    /// Where the datagram was to go.
    pub(crate) to: Option<SocketAddr>,
    pub(crate) error: Error,
}

/// What a reader finds.
pub(crate) enum ReadFrom<T> {
    Some(T),
    Failed(Error),
    Nothing,
}

impl Datagrams {
    pub(crate) fn on_completion(&mut self, core: &mut Common, engine: &mut Engine, completion: Completion) {
        if let Done::SentDatagrams(items) = completion.done {
            return self.on_sent(core, engine, items);
        }
        self.receive = Receive::Idle;
        match completion.done {
            Done::Datagrams(Ok(batch)) => self.deliver(core, engine, batch),
            Done::Datagrams(Err(Error::Canceled)) => {}
            Done::Datagrams(Err(error)) => self.on_error(core.id, engine, None, error),
            Done::Starved => {
                self.receive = Receive::Starving;
                engine.starve_for_datagrams(core.id);
            }
            other => debug_assert!(false, "a datagram socket got {other:?}"),
        }
        if self.wants_more(engine) {
            self.arm(core, engine);
        }
    }

    pub(crate) fn on_turn(&mut self, core: &mut Common, engine: &mut Engine) {
        self.dirty = false;
        self.flush(core, engine);
        // Who starves is in line already, and stands there once however often it has something to send.
        let is_fed = self.receive == Receive::Starving && engine.has_datagram_buffers();
        if is_fed || self.receive == Receive::Waiting {
            self.receive = Receive::Idle;
        }
        if self.wants_more(engine) {
            self.arm(core, engine);
        }
    }

    /// Whether to receive: somebody waits, or somebody read before and the queue has room.
    fn wants_more(&self, engine: &Engine) -> bool {
        !self.readers.is_empty() || (!self.inbound.is_empty() && self.room(engine) > 0)
    }

    /// Datagrams that the queue may take.
    fn room(&self, engine: &Engine) -> usize {
        let limits = &engine.limits;
        if self.inbound_bytes >= limits.inbound_bytes_max.max(limits.datagram_buffer_bytes) {
            return 0;
        }
        limits.datagrams_inbound_max.saturating_sub(self.inbound_datagrams)
    }

    /// Sets what the kernel shall do or tell with datagrams that are received.
    ///
    /// # Errors
    ///
    /// If the system refuses; if buffers are too small for joined datagrams.
    pub(crate) fn ask(&mut self, core: &Common, engine: &Engine, what: Ask, on: bool) -> io::Result<()> {
        let socket = core.fd.as_ref().ok_or(Error::Closed)?.descriptor();
        match what {
            Ask::Joined => {
                let bytes = engine.limits.datagram_buffer_bytes;
                if on && bytes < SEGMENTED_BYTES_MAX {
                    let text = format!(
                        "Limits::datagram_buffer_bytes is {bytes}, joined datagrams take {SEGMENTED_BYTES_MAX}"
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                socket.set_joins_datagrams(on)?;
                self.joins |= on;
            }
            Ask::Ecn => socket.set_tells_ecn(on)?,
            Ask::Local => socket.set_tells_local(on)?,
        }
        self.control.set(self.control.get() || on);
        Ok(())
    }

    fn arm(&mut self, core: &mut Common, engine: &mut Engine) {
        let room = self.room(engine);
        if self.receive != Receive::Idle || !core.is_open() || room == 0 {
            return;
        }
        // A message may hold so many datagrams.
        let messages = if self.joins { room.div_ceil(SEGMENTS_MAX) } else { room };
        let (socket, control) = (core.fd().clone(), Rc::clone(&self.control));
        self.receive = match engine.driver.exchange(&socket) {
            Ok(exchange) => match core.submit(engine, RecvBatch::new(socket, exchange, messages, control)) {
                Ok(token) => Receive::Armed(token),
                Err(_) => Receive::Waiting,
            },
            Err(error) => return self.on_error(core.id, engine, None, error.into()),
        };
    }

    fn deliver(&mut self, core: &mut Common, engine: &mut Engine, mut batch: Vec<Segments>) {
        let low = engine.is_datagram_pool_low();
        for segments in batch.drain(..) {
            engine.bytes_in += segments.bytes().len() as u64;
            engine.truncated += u64::from(segments.is_truncated());
            if core.is_open() {
                self.enqueue(core.id, engine, segments, low);
            }
        }
        engine.driver.keep_datagram_list(batch);
        if !self.inbound.is_empty() {
            self.readers.wake_all(engine);
        }
    }

    /// Gives datagrams to whom a submission waits, and keeps the rest.
    fn enqueue(&mut self, id: EndpointId, engine: &mut Engine, mut segments: Segments, low: bool) {
        while let Some((tag, more)) = self.readers.take_tag() {
            if segments.count_left() == 1 {
                return engine.emit(tag, id, more, received(segments.into_last()));
            }
            engine.emit(tag, id, more, received(segments.split_first()));
        }
        let segments = if low { segments.detach() } else { segments };
        self.inbound_bytes += segments.bytes().len();
        self.inbound_datagrams += segments.count_left();
        engine.inbound_total += segments.bytes().len();
        self.inbound.push_back(segments);
    }

    fn disarm(&mut self, engine: &mut Engine) {
        if let Receive::Armed(token) = self.receive {
            engine.driver.cancel(token);
            self.receive = Receive::Ending;
        }
    }

    fn on_error(&mut self, id: EndpointId, engine: &mut Engine, to: Option<SocketAddr>, error: Error) {
        match (self.readers.take_tag(), &mut self.failures) {
            (Some((tag, more)), _) => engine.emit(tag, id, more, Event::Failed(error)),
            (None, None) => self.error = Some(error),
            (None, Some(failures)) if failures.waiting.len() < FAILURES_MAX => {
                failures.waiting.push_back(SendFailure { to, error });
            }
            (None, Some(failures)) => failures.untold += 1,
        }
        self.readers.wake_all(engine);
    }

    /// Takes one datagram out of the queue.
    fn pop(&mut self, engine: &mut Engine) -> Option<Datagram> {
        let first = self.inbound.front_mut()?;
        let datagram =
            if first.count_left() > 1 { first.split_first() } else { self.inbound.pop_front()?.into_last() };
        self.inbound_datagrams -= 1;
        self.inbound_bytes -= datagram.lease.len();
        engine.inbound_total -= datagram.lease.len();
        Some(datagram)
    }

    /// Takes what the kernel has joined out of the queue.
    fn pop_segments(&mut self, engine: &mut Engine) -> Option<Segments> {
        let segments = self.inbound.pop_front()?;
        self.inbound_datagrams -= segments.count_left();
        self.inbound_bytes -= segments.bytes().len();
        engine.inbound_total -= segments.bytes().len();
        Some(segments)
    }

    /// Takes a datagram; puts the future in line and arms the receive if there is none.
    pub(crate) fn read(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        waker: &Waker,
    ) -> ReadFrom<Datagram> {
        let taken = self.pop(engine);
        self.found(core, engine, taken, waker)
    }

    /// Takes datagrams as the kernel has joined them; else as [`read`](Self::read).
    pub(crate) fn read_segments(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        waker: &Waker,
    ) -> ReadFrom<Segments> {
        let taken = self.pop_segments(engine);
        self.found(core, engine, taken, waker)
    }

    /// From now on each failure is told with its peer, by [`read_or_failure`](Self::read_or_failure) only.
    pub(crate) fn tell_failures(&mut self) {
        let failures = self.failures.get_or_insert_default();
        failures.waiting.extend(self.error.take().map(|error| SendFailure { to: None, error }));
    }

    /// Failures that were not kept, since the last call.
    pub(crate) fn take_untold(&mut self) -> u64 {
        self.failures.as_mut().map_or(0, |failures| std::mem::take(&mut failures.untold))
    }

    /// As [`read_segments`](Self::read_segments); what datagrams met comes first.
    pub(crate) fn read_or_failure(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        waker: &Waker,
    ) -> ReadFrom<Result<Segments, SendFailure>> {
        if let Some(failure) = self.failures.as_mut().and_then(|failures| failures.waiting.pop_front()) {
            return ReadFrom::Some(Err(failure));
        }
        let taken = self.pop_segments(engine);
        self.found(core, engine, taken.map(Ok), waker)
    }

    fn found<T>(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        taken: Option<T>,
        waker: &Waker,
    ) -> ReadFrom<T> {
        if let Some(taken) = taken {
            if self.receive == Receive::Idle {
                self.arm(core, engine);
            }
            return ReadFrom::Some(taken);
        }
        if let Some(error) = self.error.take() {
            return ReadFrom::Failed(error);
        }
        if !core.is_open() {
            return ReadFrom::Failed(Error::Closed);
        }
        self.readers.push(Waiter::Future(waker.clone()));
        self.arm(core, engine);
        ReadFrom::Nothing
    }

    /// Starts receiving for a tag of the completion API.
    ///
    /// # Errors
    ///
    /// If the socket closes.
    pub(crate) fn submit_read(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        tag: u64,
        standing: bool,
    ) -> Result<(), Error> {
        if !core.is_open() {
            return Err(Error::Closed);
        }
        while let Some(datagram) = self.pop(engine) {
            engine.emit(tag, core.id, standing, received(datagram));
            if !standing {
                return Ok(());
            }
        }
        if let Some(error) = self.error.take() {
            engine.emit(tag, core.id, standing, Event::Failed(error));
            if !standing {
                return Ok(());
            }
        }
        self.readers.push(if standing { Waiter::Standing(tag) } else { Waiter::Tag(tag) });
        self.arm(core, engine);
        Ok(())
    }

    /// Queues a datagram, or several in one payload; gives it back if there is no room.
    ///
    /// # Errors
    ///
    /// Inside: what an earlier operation met. Outside: `Full`.
    pub(crate) fn send(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        mut item: Outgoing,
    ) -> Result<Result<(), Error>, Full<Outgoing>> {
        if !core.is_open() {
            engine.drop_payload(item.payload);
            return Ok(Err(Error::Closed));
        }
        if let Some(error) = self.error.take() {
            engine.drop_payload(item.payload);
            return Ok(Err(error));
        }
        let empty = self.outbound_datagrams == 0;
        let full = self.outbound_datagrams >= engine.limits.datagrams_outbound_max
            || engine.outbound_total + item.payload.len() > engine.limits.outbound_bytes_total_max;
        if full && !empty {
            engine.refusals += 1;
            return Err(Full(item));
        }
        engine.outbound_total += item.payload.len();
        self.outbound_datagrams += item.datagrams();
        item.payload = engine.made_to_leave(item.payload, !empty);
        if self.outbound.capacity() == 0 {
            self.outbound = engine.driver.take_outgoing_list();
        }
        self.outbound.push(item);
        self.get_turn(core.id, engine);
        Ok(Ok(()))
    }

    fn get_turn(&mut self, id: EndpointId, engine: &mut Engine) {
        if !self.dirty {
            self.dirty = true;
            engine.dirty.push(id);
        }
    }

    /// Waits for room to send.
    pub(crate) fn wait_for_room(&mut self, waiter: Waiter) {
        self.writers.push(waiter);
    }

    /// Whether less than half of what may be queued is; else the waker is used when some of it has left.
    pub(crate) fn is_half_empty(&mut self, engine: &Engine, waker: &Waker) -> bool {
        let half_empty = self.outbound_datagrams * 2 < engine.limits.datagrams_outbound_max.max(1);
        if !half_empty {
            self.wait_for_room(Waiter::Future(waker.clone()));
        }
        half_empty
    }

    pub(crate) fn has_to_send(&self) -> bool {
        self.outbound_datagrams > 0
    }

    /// Sends what is queued as one batch, if none is under way.
    fn flush(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.sending.is_some() || self.outbound.is_empty() {
            return;
        }
        let socket = core.fd().clone();
        let exchange = match engine.driver.exchange(&socket) {
            Ok(exchange) => exchange,
            Err(error) => {
                let error = Error::from(error);
                let items = std::mem::take(&mut self.outbound);
                return items
                    .into_iter()
                    .for_each(|item| self.settle(core.id, engine, item, Err(error.duplicate())));
            }
        };
        let mut batch = std::mem::take(&mut self.outbound);
        let (mut count, mut datagrams) = (0, 0);
        while count < batch.len() && datagrams < BATCH_MAX {
            datagrams += batch[count].datagrams();
            count += 1;
        }
        if count < batch.len() {
            self.outbound = batch.split_off(count);
        }
        match core.submit(engine, SendBatch::new(socket, exchange, batch)) {
            Ok(token) => self.sending = Some(token),
            Err(Op::SendBatch(refused)) => {
                let SendBatch { mut items, .. } = *refused;
                items.append(&mut self.outbound);
                self.outbound = items;
            }
            Err(_) => {}
        }
    }

    fn on_sent(&mut self, core: &mut Common, engine: &mut Engine, mut items: Vec<Outgoing>) {
        self.sending = None;
        for item in items.drain(..) {
            let outcome = item.outcome();
            self.settle(core.id, engine, item, outcome);
        }
        engine.driver.keep_outgoing_list(items);
        if !self.outbound.is_empty() {
            self.get_turn(core.id, engine);
        }
        self.writers.wake_all(engine);
    }

    /// A datagram has left, or will not.
    fn settle(&mut self, id: EndpointId, engine: &mut Engine, item: Outgoing, outcome: Result<usize, Error>) {
        self.outbound_datagrams -= item.datagrams();
        engine.release_outbound(item.payload.len());
        let (tag, to) = (item.tag, item.to);
        engine.drop_payload(item.payload);
        match (tag, outcome) {
            (tag, Ok(sent)) => {
                engine.bytes_out += sent as u64;
                if let Some(tag) = tag {
                    engine.emit(tag, id, false, Event::Sent);
                }
            }
            (Some(tag), Err(error)) => engine.emit(tag, id, false, Event::Failed(error)),
            (None, Err(error)) => self.on_error(id, engine, to, error),
        }
    }

    /// The socket closes.
    pub(crate) fn stop(&mut self, id: EndpointId, engine: &mut Engine, abort: bool) {
        self.disarm(engine);
        self.readers.fail_all(engine, id, &Error::Closed);
        self.writers.fail_all(engine, id, &Error::Closed);
        engine.inbound_total -= self.inbound_bytes;
        (self.inbound_bytes, self.inbound_datagrams) = (0, 0);
        self.inbound.clear();
        if !abort {
            return;
        }
        for item in std::mem::take(&mut self.outbound) {
            self.outbound_datagrams -= item.datagrams();
            engine.release_outbound(item.payload.len());
            let tag = item.tag;
            engine.drop_payload(item.payload);
            if let Some(tag) = tag {
                engine.emit(tag, id, false, Event::Failed(Error::Closed));
            }
        }
        if let Some(token) = self.sending {
            engine.driver.cancel(token);
        }
    }
}

/// The event of a datagram.
fn received(datagram: Datagram) -> Event {
    let Datagram { lease, from, truncated, ecn, local } = datagram;
    Event::ReceivedFrom { lease, from, truncated, ecn, local: local.map(Box::new) }
}
