//! [`TlsStream`]: a connection that is sealed.
#![forbid(unsafe_code)]

use super::flow::TlsFlow;
use crate::api::gather;
use crate::api::stream::Flow;
use crate::api::tcp::TcpStream;
use crate::api::unix::UnixStream;
use crate::buf::{Lease, Payload};
use crate::proto::tls::TlsInfo;
use crate::shard::{Close, EndpointId};
use bytes::Bytes;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;

/// The connection below a TLS stream.
#[derive(Debug)]
#[non_exhaustive]
pub enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Transport {
    pub(crate) fn flow(&self) -> &Flow {
        match self {
            Transport::Tcp(stream) => &stream.flow,
            Transport::Unix(stream) => &stream.flow,
        }
    }

    /// Gives the descriptor up, before the connection closes.
    pub(super) fn let_go(&mut self) {
        let flow = match self {
            Transport::Tcp(stream) => &mut stream.flow,
            Transport::Unix(stream) => &mut stream.flow,
        };
        Rc::get_mut(flow).map(Flow::let_go);
    }
}

impl From<TcpStream> for Transport {
    fn from(stream: TcpStream) -> Transport {
        Transport::Tcp(stream)
    }
}

impl From<UnixStream> for Transport {
    fn from(stream: UnixStream) -> Transport {
        Transport::Unix(stream)
    }
}

/// A connection that is sealed by TLS; its methods are those of a [`TcpStream`].
///
/// It ends cleanly only if the peer says so (`close_notify`); any other end is
/// [`TlsError::Truncated`](super::TlsError::Truncated), or what the connection met. Dropping it says `close_notify`, if
/// there is room for that, and closes the connection after what is queued has been sent.
///
/// Both directions are bounded as those of the connection below, in bytes of ciphertext.
pub struct TlsStream {
    pub(crate) flow: TlsFlow,
}

impl TlsStream {
    /// A stream whose handshake is over.
    pub(super) fn new(flow: TlsFlow) -> TlsStream {
        TlsStream { flow }
    }

    /// Receives the next bytes; `None` after the peer has said that it is done. What arrived
    /// together is joined, up to about 32 KiB.
    ///
    /// Cancel-safe: dropping the future loses no byte.
    ///
    /// # Errors
    ///
    /// After everything that arrived whole: what the connection met, `UnexpectedEof` with
    /// [`TlsError::Truncated`](super::TlsError::Truncated) inside if it ended without `close_notify`, or the
    /// [`TlsError`](super::TlsError) of a peer that broke the rules or gave up. Each further call gives it again.
    pub fn recv(&mut self) -> impl Future<Output = io::Result<Option<Lease>>> {
        poll_fn(|context| self.flow.poll_recv(context))
    }

    /// Receives exactly `len` bytes. Does not copy them if they arrived in one piece.
    ///
    /// Cancel-safe: bytes gathered so far are received again.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the stream ends before (what did arrive can still be received), or as [`recv`](Self::recv).
    pub async fn recv_exact(&mut self, len: usize) -> io::Result<Bytes> {
        gather::recv_exact(&self.flow, len).await
    }

    /// Receives up to and including `delimiter`, at most `max` bytes; `None` if the stream has ended.
    ///
    /// Cancel-safe: bytes gathered so far are received again.
    ///
    /// # Errors
    ///
    /// `InvalidData` if there is no delimiter within `max` bytes, `UnexpectedEof` if the stream ends without one, or as
    /// [`recv`](Self::recv). What was gathered can still be received.
    pub async fn recv_until(&mut self, delimiter: &[u8], max: usize) -> io::Result<Option<Bytes>> {
        gather::recv_until(&self.flow, delimiter, max).await
    }

    /// Seals a payload and queues it, whole, to be sent in order.
    ///
    /// Completes at once while fewer than [`Limits::outbound_bytes_max`](crate::Limits) bytes of ciphertext are queued, else
    /// when there is room again. What is sealed in one turn of the loop leaves together.
    ///
    /// Cancel-safe: dropping the future before it completes sends nothing of the payload; after that everything is sent.
    ///
    /// # Errors
    ///
    /// What the connection met, the [`TlsError`](super::TlsError) that ended it, or `NotConnected` after
    /// [`shutdown`](Self::shutdown). Once it has failed, every further call fails in the same way.
    pub fn send(&mut self, payload: impl Into<Payload>) -> impl Future<Output = io::Result<()>> {
        let mut payload = Some(payload.into());
        poll_fn(move |context| self.flow.poll_send(context, &mut payload))
    }

    /// Seals and queues several payloads in order, as [`send`](Self::send) does one by one.
    ///
    /// Dropping the future leaves those that were queued to be sent, and drops the others.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_vectored<P: Into<Payload>>(
        &mut self,
        payloads: impl IntoIterator<Item = P>,
    ) -> io::Result<()> {
        for payload in payloads {
            self.send(payload).await?;
        }
        Ok(())
    }

    /// Completes when everything queued is with the kernel.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// If the connection failed before.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.flow.poll_flush(context)).await
    }

    /// Says that nothing more is sent (`close_notify`), and shuts that direction of the connection down after everything
    /// queued has left. Receiving goes on.
    ///
    /// Cancel-safe: once called, calling it again goes on with it.
    ///
    /// # Errors
    ///
    /// If the connection failed before.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.flow.shutdown().await
    }

    /// Says that nothing more is sent (`close_notify`), sends what is queued, closes the connection, and tells whether
    /// everything left. Waits at most [`Limits::close_flush_ms`](crate::Limits) for room and as long again for the rest.
    /// It does not wait for the peer to say the same.
    ///
    /// Dropping the future, or the stream itself, closes just as well and tells nothing.
    ///
    /// # Errors
    ///
    /// If not everything could be sent.
    pub async fn close(mut self) -> io::Result<()> {
        self.flow.close().await
    }

    /// Closes at once and drops what is queued, without a word; the peer of a TCP connection sees a reset.
    pub fn abort(mut self) {
        self.flow.transport.let_go();
        self.flow.transport.flow().start_close(Close::Abort);
    }

    /// What the handshake agreed on.
    ///
    /// # Panics
    ///
    /// Never: there is no stream before its handshake is over.
    pub fn info(&self) -> TlsInfo {
        self.flow.info().expect("the handshake is over")
    }

    /// Bytes of ciphertext that are queued and have not left.
    pub fn queued_bytes(&self) -> usize {
        self.flow.queued_bytes()
    }

    /// The connection below, for its addresses and options.
    pub fn transport(&self) -> &Transport {
        &self.flow.transport
    }

    /// The id of the endpoint, as it is in logs and in the completion API.
    pub fn id(&self) -> EndpointId {
        self.flow.transport.flow().id
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("id", &self.id()).finish()
    }
}
