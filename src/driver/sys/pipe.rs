//! [`Pipe`]: bytes on their way from one socket to another, without a copy into this program (`splice(2)`).
//!
//! Linux only; elsewhere no pipe can be opened, and whoever wants one goes on without. No call here blocks, provided
//! that the sockets do not: `splice(2)` waits for a socket unless O_NONBLOCK is set on it, whatever its own flags say.
#![forbid(unsafe_code)]

use super::os::Owned;
use std::io;

/// Both ends of a pipe. It holds [`Pipe::bytes`] at most.
#[derive(Debug)]
pub(crate) struct Pipe {
    #[cfg(target_os = "linux")]
    ends: (Owned, Owned),
    bytes: usize,
}

impl Pipe {
    /// The most bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A count, or a negated error number.
#[cfg(target_os = "linux")]
fn raw(mut call: impl FnMut() -> nix::Result<usize>) -> i32 {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(number) => return -(number as i32),
            Ok(count) => return i32::try_from(count).unwrap_or(i32::MAX),
        }
    }
}

#[cfg(target_os = "linux")]
impl Pipe {
    /// Opens a pipe that holds about `bytes`; the system may give a smaller one.
    pub(crate) fn open(bytes: usize) -> io::Result<Pipe> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let ends = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refused where the user has too much memory in pipes already; then it stays as it is.
        let wanted = i32::try_from(bytes).unwrap_or(i32::MAX);
        let _ = fcntl(&ends.1, FcntlArg::F_SETPIPE_SZ(wanted));
        let bytes = usize::try_from(fcntl(&ends.1, FcntlArg::F_GETPIPE_SZ)?).unwrap_or(4096);
        Ok(Pipe { ends, bytes })
    }

    /// Moves what a socket has received into the pipe: 0 at the end of the stream.
    pub(crate) fn fill(&self, from: &Owned, len: usize) -> i32 {
        use nix::fcntl::{SpliceFFlags, splice};
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        raw(|| splice(from, None, &self.ends.1, None, len, flags))
    }

    /// Sends what is in the pipe; perhaps not all.
    pub(crate) fn empty(&self, to: &Owned, len: usize) -> i32 {
        use nix::fcntl::{SpliceFFlags, splice};
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        raw(|| splice(&self.ends.0, None, to, None, len, flags))
    }

    /// Takes everything out of it, by a copy.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 16 * 1024];
        loop {
            match raw(|| nix::unistd::read(&self.ends.0, &mut piece)) {
                count if count > 0 => all.extend_from_slice(&piece[..count as usize]),
                _ => return all,
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Pipe {
    /// There is none here.
    pub(crate) fn open(_: usize) -> io::Result<Pipe> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// See Linux.
    pub(crate) fn fill(&self, _: &Owned, _: usize) -> i32 {
        -super::os::libc::EOPNOTSUPP
    }

    /// See Linux.
    pub(crate) fn empty(&self, _: &Owned, _: usize) -> i32 {
        -super::os::libc::EOPNOTSUPP
    }

    /// See Linux.
    pub(crate) fn take(&self) -> Vec<u8> {
        Vec::new()
    }
}
