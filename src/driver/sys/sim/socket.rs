//! The descriptors of every host, and the calls that all kinds of sockets share.
//!
//! A call looks up what its descriptor is and goes on to the module of that kind. Descriptor numbers come from one
//! counter for the whole world and never come again.

#![forbid(unsafe_code)]

use super::Outcome;
use super::address::{self, SimAddress, canonical, mapped};
use super::core::HostId;
use super::fault::Fault;
use super::file::OpenFile;
use super::node::NodeId;
use super::ports::{Binding, Ports};
use super::tcp::{LinkId, Listener};
use super::udp::Udp;
use super::unix::{UnixListener, UnixStream};
use super::world::World;
use crate::driver::sys::os::libc;
use std::net::{IpAddr, Shutdown, SocketAddr};

/// The number of a descriptor; it never comes again in the same world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DescriptorId(pub(crate) i32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    Unix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    Datagram,
}

/// An option of a socket; switches are zero or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    NoDelay,
    Broadcast,
    ReuseAddress,
    ReusePort,
    Ttl,
    OnlyV6,
    MulticastLoop,
    MulticastTtl,
    KeepAlive,
    ReceiveBuffer,
    SendBuffer,
}

const FLAGS: usize = Flag::SendBuffer as usize + 1;

/// An open descriptor.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) host: HostId,
    pub(super) node: Option<NodeId>,
    /// Whether it is on the list of its node.
    pub(super) announced: bool,
    /// Whether anybody has it; the far end of a Unix connection waits until it is accepted.
    pub(super) counted: bool,
    pub(super) family: Family,
    /// The address that it was bound to, and so its port.
    pub(super) local: Option<SocketAddr>,
    pub(super) linger_zero: bool,
    pub(super) flags: [u32; FLAGS],
    pub(super) thing: Thing,
}

/// What a descriptor is.
#[derive(Debug)]
pub(super) enum Thing {
    /// A stream socket that neither listens nor is connected.
    TcpFresh,
    TcpListener(Listener),
    Tcp {
        link: LinkId,
        end: usize,
    },
    Udp(Udp),
    UnixFresh {
        name: Option<Vec<u8>>,
    },
    UnixListener(UnixListener),
    UnixStream(UnixStream),
    File(OpenFile),
}

impl Open {
    pub(super) fn flag(&self, flag: Flag) -> bool {
        self.flags[flag as usize] != 0
    }

    /// An address of IP as this socket shows it.
    fn shown(&self, address: SocketAddr) -> SocketAddr {
        if self.family == Family::V6 { mapped(address) } else { address }
    }

    fn is_tcp(&self) -> bool {
        matches!(self.thing, Thing::TcpFresh | Thing::TcpListener(_) | Thing::Tcp { .. })
    }
}

impl World {
    /// A new socket.
    pub(crate) fn socket(&mut self, host: HostId, family: Family, kind: Kind) -> Outcome<DescriptorId> {
        self.may_open(host)?;
        let thing = match (family, kind) {
            (Family::Unix, Kind::Stream) => Thing::UnixFresh { name: None },
            (Family::Unix, Kind::Datagram) => return Err(libc::ESOCKTNOSUPPORT),
            (_, Kind::Stream) => Thing::TcpFresh,
            (_, Kind::Datagram) => Thing::Udp(Udp::default()),
        };
        let id = self.open_new(host, family, thing, true);
        self.core.note(host, format_args!("#{} socket {family:?} {kind:?}", id.0));
        Ok(id)
    }

    /// Gives a socket an address.
    pub(crate) fn bind(&mut self, id: DescriptorId, to: &SimAddress) -> Outcome<()> {
        let open = self.open(id)?;
        match (to, open.family) {
            (SimAddress::Unix(name), Family::Unix) => self.unix_bind(id, name),
            (SimAddress::Ip(address), Family::V4 | Family::V6) => {
                if open.local.is_some() {
                    return Err(libc::EINVAL);
                }
                let at = self.fitting(id, *address)?;
                if !self.is_own(open.host, at.ip()) && !at.ip().is_multicast() {
                    return Err(libc::EADDRNOTAVAIL);
                }
                self.take_port(id, at)?;
                self.note_at(id, format_args!("bind {at}"));
                Ok(())
            }
            _ => Err(libc::EINVAL),
        }
    }

    pub(crate) fn listen(&mut self, id: DescriptorId, backlog: usize) -> Outcome<()> {
        match self.open(id)?.family {
            Family::Unix => self.unix_listen(id, backlog),
            _ => self.tcp_listen(id, backlog),
        }
    }

    /// Takes a connection that waits.
    pub(crate) fn accept(&mut self, id: DescriptorId) -> Outcome<DescriptorId> {
        match self.open(id)?.thing {
            Thing::TcpListener(_) => self.tcp_accept(id),
            Thing::UnixListener(_) => self.unix_accept(id),
            Thing::File(_) => Err(libc::ENOTSOCK),
            Thing::Udp(_) => Err(libc::EOPNOTSUPP),
            _ => Err(libc::EINVAL),
        }
    }

    /// Connects a socket; a stream of TCP says EINPROGRESS, becomes ready later and then has an error or not.
    pub(crate) fn connect(&mut self, id: DescriptorId, to: &SimAddress) -> Outcome<()> {
        let open = self.open(id)?;
        match (&open.thing, to) {
            (Thing::UnixFresh { .. }, SimAddress::Unix(name)) => self.unix_connect(id, name),
            (Thing::UnixStream(_), _) => Err(libc::EISCONN),
            (Thing::UnixListener(_) | Thing::TcpListener(_), _) => Err(libc::EINVAL),
            (Thing::TcpFresh | Thing::Tcp { .. }, SimAddress::Ip(address)) => self.tcp_connect(id, *address),
            (Thing::Udp(_), SimAddress::Ip(address)) => self.udp_connect(id, *address),
            (Thing::File(_), _) => Err(libc::ENOTSOCK),
            _ => Err(libc::EAFNOSUPPORT),
        }
    }

    /// Whether reading, or else writing, would do something at once.
    pub(crate) fn is_ready(&self, id: DescriptorId, read: bool) -> bool {
        let Some(open) = self.table.get(&id.0) else { return true };
        match &open.thing {
            // Linux reports a hang-up for these.
            Thing::TcpFresh | Thing::UnixFresh { .. } => true,
            Thing::TcpListener(listener) => read && listener.is_ready(),
            Thing::Tcp { link, end } => self.tcp_is_ready(*link, *end, read),
            Thing::Udp(udp) => !read || udp.is_readable(),
            Thing::UnixListener(listener) => read && listener.is_ready(),
            Thing::UnixStream(stream) => self.unix_is_ready(stream, read),
            Thing::File(_) => true,
        }
    }

    /// The error that waits at a socket; it is told once.
    pub(crate) fn take_error(&mut self, id: DescriptorId) -> Option<i32> {
        match &mut self.table.get_mut(&id.0)?.thing {
            Thing::Tcp { link, end } => {
                let (link, end) = (*link, *end);
                self.links.get_mut(&link)?.take_error(end)
            }
            Thing::Udp(udp) => udp.error.take(),
            Thing::UnixStream(stream) => stream.error.take(),
            _ => None,
        }
    }

    /// Receives bytes, or one datagram; zero bytes of a stream are its end.
    pub(crate) fn receive(&mut self, id: DescriptorId, into: &mut [u8]) -> Outcome<usize> {
        let open = self.open(id)?;
        let host = open.host;
        match open.thing {
            Thing::Tcp { link, end } => {
                let most = self.cut_short(host, Fault::ShortRead, into.len());
                self.tcp_receive(link, end, &mut into[..most])
            }
            Thing::UnixStream(_) => {
                let most = self.cut_short(host, Fault::ShortRead, into.len());
                self.unix_receive(id, &mut into[..most])
            }
            Thing::Udp(_) => self.udp_receive(id, into).map(|(count, ..)| count),
            Thing::TcpFresh | Thing::TcpListener(_) => Err(libc::ENOTCONN),
            Thing::UnixFresh { .. } | Thing::UnixListener(_) => Err(libc::EINVAL),
            Thing::File(_) => Err(libc::ENOTSOCK),
        }
    }

    /// Sends bytes, or one datagram to the peer that was set.
    pub(crate) fn send(&mut self, id: DescriptorId, bytes: &[u8]) -> Outcome<usize> {
        let open = self.open(id)?;
        let host = open.host;
        match open.thing {
            Thing::Tcp { link, end } => {
                let most = self.cut_short(host, Fault::ShortWrite, bytes.len());
                self.tcp_send(link, end, &bytes[..most])
            }
            Thing::UnixStream(_) => {
                let most = self.cut_short(host, Fault::ShortWrite, bytes.len());
                self.unix_send(id, &bytes[..most])
            }
            Thing::Udp(_) => self.udp_send(id, bytes, None),
            Thing::TcpFresh | Thing::TcpListener(_) => Err(libc::EPIPE),
            Thing::UnixFresh { .. } | Thing::UnixListener(_) => Err(libc::ENOTCONN),
            Thing::File(_) => Err(libc::ENOTSOCK),
        }
    }

    /// Receives a datagram: how many bytes were copied, whether some were cut off, and who sent it.
    pub(crate) fn receive_from(
        &mut self,
        id: DescriptorId,
        into: &mut [u8],
    ) -> Outcome<(usize, bool, SocketAddr)> {
        let (count, truncated, from) = match self.open(id)?.thing {
            Thing::Udp(_) => self.udp_receive(id, into)?,
            Thing::File(_) => return Err(libc::ENOTSOCK),
            _ => return Err(libc::EOPNOTSUPP),
        };
        Ok((count, truncated, self.open(id)?.shown(from)))
    }

    /// Sends a datagram, to the peer that was set unless another address is given.
    pub(crate) fn send_to(
        &mut self,
        id: DescriptorId,
        bytes: &[u8],
        to: Option<SocketAddr>,
    ) -> Outcome<usize> {
        match self.open(id)?.thing {
            Thing::Udp(_) => self.udp_send(id, bytes, to),
            _ => self.send(id, bytes),
        }
    }

    pub(crate) fn shutdown(&mut self, id: DescriptorId, how: Shutdown) -> Outcome<()> {
        let done = match self.open(id)?.thing {
            Thing::Tcp { link, end } => self.tcp_shutdown(link, end, how),
            Thing::UnixStream(_) => self.unix_shutdown(id, how),
            Thing::File(_) => Err(libc::ENOTSOCK),
            Thing::TcpListener(_) => return self.tcp_stop_listening(id),
            _ => Err(libc::ENOTCONN),
        };
        self.note_at(id, format_args!("shutdown {how:?} {}", Told(&done)));
        done
    }

    pub(crate) fn close(&mut self, id: DescriptorId) -> Outcome<()> {
        self.open(id)?;
        self.note_at(id, format_args!("close"));
        let Some(open) = self.table.remove(&id.0) else { return Err(libc::EBADF) };
        if open.counted {
            self.core.host_mut(open.host).descriptors -= 1;
        }
        if let Some(local) = open.local {
            let host = self.core.host_mut(open.host);
            let ports = if open.is_tcp() { &mut host.tcp } else { &mut host.udp };
            ports.give_back(local.port(), id);
        }
        match open.thing {
            Thing::Tcp { link, end } => self.tcp_close(link, end, open.linger_zero),
            Thing::TcpListener(listener) => self.tcp_close_listener(listener),
            Thing::UnixStream(stream) => self.unix_close(stream),
            Thing::UnixListener(listener) => self.unix_close_listener(open.host, listener),
            Thing::UnixFresh { name } => self.forget_name(open.host, name.as_deref()),
            Thing::File(file) => self.file_close(open.host, file),
            Thing::TcpFresh | Thing::Udp(_) => {}
        }
        Ok(())
    }

    pub(crate) fn local_address(&self, id: DescriptorId) -> Outcome<SimAddress> {
        let open = self.open(id)?;
        match &open.thing {
            Thing::Tcp { link, end } => {
                let known = self.links.get(link).map(|link| link.ends[*end].address);
                Ok(SimAddress::Ip(open.shown(known.ok_or(libc::EBADF)?)))
            }
            Thing::UnixFresh { name } => Ok(SimAddress::Unix(name.clone().unwrap_or_default())),
            Thing::UnixListener(listener) => Ok(SimAddress::Unix(listener.name.clone())),
            Thing::UnixStream(stream) => Ok(SimAddress::Unix(stream.name.clone())),
            Thing::File(_) => Err(libc::ENOTSOCK),
            Thing::TcpFresh | Thing::TcpListener(_) | Thing::Udp(_) => {
                let none = SocketAddr::new(address::any(open.family == Family::V6), 0);
                Ok(SimAddress::Ip(open.local.map_or(none, |local| open.shown_local(local))))
            }
        }
    }

    pub(crate) fn peer_address(&self, id: DescriptorId) -> Outcome<SimAddress> {
        let open = self.open(id)?;
        match &open.thing {
            Thing::Tcp { link, end } => {
                let known = self.links.get(link).and_then(|link| link.peer_of(*end));
                Ok(SimAddress::Ip(open.shown(known.ok_or(libc::ENOTCONN)?)))
            }
            Thing::Udp(udp) => udp.peer.map(|peer| SimAddress::Ip(open.shown(peer))).ok_or(libc::ENOTCONN),
            Thing::UnixStream(stream) => Ok(SimAddress::Unix(stream.peer_name.clone())),
            Thing::File(_) => Err(libc::ENOTSOCK),
            _ => Err(libc::ENOTCONN),
        }
    }

    /// Closing shall reset the connection.
    pub(crate) fn set_linger_zero(&mut self, id: DescriptorId) -> Outcome<()> {
        self.open_mut(id)?.linger_zero = true;
        Ok(())
    }

    pub(crate) fn set_option(&mut self, id: DescriptorId, flag: Flag, value: u32) -> Outcome<()> {
        self.open_mut(id)?.flags[flag as usize] = value;
        Ok(())
    }

    pub(crate) fn option(&self, id: DescriptorId, flag: Flag) -> Outcome<u32> {
        Ok(self.open(id)?.flags[flag as usize])
    }

    pub(crate) fn descriptor_host(&self, id: DescriptorId) -> Option<HostId> {
        self.table.get(&id.0).map(|open| open.host)
    }

    /// Whether sends and receives are whole datagrams.
    pub(crate) fn is_datagram(&self, id: DescriptorId) -> bool {
        matches!(self.table.get(&id.0).map(|open| &open.thing), Some(Thing::Udp(_)))
    }

    pub(crate) fn descriptor_family(&self, id: DescriptorId) -> Option<Family> {
        self.table.get(&id.0).map(|open| open.family)
    }

    /// How many descriptors a host has open.
    pub(crate) fn descriptors_open(&self, host: HostId) -> usize {
        self.core.host(host).descriptors
    }

    /// How many bytes wait to be received.
    pub(crate) fn bytes_queued(&self, id: DescriptorId) -> usize {
        match self.table.get(&id.0).map(|open| &open.thing) {
            Some(Thing::Tcp { link, end }) => self.links.get(link).map_or(0, |link| link.ends[*end].unread()),
            Some(Thing::Udp(udp)) => udp.queued_bytes(),
            Some(Thing::UnixStream(stream)) => stream.unread(),
            _ => 0,
        }
    }
}

/// The result of a call, in few letters.
pub(super) struct Told<'a, T>(pub(super) &'a Outcome<T>);

impl<T: std::fmt::Debug> std::fmt::Display for Told<'_, T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Ok(value) => write!(formatter, "{value:?}"),
            Err(error) => write!(formatter, "{}", std::io::Error::from_raw_os_error(*error)),
        }
    }
}

impl Open {
    /// A bound address as this socket shows it; the one for every address stays in its family.
    fn shown_local(&self, local: SocketAddr) -> SocketAddr {
        if local.ip().is_unspecified() { local } else { self.shown(local) }
    }
}

impl World {
    pub(super) fn open(&self, id: DescriptorId) -> Outcome<&Open> {
        self.table.get(&id.0).ok_or(libc::EBADF)
    }

    pub(super) fn open_mut(&mut self, id: DescriptorId) -> Outcome<&mut Open> {
        self.table.get_mut(&id.0).ok_or(libc::EBADF)
    }

    /// Whether a host can have one more descriptor.
    pub(super) fn may_open(&mut self, host: HostId) -> Outcome<()> {
        let here = self.core.host(host);
        if !here.up {
            return Err(libc::EIO);
        }
        if here.descriptors >= self.core.settings.descriptors_max {
            return Err(libc::EMFILE);
        }
        if self.core.roll(host, Fault::OutOfDescriptors) {
            return Err(libc::EMFILE);
        }
        if self.core.roll(host, Fault::OutOfMemory) {
            return Err(libc::ENOMEM);
        }
        Ok(())
    }

    pub(super) fn open_new(
        &mut self,
        host: HostId,
        family: Family,
        thing: Thing,
        counted: bool,
    ) -> DescriptorId {
        let id = DescriptorId(self.next_descriptor);
        self.next_descriptor += 1;
        self.core.host_mut(host).descriptors += usize::from(counted);
        let mut flags = [0; FLAGS];
        flags[Flag::MulticastLoop as usize] = 1;
        flags[Flag::MulticastTtl as usize] = 1;
        flags[Flag::Ttl as usize] = 64;
        let open = Open {
            host,
            node: None,
            announced: false,
            counted,
            family,
            local: None,
            linger_zero: false,
            flags,
            thing,
        };
        self.table.insert(id.0, open);
        id
    }

    /// An address without its clothes, if a socket of this family may use it.
    pub(super) fn fitting(&self, id: DescriptorId, address: SocketAddr) -> Outcome<SocketAddr> {
        let open = self.open(id)?;
        match (open.family, address) {
            (Family::V4, SocketAddr::V4(_)) => Ok(address),
            (Family::V6, SocketAddr::V6(_)) => {
                let plain = canonical(address);
                if plain.is_ipv4() && open.flag(Flag::OnlyV6) {
                    return Err(libc::ENETUNREACH);
                }
                Ok(plain)
            }
            _ => Err(libc::EAFNOSUPPORT),
        }
    }

    pub(super) fn is_own(&self, host: HostId, ip: IpAddr) -> bool {
        ip.is_loopback() || ip.is_unspecified() || self.core.host(host).addresses.contains(&ip)
    }

    /// Gives a socket a port; port zero is any.
    pub(super) fn take_port(&mut self, id: DescriptorId, at: SocketAddr) -> Outcome<SocketAddr> {
        let open = self.table.get_mut(&id.0).ok_or(libc::EBADF)?;
        let binding = Binding {
            id,
            ip: at.ip(),
            reuse_address: open.flag(Flag::ReuseAddress),
            reuse_port: open.flag(Flag::ReusePort),
            listening: false,
            dual: open.family == Family::V6 && !open.flag(Flag::OnlyV6),
        };
        let host = &mut self.core.hosts[open.host.index()];
        let ports: &mut Ports = if open.is_tcp() { &mut host.tcp } else { &mut host.udp };
        let port = match at.port() {
            0 => ports.take_any(&mut self.core.random, binding).ok_or(libc::EADDRINUSE)?,
            port if ports.take(port, binding) => port,
            _ => return Err(libc::EADDRINUSE),
        };
        let local = SocketAddr::new(at.ip(), port);
        open.local = Some(local);
        Ok(local)
    }

    /// How many bytes a call may move: all, or few if it is cut short.
    fn cut_short(&mut self, host: HostId, fault: Fault, length: usize) -> usize {
        if length > 1 && self.core.roll(host, fault) {
            return length.min(self.core.random.between(1..=64) as usize);
        }
        length
    }
}
