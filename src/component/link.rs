//! What a connection of a component runs over.
#![forbid(unsafe_code)]

use super::policy::Policy;
use super::secure::Sealed;
use crate::api::stream::{Flow, Outbound};
use crate::api::tcp::TcpStream;
use crate::api::unix::UnixStream;
use crate::buf::{Lease, Payload};
use crate::error::Full;
use crate::shard::EndpointId;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

/// A connected stream of any family.
#[derive(Debug)]
pub(super) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Under TLS. In a box: the state of TLS is large, and most connections have none.
    #[allow(dead_code, reason = "there is none without the feature `tls`")]
    Sealed(Box<Sealed>),
}

impl Link {
    fn flow(&self) -> &Flow {
        match self {
            Link::Tcp(stream) => &stream.flow,
            Link::Unix(stream) => &stream.flow,
            Link::Sealed(sealed) => sealed.flow(),
        }
    }

    pub(super) fn endpoint(&self) -> EndpointId {
        self.flow().id
    }

    /// The addresses of the peer and of this side, where the family has such.
    pub(super) fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        match self {
            Link::Tcp(stream) => (stream.peer_addr().ok(), stream.local_addr().ok()),
            Link::Unix(_) | Link::Sealed(_) => (None, None),
        }
    }

    /// Sets what a policy says of sockets. An option that one does not take is no reason to end a connection.
    pub(crate) fn set_options(&self, policy: &Policy) {
        if let Link::Tcp(stream) = self {
            let _ = stream.set_nodelay(policy.nodelay);
            if policy.keepalive.is_some() {
                let _ = stream.set_keepalive(policy.keepalive);
            }
        }
    }

    #[inline]
    pub(super) fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
        match self {
            Link::Sealed(sealed) => sealed.poll_recv(context),
            plain => plain.flow().poll_recv(context),
        }
    }

    /// Queues a payload, or waits for room.
    #[inline]
    pub(super) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        payload: &mut Option<Payload>,
    ) -> Poll<io::Result<()>> {
        match self {
            Link::Sealed(sealed) => sealed.poll_send(context, payload),
            plain => plain.flow().poll_send(context, payload),
        }
    }

    /// Queues payloads that stay together, or waits for room.
    pub(super) fn poll_send_together(
        &mut self,
        context: &mut Context<'_>,
        payloads: &mut Vec<Payload>,
    ) -> Poll<io::Result<()>> {
        match self {
            Link::Sealed(sealed) => sealed.poll_send_together(context, payloads),
            plain => plain.flow().poll_send_together(context, payloads),
        }
    }

    /// The same without waiting; the payloads stay where they are if there is no room.
    pub(super) fn try_send_together(
        &mut self,
        payloads: &mut Vec<Payload>,
    ) -> Result<io::Result<()>, Full<()>> {
        match self {
            Link::Sealed(sealed) => sealed.try_send_together(payloads),
            plain => plain.flow().try_send_together(payloads),
        }
    }

    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Link::Sealed(sealed) => sealed.poll_flush(context),
            plain => plain.flow().poll_flush(context),
        }
    }

    /// What waits to be sent, and what has left.
    #[inline]
    pub(super) fn outbound(&self) -> Outbound {
        match self {
            Link::Sealed(sealed) => sealed.outbound(),
            plain => plain.flow().outbound(),
        }
    }

    /// Whether a broadcast may share its bytes with this connection.
    pub(super) fn is_plain(&self) -> bool {
        !matches!(self, Link::Sealed(_))
    }

    /// Sends what is queued and closes.
    pub(super) async fn close(self) -> io::Result<()> {
        match self {
            Link::Tcp(stream) => stream.close().await,
            Link::Unix(stream) => stream.close().await,
            // In a box, because a task is as large as the largest future that it ever waits for.
            Link::Sealed(sealed) => Box::pin(sealed.close()).await,
        }
    }

    /// Closes at once.
    pub(super) fn abort(self) {
        match self {
            Link::Tcp(stream) => stream.abort(),
            Link::Unix(stream) => stream.abort(),
            Link::Sealed(sealed) => sealed.abort(),
        }
    }
}
