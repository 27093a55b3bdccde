//! Descriptors of the program's that were bound: sockets of any kind, pipes, terminals.
//!
//! They have no endpoint, because they stay the program's: whether they block is not ours to change with the backend,
//! and an end of ours shuts nothing down. They are read and written when they are ready; two tasks of the shard only
//! wait, and what they find is done here, as what completions mean. What waits to be written waits in a queue of its
//! own, and counts as what an endpoint has. Each read is one message and, where the descriptor takes packets, each
//! payload one write.
#![forbid(unsafe_code)]

use super::ids::SocketId;
use super::local::Local;
use super::message::{Event, Trouble};
use super::run;
use super::socket::{Socket, State, Way};
use super::sockets::Shared;
use crate::api::ready::Ready;
use crate::api::task::JoinHandle;
use crate::buf::{Lease, Payload};
use crate::driver::Descriptor;
use crate::driver::sys::device::{Device, Sort};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::sync::Arc;

/// The longest message: no datagram of IP is longer.
const MESSAGE_BYTES_MAX: usize = 65_536;

/// Messages that one descriptor brings before the others have their turn.
const MESSAGES_PER_TURN_MAX: usize = 16;

/// A descriptor with what is to be written to it.
pub(super) struct Foreign {
    device: Device,
    ready: Rc<Ready>,
    queue: VecDeque<Payload>,
    /// Bytes of the first in the queue that have been written.
    written: usize,
    /// Bytes in the queue that have not.
    unsent: usize,
    /// A write has failed, so it is over.
    failed: bool,
    reader: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

/// What a task waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Readable,
    Writable,
    /// Nothing: it only tells what has happened already.
    Not,
}

impl Foreign {
    /// Takes a descriptor, which is non-blocking from now on.
    ///
    /// # Errors
    ///
    /// If it is a file or a directory, which are always ready and would hold up all other sockets; in a simulation.
    pub(super) fn new(descriptor: Descriptor) -> io::Result<Foreign> {
        let device = Device::new(descriptor.try_into()?)?;
        let ready = Rc::new(Ready::new(device.handle())?);
        device.set_nonblocking()?;
        Ok(Foreign {
            device,
            ready,
            queue: VecDeque::new(),
            written: 0,
            unsent: 0,
            failed: false,
            reader: None,
            writer: None,
        })
    }

    /// Sends small pieces at once, if it is a connection that can.
    pub(super) fn set_nodelay(&self) {
        self.device.set_nodelay();
    }

    /// Bytes that the system has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Puts a payload at the end of the queue.
    pub(super) fn push(&mut self, payload: Payload) {
        self.unsent += payload.len();
        self.queue.push_back(payload);
    }

    /// What is queued, to be dropped by whom it may call back.
    pub(super) fn take_queue(&mut self) -> VecDeque<Payload> {
        (self.written, self.unsent) = (0, 0);
        std::mem::take(&mut self.queue)
    }

    /// Writes what the system takes without waiting; `graves` gets what has left.
    pub(super) fn write(&mut self, graves: &mut Vec<Payload>) {
        while let Some(first) = self.queue.front() {
            let bytes = &first[self.written..];
            let taken = match self.device.write(bytes) {
                Ok(taken) if matches!(self.device.sort, Sort::Stream | Sort::Device) => taken,
                // A packet leaves whole.
                Ok(_) => bytes.len(),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if self.device.is_about_one(&error) => bytes.len(),
                Err(_) => {
                    self.failed = true;
                    return graves.extend(self.take_queue());
                }
            };
            self.unsent -= taken;
            self.written += taken;
            if taken == bytes.len() {
                self.written = 0;
                graves.extend(self.queue.pop_front());
            }
        }
    }
}

/// Ends what waits for the descriptor.
impl Drop for Foreign {
    fn drop(&mut self) {
        for mut task in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            task.abort();
        }
    }
}

/// Waits for a descriptor, again and again, until there is nothing to wait for.
async fn watch(shared: Arc<Shared>, shard: usize, id: SocketId, ready: Rc<Ready>, wait: Wait) {
    loop {
        let waited = match wait {
            Wait::Readable => ready.readable().await,
            Wait::Writable => ready.writable().await,
            Wait::Not => Ok(()),
        };
        let mut goes_on = false;
        run::on_shard(&shared, shard, |local| goes_on = local.borrow_mut().on_ready(id, wait, waited));
        if !goes_on {
            return;
        }
    }
}

impl Local {
    /// The descriptor of a row, if it was bound.
    pub(super) fn foreign(&mut self, row: usize) -> Option<&mut Foreign> {
        self.sockets.get_mut(row)?.rest.as_mut()?.foreign.as_deref_mut()
    }

    fn watch(&self, row: usize, ready: &Rc<Ready>, wait: Wait) -> JoinHandle<()> {
        let id = self.sockets[row].id;
        self.shard.spawn(watch(Arc::clone(&self.shared), self.index, id, Rc::clone(ready), wait))
    }

    /// A descriptor delivers from now on.
    pub(super) fn read_foreign(&mut self, row: usize) {
        let Some(ready) = self.foreign(row).map(|foreign| Rc::clone(&foreign.ready)) else { return };
        let reader = self.watch(row, &ready, Wait::Readable);
        if let Some(foreign) = self.foreign(row) {
            foreign.reader = Some(reader);
        }
    }

    /// Sees to it that what is queued is written and what has failed is told. A write that fails is told later.
    pub(super) fn watch_writable(&mut self, row: usize) {
        let Some(foreign) = self.foreign(row) else { return };
        if foreign.writer.is_some() {
            return;
        }
        let (ready, failed) = (Rc::clone(&foreign.ready), foreign.failed);
        let writer = self.watch(row, &ready, if failed { Wait::Not } else { Wait::Writable });
        if let Some(foreign) = self.foreign(row) {
            foreign.writer = Some(writer);
        }
    }

    /// Writes what the system takes without waiting.
    pub(super) fn write_foreign(&mut self, row: usize) {
        let foreign = self.sockets.get_mut(row).and_then(|socket| socket.rest.as_mut()?.foreign.as_mut());
        let Some(foreign) = foreign.filter(|foreign| !foreign.failed) else { return };
        foreign.write(&mut self.graves);
        if !foreign.failed {
            return;
        }
        // What waits for the descriptor to be writable might wait for ever.
        foreign.writer.take().into_iter().for_each(|mut writer| writer.abort());
        self.watch_writable(row);
    }

    /// Sends on a descriptor that was bound.
    pub(super) fn send_foreign(&mut self, row: usize, payload: Payload, low: bool) {
        let unsent = self.foreign(row).map_or(0, |foreign| foreign.unsent());
        let bytes = payload.len();
        let way = self.sockets[row].way(low, unsent);
        let max = self.shard.core.config.limits.outbound_bytes_max;
        match way {
            _ if bytes == 0 => self.graves.push(payload),
            Way::Dropped => self.graves.push(payload),
            _ if unsent > 0 && unsent.saturating_add(bytes) > max => self.on_full(row, payload),
            Way::Out { direct } => {
                if let Some(foreign) = self.foreign(row) {
                    foreign.push(payload);
                }
                self.write_foreign(row);
                self.on_queued(row, bytes, direct, low);
                self.watch_rest(row);
            }
            Way::Early | Way::Low => {
                self.sockets[row].hold(payload, way);
                self.on_held(row, low);
            }
        }
    }

    /// Somebody has to write what a direct write has left.
    fn watch_rest(&mut self, row: usize) {
        if self.foreign(row).is_some_and(|foreign| foreign.unsent > 0) {
            self.ask(row);
        }
    }

    /// A task has waited; whether it is to wait again.
    fn on_ready(&mut self, id: SocketId, wait: Wait, waited: io::Result<()>) -> bool {
        let Some(row) = self.row(id) else { return false };
        match (wait, waited) {
            (_, Err(error)) => self.fail(row, Trouble::of(&error)),
            (Wait::Readable, Ok(())) => return self.on_readable(row),
            (Wait::Writable, Ok(())) => return self.on_writable(row),
            // A write has failed: that ends it without words, as on a connection.
            (Wait::Not, Ok(())) => self.end(row),
        }
        false
    }

    fn on_readable(&mut self, row: usize) -> bool {
        let mut room = std::mem::take(&mut self.room);
        room.resize(MESSAGE_BYTES_MAX, 0);
        let lives = (0..MESSAGES_PER_TURN_MAX).all(|_| self.read_message(row, &mut room));
        self.room = room;
        // It ends by itself, or there is nothing more to read for now.
        lives || self.foreign(row).is_some()
    }

    /// Reads one message; whether there may be another.
    fn read_message(&mut self, row: usize, room: &mut [u8]) -> bool {
        let Some(foreign) = self.foreign(row) else { return false };
        let sort = foreign.device.sort;
        match foreign.device.read(room) {
            Ok(0) if sort == Sort::Datagrams => return true,
            Ok(0) => self.end(row),
            Ok(bytes) => {
                self.on_message(row, &room[..bytes]);
                return true;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.fail(row, Trouble::of(&error)),
        }
        false
    }

    fn on_message(&mut self, row: usize, bytes: &[u8]) {
        let Socket { id, uid, state, .. } = self.sockets[row];
        if state == State::HalfClosed {
            return;
        }
        let meter = self.meter(row);
        meter.read.add(bytes.len() as u64);
        meter.read_at.set(self.seconds);
        let data = Lease::from_bytes(Bytes::copy_from_slice(bytes));
        self.events.push_back(Event::Data { id, uid, data });
    }

    fn on_writable(&mut self, row: usize) -> bool {
        if self.push_out(row) == 0 && self.foreign(row).is_some_and(|foreign| !foreign.failed) {
            self.on_notice(row);
        }
        let asked = self.sockets.get(row).is_some_and(|socket| socket.asked);
        let Some(foreign) = self.foreign(row) else { return false };
        if foreign.failed {
            // Another task tells that.
            return false;
        }
        if !asked {
            foreign.writer = None;
        }
        asked
    }
}
