//! [`Descriptor`]: an open socket or file of a simulated host. Dropping it closes it.
#![forbid(unsafe_code)]

use super::machine::{Machine, error};
use super::{DescriptorId, Flag, Outcome, SimAddress, World};
use crate::driver::op::Direction;
use crate::driver::sys::os::libc;
use socket2::SockAddr;
use std::fmt;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};

/// The most bytes that one call on a stream or a file moves.
pub(crate) const CALL_BYTES_MAX: usize = 128 * 1024;

/// An open socket or file of a simulated host.
pub(crate) struct Descriptor {
    machine: Machine,
    pub(crate) id: DescriptorId,
}

/// A count or nothing as the kernel gives it.
fn raw(outcome: Outcome<usize>) -> i32 {
    outcome.map_or_else(|number| -number, |count| i32::try_from(count).unwrap_or(i32::MAX))
}

impl Descriptor {
    pub(crate) fn new(machine: Machine, id: DescriptorId) -> Descriptor {
        Descriptor { machine, id }
    }

    fn call<R>(&self, work: impl FnOnce(&mut World, DescriptorId) -> R) -> R {
        work(&mut self.machine.simulation.lock().world, self.id)
    }

    pub(crate) fn accept(&self) -> i32 {
        self.call(World::accept).map_or_else(|number| -number, |id| id.0)
    }

    pub(crate) fn accepted(&self, result: i32) -> Descriptor {
        Descriptor::new(self.machine.clone(), DescriptorId(result))
    }

    pub(crate) fn connect(&self, to: &SockAddr) -> io::Result<()> {
        let to = SimAddress::from_sock_addr(to).ok_or_else(|| error(libc::EAFNOSUPPORT))?;
        self.call(|world, id| world.connect(id, &to)).map_err(error)
    }

    pub(crate) fn is_ready(&self, direction: Direction) -> bool {
        self.call(|world, id| world.is_ready(id, direction == Direction::Read))
    }

    pub(crate) fn take_error(&self) -> i32 {
        self.call(World::take_error).map_or(0, |number| -number)
    }

    pub(crate) fn receive(&self, into: &mut [u8]) -> i32 {
        raw(self.call(|world, id| world.receive(id, into)))
    }

    /// How many bytes wait, at least one: room for more need not be made.
    pub(crate) fn waiting(&self) -> usize {
        self.call(|world, id| world.bytes_queued(id)).max(1)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> i32 {
        raw(self.call(|world, id| world.send(id, bytes)))
    }

    /// Sends ranges in order until one does not go whole.
    pub(crate) fn send_all<'a>(&self, ranges: impl Iterator<Item = &'a [u8]>) -> i32 {
        let mut total = 0;
        for range in ranges {
            let sent = self.send(range);
            if sent < 0 {
                return if total > 0 { total } else { sent };
            }
            total += sent;
            if (sent as usize) < range.len() {
                break;
            }
        }
        total
    }

    pub(crate) fn receive_from(&self, into: &mut [u8]) -> Outcome<(usize, bool, SocketAddr)> {
        self.call(|world, id| world.receive_from(id, into))
    }

    pub(crate) fn send_to(&self, bytes: &[u8], to: Option<SocketAddr>) -> i32 {
        raw(self.call(|world, id| world.send_to(id, bytes, to)))
    }

    pub(crate) fn is_datagram(&self) -> bool {
        self.call(|world, id| world.is_datagram(id))
    }

    pub(crate) fn read_at(&self, into: &mut [u8], offset: u64) -> i32 {
        raw(self.call(|world, id| world.read_at(id, into, offset)))
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> i32 {
        raw(self.call(|world, id| world.write_at(id, bytes, offset)))
    }

    pub(crate) fn sync(&self) -> i32 {
        raw(self.call(World::sync).map(|()| 0))
    }

    pub(crate) fn length(&self) -> io::Result<u64> {
        self.call(World::length).map_err(error)
    }

    pub(crate) fn bind(&self, address: &SockAddr) -> io::Result<()> {
        let address = SimAddress::from_sock_addr(address).ok_or_else(|| error(libc::EAFNOSUPPORT))?;
        self.call(|world, id| world.bind(id, &address)).map_err(error)
    }

    pub(crate) fn listen(&self, backlog: i32) -> io::Result<()> {
        let backlog = usize::try_from(backlog).unwrap_or(0);
        self.call(|world, id| world.listen(id, backlog)).map_err(error)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SockAddr> {
        self.call(|world, id| world.local_address(id)).map(|address| address.to_sock_addr()).map_err(error)
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SockAddr> {
        self.call(|world, id| world.peer_address(id)).map(|address| address.to_sock_addr()).map_err(error)
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.call(|world, id| world.shutdown(id, how)).map_err(error)
    }

    pub(crate) fn set_linger_zero(&self) -> io::Result<()> {
        self.call(World::set_linger_zero).map_err(error)
    }

    fn set(&self, flag: Flag, value: bool) -> io::Result<()> {
        self.call(|world, id| world.set_option(id, flag, value.into())).map_err(error)
    }

    pub(crate) fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.set(Flag::NoDelay, nodelay)
    }

    pub(crate) fn nodelay(&self) -> io::Result<bool> {
        self.call(|world, id| world.option(id, Flag::NoDelay)).map(|value| value != 0).map_err(error)
    }

    pub(crate) fn set_reuse_address(&self, reuse: bool) -> io::Result<()> {
        self.set(Flag::ReuseAddress, reuse)
    }

    pub(crate) fn set_reuse_port(&self, reuse: bool) -> io::Result<()> {
        self.set(Flag::ReusePort, reuse)
    }

    pub(crate) fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        self.set(Flag::Broadcast, broadcast)
    }

    pub(crate) fn set_only_v6(&self, only: bool) -> io::Result<()> {
        self.set(Flag::OnlyV6, only)
    }

    pub(crate) fn set_multicast_loop(&self, loops: bool) -> io::Result<()> {
        self.set(Flag::MulticastLoop, loops)
    }

    pub(crate) fn set_multicast_ttl(&self, ttl: u8) -> io::Result<()> {
        self.call(|world, id| world.set_option(id, Flag::MulticastTtl, ttl.into())).map_err(error)
    }

    pub(crate) fn join(&self, group: IpAddr) -> io::Result<()> {
        self.call(|world, id| world.join_multicast(id, group, None)).map_err(error)
    }

    pub(crate) fn leave(&self, group: IpAddr) -> io::Result<()> {
        self.call(|world, id| world.leave_multicast(id, group, None)).map_err(error)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // A crash of the host may have closed it.
        let _ = self.call(World::close);
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulated({})", self.id.0)
    }
}
