//! What connections of every family have in common: receiving, sending, closing.
//!
//! A [`Flow`] is a reference to a stream endpoint. Futures made here only look at the endpoint's queues: dropping
//! one forgets its waker and nothing else (invariant 8).
#![forbid(unsafe_code)]

use super::gather::{self, Inbound};
use super::time::timeout;
use crate::buf::{Lease, Payload};
use crate::driver::Descriptor;
use crate::driver::FdRef;
use crate::error::{Error, Full};
use crate::shard::{Close, Common, Core, EndpointId, Engine, Paused, Read, Stream, Waiter};
use bytes::Bytes;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A reference to a stream endpoint.
pub(crate) struct Flow {
    pub(crate) core: Rc<Core>,
    pub(crate) id: EndpointId,
    /// So that the descriptor can be borrowed. Given up before closing, which needs the last reference.
    fd: Option<FdRef>,
}

/// The outbound side of a connection, for whoever looks after it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outbound {
    /// Bytes queued or in flight.
    pub(crate) queued: usize,
    /// Bytes that have left since they are counted: whether it changes is what tells.
    pub(crate) left: u64,
}

fn waiter(context: &Context<'_>) -> Waiter {
    Waiter::Future(context.waker().clone())
}

impl Flow {
    pub(crate) fn new(core: Rc<Core>, id: EndpointId) -> Flow {
        let fd = core.with(|state| state.fd(id)).ok().flatten();
        Flow { core, id, fd }
    }

    pub(crate) fn descriptor(&self) -> &FdRef {
        self.fd.as_ref().expect("an open connection has its descriptor")
    }

    /// Gives the descriptor up, before the connection closes or is given away.
    pub(crate) fn let_go(&mut self) {
        self.fd = None;
    }

    /// Looks at the endpoint; an error if it has ended.
    fn with<R>(&self, work: impl FnOnce(&mut Stream, &mut Common, &mut Engine) -> R) -> Result<R, Error> {
        self.core.with(|state| state.stream(self.id, work))?
    }

    pub(crate) async fn connected(&self) -> io::Result<()> {
        let outcome = poll_fn(|context| {
            let looked = self.with(|stream, _, engine| stream.connected(waiter(context), engine));
            match looked {
                Ok(None) => Poll::Pending,
                Ok(Some(outcome)) => Poll::Ready(outcome),
                Err(error) => Poll::Ready(Err(error)),
            }
        });
        Ok(outcome.await?)
    }

    pub(crate) fn poll_recv(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        match self.with(|stream, core, engine| stream.read(core, engine, || waiter(context))) {
            Ok(Read::Data(lease)) => Poll::Ready(Ok(Some(lease))),
            Ok(Read::End) => Poll::Ready(Ok(None)),
            Ok(Read::Nothing) => Poll::Pending,
            Ok(Read::Failed(error)) | Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    pub(crate) fn recv(&self) -> Receiving<'_> {
        Receiving(self)
    }

    pub(crate) fn unread(&self, lease: Lease) {
        if !lease.is_empty() {
            self.unread_lease(lease);
        }
    }

    pub(crate) fn unread_lease(&self, lease: Lease) {
        let _ = self.with(|stream, _, engine| stream.unread(engine, lease));
    }

    /// Takes what was received before the standing receive ended, and ends it.
    pub(crate) fn poll_pause(&self, context: &mut Context<'_>) -> Poll<io::Result<Paused>> {
        match self.with(|stream, core, engine| stream.pause_reading(core, engine, || waiter(context))) {
            Ok(Some(paused)) => Poll::Ready(Ok(paused)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Receives may be armed again.
    pub(crate) fn resume_reading(&self) {
        let _ = self.with(|stream, _, _| stream.resume_reading());
    }

    /// A reference to the socket, for an operation; none if it is closed.
    pub(crate) fn socket(&self) -> Option<FdRef> {
        self.fd.clone()
    }

    pub(crate) fn poll_send(
        &self,
        context: &mut Context<'_>,
        payload: &mut Option<Payload>,
    ) -> Poll<io::Result<()>> {
        let Some(taken) = payload.take() else { return Poll::Ready(Ok(())) };
        let looked = self.with(|stream, core, engine| match stream.send(core, engine, taken, None) {
            Ok(outcome) => Poll::Ready(outcome),
            Err(Full(back)) => {
                *payload = Some(back);
                stream.wait_for_room(engine, waiter(context));
                Poll::Pending
            }
        });
        match looked {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(outcome)) => Poll::Ready(outcome.map_err(Into::into)),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Queues payloads that stay together, all or none; leaves them where they are if there is no room.
    pub(crate) fn poll_send_together(
        &self,
        context: &mut Context<'_>,
        payloads: &mut Vec<Payload>,
    ) -> Poll<io::Result<()>> {
        let looked = self.with(|stream, core, engine| match stream.send_together(core, engine, payloads) {
            Ok(outcome) => Poll::Ready(outcome),
            Err(Full(())) => {
                stream.wait_for_room(engine, waiter(context));
                Poll::Pending
            }
        });
        match looked {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// The same without waiting.
    pub(crate) fn try_send_together(&self, payloads: &mut Vec<Payload>) -> Result<io::Result<()>, Full<()>> {
        match self.with(|stream, core, engine| stream.send_together(core, engine, payloads)) {
            Ok(outcome) => outcome.map(|sent| sent.map_err(Into::into)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    /// What waits to be sent, and what has left.
    pub(crate) fn outbound(&self) -> Outbound {
        let look = |stream: &mut Stream, _: &mut Common, _: &mut Engine| Outbound {
            queued: stream.outbound_bytes(),
            left: stream.bytes_left(),
        };
        self.with(look).unwrap_or_default()
    }

    /// Whether `bytes` more may be queued. A connection that has ended has room: whoever uses it is told.
    #[cfg(feature = "tls")]
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.with(|stream, _, engine| stream.has_room(engine, bytes)).unwrap_or(true)
    }

    /// Waits until `bytes` more may be queued.
    #[cfg(feature = "tls")]
    pub(crate) fn poll_room(&self, context: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        let looked = self.with(|stream, _, engine| match stream.has_room(engine, bytes) {
            true => Poll::Ready(Ok(())),
            false => {
                stream.wait_for_room(engine, waiter(context));
                Poll::Pending
            }
        });
        looked.unwrap_or_else(|error| Poll::Ready(Err(error.into())))
    }

    /// Queues a payload if there is room, and else leaves it where it is.
    #[cfg(feature = "tls")]
    pub(crate) fn offer(&self, payload: &mut Option<Payload>) -> io::Result<()> {
        let Some(taken) = payload.take() else { return Ok(()) };
        match self.with(|stream, core, engine| stream.send(core, engine, taken, None))? {
            Ok(outcome) => Ok(outcome?),
            Err(Full(back)) => {
                *payload = Some(back);
                Ok(())
            }
        }
    }

    /// Bytes queued or on their way to the kernel.
    #[cfg(feature = "tls")]
    pub(crate) fn queued_bytes(&self) -> usize {
        self.with(|stream, _, _| stream.outbound_bytes()).unwrap_or(0)
    }

    pub(crate) fn send(&self, payload: Payload) -> Sending<'_> {
        Sending { flow: self, payload }
    }

    pub(crate) async fn send_vectored(&self, payloads: impl IntoIterator<Item = Payload>) -> io::Result<()> {
        for payload in payloads {
            self.send(payload).await?;
        }
        Ok(())
    }

    pub(crate) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.with(|stream, _, engine| stream.flushed(engine, waiter(context))) {
            Ok(None) => Poll::Pending,
            Ok(Some(outcome)) => Poll::Ready(outcome.map_err(Into::into)),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    pub(crate) async fn flush(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    pub(crate) fn start_shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how == Shutdown::Read {
            return self.on_socket(|socket| socket.shutdown(Shutdown::Read));
        }
        self.with(|stream, core, engine| stream.start_shutdown(core, engine, how, Waiter::None))?;
        Ok(())
    }

    pub(crate) fn poll_shut_down(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.with(|stream, _, engine| stream.shutdown_done(engine, waiter(context))) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    pub(crate) async fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.start_shutdown(how)?;
        poll_fn(|context| self.poll_shut_down(context)).await
    }

    pub(crate) fn start_close(&self, how: Close) {
        let _ = self.core.with(|state| state.close(self.id, how, Waiter::None));
    }

    /// Sends what is queued, closes, and says whether everything left in time.
    pub(crate) async fn close(&self) -> io::Result<()> {
        let patience = Duration::from_millis(self.core.config.limits.close_flush_ms);
        let flushed = timeout(patience, self.flush()).await;
        let how = if flushed.is_ok() { Close::Flush } else { Close::Abort };
        closed(&self.core, self.id, how).await;
        flushed?
    }

    /// Works on the socket itself: options and addresses.
    pub(crate) fn on_socket<R>(&self, work: impl FnOnce(&Descriptor) -> io::Result<R>) -> io::Result<R> {
        on_socket(&self.core, self.id, work)
    }

    /// Takes the descriptor out of the shard's care, with the bytes that were received and not read.
    pub(crate) async fn release(&self) -> io::Result<(Descriptor, Vec<Bytes>)> {
        self.flush().await?;
        self.with(|stream, _, engine| stream.stop_reading(engine))?;
        let fd = loop {
            match self.core.with(|state| {
                let inbound = state.stream(self.id, |stream, _, engine| stream.take_inbound(engine))?;
                match state.give_away(self.id) {
                    Some(given) => given.map(|fd| (Some(fd), inbound)),
                    None => {
                        state.stream(self.id, |stream, _, engine| {
                            inbound.into_iter().rev().for_each(|lease| stream.unread(engine, lease));
                        })?;
                        Ok((None, Default::default()))
                    }
                }
            })?? {
                (Some(fd), inbound) => {
                    break (fd, inbound.into_iter().map(|lease| lease.detach().into_bytes()).collect());
                }
                (None, _) => super::task::yield_now().await,
            }
        };
        Ok(fd)
    }

    pub(crate) async fn recv_exact(&self, len: usize) -> io::Result<Bytes> {
        gather::recv_exact(self, len).await
    }

    pub(crate) async fn recv_until(&self, delimiter: &[u8], max: usize) -> io::Result<Option<Bytes>> {
        gather::recv_until(self, delimiter, max).await
    }
}

impl Inbound for Flow {
    fn poll_recv(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        Flow::poll_recv(self, context)
    }

    fn unread(&self, lease: Lease) {
        Flow::unread(self, lease);
    }
}

/// Waits for bytes. By hand rather than `async`, as [`Sending`]: a task is as large as the futures it waits for.
pub(crate) struct Receiving<'a>(&'a Flow);

impl Future for Receiving<'_> {
    type Output = io::Result<Option<Lease>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_recv(context)
    }
}

/// Waits for room in the outbound queue. An `async` function would hold its payload twice.
pub(crate) struct Sending<'a> {
    flow: &'a Flow,
    /// Empty once it was taken.
    payload: Payload,
}

impl Future for Sending<'_> {
    type Output = io::Result<()>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Sending { flow, payload } = &mut *self;
        let mut taken = Some(std::mem::take(payload));
        let sent = flow.poll_send(context, &mut taken);
        if let Some(back) = taken {
            *payload = back;
        }
        sent
    }
}

impl Drop for Flow {
    /// Closes the connection; what is queued is sent first.
    fn drop(&mut self) {
        self.let_go();
        self.start_close(Close::Flush);
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

/// Closes an endpoint and waits for its end.
pub(crate) async fn closed(core: &Core, id: EndpointId, how: Close) {
    poll_fn(|context| match core.with(|state| state.close(id, how, waiter(context))) {
        Ok(true) => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}

/// Works on the socket of an endpoint.
pub(crate) fn on_socket<R>(
    core: &Core,
    id: EndpointId,
    work: impl FnOnce(&Descriptor) -> io::Result<R>,
) -> io::Result<R> {
    core.with(|state| {
        state.endpoint(id, |common, _, _| match &common.fd {
            Some(fd) => work(fd.descriptor()),
            None => Err(Error::Closed.into()),
        })
    })??
}
