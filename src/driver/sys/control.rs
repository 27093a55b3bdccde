//! Control messages of datagrams: segment sizes, ECN, packet info (cmsg(3), udp(7), ip(7), ipv6(7)).
//!
//! They are read and written byte by byte, so whatever a kernel (or a test) puts there cannot be misread as more than
//! it is. Systems other than Linux have none of these here.
#![forbid(unsafe_code)]

use super::os::libc;
use crate::driver::datagram::{Ecn, LocalAddress};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Room for what one datagram brings: segment size, two traffic classes, two packet infos.
pub(crate) const RECEIVED_BYTES: usize = 160;
/// Room for what one datagram takes along.
pub(crate) const SENT_BYTES: usize = 128;

/// Levels and types; libc does not name all of them on every system.
pub(crate) const SOL_UDP: i32 = 17;
pub(crate) const UDP_SEGMENT: i32 = 103;
pub(crate) const UDP_GRO: i32 = 104;
pub(crate) const IP_PKTINFO: i32 = 8;
pub(crate) const IP_RECVTOS: i32 = 13;
pub(crate) const IPV6_RECVPKTINFO: i32 = 49;
pub(crate) const IPV6_RECVTCLASS: i32 = 66;
const IP_TOS: i32 = 1;
const IPV6_PKTINFO: i32 = 50;
const IPV6_TCLASS: i32 = 67;

/// Linux aligns headers and data to a word.
const ALIGN: usize = size_of::<usize>();
const HEADER: usize = size_of::<usize>() + 8;

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

/// What came along with a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Received {
    /// The size of each datagram but the last, if the kernel has joined several.
    pub(crate) segment_bytes: Option<usize>,
    pub(crate) ecn: Option<Ecn>,
    pub(crate) local: Option<LocalAddress>,
}

/// Reads control messages; what is cut or unknown is left out.
pub(crate) fn read(mut bytes: &[u8]) -> Received {
    let mut received = Received::default();
    while let Some((level, kind, data, rest)) = next(bytes) {
        match (level, kind) {
            (SOL_UDP, UDP_GRO) => received.segment_bytes = int(data).and_then(|size| size.try_into().ok()),
            (libc::IPPROTO_IP, IP_TOS) => received.ecn = data.first().map(|byte| Ecn::from_bits(*byte)),
            (libc::IPPROTO_IPV6, IPV6_TCLASS) => {
                received.ecn = int(data).map(|class| Ecn::from_bits(class as u8));
            }
            (libc::IPPROTO_IP, IP_PKTINFO) => received.local = packet_info_v4(data),
            (libc::IPPROTO_IPV6, IPV6_PKTINFO) => received.local = packet_info_v6(data),
            _ => {}
        }
        bytes = rest;
    }
    received
}

/// Level, type and data of the first message, and what follows it.
fn next(bytes: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(*bytes.first_chunk()?);
    let level = int(bytes.get(size_of::<usize>()..)?)?;
    let kind = int(bytes.get(size_of::<usize>() + 4..)?)?;
    let data = bytes.get(aligned(HEADER)..len)?;
    Some((level, kind, data, bytes.get(aligned(len)..).unwrap_or(&[])))
}

fn int(data: &[u8]) -> Option<i32> {
    data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// `struct in_pktinfo`: the interface, the local address, the address in the header.
fn packet_info_v4(data: &[u8]) -> Option<LocalAddress> {
    let interface = int(data)?;
    let ip: [u8; 4] = *data.get(8..)?.first_chunk()?;
    Some(LocalAddress { ip: Ipv4Addr::from(ip).into(), interface: interface.try_into().unwrap_or(0) })
}

/// `struct in6_pktinfo`: the address, the interface. The address of an IPv4 datagram on an IPv6 socket is mapped.
fn packet_info_v6(data: &[u8]) -> Option<LocalAddress> {
    let ip: [u8; 16] = *data.first_chunk()?;
    let interface = int(data.get(16..)?)?;
    Some(LocalAddress { ip: Ipv6Addr::from(ip).into(), interface: interface.try_into().unwrap_or(0) })
}

/// What shall go along with a datagram.
pub(crate) struct Sent {
    pub(crate) segment_bytes: Option<usize>,
    pub(crate) ecn: Option<Ecn>,
    pub(crate) source: Option<LocalAddress>,
}

/// Writes control messages; gives their length.
pub(crate) fn write(target: &mut [u8; SENT_BYTES], sent: &Sent, to: Option<SocketAddr>) -> usize {
    let mut writer = Writer { target, len: 0 };
    if let Some(bytes) = sent.segment_bytes {
        writer.push(SOL_UDP, UDP_SEGMENT, &(bytes as u16).to_ne_bytes());
    }
    if let Some(ecn) = sent.ecn {
        let class = i32::from(ecn.bits()).to_ne_bytes();
        // Where the family is not known here both are written: a socket leaves the other family's alone.
        if to.is_none_or(|to| to.ip().to_canonical().is_ipv4()) {
            writer.push(libc::IPPROTO_IP, IP_TOS, &class);
        }
        if to.is_none_or(|to| to.ip().to_canonical().is_ipv6()) {
            writer.push(libc::IPPROTO_IPV6, IPV6_TCLASS, &class);
        }
    }
    if let Some(LocalAddress { ip, interface }) = sent.source {
        match ip {
            IpAddr::V4(ip) => {
                let mut info = [0; 12];
                info[..4].copy_from_slice(&interface.to_ne_bytes());
                info[4..8].copy_from_slice(&ip.octets());
                writer.push(libc::IPPROTO_IP, IP_PKTINFO, &info);
            }
            IpAddr::V6(ip) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                info[16..].copy_from_slice(&interface.to_ne_bytes());
                writer.push(libc::IPPROTO_IPV6, IPV6_PKTINFO, &info);
            }
        }
    }
    writer.len
}

struct Writer<'a> {
    target: &'a mut [u8; SENT_BYTES],
    len: usize,
}

impl Writer<'_> {
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let len = aligned(HEADER) + data.len();
        let room = &mut self.target[self.len..][..aligned(len)];
        room.fill(0);
        room[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        room[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
        room[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        room[aligned(HEADER)..len].copy_from_slice(data);
        self.len += aligned(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sent: &Sent, to: Option<SocketAddr>) -> Vec<u8> {
        let mut target = [0xff; SENT_BYTES];
        let len = write(&mut target, sent, to);
        target[..len].to_vec()
    }

    #[test]
    fn messages_are_laid_out_as_the_system_lays_them_out() {
        let header = size_of::<libc::cmsghdr>();
        assert_eq!(aligned(HEADER), header.next_multiple_of(ALIGN));
        let sent = Sent { segment_bytes: Some(1200), ecn: None, source: None };
        let bytes = written(&sent, None);
        let (level, kind, data, rest) = next(&bytes).expect("a message");
        assert_eq!((level, kind, data, rest), (SOL_UDP, UDP_SEGMENT, &1200_u16.to_ne_bytes()[..], &[][..]));
    }

    #[test]
    fn what_is_sent_is_read_again() {
        let v4: SocketAddr = "10.0.0.1:5".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().unwrap();
        for (to, ecn) in [(Some(v6), Ecn::Ce), (None, Ecn::Ect1)] {
            let local = LocalAddress { ip: v6.ip(), interface: 7 };
            let sent = Sent { segment_bytes: None, ecn: Some(ecn), source: Some(local) };
            let received = read(&written(&sent, to));
            assert_eq!(received, Received { segment_bytes: None, ecn: Some(ecn), local: Some(local) });
        }
        for to in [v4, mapped] {
            let sent = Sent { segment_bytes: None, ecn: Some(Ecn::Ect0), source: None };
            let bytes = written(&sent, Some(to));
            assert_eq!(next(&bytes).map(|(level, ..)| level), Some(libc::IPPROTO_IP), "{to}");
        }
    }

    #[test]
    fn nonsense_is_left_out() {
        assert_eq!(read(&[]), Received::default());
        assert_eq!(read(&[1; 15]), Received::default());
        assert_eq!(read(&[0; 64]), Received::default(), "a length of nothing ends the list");
        assert_eq!(read(&[0xff; 64]), Received::default(), "and so does one beyond the end");
        let sent = Sent { segment_bytes: None, ecn: Some(Ecn::Ce), source: None };
        let bytes = written(&sent, Some("[::1]:1".parse().unwrap()));
        for len in 0..bytes.len() {
            let _ = read(&bytes[..len]);
        }
    }
}
