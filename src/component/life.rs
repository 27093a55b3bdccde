//! The life of one connection: its task, from the handshake to the last callback.
#![forbid(unsafe_code)]

use super::close::{CloseReason, Closed, Failure, Stage};
use super::conn::Conn;
use super::handler::{Handler, Idle};
use super::link::Link;
use super::member::Member;
use super::session::Session;
use super::watch::{Carried, Look, Verdict, Watch};
use crate::api::stream::Outbound;
use crate::api::time::{Sleep, sleep_until};
use crate::shard::{Close, Waiter};
use crate::trace::event;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

/// A connection that was admitted. However its task ends, its end is told once: the task may return, panic, or be dropped
/// with its shard.
pub(super) struct Life<H: Handler> {
    member: Rc<Member<H>>,
    conn: Conn<H::State>,
    /// Until it has been told.
    lives: bool,
}

impl<H: Handler> Life<H> {
    pub(super) fn new(member: Rc<Member<H>>, session: Rc<Session>, state: H::State) -> Life<H> {
        member.registry.open(&session);
        tell(&session, "connection accepted");
        Life { member, conn: Conn::new(session, state), lives: true }
    }

    /// The task of the connection. How it ended, after the handler was told.
    pub(super) async fn live(mut self) -> Closed {
        let outcome = self.work().await;
        let session = Rc::clone(self.conn.session());
        let reason = match (session.take_cause(), outcome) {
            (Some(cause), _) => cause,
            (None, Ok(())) if self.conn.has_ended() => CloseReason::PeerClosed,
            (None, Ok(())) => CloseReason::Finished,
            (None, Err(failure)) => CloseReason::Handler(failure),
        };
        let stage = session.stage();
        if let Some(link) = session.take_link() {
            match reason.is_orderly() {
                true => close(&session, link).await,
                false => link.abort(),
            }
        }
        let closed = Closed { reason, stage };
        self.end(&closed);
        closed
    }

    /// Runs the handler until it returns, a limit is passed, or somebody ends the connection.
    async fn work(&mut self) -> Result<(), Failure> {
        let Life { member, conn, .. } = self;
        let session = Rc::clone(conn.session());
        let handler = &*member.handler;
        let mut guard = Guard::new(Rc::clone(&session), handler);
        let work = async {
            let secured = match &member.doorkeeper {
                // In a box, because a task is as large as the largest future that it ever waits for.
                Some(doorkeeper) => Box::pin(doorkeeper.secure(&session)).await,
                None => true,
            };
            if !secured {
                return Ok(());
            }
            handler.on_handshake(conn).await?;
            session.set_stage(Stage::Open);
            member.registry.greet(&session);
            member.dials.opened(session.id());
            tell(&session, "connection open");
            handler.run(conn).await
        };
        let mut work = pin!(work);
        poll_fn(|context| {
            if session.is_ending() {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(outcome) = work.as_mut().poll(context) {
                return Poll::Ready(outcome);
            }
            guard.poll(context).map(Ok)
        })
        .await
    }

    /// Tells the end, once.
    fn end(&mut self, closed: &Closed) {
        if !std::mem::replace(&mut self.lives, false) {
            return;
        }
        let Life { member, conn, .. } = self;
        member.registry.close(conn.session(), &closed.reason);
        event!(
            DEBUG,
            "anabranch::connection",
            shard = conn.core.link.id,
            conn = %conn.id(),
            peer = conn.peer_addr().map(tracing::field::display),
            reason = closed.reason.name(),
            detail = %closed.reason,
            stage = ?closed.stage,
            bytes_in = conn.bytes_in(),
            bytes_out = conn.bytes_out(),
            age_ms = conn.age().as_millis() as u64,
            "connection closed"
        );
        member.call("on_close", || member.handler.on_close(conn, closed));
    }
}

impl<H: Handler> Drop for Life<H> {
    fn drop(&mut self) {
        let reason = match std::thread::panicking() {
            true => CloseReason::Panicked,
            false => CloseReason::Stopped,
        };
        if let Some(link) = self.conn.session().take_link() {
            link.abort();
        }
        let stage = self.conn.session().stage();
        self.end(&Closed { reason, stage });
    }
}

/// Tells a subscriber how far a connection has come.
fn tell(session: &Session, what: &'static str) {
    event!(
        DEBUG,
        "anabranch::connection",
        shard = session.core.link.id,
        conn = %session.id(),
        peer = session.peer_addr().map(tracing::field::display),
        "{what}"
    );
    let _ = (session, what);
}

/// Sends what is queued and closes; at once when somebody has no more patience with it.
async fn close(session: &Session, link: Link) {
    let endpoint = link.endpoint();
    let mut closing = pin!(link.close());
    poll_fn(|context| {
        session.set_task(context.waker());
        if session.take_cause().is_some_and(|cause| !cause.is_orderly()) {
            let _ = session.core.with(|state| state.close(endpoint, Close::Abort, Waiter::None));
        }
        closing.as_mut().poll(context).map(drop)
    })
    .await;
}

/// Looks after a connection while its handler waits: limits, and what the handler is told of them.
struct Guard<'a, H> {
    session: Rc<Session>,
    handler: &'a H,
    watch: Watch,
    timer: Option<Sleep>,
    /// Bytes of whose departure the handler knows.
    left: u64,
    /// The session knows the task.
    known: bool,
    /// The handler knows that it is to come to an end.
    drains: bool,
}

impl<'a, H: Handler> Guard<'a, H> {
    fn new(session: Rc<Session>, handler: &'a H) -> Guard<'a, H> {
        let watch = Watch::new(session.opened());
        Guard { session, handler, watch, timer: None, left: 0, known: false, drains: false }
    }

    /// Ready when the connection has to end; the session knows why.
    #[inline]
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.known {
            self.known = true;
            self.session.set_task(context.waker());
        }
        if self.session.is_draining() && !self.drains {
            self.drains = true;
            self.handler.on_drain(&self.session);
        }
        let now = self.session.core.recent();
        let began = self.mark(now);
        if H::REPORTS_SENT {
            self.report_sent(context);
        }
        // A connection may have been ended by one of the callbacks.
        if self.session.is_ending() {
            return Poll::Ready(());
        }
        // The timer looks at the marks when it fires; only a limit that began to run may need it earlier.
        if !began && self.timer.as_ref().is_some_and(|timer| now < timer.deadline()) {
            return Poll::Pending;
        }
        self.poll_limits(context, now)
    }

    /// Marks what has happened. True if a limit began to run.
    #[inline]
    fn mark(&mut self, now: Instant) -> bool {
        let session = &*self.session;
        let carried = Carried { bytes_in: session.bytes_in(), bytes_out: session.bytes_out() };
        let mut began = self.watch.mark(now, carried);
        if session.is_framed() {
            let partial = session.partial_bytes().is_some();
            began |= self.watch.mark_message(now, partial, session.messages_in());
        }
        session.meters.active.set(Some(self.watch.active()));
        began
    }

    fn poll_limits(&mut self, context: &mut Context<'_>, now: Instant) -> Poll<()> {
        let Outbound { queued, left } = self.session.outbound();
        let look = Look { stage: self.session.stage(), queued, left, partial: self.session.partial_bytes() };
        loop {
            match self.watch.judge(now, &self.session.policy, &look) {
                Verdict::Passed(reason) => {
                    self.session.blame(reason);
                    return Poll::Ready(());
                }
                Verdict::Idle => match self.handler.on_idle(&self.session) {
                    Idle::Close => {
                        self.session.blame(CloseReason::IdleTimeout);
                        return Poll::Ready(());
                    }
                    Idle::Keep => self.watch.keep(now),
                },
                Verdict::Wait(None) => return Poll::Pending,
                Verdict::Wait(Some(next)) => {
                    let timer = self.timer.get_or_insert_with(|| sleep_until(next));
                    // One that fires too early looks again and goes on.
                    if next < timer.deadline() || timer.deadline() <= now {
                        timer.reset(next);
                    }
                    if Pin::new(timer).poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    self.timer = None;
                }
            }
        }
    }

    fn report_sent(&mut self, context: &mut Context<'_>) {
        // What fails is met by the handler's next operation.
        let _ = self.session.poll_flush(context);
        let left = self.session.outbound().left;
        if left > self.left {
            let sent = left - std::mem::replace(&mut self.left, left);
            self.handler.on_send(&self.session, sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::handler::{Admission, Peer};
    use super::*;

    struct Nothing;

    impl Handler for Nothing {
        type State = ();

        fn on_accept(&self, _: &Peer) -> Admission<()> {
            Admission::Accept(())
        }
    }

    fn bytes_of<F: Future>(_: fn(Life<Nothing>) -> F) -> usize {
        size_of::<F>()
    }

    /// Whatever a connection may come to in its life, it is not paid for while it is idle.
    #[test]
    fn a_connection_takes_little_memory_until_it_needs_more() {
        let (task, session) = (bytes_of(Life::live), size_of::<Session>());
        assert!(task <= 768 && session <= 384, "{task} bytes of a task, {session} of a session");
    }
}
