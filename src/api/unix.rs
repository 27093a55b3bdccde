//! Unix sockets: listeners and streams.
#![forbid(unsafe_code)]

use super::listening::{duplicate, hold, resume, stop};
use super::methods::{accepting, connection, receiving, sending};
use super::stream::{Flow, closed};
use super::tcp::{OwnedReadHalf, OwnedWriteHalf, accept};
use crate::driver::Descriptor;
use crate::driver::sys::os::{SystemUnixListener, SystemUnixStream, lends, path_of, unix_listener};
use crate::shard::{Close, Core, EndpointId, Kind, Listener, Share, Stream, Waiter};
use socket2::{Domain, SockAddr};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Connections that the kernel completes ahead of accepting.
const BACKLOG: i32 = 4096;

/// A connection over a Unix socket. As [`TcpStream`](crate::net::TcpStream).
#[derive(Debug)]
pub struct UnixStream {
    pub(crate) flow: Rc<Flow>,
}

impl UnixStream {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// If nobody listens there. Where there is no ring and the listener's backlog is full, `WouldBlock`: a
    /// connect to a Unix socket cannot be waited for.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<UnixStream> {
        let core = Core::required()?;
        let socket = core.config.host.stream_socket(Domain::UNIX)?;
        let to = SockAddr::unix(path)?;
        let stream = UnixStream::open(core, socket, Stream::connecting_to(to, Waiter::None))?;
        stream.flow.connected().await?;
        Ok(stream)
    }

    /// Two connected streams.
    ///
    /// # Errors
    ///
    /// If the system is out of descriptors, or as [`from_std`](Self::from_std).
    pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
        let core = Core::required()?;
        let (a, b) = core.config.host.pair()?;
        let a = UnixStream::open(Rc::clone(&core), a, Stream::default())?;
        Ok((a, UnixStream::open(core, b, Stream::default())?))
    }

    fn open(core: Rc<Core>, fd: Descriptor, stream: Stream) -> io::Result<UnixStream> {
        let id = core.with(|state| state.open(fd, Kind::Stream(stream)))??;
        Ok(UnixStream { flow: Rc::new(Flow::new(core, id)) })
    }

    /// Takes a connected stream of the standard library into the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here, or it has [`Limits::endpoints_max`](crate::Limits) endpoints.
    pub fn from_std(stream: SystemUnixStream) -> io::Result<UnixStream> {
        UnixStream::from_descriptor(stream.into())
    }

    /// As `from_std`, for sockets of simulated hosts too.
    #[doc(hidden)]
    pub fn from_descriptor(stream: Descriptor) -> io::Result<UnixStream> {
        UnixStream::open(Core::required()?, stream, Stream::default())
    }

    receiving!();
    sending!();
    connection!(SystemUnixStream);

    /// Splits the connection into owned halves, for two tasks of this shard.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        (OwnedReadHalf { flow: Rc::clone(&self.flow) }, OwnedWriteHalf { flow: self.flow })
    }
}

lends! { UnixStream, self => self.flow.descriptor() }

#[cfg(feature = "futures-io")]
impl UnixStream {
    pub(crate) fn flow(&self) -> &Flow {
        &self.flow
    }
}

/// The path of a socket's address, empty if it has none.
fn unix_path(address: &SockAddr) -> io::Result<PathBuf> {
    if address.domain() != Domain::UNIX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket is no Unix socket"));
    }
    Ok(path_of(address).map(Path::to_owned).unwrap_or_default())
}

/// A listening Unix socket. The file of the socket stays when the listener ends, as in the standard library.
#[derive(Debug)]
pub struct UnixListener {
    core: Rc<Core>,
    id: EndpointId,
    path: PathBuf,
}

impl UnixListener {
    /// Listens at `path`, which must not exist.
    ///
    /// # Errors
    ///
    /// If the path exists, is too long, or cannot be written.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<UnixListener> {
        let core = Core::required()?;
        let socket = core.config.host.stream_socket(Domain::UNIX)?;
        socket.bind(&SockAddr::unix(&path)?)?;
        socket.listen(BACKLOG)?;
        UnixListener::open(core, Some(socket), None)
    }

    /// Takes a listening socket of the standard library into the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here, it has [`Limits::endpoints_max`](crate::Limits) endpoints, or the socket is no Unix socket.
    pub fn from_std(listener: SystemUnixListener) -> io::Result<UnixListener> {
        UnixListener::open(Core::required()?, Some(listener.into()), None)
    }

    pub(super) fn open(
        core: Rc<Core>,
        socket: Option<Descriptor>,
        share: Option<Share>,
    ) -> io::Result<UnixListener> {
        let path = match &socket {
            Some(socket) => unix_path(&socket.local_addr()?)?,
            None => PathBuf::new(),
        };
        let id = core.with(|state| state.open_listener(socket, Listener::new(share)))??;
        Ok(UnixListener { core, id, path })
    }

    /// The next connection. Cancel-safe; see [`TcpListener::accept`](crate::net::TcpListener::accept).
    ///
    /// # Errors
    ///
    /// If the listener is closed or cannot go on; [`Error::Stopped`](crate::Error::Stopped) as there.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        let flow = accept(&self.core, self.id).await?;
        Ok(UnixStream { flow: Rc::new(flow) })
    }

    accepting!(UnixStream);

    /// Another handle of the listening socket; see [`TcpListener::duplicate`](crate::net::TcpListener::duplicate).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn duplicate(&self) -> io::Result<SystemUnixListener> {
        Ok(unix_listener(duplicate(&self.core, self.id)?))
    }

    /// Where it listens; empty for an address without a path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id of the endpoint.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Stops listening and waits until the socket is closed.
    pub async fn close(self) {
        closed(&self.core, self.id, Close::Abort).await;
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        let _ = self.core.with(|state| state.close(self.id, Close::Abort, Waiter::None));
    }
}
