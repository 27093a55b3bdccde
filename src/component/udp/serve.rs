//! The loop that drives sessions, and its handler.
//!
//! The loop owns the states of the sessions, so a handler has its session's state and everything of
//! [`UdpSessions`] at once. A step is taken while nothing is borrowed. Each session that the handler admitted ends by one
//! call of `on_close`, also when the loop itself is dropped.
#![forbid(unsafe_code)]

use super::SendError;
use super::UdpError;
use super::endpoint::Arrival;
use super::sessions::{Broadcast, Inner, UdpSessions};
use super::table::{SessionEnd, SessionId, SessionInfo};
use crate::buf::Payload;
use crate::net::{Datagram, Segments, SendOptions, UdpSocket};
use crate::time::{Sleep, now, sleep_until};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

/// Ends that are told, or sessions that expire, before others on the shard have their turn.
const ENDS_PER_TURN: usize = 256;
/// Slots that a broadcast looks at before others have their turn.
const SLOTS_PER_TURN: usize = 4096;

/// What becomes of sessions. Every method but [`on_accept`](Self::on_accept) has a default.
///
/// The methods run on the shard of the sessions, one at a time, and must not wait. They may do everything with the
/// [`UdpSessions`] that they get; a session that is ended there is told of when the method has returned.
pub trait SessionHandler {
    /// What the handler keeps for each session.
    type State;

    /// Before the first receive; the place to set options and join groups.
    ///
    /// # Errors
    ///
    /// Ends [`UdpSessions::serve`] with that error.
    fn on_prepare(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let _ = socket;
        Ok(())
    }

    /// An unknown address has sent its first datagram. Nothing refuses it: the datagram is dropped, and the next one asks
    /// again. The address may be forged.
    fn on_accept(&mut self, sessions: &UdpSessions, peer: SocketAddr, first: &[u8]) -> Option<Self::State>;

    /// A datagram of a session, perhaps an empty one; the first one, too. A lease that is kept for long should be
    /// [copied](crate::Lease::detach).
    ///
    /// # Errors
    ///
    /// Ends the session with [`SessionEnd::Handler`].
    fn on_receive(&mut self, session: &mut Session<'_, Self::State>, datagram: Datagram) -> io::Result<()> {
        let _ = (session, datagram);
        Ok(())
    }

    /// A session has ended; once for each that was accepted. What is known of it and its state are handed over; its peer
    /// may have a new session already.
    fn on_close(
        &mut self,
        sessions: &UdpSessions,
        session: SessionInfo,
        state: Self::State,
        end: SessionEnd,
    ) {
        let _ = (sessions, session, state, end);
    }

    /// What a datagram met. No session ends because of it.
    fn on_error(&mut self, sessions: &UdpSessions, error: UdpError) {
        let _ = (sessions, error);
    }

    /// Once, after the last [`on_close`](Self::on_close), when the sessions were stopped or the future of
    /// [`UdpSessions::serve`] is dropped.
    fn on_shutdown(&mut self) {}
}

/// A session as a handler has it for the time of a call.
pub struct Session<'a, S> {
    sessions: &'a UdpSessions,
    id: SessionId,
    peer: SocketAddr,
    /// What the handler keeps for it.
    pub state: &'a mut S,
}

impl<S> Session<'_, S> {
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
        self.sessions
    }

    /// Queues a datagram to the peer if there is room now; else it is dropped and counted.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    pub fn send(&self, payload: impl Into<Payload>) -> Result<(), SendError> {
        self.sessions.try_send(self.id, payload)
    }

    /// Ends the session with [`SessionEnd::Closed`]; no more of its datagrams come.
    pub fn close(&self) {
        self.sessions.close(self.id);
    }
}

impl<S: fmt::Debug> fmt::Debug for Session<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?} of {}, {:?})", self.id, self.peer, self.state)
    }
}

impl UdpSessions {
    /// Drives the sessions with a handler until they are [stopped](Self::stop), or the last clone outside is dropped.
    ///
    /// Dropping the future stops them, too: sessions end with [`SessionEnd::Shutdown`] there and then.
    ///
    /// # Errors
    ///
    /// What [`SessionHandler::on_prepare`] ended with; `AlreadyExists` if they are or were served already.
    pub async fn serve<H: SessionHandler>(&self, handler: &mut H) -> io::Result<()> {
        if self.inner.served.replace(true) {
            let text = "the sessions are served already";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        if let Err(error) = handler.on_prepare(self.socket()) {
            self.inner.served.set(false);
            return Err(error);
        }
        let mut serving = Serving { sessions: self.unheld(), handler, states: Vec::new(), timer: None };
        serving.run().await;
        Ok(())
    }
}

/// What is to be done next.
enum Step {
    TellEnds,
    Arrival(Arrival),
    Expire,
    Yield,
    Stop,
}

struct Serving<'a, H: SessionHandler> {
    sessions: UdpSessions,
    handler: &'a mut H,
    /// By slot.
    states: Vec<Option<H::State>>,
    /// Due when the session that has been silent longest may have to end, or before.
    timer: Option<Sleep>,
}

impl<H: SessionHandler> Serving<'_, H> {
    async fn run(&mut self) {
        loop {
            self.sessions.inner.endpoint.pause_if_failing().await;
            match poll_fn(|context| self.poll_step(context)).await {
                Step::TellEnds => {
                    if self.tell_ends(ENDS_PER_TURN) {
                        crate::yield_now().await;
                    }
                }
                Step::Arrival(Arrival::Batch(batch)) => self.receive(batch),
                Step::Arrival(Arrival::Error(error)) => self.handler.on_error(&self.sessions, error),
                Step::Expire => self.expire(now()),
                Step::Yield => crate::yield_now().await,
                Step::Stop => {
                    self.inner().stopping.set(true);
                    self.sessions.close_with(|| SessionEnd::Shutdown);
                    while self.tell_ends(ENDS_PER_TURN) {
                        crate::yield_now().await;
                    }
                    return;
                }
            }
        }
    }

    fn inner(&self) -> &Inner {
        &self.sessions.inner
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        let inner = &self.sessions.inner;
        if inner.stopping.get() {
            return Poll::Ready(Step::Stop);
        }
        if !inner.ended.borrow().is_empty() {
            return Poll::Ready(Step::TellEnds);
        }
        if inner.send_broadcasts(context) {
            return Poll::Ready(Step::Yield);
        }
        match inner.endpoint.poll_arrival(context) {
            Poll::Ready(Some(arrival)) => return Poll::Ready(Step::Arrival(arrival)),
            Poll::Ready(None) => return Poll::Ready(Step::Stop),
            Poll::Pending => {}
        }
        inner.waker.set(Some(context.waker().clone()));
        // Behind what has arrived, so that a datagram that came in time keeps its session though the process stood still.
        // What has arrived is bounded, so nobody can keep this from its turn.
        self.poll_timer(context).map(|()| Step::Expire)
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.timer.is_none() {
            self.timer = self.deadline().map(sleep_until);
        }
        match &mut self.timer {
            Some(timer) => Pin::new(timer).poll(context),
            None => Poll::Pending,
        }
    }

    /// When the session that has been silent longest has to end. The one after it never has to end before.
    fn deadline(&self) -> Option<Instant> {
        let idle = self.inner().options.idle?;
        let (_, heard) = self.inner().table.borrow().oldest()?;
        heard.checked_add(idle)
    }

    /// Ends sessions that have been silent for too long; some at a time, as the loop looks again.
    fn expire(&mut self, now: Instant) {
        self.timer = None;
        for _ in 0..ENDS_PER_TURN {
            let oldest = self.inner().table.borrow().oldest();
            match (oldest, self.deadline()) {
                (Some((id, _)), Some(deadline)) if deadline <= now => {
                    self.inner().close(id, SessionEnd::Idle);
                }
                _ => return,
            }
        }
    }

    fn receive(&mut self, batch: Segments) {
        let now = now();
        let known = self.inner().table.borrow().find(batch.from());
        let Some(id) = known.or_else(|| self.admit(&batch, now)) else { return };
        let (datagrams, bytes) = (batch.count_left(), batch.bytes().len());
        self.inner().table.borrow_mut().heard(id, now, datagrams, bytes);
        for datagram in batch {
            if !self.inner().table.borrow().is_open(id) {
                return;
            }
            self.deliver(id, datagram);
        }
    }

    /// Makes a session for an address that has none, unless a bound or the handler is against it.
    fn admit(&mut self, batch: &Segments, now: Instant) -> Option<SessionId> {
        let (inner, peer, count) = (&self.sessions.inner, batch.from(), batch.count_left() as u64);
        if inner.table.borrow().used() >= inner.options.sessions_max {
            inner.refuse(|refusals| refusals.full += count);
            return None;
        }
        if !inner.rate.borrow_mut().take(now) {
            inner.refuse(|refusals| refusals.rate += count);
            return None;
        }
        let first = &batch.bytes()[..batch.segment_bytes().min(batch.bytes().len())];
        let Some(state) = self.handler.on_accept(&self.sessions, peer, first) else {
            inner.refuse(|refusals| refusals.handler += count);
            return None;
        };
        let id = inner.table.borrow_mut().insert(peer, now);
        if self.states.len() <= id.slot() {
            self.states.resize_with(id.slot() + 1, || None);
        }
        self.states[id.slot()] = Some(state);
        Some(id)
    }

    fn deliver(&mut self, id: SessionId, datagram: Datagram) {
        let Some(state) = &mut self.states[id.slot()] else { return };
        let mut session = Session { sessions: &self.sessions, id, peer: datagram.from, state };
        if let Err(error) = self.handler.on_receive(&mut session, datagram) {
            self.inner().close(id, SessionEnd::Handler(error));
        }
    }

    /// Tells of sessions that have ended, of at most `max`; whether there are more.
    fn tell_ends(&mut self, max: usize) -> bool {
        for _ in 0..max {
            let Some((id, end)) = self.inner().ended.borrow_mut().pop_front() else { return false };
            let info = self.inner().table.borrow().info(id, now());
            let state = self.states.get_mut(id.slot()).and_then(Option::take);
            self.inner().table.borrow_mut().remove(id);
            if let (Some(info), Some(state)) = (info, state) {
                self.handler.on_close(&self.sessions, info, state, end);
            }
        }
        !self.inner().ended.borrow().is_empty()
    }
}

/// However the loop ends, each session does; but a handler that has panicked is not called again.
impl<H: SessionHandler> Drop for Serving<'_, H> {
    fn drop(&mut self) {
        self.inner().stopping.set(true);
        if !std::thread::panicking() {
            self.sessions.close_with(|| SessionEnd::Shutdown);
            while self.tell_ends(ENDS_PER_TURN) {}
            self.handler.on_shutdown();
        }
        // Their payloads may run code of their owners' when they are dropped: not while anything is borrowed.
        drop(self.inner().broadcasts.take());
        self.inner().endpoint.socket.start_close();
    }
}

impl Inner {
    /// Sends what broadcasts have to send, as far as there is room: they leave half of the queue to answers. Whether to
    /// look again soon, because there was much to do.
    fn send_broadcasts(&self, context: &mut Context<'_>) -> bool {
        let mut looks = SLOTS_PER_TURN;
        loop {
            // Taken out, because a payload may run code of its owner's when it is dropped.
            let next = self.broadcasts.borrow_mut().pop_front();
            let Some(mut broadcast) = next else { return false };
            let progress = self.send_broadcast(&mut broadcast, &mut looks, context);
            if progress != Progress::Done {
                self.broadcasts.borrow_mut().push_front(broadcast);
                return progress == Progress::Yields;
            }
        }
    }

    /// Sends a broadcast from the slot on where it stands.
    fn send_broadcast(
        &self,
        broadcast: &mut Broadcast,
        looks: &mut usize,
        context: &mut Context<'_>,
    ) -> Progress {
        let slots = self.table.borrow().slots();
        while broadcast.slot < slots {
            if *looks == 0 {
                return Progress::Yields;
            }
            *looks -= 1;
            if let Some((id, peer)) = self.member(broadcast) {
                if !self.endpoint.socket.is_half_empty(context.waker()) {
                    return Progress::Waits;
                }
                let (payload, bytes) = (broadcast.payload.clone(), broadcast.payload.len());
                match self.endpoint.offer(payload.into(), peer, SendOptions::new(), Some(context.waker())) {
                    Err(_full) => return Progress::Waits,
                    Ok(Ok(())) => self.table.borrow_mut().sent(id, bytes),
                    Ok(Err(_counted)) => {}
                }
            }
            broadcast.slot += 1;
        }
        Progress::Done
    }

    /// The session in the slot where a broadcast stands, if it was there when the broadcast began.
    fn member(&self, broadcast: &Broadcast) -> Option<(SessionId, SocketAddr)> {
        let table = self.table.borrow();
        let id = table.at(broadcast.slot).filter(|id| id.serial() <= broadcast.serial)?;
        Some((id, table.peer(id)?))
    }
}

/// How far a broadcast has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    /// There is no room now.
    Waits,
    /// Others shall have their turn.
    Yields,
}
