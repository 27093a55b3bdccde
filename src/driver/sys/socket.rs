//! Addresses as the system reads and writes them.
#![allow(unsafe_code)]

use super::os::libc;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Writes an address as the system reads it; gives its length.
///
/// # Safety
///
/// A whole `sockaddr_storage` can be written at `target`.
pub(crate) unsafe fn write_address(
    target: *mut libc::sockaddr_storage,
    address: SocketAddr,
) -> libc::socklen_t {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: zeros are a valid address of the family.
            let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            // SAFETY: the caller's promise; a storage is larger and as strictly aligned.
            unsafe { target.cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(v6) => {
            // SAFETY: zeros are a valid address of the family.
            let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_flowinfo = v6.flowinfo();
            raw.sin6_scope_id = v6.scope_id();
            // SAFETY: the caller's promise; a storage is larger and as strictly aligned.
            unsafe { target.cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// Reads an IPv4 or IPv6 address that the system wrote; nothing if it is neither, or cut.
///
/// # Safety
///
/// `len` bytes can be read from `start`.
pub(crate) unsafe fn read_address(start: *const u8, len: usize) -> Option<SocketAddr> {
    if len < size_of::<libc::sockaddr_in>() {
        return None;
    }
    // SAFETY: the caller's promise, and an IPv4 address is not longer than `len`; any bytes are a valid one.
    let v4 = unsafe { start.cast::<libc::sockaddr_in>().read_unaligned() };
    if i32::from(v4.sin_family) == libc::AF_INET {
        let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
        return Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))));
    }
    if i32::from(v4.sin_family) != libc::AF_INET6 || len < size_of::<libc::sockaddr_in6>() {
        return None;
    }
    // SAFETY: as above, with the length of an IPv6 address.
    let v6 = unsafe { start.cast::<libc::sockaddr_in6>().read_unaligned() };
    let (ip, port) = (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
    Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_was_written() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:0", "[fe80::1%7]:9", "[2001:db8::ff]:443"] {
            let address: SocketAddr = text.parse().unwrap();
            // SAFETY: zeros are a valid storage; the pointers are to it, and the length is what was written.
            unsafe {
                let mut storage: libc::sockaddr_storage = std::mem::zeroed();
                let len = write_address(&raw mut storage, address) as usize;
                let start = (&raw const storage).cast();
                assert_eq!(read_address(start, len), Some(address));
                assert_eq!(read_address(start, len - 1), None, "cut");
            }
        }
    }
}
