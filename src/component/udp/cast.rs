//! [`UdpCast`]: a socket that speaks to many, and [`MulticastOptions`], how it joins a group.
#![forbid(unsafe_code)]

use crate::buf::Payload;
use crate::error::Full;
use crate::net::{Datagram, Interface, Segments, UdpOptions, UdpSocket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How to take part in a multicast group. What is not set stays as the system has it, but for two things: a datagram
/// passes no router (a TTL of 1), and what is sent to groups that the socket has not joined itself does not arrive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MulticastOptions {
    group: SocketAddr,
    local_port: Option<u16>,
    interface: Interface,
    ttl: u8,
    loops: Option<bool>,
    sources: Vec<IpAddr>,
    socket: UdpOptions,
}

impl MulticastOptions {
    /// A group and the port that its members are bound to, on the interface that the system chooses.
    pub fn new(group: SocketAddr) -> MulticastOptions {
        MulticastOptions {
            group,
            local_port: None,
            interface: Interface::Any,
            ttl: 1,
            loops: None,
            sources: Vec::new(),
            socket: UdpOptions::new().share_port(),
        }
    }

    /// Binds to this port in place of the group's, 0 to a free one: for who only sends, or hears answers.
    pub fn local_port(mut self, port: u16) -> MulticastOptions {
        self.local_port = Some(port);
        self
    }

    /// Sets the interface, for both directions.
    pub fn interface(mut self, interface: Interface) -> MulticastOptions {
        self.interface = interface;
        self
    }

    /// Sets how many routers a datagram may pass: 0 stays on this host, 1 on this network.
    pub fn ttl(mut self, ttl: u8) -> MulticastOptions {
        self.ttl = ttl;
        self
    }

    /// Sets whether members on this host, this one too, hear what is sent.
    pub fn loops(mut self, loops: bool) -> MulticastOptions {
        self.loops = Some(loops);
        self
    }

    /// Hears only what this source sends; several calls add up. IPv4 only.
    pub fn source(mut self, source: IpAddr) -> MulticastOptions {
        self.sources.push(source);
        self
    }

    /// Sets how the socket is bound. The port is shared with other members on this host in any case.
    pub fn socket(mut self, options: UdpOptions) -> MulticastOptions {
        self.socket = options.share_port();
        self
    }

    /// The group.
    pub fn group(&self) -> SocketAddr {
        self.group
    }

    /// Binds a socket to all addresses and the port, and joins the group.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::bind_with`] and [`join`](Self::join).
    pub fn bind(&self) -> io::Result<UdpSocket> {
        let any: IpAddr = match self.group {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let port = self.local_port.unwrap_or(self.group.port());
        let socket = UdpSocket::bind_with(SocketAddr::new(any, port), &self.socket)?;
        self.join(&socket)?;
        Ok(socket)
    }

    /// Lets a socket join the group, and sets how it sends to it.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::join_multicast`] and [`UdpSocket::join_source`], or what the system says to an option. The socket
    /// may have been changed in part then.
    pub fn join(&self, socket: &UdpSocket) -> io::Result<()> {
        self.each_membership(
            |interface| socket.join_multicast(self.group.ip(), interface),
            |source, interface| socket.join_source(source, self.group.ip(), interface),
        )?;
        // Where there is no such choice the system asks the socket's own groups already.
        match socket.set_multicast_all(false) {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            _ => {}
        }
        if self.interface != Interface::Any {
            socket.set_multicast_interface(self.interface)?;
        }
        socket.set_multicast_ttl(self.ttl)?;
        self.loops.map_or(Ok(()), |loops| socket.set_multicast_loop(loops))
    }

    /// Lets a socket leave the group.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::leave_multicast`] and [`UdpSocket::leave_source`].
    pub fn leave(&self, socket: &UdpSocket) -> io::Result<()> {
        self.each_membership(
            |interface| socket.leave_multicast(self.group.ip(), interface),
            |source, interface| socket.leave_source(source, self.group.ip(), interface),
        )
    }

    fn each_membership(
        &self,
        whole: impl Fn(Interface) -> io::Result<()>,
        of_source: impl Fn(IpAddr, Interface) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.sources.is_empty() {
            return whole(self.interface);
        }
        self.sources.iter().try_for_each(|source| of_source(*source, self.interface))
    }
}

/// A socket that speaks to many: to a multicast group, or to everybody on a network.
#[derive(Debug)]
pub struct UdpCast {
    socket: UdpSocket,
    to: SocketAddr,
    group: Option<MulticastOptions>,
}

impl UdpCast {
    /// Takes part in a group.
    ///
    /// # Errors
    ///
    /// As [`MulticastOptions::bind`].
    pub fn multicast(options: MulticastOptions) -> io::Result<UdpCast> {
        Ok(UdpCast { socket: options.bind()?, to: options.group(), group: Some(options) })
    }

    /// Sends to a broadcast address (255.255.255.255, or that of a network) and hears what is sent to everybody on a
    /// local port, which other sockets may share; 0 takes a free one.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::bind_with`]; `InvalidInput` for an address of IPv6, which has no broadcast.
    pub fn broadcast(local_port: u16, to: SocketAddr) -> io::Result<UdpCast> {
        if to.is_ipv6() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "IPv6 has no broadcast"));
        }
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, local_port));
        let socket = UdpSocket::bind_with(any, &UdpOptions::new().share_port().broadcast())?;
        Ok(UdpCast { socket, to, group: None })
    }

    /// Whom it speaks to.
    pub fn target(&self) -> SocketAddr {
        self.to
    }

    /// The socket.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// The socket, for instance for a [`UdpNode`](super::UdpNode).
    pub fn into_socket(self) -> UdpSocket {
        self.socket
    }

    /// Queues a datagram to all. As [`UdpSocket::send_to`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn send(&self, payload: impl Into<Payload>) -> io::Result<()> {
        self.socket.send_to(payload, self.to).await
    }

    /// Queues a datagram to all, if there is room now. As [`UdpSocket::try_send_to`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_send(&self, payload: impl Into<Payload>) -> Result<io::Result<()>, Full<Payload>> {
        self.socket.try_send_to(payload, self.to)
    }

    /// The next datagram with its sender. As [`UdpSocket::recv_from`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv(&self) -> io::Result<Datagram> {
        self.socket.recv_from().await
    }

    /// The next datagrams as the kernel has joined them. As [`UdpSocket::recv_segments`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv_segments(&self) -> io::Result<Segments> {
        self.socket.recv_segments().await
    }

    /// Leaves the group: what is sent to it does not arrive any more. It can still send to it.
    ///
    /// # Errors
    ///
    /// As [`MulticastOptions::leave`]; `InvalidInput` for one that broadcasts.
    pub fn leave(&self) -> io::Result<()> {
        self.in_group()?.leave(&self.socket)
    }

    /// Joins the group again.
    ///
    /// # Errors
    ///
    /// As [`MulticastOptions::join`]; `InvalidInput` for one that broadcasts.
    pub fn join(&self) -> io::Result<()> {
        self.in_group()?.join(&self.socket)
    }

    fn in_group(&self) -> io::Result<&MulticastOptions> {
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "a broadcast has no group");
        self.group.as_ref().ok_or_else(none)
    }
}
