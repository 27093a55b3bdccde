//! The two system calls of a ring that is set up.
//!
//! The `io-uring` crate keeps the registered index of a ring in a borrow of it only, so the calls that use the index
//! are made here.
#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// `IORING_ENTER_*`.
pub(super) const GETEVENTS: u32 = 1;
pub(super) const SQ_WAKEUP: u32 = 1 << 1;
const EXT_ARG: u32 = 1 << 3;
const REGISTERED_RING: u32 = 1 << 4;
/// `IORING_REGISTER_*`.
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// The way into the kernel: `io_uring_enter` on the ring's descriptor, or on its index once that is registered
/// for this thread.
pub(super) struct Doorway {
    ring: RawFd,
    registered: Option<u32>,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg` with the time-out that it points to.
#[repr(C)]
struct WaitArgument {
    signal_mask: u64,
    signal_mask_size: u32,
    min_wait_us: u32,
    timeout: *const [i64; 2],
}

impl Doorway {
    pub(super) fn new(ring: RawFd) -> Doorway {
        Doorway { ring, registered: None }
    }

    pub(super) fn register(&mut self) -> io::Result<()> {
        let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: self.ring as u64 };
        self.update(REGISTER_RING_FDS, &mut update)?;
        self.registered = Some(update.offset);
        Ok(())
    }

    fn update(&self, command: u32, update: &mut RingUpdate) -> io::Result<()> {
        // SAFETY: the kernel reads and writes one update, which outlives the call.
        let done = unsafe {
            libc::syscall(libc::SYS_io_uring_register, self.ring, command, update as *mut RingUpdate, 1)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn enter(
        &self,
        submit: u32,
        wait: u32,
        flags: u32,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let (ring, flags) = match self.registered {
            Some(index) => (index as RawFd, flags | REGISTERED_RING),
            None => (self.ring, flags),
        };
        let span = timeout.map(|timeout| {
            [i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), i64::from(timeout.subsec_nanos())]
        });
        let argument = span.as_ref().map(|span| WaitArgument {
            signal_mask: 0,
            signal_mask_size: 0,
            min_wait_us: 0,
            timeout: span,
        });
        let (pointer, size, flags) = match &argument {
            Some(argument) => (argument as *const WaitArgument, size_of::<WaitArgument>(), flags | EXT_ARG),
            None => (std::ptr::null(), 0, flags),
        };
        // SAFETY: invariant 1 holds for what the published entries point to; the argument and the time-out in
        // it outlive the call.
        let done =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, submit, wait, flags, pointer, size) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        if let Some(offset) = self.registered {
            let mut update = RingUpdate { offset, reserved: 0, data: 0 };
            let _ = self.update(UNREGISTER_RING_FDS, &mut update);
        }
    }
}
