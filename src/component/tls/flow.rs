//! The sealed bytes of one connection on their way: what is received is opened, what is sealed is queued.
//!
//! The endpoint below bounds both directions. Ciphertext stays in its inbound queue until somebody wants plaintext; and
//! plaintext is sealed only when its ciphertext may be queued, since what is sealed has to leave, in order. So nothing that
//! a future is dropped with is lost, and a peer that does not read holds up a sender as on a plain connection.
#![forbid(unsafe_code)]

use super::stream::{TlsStream, Transport};
use crate::api::gather::Inbound;
use crate::api::stream::Flow;
use crate::api::time::timeout;
use crate::buf::{Lease, Payload};
use crate::error::{Error, Full};
use crate::proto::tls::{Session, TlsError, TlsInfo, sealed_len};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// How long the peer of a handshake that failed may take to hear why, and how many bytes it may send meanwhile.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: usize = 64 * 1024;

/// A connection and its TLS. Nobody else reads or writes the connection.
pub(crate) struct TlsFlow {
    pub(super) transport: Transport,
    session: RefCell<Session>,
    /// Ciphertext that there was no room for: what the protocol itself has to say.
    held: RefCell<Option<Payload>>,
}

impl TlsFlow {
    pub(super) fn new(transport: Transport, session: Session) -> TlsFlow {
        TlsFlow { transport, session: RefCell::new(session), held: RefCell::default() }
    }

    fn flow(&self) -> &Flow {
        self.transport.flow()
    }

    pub(super) fn info(&self) -> Option<TlsInfo> {
        self.session.borrow().info()
    }

    /// The end of a handshake. If it has failed by what the peer did, the peer hears why; `failed` is told at once.
    pub(super) async fn concluded(
        self,
        outcome: Result<(), TlsError>,
        failed: impl FnOnce(&TlsError),
    ) -> Result<TlsStream, TlsError> {
        if let Err(error) = &outcome {
            failed(error);
        }
        if matches!(outcome, Err(TlsError::Refused(_))) {
            let _ = timeout(FAREWELL, self.farewell()).await;
        }
        outcome.map(|()| TlsStream::new(self))
    }

    /// Does the handshake.
    pub(super) fn poll_handshake(&self, context: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        loop {
            // If it cannot be sent, what was received says why.
            if self.poll_push(context).is_pending() {
                return Poll::Pending;
            }
            let session = self.session.borrow();
            if !session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if let Some(end) = session.end() {
                return Poll::Ready(Err(end.err().unwrap_or(TlsError::Truncated)));
            }
            drop(session);
            ready!(self.poll_feed(context))?;
        }
    }

    /// Sends the alert, and takes what the peer still sends: a system that closes a connection with bytes that nobody has
    /// read resets it, and the alert may be lost by that.
    async fn farewell(&self) -> io::Result<()> {
        self.flow().shutdown(Shutdown::Write).await?;
        let mut left = FAREWELL_BYTES;
        while let Some(lease) = self.flow().recv().await? {
            left = left.saturating_sub(lease.len());
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Takes ciphertext out of the connection and opens it, once.
    fn poll_feed(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.flow().poll_recv(context))? {
            Some(mut lease) => {
                self.session.borrow_mut().feed(&mut lease);
                self.flow().unread(lease);
            }
            None => self.session.borrow_mut().feed_end(),
        }
        Poll::Ready(Ok(()))
    }

    /// The next plaintext; none at its end.
    pub(crate) fn poll_recv(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        loop {
            let mut session = self.session.borrow_mut();
            if let Some(lease) = session.take_plain() {
                return Poll::Ready(Ok(Some(lease)));
            }
            if let Some(end) = session.end() {
                return Poll::Ready(end.map(|()| None).map_err(Into::into));
            }
            drop(session);
            ready!(self.poll_feed(context))?;
            // Whether it can be sent is no business of a receiver.
            let _ = self.push();
        }
    }

    /// Queues what the protocol itself has to say, as far as there is room. The rest goes ahead of what is sent next.
    fn push(&self) -> io::Result<()> {
        let mut held = self.held.borrow_mut();
        while held.is_some() || self.session.borrow().wants_write() {
            if held.is_none() {
                *held = Some(self.session.borrow_mut().take_sealed().into());
            }
            self.flow().offer(&mut held)?;
            if held.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// The same until all of it is queued.
    fn poll_push(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut held = self.held.borrow_mut();
            if held.is_none() {
                let mut session = self.session.borrow_mut();
                if !session.wants_write() {
                    return Poll::Ready(Ok(()));
                }
                *held = Some(session.take_sealed().into());
            }
            ready!(self.flow().poll_send(context, &mut held))?;
        }
    }

    /// Seals a payload and queues it, when there is room for all of it; takes it then.
    pub(crate) fn poll_send(
        &self,
        context: &mut Context<'_>,
        payload: &mut Option<Payload>,
    ) -> Poll<io::Result<()>> {
        let Some(bytes) = payload.as_ref().map(|payload| payload.len()) else { return Poll::Ready(Ok(())) };
        if self.session.borrow().is_closed() {
            return Poll::Ready(Err(self.refusal()));
        }
        ready!(self.poll_push(context))?;
        ready!(self.flow().poll_room(context, sealed_len(bytes)))?;
        if let Some(taken) = payload.take() {
            let sealed = self.session.borrow_mut().seal(&taken);
            *self.held.borrow_mut() = Some(sealed.into());
            self.push()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Seals and queues a payload if there is room for it; leaves it where it is if not.
    pub(crate) fn try_send(&self, payload: &mut Option<Payload>) -> Result<io::Result<()>, Full<()>> {
        let Some(bytes) = payload.as_ref().map(|payload| payload.len()) else { return Ok(Ok(())) };
        if self.session.borrow().is_closed() {
            return Ok(Err(self.refusal()));
        }
        if let Err(error) = self.push() {
            return Ok(Err(error));
        }
        if self.held.borrow().is_some() || !self.flow().has_room(sealed_len(bytes)) {
            return Err(Full(()));
        }
        if let Some(taken) = payload.take() {
            let sealed = self.session.borrow_mut().seal(&taken);
            *self.held.borrow_mut() = Some(sealed.into());
        }
        Ok(self.push())
    }

    /// Why nothing more is sealed.
    fn refusal(&self) -> io::Error {
        match self.session.borrow().end() {
            Some(Err(error)) => error.into(),
            _ => Error::Closed.into(),
        }
    }

    pub(crate) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_push(context))?;
        self.flow().poll_flush(context)
    }

    /// Ciphertext that has not left.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.flow().queued_bytes() + self.held.borrow().as_ref().map_or(0, |payload| payload.len())
    }

    /// Says that nothing more is sent (`close_notify`), after what is queued.
    pub(crate) fn start_close(&self) {
        self.session.borrow_mut().close();
        let _ = self.push();
    }

    /// Ends the outbound side of the connection after all that, and waits until it has.
    pub(super) async fn shutdown(&self) -> io::Result<()> {
        self.start_close();
        poll_fn(|context| self.poll_push(context)).await?;
        self.flow().shutdown(Shutdown::Write).await
    }

    /// Says so, sends what is queued and closes the connection.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.start_close();
        let patience = Duration::from_millis(self.flow().core.config.limits.close_flush_ms);
        let pushed = timeout(patience, poll_fn(|context| self.poll_push(context))).await;
        self.transport.let_go();
        // In a box, because a task is as large as the largest future that it ever waits for, and this comes once.
        let closed = Box::pin(self.flow().close()).await;
        pushed?.and(closed)
    }
}

impl Inbound for TlsFlow {
    fn poll_recv(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        TlsFlow::poll_recv(self, context)
    }

    fn unread(&self, lease: Lease) {
        if !lease.is_empty() {
            self.session.borrow_mut().put_back(lease);
        }
    }
}

impl Drop for TlsFlow {
    /// As a plain connection, it says that it ends, if there is room for that, and sends what is queued.
    fn drop(&mut self) {
        let is_open = {
            let session = self.session.borrow();
            !session.is_handshaking() && !session.is_closed()
        };
        if is_open {
            self.start_close();
        }
    }
}
