//! Sockets of other processes, and the stream over which they come.
#![forbid(unsafe_code)]

use super::ready::Ready;
use crate::driver::Descriptor;
use crate::driver::sys::os::{self, OwnedSocket, SystemUnixListener, SystemUnixStream};
use crate::driver::sys::passing;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

/// Descriptors that this process may have open at once, as its soft limit says now (getrlimit(2): RLIMIT_NOFILE); 65 536
/// on Windows, which has no such limit. A bound on connections lies somewhat below, because files and listeners need some.
pub fn descriptors_max() -> usize {
    os::descriptors_max()
}

/// What a passed socket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SocketKind {
    /// A listening TCP socket.
    TcpListener,
    /// A listening Unix socket for streams.
    UnixListener,
    /// A UDP socket.
    UdpSocket,
    /// Something else, a connection or a pipe perhaps.
    Other,
}

impl fmt::Display for SocketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SocketKind::TcpListener => "a TCP listener",
            SocketKind::UnixListener => "a Unix listener",
            SocketKind::UdpSocket => "a UDP socket",
            SocketKind::Other => "neither a listener nor a UDP socket",
        })
    }
}

/// A socket that another process opened, or that goes to one, with a name by which the two know it. Several may have one
/// name. Dropping it closes this process's handle.
#[derive(Debug)]
pub struct PassedSocket {
    name: String,
    descriptor: Descriptor,
}

impl PassedSocket {
    /// The most bytes of a name.
    pub const NAME_BYTES_MAX: usize = 255;

    /// Names a socket: one of the standard library, such as
    /// [`TcpListener::duplicate`](crate::net::TcpListener::duplicate) gives.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the name has more than [`NAME_BYTES_MAX`](Self::NAME_BYTES_MAX) bytes.
    pub fn new(name: impl Into<String>, socket: impl Into<Descriptor>) -> io::Result<PassedSocket> {
        let name = name.into();
        if name.len() > PassedSocket::NAME_BYTES_MAX {
            let text = format!("the name of a passed socket has {} bytes", name.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(PassedSocket { name, descriptor: socket.into() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is, as the system says.
    pub fn kind(&self) -> SocketKind {
        let Ok(address) = self.descriptor.local_addr() else { return SocketKind::Other };
        let is_inet = address.as_socket().is_some();
        match (self.descriptor.is_datagram(), passing::is_listening(&self.descriptor)) {
            (true, _) if is_inet => SocketKind::UdpSocket,
            (false, true) if is_inet => SocketKind::TcpListener,
            (false, true) if address.domain() == socket2::Domain::UNIX => SocketKind::UnixListener,
            _ => SocketKind::Other,
        }
    }

    /// Its address, if it has one of IP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.descriptor.local_addr().ok()?.as_socket()
    }

    /// The socket, as a TCP listener.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is something else; it is closed then.
    pub fn into_tcp_listener(self) -> io::Result<TcpListener> {
        Ok(self.owned(SocketKind::TcpListener)?.into())
    }

    /// The socket, as a Unix listener.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is something else; it is closed then.
    pub fn into_unix_listener(self) -> io::Result<SystemUnixListener> {
        Ok(os::unix_listener(self.owned(SocketKind::UnixListener)?))
    }

    /// The socket, as a UDP socket.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is something else; it is closed then.
    pub fn into_udp_socket(self) -> io::Result<UdpSocket> {
        Ok(self.owned(SocketKind::UdpSocket)?.into())
    }

    fn owned(self, wanted: SocketKind) -> io::Result<OwnedSocket> {
        let kind = self.kind();
        if kind != wanted {
            let text = format!("the passed socket {:?} is {kind}, not {wanted}", self.name);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        OwnedSocket::try_from(self.descriptor)
    }
}

/// What came over a [`Wire`] beside bytes; dropping it closes it.
pub(crate) use crate::driver::Descriptor as Carried;

/// The descriptors that the process was started with, from the third on.
pub(crate) fn inherited(count: usize) -> io::Result<Vec<Descriptor>> {
    passing::inherited(count)
}

/// Listens at a path that no other user may connect to; a socket at which nobody answers is removed first.
pub(crate) fn listen_privately(path: &Path) -> io::Result<SystemUnixListener> {
    passing::listen_privately(path)
}

/// A stream between two processes of this machine that carries bytes and sockets. It belongs to no shard; its futures wait
/// on the shard that polls them.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: SystemUnixStream,
}

impl Wire {
    pub(crate) fn new(stream: SystemUnixStream) -> Wire {
        Wire { stream }
    }

    /// The user of the other process if this one has no reason to trust it: it is neither the same nor root.
    pub(crate) fn stranger(&self) -> io::Result<Option<u32>> {
        let user = passing::peer_user(&self.stream)?;
        Ok((user != 0 && user != passing::own_user()).then_some(user))
    }

    /// Sends all bytes, and a socket with the first of them. Dropping the future may leave a part of them sent.
    pub(crate) async fn send(&self, mut bytes: &[u8], carried: Option<&PassedSocket>) -> io::Result<()> {
        let mut carried = carried.map(|socket| &socket.descriptor);
        while !bytes.is_empty() {
            match passing::send(&self.stream, bytes, carried) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    carried = None;
                }
                Err(error) => self.put_off(error, |ready| async move { ready.writable().await }).await?,
            }
        }
        Ok(())
    }

    /// Fills `room`, and puts what is carried with its bytes into `carried`. It reads no byte more, so what comes belongs
    /// to these bytes.
    pub(crate) async fn receive(&self, room: &mut [u8], carried: &mut Vec<Descriptor>) -> io::Result<()> {
        let mut filled = 0;
        while filled < room.len() {
            match passing::receive(&self.stream, &mut room[filled..]) {
                Ok((received, descriptors)) => {
                    carried.extend(descriptors);
                    if received == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    filled += received;
                }
                Err(error) => self.put_off(error, |ready| async move { ready.readable().await }).await?,
            }
        }
        Ok(())
    }

    /// Waits if the system says that a call would, and else fails.
    async fn put_off<F: Future<Output = io::Result<()>>>(
        &self,
        error: io::Error,
        wait: impl FnOnce(Ready) -> F,
    ) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::WouldBlock => wait(Ready::new(&self.stream)?).await,
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        }
    }
}
