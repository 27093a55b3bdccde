//! The overlapped calls by which operations are started, and the memory that each of them keeps busy.
#![allow(unsafe_code)]

use super::port::{Attached, Port};
use crate::driver::fd::FdRef;
use crate::driver::op::{Attempt, Means, Step};
use crate::driver::slot::Scratch;
use crate::driver::sys::CANCELED;
use crate::driver::sys::os::{self, Raw, libc};
use crate::driver::token::Token;
use socket2::SockAddr;
use std::os::windows::io::{FromRawSocket, OwnedSocket};
use std::sync::OnceLock;
use windows_sys::Win32::Foundation::{ERROR_INVALID_FUNCTION, ERROR_IO_PENDING, GetLastError};
use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::core::GUID;

/// What the system works on while it has a call. The first field is what packets name.
#[repr(C)]
pub(super) struct Outstanding {
    overlapped: OVERLAPPED,
    token: Token,
    /// What the call is on; zero while there is none.
    handle: Raw,
    is_file: bool,
    /// The socket that an accept makes a connection of; zero if there is none.
    accepting: Raw,
}

impl Outstanding {
    pub(super) fn new(token: Token) -> Outstanding {
        Outstanding { overlapped: OVERLAPPED::default(), token, handle: 0, is_file: false, accepting: 0 }
    }

    /// Asks the system to end the call, if there is one; it may have ended.
    ///
    /// # Safety
    ///
    /// `place` has been written.
    pub(super) unsafe fn cancel(place: *mut Outstanding) {
        // SAFETY: invariant 1: the slot keeps the handle open while a call is on it.
        unsafe {
            if (*place).handle != 0 {
                CancelIoEx((*place).handle as _, &raw const (*place).overlapped);
            }
        }
    }

    /// The call has ended: whose it was, and its count or negated error number.
    ///
    /// # Safety
    ///
    /// A packet has named this place, for the first time since its call.
    pub(super) unsafe fn land(place: *mut Outstanding) -> (Token, i32) {
        // SAFETY: invariant 1: the system is done with the place; the slot keeps the handle open.
        unsafe {
            let handle = std::mem::take(&mut (*place).handle);
            let overlapped = &raw const (*place).overlapped;
            let (mut count, mut flags) = (0, 0);
            let result = if (*overlapped).Internal == 0 {
                i32::try_from((*overlapped).InternalHigh).unwrap_or(i32::MAX)
            } else if (*place).is_file {
                let ended = GetOverlappedResult(handle as _, overlapped, &mut count, 0) != 0;
                os::file_result(ended, count)
            } else {
                let ended = winsock::WSAGetOverlappedResult(handle, overlapped, &mut count, 0, &mut flags);
                os::counted(i32::from(ended == 0), count)
            };
            // What was moved before the cancel counts.
            let moved = i32::try_from((*overlapped).InternalHigh).unwrap_or(i32::MAX);
            let result = if result == -CANCELED && moved > 0 { moved } else { result };
            ((*place).token, result)
        }
    }
}

/// How a call has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begun {
    /// A packet will come.
    Pending,
    /// It has ended with this result, and no packet comes.
    Now(i32),
}

impl Begun {
    /// The same for an operation that makes one call.
    pub(crate) fn attempt(self) -> Attempt {
        match self {
            Begun::Pending => Attempt::Blocked,
            Begun::Now(result) => Attempt::Done(result),
        }
    }
}

/// What an operation starts its calls with. Scratch and place are its slot's own, and the system has no call on them when
/// an operation makes a step.
pub(crate) struct Flight<'a> {
    pub(super) port: &'a Port,
    pub(super) place: *mut Outstanding,
    pub(crate) scratch: *mut Scratch,
    pub(crate) means: &'a Means<'a>,
}

impl Flight<'_> {
    /// Makes a call that gives whether it has succeeded, or else sets the last error.
    fn begin(
        &self,
        fd: &FdRef,
        call: impl FnOnce(Raw, Attached, *mut OVERLAPPED, *mut u32) -> bool,
    ) -> Begun {
        let attached = match self.port.attach(fd) {
            Ok(attached) => attached,
            Err(number) => return Begun::Now(number),
        };
        let (raw, mut count) = (fd.raw(), 0);
        // SAFETY: invariant 1: the system has no call on this place, which does not move.
        let overlapped = unsafe {
            let overlapped = &raw mut (*self.place).overlapped;
            let [offset, high] =
                [(*overlapped).Anonymous.Anonymous.Offset, (*overlapped).Anonymous.Anonymous.OffsetHigh];
            *overlapped = OVERLAPPED::default();
            if attached.is_file() {
                (*overlapped).Anonymous.Anonymous.Offset = offset;
                (*overlapped).Anonymous.Anonymous.OffsetHigh = high;
            }
            (*self.place).handle = raw;
            (*self.place).is_file = attached.is_file();
            overlapped
        };
        let succeeded = call(raw, attached, overlapped, &mut count);
        // SAFETY: plain system call.
        let number = if succeeded { 0 } else { unsafe { GetLastError() } };
        if number == ERROR_IO_PENDING || succeeded && !attached.skips() {
            return Begun::Pending;
        }
        // SAFETY: invariant 1: no call is under way.
        unsafe { (*self.place).handle = 0 };
        if succeeded {
            return Begun::Now(i32::try_from(count).unwrap_or(i32::MAX));
        }
        // A failure is a failure also where nobody has said why.
        let number = number.max(ERROR_INVALID_FUNCTION);
        Begun::Now(if attached.is_file() { os::file_error(number) } else { -(number as i32) })
    }

    /// Attempts, and where that blocks waits until there is something to receive.
    pub(crate) fn when_readable(
        &self,
        socket: &FdRef,
        mut step: Step,
        mut attempt: impl FnMut() -> Attempt,
    ) -> Attempt {
        loop {
            match step {
                Step::Landed(result) if result == -CANCELED => return Attempt::Done(result),
                Step::Drained => {}
                _ => match (attempt(), step) {
                    // The wait of a datagram socket ends as if the datagram had no room.
                    (Attempt::Blocked, Step::Landed(result)) if result < 0 && result != -libc::EMSGSIZE => {
                        let is_datagram = socket.descriptor().is_datagram();
                        return Attempt::Done(if is_datagram { os::unreached(result) } else { result });
                    }
                    (Attempt::Blocked, _) => {}
                    // The wait has met what the receive after it no longer tells.
                    (Attempt::Done(0), Step::Landed(result)) if result < 0 && result != -libc::EMSGSIZE => {
                        return Attempt::Done(os::received_nothing(result));
                    }
                    (other, _) => return other,
                },
            }
            match self.receive_nothing(socket) {
                Begun::Pending => return Attempt::Blocked,
                Begun::Now(result) => step = Step::Landed(result),
            }
        }
    }

    /// A receive of no bytes, which ends when there is something to receive.
    fn receive_nothing(&self, socket: &FdRef) -> Begun {
        self.begin(socket, |raw, attached, overlapped, count| {
            let mut flags = if attached.is_datagram() { winsock::MSG_PEEK as u32 } else { 0 };
            let range = os::range(std::ptr::null(), 0);
            // SAFETY: invariant 1: the place lives until the packet comes; the range is read at once.
            unsafe { winsock::WSARecv(raw, &range, 1, count, &mut flags, overlapped, None) == 0 }
        })
    }

    /// Receives from a stream.
    ///
    /// # Safety
    ///
    /// `len` bytes can be written at `start` until the call has ended.
    pub(crate) unsafe fn receive(&self, socket: &FdRef, start: *mut u8, len: usize) -> Begun {
        self.begin(socket, |raw, _, overlapped, count| {
            let (range, mut flags) = (os::range(start, len), 0);
            // SAFETY: invariant 1: the caller's promise; the place lives until the packet comes.
            unsafe { winsock::WSARecv(raw, &range, 1, count, &mut flags, overlapped, None) == 0 }
        })
    }

    /// Receives a datagram into the one range of a header, and its sender into the header's address.
    ///
    /// # Safety
    ///
    /// The header and what it refers to can be written until the call has ended.
    pub(crate) unsafe fn receive_message(&self, socket: &FdRef, header: *mut libc::msghdr) -> Begun {
        self.begin(socket, |raw, _, overlapped, count| {
            let mut flags = 0;
            // SAFETY: invariant 1: the caller's promise; the place lives until the packet comes.
            unsafe {
                let vector = *(*header).msg_iov;
                let range = os::range(vector.iov_base.cast(), vector.iov_len);
                let (name, len) = ((*header).msg_name.cast(), &raw mut (*header).msg_namelen);
                winsock::WSARecvFrom(raw, &range, 1, count, &mut flags, name, len, overlapped, None) == 0
            }
        })
    }

    /// Sends ranges on a stream.
    ///
    /// # Safety
    ///
    /// What the ranges name can be read until the call has ended.
    pub(crate) unsafe fn send(&self, socket: &FdRef, ranges: &[winsock::WSABUF]) -> Begun {
        self.begin(socket, |raw, _, overlapped, count| {
            // SAFETY: invariant 1: the caller's promise; the ranges themselves are read at once.
            unsafe {
                winsock::WSASend(raw, ranges.as_ptr(), ranges.len() as u32, count, 0, overlapped, None) == 0
            }
        })
    }

    /// Sends a datagram, to an address or to the connected peer.
    ///
    /// # Safety
    ///
    /// Payload and address can be read until the call has ended.
    pub(crate) unsafe fn send_to(
        &self,
        socket: &FdRef,
        payload: &[u8],
        (address, len): (*const libc::sockaddr_storage, libc::socklen_t),
    ) -> Begun {
        self.begin(socket, |raw, _, overlapped, count| {
            let range = os::range(payload.as_ptr(), payload.len());
            // SAFETY: invariant 1: the caller's promise.
            unsafe {
                winsock::WSASendTo(raw, &range, 1, count, 0, address.cast(), len, overlapped, None) == 0
            }
        })
    }

    /// Accepts a connection.
    pub(crate) fn accept(&self, listener: &FdRef) -> Begun {
        const ADDRESS_BYTES: u32 = size_of::<libc::sockaddr_in6>() as u32 + 16;
        const { assert!(2 * ADDRESS_BYTES as usize <= size_of::<libc::sockaddr_storage>()) };
        static ACCEPT: OnceLock<winsock::LPFN_ACCEPTEX> = OnceLock::new();
        let begun = self.begin(listener, |raw, attached, overlapped, count| {
            // SAFETY: the type is that of the function of this name.
            let Some(call) = (unsafe { extension(&ACCEPT, raw, winsock::WSAID_ACCEPTEX) }) else {
                return false;
            };
            let family = if attached.is_v6() { libc::AF_INET6 } else { libc::AF_INET };
            let flags = winsock::WSA_FLAG_OVERLAPPED | winsock::WSA_FLAG_NO_HANDLE_INHERIT;
            // SAFETY: invariant 1: the scratch, and so the room for both addresses, is this slot's own.
            unsafe {
                let kind = (winsock::SOCK_STREAM, winsock::IPPROTO_TCP);
                let socket = winsock::WSASocketW(family, kind.0, kind.1, std::ptr::null(), 0, flags);
                if socket == winsock::INVALID_SOCKET {
                    return false;
                }
                (*self.place).accepting = socket;
                let room = (&raw mut (*self.scratch).address).cast();
                call(raw, socket, room, 0, ADDRESS_BYTES, ADDRESS_BYTES, count, overlapped) != 0
            }
        });
        match begun {
            Begun::Now(result) => Begun::Now(self.accepted(listener, result)),
            Begun::Pending => begun,
        }
    }

    /// What came of an accept: the number of the connection, or a negated error number.
    pub(crate) fn accepted(&self, listener: &FdRef, result: i32) -> i32 {
        // SAFETY: invariant 1: no call is under way.
        let accepting = unsafe { std::mem::take(&mut (*self.place).accepting) };
        if accepting == 0 {
            return result;
        }
        // SAFETY: invariant 1: the socket was made for this accept and is nobody else's.
        let socket = unsafe { OwnedSocket::from_raw_socket(accepting as u64) };
        if result < 0 {
            return os::refused_accept(result);
        }
        let from = listener.raw();
        if update(accepting, winsock::SO_UPDATE_ACCEPT_CONTEXT, Some(from)).is_err() {
            // It has gone meanwhile, which says nothing about the listener.
            return -libc::ECONNABORTED;
        }
        os::number(socket)
    }

    /// Connects a stream socket.
    pub(crate) fn connect(&self, socket: &FdRef, to: &SockAddr) -> Begun {
        static CONNECT: OnceLock<winsock::LPFN_CONNECTEX> = OnceLock::new();
        // The system wants it bound. One that is bound already refuses, and that is fine.
        let any: std::net::SocketAddr = match to.is_ipv6() {
            true => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
            false => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        };
        let _ = socket.descriptor().bind(&any.into());
        self.begin(socket, |raw, _, overlapped, count| {
            // SAFETY: the type is that of the function of this name.
            let Some(call) = (unsafe { extension(&CONNECT, raw, winsock::WSAID_CONNECTEX) }) else {
                return false;
            };
            // SAFETY: invariant 1: the address belongs to the operation and does not move.
            unsafe { call(raw, to.as_ptr().cast(), to.len(), std::ptr::null(), 0, count, overlapped) != 0 }
        })
    }

    /// What came of a connect.
    pub(crate) fn connected(&self, socket: &FdRef, result: i32) -> i32 {
        if result < 0 {
            return result;
        }
        update(socket.raw(), winsock::SO_UPDATE_CONNECT_CONTEXT, None).map_or_else(|number| number, |()| 0)
    }

    fn at(&self, offset: u64) {
        // SAFETY: invariant 1: no call is under way.
        unsafe { (*self.place).overlapped = os::at(offset) };
    }

    /// Reads from a file at an offset.
    ///
    /// # Safety
    ///
    /// `len` bytes can be written at `start` until the call has ended.
    pub(crate) unsafe fn read_at(&self, file: &FdRef, start: *mut u8, len: usize, offset: u64) -> Begun {
        self.at(offset);
        self.begin(file, |raw, _, overlapped, count| {
            // SAFETY: invariant 1: the caller's promise; the place lives until the packet comes.
            unsafe { ReadFile(raw as _, start, len as u32, count, overlapped) != 0 }
        })
    }

    /// Writes to a file at an offset.
    ///
    /// # Safety
    ///
    /// `len` bytes can be read at `start` until the call has ended.
    pub(crate) unsafe fn write_at(&self, file: &FdRef, start: *const u8, len: usize, offset: u64) -> Begun {
        self.at(offset);
        self.begin(file, |raw, _, overlapped, count| {
            // SAFETY: invariant 1: the caller's promise; the place lives until the packet comes.
            unsafe { WriteFile(raw as _, start, len as u32, count, overlapped) != 0 }
        })
    }
}

/// Makes calls that need its context work on a socket that an overlapped call has connected.
fn update(socket: Raw, option: i32, from: Option<Raw>) -> Result<(), i32> {
    let (value, len) = match &from {
        Some(from) => (std::ptr::from_ref(from).cast(), size_of::<Raw>() as i32),
        None => (std::ptr::null(), 0),
    };
    // SAFETY: plain system call; the value is as long as it says.
    let set = unsafe { winsock::setsockopt(socket, winsock::SOL_SOCKET, option, value, len) };
    if set == 0 { Ok(()) } else { Err(os::last_error()) }
}

/// A function of Winsock that is asked for by its name; the same for every socket of the system.
///
/// # Safety
///
/// `F` is the type of the function that has this name.
unsafe fn extension<F: Copy>(known: &OnceLock<Option<F>>, socket: Raw, name: GUID) -> Option<F> {
    const { assert!(size_of::<Option<F>>() == size_of::<usize>()) };
    if let Some(function) = known.get() {
        return *function;
    }
    let (mut function, mut count) = (None::<F>, 0);
    // SAFETY: the caller's promise; name and function are as long as it says, and null is no function.
    let got = unsafe {
        winsock::WSAIoctl(
            socket,
            winsock::SIO_GET_EXTENSION_FUNCTION_POINTER,
            (&raw const name).cast(),
            size_of::<GUID>() as u32,
            (&raw mut function).cast(),
            size_of::<Option<F>>() as u32,
            &mut count,
            std::ptr::null_mut(),
            None,
        )
    };
    if got == 0 { *known.get_or_init(|| function) } else { None }
}
