//! Sending: what goes to the endpoint at once, what is held back, and what is told of the rest.
#![forbid(unsafe_code)]

use super::ids::SocketId;
use super::local::{DATAGRAM_SENT, Local};
use super::message::{Event, Trouble};
use super::socket::{State, Way};
use crate::buf::Payload;
use crate::error::Full;
use std::net::SocketAddr;

/// From so many bytes on a copy costs more than a system call that could have been shared with other sends.
const BORROWED_BYTES_MIN: usize = 4096;

/// The tag of a request to be told when everything queued has left: a send of nothing.
pub(super) const NOTICE: u64 = 4;

impl Local {
    /// Sends on a socket, if the row is still that of the id.
    #[inline]
    pub(super) fn send(&mut self, row: usize, id: SocketId, payload: Payload, low: bool) {
        if !self.has(row, id) {
            return self.graves.push(payload);
        }
        let socket = &mut self.sockets[row];
        if socket.state == State::Datagrams {
            let destination = socket.rest.as_ref().and_then(|rest| rest.destination);
            return match destination {
                Some(to) => self.send_to(row, id, to, payload),
                None => self.graves.push(payload),
            };
        }
        if socket.adopted {
            return self.send_foreign(row, payload, low);
        }
        let bytes = payload.len();
        let mut payload = Some(payload);
        let mut way = socket.way(low, 0);
        let mut sent = None;
        if let (Some(endpoint), true) = (socket.endpoint, bytes > 0 && socket.state != State::Connecting) {
            sent = self
                .shard
                .core
                .with(|state| {
                    state.stream(endpoint, |stream, core, engine| {
                        way = socket.way(low, stream.outbound_bytes());
                        let payload = payload.take_if(|_| matches!(way, Way::Out { .. }))?;
                        Some(stream.send(core, engine, payload, None))
                    })
                })
                .ok()
                .and_then(Result::ok)
                .flatten();
        }
        match (way, sent, payload) {
            (Way::Out { direct }, Some(Ok(Ok(()))), _) => self.on_queued(row, bytes, direct, low),
            // An earlier send has failed, so the connection is over.
            (_, Some(Ok(Err(_))), _) => self.end(row),
            (_, Some(Err(Full(payload))), _) => self.on_full(row, payload),
            (Way::Early | Way::Low, None, Some(payload)) if bytes > 0 => {
                self.sockets[row].hold(payload, way);
                self.on_held(row, low);
            }
            (_, _, payload) => self.graves.extend(payload),
        }
    }

    /// As [`send`](Self::send), of bytes that are copied only as far as the system does not take them at once.
    pub(super) fn send_borrowed(&mut self, row: usize, id: SocketId, bytes: &[u8], low: bool) {
        let mut sent = 0;
        if !low && bytes.len() >= BORROWED_BYTES_MIN && self.has(row, id) {
            sent = self.try_send(row, bytes);
        }
        if sent > 0 {
            self.on_queued(row, sent, true, low);
        }
        if sent < bytes.len() || sent == 0 {
            self.send(row, id, bytes[sent..].to_vec().into(), low);
        }
    }

    /// Offers the system bytes; how many it took.
    fn try_send(&mut self, row: usize, bytes: &[u8]) -> usize {
        let socket = &self.sockets[row];
        let Some(endpoint) = socket.endpoint.filter(|_| socket.state == State::Connected) else { return 0 };
        let sent = self.shard.core.with(|state| {
            state.stream(endpoint, |stream, core, engine| stream.try_send(core, engine, bytes))
        });
        sent.and_then(|sent| sent).unwrap_or(0)
    }

    /// The endpoint has taken a payload.
    #[inline]
    pub(super) fn on_queued(&mut self, row: usize, bytes: usize, direct: bool, low: bool) {
        self.sockets[row].count_queued(bytes, direct);
        let meter = self.meter(row);
        meter.written_at.set(self.seconds);
        if direct {
            meter.written.add(bytes as u64);
        } else {
            self.on_held(row, low);
        }
    }

    /// Something waits. What has low priority is queued before it is written, so it counts whole.
    pub(super) fn on_held(&mut self, row: usize, low: bool) {
        let mut pending = self.measure(row);
        if !low && self.sockets[row].is_warning_due(pending) && self.sockets[row].state != State::Connecting {
            // Within a turn nothing has left yet; only what the system does not take is worth a warning.
            self.push_out(row);
            pending = self.measure(row);
        }
        self.warn(row, pending);
        if pending > 0 {
            self.ask(row);
        }
    }

    /// Tells what is pending, if it is that much.
    fn warn(&mut self, row: usize, pending: u64) {
        let socket = &mut self.sockets[row];
        if socket.is_warning_due(pending) {
            socket.warn();
            let pending_kib = pending.div_ceil(1024) as usize;
            let (id, uid) = (socket.id, socket.uid);
            self.events.push_back(Event::Warning { id, uid, pending_kib });
        }
    }

    /// Nothing is pending any more; tells that, if it was told of before.
    fn relax(&mut self, row: usize) {
        let socket = &mut self.sockets[row];
        let (id, uid) = (socket.id, socket.uid);
        if socket.relax() {
            self.events.push_back(Event::Warning { id, uid, pending_kib: 0 });
        }
    }

    /// More waits than `Limits` allow. A stream with a hole in it is of no use to anybody.
    pub(super) fn on_full(&mut self, row: usize, payload: Payload) {
        self.graves.push(payload);
        self.fail(row, Trouble::System("too much waits to be sent".into()));
    }

    /// Bytes of a socket that its endpoint has and the system has not.
    fn unsent(&self, row: usize) -> usize {
        let socket = &self.sockets[row];
        let Some(endpoint) = socket.endpoint else {
            let foreign = socket.rest.as_ref().and_then(|rest| rest.foreign.as_ref());
            return foreign.map_or(0, |foreign| foreign.unsent());
        };
        let unsent =
            self.shard.core.with(|state| state.stream(endpoint, |stream, _, _| stream.outbound_bytes()));
        unsent.and_then(|unsent| unsent).unwrap_or(0)
    }

    /// Bytes pending, which are taken down.
    fn measure(&self, row: usize) -> u64 {
        let pending = self.sockets[row].pending(self.unsent(row));
        let meter = self.meter(row);
        meter.pending.set(pending);
        meter.written.set(self.sockets[row].written(pending));
        pending
    }

    /// Gives the system what it takes without waiting; how many bytes are left.
    pub(super) fn push_out(&mut self, row: usize) -> usize {
        if let Some(endpoint) = self.sockets[row].endpoint {
            let _ = self
                .shard
                .core
                .with(|state| state.stream(endpoint, |stream, core, engine| stream.push_out(core, engine)));
        } else {
            self.write_foreign(row);
        }
        self.unsent(row)
    }

    /// Asks to be told when everything queued has left.
    pub(super) fn ask(&mut self, row: usize) {
        if self.foreign(row).is_some() {
            self.sockets[row].asked = true;
            return self.watch_writable(row);
        }
        if let (Some(endpoint), false) = (self.sockets[row].endpoint, self.sockets[row].asked) {
            if self.sockets[row].state == State::Connecting {
                return;
            }
            let asked = self.shard.submit_send(endpoint, Payload::default(), self.tag(NOTICE, row));
            self.sockets[row].asked = matches!(asked, Ok(Ok(())));
        }
    }

    /// What was queued when it was asked has left.
    pub(super) fn on_notice(&mut self, row: usize) {
        self.sockets[row].asked = false;
        if self.unsent(row) == 0 {
            if self.sockets[row].state == State::HalfClosed {
                return self.end(row);
            }
            // One at a time, so that what is sent meanwhile with high priority comes before the next.
            self.give_next(row);
        }
        if self.measure(row) > 0 || self.unsent(row) > 0 {
            return self.ask(row);
        }
        self.relax(row);
    }

    /// Gives the endpoint the next payload that was held back; `false` if there is none.
    fn give_next(&mut self, row: usize) -> bool {
        let socket = &mut self.sockets[row];
        let Some(payload) = socket.release() else { return false };
        socket.count_queued(payload.len(), false);
        let Some(endpoint) = socket.endpoint else {
            if let Some(foreign) = self.foreign(row) {
                foreign.push(payload);
            }
            return true;
        };
        match self.shard.send(endpoint, payload) {
            Ok(_) => true,
            Err(Full(payload)) => {
                self.graves.push(payload);
                false
            }
        }
    }

    /// Gives the endpoint everything that was held back, high priority first.
    pub(super) fn give_all(&mut self, row: usize) {
        while self.give_next(row) {}
    }

    /// Gives the endpoint what was sent before the connection was there.
    pub(super) fn give_early(&mut self, row: usize) {
        while self.sockets[row].has_early() && self.give_next(row) {}
        if self.measure(row) > 0 {
            self.ask(row);
        }
    }

    /// Sends a datagram. What is too long, or finds no room, is dropped.
    pub(super) fn send_to(&mut self, row: usize, id: SocketId, to: SocketAddr, payload: Payload) {
        let endpoint = if self.has(row, id) { self.sockets[row].endpoint } else { None };
        let Some(endpoint) = endpoint else { return self.graves.push(payload) };
        let bytes = payload.len();
        match self.shard.submit_send_to(endpoint, payload, to, self.tag(DATAGRAM_SENT, row)) {
            Ok(Ok(())) => {
                self.meter(row).written.add(bytes as u64);
                self.meter(row).written_at.set(self.seconds);
                let waiting = &mut self.sockets[row].rest().waiting;
                waiting.give(self.turn, bytes);
                let pending = waiting.pending();
                self.meter(row).pending.set(pending);
                self.warn(row, pending);
            }
            Ok(Err(_)) => {}
            Err(Full(payload)) => self.graves.push(payload),
        }
    }

    /// A datagram has left, or will not.
    pub(super) fn on_datagram_sent(&mut self, row: usize) {
        let waiting = &mut self.sockets[row].rest().waiting;
        waiting.settle(self.turn);
        let pending = waiting.pending();
        self.meter(row).pending.set(pending);
        if pending == 0 {
            self.relax(row);
        }
    }
}
