//! Names and addresses, as the original reads and writes them.
#![forbid(unsafe_code)]

use super::message::text_of;
use crate::driver::Host;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Longest host name that a connect takes, in bytes.
pub(super) const HOST_BYTES_MAX: usize = 231;

/// The port that a number means: one above 65 535 loses its upper bits, a negative one is none.
pub(super) fn port_of(port: i32) -> io::Result<u16> {
    if port < 0 {
        let text = "Servname not supported for ai_socktype";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(port as u16)
}

/// The addresses of a host; may block unless it is an address.
pub(super) fn resolve(host: &Host, name: &str, port: i32) -> io::Result<Vec<SocketAddr>> {
    let port = port_of(port)?;
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = if name.is_empty() { Vec::new() } else { host.resolve(name, port)? };
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "Name or service not known"));
    }
    Ok(found)
}

/// As [`resolve`], with the words of the resolver in place of its error.
pub(super) fn resolve_or_say(host: &Host, name: &str, port: i32) -> Result<Vec<SocketAddr>, String> {
    resolve(host, name, port).map_err(|error| text_of(&error))
}

/// Where to listen or to bind: no host means every address of IPv4.
pub(super) fn local(host: &Host, name: &str, port: i32) -> io::Result<SocketAddr> {
    let name = if name.is_empty() { "0.0.0.0" } else { name };
    Ok(resolve(host, name, port)?[0])
}

/// The IPv4 address of a name; nothing if it has none. May block.
///
/// An address in the dotted form is given back as it is.
pub fn domain_name_to_ip(name: &str) -> Option<Ipv4Addr> {
    if let Ok(ip) = name.parse() {
        return Some(ip);
    }
    let found = resolve(&Host::default(), name, 0).ok()?;
    found.into_iter().find_map(|address| match address.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_out_of_range_are_read_as_the_original_does() {
        assert_eq!((port_of(70_000).unwrap(), port_of(65_535).unwrap()), (4464, 65_535));
        assert!(port_of(-1).is_err());
    }

    #[test]
    fn names_become_ipv4_addresses_or_nothing() {
        let ip = |name| domain_name_to_ip(name).map(|ip| ip.to_string());
        assert_eq!(ip("127.0.0.1").as_deref(), Some("127.0.0.1"));
        assert_eq!(ip("1.2.3").as_deref(), Some("1.2.0.3"));
        assert_eq!(ip("01.2.3.4").as_deref(), Some("1.2.3.4"));
        assert_eq!((ip("::1"), ip("")), (None, None));
    }
}
