//! What Unix calls its error numbers and structures, said of Winsock.
//!
//! A number that Winsock does not have is the nearest one of Windows. The structures are those that this crate fills
//! and reads itself; calls take them apart (`windows.rs`).
#![forbid(unsafe_code)]
#![allow(non_camel_case_types, reason = "the names are those of the C library")]

use std::ffi::c_void;
use windows_sys::Win32::Foundation as foundation;
use windows_sys::Win32::Networking::WinSock as winsock;

pub(crate) type c_uint = u32;
pub(crate) type socklen_t = i32;
pub(crate) type sa_family_t = u16;

/// A range of memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct iovec {
    pub(crate) iov_base: *mut c_void,
    pub(crate) iov_len: usize,
}

/// A message: its address, its ranges, and its control messages, of which there are none here.
#[repr(C)]
pub(crate) struct msghdr {
    pub(crate) msg_name: *mut c_void,
    pub(crate) msg_namelen: socklen_t,
    pub(crate) msg_iov: *mut iovec,
    pub(crate) msg_iovlen: usize,
    pub(crate) msg_control: *mut c_void,
    pub(crate) msg_controllen: usize,
    pub(crate) msg_flags: i32,
}

/// The header of a control message.
#[cfg(test)]
#[repr(C)]
pub(crate) struct cmsghdr {
    len: usize,
    level: i32,
    kind: i32,
}

pub(crate) struct sockaddr;

/// Room for an address of any family.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct sockaddr_storage([u8; 128]);

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct in_addr {
    pub(crate) s_addr: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct sockaddr_in {
    pub(crate) sin_family: sa_family_t,
    pub(crate) sin_port: u16,
    pub(crate) sin_addr: in_addr,
    sin_zero: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct in6_addr {
    pub(crate) s6_addr: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct sockaddr_in6 {
    pub(crate) sin6_family: sa_family_t,
    pub(crate) sin6_port: u16,
    pub(crate) sin6_flowinfo: u32,
    pub(crate) sin6_addr: in6_addr,
    pub(crate) sin6_scope_id: u32,
}

pub(crate) const AF_INET: i32 = winsock::AF_INET as i32;
pub(crate) const AF_INET6: i32 = winsock::AF_INET6 as i32;
pub(crate) const IPPROTO_IP: i32 = winsock::IPPROTO_IP;
pub(crate) const IPPROTO_IPV6: i32 = winsock::IPPROTO_IPV6;
/// The message was longer than its room.
pub(crate) const MSG_TRUNC: i32 = winsock::MSG_TRUNC as i32;

/// Numbers of signals; console events count as the first two, and nothing as the others.
pub(crate) const SIGINT: i32 = 2;
pub(crate) const SIGTERM: i32 = 15;
pub(crate) const SIGHUP: i32 = -1;
pub(crate) const SIGUSR1: i32 = -2;
pub(crate) const SIGUSR2: i32 = -3;

pub(crate) const EAGAIN: i32 = winsock::WSAEWOULDBLOCK;
pub(crate) const EWOULDBLOCK: i32 = EAGAIN;
/// A connect that has begun says no more than that here.
pub(crate) const EINPROGRESS: i32 = EAGAIN;
pub(crate) const ECANCELED: i32 = winsock::WSA_OPERATION_ABORTED;
pub(crate) const ECONNABORTED: i32 = winsock::WSAECONNABORTED;
pub(crate) const EHOSTDOWN: i32 = winsock::WSAEHOSTDOWN;
pub(crate) const EHOSTUNREACH: i32 = winsock::WSAEHOSTUNREACH;
pub(crate) const EINTR: i32 = winsock::WSAEINTR;
pub(crate) const EINVAL: i32 = winsock::WSAEINVAL;
pub(crate) const EIO: i32 = foundation::ERROR_IO_DEVICE as i32;
pub(crate) const EMFILE: i32 = winsock::WSAEMFILE;
pub(crate) const EMSGSIZE: i32 = winsock::WSAEMSGSIZE;
pub(crate) const ENETDOWN: i32 = winsock::WSAENETDOWN;
pub(crate) const ENETUNREACH: i32 = winsock::WSAENETUNREACH;
pub(crate) const ENFILE: i32 = foundation::ERROR_TOO_MANY_OPEN_FILES as i32;
pub(crate) const ENOBUFS: i32 = winsock::WSAENOBUFS;
pub(crate) const ENOMEM: i32 = foundation::ERROR_NOT_ENOUGH_MEMORY as i32;
pub(crate) const ENOPROTOOPT: i32 = winsock::WSAENOPROTOOPT;
pub(crate) const EOPNOTSUPP: i32 = winsock::WSAEOPNOTSUPP;
pub(crate) const EPERM: i32 = winsock::WSAEACCES;
pub(crate) const EPIPE: i32 = winsock::WSAESHUTDOWN;
/// A datagram socket says so of a datagram that has met no receiver.
pub(crate) const ECONNRESET: i32 = winsock::WSAECONNRESET;
/// An accept says so of a connection that its peer has reset.
pub(crate) const EPROTO: i32 = winsock::WSAECONNRESET;
pub(crate) const ECONNREFUSED: i32 = winsock::WSAECONNREFUSED;
