//! [`UdpSessions`]: virtual connections over one socket, by peer address.
//!
//! Here is what a program may ask of the sessions; [`serve`](super::serve) is the loop that drives them. What ends a
//! session only marks it and puts it into a queue, from which the loop tells the handler; so a handler may end any
//! session, its own too, in the middle of a call.
#![forbid(unsafe_code)]

use super::accept::Waiting;
use super::endpoint::{Endpoint, UdpCounters};
use super::table::{Rate, SessionEnd, SessionId, SessionInfo, Table};
use super::{DATAGRAM_BYTES, SendError};
use crate::buf::Payload;
use crate::net::{SendOptions, UdpOptions, UdpSocket};
use crate::shard::Context as GroupContext;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

/// How [`UdpSessions`] shall be.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    pub(super) datagram_bytes_max: usize,
    pub(super) sessions_max: usize,
    pub(super) sessions_per_second_max: u32,
    pub(super) idle: Option<Duration>,
    pub(super) inbox_datagrams_max: usize,
    pub(super) waiting_max: usize,
    pub(super) broadcasts_max: usize,
    joined: bool,
    socket: UdpOptions,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            datagram_bytes_max: DATAGRAM_BYTES,
            sessions_max: 16_384,
            sessions_per_second_max: 1000,
            idle: Some(Duration::from_secs(120)),
            inbox_datagrams_max: 64,
            waiting_max: 128,
            broadcasts_max: 64,
            joined: true,
            socket: UdpOptions::new(),
        }
    }
}

impl SessionOptions {
    /// [`DATAGRAM_BYTES`] in a datagram, 16 384 sessions, 1000 new ones in a second, an end after 120 seconds of silence.
    pub fn new() -> SessionOptions {
        SessionOptions::default()
    }

    /// Sets how many bytes a datagram may have, in both directions.
    pub fn datagram_bytes_max(mut self, bytes: usize) -> SessionOptions {
        self.datagram_bytes_max = bytes;
        self
    }

    /// Sets how many sessions there may be, at most 2^31; datagrams of further addresses are dropped and counted.
    pub fn sessions_max(mut self, sessions: usize) -> SessionOptions {
        self.sessions_max = sessions.min(1 << 31);
        self
    }

    /// Sets how many sessions may begin in a second, at least 1, and so many at once; datagrams of further addresses are
    /// dropped and counted. Addresses can be forged: this and [`sessions_max`](Self::sessions_max) bound what that costs.
    pub fn sessions_per_second_max(mut self, sessions: u32) -> SessionOptions {
        self.sessions_per_second_max = sessions.max(1);
        self
    }

    /// Sets after how long without a datagram of its peer a session ends; `None` is never. What is sent to the peer does
    /// not count.
    pub fn idle(mut self, idle: impl Into<Option<Duration>>) -> SessionOptions {
        self.idle = idle.into();
        self
    }

    /// Sets how many datagrams may wait in a [`UdpSession`](super::UdpSession); further ones are dropped and counted.
    /// With a handler none wait.
    pub fn inbox_datagrams_max(mut self, datagrams: usize) -> SessionOptions {
        self.inbox_datagrams_max = datagrams.max(1);
        self
    }

    /// Sets how many sessions may wait to be [accepted](UdpSessions::accept); further ones are refused.
    pub fn waiting_max(mut self, sessions: usize) -> SessionOptions {
        self.waiting_max = sessions.max(1);
        self
    }

    /// Sets how many [broadcasts](UdpSessions::broadcast) may wait to be sent.
    pub fn broadcasts_max(mut self, broadcasts: usize) -> SessionOptions {
        self.broadcasts_max = broadcasts.max(1);
        self
    }

    /// Whether the kernel may join datagrams that come in, so that they arrive in larger batches; on unless switched off.
    pub fn joined(mut self, joined: bool) -> SessionOptions {
        self.joined = joined;
        self
    }

    /// Sets how the socket is bound.
    pub fn socket(mut self, options: UdpOptions) -> SessionOptions {
        self.socket = options;
        self
    }
}

/// Datagrams of unknown addresses that began no session, by why.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Refusals {
    /// There were [`SessionOptions::sessions_max`] sessions.
    pub full: u64,
    /// There were too many new ones: [`SessionOptions::sessions_per_second_max`].
    pub rate: u64,
    /// The handler refused; in the async form, too many wait to be accepted.
    pub handler: u64,
}

/// A payload on its way to all sessions.
pub(super) struct Broadcast {
    pub(super) payload: Bytes,
    /// The next slot.
    pub(super) slot: usize,
    /// The newest session that gets it.
    pub(super) serial: u64,
}

/// Virtual connections over one socket: a session for each address that sends something.
///
/// The first datagram of an unknown address makes a session, if the bounds and the handler allow it; it is delivered as
/// the first one of the session. A session ends when its peer has been silent for
/// [`SessionOptions::idle`], by a call, by an error of the handler, or when the sessions are stopped; it ends once, with
/// one [`SessionEnd`], and its [id](SessionId) never names another one. There is nothing on the wire but what the
/// program sends: a peer is not told that it was refused or that its session has ended, and an address proves nothing
/// about who sends from it.
///
/// They are driven by [`serve`](Self::serve) with a [handler](super::SessionHandler), or by [`accept`](Self::accept),
/// which gives each session as an object with `recv` and `send`. Clones are the same sessions; when the last one is
/// dropped they are stopped (those that a handler gets do not count).
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # anabranch::block_on(async {
/// use anabranch::component::udp::{SessionOptions, UdpSessions};
///
/// let sessions = UdpSessions::bind("127.0.0.1:0".parse().unwrap(), SessionOptions::new())?;
/// let client = anabranch::net::UdpSocket::bind("127.0.0.1:0").await?;
/// client.send_to("hello", sessions.local_addr()?).await?;
///
/// let mut session = sessions.accept().await?;
/// assert_eq!(session.peer(), client.local_addr()?);
/// let first = session.recv().await.expect("its first datagram");
/// session.send(first.lease).await?;
/// assert_eq!(&*client.recv_from().await?.lease, b"hello");
/// # std::io::Result::Ok(())
/// # })?
/// # }
/// ```
#[derive(Clone)]
pub struct UdpSessions {
    pub(super) inner: Rc<Inner>,
    /// Nothing in the loop's own reference, which shall not keep it going.
    _hold: Option<Rc<Hold>>,
}

pub(super) struct Inner {
    pub(super) endpoint: Endpoint,
    pub(super) options: SessionOptions,
    pub(super) table: RefCell<Table>,
    pub(super) rate: RefCell<Rate>,
    /// Sessions that have ended and whose end is not told yet.
    pub(super) ended: RefCell<VecDeque<(SessionId, SessionEnd)>>,
    pub(super) broadcasts: RefCell<VecDeque<Broadcast>>,
    pub(super) refusals: Cell<Refusals>,
    pub(super) stopping: Cell<bool>,
    pub(super) served: Cell<bool>,
    /// The loop's, when it waits.
    pub(super) waker: Cell<Option<Waker>>,
    /// Of the async form.
    pub(super) waiting: RefCell<Option<Rc<Waiting>>>,
}

/// Who holds the sessions; the last one stops them.
struct Hold(Weak<Inner>);

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.stop();
        }
    }
}

impl Inner {
    pub(super) fn stop(&self) {
        self.stopping.set(true);
        self.wake();
    }

    /// Lets the loop look.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ends a session; false if it had ended.
    pub(super) fn close(&self, id: SessionId, end: SessionEnd) -> bool {
        let closed = self.table.borrow_mut().close(id);
        if closed {
            self.ended.borrow_mut().push_back((id, end));
            self.wake();
        }
        closed
    }

    pub(super) fn refuse(&self, count: impl FnOnce(&mut Refusals)) {
        let mut refusals = self.refusals.get();
        count(&mut refusals);
        self.refusals.set(refusals);
    }
}

impl UdpSessions {
    /// Binds to an address on the current shard. Port 0 takes a free one. Nothing is received before the sessions are
    /// served.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::bind_with`].
    pub fn bind(address: SocketAddr, options: SessionOptions) -> io::Result<UdpSessions> {
        let socket = UdpSocket::bind_with(address, &options.socket)?;
        Ok(UdpSessions::over(socket, options))
    }

    /// Binds on this shard: each shard of the group calls this with the same address, and the kernel gives each peer to
    /// one of them, as long as no shard joins or leaves. Each shard has sessions, ids and bounds of its own.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::bind_group_with`].
    pub fn bind_group(
        group: &GroupContext,
        address: SocketAddr,
        options: SessionOptions,
    ) -> io::Result<UdpSessions> {
        let socket = UdpSocket::bind_group_with(group, address, &options.socket)?;
        Ok(UdpSessions::over(socket, options))
    }

    /// Sessions over a socket that is bound already.
    pub fn over(socket: UdpSocket, options: SessionOptions) -> UdpSessions {
        let inner = Rc::new(Inner {
            endpoint: Endpoint::new(socket, options.datagram_bytes_max, options.joined),
            table: RefCell::new(Table::new()),
            rate: RefCell::new(Rate::new(options.sessions_per_second_max)),
            ended: RefCell::default(),
            broadcasts: RefCell::default(),
            refusals: Cell::default(),
            stopping: Cell::default(),
            served: Cell::default(),
            waker: Cell::default(),
            waiting: RefCell::default(),
            options,
        });
        let hold = Rc::new(Hold(Rc::downgrade(&inner)));
        UdpSessions { inner, _hold: Some(hold) }
    }

    /// The same sessions, without keeping them going.
    pub(super) fn unheld(&self) -> UdpSessions {
        UdpSessions { inner: Rc::clone(&self.inner), _hold: None }
    }

    /// The socket, to ask it and to set options. What is received and sent on it directly is counted nowhere.
    pub fn socket(&self) -> &UdpSocket {
        &self.inner.endpoint.socket
    }

    /// The address they are bound to.
    ///
    /// # Errors
    ///
    /// If the socket is closed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }

    /// Sessions that are open.
    pub fn len(&self) -> usize {
        self.inner.table.borrow().open()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of all open sessions, in no order.
    pub fn ids(&self) -> Vec<SessionId> {
        self.inner.table.borrow().ids().collect()
    }

    /// What is known of all open sessions, in no order.
    pub fn infos(&self) -> Vec<SessionInfo> {
        let (table, now) = (self.inner.table.borrow(), crate::time::now());
        table.ids().filter_map(|id| table.info(id, now)).collect()
    }

    /// What is known of a session; nothing if it has ended.
    pub fn info(&self, id: SessionId) -> Option<SessionInfo> {
        let table = self.inner.table.borrow();
        if table.is_open(id) { table.info(id, crate::time::now()) } else { None }
    }

    /// The session of an address, as the socket tells it: a socket of IPv6 tells addresses of IPv4 as mapped ones.
    pub fn find(&self, peer: SocketAddr) -> Option<SessionId> {
        self.inner.table.borrow().find(peer)
    }

    /// What went in and out so far.
    pub fn counters(&self) -> UdpCounters {
        self.inner.endpoint.meter().read()
    }

    /// Datagrams of unknown addresses that began no session.
    pub fn refusals(&self) -> Refusals {
        self.inner.refusals.get()
    }

    fn peer_of(&self, id: SessionId) -> Result<SocketAddr, SendError> {
        let table = self.inner.table.borrow();
        if table.is_open(id) { table.peer(id).ok_or(SendError::NoSession) } else { Err(SendError::NoSession) }
    }

    /// Queues a datagram to the peer of a session if there is room now; else it is dropped and counted.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    pub fn try_send(&self, id: SessionId, payload: impl Into<Payload>) -> Result<(), SendError> {
        let (peer, payload) = (self.peer_of(id)?, payload.into());
        let bytes = payload.len();
        self.inner.endpoint.try_send(payload, peer, SendOptions::new())?;
        self.inner.table.borrow_mut().sent(id, bytes);
        Ok(())
    }

    /// Queues a datagram to the peer of a session; waits while [`Limits::datagrams_outbound_max`](crate::Limits) are
    /// queued.
    ///
    /// Cancel-safe: dropped before it completes, it sends nothing.
    ///
    /// # Errors
    ///
    /// [`SendError`], but not [`SendError::Full`].
    pub async fn send(&self, id: SessionId, payload: impl Into<Payload>) -> Result<(), SendError> {
        let (peer, payload) = (self.peer_of(id)?, payload.into());
        let bytes = payload.len();
        self.inner.endpoint.send(payload, peer, SendOptions::new()).await?;
        self.inner.table.borrow_mut().sent(id, bytes);
        Ok(())
    }

    /// Sends a datagram to every session that is open now; gives their number. The bytes are shared, not copied. The
    /// datagrams leave by and by, as there is room, each broadcast behind the one before; a session that ends meanwhile
    /// gets none.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLong`], [`SendError::Stopped`], or [`SendError::Full`] if [`SessionOptions::broadcasts_max`] wait.
    pub fn broadcast(&self, payload: impl Into<Bytes>) -> Result<usize, SendError> {
        let (payload, inner) = (payload.into(), &self.inner);
        let (bytes, max) = (payload.len(), inner.options.datagram_bytes_max);
        if bytes > max {
            return Err(SendError::TooLong { bytes, max });
        }
        if inner.stopping.get() {
            return Err(SendError::Stopped);
        }
        if inner.broadcasts.borrow().len() >= inner.options.broadcasts_max {
            return Err(SendError::Full);
        }
        let serial = inner.table.borrow().serial();
        inner.broadcasts.borrow_mut().push_back(Broadcast { payload, slot: 0, serial });
        inner.wake();
        Ok(self.len())
    }

    /// Ends a session with [`SessionEnd::Closed`]; false if it had ended. What was queued to the peer is still sent. A
    /// further datagram of the same address makes a new session.
    pub fn close(&self, id: SessionId) -> bool {
        self.inner.close(id, SessionEnd::Closed)
    }

    /// Ends every session whose peer has been silent for at least `idle`; gives their number.
    pub fn close_idle(&self, idle: Duration) -> usize {
        let now = crate::time::now();
        let next = || self.inner.table.borrow().oldest();
        let is_due = |heard: Instant| now.saturating_duration_since(heard) >= idle;
        let mut closed = 0;
        while let Some((id, _)) = next().filter(|(_, heard)| is_due(*heard)) {
            closed += usize::from(self.close(id));
        }
        closed
    }

    /// Ends every session that is at least so old; gives their number.
    pub fn close_older(&self, age: Duration) -> usize {
        let old = self.infos().into_iter().filter(|info| info.age >= age);
        old.filter(|info| self.close(info.id)).count()
    }

    /// Ends every session; gives their number.
    pub fn close_all(&self) -> usize {
        self.close_with(|| SessionEnd::Closed)
    }

    pub(super) fn close_with(&self, end: impl Fn() -> SessionEnd) -> usize {
        self.ids().into_iter().filter(|id| self.inner.close(*id, end())).count()
    }

    /// Stops: every session ends with [`SessionEnd::Shutdown`], then [`serve`](Self::serve) ends.
    pub fn stop(&self) {
        self.inner.stop();
    }
}

impl fmt::Debug for UdpSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UdpSessions({} open)", self.len())
    }
}
