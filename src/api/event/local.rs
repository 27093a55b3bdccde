//! [`Local`]: the sockets of one shard, on its thread: what calls do and what completions mean.
//!
//! Nothing here calls back. What is to be told is queued in `events`, and what a program gave and nobody sends lies in
//! `graves`, because its destructor is foreign code (invariant 12). The loop sees to both when nothing is borrowed.
#![forbid(unsafe_code)]

use super::command::Command;
use super::foreign::Foreign;
use super::ids::SocketId;
use super::message::{Event, Opened, Trouble, text_of};
use super::meter::{InfoKind, Meter};
use super::send::NOTICE;
use super::socket::{Socket, State};
use super::sockets::{Shared, Station};
use crate::buf::{Lease, Payload};
use crate::driver::Descriptor;
use crate::error::Error;
use crate::shard::{Close, Completion, EndpointId, Event as Done, Kind, Listener, Shard, Waiter};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

/// What a tag of the completion API is for; the row and the id follow.
const OP_SHIFT: u32 = 56;
const ROW_SHIFT: u32 = 32;
const RECEIVE: u64 = 1;
const ACCEPT: u64 = 2;
pub(super) const CONNECT: u64 = 3;
// 4 is NOTICE, in send.rs.
const DATAGRAM: u64 = 5;
pub(super) const DATAGRAM_SENT: u64 = 6;

/// The sockets of one shard.
pub(super) struct Local {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    pub(super) shard: Rc<Shard>,
    pub(super) sockets: Slab<Socket>,
    /// What is to be told.
    pub(super) events: VecDeque<Event>,
    /// What is to be dropped when nothing is borrowed.
    pub(super) graves: Vec<Payload>,
    /// Look-ups that the pool of blocking threads had no place for.
    pub(super) lookups: VecDeque<(SocketId, String, i32)>,
    /// Room to read into, for descriptors that were bound.
    pub(super) room: Vec<u8>,
    /// Turns of the loop.
    pub(super) turn: u64,
    /// The wall clock, looked at once a turn.
    pub(super) seconds: u64,
}

impl Local {
    pub(super) fn new(shared: Arc<Shared>, index: usize, shard: Rc<Shard>) -> Local {
        let mut local = Local {
            shared,
            index,
            shard,
            sockets: Slab::new(),
            events: VecDeque::new(),
            graves: Vec::new(),
            lookups: VecDeque::new(),
            room: Vec::new(),
            turn: 0,
            seconds: 0,
        };
        local.begin_turn();
        local
    }

    /// A wait is over.
    pub(super) fn begin_turn(&mut self) {
        self.turn += 1;
        self.seconds = self.shard.core.config.host.wall_seconds();
    }

    fn station(&self) -> &Station {
        &self.shared.stations[self.index]
    }

    pub(super) fn meter(&self, row: usize) -> &Meter {
        &self.station().meters[row]
    }

    /// The tag of an operation for a socket.
    pub(super) fn tag(&self, op: u64, row: usize) -> u64 {
        op << OP_SHIFT | (row as u64) << ROW_SHIFT | u64::from(self.sockets[row].id as u32)
    }

    /// The row of an id that lives here.
    pub(super) fn row(&self, id: SocketId) -> Option<usize> {
        let word = self.shared.ids.look(id).filter(|word| word.shard() == self.index)?;
        word.row().filter(|row| self.has(*row, id))
    }

    /// Whether a row is that of an id.
    #[inline]
    pub(super) fn has(&self, row: usize, id: SocketId) -> bool {
        self.sockets.get(row).is_some_and(|socket| socket.id == id)
    }

    /// Does calls of other threads; whether some are left.
    pub(super) fn run_commands(&mut self, max: usize) -> bool {
        let shared = Arc::clone(&self.shared);
        let commands = &shared.stations[self.index].commands;
        commands.look();
        for _ in 0..max {
            let Some(command) = commands.pop() else { return false };
            self.execute(command);
        }
        !commands.is_empty()
    }

    /// Does what a call asks.
    pub(super) fn execute(&mut self, command: Command) {
        match command {
            Command::Listen { id, uid, socket } => self.listen(id, uid, socket),
            Command::Connect { id, uid, host, port } => self.connect(id, uid, host, port),
            Command::Resolved { id, found } => self.on_resolved(id, found),
            Command::Bind { id, uid, socket } => self.bind(id, uid, socket),
            Command::Udp { id, uid, socket } => self.udp(id, uid, socket),
            Command::Accepted { id, uid, socket } => self.accepted_elsewhere(id, uid, socket),
            Command::Start { id, uid } => self.start(id, uid),
            Command::Close { id, uid } => self.close(id, uid, false),
            Command::Shutdown { id, uid } => self.close(id, uid, true),
            Command::Send { id, bytes, low } => match self.row(id) {
                Some(row) => self.send(row, id, bytes.into(), low),
                None => self.graves.push(bytes.into()),
            },
            Command::Nodelay { id } => self.nodelay(id),
            Command::UdpConnect { id, to } => self.udp_connect(id, to),
            Command::UdpSend { id, to, bytes } => match self.row(id) {
                Some(row) => self.send_to(row, id, to, bytes.into()),
                None => self.graves.push(bytes.into()),
            },
        }
    }

    /// A socket begins here.
    pub(super) fn open(
        &mut self,
        id: SocketId,
        uid: usize,
        state: State,
        endpoint: Option<EndpointId>,
    ) -> usize {
        let row = self.sockets.insert(Socket::new(id, uid, state, endpoint));
        self.shared.ids.put(id, row);
        row
    }

    /// A socket ends here; `event` is its last.
    pub(super) fn finish(&mut self, row: usize, how: Close, event: Event) {
        let mut socket = self.sockets.remove(row);
        self.meter(row).end();
        self.shared.ids.release(socket.id);
        self.graves.extend(std::iter::from_fn(|| socket.release()));
        let foreign = socket.rest.as_mut().and_then(|rest| rest.foreign.take());
        foreign.into_iter().for_each(|mut foreign| self.graves.extend(foreign.take_queue()));
        if let Some(endpoint) = socket.endpoint {
            let _ = self.shard.core.with(|state| state.close(endpoint, how, Waiter::None));
        }
        self.events.push_back(event);
    }

    /// A socket ends with an error.
    pub(super) fn fail(&mut self, row: usize, trouble: Trouble) {
        let Socket { id, uid, .. } = self.sockets[row];
        self.finish(row, Close::Now, Event::Error { id, uid, trouble });
    }

    /// A socket ends because its peer, or the last byte, has gone.
    pub(super) fn end(&mut self, row: usize) {
        let Socket { id, uid, .. } = self.sockets[row];
        self.finish(row, Close::Now, Event::Close { id, uid });
    }

    fn refuse(&mut self, id: SocketId, uid: usize, trouble: Trouble) {
        self.shared.ids.release(id);
        self.events.push_back(Event::Error { id, uid, trouble });
    }

    fn listen(&mut self, id: SocketId, uid: usize, socket: Descriptor) {
        let opened = self.shard.core.with(|state| state.open_listener(Some(socket), Listener::new(None)));
        match opened {
            Ok(Ok(endpoint)) => drop(self.open(id, uid, State::Bound, Some(endpoint))),
            _ => self.refuse(id, uid, Trouble::SocketLimit),
        }
    }

    fn bind(&mut self, id: SocketId, uid: usize, socket: io::Result<Descriptor>) {
        let taken = socket.and_then(Foreign::new);
        let Ok(foreign) = taken else { return self.refuse(id, uid, Trouble::SocketLimit) };
        let row = self.open(id, uid, State::Connected, None);
        self.sockets[row].adopted = true;
        self.sockets[row].rest().foreign = Some(Box::new(foreign));
        self.meter(row).begin(id, InfoKind::Bound, uid, None);
        self.events.push_back(Event::Open { id, uid, how: Opened::Bound });
        self.read_foreign(row);
    }

    fn udp(&mut self, id: SocketId, uid: usize, socket: Descriptor) {
        let opened = self.shard.core.with(|state| state.open(socket, Kind::Datagrams(Box::default())));
        let Ok(Ok(endpoint)) = opened else { return self.refuse(id, uid, Trouble::SocketLimit) };
        let row = self.open(id, uid, State::Datagrams, Some(endpoint));
        self.meter(row).begin(id, InfoKind::Udp, uid, None);
        let _ = self.shard.submit_recv_from_multi(endpoint, self.tag(DATAGRAM, row));
    }

    fn udp_connect(&mut self, id: SocketId, to: SocketAddr) {
        let Some(row) = self.row(id) else { return };
        let is_v6 = self.shared.ids.look(id).and_then(|word| word.datagram_v6());
        if is_v6 == Some(to.is_ipv6()) {
            self.sockets[row].rest().destination = Some(to);
            return self.meter(row).set_address(Some(to));
        }
        let uid = self.sockets[row].uid;
        self.events.push_back(Event::Error { id, uid, trouble: Trouble::ProtocolMismatch });
    }

    fn nodelay(&mut self, id: SocketId) {
        let Some(row) = self.row(id) else { return };
        self.sockets[row].nodelay = true;
        if let Some(foreign) = self.foreign(row) {
            return foreign.set_nodelay();
        }
        // A socket for datagrams refuses.
        self.on_descriptor(row, |socket| drop(socket.set_tcp_nodelay(true)));
    }

    fn start(&mut self, id: SocketId, uid: usize) {
        let Some(row) = self.row(id) else {
            return self.events.push_back(Event::Error { id, uid, trouble: Trouble::InvalidSocket });
        };
        let socket = &mut self.sockets[row];
        let endpoint = socket.endpoint;
        let how = match socket.state {
            State::Bound => {
                socket.state = State::Listening;
                Opened::Started
            }
            State::Accepted => {
                socket.state = State::Connected;
                Opened::Started
            }
            State::Connected if !socket.adopted => Opened::Transferred,
            State::Datagrams => Opened::Transferred,
            _ => return,
        };
        socket.uid = uid;
        let state = socket.state;
        self.events.push_back(Event::Open { id, uid, how });
        match (how, endpoint) {
            (Opened::Started, Some(endpoint)) if state == State::Listening => {
                let address = self.shard.local_addr(endpoint).ok();
                self.meter(row).begin(id, InfoKind::Listener, uid, address);
                let _ = self.shard.submit_accept_multi(endpoint, self.tag(ACCEPT, row));
            }
            (Opened::Started, Some(endpoint)) => {
                let address = self.shard.peer_addr(endpoint).ok();
                self.meter(row).begin(id, InfoKind::Tcp, uid, address);
                self.receive(row);
            }
            _ => self.meter(row).set_uid(uid),
        }
    }

    /// The connection delivers from now on.
    pub(super) fn receive(&mut self, row: usize) {
        if let Some(endpoint) = self.sockets[row].endpoint {
            let _ = self.shard.submit_recv_multi(endpoint, self.tag(RECEIVE, row));
        }
    }

    fn close(&mut self, id: SocketId, uid: usize, force: bool) {
        let event = Event::Close { id, uid };
        let Some(row) = self.row(id) else { return self.events.push_back(event) };
        match self.sockets[row].state {
            State::Bound | State::Listening => {
                // Peers are refused from now on, though the accept in flight ends a little later.
                self.on_descriptor(row, |socket| drop(socket.shutdown(Shutdown::Both)));
                self.finish(row, Close::Abort, event);
            }
            State::Connecting => self.finish(row, Close::Abort, event),
            State::Accepted => self.finish(row, Close::Now, event),
            State::Datagrams => self.finish(row, Close::Flush, event),
            State::HalfClosed if !force => {}
            State::HalfClosed => self.finish(row, Close::Now, event),
            State::Connected => self.close_connection(row, force, event),
        }
    }

    fn close_connection(&mut self, row: usize, force: bool, event: Event) {
        self.give_all(row);
        if self.push_out(row) > 0 && !force {
            self.sockets[row].state = State::HalfClosed;
            self.meter(row).end();
            return self.ask(row);
        }
        // A peer whose bytes nobody has read is told so.
        let mut unread = false;
        self.on_descriptor(row, |socket| unread = socket.has_unread());
        self.finish(row, if unread { Close::Abort } else { Close::Now }, event);
    }

    pub(super) fn on_descriptor(&self, row: usize, look: impl FnOnce(&Descriptor)) {
        let Some(endpoint) = self.sockets[row].endpoint else { return };
        if let Ok(Some(fd)) = self.shard.core.with(|state| state.fd(endpoint)) {
            look(fd.descriptor());
        }
    }

    /// What a completion means. An event is given back where nothing was to be told before it.
    #[inline]
    pub(super) fn on_completion(&mut self, completion: Completion) -> Option<Event> {
        let Completion { tag, endpoint, event, more } = completion;
        let row = (tag >> ROW_SHIFT) as usize & ((1 << (OP_SHIFT - ROW_SHIFT)) - 1);
        let socket = self.sockets.get_mut(row).filter(|socket| socket.id == tag as u32 as i32);
        let Some(socket) = socket.filter(|socket| socket.endpoint == Some(endpoint)) else {
            self.on_stale(event);
            return None;
        };
        match (tag >> OP_SHIFT, event) {
            (RECEIVE, Done::Received(lease)) => {
                let Socket { id, uid, state, .. } = *socket;
                return self.on_received(row, (id, uid, state), lease);
            }
            (RECEIVE, Done::Failed(Error::Io(error))) => self.fail(row, Trouble::of(&error)),
            (RECEIVE, _) => self.end(row),
            (ACCEPT, event) => self.on_accept(row, event, more),
            (CONNECT, event) => self.on_connect(row, event),
            (NOTICE, Done::Sent) => self.on_notice(row),
            // A send has failed, so the connection is over.
            (NOTICE, _) => self.end(row),
            (DATAGRAM, Done::ReceivedFrom { lease, from, .. }) => return self.on_datagram(row, lease, from),
            (DATAGRAM, Done::Failed(Error::Io(error))) => self.fail(row, Trouble::of(&error)),
            (DATAGRAM_SENT, _) => self.on_datagram_sent(row),
            _ => {}
        }
        None
    }

    #[inline]
    fn on_received(
        &mut self,
        row: usize,
        (id, uid, state): (SocketId, usize, State),
        lease: Lease,
    ) -> Option<Event> {
        if state == State::HalfClosed {
            return None;
        }
        let meter = self.meter(row);
        meter.read.add(lease.len() as u64);
        meter.read_at.set(self.seconds);
        Some(Event::Data { id, uid, data: lease })
    }

    fn on_datagram(&mut self, row: usize, lease: Lease, from: SocketAddr) -> Option<Event> {
        let Socket { id, uid, .. } = self.sockets[row];
        let meter = self.meter(row);
        meter.read.add(lease.len() as u64);
        meter.read_at.set(self.seconds);
        Some(Event::Udp { id, uid, data: lease, from })
    }

    /// Something came for a socket that has ended.
    fn on_stale(&mut self, event: Done) {
        if let Done::Accepted(endpoint) = event {
            let _ = self.shard.core.with(|state| state.close(endpoint, Close::Abort, Waiter::None));
        }
    }

    fn on_accept(&mut self, row: usize, event: Done, more: bool) {
        let Socket { id: listener, uid, .. } = self.sockets[row];
        let endpoint = match event {
            Done::Accepted(endpoint) => endpoint,
            Done::Failed(error) if more => {
                let trouble = Trouble::AcceptPaused(text_of(&error.into()).into());
                return self.events.push_back(Event::Error { id: listener, uid, trouble });
            }
            Done::Failed(error) => return self.fail(row, Trouble::of(&error.into())),
            _ => return,
        };
        self.meter(row).read.add(1);
        self.meter(row).read_at.set(self.seconds);
        // A peer that has gone meanwhile has no address, and nothing to say.
        let Ok(peer) = self.shard.peer_addr(endpoint) else { return self.on_stale(Done::Accepted(endpoint)) };
        let shared = Arc::clone(&self.shared);
        let Some(id) = shared.ids.reserve(|id| shared.shard_of(id), None) else {
            let trouble = Trouble::AcceptPaused(Trouble::SocketLimit.to_string().into());
            self.events.push_back(Event::Error { id: listener, uid, trouble });
            return self.on_stale(Done::Accepted(endpoint));
        };
        let shard = shared.shard_of(id);
        if shard == self.index {
            self.open(id, uid, State::Accepted, Some(endpoint));
        } else {
            // Nothing was armed on it, so it can be given away.
            let socket = self.shard.core.with(|state| state.give_away(endpoint));
            let Ok(Some(Ok(socket))) = socket else { return shared.ids.release(id) };
            shared.stations[shard].commands.push(Command::Accepted { id, uid, socket });
        }
        self.events.push_back(Event::Accept { id: listener, uid, accepted: id, peer });
    }

    fn accepted_elsewhere(&mut self, id: SocketId, uid: usize, socket: Descriptor) {
        match self.shard.adopt_stream(socket) {
            Ok(endpoint) => drop(self.open(id, uid, State::Accepted, Some(endpoint))),
            Err(_) => self.refuse(id, uid, Trouble::SocketLimit),
        }
    }

    /// A listener is out of descriptors, and pauses.
    pub(super) fn on_accept_paused(&mut self, listener: u64, error: &io::Error) {
        let is_it = |socket: &&Socket| socket.endpoint.is_some_and(|id| id.as_u64() == listener);
        // That is rare, so no table leads from endpoints to sockets.
        let Some(socket) = self.sockets.iter().map(|(_, socket)| socket).find(is_it) else { return };
        let (id, uid) = (socket.id, socket.uid);
        let trouble = Trouble::AcceptPaused(text_of(error).into());
        self.events.push_back(Event::Error { id, uid, trouble });
    }

    /// The end: every socket closes, with what the system takes without waiting.
    pub(super) fn close_all(&mut self) {
        for (_, mut socket) in std::mem::take(&mut self.sockets) {
            let mut foreign = socket.rest.as_mut().and_then(|rest| rest.foreign.take());
            while let Some(payload) = socket.release() {
                match &mut foreign {
                    Some(foreign) => foreign.push(payload),
                    None => drop(socket.endpoint.map(|endpoint| self.shard.send(endpoint, payload))),
                }
            }
            if let Some(foreign) = &mut foreign {
                foreign.write(&mut self.graves);
            }
            if let Some(endpoint) = socket.endpoint {
                let how = if socket.state == State::Datagrams { Close::Flush } else { Close::Now };
                let _ = self.shard.core.with(|state| state.close(endpoint, how, Waiter::None));
            }
        }
    }
}
