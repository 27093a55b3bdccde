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
use super::os::{self, Owned, Raw, libc};
use super::pipe::Pipe;
#[cfg(feature = "sim")]
use super::sim;
#[cfg(feature = "sim")]
use super::socket;
use crate::driver::op::Direction;
use socket2::{SockAddr, SockRef};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

/// An open socket or file. Dropping it closes it.
///
/// Made from the standard library's types, and turned back into them by `TryFrom`; that fails for one
/// of a simulated host, which the system does not know.
#[derive(Debug)]
pub struct Descriptor(Kind);

#[derive(Debug)]
enum Kind {
    System(Owned),
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

mod casting;

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

    /// What the system knows it by. One of a simulated host lends the null device.
    pub(crate) fn raw(&self) -> Raw {
        on!(self, fd => os::raw(fd), _simulated => os::raw(sim::placeholder()))
    }

    /// As [`raw`](Self::raw), to lend it.
    #[cfg(unix)]
    pub(super) fn borrow(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        on!(self, fd => fd.as_fd(), _simulated => sim::placeholder().as_fd())
    }

    /// As [`raw`](Self::raw), to lend it. The system refuses what is no socket.
    #[cfg(windows)]
    pub(crate) fn borrow(&self) -> std::os::windows::io::BorrowedSocket<'_> {
        use std::os::windows::io::AsSocket;
        on!(self, fd => fd.as_socket(), _simulated => unreachable!("there is no simulation on this system"))
    }

    /// Whether it is a file of the system.
    #[cfg(windows)]
    pub(super) fn is_file(&self) -> bool {
        on!(self, fd => fd.is_file(), _simulated => false)
    }

    /// Whether it is a file of the system whose calls need no thread.
    pub(crate) fn is_overlapped_file(&self) -> bool {
        on!(self, fd => os::is_overlapped_file(fd), _simulated => false)
    }

    /// Another handle of the file, for calls of the standard library.
    pub(crate) fn to_file(&self) -> io::Result<std::fs::File> {
        on!(self, fd => os::file(fd), _simulated => sim::placeholder().try_clone())
    }

    /// Sets whether calls of others on it block.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        on!(self, fd => os::set_nonblocking(fd, nonblocking), _simulated => { let _ = nonblocking; Ok(()) })
    }
}

/// The data path.
impl Descriptor {
    /// `accept(2)`: what [`accepted`](Self::accepted) makes a descriptor of.
    pub(crate) fn accept(&self) -> i32 {
        on!(self, fd => os::accept(os::raw(fd)), simulated => simulated.accept())
    }

    /// The connection that an accept on this listener brought.
    ///
    /// # Safety
    ///
    /// `result` is what an accept on this listener has returned, and nobody else makes anything of it.
    pub(crate) unsafe fn accepted(&self, result: i32) -> Descriptor {
        match &self.0 {
            // SAFETY: invariant 1: the caller's promise: a new descriptor that nobody else owns.
            Kind::System(_) => Descriptor(Kind::System(unsafe { os::accepted(result) })),
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
        on!(self, fd => os::is_ready(fd, direction), simulated => simulated.is_ready(direction))
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
            unsafe { os::receive(os::raw(fd), start, len) }
        }, simulated => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { simulated_into(start, len.min(simulated.waiting()), |room| simulated.receive(room)) }
        })
    }

    /// Sends on a stream; perhaps not all.
    pub(crate) fn send(&self, bytes: &[u8]) -> i32 {
        on!(self, fd => os::send(os::raw(fd), bytes), simulated => simulated.send(bytes))
    }

    /// `sendmsg(2)` on a stream.
    ///
    /// # Safety
    ///
    /// `header` names one vector of ranges that can be read, and no address.
    pub(crate) unsafe fn send_message(&self, header: *const libc::msghdr) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { os::send_message(os::raw(fd), header) }
        }, simulated => {
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
            unsafe { os::receive_message(os::raw(fd), header) }
        }, simulated => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { simulated_message(simulated, header) }
        })
    }

    /// Sends one datagram, to `to` or to the connected peer.
    pub(crate) fn send_to(&self, bytes: &[u8], to: Option<SocketAddr>) -> i32 {
        on!(self, fd => {
            let to = to.map(SockAddr::from);
            os::send_to(os::raw(fd), bytes, to.as_ref())
        }, simulated => simulated.send_to(bytes, to))
    }

    /// Moves what was received into an empty pipe; simulated hosts have none.
    pub(crate) fn splice_into(&self, pipe: &Pipe, len: usize) -> i32 {
        on!(self, fd => pipe.fill(fd, len), _simulated => { let _ = (pipe, len); -libc::EOPNOTSUPP })
    }

    /// Sends what is in a pipe; perhaps not all.
    pub(crate) fn splice_from(&self, pipe: &Pipe, len: usize) -> i32 {
        on!(self, fd => pipe.empty(fd, len), _simulated => { let _ = (pipe, len); -libc::EOPNOTSUPP })
    }

    /// `recvmmsg(2)`: up to `count` datagrams with their senders; their number.
    ///
    /// # Safety
    ///
    /// `messages` points to as many messages; each header is as in [`receive_message`](Self::receive_message).
    pub(crate) unsafe fn receive_messages(&self, messages: *mut Message, count: usize) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { os::receive_messages(os::raw(fd), messages, count) }
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
            unsafe { os::send_messages(os::raw(fd), messages, count) }
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
        on!(self, fd => cfg!(target_os = "linux") && os::has_option(fd, SOL_UDP, UDP_SEGMENT),
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
            unsafe { os::read_at(os::raw(fd), start, len, offset) }
        }, simulated => {
            // SAFETY: invariant 1: the caller's promise.
            unsafe { simulated_into(start, len, |room| simulated.read_at(room, offset)) }
        })
    }

    /// Writes at an offset.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> i32 {
        on!(self, fd => {
            // SAFETY: invariant 1: a slice can be read as long as this call takes.
            unsafe { os::write_at(os::raw(fd), bytes.as_ptr(), bytes.len(), offset) }
        }, simulated => simulated.write_at(bytes, offset))
    }

    /// Waits until content (and metadata) are on their device.
    pub(crate) fn sync(&self, data_only: bool) -> i32 {
        on!(self, fd => os::sync(os::raw(fd), data_only), simulated => { let _ = data_only; simulated.sync() })
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
        on!(self, fd => os::has_unread(fd), simulated => simulated.waiting() > 0)
    }

    /// Whether programs that are started get it, too.
    #[cfg(test)]
    pub(crate) fn is_inherited(&self) -> bool {
        on!(self, fd => os::is_inherited(fd), _simulated => false)
    }

    /// Breaks a TCP connection off: the peer sees a reset, and sends that wait in the system end.
    ///
    /// # Errors
    ///
    /// If the socket is of another kind, or the system cannot. (A simulated host finds each send that it shall cancel.)
    pub(crate) fn disconnect(&self) -> io::Result<()> {
        on!(self, fd => os::disconnect(fd), _simulated => Ok(()))
    }

    /// Makes the next close a reset.
    pub(crate) fn set_linger_zero(&self) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_linger(Some(Duration::ZERO)), simulated => simulated.set_linger_zero())
    }

    pub(crate) fn set_reuse_address(&self, reuse: bool) -> io::Result<()> {
        on!(self, fd => os::set_reuse_address(fd, reuse), simulated => simulated.set_reuse_address(reuse))
    }

    pub(crate) fn set_reuse_port(&self, reuse: bool) -> io::Result<()> {
        on!(self, fd => os::set_reuse_port(fd, reuse), simulated => simulated.set_reuse_port(reuse))
    }

    /// Lets the kernel join datagrams. A simulated kernel never does, which any may.
    pub(crate) fn set_joins_datagrams(&self, joins: bool) -> io::Result<()> {
        on!(self, fd => linux_only(|| os::set_option(fd, SOL_UDP, UDP_GRO, joins.into())),
            _simulated => { let _ = joins; Ok(()) })
    }

    /// Asks for the congestion codepoint of each datagram.
    pub(crate) fn set_tells_ecn(&self, tells: bool) -> io::Result<()> {
        on!(self, fd => linux_only(|| {
            // IPv6 sockets bring IPv4 datagrams too.
            os::set_option(fd, libc::IPPROTO_IP, IP_RECVTOS, tells.into())?;
            if self.is_v6()? {
                os::set_option(fd, libc::IPPROTO_IPV6, IPV6_RECVTCLASS, tells.into())?;
            }
            Ok(())
        }), _simulated => { let _ = tells; Err(io::ErrorKind::Unsupported.into()) })
    }

    /// Asks for the local address and interface of each datagram.
    pub(crate) fn set_tells_local(&self, tells: bool) -> io::Result<()> {
        on!(self, fd => linux_only(|| match self.is_v6()? {
            true => os::set_option(fd, libc::IPPROTO_IPV6, IPV6_RECVPKTINFO, tells.into()),
            false => os::set_option(fd, libc::IPPROTO_IP, IP_PKTINFO, tells.into()),
        }), _simulated => { let _ = tells; Err(io::ErrorKind::Unsupported.into()) })
    }

    fn is_v6(&self) -> io::Result<bool> {
        Ok(self.local_addr()?.is_ipv6())
    }

    /// Bytes in a file.
    pub(crate) fn length(&self) -> io::Result<u64> {
        on!(self, fd => Ok(os::file(fd)?.metadata()?.len()), simulated => simulated.length())
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

impl From<Owned> for Descriptor {
    fn from(fd: Owned) -> Descriptor {
        Descriptor(Kind::System(fd))
    }
}

/// What an owned descriptor of the system is made of.
macro_rules! from_system {
    ($($owner:ty),* $(,)?) => {
        $(impl From<$owner> for $crate::driver::Descriptor {
            fn from(owner: $owner) -> $crate::driver::Descriptor {
                $crate::driver::Descriptor::from($crate::driver::sys::os::Owned::from(owner))
            }
        })*
    };
}
pub(super) use from_system;

from_system! {
    std::net::TcpListener, std::net::TcpStream, std::net::UdpSocket, std::fs::File, socket2::Socket,
}

/// Fails for a descriptor of a simulated host, and closes it.
impl TryFrom<Descriptor> for Owned {
    type Error = io::Error;

    fn try_from(descriptor: Descriptor) -> io::Result<Owned> {
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
