//! Socket calls that differ between systems, or that need raw pointers.
#![allow(unsafe_code)]

use super::messages::Message;
use crate::driver::op::Direction;
use nix::libc;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// `accept4(2)` without an address; the new descriptor is closed on exec and does not block.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(crate) fn accept_raw(listener: RawFd) -> i32 {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system call; null pointers ask for no address.
    unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) }
}

/// `accept(2)` without an address; the new descriptor is closed on exec and does not block.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(crate) fn accept_raw(listener: RawFd) -> i32 {
    // SAFETY: plain system calls; null pointers ask for no address.
    unsafe {
        let fd = libc::accept(listener, std::ptr::null_mut(), std::ptr::null_mut());
        if fd >= 0 {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
        }
        fd
    }
}

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

/// Receives up to `count` messages; their number, or -1. Never blocks.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be written.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) unsafe fn receive_messages(socket: RawFd, messages: *mut Message, count: usize) -> isize {
    // SAFETY: the caller's promise; a `Message` is laid out as the system's structure.
    (unsafe {
        let messages = messages.cast::<libc::mmsghdr>();
        libc::recvmmsg(socket, messages, count as libc::c_uint, libc::MSG_DONTWAIT as _, std::ptr::null_mut())
    }) as isize
}

/// Sends up to `count` messages; the number of those that went, or -1 if the first did not. Never blocks.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be read.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) unsafe fn send_messages(socket: RawFd, messages: *mut Message, count: usize) -> isize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as above.
    (unsafe { libc::sendmmsg(socket, messages.cast::<libc::mmsghdr>(), count as libc::c_uint, flags as _) })
        as isize
}

/// One call per message, where there is none for many.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be written.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) unsafe fn receive_messages(socket: RawFd, messages: *mut Message, count: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { one_by_one(messages, count, |header| libc::recvmsg(socket, header, libc::MSG_DONTWAIT)) }
}

/// One call per message, where there is none for many.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be read.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) unsafe fn send_messages(socket: RawFd, messages: *mut Message, count: usize) -> isize {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the caller's promise.
    unsafe { one_by_one(messages, count, |header| libc::sendmsg(socket, header, flags)) }
}

/// Makes a call for each message until one fails.
///
/// # Safety
///
/// `messages` points to as many messages.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
unsafe fn one_by_one(
    messages: *mut Message,
    count: usize,
    call: impl Fn(*mut libc::msghdr) -> isize,
) -> isize {
    for index in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let message = messages.add(index);
            let moved = call(&raw mut (*message).header);
            if moved < 0 {
                return if index > 0 { index as isize } else { moved };
            }
            (*message).len = moved as libc::c_uint;
        }
    }
    count as isize
}

/// Sets an option that is a number.
pub(crate) fn set_option(fd: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let (value, len) = (&raw const value, size_of::<i32>() as libc::socklen_t);
    // SAFETY: plain system call; the value is as long as it says.
    let set = unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.cast(), len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the system knows an option.
pub(crate) fn has_option(fd: &impl AsFd, level: i32, name: i32) -> bool {
    let (mut value, mut len) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: plain system call; the value is as long as it says.
    unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) == 0
    }
}

/// Whether `fd` is ready in `direction` right now. An error counts as ready: the next call reports it.
pub(crate) fn is_ready(fd: &impl AsFd, direction: Direction) -> bool {
    let events = match direction {
        Direction::Read => libc::POLLIN,
        Direction::Write => libc::POLLOUT,
    };
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid `pollfd`, no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

/// Which of these sockets have failed, or have ended in both directions.
pub(crate) fn have_failed(sockets: &[RawFd]) -> Vec<bool> {
    // Failure and hang-up are told without being asked for.
    let watch = |socket: &RawFd| libc::pollfd { fd: *socket, events: 0, revents: 0 };
    let mut polls: Vec<_> = sockets.iter().map(watch).collect();
    // SAFETY: the list is as long as it says; no waiting.
    let told = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, 0) };
    polls.iter().map(|poll| told > 0 && poll.revents != 0).collect()
}

/// Makes room for `count` descriptors in the process's table, as far as the limit allows.
///
/// The table doubles as it fills, and in a process with several threads each doubling waits for a grace period of
/// the kernel: tens of milliseconds in which a burst of connections overflows a backlog. Called before threads
/// start it costs nothing.
pub(crate) fn reserve_descriptors(count: usize) {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::resource::{Resource, getrlimit};
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let highest = u64::try_from(count).unwrap_or(u64::MAX).min(limit).saturating_sub(1);
    let (Ok(null), Ok(highest)) = (std::fs::File::open("/dev/null"), i32::try_from(highest)) else { return };
    if let Ok(fd) = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(highest)) {
        // SAFETY: invariant 1 (descriptors): the duplicate is new and nobody else's; it is closed right here.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    }
}

/// Breaks a TCP connection off, by connecting it to nothing (connect(2), `AF_UNSPEC`).
pub(crate) fn disconnect(fd: &impl AsFd) -> io::Result<()> {
    // SAFETY: zeros are a valid `sockaddr`.
    let mut nothing: libc::sockaddr = unsafe { std::mem::zeroed() };
    nothing.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is as long as is said.
    let done = unsafe { libc::connect(fd.as_fd().as_raw_fd(), &nothing, len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets whether calls on `fd` block.
pub(crate) fn set_nonblocking(fd: &impl AsFd, nonblocking: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    let mut wanted = flags;
    wanted.set(OFlag::O_NONBLOCK, nonblocking);
    if wanted != flags {
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
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
