//! Options of UDP sockets: how they are bound, and one to many: multicast and broadcast.
#![forbid(unsafe_code)]

use super::UdpSocket;
use crate::driver::{Descriptor, Host};
use crate::shard::{Context, Core};
use socket2::{Domain, SockAddr};
use std::error;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How a [`UdpSocket`] is bound. What is not set stays as the system has it.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # anabranch::block_on(async {
/// use anabranch::net::{UdpOptions, UdpSocket};
///
/// let options = UdpOptions::new().share_port().receive_buffer_bytes(1 << 20);
/// let one = UdpSocket::bind_with("127.0.0.1:0".parse().unwrap(), &options)?;
/// let other = UdpSocket::bind_with(one.local_addr()?, &options)?; // both hear what is sent to many
/// # assert_eq!(one.local_addr()?, other.local_addr()?);
/// # std::io::Result::Ok(())
/// # })?
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct UdpOptions {
    /// Other sockets may have the port, too; see [`share_port`](Self::share_port).
    pub shared_port: bool,
    /// The kernel spreads senders over the sockets of the port; see [`spread`](Self::spread).
    pub spread: bool,
    /// A socket of IPv6 takes no IPv4.
    pub only_v6: bool,
    /// It may send to broadcast addresses.
    pub broadcast: bool,
    /// Bytes of the kernel's buffer for datagrams that nobody has received yet.
    pub receive_buffer_bytes: Option<usize>,
    /// Bytes of the kernel's buffer for datagrams on their way out.
    pub send_buffer_bytes: Option<usize>,
    /// How many routers a datagram to one address may pass.
    pub ttl: Option<u8>,
}

impl UdpOptions {
    /// As the system has it.
    pub fn new() -> UdpOptions {
        UdpOptions::default()
    }

    /// Several sockets may have the port if all of them ask for it (SO_REUSEADDR): each of them hears what is sent to a
    /// group or to everybody; what is sent to one address goes to one of them. Any user of this host may take part.
    pub fn share_port(mut self) -> UdpOptions {
        self.shared_port = true;
        self
    }

    /// Several sockets of one user may have the port if all of them ask for it (SO_REUSEPORT); the kernel gives each
    /// sender to one of them. Not on Windows.
    pub fn spread(mut self) -> UdpOptions {
        self.spread = true;
        self
    }

    /// A socket of IPv6 takes no IPv4.
    pub fn only_v6(mut self) -> UdpOptions {
        self.only_v6 = true;
        self
    }

    /// The socket may send to broadcast addresses.
    pub fn broadcast(mut self) -> UdpOptions {
        self.broadcast = true;
        self
    }

    /// Asks for a receive buffer of so many bytes; the system may make less of it, or more.
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> UdpOptions {
        self.receive_buffer_bytes = Some(bytes);
        self
    }

    /// Asks for a send buffer of so many bytes; the system may make less of it, or more.
    pub fn send_buffer_bytes(mut self, bytes: usize) -> UdpOptions {
        self.send_buffer_bytes = Some(bytes);
        self
    }

    /// Sets how many routers a datagram to one address may pass, 1 to 255.
    pub fn ttl(mut self, ttl: u8) -> UdpOptions {
        self.ttl = Some(ttl);
        self
    }

    pub(super) fn bind(&self, host: &Host, address: SocketAddr) -> io::Result<Descriptor> {
        let socket = host.datagram_socket(Domain::for_address(address))?;
        let set = |name, outcome: io::Result<()>| outcome.map_err(|error| OptionRefused::with(name, error));
        if self.shared_port {
            set("shared_port", socket.set_shared_address(true))?;
        }
        if self.spread {
            set("spread", socket.set_reuse_port(true))?;
        }
        if self.only_v6 && address.is_ipv6() {
            set("only_v6", socket.set_only_v6(true))?;
        }
        set("receive_buffer_bytes", socket.set_buffer_sizes(self.receive_buffer_bytes, None))?;
        set("send_buffer_bytes", socket.set_buffer_sizes(None, self.send_buffer_bytes))?;
        if self.broadcast {
            set("broadcast", socket.set_broadcast(true))?;
        }
        socket.bind(&SockAddr::from(address))?;
        if let Some(ttl) = self.ttl {
            set("ttl", socket.set_ttl(ttl))?;
        }
        Ok(socket)
    }
}

/// The system refused an option: what the error of [`UdpSocket::bind_with`] holds, which has the kind of the cause.
#[derive(Debug)]
pub struct OptionRefused {
    option: &'static str,
    cause: io::Error,
}

impl OptionRefused {
    fn with(option: &'static str, cause: io::Error) -> io::Error {
        io::Error::new(cause.kind(), OptionRefused { option, cause })
    }

    /// The name of the field of [`UdpOptions`].
    pub fn option(&self) -> &'static str {
        self.option
    }
}

impl fmt::Display for OptionRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the system refuses the option `{}`: {}", self.option, self.cause)
    }
}

impl error::Error for OptionRefused {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// A network interface, for multicast.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Interface {
    /// Whichever the system chooses.
    #[default]
    Any,
    /// The one that has this address; for IPv4.
    Address(Ipv4Addr),
    /// The one with this index; for IPv6.
    Index(u32),
}

/// What cannot be asked of multicast: what an `InvalidInput` error of a join or leave holds (for
/// [`SourceOfV6`](Self::SourceOfV6) the kind is `Unsupported`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum InvalidMulticast {
    /// The address is not one of a group.
    NotAGroup(IpAddr),
    /// IPv4 names interfaces by an address, IPv6 by an index.
    OtherInterface {
        /// The group.
        group: IpAddr,
        /// Its interface.
        interface: Interface,
    },
    /// The source and the group are of different families.
    OtherSource {
        /// The group.
        group: IpAddr,
        /// The source.
        source: IpAddr,
    },
    /// Groups of IPv6 cannot be joined for one source.
    SourceOfV6,
}

impl fmt::Display for InvalidMulticast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidMulticast::NotAGroup(address) => {
                write!(f, "{address} is no group: 224.0.0.0/4 and ff00::/8 are")
            }
            InvalidMulticast::OtherInterface { group, interface } => write!(
                f,
                "{interface:?} cannot carry {group}: IPv4 names interfaces by an address, IPv6 by an index"
            ),
            InvalidMulticast::OtherSource { group, source } => {
                write!(f, "{source} cannot be a source of {group}, which is of another family")
            }
            InvalidMulticast::SourceOfV6 => f.write_str("groups of IPv6 cannot be joined for one source"),
        }
    }
}

impl error::Error for InvalidMulticast {}

impl From<InvalidMulticast> for io::Error {
    fn from(error: InvalidMulticast) -> io::Error {
        let kind = match error {
            InvalidMulticast::SourceOfV6 => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

/// A group and the interface that carries it, of one family.
enum Membership {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, u32),
}

impl Membership {
    fn new(group: IpAddr, interface: Interface) -> Result<Membership, InvalidMulticast> {
        if !group.is_multicast() {
            return Err(InvalidMulticast::NotAGroup(group));
        }
        match (group, interface) {
            (IpAddr::V4(group), Interface::Any) => Ok(Membership::V4(group, Ipv4Addr::UNSPECIFIED)),
            (IpAddr::V4(group), Interface::Address(address)) => Ok(Membership::V4(group, address)),
            (IpAddr::V6(group), Interface::Any) => Ok(Membership::V6(group, 0)),
            (IpAddr::V6(group), Interface::Index(index)) => Ok(Membership::V6(group, index)),
            _ => Err(InvalidMulticast::OtherInterface { group, interface }),
        }
    }

    /// The source, the group and the interface of a membership for one source.
    fn of_source(
        source: IpAddr,
        group: IpAddr,
        interface: Interface,
    ) -> Result<(Ipv4Addr, Ipv4Addr, Ipv4Addr), InvalidMulticast> {
        match (Membership::new(group, interface)?, source) {
            (Membership::V4(group, interface), IpAddr::V4(source)) => Ok((source, group, interface)),
            (Membership::V6(..), IpAddr::V6(_)) => Err(InvalidMulticast::SourceOfV6),
            _ => Err(InvalidMulticast::OtherSource { group, source }),
        }
    }
}

impl UdpSocket {
    /// Binds to `address` with options. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// What the system says to the address (`AddrInUse`, `PermissionDenied`); with an [`OptionRefused`] inside, what it
    /// says to an option; or if no shard runs here, or it has [`Limits::endpoints_max`](crate::Limits) endpoints.
    pub fn bind_with(address: SocketAddr, options: &UdpOptions) -> io::Result<UdpSocket> {
        let core = Core::required()?;
        let socket = options.bind(&core.config.host, address)?;
        UdpSocket::open(core, socket)
    }

    /// As [`bind_group`](Self::bind_group), with options; the port is spread over the shards in any case if there are
    /// several.
    ///
    /// # Errors
    ///
    /// As [`bind_with`](Self::bind_with).
    pub fn bind_group_with(
        group: &Context,
        address: SocketAddr,
        options: &UdpOptions,
    ) -> io::Result<UdpSocket> {
        let spread = options.spread || group.shards() > 1;
        UdpSocket::bind_with(address, &UdpOptions { spread, ..options.clone() })
    }

    /// Sets SO_BROADCAST: whether it may send to broadcast addresses.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        self.on_socket(|socket| socket.set_broadcast(broadcast))
    }

    /// Asks for the sizes of the kernel's buffers, in bytes; the system may make less of them, or more.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_buffer_sizes(&self, receive: usize, send: usize) -> io::Result<()> {
        self.on_socket(|socket| socket.set_buffer_sizes(Some(receive), Some(send)))
    }

    /// The sizes of the kernel's buffers in bytes, to receive and to send. Linux counts what it keeps for itself, and
    /// so tells twice what was asked for.
    ///
    /// # Errors
    ///
    /// `Unsupported` in a simulation.
    pub fn buffer_sizes(&self) -> io::Result<(usize, usize)> {
        self.on_socket(Descriptor::buffer_sizes)
    }

    /// Sets how many routers a datagram to one address may pass, 1 to 255 (IP_TTL, IPV6_UNICAST_HOPS).
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        self.on_socket(|socket| socket.set_ttl(ttl))
    }

    /// Sets how many routers a datagram to a group may pass: 0 stays on this host, 1 on this network, which is what
    /// systems begin with (IP_MULTICAST_TTL, IPV6_MULTICAST_HOPS).
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_multicast_ttl(&self, ttl: u8) -> io::Result<()> {
        self.on_socket(|socket| socket.set_multicast_ttl(ttl))
    }

    /// Sets whether sockets of this host that have joined a group, this one too, hear what this one sends to it. Systems
    /// begin with yes. (On Windows the receiver's setting counts.)
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_multicast_loop(&self, loops: bool) -> io::Result<()> {
        self.on_socket(|socket| socket.set_multicast_loop(loops))
    }

    /// Sets whether it hears of groups that only other sockets of this host have joined. Linux begins with yes, as long
    /// as the port fits; elsewhere it cannot be.
    ///
    /// # Errors
    ///
    /// `Unsupported` where there is no such choice.
    pub fn set_multicast_all(&self, all: bool) -> io::Result<()> {
        self.on_socket(|socket| socket.set_multicast_all(all))
    }

    /// Sets the interface by which datagrams to groups leave.
    ///
    /// # Errors
    ///
    /// If the system refuses, as for an interface that is not there.
    pub fn set_multicast_interface(&self, interface: Interface) -> io::Result<()> {
        self.on_socket(|socket| match interface {
            Interface::Address(address) => socket.set_multicast_interface_v4(address),
            Interface::Index(index) => socket.set_multicast_interface_v6(index),
            Interface::Any if socket.local_addr()?.is_ipv6() => socket.set_multicast_interface_v6(0),
            Interface::Any => socket.set_multicast_interface_v4(Ipv4Addr::UNSPECIFIED),
        })
    }

    /// Joins a group on an interface: what is sent to it (and to the port) arrives.
    ///
    /// # Errors
    ///
    /// `InvalidInput` with an [`InvalidMulticast`] inside; `AddrInUse` if it has joined already; or what the system says.
    pub fn join_multicast(&self, group: IpAddr, interface: Interface) -> io::Result<()> {
        match Membership::new(group, interface)? {
            Membership::V4(group, interface) => self.join_multicast_v4(group, interface),
            Membership::V6(group, interface) => self.join_multicast_v6(group, interface),
        }
    }

    /// Leaves a group on an interface.
    ///
    /// # Errors
    ///
    /// `InvalidInput` with an [`InvalidMulticast`] inside; `AddrNotAvailable` if it has not joined; or what the system
    /// says.
    pub fn leave_multicast(&self, group: IpAddr, interface: Interface) -> io::Result<()> {
        match Membership::new(group, interface)? {
            Membership::V4(group, interface) => self.leave_multicast_v4(group, interface),
            Membership::V6(group, interface) => {
                self.on_socket(|socket| socket.leave_multicast_v6(group, interface))
            }
        }
    }

    /// Joins a group for one source only: what others send to it does not arrive (RFC 3678: IP_ADD_SOURCE_MEMBERSHIP).
    /// Several sources may be joined, one call each.
    ///
    /// # Errors
    ///
    /// As [`join_multicast`](Self::join_multicast); `Unsupported` for IPv6 and in a simulation; an error if the group has
    /// been joined for all sources.
    pub fn join_source(&self, source: IpAddr, group: IpAddr, interface: Interface) -> io::Result<()> {
        let (source, group, interface) = Membership::of_source(source, group, interface)?;
        self.on_socket(|socket| socket.join_source_v4(source, group, interface))
    }

    /// Leaves a group for one source.
    ///
    /// # Errors
    ///
    /// As [`join_source`](Self::join_source); `AddrNotAvailable` if it has not joined.
    pub fn leave_source(&self, source: IpAddr, group: IpAddr, interface: Interface) -> io::Result<()> {
        let (source, group, interface) = Membership::of_source(source, group, interface)?;
        self.on_socket(|socket| socket.leave_source_v4(source, group, interface))
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
}
