//! The words of Unix, and its calls on descriptors.
#![allow(unsafe_code)]

use crate::driver::Descriptor;
use crate::driver::fd::FdRef;
use crate::driver::op::Direction;
use crate::driver::sys::descriptor::from_system;
use crate::driver::sys::messages::Message;
pub(crate) use nix::libc;
use socket2::{SockAddr, SockRef};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::path::Path;

/// What lends a descriptor of the system.
pub use std::os::fd::AsFd as Lend;
/// An owned descriptor of the system.
pub(crate) use std::os::fd::OwnedFd as Owned;
/// An owned socket of the system.
pub(crate) use std::os::fd::OwnedFd as OwnedSocket;
/// A listening Unix socket, as the standard library has it.
pub(crate) use std::os::unix::net::UnixListener as SystemUnixListener;
/// A connection over a Unix socket, as the standard library has it.
pub(crate) use std::os::unix::net::UnixStream as SystemUnixStream;

/// What is always open to read nothing from.
#[cfg(feature = "sim")]
pub(crate) const NULL_DEVICE: &str = "/dev/null";

/// The number of a descriptor.
pub(crate) type Raw = RawFd;

/// Lets a type lend its descriptor: `lends! { Type, self => what lends it }`.
macro_rules! lends {
    ($(#[$doc:meta])* $type:ty, $this:ident => $lender:expr) => {
        $(#[$doc])*
        impl std::os::fd::AsFd for $type {
            fn as_fd(&$this) -> std::os::fd::BorrowedFd<'_> {
                std::os::fd::AsFd::as_fd($lender)
            }
        }
    };
}
pub(crate) use lends;

from_system! {
    std::os::unix::net::UnixListener, std::os::unix::net::UnixStream, std::os::unix::net::UnixDatagram,
}

lends! { FdRef, self => self.descriptor() }

/// One of a simulated host lends the null device: options set on it have no effect.
impl Lend for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.borrow()
    }
}

impl AsRawFd for FdRef {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor().borrow().as_raw_fd()
    }
}

/// The number of a descriptor that somebody keeps open.
pub(crate) fn raw(fd: &impl AsRawFd) -> Raw {
    fd.as_raw_fd()
}

/// Whether it is a file whose calls need no thread; there is none here.
pub(crate) fn is_overlapped_file(_: &Owned) -> bool {
    false
}

/// Another descriptor for the same thing.
pub(crate) fn duplicate(lender: &impl Lend) -> io::Result<Owned> {
    lender.as_fd().try_clone_to_owned()
}

/// Another handle of a file.
pub(crate) fn file(fd: &Owned) -> io::Result<File> {
    Ok(fd.try_clone()?.into())
}

/// Two connected Unix stream sockets.
pub(crate) fn pair() -> io::Result<(Owned, Owned)> {
    let (a, b) = SystemUnixStream::pair()?;
    Ok((a.into(), b.into()))
}

/// A Unix socket that listens.
pub(crate) fn unix_listener(socket: OwnedSocket) -> SystemUnixListener {
    socket.into()
}

/// The path of a Unix socket's address, if it has one.
pub(crate) fn path_of(address: &SockAddr) -> Option<&Path> {
    address.as_pathname()
}

/// Opens a file to read it, or makes an empty one to write.
pub(crate) fn open_file(path: &Path, create: bool) -> io::Result<Owned> {
    Ok(if create { File::create(path)? } else { File::open(path)? }.into())
}

/// A system call, made again when a signal interrupted it: its result or negated error number.
fn called(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let returned = call();
        if returned >= 0 {
            return i32::try_from(returned).unwrap_or(i32::MAX);
        }
        match nix::errno::Errno::last_raw() {
            libc::EINTR => continue,
            number => return -number,
        }
    }
}

/// `accept(2)`: the number of the connection, which does not block.
pub(crate) fn accept(listener: Raw) -> i32 {
    called(|| accept_raw(listener) as isize)
}

/// The connection that an accept has brought.
///
/// # Safety
///
/// `result` is what an accept has returned, and nobody else makes anything of it.
pub(crate) unsafe fn accepted(result: i32) -> Owned {
    // SAFETY: invariant 1: the caller's promise: a new descriptor that nobody else owns.
    unsafe { Owned::from_raw_fd(result) }
}

/// Receives from a stream.
///
/// # Safety
///
/// `len` bytes can be written at `start`.
pub(crate) unsafe fn receive(socket: Raw, start: *mut u8, len: usize) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    called(|| unsafe { libc::recv(socket, start.cast(), len, libc::MSG_DONTWAIT) })
}

/// Sends on a stream; perhaps not all.
pub(crate) fn send(socket: Raw, bytes: &[u8]) -> i32 {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: invariant 1: a slice can be read as long as this call takes.
    called(|| unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// `sendmsg(2)`.
///
/// # Safety
///
/// `header` refers to memory that can be read.
pub(crate) unsafe fn send_message(socket: Raw, header: *const libc::msghdr) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    called(|| unsafe { libc::sendmsg(socket, header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
}

/// `recvmsg(2)`.
///
/// # Safety
///
/// `header` refers to memory that can be written.
pub(crate) unsafe fn receive_message(socket: Raw, header: *mut libc::msghdr) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    called(|| unsafe { libc::recvmsg(socket, header, libc::MSG_DONTWAIT) })
}

/// Sends one datagram, to `to` or to the connected peer.
pub(crate) fn send_to(socket: Raw, bytes: &[u8], to: Option<&SockAddr>) -> i32 {
    let (address, len) = to.map_or((std::ptr::null(), 0), |to| (to.as_ptr(), to.len()));
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: invariant 1: slice and address can be read as long as this call takes.
    called(|| unsafe { libc::sendto(socket, bytes.as_ptr().cast(), bytes.len(), flags, address.cast(), len) })
}

/// Receives up to `count` messages; their number.
///
/// # Safety
///
/// As [`receive_some`].
pub(crate) unsafe fn receive_messages(socket: Raw, messages: *mut Message, count: usize) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    called(|| unsafe { receive_some(socket, messages, count) })
}

/// Sends up to `count` messages; the number of those that went.
///
/// # Safety
///
/// As [`send_some`].
pub(crate) unsafe fn send_messages(socket: Raw, messages: *mut Message, count: usize) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    called(|| unsafe { send_some(socket, messages, count) })
}

/// Reads at an offset. May block.
///
/// # Safety
///
/// `len` bytes can be written at `start`.
pub(crate) unsafe fn read_at(file: Raw, start: *mut u8, len: usize, offset: u64) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    called(|| unsafe { libc::pread(file, start.cast(), len, offset as libc::off_t) })
}

/// Writes at an offset. May block.
///
/// # Safety
///
/// `len` bytes can be read at `start`.
pub(crate) unsafe fn write_at(file: Raw, start: *const u8, len: usize, offset: u64) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    called(|| unsafe { libc::pwrite(file, start.cast(), len, offset as libc::off_t) })
}

/// Waits until content (and metadata) are on their device.
pub(crate) fn sync(file: Raw, data_only: bool) -> i32 {
    // SAFETY: plain system calls on a descriptor.
    called(|| (unsafe { if data_only { data_sync(file) } else { libc::fsync(file) } }) as isize)
}

/// Without metadata that is not needed to read the content back.
#[cfg(not(target_vendor = "apple"))]
use libc::fdatasync as data_sync;
/// There is no such call here that the C library declares.
#[cfg(target_vendor = "apple")]
use libc::fsync as data_sync;

/// `accept4(2)` without an address; the new descriptor is closed on exec and does not block.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn accept_raw(listener: RawFd) -> i32 {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system call; null pointers ask for no address.
    unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) }
}

/// `accept(2)` without an address; the new descriptor is closed on exec and does not block.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn accept_raw(listener: RawFd) -> i32 {
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

/// Receives up to `count` messages; their number, or -1. Never blocks.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be written.
#[cfg(any(target_os = "linux", target_os = "android"))]
unsafe fn receive_some(socket: RawFd, messages: *mut Message, count: usize) -> isize {
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
unsafe fn send_some(socket: RawFd, messages: *mut Message, count: usize) -> isize {
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
unsafe fn receive_some(socket: RawFd, messages: *mut Message, count: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { one_by_one(messages, count, |header| libc::recvmsg(socket, header, libc::MSG_DONTWAIT)) }
}

/// One call per message, where there is none for many.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be read.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
unsafe fn send_some(socket: RawFd, messages: *mut Message, count: usize) -> isize {
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

/// The number by which the standard library knows what an error says.
pub(crate) fn as_told(number: i32) -> i32 {
    number
}

/// Sets an option that is a number.
pub(crate) fn set_option(fd: &impl Lend, level: i32, name: i32, value: i32) -> io::Result<()> {
    let (value, len) = (&raw const value, size_of::<i32>() as libc::socklen_t);
    // SAFETY: plain system call; the value is as long as it says.
    let set = unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.cast(), len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets whether a port that was just used may be bound again.
pub(crate) fn set_reuse_address(fd: &Owned, reuse: bool) -> io::Result<()> {
    SockRef::from(fd).set_reuse_address(reuse)
}

/// Whether several listeners of a process may have one port, and the system spreads connections over them.
pub(crate) const HAS_SHARED_PORTS: bool = true;

/// Sets whether several sockets may share a port.
pub(crate) fn set_reuse_port(fd: &Owned, reuse: bool) -> io::Result<()> {
    SockRef::from(fd).set_reuse_port(reuse)
}

/// Whether the system knows an option.
pub(crate) fn has_option(fd: &impl Lend, level: i32, name: i32) -> bool {
    let (mut value, mut len) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: plain system call; the value is as long as it says.
    unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) == 0
    }
}

/// Whether `fd` is ready in `direction` right now. An error counts as ready: the next call reports it.
pub(crate) fn is_ready(fd: &impl Lend, direction: Direction) -> bool {
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
    let highest = descriptors_max().min(count).saturating_sub(1);
    let (Ok(null), Ok(highest)) = (std::fs::File::open("/dev/null"), i32::try_from(highest)) else { return };
    if let Ok(fd) = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(highest)) {
        // SAFETY: invariant 1 (descriptors): the duplicate is new and nobody else's; it is closed right here.
        drop(unsafe { Owned::from_raw_fd(fd) });
    }
}

/// Breaks a TCP connection off, by connecting it to nothing (connect(2), `AF_UNSPEC`).
pub(crate) fn disconnect(fd: &Owned) -> io::Result<()> {
    // SAFETY: zeros are a valid `sockaddr`.
    let mut nothing: libc::sockaddr = unsafe { std::mem::zeroed() };
    nothing.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is as long as is said.
    let done = unsafe { libc::connect(fd.as_raw_fd(), &nothing, len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether received bytes wait in the system.
pub(crate) fn has_unread(fd: &Owned) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    matches!(SockRef::from(fd).recv_with_flags(&mut byte, flags), Ok(1))
}

/// Whether programs that are started get it, too.
#[cfg(test)]
pub(crate) fn is_inherited(fd: &Owned) -> bool {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flags = fcntl(fd, FcntlArg::F_GETFD).expect("the flags of an open descriptor");
    !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)
}

/// The descriptors from `first` on that the process was started with, not inherited any further.
///
/// The caller promises for the program that nobody else owns them: whoever started it said so in its environment.
pub(crate) fn inherited(first: RawFd, count: usize) -> io::Result<Vec<Owned>> {
    let last = i32::try_from(count).ok().and_then(|count| first.checked_add(count));
    let all = first..last.ok_or(io::ErrorKind::InvalidInput)?;
    for raw in all.clone() {
        // SAFETY: a plain system call, which refuses a number that is not open.
        if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: invariant 1 (descriptors): each is open, and the caller's promise.
    Ok(all.map(|raw| unsafe { Owned::from_raw_fd(raw) }).collect())
}

/// Has them closed in programs that are started, where the system can do that at once.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
const RECEIVE_CLOSED_ON_EXEC: i32 = libc::MSG_CMSG_CLOEXEC;
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
const RECEIVE_CLOSED_ON_EXEC: i32 = 0;

/// Receives bytes, and the descriptors that came with them (unix(7): SCM_RIGHTS). Never blocks.
pub(crate) fn receive_with_descriptors(
    socket: &impl Lend,
    room: &mut [u8],
) -> io::Result<(usize, Vec<Owned>)> {
    // As many as Linux lets a message carry (253), with its head; words, because the head is aligned.
    let mut control = [0_u64; 160];
    let mut range = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: zeros are a valid header.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut range;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | RECEIVE_CLOSED_ON_EXEC;
    // SAFETY: invariant 1: the header refers to memory of this function, which outlives the call.
    let received = called(|| unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) });
    if received < 0 {
        return Err(io::Error::from_raw_os_error(-received));
    }
    // SAFETY: invariant 1 (descriptors): the system has just filled the header, and nobody else looks at it.
    let descriptors = unsafe { carried(&header) };
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        // Those that came are closed here.
        return Err(io::Error::other(
            "not every descriptor of a message could be received; the process may be out of them",
        ));
    }
    for descriptor in &descriptors {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok((received as usize, descriptors))
}

/// The descriptors that a received message carries.
///
/// # Safety
///
/// `recvmsg(2)` has filled the header, its control messages are still there, and this is called once.
unsafe fn carried(header: &libc::msghdr) -> Vec<Owned> {
    let mut descriptors = Vec::new();
    // SAFETY: the caller's promise: these walk over what the system wrote, and each descriptor is new and nobody else's.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = at.as_ref() {
            if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(at).cast::<RawFd>();
                let len: usize = message.cmsg_len as _;
                let bytes = len.saturating_sub(data as usize - at as usize);
                for index in 0..bytes / size_of::<RawFd>() {
                    descriptors.push(Owned::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    descriptors
}

/// Descriptors that the process may have open, as its soft limit says now (getrlimit(2): RLIMIT_NOFILE).
pub(crate) fn descriptors_max() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(DESCRIPTORS_ASSUMED, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// What is assumed where the system does not tell: the least that POSIX promises is less, what is usual is this.
const DESCRIPTORS_ASSUMED: usize = 1024;

/// Sets whether calls on `fd` block.
pub(crate) fn set_nonblocking(fd: &impl Lend, nonblocking: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    let mut wanted = flags;
    wanted.set(OFlag::O_NONBLOCK, nonblocking);
    if wanted != flags {
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
}
