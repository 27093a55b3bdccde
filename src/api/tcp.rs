//! TCP: listeners, streams and their halves.
#![forbid(unsafe_code)]

use super::listening::{ListenOptions, duplicate, hold, resume, stop};
use super::methods::{accepting, connection, receiving, sending};
use super::stream::{Flow, closed};
pub use crate::driver::sys::os::Lend;
use crate::driver::sys::os::{HAS_SHARED_PORTS, lends};
use crate::driver::{Descriptor, Host};
use crate::shard::{
    Accepted, Close, Context as GroupContext, Core, Distribution, EndpointId, Kind, Listener, Share, Stream,
    Waiter,
};
use socket2::{Domain, SockAddr};
use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// A TCP connection.
///
/// Receiving and sending borrow it exclusively; [`into_split`](Self::into_split) gives halves for two tasks.
/// Dropping it closes the connection after what is queued has been sent.
///
/// TCP_NODELAY is on from the start, because the runtime joins small sends itself.
#[derive(Debug)]
pub struct TcpStream {
    pub(crate) flow: Rc<Flow>,
}

impl TcpStream {
    /// Connects to the first address that accepts.
    ///
    /// Names are resolved off the loop. Dropping the future ends the attempt.
    ///
    /// # Errors
    ///
    /// The last address's error if none accepts.
    pub async fn connect(address: impl ToAddresses) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to");
        for address in address.to_addresses().await? {
            match TcpStream::connect_one(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect_from(address, None, |_| Ok(())).await
    }

    /// Connects from a local address, if one is given; `prepare` sees the socket before.
    pub(crate) async fn connect_from(
        address: SocketAddr,
        local: Option<SocketAddr>,
        prepare: impl FnOnce(&dyn Lend) -> io::Result<()>,
    ) -> io::Result<TcpStream> {
        let core = Core::required()?;
        let socket = core.config.host.stream_socket(Domain::for_address(address))?;
        let _ = socket.set_tcp_nodelay(true);
        if let Some(local) = local {
            // A port of an earlier connection may be used again.
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(local))?;
        }
        prepare(&socket)?;
        let stream = TcpStream::open(core, socket, Stream::connecting_to(address.into(), Waiter::None))?;
        stream.flow.connected().await?;
        Ok(stream)
    }

    fn open(core: Rc<Core>, fd: Descriptor, stream: Stream) -> io::Result<TcpStream> {
        let id = core.with(|state| state.open(fd, Kind::Stream(stream)))??;
        Ok(TcpStream { flow: Rc::new(Flow::new(core, id)) })
    }

    /// Takes a connected stream of the standard library into the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here, or it has [`Limits::endpoints_max`](crate::Limits) endpoints.
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        TcpStream::from_descriptor(stream.into())
    }

    /// As `from_std`, for sockets of simulated hosts too.
    #[doc(hidden)]
    pub fn from_descriptor(stream: Descriptor) -> io::Result<TcpStream> {
        TcpStream::open(Core::required()?, stream, Stream::default())
    }

    receiving!();
    sending!();
    connection!(std::net::TcpStream);

    /// The address of the peer.
    ///
    /// # Errors
    ///
    /// If the connection is closed.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.flow.on_socket(|socket| inet(socket.peer_addr()?))
    }

    /// The address of this side.
    ///
    /// # Errors
    ///
    /// If the connection is closed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.flow.on_socket(|socket| inet(socket.local_addr()?))
    }

    /// Sets TCP_NODELAY.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.flow.on_socket(|socket| socket.set_tcp_nodelay(nodelay))
    }

    /// Whether TCP_NODELAY is set.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.flow.on_socket(|socket| socket.tcp_nodelay())
    }

    /// Probes an idle connection after `idle`; `None` turns probing off.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_keepalive(&self, idle: Option<Duration>) -> io::Result<()> {
        self.flow.on_socket(|socket| socket.set_keepalive(idle))
    }

    /// Splits the connection into owned halves, for two tasks of this shard. Dropping the sending half shuts that
    /// direction down; the connection closes when both are gone.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        (OwnedReadHalf { flow: Rc::clone(&self.flow) }, OwnedWriteHalf { flow: self.flow })
    }
}

lends! {
    /// Reading, writing or closing the descriptor behind the runtime's back breaks the stream, though not memory
    /// safety; it is for options that have no method here.
    TcpStream, self => self.flow.descriptor()
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct OwnedReadHalf {
    pub(crate) flow: Rc<Flow>,
}

impl OwnedReadHalf {
    receiving!();

    /// The id of the endpoint.
    pub fn id(&self) -> EndpointId {
        self.flow.id
    }
}

/// The sending half of a connection. Dropping it shuts that direction down.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    pub(crate) flow: Rc<Flow>,
}

impl OwnedWriteHalf {
    sending!();

    /// Shuts the outbound direction down after everything queued has left.
    ///
    /// # Errors
    ///
    /// If the connection failed before.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.flow.shutdown(Shutdown::Write).await
    }

    /// The id of the endpoint.
    pub fn id(&self) -> EndpointId {
        self.flow.id
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        // Without the other half the connection closes anyway.
        if Rc::strong_count(&self.flow) > 1 {
            let _ = self.flow.start_shutdown(Shutdown::Write);
        }
    }
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct TcpListener {
    core: Rc<Core>,
    id: EndpointId,
    address: SocketAddr,
}

impl TcpListener {
    /// Listens on the first address that can be bound, on the current shard alone.
    ///
    /// # Errors
    ///
    /// The last address's error if none can be bound.
    pub async fn bind(address: impl ToAddresses) -> io::Result<TcpListener> {
        let core = Core::required()?;
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        for address in address.to_addresses().await? {
            match listen(&core.config.host, address, false) {
                Ok(socket) => return TcpListener::open(core, Some(socket), None),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Listens on `address` together with the other shards of the group: each shard calls this with the same
    /// address, and connections are spread as `distribution` says. With port 0 all get the same port.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn bind_group(
        context: &GroupContext,
        address: SocketAddr,
        distribution: Distribution,
    ) -> io::Result<TcpListener> {
        let core = Core::required()?;
        let (bound, group, bound_socket) = context.shared_listener(address, distribution, |asked| {
            let socket = listen(&core.config.host, asked, HAS_SHARED_PORTS)?;
            Ok((inet(socket.local_addr()?)?, socket))
        })?;
        let remote = crate::shard::Remote { link: Arc::clone(&core.link) };
        let share = Share::join(&group, context.index(), remote);
        let socket = match bound_socket {
            Some(fd) => Some(fd),
            None if share.accepts() => Some(listen(&core.config.host, bound, HAS_SHARED_PORTS)?),
            None => None,
        };
        Ok(TcpListener::open(core, socket, Some(share))?.at(bound))
    }

    pub(super) fn open(
        core: Rc<Core>,
        socket: Option<Descriptor>,
        share: Option<Share>,
    ) -> io::Result<TcpListener> {
        let address = match &socket {
            Some(socket) => inet(socket.local_addr()?)?,
            None => SocketAddr::from(([0, 0, 0, 0], 0)),
        };
        let id = core.with(|state| state.open_listener(socket, Listener::new(share)))??;
        Ok(TcpListener { core, id, address })
    }

    /// The same, of a group on an address: a member without a socket does not know it by itself.
    pub(super) fn at(mut self, address: SocketAddr) -> TcpListener {
        self.address = address;
        self
    }

    /// Takes a listening socket of the standard library into the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here, or it has [`Limits::endpoints_max`](crate::Limits) endpoints.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<TcpListener> {
        TcpListener::from_descriptor(listener.into())
    }

    /// As `from_std`, for sockets of simulated hosts too.
    #[doc(hidden)]
    pub fn from_descriptor(listener: Descriptor) -> io::Result<TcpListener> {
        TcpListener::open(Core::required()?, Some(listener), None)
    }

    /// The next connection and its peer.
    ///
    /// The first call arms a standing accept; connections that arrive between calls are kept, up to
    /// [`Limits::accept_queue_max`](crate::Limits). When descriptors run out the listener pauses and goes on by
    /// itself; see [`Warning::AcceptPaused`](crate::Warning).
    ///
    /// Cancel-safe: dropping the future loses no connection.
    ///
    /// # Errors
    ///
    /// If the listener is closed or cannot go on; [`Error::Stopped`](crate::Error::Stopped), of kind `NotConnected`, after the
    /// last connection when [`stop_accepting`](Self::stop_accepting) was called, which [`next`](Self::next) tells without an
    /// error. Errors of a single connection are not reported here.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let stream = self.accept_any().await?;
            // A connection whose peer has gone meanwhile has no address any more.
            if let Ok(peer) = stream.peer_addr() {
                return Ok((stream, peer));
            }
        }
    }

    accepting!((TcpStream, SocketAddr));

    /// Another handle of the listening socket, to pass it on to another process. The socket stays open, and the system
    /// goes on completing connections for it, until every handle is closed.
    ///
    /// # Errors
    ///
    /// If the listener has no socket of its own (it is a member of a group with one acceptor and not that one), or the
    /// process is out of descriptors; in a simulation, always.
    pub fn duplicate(&self) -> io::Result<std::net::TcpListener> {
        Ok(duplicate(&self.core, self.id)?.into())
    }

    async fn accept_any(&self) -> io::Result<TcpStream> {
        let flow = accept(&self.core, self.id).await?;
        Ok(TcpStream { flow: Rc::new(flow) })
    }

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// None today; as in the standard library.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    /// The id of the endpoint.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Stops listening and waits until the socket is closed. Connections that nobody took are closed with it.
    pub async fn close(self) {
        closed(&self.core, self.id, Close::Abort).await;
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let _ = self.core.with(|state| state.close(self.id, Close::Abort, Waiter::None));
    }
}

/// Takes the next connection of a listener.
pub(crate) async fn accept(core: &Rc<Core>, id: EndpointId) -> io::Result<Flow> {
    poll_fn(|context| {
        let waiter = || Waiter::Future(context.waker().clone());
        let taken = core.with(|state| state.accept(id, waiter));
        match taken {
            Ok(Ok(Accepted::Connection(fd, seat))) => {
                let opened = core.with(|state| state.open_accepted(fd, seat));
                Poll::Ready(match opened {
                    Ok(Ok(id)) => Ok(Flow::new(Rc::clone(core), id)),
                    Ok(Err(error)) => Err(error),
                    Err(error) => Err(error.into()),
                })
            }
            Ok(Ok(Accepted::Nothing)) => Poll::Pending,
            Ok(Ok(Accepted::Failed(error))) | Ok(Err(error)) | Err(error) => Poll::Ready(Err(error.into())),
        }
    })
    .await
}

/// A listening socket. Accepted connections inherit its TCP_NODELAY.
pub(crate) fn listen(host: &Host, address: SocketAddr, shared: bool) -> io::Result<Descriptor> {
    let options = ListenOptions { reuse_port: shared, ..ListenOptions::default() };
    listen_with(host, address, &options, &|_| Ok(()))
}

/// As [`listen`], with options; `prepare` sees the socket when it is bound.
pub(super) fn listen_with(
    host: &Host,
    address: SocketAddr,
    options: &ListenOptions,
    prepare: &dyn Fn(&dyn Lend) -> io::Result<()>,
) -> io::Result<Descriptor> {
    let socket = host.stream_socket(Domain::for_address(address))?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if options.only_v6 && address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let _ = socket.set_tcp_nodelay(options.nodelay);
    socket.bind(&SockAddr::from(address))?;
    prepare(&socket)?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

pub(crate) fn inet(address: SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the socket has no IP address"))
}

/// What can be turned into addresses: socket addresses at once, names off the loop.
pub trait ToAddresses {
    /// The addresses, in the order in which they are tried.
    fn to_addresses(&self) -> impl Future<Output = io::Result<Vec<SocketAddr>>>;
}

impl ToAddresses for SocketAddr {
    async fn to_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![*self])
    }
}

impl ToAddresses for &[SocketAddr] {
    async fn to_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(self.to_vec())
    }
}

impl ToAddresses for &str {
    async fn to_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        super::dns::resolve(*self).await
    }
}

impl ToAddresses for String {
    async fn to_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        super::dns::resolve(self.clone()).await
    }
}

impl ToAddresses for (&str, u16) {
    async fn to_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.0.parse::<std::net::IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.1)]);
        }
        super::dns::resolve_name(self.0.to_owned(), self.1).await
    }
}

impl ToAddresses for (std::net::IpAddr, u16) {
    async fn to_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![SocketAddr::from(*self)])
    }
}

impl ToAddresses for (std::net::Ipv4Addr, u16) {
    async fn to_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![SocketAddr::from(*self)])
    }
}

#[cfg(feature = "futures-io")]
impl TcpStream {
    pub(crate) fn flow(&self) -> &Flow {
        &self.flow
    }
}
