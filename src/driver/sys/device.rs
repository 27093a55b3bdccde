//! [`Device`]: a descriptor that stays the program's, read and written without waiting.
//!
//! On Unix it is whatever can be waited for; on Windows a socket.
#![forbid(unsafe_code)]

use super::os::{Lend, Owned, libc};
use socket2::{SockRef, Type};
use std::io;

#[cfg(unix)]
use unix::Handle;
#[cfg(windows)]
use windows::Handle;

/// What a descriptor is, as far as reading and writing differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// A socket for datagrams: an empty message is no end, and one that cannot be sent is dropped.
    Datagrams,
    /// A socket for packets of a connection.
    Packets,
    Stream,
    /// No socket: a pipe, a terminal or another device.
    Device,
}

/// A descriptor that does not block.
pub(crate) struct Device {
    handle: Handle,
    pub(crate) sort: Sort,
}

impl Device {
    /// Takes a descriptor as it is.
    ///
    /// # Errors
    ///
    /// If it is a file or a directory, which are always ready and would hold up all other sockets.
    pub(crate) fn new(owned: Owned) -> io::Result<Device> {
        let handle = Handle::new(owned)?;
        let sort = match SockRef::from(&handle).r#type() {
            Ok(Type::DGRAM) => Sort::Datagrams,
            Ok(Type::STREAM) => Sort::Stream,
            Ok(_) => Sort::Packets,
            Err(_) => Sort::Device,
        };
        Ok(Device { handle, sort })
    }

    /// What can be waited for.
    pub(crate) fn handle(&self) -> &impl Lend {
        &self.handle
    }

    /// Has every call on it return at once.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        SockRef::from(&self.handle).set_nonblocking(true)
    }

    /// Sends small pieces at once, if it is a connection that can.
    pub(crate) fn set_nodelay(&self) {
        let _ = SockRef::from(&self.handle).set_tcp_nodelay(true);
    }

    /// Reads what is there, or one packet. What can only be written to has nobody who reads: that is an end.
    pub(crate) fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        self.handle.read(room)
    }

    /// Writes as much as the system takes, or one packet. Raises no signal.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.sort == Sort::Device {
            return self.handle.write(bytes);
        }
        SockRef::from(&self.handle).send_with_flags(bytes, FLAGS)
    }

    /// Whether a write that failed is about that one datagram, or the moment.
    pub(crate) fn is_about_one(&self, error: &io::Error) -> bool {
        self.sort == Sort::Datagrams && matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS))
    }
}

#[cfg(unix)]
const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
#[cfg(windows)]
const FLAGS: i32 = 0;

#[cfg(unix)]
mod unix {
    use super::Owned;
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::fs::File;
    use std::io::{self, ErrorKind, Read, Write};
    use std::os::fd::{AsFd, BorrowedFd};

    pub(super) struct Handle(File);

    impl Handle {
        pub(super) fn new(owned: Owned) -> io::Result<Handle> {
            let file = File::from(owned);
            let kind = file.metadata()?.file_type();
            if kind.is_file() || kind.is_dir() {
                return Err(ErrorKind::Unsupported.into());
            }
            Ok(Handle(file))
        }

        /// What can only be written to refuses to be read.
        pub(super) fn read(&self, room: &mut [u8]) -> io::Result<usize> {
            match (&self.0).read(room) {
                Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => Ok(0),
                read => read,
            }
        }

        /// Writes, unless that would raise the signal of a pipe without a reader, which ends programs.
        pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
            poll(&mut polled, PollTimeout::ZERO)?;
            if polled[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR)) {
                return Err(Errno::EPIPE.into());
            }
            (&self.0).write(bytes)
        }
    }

    impl AsFd for Handle {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(windows)]
mod windows {
    use super::Owned;
    use socket2::Socket;
    use std::io::{self, Read, Write};
    use std::os::windows::io::{AsSocket, BorrowedSocket, OwnedSocket};

    pub(super) struct Handle(Socket);

    impl Handle {
        pub(super) fn new(owned: Owned) -> io::Result<Handle> {
            Ok(Handle(OwnedSocket::try_from(owned)?.into()))
        }

        pub(super) fn read(&self, room: &mut [u8]) -> io::Result<usize> {
            (&self.0).read(room)
        }

        pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            (&self.0).write(bytes)
        }
    }

    impl AsSocket for Handle {
        fn as_socket(&self) -> BorrowedSocket<'_> {
            self.0.as_socket()
        }
    }
}
