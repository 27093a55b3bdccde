//! The async form of sessions: a handler whose state is an inbox.
//!
//! A datagram goes to whom it is for as it came if somebody waits for it; one that has to wait is copied out of the
//! pool, so that sessions nobody reads pin no buffers. Both queues are bounded.
#![forbid(unsafe_code)]

use super::SendError;
use super::serve::{Session, SessionHandler};
use super::sessions::UdpSessions;
use super::table::{SessionEnd, SessionId, SessionInfo};
use crate::buf::Payload;
use crate::net::Datagram;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Sessions that nobody has accepted yet, and who waits for one.
#[derive(Default)]
pub(super) struct Waiting {
    queue: RefCell<VecDeque<(SessionId, SocketAddr, Rc<Inbox>)>>,
    wakers: RefCell<Vec<Waker>>,
    over: Cell<bool>,
}

impl Waiting {
    fn wake(&self) {
        self.wakers.take().into_iter().for_each(Waker::wake);
    }
}

/// What a session has received and nobody has taken.
#[derive(Default)]
struct Inbox {
    queue: RefCell<VecDeque<Datagram>>,
    waker: Cell<Option<Waker>>,
    end: RefCell<Option<SessionEnd>>,
    ended: Cell<bool>,
    /// It stands, or has stood, in the queue of those to be accepted.
    offered: Cell<bool>,
}

impl Inbox {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Keeps a datagram; false if there is no room.
    fn push(&self, datagram: Datagram, max: usize) -> bool {
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= max {
            return false;
        }
        let waker = self.waker.take();
        let waits = waker.is_none() || !queue.is_empty();
        let lease = if waits { datagram.lease.detach() } else { datagram.lease };
        queue.push_back(Datagram { lease, ..datagram });
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// The handler of the async form.
struct Acceptor(Rc<Waiting>);

impl SessionHandler for Acceptor {
    type State = Rc<Inbox>;

    fn on_accept(&mut self, sessions: &UdpSessions, _peer: SocketAddr, _first: &[u8]) -> Option<Rc<Inbox>> {
        let room = self.0.queue.borrow().len() < sessions.inner.options.waiting_max;
        room.then(Rc::default)
    }

    fn on_receive(&mut self, session: &mut Session<'_, Rc<Inbox>>, datagram: Datagram) -> io::Result<()> {
        let (id, inbox) = (session.id(), Rc::clone(session.state));
        let inner = &session.sessions().inner;
        if !inbox.push(datagram, inner.options.inbox_datagrams_max) {
            inner.table.borrow_mut().dropped(id);
        }
        if !inbox.offered.replace(true) {
            self.0.queue.borrow_mut().push_back((id, session.peer(), inbox));
            self.0.wake();
        }
        Ok(())
    }

    fn on_close(&mut self, _: &UdpSessions, session: SessionInfo, inbox: Rc<Inbox>, end: SessionEnd) {
        // Who has not been accepted yet is not accepted any more.
        self.0.queue.borrow_mut().retain(|(id, ..)| *id != session.id);
        *inbox.end.borrow_mut() = Some(end);
        inbox.ended.set(true);
        inbox.wake();
    }

    fn on_shutdown(&mut self) {
        self.0.over.set(true);
        self.0.wake();
    }
}

impl UdpSessions {
    /// The next session whose first datagram has come. The first call starts a task that drives the sessions, in the
    /// place of [`serve`](Self::serve).
    ///
    /// Cancel-safe: dropping the future loses no session.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the sessions are served by a handler; `NotConnected` when they have been stopped.
    pub async fn accept(&self) -> io::Result<UdpSession> {
        let waiting = self.waiting()?;
        poll_fn(|context| {
            if let Some((id, peer, inbox)) = waiting.queue.borrow_mut().pop_front() {
                return Poll::Ready(Ok(UdpSession { sessions: self.clone(), id, peer, inbox }));
            }
            if waiting.over.get() {
                return Poll::Ready(Err(SendError::Stopped.into()));
            }
            let mut wakers = waiting.wakers.borrow_mut();
            if !wakers.iter().any(|known| known.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// The queue of sessions, which a task of the runtime fills.
    fn waiting(&self) -> io::Result<Rc<Waiting>> {
        if let Some(waiting) = &*self.inner.waiting.borrow() {
            return Ok(Rc::clone(waiting));
        }
        if self.inner.served.get() {
            let text = "the sessions are served by a handler";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let waiting: Rc<Waiting> = Rc::default();
        *self.inner.waiting.borrow_mut() = Some(Rc::clone(&waiting));
        let (sessions, mut acceptor) = (self.unheld(), Acceptor(Rc::clone(&waiting)));
        crate::spawn(async move { sessions.serve(&mut acceptor).await }).detach();
        Ok(waiting)
    }
}

/// A session as an object. Dropping it ends the session.
pub struct UdpSession {
    sessions: UdpSessions,
    id: SessionId,
    peer: SocketAddr,
    inbox: Rc<Inbox>,
}

impl UdpSession {
    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The address of the peer.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// All sessions.
    pub fn sessions(&self) -> &UdpSessions {
        &self.sessions
    }

    /// The next datagram, perhaps an empty one; nothing when the session has ended and all have been taken.
    ///
    /// Cancel-safe: dropping the future loses no datagram.
    pub async fn recv(&mut self) -> Option<Datagram> {
        poll_fn(|context| {
            if let Some(datagram) = self.inbox.queue.borrow_mut().pop_front() {
                return Poll::Ready(Some(datagram));
            }
            if self.inbox.ended.get() {
                return Poll::Ready(None);
            }
            self.inbox.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Why it ended; to be asked once, when [`recv`](Self::recv) has given nothing.
    pub fn take_end(&mut self) -> Option<SessionEnd> {
        self.inbox.end.borrow_mut().take()
    }

    /// Queues a datagram to the peer; waits while [`Limits::datagrams_outbound_max`](crate::Limits) are queued.
    ///
    /// Cancel-safe: dropped before it completes, it sends nothing.
    ///
    /// # Errors
    ///
    /// [`SendError`], but not [`SendError::Full`].
    pub async fn send(&self, payload: impl Into<Payload>) -> Result<(), SendError> {
        self.sessions.send(self.id, payload).await
    }

    /// Queues a datagram to the peer if there is room now; else it is dropped and counted.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    pub fn try_send(&self, payload: impl Into<Payload>) -> Result<(), SendError> {
        self.sessions.try_send(self.id, payload)
    }

    /// Ends the session. What is queued to the peer is still sent.
    pub fn close(self) {}
}

impl Drop for UdpSession {
    fn drop(&mut self) {
        self.sessions.close(self.id);
    }
}

impl fmt::Debug for UdpSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UdpSession({:?} of {})", self.id, self.peer)
    }
}
