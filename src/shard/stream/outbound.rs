//! The outbound side of a connection: queueing, sending, shutting down.
#![forbid(unsafe_code)]

use super::*;

/// Pool buffers that one connection's outbound queue may hold before payloads are copied out.
const POOLED_OUTBOUND_MAX: usize = 32;

impl Stream {
    /// Whether `bytes` more may be queued. One payload always may if nothing is queued.
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
        self.queued_total += len as u64;
        self.tags.extend(tag.map(|tag| (tag, self.queued_total)));
        if len == 0 {
            engine.drop_payload(payload);
            self.emit_sent(core.id, engine);
            return Ok(Ok(()));
        }
        self.outbound_bytes += len;
        engine.outbound_total += len;
        let waits = self.sending.is_some() || !self.outbound.is_empty();
        let pinned = self.outbound.pooled() >= POOLED_OUTBOUND_MAX || (waits && engine.is_pool_low());
        self.outbound.push(if pinned { payload.detach() } else { payload });
        if self.sending.is_none() {
            self.make_dirty(core.id, engine);
        }
        Ok(Ok(()))
    }

    fn send_refusal(&self, core: &Common) -> Option<Error> {
        if let Some(error) = &self.send_error {
            return Some(error.duplicate());
        }
        if let Some(Connecting::Failed(error)) = &self.connecting {
            return Some(error.duplicate());
        }
        (!core.is_open() || !matches!(self.shutdown, Shut::No)).then_some(Error::Closed)
    }

    /// Waits for room to send.
    pub(crate) fn wait_for_room(&mut self, engine: &mut Engine, waiter: Waiter) {
        // Whoever waits has something queued, so the end of a send will wake it.
        waiter.replace(&mut self.writer, engine);
    }

    /// Whether everything queued has left, or why it cannot; puts the waiter in place if not yet.
    pub(crate) fn flushed(&mut self, engine: &mut Engine, waiter: Waiter) -> Option<Result<(), Error>> {
        if let Some(error) = &self.send_error {
            return Some(Err(error.duplicate()));
        }
        if !self.has_to_send() {
            return Some(Ok(()));
        }
        waiter.replace(&mut self.flusher, engine);
        None
    }

    pub(crate) fn has_to_send(&self) -> bool {
        self.sending.is_some() || !self.outbound.is_empty() || matches!(self.shutdown, Shut::Wanted(..))
    }

    /// Submits the head of the chain if no send is in flight.
    pub(super) fn flush(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.sending.is_some() || self.connecting.is_some() || self.send_error.is_some() {
            return;
        }
        if self.outbound.is_empty() {
            self.shut_down(core, engine);
            return;
        }
        let before = self.outbound.bytes();
        let op = self.next_send(core.fd().clone(), engine);
        let bytes = before - self.outbound.bytes();
        match core.submit(engine, op) {
            Ok(token) => self.sending = Some(Sending { token, bytes }),
            Err(Op::Send(op)) => self.outbound.put_back_one(op.payload),
            Err(Op::SendMsg(op)) => self.outbound.put_back(op.batch, 0, &mut |_| {}),
            Err(_) => {}
        }
    }

    fn next_send(&mut self, socket: FdRef, engine: &Engine) -> Op {
        if self.outbound.len() > 1 && !engine.is_rare(Rare::SmallBatch) {
            return SendMsg::new(socket, self.outbound.take_batch()).into();
        }
        let payload = self.outbound.pop().expect("the chain is not empty");
        if payload.len() >= engine.zero_copy_bytes_min {
            return Send::zero_copy(socket, payload).into();
        }
        Send::new(socket, payload).into()
    }

    pub(super) fn on_sent(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        token: Token,
        result: Result<usize, Error>,
        mut payload: Payload,
    ) {
        if self.sending.as_ref().is_none_or(|sending| sending.token != token) {
            // The late release of a zero-copy send.
            self.unreleased -= 1;
            engine.drop_payload(payload);
            return;
        }
        let sent = *result.as_ref().unwrap_or(&0);
        if sent >= payload.len() {
            engine.drop_payload(payload);
        } else {
            payload.advance(sent);
            self.outbound.put_back_one(payload);
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
        let whole = matches!((&result, &self.sending), (Ok(sent), Some(sending)) if *sent == sending.bytes);
        if whole {
            self.unreleased += 1;
            self.on_progress(core, engine, result);
        }
    }

    /// A send has ended: bytes have left, or the connection has failed.
    pub(super) fn on_progress(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        result: Result<usize, Error>,
    ) {
        self.sending = None;
        match result {
            Ok(sent) => {
                engine.bytes_out += sent as u64;
                self.sent_total += sent as u64;
                self.outbound_bytes -= sent;
                engine.release_outbound(sent);
                self.emit_sent(core.id, engine);
            }
            Err(Error::Canceled) if core.is_aborting() => self.fail_outbound(core.id, engine, &Error::Closed),
            Err(error) => self.fail_outbound(core.id, engine, &error),
        }
        if std::mem::take(&mut self.end_held) {
            self.on_fin(core, engine);
        }
        if !self.outbound.is_empty() || matches!(self.shutdown, Shut::Wanted(..)) {
            self.make_dirty(core.id, engine);
        } else {
            self.flusher.wake(engine);
        }
        if self.outbound_bytes <= engine.limits.outbound_bytes_max / 2 {
            self.writer.wake(engine);
        }
    }

    fn emit_sent(&mut self, id: EndpointId, engine: &mut Engine) {
        while self.tags.front().is_some_and(|(_, end)| *end <= self.sent_total) {
            let Some((tag, _)) = self.tags.pop_front() else { return };
            engine.emit(tag, id, false, Event::Sent);
        }
    }

    /// The outbound side is over: drops what is queued and tells everybody who waits.
    pub(crate) fn fail_outbound(&mut self, id: EndpointId, engine: &mut Engine, error: &Error) {
        while let Some(payload) = self.outbound.pop() {
            engine.drop_payload(payload);
        }
        let in_flight = self.sending.as_ref().map_or(0, |sending| sending.bytes);
        engine.release_outbound(self.outbound_bytes - in_flight);
        self.outbound_bytes = in_flight;
        if self.send_error.is_none() {
            self.send_error = Some(error.duplicate());
        }
        for (tag, _) in std::mem::take(&mut self.tags) {
            engine.emit(tag, id, false, Event::Failed(error.duplicate()));
        }
        self.writer.wake(engine);
        self.flusher.wake(engine);
        if let Shut::Wanted(_, mut waiter) = std::mem::replace(&mut self.shutdown, Shut::Done) {
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
        if !matches!(self.shutdown, Shut::No) {
            return false;
        }
        self.shutdown = Shut::Wanted(how, waiter);
        self.make_dirty(core.id, engine);
        true
    }

    fn shut_down(&mut self, core: &mut Common, engine: &mut Engine) {
        self.shutdown = match std::mem::take(&mut self.shutdown) {
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
        if let Shut::InFlight(waiter) = std::mem::replace(&mut self.shutdown, Shut::Done) {
            waiter.notify(engine, core.id, false, || match result {
                Ok(()) => Event::ShutDown,
                Err(error) => Event::Failed(error),
            });
        }
        self.flusher.wake(engine);
    }

    /// Whether a shutdown has ended; puts the waiter in place if not.
    pub(crate) fn shutdown_done(&mut self, engine: &mut Engine, waiter: Waiter) -> bool {
        match &mut self.shutdown {
            Shut::Wanted(_, place) | Shut::InFlight(place) => {
                waiter.replace(place, engine);
                false
            }
            _ => true,
        }
    }
}
