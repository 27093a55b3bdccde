//! Datagram sockets: the inbound queue, and sends in flight.
//!
//! A datagram that was accepted for sending goes out as one operation; several may be in flight. What one of
//! them meets (too long, refused by the peer's host) is reported by the next call on the socket, as the socket
//! itself would. Nothing is promised about the order of datagrams.
#![forbid(unsafe_code)]

use super::endpoint::{Common, EndpointId};
use super::engine::Engine;
use super::event::Event;
use super::waiter::{Waiter, Waiters};
use crate::buf::Payload;
use crate::driver::Token;
use crate::driver::completion::{Completion, Datagram, Done};
use crate::driver::op::{Op, RecvMsgMulti, SendTo};
use crate::error::{Error, Full};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Sends of one socket that are in flight at once.
const IN_FLIGHT_MAX: usize = 256;

/// The state of a datagram socket.
#[derive(Default)]
pub(crate) struct Datagrams {
    standing: Standing,
    inbound: VecDeque<Datagram>,
    inbound_bytes: usize,
    readers: Waiters,
    outbound: VecDeque<Outgoing>,
    /// In order of submission, in which most of them end.
    in_flight: VecDeque<(Token, Option<u64>)>,
    writers: Waiters,
    /// What the last operation met.
    error: Option<Error>,
    dirty: bool,
}

struct Outgoing {
    payload: Payload,
    to: Option<SocketAddr>,
    tag: Option<u64>,
}

/// The standing receive.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Standing {
    #[default]
    Idle,
    Armed(Token),
    /// Cancelled, and not yet ended.
    Ending,
    /// Waits for a buffer or a slot.
    Waiting,
}

/// What a reader finds.
pub(crate) enum ReadFrom {
    Datagram(Datagram),
    Failed(Error),
    Nothing,
}

impl Datagrams {
    pub(crate) fn on_completion(&mut self, core: &mut Common, engine: &mut Engine, completion: Completion) {
        if let Done::Sent(result, payload) = completion.done {
            self.on_sent(core, engine, completion.token, result, payload);
            return;
        }
        if !completion.more {
            self.standing = Standing::Idle;
        }
        match completion.done {
            Done::Datagram(Ok(datagram)) => self.deliver(core, engine, datagram),
            Done::Datagram(Err(Error::Canceled)) => {}
            Done::Datagram(Err(error)) => self.on_error(core.id, engine, error),
            Done::Starved => {
                self.standing = Standing::Waiting;
                engine.starve(core.id);
            }
            other => debug_assert!(false, "a datagram socket got {other:?}"),
        }
        if !completion.more && self.wants_more(engine) {
            self.arm(core, engine);
        }
    }

    pub(crate) fn on_turn(&mut self, core: &mut Common, engine: &mut Engine) {
        self.dirty = false;
        self.flush(core, engine);
        if self.standing == Standing::Waiting {
            self.standing = Standing::Idle;
        }
        if self.wants_more(engine) {
            self.arm(core, engine);
        }
    }

    /// Whether the receive should stand: somebody waits, or somebody read before and the queue has room.
    fn wants_more(&self, engine: &Engine) -> bool {
        !self.readers.is_empty() || (!self.inbound.is_empty() && self.has_inbound_room(engine))
    }

    fn has_inbound_room(&self, engine: &Engine) -> bool {
        self.inbound.len() < engine.limits.datagrams_inbound_max
            && self.inbound_bytes < engine.limits.inbound_bytes_max.max(engine.limits.buffer_bytes)
    }

    fn arm(&mut self, core: &mut Common, engine: &mut Engine) {
        if self.standing != Standing::Idle || !core.is_open() || !self.has_inbound_room(engine) {
            return;
        }
        self.standing = match core.submit(engine, RecvMsgMulti { socket: core.fd().clone() }) {
            Ok(token) => Standing::Armed(token),
            Err(_) => Standing::Waiting,
        };
    }

    fn deliver(&mut self, core: &mut Common, engine: &mut Engine, datagram: Datagram) {
        engine.bytes_in += datagram.lease.len() as u64;
        engine.truncated += u64::from(datagram.truncated);
        if !core.is_open() {
            return;
        }
        if let Some((tag, more)) = self.readers.take_tag() {
            let Datagram { lease, from, truncated } = datagram;
            engine.emit(tag, core.id, more, Event::ReceivedFrom { lease, from, truncated });
            return;
        }
        let low = engine.is_pool_low();
        let Datagram { lease, from, truncated } = datagram;
        let lease = if low { lease.detach() } else { lease };
        self.inbound_bytes += lease.len();
        engine.inbound_total += lease.len();
        self.inbound.push_back(Datagram { lease, from, truncated });
        self.readers.wake_all(engine);
        if !self.has_inbound_room(engine) {
            self.disarm(engine);
        }
    }

    fn disarm(&mut self, engine: &mut Engine) {
        if let Standing::Armed(token) = self.standing {
            engine.driver.cancel(token);
            self.standing = Standing::Ending;
        }
    }

    fn on_error(&mut self, id: EndpointId, engine: &mut Engine, error: Error) {
        match self.readers.take_tag() {
            Some((tag, more)) => engine.emit(tag, id, more, Event::Failed(error)),
            None => self.error = Some(error),
        }
        self.readers.wake_all(engine);
    }

    /// Takes a datagram; puts the waiter in line and arms the receive if there is none.
    pub(crate) fn read(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        waiter: impl FnOnce() -> Waiter,
    ) -> ReadFrom {
        if let Some(datagram) = self.inbound.pop_front() {
            self.inbound_bytes -= datagram.lease.len();
            engine.inbound_total -= datagram.lease.len();
            if self.standing == Standing::Idle {
                self.arm(core, engine);
            }
            return ReadFrom::Datagram(datagram);
        }
        if let Some(error) = self.error.take() {
            return ReadFrom::Failed(error);
        }
        if !core.is_open() {
            return ReadFrom::Failed(Error::Closed);
        }
        self.readers.push(waiter());
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
        while let Some(Datagram { lease, from, truncated }) = self.inbound.pop_front() {
            self.inbound_bytes -= lease.len();
            engine.inbound_total -= lease.len();
            engine.emit(tag, core.id, standing, Event::ReceivedFrom { lease, from, truncated });
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

    /// Queues a datagram; gives it back if there is no room.
    ///
    /// # Errors
    ///
    /// Inside: what an earlier operation met. Outside: `Full`.
    pub(crate) fn send(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        payload: Payload,
        to: Option<SocketAddr>,
        tag: Option<u64>,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        if !core.is_open() {
            engine.drop_payload(payload);
            return Ok(Err(Error::Closed));
        }
        if let Some(error) = self.error.take() {
            engine.drop_payload(payload);
            return Ok(Err(error));
        }
        let empty = self.outbound.is_empty() && self.in_flight.is_empty();
        let full = self.outbound.len() + self.in_flight.len() >= engine.limits.datagrams_outbound_max
            || engine.outbound_total + payload.len() > engine.limits.outbound_bytes_total_max;
        if full && !empty {
            engine.refusals += 1;
            return Err(Full(payload));
        }
        engine.outbound_total += payload.len();
        let payload = if engine.is_pool_low() && !empty { payload.detach() } else { payload };
        self.outbound.push_back(Outgoing { payload, to, tag });
        if !self.dirty {
            self.dirty = true;
            engine.dirty.push(core.id);
        }
        Ok(Ok(()))
    }

    /// Waits for room to send.
    pub(crate) fn wait_for_room(&mut self, waiter: Waiter) {
        self.writers.push(waiter);
    }

    pub(crate) fn has_to_send(&self) -> bool {
        !self.outbound.is_empty() || !self.in_flight.is_empty()
    }

    fn flush(&mut self, core: &mut Common, engine: &mut Engine) {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let Some(Outgoing { payload, to, tag }) = self.outbound.pop_front() else { return };
            let socket = core.fd().clone();
            match core.submit(engine, SendTo { socket, payload, to }) {
                Ok(token) => self.in_flight.push_back((token, tag)),
                Err(Op::SendTo(SendTo { payload, .. })) => {
                    return self.outbound.push_front(Outgoing { payload, to, tag });
                }
                Err(_) => return,
            }
        }
    }

    fn on_sent(
        &mut self,
        core: &mut Common,
        engine: &mut Engine,
        token: Token,
        result: Result<usize, Error>,
        payload: Payload,
    ) {
        engine.release_outbound(payload.len());
        engine.drop_payload(payload);
        let index = self.in_flight.iter().position(|(other, _)| *other == token);
        let tag = index.and_then(|index| self.in_flight.remove(index)).and_then(|(_, tag)| tag);
        let failed = match result {
            Ok(sent) => {
                engine.bytes_out += sent as u64;
                None
            }
            Err(error) => Some(error),
        };
        match (tag, failed) {
            (Some(tag), None) => engine.emit(tag, core.id, false, Event::Sent),
            (Some(tag), Some(error)) => engine.emit(tag, core.id, false, Event::Failed(error)),
            (None, Some(error)) => self.on_error(core.id, engine, error),
            (None, None) => {}
        }
        if !self.outbound.is_empty() && !self.dirty {
            self.dirty = true;
            engine.dirty.push(core.id);
        }
        self.writers.wake_all(engine);
    }

    /// The socket closes.
    pub(crate) fn stop(&mut self, id: EndpointId, engine: &mut Engine, abort: bool) {
        self.disarm(engine);
        self.readers.fail_all(engine, id, &Error::Closed);
        self.writers.fail_all(engine, id, &Error::Closed);
        engine.inbound_total -= self.inbound_bytes;
        self.inbound_bytes = 0;
        self.inbound.clear();
        if !abort {
            return;
        }
        for Outgoing { payload, tag, .. } in std::mem::take(&mut self.outbound) {
            engine.release_outbound(payload.len());
            engine.drop_payload(payload);
            if let Some(tag) = tag {
                engine.emit(tag, id, false, Event::Failed(Error::Closed));
            }
        }
        for (token, _) in &self.in_flight {
            engine.driver.cancel(*token);
        }
    }
}
