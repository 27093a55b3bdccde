//! [`Meter`]: what [`socket_info`](super::Sockets::socket_info) tells of a socket, written by its shard alone and read by
//! any thread.
//!
//! The shard stores with each message, so these are plain stores. A reader looks at the head before and after; if it
//! is the same, what it read between belongs to that socket, because an id does not come back.
#![forbid(unsafe_code)]

use super::ids::SocketId;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// What kind of socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum InfoKind {
    /// A listener that was started.
    Listener,
    /// A connection.
    Tcp,
    /// A socket for datagrams.
    Udp,
    /// A descriptor that was bound.
    Bound,
}

/// A socket, as [`socket_info`](super::Sockets::socket_info) tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Info {
    /// Its id.
    pub id: SocketId,
    /// Its kind.
    pub kind: InfoKind,
    /// Its owner.
    pub uid: usize,
    /// Bytes received; of a listener, connections accepted.
    pub read: u64,
    /// Bytes sent.
    pub written: u64,
    /// When it last received, in seconds since 1970; 0 if never.
    pub read_at: u64,
    /// When it was last given something to send; 0 if never.
    pub written_at: u64,
    /// Bytes that wait because the system takes no more.
    pub pending_bytes: usize,
    /// The address of a listener, of the peer of a connection, or the default destination of a socket for datagrams.
    pub address: Option<SocketAddr>,
}

/// The numbers of one socket.
#[derive(Default)]
pub(super) struct Meter {
    /// The id and the kind; 0 while there is nothing to tell.
    head: AtomicU64,
    uid: AtomicU64,
    pub(super) read: Count,
    pub(super) written: Count,
    pub(super) read_at: Count,
    pub(super) written_at: Count,
    pub(super) pending: Count,
    ip: [AtomicU64; 2],
    /// The port, and what kind of address: 0 is none, 4 or 6.
    port: AtomicU64,
}

/// A number that one thread writes.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }
}

const KINDS: [InfoKind; 4] = [InfoKind::Listener, InfoKind::Tcp, InfoKind::Udp, InfoKind::Bound];

impl Meter {
    /// From now on the socket is told of.
    pub(super) fn begin(&self, id: SocketId, kind: InfoKind, uid: usize, address: Option<SocketAddr>) {
        self.end();
        self.set_uid(uid);
        for count in [&self.read, &self.written, &self.read_at, &self.written_at, &self.pending] {
            count.set(0);
        }
        self.set_address(address);
        let kind = KINDS.iter().position(|each| *each == kind).unwrap_or_default() as u64 + 1;
        self.head.store(kind << 32 | u64::from(id as u32), Ordering::Release);
    }

    /// From now on it is not.
    pub(super) fn end(&self) {
        self.head.store(0, Ordering::Relaxed);
        // Whoever reads what is stored next also sees that the head has changed.
        fence(Ordering::Release);
    }

    pub(super) fn set_uid(&self, uid: usize) {
        self.uid.store(uid as u64, Ordering::Relaxed);
    }

    /// An address that is read while it changes may be a mixture of both; it changes for sockets for datagrams only.
    pub(super) fn set_address(&self, address: Option<SocketAddr>) {
        let (kind, bits) = match address.map(|address| address.ip()) {
            None => (0, 0),
            Some(IpAddr::V4(ip)) => (4, u128::from(u32::from(ip))),
            Some(IpAddr::V6(ip)) => (6, u128::from(ip)),
        };
        self.ip[0].store((bits >> 64) as u64, Ordering::Relaxed);
        self.ip[1].store(bits as u64, Ordering::Relaxed);
        let port = address.map_or(0, |address| address.port());
        self.port.store(kind << 16 | u64::from(port), Ordering::Relaxed);
    }

    fn address(&self) -> Option<SocketAddr> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let (port, bits) =
            (load(&self.port), u128::from(load(&self.ip[0])) << 64 | u128::from(load(&self.ip[1])));
        let ip = match port >> 16 {
            4 => IpAddr::from((bits as u32).to_be_bytes()),
            6 => IpAddr::V6(Ipv6Addr::from(bits)),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port as u16))
    }

    /// The socket there is something to tell of.
    pub(super) fn id(&self) -> Option<SocketId> {
        let head = self.head.load(Ordering::Relaxed);
        (head != 0).then_some(head as u32 as i32)
    }

    /// What there is to tell.
    pub(super) fn info(&self) -> Option<Info> {
        let head = self.head.load(Ordering::Acquire);
        let kind = *KINDS.get((head >> 32).checked_sub(1)? as usize)?;
        let info = Info {
            id: head as u32 as i32,
            kind,
            uid: self.uid.load(Ordering::Relaxed) as usize,
            read: self.read.get(),
            written: self.written.get(),
            read_at: self.read_at.get(),
            written_at: self.written_at.get(),
            pending_bytes: self.pending.get() as usize,
            address: self.address(),
        };
        fence(Ordering::Acquire);
        (self.head.load(Ordering::Relaxed) == head).then_some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_tells_of_its_socket_from_begin_to_end() {
        let meter = Meter::default();
        assert_eq!(meter.info(), None);
        for address in ["1.2.3.4:5", "[2001:db8::7]:65535", "0.0.0.0:0", "[::]:1"] {
            let address = address.parse().unwrap();
            meter.begin(7, InfoKind::Udp, 3, Some(address));
            meter.read.add(5);
            let info = meter.info().unwrap();
            assert_eq!((info.id, info.kind, info.uid, info.read), (7, InfoKind::Udp, 3, 5));
            assert_eq!(info.address, Some(address));
        }
        meter.begin(0, InfoKind::Listener, 0, None);
        assert_eq!(meter.info().map(|info| (info.id, info.read, info.address)), Some((0, 0, None)));
        meter.end();
        assert_eq!(meter.info(), None);
    }

    #[test]
    fn a_reader_never_mixes_two_sockets() {
        let meter = Meter::default();
        let running = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for id in 1..20_000 {
                    meter.begin(id, InfoKind::Tcp, id as usize, None);
                    meter.read.set(id as u64);
                }
                running.store(false, Ordering::Relaxed);
            });
            while running.load(Ordering::Relaxed) {
                let Some(info) = meter.info() else { continue };
                assert_eq!(info.uid, info.id as usize);
                assert!(info.read == 0 || info.read == info.id as u64);
            }
        });
    }
}
