//! Addresses in the binary form of the original, and as it writes them.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bytes of the longest address in binary form.
pub(super) const BLOB_BYTES_MAX: usize = 19;

/// An address in the binary form of the original: a tag (1 is IPv4, 2 is IPv6), the port and the address, the most
/// significant byte first. The array and how many bytes of it are used.
pub(super) fn address_to_blob(address: SocketAddr) -> ([u8; BLOB_BYTES_MAX], usize) {
    let mut blob = [0; BLOB_BYTES_MAX];
    blob[1..3].copy_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            blob[0] = 1;
            blob[3..7].copy_from_slice(&ip.octets());
            (blob, 7)
        }
        IpAddr::V6(ip) => {
            blob[0] = 2;
            blob[3..].copy_from_slice(&ip.octets());
            (blob, BLOB_BYTES_MAX)
        }
    }
}

/// How many bytes the binary form with this tag has.
pub(super) fn blob_bytes(tag: u8) -> Option<usize> {
    match tag {
        1 => Some(7),
        2 => Some(BLOB_BYTES_MAX),
        _ => None,
    }
}

/// The address that the binary form says; nothing if it is none.
pub(super) fn address_from_blob(blob: &[u8]) -> Option<SocketAddr> {
    let blob = blob.get(..blob_bytes(*blob.first()?)?)?;
    let port = u16::from_be_bytes([blob[1], blob[2]]);
    let ip = match <[u8; 16]>::try_from(&blob[3..]) {
        Ok(octets) => IpAddr::V6(Ipv6Addr::from(octets)),
        Err(_) => IpAddr::from(<[u8; 4]>::try_from(&blob[3..]).ok()?),
    };
    Some(SocketAddr::new(ip, port))
}

/// An address as the original writes it: no brackets around IPv6.
pub(super) fn address_text(address: SocketAddr) -> String {
    format!("{}:{}", address.ip(), address.port())
}

/// Writes the same into memory, as far as there is room. For IPv4 without the machinery of formats, because there may be
/// many.
pub(super) fn write_address(address: SocketAddr, mut room: &mut [u8]) {
    let IpAddr::V4(ip) = address.ip() else {
        // What finds no room is left out.
        let _ = write!(room, "{}:{}", address.ip(), address.port());
        return;
    };
    for (index, octet) in ip.octets().into_iter().enumerate() {
        write_number(u16::from(octet), &mut room);
        let _ = room.write(if index < 3 { b"." } else { b":" });
    }
    write_number(address.port(), &mut room);
}

fn write_number(number: u16, room: &mut &mut [u8]) {
    let digits = [10_000, 1000, 100, 10, 1].map(|unit| b'0' + (number / unit % 10) as u8);
    let zeros = digits[..4].iter().take_while(|digit| **digit == b'0').count();
    let _ = room.write(&digits[zeros..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_its_text() {
        let numbers = [0, 1, 9, 10, 99, 100, 101, 200, 255];
        let ports = [0, 7, 80, 443, 1000, 10_000, 10_203, 65_535];
        for (octet, port) in numbers.into_iter().flat_map(|octet| ports.map(|port| (octet, port))) {
            let v6 = SocketAddr::from(([octet.into(), 0, 0, 0, 0, 0, 7, 1], port));
            for address in [SocketAddr::from(([octet, 0, octet, 10], port)), v6] {
                let mut room = [0; 63];
                write_address(address, &mut room);
                let text = address_text(address);
                assert_eq!((&room[..text.len()], room[text.len()]), (text.as_bytes(), 0));
            }
        }
        let mut little = [0; 4];
        write_address("127.0.0.1:80".parse().unwrap(), &mut little);
        assert_eq!(&little, b"127.");
    }

    #[test]
    fn addresses_go_to_the_binary_form_and_back() {
        for text in ["127.0.0.1:80", "[::1]:65535", "[2001:db8::1]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let (blob, bytes) = address_to_blob(address);
            assert_eq!(address_from_blob(&blob[..bytes]), Some(address));
            assert_eq!(address_from_blob(&blob[..bytes - 1]), None);
        }
        assert_eq!(address_to_blob("1.2.3.4:258".parse().unwrap()).0[..7], [1, 1, 2, 1, 2, 3, 4]);
        assert_eq!((address_from_blob(&[3; 19]), address_from_blob(&[])), (None, None));
        assert_eq!(address_text("[::1]:4000".parse().unwrap()), "::1:4000");
    }
}
