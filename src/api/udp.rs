//! UDP sockets.
#![forbid(unsafe_code)]

mod casting;

pub use casting::{Interface, InvalidMulticast, OptionRefused, UdpOptions};

use super::stream::{closed, on_socket};
use super::tcp::{ToAddresses, inet};
use crate::buf::Payload;
use crate::driver::datagram::{Datagram, Ecn, LocalAddress, Outgoing, Segments};
use crate::driver::sys::os::lends;
use crate::driver::{Descriptor, FdRef, Host};
use crate::error::{Error, Full};
use crate::shard::{
    Ask, Close, Common, Context as GroupContext, Core, Datagrams, EndpointId, Engine, Kind, ReadFrom,
    SendFailure, Waiter,
};
use socket2::{Domain, SockAddr};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

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
    /// If the address cannot be bound, or there are several shards and the system shares no ports (Windows).
    pub fn bind_group(group: &GroupContext, address: SocketAddr) -> io::Result<UdpSocket> {
        let core = Core::required()?;
        let socket = socket(&core.config.host, address, group.shards() > 1)?;
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
        self.receive(Datagrams::read).await
    }

    /// The next datagrams as the kernel has joined them in one buffer (see [`set_gro`](Self::set_gro)), often just
    /// one. Else as [`recv_from`](Self::recv_from); both may be used on one socket.
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from).
    pub async fn recv_segments(&self) -> io::Result<Segments> {
        self.receive(Datagrams::read_segments).await
    }

    async fn receive<T>(
        &self,
        read: impl Fn(&mut Datagrams, &mut Common, &mut Engine, &Waker) -> ReadFrom<T>,
    ) -> io::Result<T> {
        poll_fn(|context| self.poll_receive(context, &read).map_err(io::Error::from)).await
    }

    fn poll_receive<T>(
        &self,
        context: &mut Context<'_>,
        read: impl Fn(&mut Datagrams, &mut Common, &mut Engine, &Waker) -> ReadFrom<T>,
    ) -> Poll<Result<T, Error>> {
        let looked = self.core.with(|state| {
            state.datagrams(self.id, |datagrams, core, engine| read(datagrams, core, engine, context.waker()))
        });
        match looked {
            Ok(Ok(ReadFrom::Some(taken))) => Poll::Ready(Ok(taken)),
            Ok(Ok(ReadFrom::Nothing)) => Poll::Pending,
            Ok(Ok(ReadFrom::Failed(error))) | Ok(Err(error)) | Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// From now on what a datagram meets is told by [`poll_arrival`](Self::poll_arrival), with its peer, and by no other
    /// call.
    pub(crate) fn tell_failures(&self) {
        let _ = self.core.with(|state| state.datagrams(self.id, |datagrams, _, _| datagrams.tell_failures()));
    }

    /// Failures that could not be told because too many came at once, since the last call.
    pub(crate) fn take_untold(&self) -> u64 {
        let untold =
            self.core.with(|state| state.datagrams(self.id, |datagrams, _, _| datagrams.take_untold()));
        untold.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// What comes next: datagrams, or what one met. An error is the end: the socket is closed.
    pub(crate) fn poll_arrival(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Result<Segments, SendFailure>, Error>> {
        self.poll_receive(context, Datagrams::read_or_failure)
    }

    /// Queues a datagram for `to`. Completes at once while fewer than
    /// [`Limits::datagrams_outbound_max`](crate::Limits) are queued, else when there is room.
    ///
    /// What is queued during a turn of the shard leaves by one system call. Datagrams of one size to one peer that
    /// are queued one behind the other leave as one packet of the system, which cuts them apart again, where it can.
    ///
    /// Cancel-safe: dropped before it completes, it sends nothing.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the payload is longer than a datagram can be; or what an earlier send met, once.
    pub async fn send_to(&self, payload: impl Into<Payload>, to: SocketAddr) -> io::Result<()> {
        self.transmit(Outgoing::new(payload.into(), Some(to))).await
    }

    /// Queues a datagram for the peer set with [`connect`](Self::connect). As [`send_to`](Self::send_to).
    ///
    /// # Errors
    ///
    /// As [`send_to`](Self::send_to).
    pub async fn send(&self, payload: impl Into<Payload>) -> io::Result<()> {
        self.transmit(Outgoing::new(payload.into(), None)).await
    }

    /// Queues a payload that is cut in datagrams of `segment_bytes` each; the last may be shorter. The kernel cuts
    /// where it can (udp(7): UDP_SEGMENT, Linux 4.18), else each datagram is sent by itself.
    ///
    /// At most 64 datagrams and 65 507 bytes. Each datagram counts for
    /// [`Limits::datagrams_outbound_max`](crate::Limits). As [`send_to`](Self::send_to); if one datagram fails, the
    /// others leave all the same.
    ///
    /// # Errors
    ///
    /// `InvalidInput`, with an [`InvalidDatagram`](crate::net::InvalidDatagram) inside, for other sizes; or what an
    /// earlier send met, once.
    pub async fn send_segments(
        &self,
        payload: impl Into<Payload>,
        segment_bytes: usize,
        to: SocketAddr,
    ) -> io::Result<()> {
        self.send_with(payload, to, SendOptions::new().segment_bytes(segment_bytes)).await
    }

    /// Queues a datagram with more to say about it; without an address for the connected peer. As
    /// [`send_to`](Self::send_to).
    ///
    /// # Errors
    ///
    /// As [`send_segments`](Self::send_segments).
    pub async fn send_with(
        &self,
        payload: impl Into<Payload>,
        to: impl Into<Option<SocketAddr>>,
        options: SendOptions,
    ) -> io::Result<()> {
        self.transmit(options.outgoing(payload.into(), to.into())).await
    }

    async fn transmit(&self, item: Outgoing) -> io::Result<()> {
        item.check()?;
        let mut item = Some(item);
        poll_fn(|context| self.poll_transmit(&mut item, Some(context.waker()))).await
    }

    /// Queues what is in `item`, or leaves it there if there is no room; then `waker` is woken when there is.
    fn poll_transmit(&self, item: &mut Option<Outgoing>, waker: Option<&Waker>) -> Poll<io::Result<()>> {
        let Some(taken) = item.take() else { return Poll::Ready(Ok(())) };
        let looked = self.core.with(|state| {
            state.datagrams(self.id, |datagrams, core, engine| match datagrams.send(core, engine, taken) {
                Ok(outcome) => Poll::Ready(outcome),
                Err(Full(back)) => {
                    *item = Some(back);
                    waker
                        .into_iter()
                        .for_each(|waker| datagrams.wait_for_room(Waiter::Future(waker.clone())));
                    Poll::Pending
                }
            })
        });
        match looked {
            Ok(Ok(Poll::Pending)) => Poll::Pending,
            Ok(Ok(Poll::Ready(outcome))) => Poll::Ready(outcome.map_err(io::Error::from)),
            Ok(Err(error)) | Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Whether less than half of the outbound queue is in use, so that what can wait leaves room for what cannot; else the
    /// waker is used when some of it has left. A closed socket counts as empty.
    pub(crate) fn is_half_empty(&self, waker: &Waker) -> bool {
        let looked = self.core.with(|state| {
            state.datagrams(self.id, |datagrams, _, engine| datagrams.is_half_empty(engine, waker))
        });
        looked.ok().and_then(Result::ok).unwrap_or(true)
    }

    /// Queues a datagram if there is room now. Else as [`send_to`](Self::send_to).
    ///
    /// # Errors
    ///
    /// Outside: [`Full`], with the payload, above [`Limits::datagrams_outbound_max`](crate::Limits). Inside: as
    /// [`send_to`](Self::send_to).
    pub fn try_send_to(
        &self,
        payload: impl Into<Payload>,
        to: SocketAddr,
    ) -> Result<io::Result<()>, Full<Payload>> {
        self.try_send_with(payload, to, SendOptions::new())
    }

    /// Queues a datagram with more to say about it, if there is room now. Else as [`send_with`](Self::send_with).
    ///
    /// # Errors
    ///
    /// Outside: [`Full`], with the payload. Inside: as [`send_with`](Self::send_with).
    pub fn try_send_with(
        &self,
        payload: impl Into<Payload>,
        to: impl Into<Option<SocketAddr>>,
        options: SendOptions,
    ) -> Result<io::Result<()>, Full<Payload>> {
        self.offer(payload.into(), to.into(), options, None)
    }

    /// As [`try_send_with`](Self::try_send_with); a waker is woken when there is room.
    pub(crate) fn offer(
        &self,
        payload: Payload,
        to: Option<SocketAddr>,
        options: SendOptions,
        waker: Option<&Waker>,
    ) -> Result<io::Result<()>, Full<Payload>> {
        let item = options.outgoing(payload, to);
        if let Err(error) = item.check() {
            return Ok(Err(error));
        }
        let mut item = Some(item);
        match (self.poll_transmit(&mut item, waker), item) {
            (Poll::Ready(outcome), _) => Ok(outcome),
            (Poll::Pending, Some(back)) => Err(Full(back.payload)),
            (Poll::Pending, None) => Ok(Ok(())),
        }
    }

    /// Lets the kernel join datagrams of one sender that arrive together (udp(7): UDP_GRO, Linux 5.0). They are cut
    /// apart again on delivery, without copying: they share a buffer, which goes home with the last of them. Off
    /// unless asked for. Best set before the first receive.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if [`Limits::datagram_buffer_bytes`](crate::Limits) is below 65 507; `Unsupported` or the
    /// system's error where there is no such thing.
    pub fn set_gro(&self, on: bool) -> io::Result<()> {
        ask(&self.core, self.id, Ask::Joined, on)
    }

    /// Asks for the congestion codepoint of each datagram: [`Datagram::ecn`]. Off unless asked for. Those that have
    /// arrived already may come without.
    ///
    /// # Errors
    ///
    /// `Unsupported` or the system's error where there is no such thing.
    pub fn set_ecn(&self, on: bool) -> io::Result<()> {
        ask(&self.core, self.id, Ask::Ecn, on)
    }

    /// Asks for the address that each datagram was sent to, and its interface: [`Datagram::local`]. Off unless asked
    /// for. Those that have arrived already may come without.
    ///
    /// # Errors
    ///
    /// `Unsupported` or the system's error where there is no such thing.
    pub fn set_packet_info(&self, on: bool) -> io::Result<()> {
        ask(&self.core, self.id, Ask::Local, on)
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

    /// The id of the endpoint.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Sends what is queued and closes the socket as soon as nothing refers to it; further calls fail.
    pub(crate) fn start_close(&self) {
        let _ = self.core.with(|state| state.close(self.id, Close::Flush, Waiter::None));
    }

    /// Sends what is queued and waits until the socket is closed.
    pub async fn close(mut self) {
        self.fd = None;
        closed(&self.core, self.id, Close::Flush).await;
    }
}

lends! { UdpSocket, self => self.fd.as_ref().expect("an open socket has its descriptor") }

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.fd = None;
        self.start_close();
    }
}

/// What a datagram takes along beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SendOptions {
    /// The payload is cut in datagrams of so many bytes; see [`UdpSocket::send_segments`].
    pub segment_bytes: Option<usize>,
    /// The congestion codepoint in the header.
    pub ecn: Option<Ecn>,
    /// The address (and interface) to send from, which must be of this host.
    pub source: Option<LocalAddress>,
}

impl SendOptions {
    /// Nothing special.
    pub fn new() -> SendOptions {
        SendOptions::default()
    }

    /// Sets [`segment_bytes`](Self::segment_bytes).
    pub fn segment_bytes(mut self, bytes: usize) -> SendOptions {
        self.segment_bytes = Some(bytes);
        self
    }

    /// Sets [`ecn`](Self::ecn).
    pub fn ecn(mut self, ecn: Ecn) -> SendOptions {
        self.ecn = Some(ecn);
        self
    }

    /// Sets [`source`](Self::source).
    pub fn source(mut self, source: LocalAddress) -> SendOptions {
        self.source = Some(source);
        self
    }

    pub(crate) fn outgoing(self, payload: Payload, to: Option<SocketAddr>) -> Outgoing {
        let mut item = Outgoing::new(payload, to);
        item.segment_bytes = self.segment_bytes.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
        item.ecn = self.ecn;
        item.source = self.source.map(Box::new);
        item
    }
}

/// Asks the kernel to do or tell something with each datagram that a socket receives.
pub(crate) fn ask(core: &Core, id: EndpointId, what: Ask, on: bool) -> io::Result<()> {
    core.with(|state| state.datagrams(id, |datagrams, core, engine| datagrams.ask(core, engine, what, on)))??
}

pub(crate) fn socket(host: &Host, address: SocketAddr, shared: bool) -> io::Result<Descriptor> {
    let socket = host.datagram_socket(Domain::for_address(address))?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}
