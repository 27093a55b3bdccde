//! [`Session`]: a connection as everybody on its shard may see it.
//!
//! The session owns the link and what both directions share. Its handler has it as a [`Conn`](super::Conn), which alone
//! receives and waits; the registry of the shard has it too, for whoever wants to send to it or end it. Whoever ends it
//! leaves the reason here and wakes the task of the connection, which alone closes the link.
#![forbid(unsafe_code)]

use super::close::{CloseReason, Stage};
use super::fleet::Fleet;
use super::id::ConnId;
use super::link::Link;
use super::metrics::Tally;
use super::policy::Policy;
use super::registry::Registry;
use crate::api::stream::Outbound;
use crate::buf::{Lease, Payload};
use crate::codec::{CodecError, Framer};
use crate::error::{Error, Full};
use crate::shard::{Core, EndpointId, Slow};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A connection of a component, as everybody on its shard may see it: who it is, what it has carried, sending to it without
/// waiting, pausing and ending it.
// The order is that of use: what each message touches comes first, so that it lies in as few lines of the cache as may be.
#[repr(C)]
pub struct Session {
    /// Gone when the connection closes.
    link: RefCell<Option<Link>>,
    pub(super) core: Rc<Core>,
    pub(super) tally: Arc<Tally>,
    /// There is a codec.
    framed: bool,
    /// Somebody wants it to end.
    ending: Cell<bool>,
    paused: Cell<bool>,
    draining: Cell<bool>,
    stage: Cell<Stage>,
    pub(super) meters: Meters,
    pub(super) policy: Rc<Policy>,
    framer: RefCell<Option<Box<Framer>>>,
    /// What one message consists of; kept so that sending allocates nothing.
    pieces: RefCell<Vec<Payload>>,
    id: ConnId,
    endpoint: Cell<EndpointId>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    opened: Instant,
    registry: Rc<Registry>,
    /// Why the connection ends, as its own operations or somebody else found first.
    cause: RefCell<Option<CloseReason>>,
    /// Wakes the task of the connection.
    task: RefCell<Option<Waker>>,
}

/// What a connection has carried.
#[derive(Debug, Default)]
pub(super) struct Meters {
    pub(super) bytes_in: Cell<u64>,
    pub(super) bytes_out: Cell<u64>,
    pub(super) messages_in: Cell<u64>,
    pub(super) messages_out: Cell<u64>,
    /// When something was received or sent last, as the watch has seen it.
    pub(super) active: Cell<Option<Instant>>,
}

fn raise(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get() + n);
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) id: ConnId,
    pub(super) registry: Rc<Registry>,
    pub(super) policy: Rc<Policy>,
    pub(super) framer: Option<Framer>,
}

impl Session {
    pub(super) fn new(parts: Parts, link: Link) -> Session {
        let Parts { id, registry, policy, framer } = parts;
        let (core, tally) = (Rc::clone(&registry.core), Arc::clone(&registry.tally));
        let (peer, local) = link.addresses();
        Session {
            id,
            peer,
            local,
            opened: core.recent(),
            core,
            tally,
            policy,
            stage: Cell::new(Stage::Handshake),
            endpoint: Cell::new(link.endpoint()),
            link: RefCell::new(Some(link)),
            framed: framer.is_some(),
            framer: RefCell::new(framer.map(Box::new)),
            pieces: RefCell::default(),
            meters: Meters::default(),
            registry,
            cause: RefCell::new(None),
            ending: Cell::new(false),
            paused: Cell::new(false),
            draining: Cell::new(false),
            task: RefCell::new(None),
        }
    }

    /// Its name.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The address of the peer; none over Unix sockets.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// The address of this side; none over Unix sockets.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        self.stage.get()
    }

    /// For how long it has been connected.
    pub fn age(&self) -> Duration {
        self.core.recent().saturating_duration_since(self.opened)
    }

    /// For how long nothing has been received and nothing sent.
    pub fn idle(&self) -> Duration {
        let active = self.meters.active.get().unwrap_or(self.opened);
        self.core.recent().saturating_duration_since(active)
    }

    /// Bytes received, before TLS and codec.
    pub fn bytes_in(&self) -> u64 {
        self.meters.bytes_in.get()
    }

    /// Bytes given to be sent, before TLS and codec.
    pub fn bytes_out(&self) -> u64 {
        self.meters.bytes_out.get()
    }

    /// Messages received: of the codec, or pieces of the stream where there is none.
    pub fn messages_in(&self) -> u64 {
        self.meters.messages_in.get()
    }

    /// Messages given to be sent.
    pub fn messages_out(&self) -> u64 {
        self.meters.messages_out.get()
    }

    /// Bytes that wait to be sent, codec and TLS included.
    pub fn pending(&self) -> usize {
        self.outbound().queued
    }

    /// The endpoint in the shard, as in logs of the runtime.
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint.get()
    }

    /// Stops delivering to the handler; what the peer sends waits, here up to
    /// [`Limits::inbound_bytes_max`](crate::Limits), then with the peer.
    pub fn pause(&self) {
        self.paused.set(true);
        // What was received and not delivered waits on the heap, not in a buffer that others need.
        if let Ok(mut framer) = self.framer.try_borrow_mut() {
            framer.iter_mut().for_each(|framer| framer.detach());
        }
    }

    /// Goes on delivering.
    pub fn resume(&self) {
        if self.paused.replace(false) {
            self.wake();
        }
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Whether its component is being shut down: a handler should come to an end.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Ends the connection soon: what is queued is sent first, the handler is dropped where it stands.
    pub fn disconnect(&self) {
        self.end(CloseReason::Disconnected);
    }

    /// Sends a message without waiting, in one line with what the handler sends. Above
    /// [`Policy::outbound_bytes_max`](crate::component::Policy) it does what [`Policy::slow`](crate::component::Policy) says:
    /// refuses the message, or ends the connection. ([`Slow::DropOldest`] is for broadcasts; here it refuses.)
    ///
    /// # Errors
    ///
    /// The message, if it was not taken, with the reason.
    pub fn push(&self, message: impl Into<Payload>) -> Result<(), Refused> {
        let message = message.into().into_bytes();
        let refused = |why| Refused { message: message.clone(), why };
        if self.stage.get() != Stage::Open || self.ending.get() {
            return Err(refused(WhyRefused::Closed));
        }
        let pending = self.pending();
        if pending > 0 && pending.saturating_add(message.len()) > self.policy.outbound_bytes_max {
            return Err(refused(self.too_slow()));
        }
        let mut pieces = self.pieces.take();
        let sent = self.encode(message.clone().into(), &mut pieces).map(|()| self.queue(&mut pieces));
        pieces.clear();
        self.pieces.replace(pieces);
        match sent {
            Ok(Ok(Ok(()))) => {
                self.count_out(message.len());
                Ok(())
            }
            Ok(Ok(Err(_))) => Err(refused(WhyRefused::Closed)),
            Ok(Err(Full(()))) => Err(refused(self.too_slow())),
            Err(error) => Err(refused(WhyRefused::Codec(error))),
        }
    }

    fn too_slow(&self) -> WhyRefused {
        self.tally.dropped.add(1);
        if self.policy.slow == Slow::Disconnect {
            self.end(CloseReason::SlowReader);
        }
        WhyRefused::Full
    }

    fn queue(&self, pieces: &mut Vec<Payload>) -> Result<io::Result<()>, Full<()>> {
        match self.link.borrow_mut().as_mut() {
            Some(link) => link.try_send_together(pieces),
            None => Ok(Err(Error::Closed.into())),
        }
    }

    /// Makes of a message what is sent.
    fn encode(&self, message: Payload, pieces: &mut Vec<Payload>) -> Result<(), CodecError> {
        match self.framer.borrow_mut().as_mut() {
            Some(framer) => framer.encode(message, pieces),
            None => {
                pieces.push(message);
                Ok(())
            }
        }
    }

    /// Ends the connection soon, for this reason unless there is one already.
    pub(super) fn end(&self, reason: CloseReason) {
        self.blame(reason);
        self.ending.set(true);
        self.wake();
    }

    /// Says why the connection ends, unless that has been said.
    pub(super) fn blame(&self, reason: CloseReason) {
        self.cause.borrow_mut().get_or_insert(reason);
    }

    /// The same for an error that its own operations met, which is given back.
    pub(super) fn blame_error(&self, error: io::Error) -> io::Error {
        self.blame(CloseReason::of_error(&error));
        error
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    pub(super) fn take_cause(&self) -> Option<CloseReason> {
        self.cause.borrow_mut().take()
    }

    pub(super) fn start_draining(&self) {
        self.draining.set(true);
        self.wake();
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.set(stage);
    }

    /// What waits to be sent, and what has left.
    #[inline]
    pub(super) fn outbound(&self) -> Outbound {
        self.link.borrow().as_ref().map_or(Outbound::default(), Link::outbound)
    }

    /// All connections of the component that it belongs to, so that a handler can send to the others:
    /// [`Fleet::broadcast_all`].
    pub fn fleet(&self) -> &Fleet {
        &self.registry.fleet
    }

    /// Takes part in what is sent to the group of this name, on all shards of the component; see
    /// [`Fleet::broadcast_to`](crate::component::Fleet::broadcast_to). Nothing happens if it does already. A group is there
    /// while it has members.
    pub fn join(self: &Rc<Session>, group: &str) {
        self.registry.join(group, self);
    }

    /// It gets broadcasts by [`push`](Self::push) only, from now on.
    #[cfg(feature = "tls")]
    pub(super) fn stop_sharing(self: &Rc<Session>) {
        self.registry.stop_sharing(self);
    }

    /// Takes part no more.
    pub fn leave(&self, group: &str) {
        self.registry.leave(group, self);
    }

    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    pub(super) fn is_framed(&self) -> bool {
        self.framed
    }

    /// Whether a message has begun to arrive and is not whole: its bytes so far.
    #[inline]
    pub(super) fn partial_bytes(&self) -> Option<usize> {
        let framer = self.framer.borrow();
        framer.as_ref().filter(|framer| framer.is_partial()).map(|framer| framer.buffered())
    }

    /// Whether a broadcast may put its bytes right into the queue of the endpoint.
    pub(super) fn shares_bytes(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(Link::is_plain)
    }

    /// Who is woken when somebody else wants something of the connection: its task.
    pub(super) fn set_task(&self, task: &Waker) {
        self.task.replace(Some(task.clone()));
    }

    fn wake(&self) {
        let task = self.task.borrow().clone();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// The link has become another one, on the same connection.
    #[cfg(feature = "tls")]
    pub(super) fn put_link(&self, link: Link) {
        self.link.replace(Some(link));
    }

    #[cfg(feature = "tls")]
    pub(super) fn with_link<R>(&self, look: impl FnOnce(&Link) -> Option<R>) -> Option<R> {
        self.link.borrow().as_ref().and_then(look)
    }

    pub(super) fn take_link(&self) -> Option<Link> {
        self.link.borrow_mut().take()
    }

    // What the handler's side does.

    /// Queues a message of the handler, or waits for room.
    #[inline]
    pub(super) fn poll_send(&self, context: &mut Context<'_>, sending: &mut Sending) -> Poll<io::Result<()>> {
        let mut link = self.link.borrow_mut();
        let Some(link) = link.as_mut() else { return Poll::Ready(Err(Error::Closed.into())) };
        let sent = if !self.framed {
            link.poll_send(context, &mut sending.message)
        } else {
            if let Some(message) = sending.message.take() {
                self.encode(message, &mut sending.pieces)?;
            }
            link.poll_send_together(context, &mut sending.pieces)
        };
        if let Poll::Ready(Ok(())) = sent {
            self.count_out(sending.bytes);
        }
        sent
    }

    /// The next message, or the next bytes where there is no codec.
    #[inline]
    pub(super) fn poll_recv(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        if self.paused.get() {
            return Poll::Pending;
        }
        let received = match self.framed {
            false => self.poll_bytes(context),
            true => self.poll_message(context),
        };
        if let Poll::Ready(Ok(Some(_))) = &received {
            raise(&self.meters.messages_in, 1);
            self.tally.messages_in.add(1);
        }
        received
    }

    fn poll_message(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        let mut framer = self.framer.borrow_mut();
        let Some(framer) = framer.as_mut() else { return Poll::Ready(Err(Error::Closed.into())) };
        loop {
            if let Some(message) = framer.next()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match self.poll_bytes(context) {
                Poll::Ready(Ok(Some(lease))) => {
                    let pushed = framer.push(lease);
                    debug_assert!(pushed.is_ok(), "a framer that was emptied takes what comes");
                }
                Poll::Ready(Ok(None)) => {
                    framer.finish()?;
                    return Poll::Ready(Ok(None));
                }
                other => return other,
            }
        }
    }

    /// The next bytes of the stream.
    #[inline]
    fn poll_bytes(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        let mut link = self.link.borrow_mut();
        let Some(link) = link.as_mut() else { return Poll::Ready(Err(Error::Closed.into())) };
        let received = link.poll_recv(context);
        if let Poll::Ready(Ok(Some(lease))) = &received {
            raise(&self.meters.bytes_in, lease.len() as u64);
            self.tally.bytes_in.add(lease.len() as u64);
        }
        received
    }

    /// Whether everything queued has left.
    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.link.borrow_mut().as_mut() {
            Some(link) => link.poll_flush(context),
            None => Poll::Ready(Err(Error::Closed.into())),
        }
    }

    #[inline]
    pub(super) fn count_out(&self, bytes: usize) {
        raise(&self.meters.bytes_out, bytes as u64);
        raise(&self.meters.messages_out, 1);
        self.tally.bytes_out.add(bytes as u64);
        self.tally.messages_out.add(1);
    }
}

/// A message on its way into the queue.
pub(super) struct Sending {
    message: Option<Payload>,
    /// What it is encoded to; empty until then, and where there is no codec.
    pieces: Vec<Payload>,
    bytes: usize,
}

impl Sending {
    #[inline]
    pub(super) fn new(message: Payload) -> Sending {
        let bytes = message.len();
        Sending { message: Some(message), pieces: Vec::new(), bytes }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// A message that was not taken.
#[derive(Debug)]
pub struct Refused {
    /// The message.
    pub message: Bytes,
    /// Why not.
    pub why: WhyRefused,
}

/// Why a message was not taken.
#[derive(Debug)]
#[non_exhaustive]
pub enum WhyRefused {
    /// The connection is not open, or not any more.
    Closed,
    /// The outbound queue is full: [`Policy::outbound_bytes_max`](crate::component::Policy), or the shard's
    /// [`Limits`](crate::Limits).
    Full,
    /// The codec cannot send it.
    Codec(CodecError),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            WhyRefused::Closed => f.write_str("the connection is not open"),
            WhyRefused::Full => f.write_str(
                "the outbound queue is full; try again later, wait with Conn::send, or raise Policy::outbound_bytes_max",
            ),
            WhyRefused::Codec(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}
