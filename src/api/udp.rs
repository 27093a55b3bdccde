//! UDP sockets.
#![forbid(unsafe_code)]

use super::stream::{closed, on_socket};
use super::tcp::{ToAddresses, inet};
use crate::buf::Payload;
use crate::driver::completion::Datagram;
use crate::driver::{Descriptor, FdRef, Host};
use crate::error::Full;
use crate::shard::{Close, Context as GroupContext, Core, EndpointId, Kind, ReadFrom, Waiter};
use socket2::{Domain, SockAddr};
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::task::Poll;

/// A UDP socket. Several tasks may use it at once; which of them gets a datagram is not promised.
#[derive(Debug)]
pub struct UdpSocket {
    core: Rc<Core>,
    id: EndpointId,
    /// So that the descriptor can be borrowed. Given up before closing, which needs the last reference.
    fd: Option<FdRef>,
}

impl UdpSocket {
    /// Binds to the first address that can be bound.
    ///
    /// # Errors
    ///
    /// The last address's error if none can be bound.
    pub async fn bind(address: impl ToAddresses) -> io::Result<UdpSocket> {
        let core = Core::required()?;
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to bind to");
        for address in address.to_addresses().await? {
            match socket(&core.config.host, address, false) {
                Ok(socket) => return UdpSocket::open(core, socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Binds to `address` on every shard of a group (SO_REUSEPORT): the kernel gives each sender to one of them.
    /// The port must not be 0, unless there is one shard.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn bind_group(_: &GroupContext, address: SocketAddr) -> io::Result<UdpSocket> {
        let core = Core::required()?;
        let socket = socket(&core.config.host, address, true)?;
        UdpSocket::open(core, socket)
    }

    fn open(core: Rc<Core>, socket: Descriptor) -> io::Result<UdpSocket> {
        let id = core.with(|state| state.open(socket, Kind::Datagrams(Box::default())))??;
        let fd = core.with(|state| state.fd(id))?;
        Ok(UdpSocket { core, id, fd })
    }

    /// Takes a socket of the standard library into the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here, or it has [`Limits::endpoints_max`](crate::Limits) endpoints.
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        UdpSocket::from_descriptor(socket.into())
    }

    /// As `from_std`, for sockets of simulated hosts too.
    #[doc(hidden)]
    pub fn from_descriptor(socket: Descriptor) -> io::Result<UdpSocket> {
        UdpSocket::open(Core::required()?, socket)
    }

    /// Sets the peer: only its datagrams arrive, and [`send`](Self::send) goes to it.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn connect(&self, peer: SocketAddr) -> io::Result<()> {
        self.on_socket(|socket| match socket.connect(&SockAddr::from(peer)) {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(-number)),
        })
    }

    /// The next datagram with its sender.
    ///
    /// The first call arms a standing receive; datagrams that arrive between calls are kept, up to
    /// [`Limits::datagrams_inbound_max`](crate::Limits). One that is longer than a receive buffer is cut, which
    /// [`Datagram::truncated`] tells.
    ///
    /// Cancel-safe: dropping the future loses no datagram.
    ///
    /// # Errors
    ///
    /// What an earlier send or receive met, once (for instance `ConnectionRefused` on a connected socket).
    pub async fn recv_from(&self) -> io::Result<Datagram> {
        poll_fn(|context| {
            let waiter = || Waiter::Future(context.waker().clone());
            let looked = self.core.with(|state| {
                state.datagrams(self.id, |datagrams, core, engine| datagrams.read(core, engine, waiter))
            });
            match looked {
                Ok(Ok(ReadFrom::Datagram(datagram))) => Poll::Ready(Ok(datagram)),
                Ok(Ok(ReadFrom::Nothing)) => Poll::Pending,
                Ok(Ok(ReadFrom::Failed(error))) | Ok(Err(error)) | Err(error) => {
                    Poll::Ready(Err(error.into()))
                }
            }
        })
        .await
    }

    /// Queues a datagram for `to`. Completes at once while fewer than
    /// [`Limits::datagrams_outbound_max`](crate::Limits) are queued, else when there is room.
    ///
    /// Cancel-safe: dropped before it completes, it sends nothing.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the payload is longer than a datagram can be; or what an earlier send met, once.
    pub async fn send_to(&self, payload: impl Into<Payload>, to: SocketAddr) -> io::Result<()> {
        self.send_perhaps_to(payload.into(), Some(to)).await
    }

    /// Queues a datagram for the peer set with [`connect`](Self::connect). As [`send_to`](Self::send_to).
    ///
    /// # Errors
    ///
    /// As [`send_to`](Self::send_to).
    pub async fn send(&self, payload: impl Into<Payload>) -> io::Result<()> {
        self.send_perhaps_to(payload.into(), None).await
    }

    async fn send_perhaps_to(&self, payload: Payload, to: Option<SocketAddr>) -> io::Result<()> {
        check_length(&payload)?;
        let mut payload = Some(payload);
        poll_fn(|context| {
            let Some(taken) = payload.take() else { return Poll::Ready(Ok(())) };
            let looked = self.core.with(|state| {
                state.datagrams(self.id, |datagrams, core, engine| {
                    match datagrams.send(core, engine, taken, to, None) {
                        Ok(outcome) => Poll::Ready(outcome),
                        Err(Full(back)) => {
                            payload = Some(back);
                            datagrams.wait_for_room(Waiter::Future(context.waker().clone()));
                            Poll::Pending
                        }
                    }
                })
            });
            match looked {
                Ok(Ok(Poll::Pending)) => Poll::Pending,
                Ok(Ok(Poll::Ready(outcome))) => Poll::Ready(outcome.map_err(io::Error::from)),
                Ok(Err(error)) | Err(error) => Poll::Ready(Err(error.into())),
            }
        })
        .await
    }

    fn on_socket<R>(&self, work: impl FnOnce(&Descriptor) -> io::Result<R>) -> io::Result<R> {
        on_socket(&self.core, self.id, work)
    }

    /// The address it is bound to.
    ///
    /// # Errors
    ///
    /// If the socket is closed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.on_socket(|socket| inet(socket.local_addr()?))
    }

    /// Sets SO_BROADCAST.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        self.on_socket(|socket| socket.set_broadcast(broadcast))
    }

    /// Joins an IPv4 multicast group on an interface.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn join_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.on_socket(|socket| socket.join_multicast_v4(group, interface))
    }

    /// Leaves an IPv4 multicast group.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn leave_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.on_socket(|socket| socket.leave_multicast_v4(group, interface))
    }

    /// Joins an IPv6 multicast group on an interface, by its index.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn join_multicast_v6(&self, group: Ipv6Addr, interface: u32) -> io::Result<()> {
        self.on_socket(|socket| socket.join_multicast_v6(group, interface))
    }

    /// Sets the size of the kernel's receive and send buffers.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_buffer_sizes(&self, receive: usize, send: usize) -> io::Result<()> {
        self.on_socket(|socket| socket.set_buffer_sizes(receive, send))
    }

    /// The id of the endpoint.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Sends what is queued and waits until the socket is closed.
    pub async fn close(mut self) {
        self.fd = None;
        closed(&self.core, self.id, Close::Flush).await;
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("an open socket has its descriptor").as_fd()
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.fd = None;
        let _ = self.core.with(|state| state.close(self.id, Close::Flush, Waiter::None));
    }
}

/// The longest payload of a datagram over IPv4 and IPv6 (RFC 768: the length field counts the 8 bytes of header).
const DATAGRAM_MAX: usize = 65_535 - 8;

pub(crate) fn check_length(payload: &Payload) -> io::Result<()> {
    if payload.len() > DATAGRAM_MAX {
        let text = format!("a datagram has at most {DATAGRAM_MAX} bytes, this one has {}", payload.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

pub(crate) fn socket(host: &Host, address: SocketAddr, shared: bool) -> io::Result<Descriptor> {
    let socket = host.datagram_socket(Domain::for_address(address))?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}
