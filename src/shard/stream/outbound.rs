//! The outbound side of a connection: queueing, sending, shutting down.
#![forbid(unsafe_code)]

use super::*;
use crate::buf::{BATCH_MAX, Batch};
use crate::driver::Descriptor;
use crate::driver::op::is_blocked;
use std::io;

/// Pool buffers that one connection's outbound queue may hold before payloads are copied out.
const POOLED_OUTBOUND_MAX: u16 = 32;

/// A payload up to this long is copied to its neighbours rather than pointed at: a kernel takes about as long for one
/// more piece as a copy of some hundred bytes takes.
const SMALL_BYTES_MAX: usize = 256;

/// Most bytes that are copied into one payload.
const JOINED_BYTES_MAX: usize = 16 * 1024;

/// A payload up to this long is sent by a call where sends are calls; what a longer one saves is nothing beside its copy.
const CALL_BYTES_MAX: usize = 64 * 1024;

impl Stream {
    /// Whether `bytes` more may be queued. One payload always may if nothing is queued.
    #[inline]
    pub(crate) fn has_room(&self, engine: &Engine, bytes: usize) -> bool {
        if self.outbound_bytes == 0 {
            return true;
        }
        let limits = &engine.limits;
        self.outbound_bytes + bytes <= limits.outbound_bytes_max
            && engine.outbound_total + bytes <= limits.outbound_bytes_total_max
    }

    /// Queues a payload; gives it back if there is no room.
    ///
    /// # Errors
    ///
    /// Inside: the error of the connection, which is reported by each further call. Outside: `Full`.
    #[inline]
    pub(crate) fn send(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        payload: Payload,
        tag: Option<u64>,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        if let Some(error) = self.send_refusal(core) {
            engine.drop_payload(payload);
            return Ok(Err(error));
        }
        if !self.has_room(engine, payload.len()) {
            engine.refusals += 1;
            return Err(Full(payload));
        }
        let len = payload.len();
        if let Some(tag) = tag {
            self.queue_tag(engine, tag, len);
        }
        if len == 0 {
            engine.drop_payload(payload);
            self.emit_sent(core.id, engine);
            return Ok(Ok(()));
        }
        self.outbound_bytes += len;
        engine.outbound_total += len;
        let waits = self.sending.is_some() || !self.outbound.is_empty();
        let crowded = self.pooled >= POOLED_OUTBOUND_MAX;
        self.queue(engine, if crowded { payload.detach() } else { engine.made_to_leave(payload, waits) });
        if self.sending.is_none() {
            self.make_dirty(core.id, engine);
        }
        Ok(Ok(()))
    }

    /// Queues payloads that stay together: all of them, or none if there is no room for all. As with one, they always
    /// fit if nothing is queued.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); `payloads` is left as it was then.
    pub(crate) fn send_together(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        payloads: &mut Vec<Payload>,
    ) -> Result<Result<(), Error>, Full<()>> {
        if let Some(error) = self.send_refusal(core) {
            return Ok(Err(error));
        }
        let len = payloads.iter().map(Payload::len).sum();
        if !self.has_room(engine, len) {
            engine.refusals += 1;
            return Err(Full(()));
        }
        self.outbound_bytes += len;
        engine.outbound_total += len;
        for payload in payloads.drain(..) {
            if payload.is_empty() {
                engine.drop_payload(payload);
                continue;
            }
            let waits = self.sending.is_some() || !self.outbound.is_empty();
            let crowded = self.pooled >= POOLED_OUTBOUND_MAX;
            self.queue(engine, if crowded { payload.detach() } else { engine.made_to_leave(payload, waits) });
        }
        if self.sending.is_none() && !self.outbound.is_empty() {
            self.make_dirty(core.id, engine);
        }
        Ok(Ok(()))
    }

    #[inline]
    pub(super) fn send_refusal(&self, core: &Common) -> Option<Error> {
        if !core.is_open() {
            return Some(self.send_error().map_or(Error::Closed, Error::duplicate));
        }
        let cold = self.cold.as_ref()?;
        if let Some(error) = &cold.send_error {
            return Some(error.duplicate());
        }
        if let Some(Connecting::Failed(error)) = &cold.connecting {
            return Some(error.duplicate());
        }
        (!matches!(cold.shutdown, Shut::No)).then_some(Error::Closed)
    }

    /// Waits for room to send.
    pub(crate) fn wait_for_room(&mut self, engine: &mut Engine, waiter: Waiter) {
        // Whoever waits has something queued, so the end of a send will wake it.
        waiter.replace(&mut self.cold().writer, engine);
    }

    /// Waits for room on behalf of the completion API.
    ///
    /// # Errors
    ///
    /// If the outbound side is over; `false` inside if another submission waits.
    pub(crate) fn submit_writable(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        tag: u64,
    ) -> Result<bool, Error> {
        if let Some(error) = self.send_refusal(core) {
            return Err(error);
        }
        if self.outbound_bytes == 0 {
            engine.emit(tag, core.id, false, Event::Writable);
            return Ok(true);
        }
        let free = !self.cold().writer.is_tag();
        if free {
            Waiter::Tag(tag).replace(&mut self.cold().writer, engine);
        }
        Ok(free)
    }

    /// Whether everything queued has left, or why it cannot; puts the waiter in place if not yet.
    pub(crate) fn flushed(&mut self, engine: &mut Engine, waiter: Waiter) -> Option<Result<(), Error>> {
        if let Some(error) = self.send_error() {
            return Some(Err(error.duplicate()));
        }
        if !self.has_to_send() {
            return Some(Ok(()));
        }
        waiter.replace(&mut self.cold().flusher, engine);
        None
    }

    pub(crate) fn has_to_send(&self) -> bool {
        self.outbound_bytes > 0 || self.sending.is_some() || self.wants_shutdown()
    }

    #[inline]
    pub(super) fn queue(&mut self, engine: &mut Engine, payload: Payload) {
        self.count_in(&payload);
        engine.outbound.push_back(&mut self.outbound, payload);
    }

    #[inline]
    fn pop(&mut self, engine: &mut Engine) -> Option<Payload> {
        let payload = engine.outbound.pop_front(&mut self.outbound)?;
        self.count_out(&payload);
        Some(payload)
    }

    /// Bytes queued or in flight.
    #[inline]
    pub(crate) fn outbound_bytes(&self) -> usize {
        self.outbound_bytes
    }

    /// Bytes that have left since they are counted, which is from a call on that finds something waiting, or from joining
    /// a broadcast on.
    pub(crate) fn bytes_left(&mut self) -> u64 {
        if self.outbound_bytes > 0 {
            return self.cold().sent_total;
        }
        self.cold.as_ref().map_or(0, |cold| cold.sent_total)
    }

    /// Gives the system what it takes without waiting, unless a send is in flight, which has to end first. What a send
    /// meets here is met again, and told, by the next operation on the connection.
    pub(crate) fn push_out(&mut self, core: &mut Common, engine: &mut Engine) {
        let blocked = self.sending.is_some() || self.connecting().is_some() || self.send_error().is_some();
        while let Some(mut payload) = if blocked { None } else { self.pop(engine) } {
            let sent = usize::try_from(core.fd().descriptor().send(&payload)).unwrap_or(0);
            self.count_sent(core.id, engine, sent);
            payload.advance(sent);
            if !payload.is_empty() {
                return self.put_back(engine, payload);
            }
            engine.drop_payload(payload);
        }
    }

    /// Offers the system bytes that nobody has copied yet, if nothing is ahead of them: how many it took.
    pub(crate) fn try_send(&mut self, core: &mut Common, engine: &mut Engine, bytes: &[u8]) -> usize {
        let idle = self.sending.is_none() && self.outbound_bytes == 0 && self.connecting().is_none();
        if !idle || self.send_refusal(core).is_some() {
            return 0;
        }
        // What a send meets here is met again, and told, by the next operation on the connection.
        let sent = usize::try_from(core.fd().descriptor().send(bytes)).unwrap_or(0);
        engine.bytes_out += sent as u64;
        if let Some(cold) = &mut self.cold {
            cold.sent_total += sent as u64;
        }
        sent
    }

    /// Bytes have left.
    #[inline]
    fn count_sent(&mut self, id: EndpointId, engine: &mut Engine, sent: usize) {
        engine.bytes_out += sent as u64;
        self.outbound_bytes -= sent;
        engine.release_outbound(sent);
        if let Some(cold) = &mut self.cold {
            cold.sent_total += sent as u64;
            self.emit_sent(id, engine);
        }
    }

    /// Puts an unsent payload back at the front.
    fn put_back(&mut self, engine: &mut Engine, payload: Payload) {
        self.count_in(&payload);
        engine.outbound.push_front(&mut self.outbound, payload);
    }

    #[inline]
    pub(super) fn count_out(&mut self, payload: &Payload) {
        self.pooled -= u16::from(payload.is_pooled());
        if let Some(fan) = self.fan_mut() {
            fan.count_out(payload);
        }
    }

    #[inline]
    fn count_in(&mut self, payload: &Payload) {
        self.pooled += u16::from(payload.is_pooled());
        if let Some(fan) = self.fan_mut() {
            fan.count_in(payload);
        }
    }

    /// Submits the head of the queue if no send is in flight.
    #[inline]
    pub(super) fn flush(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.sending.is_some() || self.connecting().is_some() || self.send_error().is_some() {
            return;
        }
        if engine.driver.sends_by_calls() {
            self.send_now(core, engine);
        }
        if self.outbound.is_empty() {
            self.shut_down(core, engine);
            return;
        }
        let op = self.next_send(core.fd().clone(), engine);
        match core.submit(engine, op) {
            Ok(token) => self.sending = Some(token),
            Err(Op::Send(op)) => self.put_back(engine, op.payload),
            Err(Op::SendMsg(op)) => self.take_back(engine, op.batch, 0),
            Err(_) => {}
        }
    }

    /// Sends the payload by a call, as far as that is possible without waiting, if it is the only one and not large.
    fn send_now(&mut self, core: &mut Common, engine: &mut Engine) {
        let fits = |payload: &Payload| payload.len() <= CALL_BYTES_MAX;
        if !engine.outbound.is_single(&self.outbound)
            || !engine.outbound.front(&self.outbound).is_some_and(fits)
        {
            return;
        }
        let Some(payload) = self.pop(engine) else { return };
        let result = core.fd().descriptor().send(&payload);
        if is_blocked(result) {
            return self.put_back(engine, payload);
        }
        engine.driver.count_call();
        let result = usize::try_from(result).map_err(|_| Error::from_raw(result));
        self.on_payload(core, engine, result, payload);
    }

    #[inline]
    fn next_send(&mut self, socket: FdRef, engine: &mut Engine) -> Op {
        if !engine.outbound.is_single(&self.outbound) && !engine.is_rare(Rare::SmallBatch) {
            return self.next_batch(socket, engine);
        }
        let payload = self.pop(engine).expect("the queue is not empty");
        self.single(socket, payload, engine)
    }

    fn next_batch(&mut self, socket: FdRef, engine: &mut Engine) -> Op {
        let first = self.next_piece(engine).expect("the queue is not empty");
        if self.outbound.is_empty() {
            return self.single(socket, first, engine);
        }
        let mut batch = engine.batches.pop().unwrap_or_default();
        batch.push(first);
        while batch.payloads().len() < BATCH_MAX {
            let Some(payload) = self.next_piece(engine) else { break };
            batch.push(payload);
        }
        SendMsg::new(socket, batch).into()
    }

    /// The next payload, or a copy of the small ones that stand together at the front.
    fn next_piece(&mut self, engine: &mut Engine) -> Option<Payload> {
        let mut left = JOINED_BYTES_MAX;
        let is_next = |payload: &&Payload| {
            let fits = payload.len() <= SMALL_BYTES_MAX.min(left);
            left -= if fits { payload.len() } else { 0 };
            fits
        };
        let count = engine.outbound.iter(&self.outbound).take_while(is_next).count();
        if count < 2 {
            return self.pop(engine);
        }
        let mut joined = Vec::with_capacity(JOINED_BYTES_MAX - left);
        for _ in 0..count {
            let payload = self.pop(engine)?;
            joined.extend_from_slice(&payload);
            engine.drop_payload(payload);
        }
        Some(joined.into())
    }

    /// The send of one payload.
    #[inline]
    fn single(&mut self, socket: FdRef, payload: Payload, engine: &Engine) -> Op {
        let bytes = payload.len();
        if bytes >= engine.zero_copy_bytes_min && self.wants_zero_copy(&socket) {
            self.cold().in_place_bytes = bytes;
            return Send::zero_copy(socket, payload).into();
        }
        Send::new(socket, payload).into()
    }

    /// A copy is saved only where a device reads the payload, and not for a peer on this machine.
    fn wants_zero_copy(&mut self, socket: &FdRef) -> bool {
        let cold = self.cold();
        if cold.zero_copy == ZeroCopy::Unknown {
            let remote = is_remote(socket.descriptor());
            cold.zero_copy = if remote { ZeroCopy::Wanted } else { ZeroCopy::Useless };
        }
        cold.zero_copy == ZeroCopy::Wanted
    }

    /// A batch is over of which `sent` bytes left.
    fn take_back(&mut self, engine: &mut Engine, mut batch: Batch, sent: usize) {
        batch.take_back(sent, |payload| match payload.is_empty() {
            true => engine.drop_payload(payload),
            false => self.put_back(engine, payload),
        });
        engine.keep_batch(batch);
    }

    pub(super) fn on_sent_batch(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        result: Result<usize, Error>,
        batch: Batch,
    ) {
        self.take_back(engine, batch, *result.as_ref().unwrap_or(&0));
        self.on_progress(core, engine, result);
    }

    #[inline]
    pub(super) fn on_sent(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        token: Token,
        result: Result<usize, Error>,
        payload: Payload,
    ) {
        if self.sending != Some(token) {
            // The late release of a zero-copy send.
            self.cold().unreleased -= 1;
            engine.drop_payload(payload);
            return;
        }
        self.on_payload(core, engine, result, payload);
    }

    /// Bytes of a payload have left, or it could not be sent.
    #[inline]
    fn on_payload(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        result: Result<usize, Error>,
        mut payload: Payload,
    ) {
        let sent = *result.as_ref().unwrap_or(&0);
        if sent >= payload.len() {
            engine.drop_payload(payload);
        } else {
            payload.advance(sent);
            self.put_back(engine, payload);
        }
        self.on_progress(core, engine, result);
    }

    pub(super) fn on_sent_early(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        result: Result<usize, Error>,
    ) {
        // A partial or failed one is dealt with when its payload comes back.
        let whole = matches!(result, Ok(sent) if sent == self.cold().in_place_bytes);
        if whole && self.sending.is_some() {
            self.cold().unreleased += 1;
            self.on_progress(core, engine, result);
        }
    }

    /// A send has ended: bytes have left, or the connection has failed.
    #[inline]
    pub(super) fn on_progress(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        result: Result<usize, Error>,
    ) {
        self.sending = None;
        match result {
            Ok(sent) => self.count_sent(core.id, engine, sent),
            // Our own doing: the connection closes at once.
            Err(Error::Canceled) if core.is_hurrying() => {}
            Err(error) => self.fail_outbound(core.id, engine, &error),
        }
        if core.is_hurrying() {
            self.fail_outbound(core.id, engine, &Error::Closed);
        }
        if std::mem::take(&mut self.end_held) {
            self.on_fin(core, engine);
        }
        let more = !self.outbound.is_empty() || self.wants_shutdown();
        if more {
            self.make_dirty(core.id, engine);
        }
        let Some(cold) = &mut self.cold else { return };
        if !more {
            cold.flusher.wake(engine);
        }
        if self.outbound_bytes <= engine.limits.outbound_bytes_max / 2 {
            std::mem::take(&mut cold.writer).notify(engine, core.id, false, || Event::Writable);
        }
    }

    /// Remembers that `tag` is to be told when all that is queued and `bytes` more have left.
    fn queue_tag(&mut self, engine: &mut Engine, tag: u64, bytes: usize) {
        let ahead = (self.outbound_bytes + bytes) as u64;
        let cold = self.cold();
        engine.tags.push_back(&mut cold.tags, (tag, cold.sent_total + ahead));
    }

    fn emit_sent(&mut self, id: EndpointId, engine: &mut Engine) {
        let Some(cold) = &mut self.cold else { return };
        while engine.tags.front(&cold.tags).is_some_and(|(_, end)| *end <= cold.sent_total) {
            let Some((tag, _)) = engine.tags.pop_front(&mut cold.tags) else { return };
            engine.emit(tag, id, false, Event::Sent);
        }
    }

    /// The outbound side is over: drops what is queued and tells everybody who waits.
    pub(crate) fn fail_outbound(&mut self, id: EndpointId, engine: &mut Engine, error: &Error) {
        // What is in flight still counts until its send has ended.
        while let Some(payload) = self.pop(engine) {
            self.outbound_bytes -= payload.len();
            engine.release_outbound(payload.len());
            engine.drop_payload(payload);
        }
        let cold = self.cold();
        if cold.send_error.is_none() {
            cold.send_error = Some(error.duplicate());
        }
        while let Some((tag, _)) = engine.tags.pop_front(&mut cold.tags) {
            engine.emit(tag, id, false, Event::Failed(error.duplicate()));
        }
        cold.writer.fail(engine, id, error);
        cold.flusher.wake(engine);
        if let Shut::Wanted(_, mut waiter) = std::mem::replace(&mut cold.shutdown, Shut::Done) {
            waiter.fail(engine, id, error);
        }
    }

    /// Shuts down once everything queued has left; `false` if that was asked before.
    pub(crate) fn start_shutdown(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        how: std::net::Shutdown,
        waiter: Waiter,
    ) -> bool {
        if !matches!(self.cold().shutdown, Shut::No) {
            return false;
        }
        self.cold().shutdown = Shut::Wanted(how, waiter);
        self.make_dirty(core.id, engine);
        true
    }

    fn shut_down(&mut self, core: &mut Common, engine: &mut Engine) {
        let Some(cold) = &mut self.cold else { return };
        cold.shutdown = match std::mem::take(&mut cold.shutdown) {
            Shut::Wanted(how, waiter) => {
                match core.submit(engine, Shutdown { socket: core.fd().clone(), how }) {
                    Ok(_) => Shut::InFlight(waiter),
                    Err(_) => Shut::Wanted(how, waiter),
                }
            }
            other => other,
        };
    }

    pub(super) fn on_shut_down(&mut self, core: &mut Common, engine: &mut Engine, result: Result<(), Error>) {
        let cold = self.cold();
        if let Shut::InFlight(waiter) = std::mem::replace(&mut cold.shutdown, Shut::Done) {
            waiter.notify(engine, core.id, false, || match result {
                Ok(()) => Event::ShutDown,
                Err(error) => Event::Failed(error),
            });
        }
        cold.flusher.wake(engine);
    }

    /// Whether a shutdown has ended; puts the waiter in place if not.
    pub(crate) fn shutdown_done(&mut self, engine: &mut Engine, waiter: Waiter) -> bool {
        match &mut self.cold().shutdown {
            Shut::Wanted(_, place) | Shut::InFlight(place) => {
                waiter.replace(place, engine);
                false
            }
            _ => true,
        }
    }
}

/// Whether the peer of a connection is on another machine, as far as its address tells.
fn is_remote(socket: &Descriptor) -> bool {
    let ip = |address: io::Result<SockAddr>| Some(address.ok()?.as_socket()?.ip().to_canonical());
    match (ip(socket.peer_addr()), ip(socket.local_addr())) {
        (Some(peer), Some(local)) => !peer.is_loopback() && peer != local,
        _ => false,
    }
}
