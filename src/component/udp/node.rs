//! [`UdpNode`]: a socket that receives from anybody and sends to anybody.
//!
//! The async form is the node itself; the form for handlers is a loop over it. A task of the node takes what other
//! threads send ([`NodeHandle`]) out of a bounded queue.
#![forbid(unsafe_code)]

use super::endpoint::{Arrival, Endpoint, UdpCounters};
use super::handle::{Mail, Member, NodeHandle};
use super::{DATAGRAM_BYTES, SendError, UdpError};
use crate::buf::Payload;
use crate::net::{Datagram, Segments, SendOptions, UdpOptions, UdpSocket};
use crate::shard::Context as GroupContext;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;

/// How a [`UdpNode`] shall be. One value may serve for all shards of a group.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub(super) datagram_bytes_max: usize,
    pub(super) mail_max: usize,
    joined: bool,
    socket: UdpOptions,
    handle: NodeHandle,
}

impl Default for NodeOptions {
    fn default() -> NodeOptions {
        NodeOptions {
            datagram_bytes_max: DATAGRAM_BYTES,
            mail_max: 1024,
            joined: true,
            socket: UdpOptions::new(),
            handle: NodeHandle::new(),
        }
    }
}

impl NodeOptions {
    /// [`DATAGRAM_BYTES`] in a datagram, 1024 datagrams that other threads may have waiting, a handle of its own.
    pub fn new() -> NodeOptions {
        NodeOptions::default()
    }

    /// Sets how many bytes a datagram may have, in both directions.
    pub fn datagram_bytes_max(mut self, bytes: usize) -> NodeOptions {
        self.datagram_bytes_max = bytes;
        self
    }

    /// Sets how many datagrams of other threads may wait for the node's shard.
    pub fn mail_max(mut self, datagrams: usize) -> NodeOptions {
        self.mail_max = datagrams;
        self
    }

    /// Whether the kernel may join datagrams that come in, so that they arrive in larger batches; on unless switched off.
    pub fn joined(mut self, joined: bool) -> NodeOptions {
        self.joined = joined;
        self
    }

    /// Sets how the socket is bound.
    pub fn socket(mut self, options: UdpOptions) -> NodeOptions {
        self.socket = options;
        self
    }

    /// The handle of the nodes that are made with these options (and with clones of them).
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }
}

/// What a node does with what comes in. Every method has a default that does nothing.
///
/// The methods run on the node's shard, one at a time. They must not wait; what has to wait is
/// [spawned](crate::spawn), with a clone of the node.
pub trait NodeHandler {
    /// Before the first receive; the place to set options and join groups.
    ///
    /// # Errors
    ///
    /// Ends [`UdpNode::serve`] with that error.
    fn on_prepare(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let _ = socket;
        Ok(())
    }

    /// Datagrams of one peer as the system has joined them, often just one. Unless it is overridden, each goes to
    /// [`on_receive`](Self::on_receive).
    fn on_batch(&mut self, node: &UdpNode, batch: Segments) {
        batch.for_each(|datagram| self.on_receive(node, datagram));
    }

    /// A datagram, perhaps an empty one. A lease that is kept for long should be [copied](crate::Lease::detach).
    fn on_receive(&mut self, node: &UdpNode, datagram: Datagram) {
        let _ = (node, datagram);
    }

    /// What a datagram met. The node goes on.
    fn on_error(&mut self, node: &UdpNode, error: UdpError) {
        let _ = (node, error);
    }

    /// Once, when the node was stopped, or the future of [`UdpNode::serve`] is dropped.
    fn on_shutdown(&mut self) {}
}

/// A socket that receives from anybody and sends to anybody, without connections.
///
/// Clones are the same node; it closes when the last one is dropped, and what is queued is still sent.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # anabranch::block_on(async {
/// use anabranch::component::udp::{NodeHandler, NodeOptions, UdpNode};
/// use anabranch::net::Datagram;
///
/// struct Echo;
/// impl NodeHandler for Echo {
///     fn on_receive(&mut self, node: &UdpNode, datagram: Datagram) {
///         let _ = node.try_send_to(datagram.lease, datagram.from); // counted if there is no room
///     }
/// }
///
/// let node = UdpNode::bind("127.0.0.1:0".parse().unwrap(), NodeOptions::new())?;
/// let (address, handle) = (node.local_addr()?, node.handle());
/// let served = anabranch::spawn(async move { node.serve(&mut Echo).await });
///
/// let client = UdpNode::bind("127.0.0.1:0".parse().unwrap(), NodeOptions::new())?;
/// client.send_to("hello", address).await?;
/// assert_eq!(client.recv().await.unwrap()?.bytes(), b"hello");
/// handle.stop();
/// served.await??;
/// # std::io::Result::Ok(())
/// # })?
/// # }
/// ```
#[derive(Clone)]
pub struct UdpNode {
    inner: Rc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    member: Arc<Member>,
    handle: NodeHandle,
}

impl UdpNode {
    /// Binds a node to an address on the current shard. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::bind_with`].
    pub fn bind(address: SocketAddr, options: NodeOptions) -> io::Result<UdpNode> {
        let socket = UdpSocket::bind_with(address, &options.socket)?;
        UdpNode::over(socket, options)
    }

    /// Binds the node of this shard: each shard of the group calls this with the same address and clones of the same
    /// options, and the kernel gives each sender to one of them. The port must not be 0, unless there is one shard.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::bind_group_with`].
    pub fn bind_group(
        group: &GroupContext,
        address: SocketAddr,
        options: NodeOptions,
    ) -> io::Result<UdpNode> {
        let socket = UdpSocket::bind_group_with(group, address, &options.socket)?;
        UdpNode::over(socket, options)
    }

    /// A node over a socket that is bound already, such as that of a [multicast group](super::MulticastOptions::bind).
    ///
    /// # Errors
    ///
    /// If no shard runs here.
    pub fn over(socket: UdpSocket, options: NodeOptions) -> io::Result<UdpNode> {
        crate::current()?;
        let endpoint = Endpoint::new(socket, options.datagram_bytes_max, options.joined);
        let member = Member::new(&options, Arc::clone(endpoint.meter()));
        options.handle.join(&member);
        let inner = Rc::new(Inner { endpoint, member, handle: options.handle });
        crate::spawn(carry_mail(Rc::downgrade(&inner), Arc::clone(&inner.member))).detach();
        Ok(UdpNode { inner })
    }

    /// The handle for other threads: of this node, and of all that share its options.
    pub fn handle(&self) -> NodeHandle {
        self.inner.handle.clone()
    }

    /// The socket, to ask it and to set options. What is received and sent on it directly is counted nowhere.
    pub fn socket(&self) -> &UdpSocket {
        &self.inner.endpoint.socket
    }

    /// The address it is bound to.
    ///
    /// # Errors
    ///
    /// If the socket is closed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }

    /// Bytes that a datagram may have.
    pub fn datagram_bytes_max(&self) -> usize {
        self.inner.endpoint.datagram_bytes_max()
    }

    /// The counters of this node alone.
    pub fn counters(&self) -> UdpCounters {
        self.inner.endpoint.meter().read()
    }

    /// The next datagrams of one peer, as the system has joined them, often just one; nothing when the node was stopped.
    /// Several tasks may wait; which of them gets what is not promised.
    ///
    /// Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// What a datagram met, one that came in or one that was to be sent. The node goes on.
    pub async fn recv(&self) -> Option<Result<Segments, UdpError>> {
        self.inner.endpoint.pause_if_failing().await;
        let arrival = poll_fn(|context| self.inner.endpoint.poll_arrival(context)).await;
        arrival.map(|arrival| match arrival {
            Arrival::Batch(batch) => Ok(batch),
            Arrival::Error(error) => Err(error),
        })
    }

    /// Queues a datagram; waits while [`Limits::datagrams_outbound_max`](crate::Limits) are queued.
    ///
    /// Cancel-safe: dropped before it completes, it sends nothing.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLong`], [`SendError::Stopped`], or [`SendError::Io`]. What the system says to the datagram later
    /// is told by [`recv`](Self::recv) or the handler.
    pub async fn send_to(&self, payload: impl Into<Payload>, to: SocketAddr) -> Result<(), SendError> {
        self.send_with(payload, to, SendOptions::new()).await
    }

    /// Queues a datagram, or several of one size, with more to say about them. As [`send_to`](Self::send_to).
    ///
    /// # Errors
    ///
    /// As [`send_to`](Self::send_to); [`SendError::Io`] with an [`InvalidDatagram`](crate::net::InvalidDatagram) inside.
    pub async fn send_with(
        &self,
        payload: impl Into<Payload>,
        to: SocketAddr,
        options: SendOptions,
    ) -> Result<(), SendError> {
        self.inner.endpoint.send(payload.into(), to, options).await
    }

    /// Queues a datagram if there is room now; else it is dropped and counted.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`], or as [`send_to`](Self::send_to).
    pub fn try_send_to(&self, payload: impl Into<Payload>, to: SocketAddr) -> Result<(), SendError> {
        self.try_send_with(payload, to, SendOptions::new())
    }

    /// Queues a datagram, or several of one size, with more to say about them, if there is room now.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`], or as [`send_with`](Self::send_with).
    pub fn try_send_with(
        &self,
        payload: impl Into<Payload>,
        to: SocketAddr,
        options: SendOptions,
    ) -> Result<(), SendError> {
        self.inner.endpoint.try_send(payload.into(), to, options)
    }

    /// Hands what comes in to a handler until the node is [stopped](Self::stop).
    ///
    /// Dropping the future ends it, too; the node can be served again then.
    ///
    /// # Errors
    ///
    /// Only what [`NodeHandler::on_prepare`] ended with.
    pub async fn serve<H: NodeHandler>(&self, handler: &mut H) -> io::Result<()> {
        handler.on_prepare(self.socket())?;
        let serving = Serving(handler);
        while let Some(received) = self.recv().await {
            match received {
                Ok(batch) => serving.0.on_batch(self, batch),
                Err(error) => serving.0.on_error(self, error),
            }
        }
        Ok(())
    }

    /// Stops this node: what is queued is sent, nothing is received any more, and sends are refused.
    pub fn stop(&self) {
        self.inner.stop();
    }
}

impl fmt::Debug for UdpNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpNode").field("socket", self.socket()).finish_non_exhaustive()
    }
}

/// A handler that hears of the end, however it comes; but not after it has panicked.
struct Serving<'a, H: NodeHandler>(&'a mut H);

impl<H: NodeHandler> Drop for Serving<'_, H> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.on_shutdown();
        }
    }
}

impl Inner {
    fn stop(&self) {
        // What other threads had sent before goes first, as far as there is room.
        for (payload, to) in self.member.close() {
            let _ = self.endpoint.try_send(payload.into(), to, SendOptions::new());
        }
        self.endpoint.socket.start_close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
        self.member.end();
    }
}

/// Sends what other threads have sent, and stops the node when they ask for it. Holds the node only for as long as a
/// datagram waits for room.
async fn carry_mail(node: Weak<Inner>, member: Arc<Member>) {
    loop {
        let mail = poll_fn(|context| match member.poll_mail(context.waker()) {
            Some(mail) => Poll::Ready(mail),
            None => Poll::Pending,
        })
        .await;
        let Some(node) = node.upgrade() else { return };
        match mail {
            Mail::Datagram(payload, to) => {
                // What it meets later is told as that of any datagram; a bound that refuses it counts it.
                let _ = node.endpoint.send(payload.into(), to, SendOptions::new()).await;
            }
            Mail::Stop => return node.stop(),
        }
    }
}
