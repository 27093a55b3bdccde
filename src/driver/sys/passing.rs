//! Sockets that come from another process or go to one: inherited from whoever started the program, or passed over a Unix
//! socket.
//!
//! Every call returns at once. A descriptor that came is owned from the moment it is there, and programs that are started
//! do not get it. Where there are no Unix sockets every call says so.
#![forbid(unsafe_code)]

pub(crate) use system::{inherited, is_listening, listen_privately, own_user, peer_user, receive, send};

#[cfg(unix)]
mod system {
    use crate::driver::Descriptor;
    use crate::driver::sys::os::{self, Owned, SystemUnixListener, SystemUnixStream, libc};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use nix::sys::stat::{Mode, fchmod};
    use socket2::{Domain, SockAddr, Socket, Type};
    use std::io::{self, IoSlice};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::path::Path;

    /// The first descriptor that a service manager passes (sd_listen_fds(3): SD_LISTEN_FDS_START).
    const FIRST: i32 = 3;

    /// The descriptors that the process was started with, beside the three that every process has.
    pub(crate) fn inherited(count: usize) -> io::Result<Vec<Descriptor>> {
        Ok(os::inherited(FIRST, count)?.into_iter().map(Descriptor::from).collect())
    }

    /// Sends bytes, and a descriptor with the first of them. How many bytes left.
    pub(crate) fn send(
        stream: &SystemUnixStream,
        bytes: &[u8],
        carried: Option<&Descriptor>,
    ) -> io::Result<usize> {
        let raw = carried.map(|descriptor| [descriptor.raw()]);
        let control: Vec<_> = raw.iter().map(|raw| ControlMessage::ScmRights(raw)).collect();
        let flags = MsgFlags::from_bits_retain(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &control, flags, None)?)
    }

    /// Receives bytes, none at the end of the stream, and the descriptors that came with them.
    pub(crate) fn receive(
        stream: &SystemUnixStream,
        room: &mut [u8],
    ) -> io::Result<(usize, Vec<Descriptor>)> {
        let (len, descriptors) = os::receive_with_descriptors(stream, room)?;
        Ok((len, descriptors.into_iter().map(Descriptor::from).collect()))
    }

    /// Whether it is a socket that listens.
    pub(crate) fn is_listening(descriptor: &Descriptor) -> bool {
        use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
        getsockopt(descriptor, AcceptConn).unwrap_or(false)
    }

    /// The user that this process acts for.
    pub(crate) fn own_user() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// The user whose process connected (unix(7): SO_PEERCRED).
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn peer_user(stream: &SystemUnixStream) -> io::Result<u32> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        Ok(getsockopt(stream, PeerCredentials)?.uid())
    }

    /// The user whose process connected (getpeereid(3)).
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) fn peer_user(stream: &SystemUnixStream) -> io::Result<u32> {
        Ok(nix::unistd::getpeereid(stream)?.0.as_raw())
    }

    /// Listens at a path that no other user may connect to. A socket at which nobody answers is removed first.
    pub(crate) fn listen_privately(path: &Path) -> io::Result<SystemUnixListener> {
        let address = SockAddr::unix(path)?;
        remove_stale(path, &address)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Before it has a name, where the system takes the mode from there; else as soon as it has one.
        let early = fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).is_ok();
        socket.bind(&address)?;
        let is_private = early && std::fs::symlink_metadata(path)?.permissions().mode() & 0o077 == 0;
        if !is_private {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        }
        socket.listen(BACKLOG)?;
        Ok(Owned::from(socket).into())
    }

    /// Those who wait; each is one process that wants to take over.
    const BACKLOG: i32 = 16;

    fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
        let kind = match std::fs::symlink_metadata(path) {
            Ok(found) => found.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !kind.is_socket() {
            let text = "there is something at the path that is no socket; it stays where it is";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Somebody whose backlog is full is somebody too.
        probe.set_nonblocking(true)?;
        match probe.connect(address) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(not(unix))]
mod system {
    use crate::driver::Descriptor;
    use crate::driver::sys::os::{SystemUnixListener, SystemUnixStream};
    use std::io;
    use std::path::Path;

    fn unsupported<T>() -> io::Result<T> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "sockets are passed over Unix sockets, which this system has not",
        ))
    }

    pub(crate) fn inherited(_: usize) -> io::Result<Vec<Descriptor>> {
        unsupported()
    }

    pub(crate) fn send(_: &SystemUnixStream, _: &[u8], _: Option<&Descriptor>) -> io::Result<usize> {
        unsupported()
    }

    pub(crate) fn receive(_: &SystemUnixStream, _: &mut [u8]) -> io::Result<(usize, Vec<Descriptor>)> {
        unsupported()
    }

    /// Sockets are made from those of the standard library alone here.
    pub(crate) fn is_listening(descriptor: &Descriptor) -> bool {
        !descriptor.is_datagram()
    }

    pub(crate) fn own_user() -> u32 {
        0
    }

    pub(crate) fn peer_user(_: &SystemUnixStream) -> io::Result<u32> {
        unsupported()
    }

    pub(crate) fn listen_privately(_: &Path) -> io::Result<SystemUnixListener> {
        unsupported()
    }
}
