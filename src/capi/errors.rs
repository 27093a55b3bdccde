//! How failures cross the boundary, and how text comes in.
#![allow(unsafe_code)]

use crate::error::{Error, Full};
use nix::errno::Errno;
use nix::libc;
use std::ffi::{CStr, c_char, c_void};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A failure by its number.
#[derive(Clone, Copy)]
pub(super) struct Failure(i32);

pub(super) const INVALID: Failure = Failure(libc::EINVAL);
pub(super) const UNKNOWN: Failure = Failure(libc::EBADF);
const PANICKED: Failure = Failure(libc::EIO);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let by_kind = match error.kind() {
            io::ErrorKind::InvalidInput => libc::EINVAL,
            io::ErrorKind::AlreadyExists => libc::EALREADY,
            io::ErrorKind::QuotaExceeded => libc::ENOBUFS,
            io::ErrorKind::NotFound => libc::ENOENT,
            io::ErrorKind::NotConnected => libc::ENOTCONN,
            io::ErrorKind::TimedOut => libc::ETIMEDOUT,
            _ => libc::EIO,
        };
        Failure(error.raw_os_error().unwrap_or(by_kind))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Canceled => Failure(libc::ECANCELED),
            other => io::Error::from(other).into(),
        }
    }
}

impl<T> From<Full<T>> for Failure {
    fn from(_: Full<T>) -> Failure {
        Failure(libc::EAGAIN)
    }
}

impl Failure {
    /// The number of the error.
    pub(super) fn number(self) -> i32 {
        self.0
    }
}

/// Runs what a function of the boundary does. What fails, or panics, gives `failed`, with the reason in `errno`.
pub(super) fn guarded<R>(failed: R, work: impl FnOnce() -> Result<R, Failure>) -> R {
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(result)) => return result,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            // Its destructor may panic, too.
            std::mem::forget(panic);
            PANICKED
        }
    };
    Errno::set_raw(failure.0);
    failed
}

/// As [`guarded`], for what gives 0 or -1.
pub(super) fn done(work: impl FnOnce() -> Result<(), Failure>) -> i32 {
    guarded(-1, || work().map(|()| 0))
}

/// The text at a pointer.
///
/// # Safety
///
/// `text` is null or points to a text that ends with a NUL and stays as it is until this call's caller returns.
pub(super) unsafe fn text<'a>(text: *const c_char) -> Result<std::borrow::Cow<'a, str>, Failure> {
    if text.is_null() {
        return Err(INVALID);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy())
}

/// The bytes at a pointer.
///
/// # Safety
///
/// `bytes` is null, or `len` bytes can be read there until this call's caller returns.
pub(super) unsafe fn bytes<'a>(bytes: *const c_void, len: usize) -> Result<&'a [u8], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if bytes.is_null() || len > isize::MAX as usize {
        return Err(INVALID);
    }
    // SAFETY: the caller's promise; the length was checked.
    Ok(unsafe { std::slice::from_raw_parts(bytes.cast(), len) })
}

/// Writes a text with a NUL behind it, cut to the room.
///
/// # Safety
///
/// `room` is null, or `len` bytes can be written there.
pub(super) unsafe fn write_text(text: &str, room: *mut c_char, len: usize) -> Result<(), Failure> {
    let Some(most) = len.checked_sub(1).filter(|_| !room.is_null()) else { return Err(INVALID) };
    let kept = text.len().min(most);
    // SAFETY: the caller's promise: `kept` bytes and the NUL fit into the room.
    unsafe {
        room.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), kept);
        room.add(kept).write(0);
    }
    Ok(())
}
