//! The port itself: what is attached to it, its packets, and being woken by one.
#![allow(unsafe_code)]

use crate::driver::fd::FdRef;
use crate::driver::sys::os::{self, Raw};
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use windows_sys::Wdk::Storage::FileSystem::{
    FILE_COMPLETION_INFORMATION, FileReplaceCompletionInformation, NtSetInformationFile,
};
use windows_sys::Win32::Foundation::{INVALID_HANDLE_VALUE, WAIT_TIMEOUT};
use windows_sys::Win32::Networking::WinSock as winsock;
use windows_sys::Win32::Storage::FileSystem::SetFileCompletionNotificationModes;
use windows_sys::Win32::System::IO::{
    CreateIoCompletionPort, GetQueuedCompletionStatusEx, IO_STATUS_BLOCK, OVERLAPPED, OVERLAPPED_ENTRY,
    PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::INFINITE;
use windows_sys::Win32::System::WindowsProgramming::{
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE,
};

/// Packets of one call.
const PACKETS_MAX: usize = 64;

/// An I/O completion port. Anybody may wake who waits on it.
#[derive(Debug)]
pub(crate) struct Port {
    handle: OwnedHandle,
    /// A packet that wakes is in the port already.
    woken: AtomicBool,
}

/// What is known of something that is attached to a port; kept as its registration.
#[derive(Clone, Copy)]
pub(super) struct Attached(u32);

impl Attached {
    /// A call that succeeds at once posts no packet.
    pub(super) fn skips(self) -> bool {
        self.0 & 1 != 0
    }

    pub(super) fn is_datagram(self) -> bool {
        self.0 & 2 != 0
    }

    pub(super) fn is_v6(self) -> bool {
        self.0 & 4 != 0
    }

    pub(super) fn is_file(self) -> bool {
        self.0 & 8 != 0
    }
}

impl Port {
    pub(super) fn new() -> io::Result<Port> {
        // SAFETY: plain system call; the port is new and nobody else's. One thread runs at a time.
        let handle = unsafe {
            let port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, std::ptr::null_mut(), 0, 1);
            if port.is_null() {
                return Err(io::Error::last_os_error());
            }
            OwnedHandle::from_raw_handle(port)
        };
        Ok(Port { handle, woken: AtomicBool::new(false) })
    }

    /// Attaches a socket or file at its first use; a negated error number if it belongs to another port.
    pub(super) fn attach(&self, fd: &FdRef) -> Result<Attached, i32> {
        if let Some(bits) = fd.registration() {
            return Ok(Attached(bits));
        }
        let descriptor = fd.descriptor();
        let raw = descriptor.raw();
        // SAFETY: plain system call on an open handle; places name operations, so the key says nothing.
        let attached = unsafe { CreateIoCompletionPort(raw as _, self.handle.as_raw_handle(), 0, 0) };
        if attached.is_null() {
            return Err(-io::Error::last_os_error().raw_os_error().unwrap_or(os::libc::EINVAL));
        }
        let is_file = descriptor.is_file();
        let is_datagram = !is_file && descriptor.is_datagram();
        let is_v6 = !is_file && descriptor.local_addr().is_ok_and(|local| local.is_ipv6());
        if is_datagram && descriptor.peer_addr().is_err() {
            ignore_unreachable(raw);
        }
        let modes = (FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE) as u8;
        // SAFETY: plain system call on an open handle.
        let skips = (is_file || is_of_the_system(raw))
            && unsafe { SetFileCompletionNotificationModes(raw as _, modes) } != 0;
        let bits = [skips, is_datagram, is_v6, is_file].into_iter().enumerate();
        let bits = bits.fold(0, |bits, (index, is)| bits | u32::from(is) << index);
        fd.set_registration(Some(bits));
        Ok(Attached(bits))
    }

    /// Takes a socket or file out of its port. Where that is refused (before Windows 8.1, and in Wine) no other port can
    /// have it.
    pub(super) fn detach(&self, fd: &FdRef) {
        if fd.registration().is_none() {
            return;
        }
        let nothing = FILE_COMPLETION_INFORMATION { Port: std::ptr::null_mut(), Key: std::ptr::null_mut() };
        let mut status = IO_STATUS_BLOCK::default();
        // SAFETY: plain system call on an open handle on which no call is under way.
        let detached = unsafe {
            NtSetInformationFile(
                fd.raw() as _,
                &mut status,
                (&raw const nothing).cast(),
                size_of::<FILE_COMPLETION_INFORMATION>() as u32,
                FileReplaceCompletionInformation,
            )
        };
        if detached >= 0 {
            fd.set_registration(None);
        }
    }

    /// Wakes who waits, now or the next time.
    pub(crate) fn wake(&self) {
        if self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        // SAFETY: plain system call; a packet without a place is a wake.
        let posted =
            unsafe { PostQueuedCompletionStatus(self.handle.as_raw_handle(), 0, 0, std::ptr::null()) };
        if posted == 0 {
            // Out of memory: the next one who wakes tries again.
            self.woken.store(false, Ordering::SeqCst);
        }
    }

    /// Waits for packets, at most `room`, and appends the memory of the calls that have ended.
    pub(super) fn take(
        &self,
        room: usize,
        timeout: Option<Duration>,
        into: &mut Vec<*mut OVERLAPPED>,
    ) -> io::Result<()> {
        let mut entries = [OVERLAPPED_ENTRY::default(); PACKETS_MAX];
        let room = room.clamp(1, PACKETS_MAX);
        // As other systems do it, a wait is never shorter than asked for.
        let timeout = timeout.map_or(INFINITE, |timeout| {
            u32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(INFINITE).min(INFINITE - 1)
        });
        let mut count = 0;
        // SAFETY: plain system call; there are as many entries.
        let taken = unsafe {
            GetQueuedCompletionStatusEx(
                self.handle.as_raw_handle(),
                entries.as_mut_ptr(),
                room as u32,
                &mut count,
                timeout,
                0,
            )
        };
        if taken == 0 {
            let error = io::Error::last_os_error();
            let late = error.raw_os_error() == Some(WAIT_TIMEOUT as i32);
            return if late { Ok(()) } else { Err(error) };
        }
        for entry in &entries[..count as usize] {
            if entry.lpOverlapped.is_null() {
                self.woken.store(false, Ordering::SeqCst);
            } else {
                into.push(entry.lpOverlapped);
            }
        }
        Ok(())
    }
}

/// An unconnected socket shall not fail because a datagram that it sent has met no receiver.
fn ignore_unreachable(socket: Raw) {
    let (no, mut count) = (0_u32, 0);
    // SAFETY: plain system call; the value is as long as it says. Where it is refused the errors are told.
    unsafe {
        winsock::WSAIoctl(
            socket,
            winsock::SIO_UDP_CONNRESET,
            (&raw const no).cast(),
            size_of::<u32>() as u32,
            std::ptr::null_mut(),
            0,
            &mut count,
            std::ptr::null_mut(),
            None,
        )
    };
}

/// Whether a socket is a handle of the system; what others layer above it may post packets of their own.
fn is_of_the_system(socket: Raw) -> bool {
    let mut info = winsock::WSAPROTOCOL_INFOW::default();
    let mut len = size_of::<winsock::WSAPROTOCOL_INFOW>() as i32;
    // SAFETY: plain system call; the structure is as long as it says.
    let got = unsafe {
        winsock::getsockopt(
            socket,
            winsock::SOL_SOCKET,
            winsock::SO_PROTOCOL_INFOW,
            (&raw mut info).cast(),
            &mut len,
        )
    };
    got == 0 && info.dwServiceFlags1 & winsock::XP1_IFS_HANDLES != 0
}
