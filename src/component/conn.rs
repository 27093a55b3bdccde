//! [`Conn`]: a connection in the hands of its handler.
#![forbid(unsafe_code)]

use super::session::{Sending, Session};
use crate::buf::{Lease, Payload};
use crate::codec::Pull;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A connection in the hands of its handler: it receives and sends, and has the handler's own state. All that is known of
/// the connection is in its [`Session`], which this dereferences to.
pub struct Conn<S = ()> {
    session: Rc<Session>,
    pull: Option<Pull>,
    /// The stream has ended; what was pulled may still wait.
    ended: bool,
    /// What the handler keeps for this connection.
    pub state: S,
}

impl<S> Conn<S> {
    pub(super) fn new(session: Rc<Session>, state: S) -> Conn<S> {
        Conn { session, pull: None, ended: false, state }
    }

    /// The connection as others on this shard see it; they may keep it.
    pub fn session(&self) -> &Rc<Session> {
        &self.session
    }

    /// The next message of the codec, or, without a codec, the next bytes as they came; `None` at the end of the stream.
    ///
    /// Cancel-safe. Messages come in the order in which they were sent.
    ///
    /// # Errors
    ///
    /// What the connection met; what the codec refused, with a [`CodecError`](crate::codec::CodecError) inside.
    pub fn recv(&mut self) -> impl Future<Output = io::Result<Option<Lease>>> {
        Receiving(self)
    }

    /// Queues a message, framed by the codec if there is one. Waits while the queue is full
    /// ([`Limits::outbound_bytes_max`](crate::Limits)); a peer that takes nothing meanwhile ends the connection
    /// ([`Policy::write_stall_timeout`](crate::component::Policy)). The bytes leave at the end of the loop's turn.
    ///
    /// Cancel-safe: dropped before it completes, it sends nothing of the message.
    ///
    /// # Errors
    ///
    /// What the connection met; `InvalidData` if the codec cannot send the message, which ends nothing if the handler goes
    /// on.
    pub fn send(&mut self, message: impl Into<Payload>) -> impl Future<Output = io::Result<()>> {
        SendingTo { session: &self.session, sending: Sending::new(message.into()) }
    }

    /// Completes when everything queued is with the kernel. Cancel-safe.
    ///
    /// # Errors
    ///
    /// What the connection met.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.session.poll_flush(context))
            .await
            .map_err(|error| self.session.blame_error(error))
    }

    // Pulling: the program says how much it wants.

    /// From now on bytes are kept until they are fetched, at most `max` of them (and what one receive brings more). For connections without a
    /// codec.
    pub fn pull(&mut self, max: usize) {
        self.pull.get_or_insert_with(|| Pull::new(max));
    }

    /// Whether [`pull`](Self::pull)'s bound is reached.
    pub(super) fn is_full(&self) -> bool {
        self.pull.as_ref().is_some_and(|pull| pull.len() >= pull.bytes_max())
    }

    /// Whether the peer has ended its side, and everything before that was received.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Bytes that are there to be fetched.
    pub fn available(&self) -> usize {
        self.pull.as_ref().map_or(0, Pull::len)
    }

    /// Waits until at least `n` bytes are there; fewer if the stream ends before. Gives how many are there.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `n` is above the bound given to [`pull`](Self::pull), or as [`recv`](Self::recv).
    pub async fn fill(&mut self, n: usize) -> io::Result<usize> {
        let max = self.pull.as_ref().map_or(0, Pull::bytes_max);
        if n > max {
            let text = format!("{n} bytes are asked for where pull({max}) is the bound; pull more");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        while self.available() < n && self.more().await? {}
        Ok(self.available())
    }

    /// Waits for more bytes to fetch; false at the end of the stream, or if the bound is reached.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub async fn more(&mut self) -> io::Result<bool> {
        if self.ended || self.pull.as_ref().is_none_or(|pull| pull.len() >= pull.bytes_max()) {
            return Ok(false);
        }
        let Some(lease) = self.recv().await? else { return Ok(false) };
        if let Some(pull) = &mut self.pull {
            let pushed = pull.push(lease);
            debug_assert!(pushed.is_ok(), "there is room below the bound");
        }
        Ok(true)
    }

    /// What was received and not fetched; none if nothing is pulled.
    pub fn pulled(&mut self) -> Option<&mut Pull> {
        self.pull.as_mut()
    }

    /// Fetches exactly `n` bytes; `None` if the stream ended before any of them.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the stream ends among them (what came can still be fetched), or as [`fill`](Self::fill).
    pub async fn fetch(&mut self, n: usize) -> io::Result<Option<Lease>> {
        match self.fill(n).await? {
            there if there >= n => Ok(self.pull.as_mut().and_then(|pull| pull.fetch(n))),
            0 => Ok(None),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<S> Deref for Conn<S> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl<S> fmt::Debug for Conn<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.session.fmt(f)
    }
}

/// Waits for a message. By hand, because the task of a connection is as large as what it waits for.
struct Receiving<'a, S>(&'a mut Conn<S>);

impl<S> Future for Receiving<'_, S> {
    type Output = io::Result<Option<Lease>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let conn = &mut *self.get_mut().0;
        let received = conn.session.poll_recv(context).map_err(|error| conn.session.blame_error(error));
        if let Poll::Ready(Ok(None)) = received {
            conn.ended = true;
        }
        received
    }
}

struct SendingTo<'a> {
    session: &'a Session,
    sending: Sending,
}

impl Future for SendingTo<'_> {
    type Output = io::Result<()>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let SendingTo { session, sending } = &mut *self;
        session.poll_send(context, sending).map_err(|error| match error.kind() {
            // Of this message only.
            io::ErrorKind::InvalidData => error,
            _ => session.blame_error(error),
        })
    }
}
