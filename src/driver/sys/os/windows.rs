//! The words of Windows, and its calls on sockets and files.
#![allow(unsafe_code)]

pub(crate) use super::words as libc;
use crate::driver::Descriptor;
use crate::driver::fd::FdRef;
use crate::driver::op::Direction;
use crate::driver::sys::messages::Message;
use socket2::{SockAddr, SockRef};
use std::fs::File;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
pub(crate) use std::os::windows::io::OwnedSocket;
use std::os::windows::io::{
    AsHandle, AsRawHandle, AsRawSocket, AsSocket, BorrowedSocket, FromRawSocket, OwnedHandle,
};
use std::path::Path;
use windows_sys::Win32::Foundation as foundation;
use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Storage::FileSystem as files;
use windows_sys::Win32::System::IO::{GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Threading::{
    CreateEventW, GetCurrentProcess, GetCurrentThread, GetProcessAffinityMask, SetThreadAffinityMask,
};

/// What lends a socket of the system.
pub use std::os::windows::io::AsSocket as Lend;
/// The standard library has no Unix sockets here; this is one as it has any socket.
pub(crate) use std::os::windows::io::OwnedSocket as SystemUnixStream;
/// The same of one that listens.
pub(crate) use std::os::windows::io::OwnedSocket as SystemUnixListener;

/// The number of a socket or a handle.
pub(crate) type Raw = usize;

/// An owned socket or file of the system.
#[derive(Debug)]
pub(crate) enum Owned {
    Socket(OwnedSocket),
    /// A file, and whether calls on it need not block.
    File(OwnedHandle, bool),
}

impl Owned {
    pub(crate) fn is_file(&self) -> bool {
        matches!(self, Owned::File(..))
    }
}

impl AsSocket for Owned {
    /// The system refuses calls of sockets on a file.
    fn as_socket(&self) -> BorrowedSocket<'_> {
        // SAFETY: invariant 1: the number is that of an open socket or handle, which lives as long as the loan.
        unsafe { BorrowedSocket::borrow_raw(raw(self) as u64) }
    }
}

impl From<OwnedSocket> for Owned {
    fn from(socket: OwnedSocket) -> Owned {
        Owned::Socket(socket)
    }
}

impl From<File> for Owned {
    fn from(file: File) -> Owned {
        Owned::File(file.into(), false)
    }
}

macro_rules! sockets {
    ($($type:ty),*) => {
        $(impl From<$type> for Owned {
            fn from(socket: $type) -> Owned {
                Owned::Socket(socket.into())
            }
        })*
    };
}

sockets! { std::net::TcpListener, std::net::TcpStream, std::net::UdpSocket, socket2::Socket }

crate::driver::sys::descriptor::from_system! { OwnedSocket }

impl TryFrom<Owned> for OwnedSocket {
    type Error = io::Error;

    fn try_from(owned: Owned) -> io::Result<OwnedSocket> {
        match owned {
            Owned::Socket(socket) => Ok(socket),
            Owned::File(..) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Fails for a file and for a socket of a simulated host, and closes it.
impl TryFrom<Descriptor> for OwnedSocket {
    type Error = io::Error;

    fn try_from(descriptor: Descriptor) -> io::Result<OwnedSocket> {
        Owned::try_from(descriptor)?.try_into()
    }
}

/// Lets a type lend its socket: `lends! { Type, self => what lends it }`.
macro_rules! lends {
    ($(#[$doc:meta])* $type:ty, $this:ident => $lender:expr) => {
        $(#[$doc])*
        impl std::os::windows::io::AsSocket for $type {
            fn as_socket(&$this) -> std::os::windows::io::BorrowedSocket<'_> {
                ($lender).descriptor().borrow()
            }
        }
    };
}
pub(crate) use lends;

impl AsSocket for FdRef {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.descriptor().borrow()
    }
}

/// The system refuses calls of sockets on a file.
impl AsSocket for Descriptor {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.borrow()
    }
}

/// The number of a socket or file that somebody keeps open.
pub(crate) fn raw(owned: &Owned) -> Raw {
    match owned {
        Owned::Socket(socket) => socket.as_raw_socket() as usize,
        Owned::File(handle, _) => handle.as_raw_handle() as usize,
    }
}

/// Whether it is a file whose calls need no thread.
pub(crate) fn is_overlapped_file(owned: &Owned) -> bool {
    matches!(owned, Owned::File(_, true))
}

/// Another socket for the same thing.
pub(crate) fn duplicate(lender: &impl Lend) -> io::Result<Owned> {
    Ok(Owned::Socket(lender.as_socket().try_clone_to_owned()?))
}

/// There is none here.
pub(crate) fn unix_listener(socket: OwnedSocket) -> SystemUnixListener {
    socket
}

/// No address is a path here.
pub(crate) fn path_of(_: &SockAddr) -> Option<&Path> {
    None
}

/// Another handle of a file.
pub(crate) fn file(owned: &Owned) -> io::Result<File> {
    match owned {
        Owned::File(handle, _) => Ok(handle.as_handle().try_clone_to_owned()?.into()),
        Owned::Socket(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// There are no such pairs here.
pub(crate) fn pair() -> io::Result<(Owned, Owned)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no pairs of Unix sockets"))
}

/// Opens a file to read it, or makes an empty one to write.
pub(crate) fn open_file(path: &Path, create: bool) -> io::Result<Owned> {
    let mut options = File::options();
    options.custom_flags(files::FILE_FLAG_OVERLAPPED);
    let file = match create {
        true => options.write(true).create(true).truncate(true).open(path)?,
        false => options.read(true).open(path)?,
    };
    Ok(Owned::File(file.into(), true))
}

/// What Windows says of the last call of sockets, negated.
pub(crate) fn last_error() -> i32 {
    // SAFETY: plain system call.
    -unsafe { winsock::WSAGetLastError() }
}

/// The number by which the standard library knows what an error says: of some it knows those of files alone.
pub(crate) fn as_told(number: i32) -> i32 {
    match number {
        libc::EPIPE => foundation::ERROR_NO_DATA as i32,
        libc::EOPNOTSUPP => foundation::ERROR_CALL_NOT_IMPLEMENTED as i32,
        other => other,
    }
}

/// The result of a call that gives 0 and writes a count, or refuses.
pub(crate) fn counted(returned: i32, count: u32) -> i32 {
    if returned == 0 { i32::try_from(count).unwrap_or(i32::MAX) } else { last_error() }
}

/// Of a length, as much as one call takes.
fn cut(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

/// A range of memory as Winsock reads it.
pub(crate) fn range(start: *const u8, len: usize) -> winsock::WSABUF {
    winsock::WSABUF { len: cut(len) as u32, buf: start.cast_mut() }
}

/// `accept(2)`: the number of the connection, which does not block.
pub(crate) fn accept(listener: Raw) -> i32 {
    // SAFETY: plain system call; null pointers ask for no address.
    let socket = unsafe { winsock::accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) };
    if socket == winsock::INVALID_SOCKET {
        return refused_accept(last_error());
    }
    // SAFETY: invariant 1: the socket is new and nobody else's. Child processes shall not have it.
    number(unsafe {
        foundation::SetHandleInformation(socket as foundation::HANDLE, foundation::HANDLE_FLAG_INHERIT, 0);
        OwnedSocket::from_raw_socket(socket as u64)
    })
}

/// The result of an accept that failed: a connection that was reset in the queue may have no peer any more, which says
/// nothing about the listener.
pub(crate) fn refused_accept(result: i32) -> i32 {
    if result == -winsock::WSAENOTCONN { -libc::ECONNABORTED } else { result }
}

/// The number of a new connection, as a result; numbers of sockets have 32 bits at most.
pub(crate) fn number(socket: OwnedSocket) -> i32 {
    let Ok(number) = i32::try_from(socket.as_raw_socket()) else { return -libc::EMFILE };
    if set_socket_nonblocking(number as usize, true).is_err() {
        return -libc::ECONNABORTED;
    }
    std::mem::forget(socket);
    number
}

/// The connection that an accept has brought.
///
/// # Safety
///
/// `result` is what an accept has returned, and nobody else makes anything of it.
pub(crate) unsafe fn accepted(result: i32) -> Owned {
    // SAFETY: invariant 1: the caller's promise: a new socket that nobody else owns.
    Owned::Socket(unsafe { OwnedSocket::from_raw_socket(result as u64) })
}

/// Receives from a stream.
///
/// # Safety
///
/// `len` bytes can be written at `start`.
pub(crate) unsafe fn receive(socket: Raw, start: *mut u8, len: usize) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    let received = unsafe { winsock::recv(socket, start, cut(len), 0) };
    if received < 0 { received_nothing(last_error()) } else { received }
}

/// What a receive that failed says: this side's own shutdown is the end of the stream, as on Unix.
pub(crate) fn received_nothing(error: i32) -> i32 {
    if error == -libc::EPIPE { 0 } else { error }
}

/// Sends on a stream; perhaps not all.
pub(crate) fn send(socket: Raw, bytes: &[u8]) -> i32 {
    // SAFETY: invariant 1: a slice can be read as long as this call takes.
    let sent = unsafe { winsock::send(socket, bytes.as_ptr(), cut(bytes.len()), 0) };
    if sent < 0 { last_error() } else { sent }
}

/// Most ranges of a message.
const RANGES_MAX: usize = 64;

/// Sends a message, to its address or to the connected peer.
///
/// # Safety
///
/// `header` refers to memory that can be read.
pub(crate) unsafe fn send_message(socket: Raw, header: *const libc::msghdr) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    unsafe {
        if (*header).msg_controllen > 0 {
            return -libc::EOPNOTSUPP;
        }
        let vectors = std::slice::from_raw_parts((*header).msg_iov, (*header).msg_iovlen);
        let mut ranges = [range(std::ptr::null(), 0); RANGES_MAX];
        let count = vectors.len().min(RANGES_MAX);
        for (range, vector) in ranges.iter_mut().zip(vectors) {
            *range = self::range(vector.iov_base.cast(), vector.iov_len);
        }
        let mut sent = 0;
        let returned = winsock::WSASendTo(
            socket,
            ranges.as_ptr(),
            count as u32,
            &mut sent,
            0,
            (*header).msg_name.cast(),
            (*header).msg_namelen,
            std::ptr::null_mut(),
            None,
        );
        counted(returned, sent)
    }
}

/// Receives a message into one range. One that is longer is cut, and its flags say so.
///
/// # Safety
///
/// `header` refers to memory that can be written.
pub(crate) unsafe fn receive_message(socket: Raw, header: *mut libc::msghdr) -> i32 {
    // SAFETY: invariant 1: the caller's promise.
    unsafe {
        let vector = *(*header).msg_iov;
        let range = range(vector.iov_base.cast(), vector.iov_len);
        let (mut received, mut flags) = (0, 0);
        let returned = winsock::WSARecvFrom(
            socket,
            &range,
            1,
            &mut received,
            &mut flags,
            (*header).msg_name.cast(),
            &raw mut (*header).msg_namelen,
            std::ptr::null_mut(),
            None,
        );
        let result = counted(returned, received);
        let is_cut = result == -libc::EMSGSIZE;
        (*header).msg_flags = if is_cut { libc::MSG_TRUNC } else { 0 };
        if is_cut { range.len as i32 } else { unreached(result) }
    }
}

/// The result of a receive of datagrams: that an earlier one has met no receiver is told as on Unix.
pub(crate) fn unreached(result: i32) -> i32 {
    if result == -libc::ECONNRESET { -libc::ECONNREFUSED } else { result }
}

/// Sends one datagram, to `to` or to the connected peer.
pub(crate) fn send_to(socket: Raw, bytes: &[u8], to: Option<&SockAddr>) -> i32 {
    let Some(to) = to else { return send(socket, bytes) };
    // SAFETY: invariant 1: slice and address can be read as long as this call takes.
    let sent =
        unsafe { winsock::sendto(socket, bytes.as_ptr(), cut(bytes.len()), 0, to.as_ptr().cast(), to.len()) };
    if sent < 0 { last_error() } else { sent }
}

/// Receives up to `count` messages; their number.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be written.
pub(crate) unsafe fn receive_messages(socket: Raw, messages: *mut Message, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { one_by_one(messages, count, |header| receive_message(socket, header)) }
}

/// Sends up to `count` messages; the number of those that went.
///
/// # Safety
///
/// `messages` points to as many messages, whose headers refer to memory that can be read.
pub(crate) unsafe fn send_messages(socket: Raw, messages: *mut Message, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { one_by_one(messages, count, |header| send_message(socket, header)) }
}

/// Makes a call for each message until one fails.
///
/// # Safety
///
/// `messages` points to as many messages.
unsafe fn one_by_one(messages: *mut Message, count: usize, call: impl Fn(*mut libc::msghdr) -> i32) -> i32 {
    for index in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let message = messages.add(index);
            let moved = call(&raw mut (*message).header);
            if moved < 0 {
                return if index > 0 { index as i32 } else { moved };
            }
            (*message).len = moved as libc::c_uint;
        }
    }
    count as i32
}

/// An event that a blocking call on a file waits for.
struct Event(OVERLAPPED, OwnedHandle);

impl Event {
    fn new(offset: u64) -> io::Result<Event> {
        use std::os::windows::io::FromRawHandle;
        // SAFETY: plain system call; the event is new and nobody else's.
        let event = unsafe {
            let event = CreateEventW(std::ptr::null(), 1, 0, std::ptr::null());
            if event.is_null() {
                return Err(io::Error::last_os_error());
            }
            OwnedHandle::from_raw_handle(event)
        };
        let mut overlapped = at(offset);
        // An event whose lowest bit is set keeps the completion away from a port.
        overlapped.hEvent = (event.as_raw_handle() as usize | 1) as foundation::HANDLE;
        Ok(Event(overlapped, event))
    }

    /// Waits until the call that `returned` has ended.
    fn end(&mut self, file: Raw, returned: i32) -> i32 {
        let mut count = 0;
        // SAFETY: invariant 1: the structure lives until the call has ended, for which this waits.
        let ended = unsafe {
            let begun = returned != 0 || foundation::GetLastError() == foundation::ERROR_IO_PENDING;
            begun && GetOverlappedResult(file as foundation::HANDLE, &self.0, &mut count, 1) != 0
        };
        file_result(ended, count)
    }
}

/// Where a call on a file begins.
pub(crate) fn at(offset: u64) -> OVERLAPPED {
    let mut overlapped = OVERLAPPED::default();
    overlapped.Anonymous.Anonymous.Offset = offset as u32;
    overlapped.Anonymous.Anonymous.OffsetHigh = (offset >> 32) as u32;
    overlapped
}

/// The result of a call on a file: beyond its end there is nothing.
pub(crate) fn file_result(ended: bool, count: u32) -> i32 {
    if ended {
        return i32::try_from(count).unwrap_or(i32::MAX);
    }
    // SAFETY: plain system call.
    file_error(unsafe { foundation::GetLastError() })
}

/// What an error of a file says, as a result.
pub(crate) fn file_error(number: u32) -> i32 {
    if number == foundation::ERROR_HANDLE_EOF { 0 } else { -(number as i32) }
}

/// Reads at an offset. May block.
///
/// # Safety
///
/// `len` bytes can be written at `start`.
pub(crate) unsafe fn read_at(file: Raw, start: *mut u8, len: usize, offset: u64) -> i32 {
    let Ok(mut event) = Event::new(offset) else { return -libc::ENOMEM };
    // SAFETY: invariant 1: the caller's promise; the event is waited for.
    let read =
        unsafe { files::ReadFile(file as _, start, cut(len) as u32, std::ptr::null_mut(), &mut event.0) };
    event.end(file, read)
}

/// Writes at an offset. May block.
///
/// # Safety
///
/// `len` bytes can be read at `start`.
pub(crate) unsafe fn write_at(file: Raw, start: *const u8, len: usize, offset: u64) -> i32 {
    let Ok(mut event) = Event::new(offset) else { return -libc::ENOMEM };
    // SAFETY: invariant 1: the caller's promise; the event is waited for.
    let written =
        unsafe { files::WriteFile(file as _, start, cut(len) as u32, std::ptr::null_mut(), &mut event.0) };
    event.end(file, written)
}

/// Waits until content and metadata are on their device.
pub(crate) fn sync(file: Raw, _data_only: bool) -> i32 {
    // SAFETY: plain system call on an open file.
    file_result(unsafe { files::FlushFileBuffers(file as _) } != 0, 0)
}

/// Sets an option that is a number.
pub(crate) fn set_option(socket: &Owned, level: i32, name: i32, value: i32) -> io::Result<()> {
    let (value, len) = (&raw const value, size_of::<i32>() as i32);
    // SAFETY: plain system call; the value is as long as it says.
    let set = unsafe { winsock::setsockopt(raw(socket), level, name, value.cast(), len) };
    if set == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-last_error())) }
}

/// Whether the system knows an option.
pub(crate) fn has_option(socket: &Owned, level: i32, name: i32) -> bool {
    let (mut value, mut len) = (0_i32, size_of::<i32>() as i32);
    // SAFETY: plain system call; the value is as long as it says.
    unsafe { winsock::getsockopt(raw(socket), level, name, (&raw mut value).cast(), &raw mut len) == 0 }
}

/// Whether a socket is ready in `direction` right now. An error counts as ready: the next call reports it.
pub(crate) fn is_ready(socket: &Owned, direction: Direction) -> bool {
    let events = match direction {
        Direction::Read => winsock::POLLRDNORM,
        Direction::Write => winsock::POLLWRNORM,
    };
    let mut poll = winsock::WSAPOLLFD { fd: raw(socket), events, revents: 0 };
    // SAFETY: one valid structure, no waiting.
    unsafe { winsock::WSAPoll(&mut poll, 1, 0) > 0 }
}

/// There is no way to break a connection off while sends are under way; its close does it, as they are cancelled then.
pub(crate) fn disconnect(_: &Owned) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether received bytes wait in the system. Sockets of a driver do not block.
pub(crate) fn has_unread(socket: &Owned) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    matches!(SockRef::from(socket).recv_with_flags(&mut byte, winsock::MSG_PEEK), Ok(1))
}

/// Whether programs that are started get it, too.
#[cfg(test)]
pub(crate) fn is_inherited(owned: &Owned) -> bool {
    let mut flags = 0;
    // SAFETY: plain system call on an open handle.
    let told = unsafe { foundation::GetHandleInformation(raw(owned) as _, &mut flags) };
    assert_ne!(told, 0, "the flags of an open handle");
    flags & foundation::HANDLE_FLAG_INHERIT != 0
}

/// Sockets that a process may have open. The system has no limit of its own but memory.
pub(crate) fn descriptors_max() -> usize {
    65_536
}

/// There is no table to make room in.
pub(crate) fn reserve_descriptors(_count: usize) {}

/// Sets whether calls of a socket block; those of files do.
pub(crate) fn set_nonblocking(owned: &Owned, nonblocking: bool) -> io::Result<()> {
    match owned {
        Owned::Socket(_) => set_socket_nonblocking(raw(owned), nonblocking),
        Owned::File(..) => Ok(()),
    }
}

fn set_socket_nonblocking(socket: Raw, nonblocking: bool) -> io::Result<()> {
    let mut nonblocking = u32::from(nonblocking);
    // SAFETY: plain system call.
    let set = unsafe { winsock::ioctlsocket(socket, winsock::FIONBIO, &mut nonblocking) };
    if set == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-last_error())) }
}

/// A port that was just used can be bound here anyway. The option of that name would let others share the port; its
/// opposite keeps those out who have set it.
pub(crate) fn set_reuse_address(socket: &Owned, _: bool) -> io::Result<()> {
    set_option(socket, winsock::SOL_SOCKET, winsock::SO_EXCLUSIVEADDRUSE, 1)
}

/// Whether several listeners of a process may have one port, and the system spreads connections over them.
pub(crate) const HAS_SHARED_PORTS: bool = false;

/// Ports are not shared here.
pub(crate) fn set_reuse_port(_: &Owned, reuse: bool) -> io::Result<()> {
    if reuse { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

/// The processors that this process may run on, a bit each; nothing if the system does not say, as where they are in
/// several groups.
pub(crate) fn affinity() -> usize {
    let (mut own, mut all) = (0, 0);
    // SAFETY: plain system call on this process.
    let told = unsafe { GetProcessAffinityMask(GetCurrentProcess(), &mut own, &mut all) };
    if told == 0 { 0 } else { own }
}

/// Sets the processors that this thread may run on, a bit each; those before.
pub(crate) fn set_affinity(mask: usize) -> io::Result<usize> {
    // SAFETY: plain system call on this thread.
    match unsafe { SetThreadAffinityMask(GetCurrentThread(), mask) } {
        0 => Err(io::Error::last_os_error()),
        before => Ok(before),
    }
}
