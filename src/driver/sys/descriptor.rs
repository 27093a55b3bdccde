//! [`Descriptor`]: an open socket or file, of the system or of a simulated host, and the calls on it.
//!
//! The calls never block. Those of the data path give a result as the kernel does, a count or a negated error
//! number, so that operations encode both kinds alike; the others give `io::Result`. Nothing here knows of
//! operations, queues or time.
#![allow(unsafe_code)]

use super::control::{
    IP_PKTINFO, IP_RECVTOS, IPV6_RECVPKTINFO, IPV6_RECVTCLASS, SOL_UDP, UDP_GRO, UDP_SEGMENT,
};
use super::messages::Message;
use super::pipe::Pipe;
#[cfg(feature = "sim")]
use super::sim;
use super::socket;
use crate::driver::op::Direction;
use nix::libc;
use socket2::{SockAddr, SockRef};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// An open socket or file. Dropping it closes it.
///
/// Made from the standard library's types, and turned back into them by `OwnedFd::try_from`; that fails for one
/// of a simulated host, which the system does not know.
#[derive(Debug)]
pub struct Descriptor(Kind);

#[derive(Debug)]
enum Kind {
    System(OwnedFd),
    #[cfg(feature = "sim")]
    Simulated(sim::Descriptor),
}

/// The same call on either kind.
macro_rules! on {
    ($descriptor:expr, $fd:ident => $real:expr, $simulated:ident => $other:expr) => {
        match &$descriptor.0 {
            Kind::System($fd) => $real,
            #[cfg(feature = "sim")]
            Kind::Simulated($simulated) => $other,
        }
    };
}

/// A system call, made again when a signal interrupted it: its result or negated error number.
pub(crate) fn called(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let returned = call();
        if returned >= 0 {
            return i32::try_from(returned).unwrap_or(i32::MAX);
        }
        match nix::errno::Errno::last_raw() {
            libc::EINTR => continue,
            number => return -number,
        }
    }
}

/// The negated number of an error.
fn number_of(error: &io::Error) -> i32 {
    -error.raw_os_error().unwrap_or(libc::EINVAL)
}

impl Descriptor {
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(descriptor: sim::Descriptor) -> Descriptor {
        Descriptor(Kind::Simulated(descriptor))
    }

    /// Whether it belongs to a simulated host.
    pub(crate) fn is_simulated(&self) -> bool {
        on!(self, _fd => false, _simulated => true)
    }

    /// The simulated descriptor that it is.
    #[cfg(feature = "sim")]
    pub(crate) fn as_simulated(&self) -> Option<&sim::Descriptor> {
        on!(self, _fd => None, simulated => Some(simulated))
    }

    /// Sets whether calls of others on it block.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        on!(self, fd => socket::set_nonblocking(fd, nonblocking), _simulated => { let _ = nonblocking; Ok(()) })
    }
}

/// The data path.
impl Descriptor {
    /// `accept(2)`: what [`accepted`](Self::accepted) makes a descriptor of.
    pub(crate) fn accept(&self) -> i32 {
        on!(self, fd => called(|| socket::accept_raw(fd.as_raw_fd()) as isize), simulated => simulated.accept())
    }

    /// The connection that an accept on this listener brought.
    ///
    /// # Safety
    ///
    /// `result` is what an accept on this listener has returned, and nobody else makes anything of it.
    pub(crate) unsafe fn accepted(&self, result: i32) -> Descriptor {
        match &self.0 {
            // SAFETY: invariant 1: the caller's promise: a new descriptor that nobody else owns.
            Kind::System(_) => Descriptor(Kind::System(unsafe { OwnedFd::from_raw_fd(result) })),
            #[cfg(feature = "sim")]
            Kind::Simulated(simulated) => Descriptor(Kind::Simulated(simulated.accepted(result))),
        }
    }

    /// Starts to connect: 0, or `-EINPROGRESS`.
    pub(crate) fn connect(&self, to: &SockAddr) -> i32 {
        let connected = on!(self, fd => SockRef::from(fd).connect(to), simulated => simulated.connect(to));
        connected.map_or_else(|error| number_of(&error), |()| 0)
    }

    /// Whether it is ready in a direction right now. An error counts as ready: the next call reports it.
    pub(crate) fn is_ready(&self, direction: Direction) -> bool {
        on!(self, fd => socket::is_ready(fd, direction), simulated => simulated.is_ready(direction))
    }

    /// Takes the error that waits on a socket: 0, or its negated number.
    pub(crate) fn take_error(&self) -> i32 {
        on!(self, fd => match SockRef::from(fd).take_error() {
            Ok(None) => 0,
            Ok(Some(error)) | Err(error) => number_of(&error),
        }, simulated => simulated.take_error())
    }

    /// Receives from a stream.
    ///
    /// # Safety
    ///
    /// `len` bytes can be written at `start`.
    pub(crate) unsafe fn receive(&self, start: *mut u8, len: usize) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            called(|| unsafe { libc::recv(fd.as_raw_fd(), start.cast(), len, libc::MSG_DONTWAIT) })
        }, simulated => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { simulated_into(start, len.min(simulated.waiting()), |room| simulated.receive(room)) }
        })
    }

    /// Sends on a stream; perhaps not all.
    pub(crate) fn send(&self, bytes: &[u8]) -> i32 {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        on!(self, fd => called(|| {
            // SAFETY: invariant 1: a slice can be read as long as this call takes.
            unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }
        }), simulated => { let _ = flags; simulated.send(bytes) })
    }

    /// `sendmsg(2)` on a stream.
    ///
    /// # Safety
    ///
    /// `header` names one vector of ranges that can be read, and no address.
    pub(crate) unsafe fn send_message(&self, header: *const libc::msghdr) -> i32 {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            called(|| unsafe { libc::sendmsg(fd.as_raw_fd(), header, flags) })
        }, simulated => {
            let _ = flags;
            // SAFETY: invariant 1: the caller's promise.
            let ranges = unsafe { std::slice::from_raw_parts((*header).msg_iov, (*header).msg_iovlen as _) };
            let ranges = ranges.iter().map(|range| {
                // SAFETY: invariant 1: the caller's promise.
                unsafe { std::slice::from_raw_parts(range.iov_base.cast::<u8>(), range.iov_len) }
            });
            simulated.send_all(ranges)
        })
    }

    /// `recvmsg(2)`: one datagram and its sender.
    ///
    /// # Safety
    ///
    /// `header` names one range that can be written, and an address of at least 32 bytes that can be written.
    pub(crate) unsafe fn receive_message(&self, header: *mut libc::msghdr) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            called(|| unsafe { libc::recvmsg(fd.as_raw_fd(), header, libc::MSG_DONTWAIT) })
        }, simulated => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { simulated_message(simulated, header) }
        })
    }

    /// Sends one datagram, to `to` or to the connected peer.
    pub(crate) fn send_to(&self, bytes: &[u8], to: Option<SocketAddr>) -> i32 {
        on!(self, fd => {
            let to = to.map(SockAddr::from);
            let (address, len) = to.as_ref().map_or((std::ptr::null(), 0), |to| (to.as_ptr(), to.len()));
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            // SAFETY: invariant 1: slice and address can be read as long as this call takes.
            called(|| unsafe {
                libc::sendto(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags, address.cast(), len)
            })
        }, simulated => simulated.send_to(bytes, to))
    }

    /// Moves what was received into an empty pipe; simulated hosts have none.
    pub(crate) fn splice_into(&self, pipe: &Pipe, len: usize) -> i32 {
        on!(self, fd => pipe.fill(fd.as_fd(), len), _simulated => { let _ = (pipe, len); -libc::EOPNOTSUPP })
    }

    /// Sends what is in a pipe; perhaps not all.
    pub(crate) fn splice_from(&self, pipe: &Pipe, len: usize) -> i32 {
        on!(self, fd => pipe.empty(fd.as_fd(), len), _simulated => { let _ = (pipe, len); -libc::EOPNOTSUPP })
    }

    /// `recvmmsg(2)`: up to `count` datagrams with their senders; their number.
    ///
    /// # Safety
    ///
    /// `messages` points to as many messages; each header is as in [`receive_message`](Self::receive_message).
    pub(crate) unsafe fn receive_messages(&self, messages: *mut Message, count: usize) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            called(|| unsafe { socket::receive_messages(fd.as_raw_fd(), messages, count) })
        }, simulated => {
            each_message(count, |index| {
                // SAFETY: invariant 1: the caller's promise.
                unsafe {
                    let message = messages.add(index);
                    let received = simulated_message(simulated, &raw mut (*message).header);
                    (*message).len = received.max(0) as libc::c_uint;
                    received
                }
            })
        })
    }

    /// `sendmmsg(2)`: up to `count` datagrams; the number of those that left before one did not.
    ///
    /// # Safety
    ///
    /// `messages` points to as many messages; each header names ranges that can be read, an address or none, and
    /// control messages or none.
    pub(crate) unsafe fn send_messages(&self, messages: *mut Message, count: usize) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            called(|| unsafe { socket::send_messages(fd.as_raw_fd(), messages, count) })
        }, simulated => {
            each_message(count, |index| {
                // SAFETY: invariant 1: the caller's promise. Nothing is joined where the kernel does not cut.
                unsafe {
                    let header = &(*messages.add(index)).header;
                    if header.msg_controllen > 0 {
                        return -libc::EOPNOTSUPP;
                    }
                    let range = *header.msg_iov;
                    let bytes = std::slice::from_raw_parts(range.iov_base.cast::<u8>(), range.iov_len);
                    simulated.send_to(bytes, socket::read_address(header.msg_name.cast(), header.msg_namelen as usize))
                }
            })
        })
    }

    /// Whether the kernel cuts payloads in datagrams (udp(7): UDP_SEGMENT).
    pub(crate) fn cuts_segments(&self) -> bool {
        on!(self, fd => cfg!(target_os = "linux") && socket::has_option(fd, SOL_UDP, UDP_SEGMENT),
            _simulated => false)
    }

    /// Whether sends and receives are whole datagrams.
    pub(crate) fn is_datagram(&self) -> bool {
        on!(self, fd => matches!(SockRef::from(fd).r#type(), Ok(socket2::Type::DGRAM)),
            simulated => simulated.is_datagram())
    }

    /// Reads at an offset.
    ///
    /// # Safety
    ///
    /// `len` bytes can be written at `start`.
    pub(crate) unsafe fn read_at(&self, start: *mut u8, len: usize, offset: u64) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            called(|| unsafe { libc::pread(fd.as_raw_fd(), start.cast(), len, offset as libc::off_t) })
        }, simulated => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { simulated_into(start, len, |room| simulated.read_at(room, offset)) }
        })
    }

    /// Writes at an offset.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> i32 {
        on!(self, fd => called(|| {
            // SAFETY: invariant 1: a slice can be read as long as this call takes.
            unsafe { libc::pwrite(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset as libc::off_t) }
        }), simulated => simulated.write_at(bytes, offset))
    }

    /// Waits until content (and metadata) are on their device.
    pub(crate) fn sync(&self, data_only: bool) -> i32 {
        on!(self, fd => called(|| {
            let file = fd.as_raw_fd();
            // SAFETY: invariant 1: the descriptor is open.
            (unsafe { if data_only { libc::fdatasync(file) } else { libc::fsync(file) } }) as isize
        }), simulated => { let _ = data_only; simulated.sync() })
    }
}

/// Addresses and options, as the system calls them.
impl Descriptor {
    pub(crate) fn bind(&self, address: &SockAddr) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).bind(address), simulated => simulated.bind(address))
    }

    pub(crate) fn listen(&self, backlog: i32) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).listen(backlog), simulated => simulated.listen(backlog))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SockAddr> {
        on!(self, fd => SockRef::from(fd).local_addr(), simulated => simulated.local_addr())
    }

    /// The address of the peer of a connection.
    ///
    /// # Errors
    ///
    /// If it has none.
    pub fn peer_addr(&self) -> io::Result<SockAddr> {
        on!(self, fd => SockRef::from(fd).peer_addr(), simulated => simulated.peer_addr())
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).shutdown(how), simulated => simulated.shutdown(how))
    }

    pub(crate) fn set_tcp_nodelay(&self, nodelay: bool) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_tcp_nodelay(nodelay), simulated => simulated.set_nodelay(nodelay))
    }

    pub(crate) fn tcp_nodelay(&self) -> io::Result<bool> {
        on!(self, fd => SockRef::from(fd).tcp_nodelay(), simulated => simulated.nodelay())
    }

    /// Probes an idle connection after `idle`, or not at all. A simulated network finds broken paths by itself.
    pub(crate) fn set_keepalive(&self, idle: Option<Duration>) -> io::Result<()> {
        on!(self, fd => match idle {
            Some(idle) => {
                SockRef::from(fd).set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(idle))
            }
            None => SockRef::from(fd).set_keepalive(false),
        }, _simulated => { let _ = idle; Ok(()) })
    }

    /// Probes an idle connection as the system does by default.
    pub(crate) fn probe_idle(&self) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_keepalive(true), _simulated => Ok(()))
    }

    /// Whether received bytes wait in the system.
    pub(crate) fn has_unread(&self) -> bool {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        on!(self, fd => {
            let mut byte = [std::mem::MaybeUninit::uninit()];
            matches!(SockRef::from(fd).recv_with_flags(&mut byte, flags), Ok(1))
        }, simulated => { let _ = flags; simulated.waiting() > 0 })
    }

    /// Breaks a TCP connection off: the peer sees a reset, and sends that wait in the system end.
    ///
    /// # Errors
    ///
    /// If the socket is of another kind, or the system cannot. (A simulated host finds each send that it shall cancel.)
    pub(crate) fn disconnect(&self) -> io::Result<()> {
        on!(self, fd => socket::disconnect(fd), _simulated => Ok(()))
    }

    /// Makes the next close a reset.
    pub(crate) fn set_linger_zero(&self) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_linger(Some(Duration::ZERO)), simulated => simulated.set_linger_zero())
    }

    pub(crate) fn set_reuse_address(&self, reuse: bool) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_reuse_address(reuse), simulated => simulated.set_reuse_address(reuse))
    }

    pub(crate) fn set_reuse_port(&self, reuse: bool) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_reuse_port(reuse), simulated => simulated.set_reuse_port(reuse))
    }

    pub(crate) fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_broadcast(broadcast), simulated => simulated.set_broadcast(broadcast))
    }

    pub(crate) fn join_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).join_multicast_v4(&group, &interface),
            simulated => { let _ = interface; simulated.join(group.into()) })
    }

    pub(crate) fn leave_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).leave_multicast_v4(&group, &interface),
            simulated => { let _ = interface; simulated.leave(group.into()) })
    }

    pub(crate) fn join_multicast_v6(&self, group: Ipv6Addr, interface: u32) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).join_multicast_v6(&group, interface),
            simulated => { let _ = interface; simulated.join(group.into()) })
    }

    /// Sizes of the kernel's buffers; a simulated kernel keeps its own.
    pub(crate) fn set_buffer_sizes(&self, receive: usize, send: usize) -> io::Result<()> {
        on!(self, fd => {
            SockRef::from(fd).set_recv_buffer_size(receive)?;
            SockRef::from(fd).set_send_buffer_size(send)
        }, _simulated => { let _ = (receive, send); Ok(()) })
    }

    /// Lets the kernel join datagrams. A simulated kernel never does, which any may.
    pub(crate) fn set_joins_datagrams(&self, joins: bool) -> io::Result<()> {
        on!(self, fd => linux_only(|| socket::set_option(fd, SOL_UDP, UDP_GRO, joins.into())),
            _simulated => { let _ = joins; Ok(()) })
    }

    /// Asks for the congestion codepoint of each datagram.
    pub(crate) fn set_tells_ecn(&self, tells: bool) -> io::Result<()> {
        on!(self, fd => linux_only(|| {
            // IPv6 sockets bring IPv4 datagrams too.
            socket::set_option(fd, libc::IPPROTO_IP, IP_RECVTOS, tells.into())?;
            if self.is_v6()? {
                socket::set_option(fd, libc::IPPROTO_IPV6, IPV6_RECVTCLASS, tells.into())?;
            }
            Ok(())
        }), _simulated => { let _ = tells; Err(io::ErrorKind::Unsupported.into()) })
    }

    /// Asks for the local address and interface of each datagram.
    pub(crate) fn set_tells_local(&self, tells: bool) -> io::Result<()> {
        on!(self, fd => linux_only(|| match self.is_v6()? {
            true => socket::set_option(fd, libc::IPPROTO_IPV6, IPV6_RECVPKTINFO, tells.into()),
            false => socket::set_option(fd, libc::IPPROTO_IP, IP_PKTINFO, tells.into()),
        }), _simulated => { let _ = tells; Err(io::ErrorKind::Unsupported.into()) })
    }

    fn is_v6(&self) -> io::Result<bool> {
        Ok(self.local_addr()?.is_ipv6())
    }

    /// Bytes in a file.
    pub(crate) fn length(&self) -> io::Result<u64> {
        on!(self, fd => Ok(std::fs::File::from(fd.try_clone()?).metadata()?.len()), simulated => simulated.length())
    }
}

/// Options that are set elsewhere in another way, or not at all.
fn linux_only(set: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if cfg!(target_os = "linux") { set() } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Makes a simulated call for each message until one fails: how many succeeded, or the first one's error.
#[cfg(feature = "sim")]
fn each_message(count: usize, call: impl Fn(usize) -> i32) -> i32 {
    for index in 0..count {
        let result = call(index);
        if result < 0 {
            return if index > 0 { index as i32 } else { result };
        }
    }
    count as i32
}

/// Lets a simulated call fill memory that may not be initialised: it is zeroed first.
///
/// # Safety
///
/// `len` bytes can be written at `start`.
#[cfg(feature = "sim")]
unsafe fn simulated_into(start: *mut u8, len: usize, fill: impl FnOnce(&mut [u8]) -> i32) -> i32 {
    // What one call brings at most; zeroing more would cost and serve nobody.
    let len = len.min(sim::CALL_BYTES_MAX);
    // SAFETY: invariant 1: the caller's promise; zeroed bytes are initialised.
    let room = unsafe {
        start.write_bytes(0, len);
        std::slice::from_raw_parts_mut(start, len)
    };
    fill(room)
}

/// Receives a datagram as `recvmsg(2)` does.
///
/// # Safety
///
/// As [`Descriptor::receive_message`].
#[cfg(feature = "sim")]
unsafe fn simulated_message(simulated: &sim::Descriptor, header: *mut libc::msghdr) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    let range = unsafe { *(*header).msg_iov };
    let mut outcome = None;
    // SAFETY: invariant 1: the caller's promise.
    let result = unsafe {
        simulated_into(range.iov_base.cast(), range.iov_len, |room| match simulated.receive_from(room) {
            Ok((bytes, truncated, from)) => {
                outcome = Some((truncated, from));
                i32::try_from(bytes).unwrap_or(i32::MAX)
            }
            Err(number) => -number,
        })
    };
    if let Some((truncated, from)) = outcome {
        let from = SockAddr::from(from);
        // SAFETY: invariant 1: the caller's promise; an IPv4 or IPv6 address has at most 28 bytes.
        unsafe {
            (*header)
                .msg_name
                .cast::<u8>()
                .copy_from_nonoverlapping(from.as_ptr().cast(), from.len() as usize);
            (*header).msg_namelen = from.len();
            (*header).msg_flags = if truncated { libc::MSG_TRUNC } else { 0 };
        }
    }
    result
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Descriptor {
        Descriptor(Kind::System(fd))
    }
}

/// What an owned descriptor of the system is made of.
macro_rules! from_system {
    ($($owner:ty),* $(,)?) => {
        $(impl From<$owner> for Descriptor {
            fn from(owner: $owner) -> Descriptor {
                Descriptor::from(OwnedFd::from(owner))
            }
        })*
    };
}

from_system! {
    std::net::TcpListener, std::net::TcpStream, std::net::UdpSocket, std::os::unix::net::UnixListener,
    std::os::unix::net::UnixStream, std::os::unix::net::UnixDatagram, std::fs::File, socket2::Socket,
}

/// Fails for a descriptor of a simulated host, and closes it.
impl TryFrom<Descriptor> for OwnedFd {
    type Error = io::Error;

    fn try_from(descriptor: Descriptor) -> io::Result<OwnedFd> {
        match descriptor.0 {
            Kind::System(fd) => Ok(fd),
            #[cfg(feature = "sim")]
            Kind::Simulated(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a simulated socket cannot leave its simulation; keep the connection inside the runtime",
            )),
        }
    }
}

/// One of a simulated host lends the null device: options set on it have no effect.
impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        on!(self, fd => fd.as_fd(), _simulated => sim::placeholder())
    }
}
