//! Addresses of simulated sockets.

#![forbid(unsafe_code)]

use socket2::SockAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The address of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SimAddress {
    Ip(SocketAddr),
    /// A path; an abstract name begins with a zero byte; a socket without a name has none at all.
    Unix(Vec<u8>),
}

impl SimAddress {
    /// The address in the shape the driver uses.
    pub(crate) fn to_sock_addr(&self) -> SockAddr {
        match self {
            SimAddress::Ip(address) => SockAddr::from(*address),
            SimAddress::Unix(name) => {
                let path = Path::new(std::ffi::OsStr::from_bytes(name));
                SockAddr::unix(path).unwrap_or_else(|_| unnamed())
            }
        }
    }

    /// The address out of the shape the driver uses; nothing if the family is not simulated.
    pub(crate) fn from_sock_addr(address: &SockAddr) -> Option<SimAddress> {
        if let Some(ip) = address.as_socket() {
            return Some(SimAddress::Ip(ip));
        }
        if let Some(path) = address.as_pathname() {
            return Some(SimAddress::Unix(path.as_os_str().as_bytes().to_vec()));
        }
        address.is_unnamed().then(|| SimAddress::Unix(Vec::new()))
    }
}

/// The same address, with an IPv4 address in IPv6 clothes undressed.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An address as a socket of IPv6 shows it.
pub(super) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The address that stands for every one of its family.
pub(super) fn any(six: bool) -> IpAddr {
    if six { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) }
}

/// The address by which a host reaches itself.
pub(super) fn loopback(six: bool) -> IpAddr {
    if six { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) }
}

/// Whether datagrams to this address go to every host.
pub(super) fn is_for_many(ip: IpAddr) -> bool {
    ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn unnamed() -> SockAddr {
    // A path of no bytes always fits.
    SockAddr::unix("").expect("the empty path fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        let addresses = [
            SimAddress::Ip("10.0.0.1:80".parse().unwrap()),
            SimAddress::Ip("[fd00::1]:80".parse().unwrap()),
            SimAddress::Unix(b"/run/a.sock".to_vec()),
            SimAddress::Unix(Vec::new()),
        ];
        for address in addresses {
            assert_eq!(SimAddress::from_sock_addr(&address.to_sock_addr()), Some(address));
        }
    }

    #[test]
    fn an_address_in_clothes_is_undressed_and_dressed_again() {
        let plain: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert_eq!(canonical(mapped(plain)), plain);
    }
}
