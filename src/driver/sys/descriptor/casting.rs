//! Options of datagram sockets: who hears them and whom they hear. The same words for both IP families; a socket of
//! IPv6 that takes IPv4 too is told for both.
#![forbid(unsafe_code)]

use super::{Descriptor, Kind, SockRef, linux_only, os};
use crate::driver::sys::os::libc;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

/// ip(7): IP_MULTICAST_ALL, and its number for IPv6 (linux/in6.h).
const IP_MULTICAST_ALL: i32 = 49;
const IPV6_MULTICAST_ALL: i32 = 29;

impl Descriptor {
    pub(crate) fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_broadcast(broadcast), simulated => simulated.set_broadcast(broadcast))
    }

    /// Lets other sockets bind the same port, so that each hears what is sent to many. (Not the option by which
    /// listeners take over a port, which some systems call the same.)
    pub(crate) fn set_shared_address(&self, shared: bool) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_reuse_address(shared), simulated => simulated.set_reuse_address(shared))
    }

    /// Whether a socket of IPv6 leaves IPv4 alone.
    pub(crate) fn set_only_v6(&self, only: bool) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_only_v6(only), simulated => simulated.set_only_v6(only))
    }

    /// Sizes of the kernel's buffers; a simulated kernel keeps its own.
    pub(crate) fn set_buffer_sizes(&self, receive: Option<usize>, send: Option<usize>) -> io::Result<()> {
        on!(self, fd => {
            receive.map_or(Ok(()), |bytes| SockRef::from(fd).set_recv_buffer_size(bytes))?;
            send.map_or(Ok(()), |bytes| SockRef::from(fd).set_send_buffer_size(bytes))
        }, _simulated => { let _ = (receive, send); Ok(()) })
    }

    /// The sizes that the kernel has made of it: to receive and to send.
    pub(crate) fn buffer_sizes(&self) -> io::Result<(usize, usize)> {
        on!(self, fd => Ok((SockRef::from(fd).recv_buffer_size()?, SockRef::from(fd).send_buffer_size()?)),
            _simulated => Err(io::ErrorKind::Unsupported.into()))
    }

    /// Sets how many routers a datagram to one address may pass; a simulated network has none.
    pub(crate) fn set_ttl(&self, ttl: u8) -> io::Result<()> {
        on!(self, fd => {
            let socket = SockRef::from(fd);
            self.per_family(
                || socket.set_ttl_v4(ttl.into()),
                || socket.set_unicast_hops_v6(ttl.into()),
            )
        }, _simulated => { let _ = ttl; Ok(()) })
    }

    /// As [`set_ttl`](Self::set_ttl), of datagrams to a group.
    pub(crate) fn set_multicast_ttl(&self, ttl: u8) -> io::Result<()> {
        on!(self, fd => {
            let socket = SockRef::from(fd);
            self.per_family(
                || socket.set_multicast_ttl_v4(ttl.into()),
                || socket.set_multicast_hops_v6(ttl.into()),
            )
        }, simulated => simulated.set_multicast_ttl(ttl))
    }

    /// Whether sockets of this host hear what is sent to a group that they have joined.
    pub(crate) fn set_multicast_loop(&self, loops: bool) -> io::Result<()> {
        on!(self, fd => {
            let socket = SockRef::from(fd);
            self.per_family(|| socket.set_multicast_loop_v4(loops), || socket.set_multicast_loop_v6(loops))
        }, simulated => simulated.set_multicast_loop(loops))
    }

    /// Whether the socket hears of groups that only others on this host have joined; a simulated one never does.
    pub(crate) fn set_multicast_all(&self, all: bool) -> io::Result<()> {
        on!(self, fd => linux_only(|| self.per_family(
            || os::set_option(fd, libc::IPPROTO_IP, IP_MULTICAST_ALL, all.into()),
            || os::set_option(fd, libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, all.into()),
        )), _simulated => if all { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) })
    }

    /// Sets the interface by which datagrams to groups leave; a simulated host has one.
    pub(crate) fn set_multicast_interface_v4(&self, interface: Ipv4Addr) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_multicast_if_v4(&interface),
            _simulated => { let _ = interface; Ok(()) })
    }

    /// As [`set_multicast_interface_v4`](Self::set_multicast_interface_v4), by index.
    pub(crate) fn set_multicast_interface_v6(&self, interface: u32) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).set_multicast_if_v6(interface),
            _simulated => { let _ = interface; Ok(()) })
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

    pub(crate) fn leave_multicast_v6(&self, group: Ipv6Addr, interface: u32) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).leave_multicast_v6(&group, interface),
            simulated => { let _ = interface; simulated.leave(group.into()) })
    }

    /// Hears what one source sends to a group; a simulated network knows no sources.
    pub(crate) fn join_source_v4(
        &self,
        source: Ipv4Addr,
        group: Ipv4Addr,
        interface: Ipv4Addr,
    ) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).join_ssm_v4(&source, &group, &interface),
            _simulated => { let _ = (source, group, interface); Err(io::ErrorKind::Unsupported.into()) })
    }

    pub(crate) fn leave_source_v4(
        &self,
        source: Ipv4Addr,
        group: Ipv4Addr,
        interface: Ipv4Addr,
    ) -> io::Result<()> {
        on!(self, fd => SockRef::from(fd).leave_ssm_v4(&source, &group, &interface),
            _simulated => { let _ = (source, group, interface); Err(io::ErrorKind::Unsupported.into()) })
    }

    /// Sets an option of either family. A socket of IPv6 may take IPv4 too; where the system knows no such sockets,
    /// it refuses the option of IPv4, which then has nothing to say.
    fn per_family(
        &self,
        v4: impl FnOnce() -> io::Result<()>,
        v6: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.is_v6()? {
            return v4();
        }
        let _ = v4();
        v6()
    }
}
