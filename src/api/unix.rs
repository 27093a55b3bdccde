//! Unix sockets: listeners and streams.
#![forbid(unsafe_code)]

use super::methods::{connection, receiving, sending};
use super::stream::{Flow, closed};
use super::tcp::{OwnedReadHalf, OwnedWriteHalf, accept};
use crate::driver::Descriptor;
use crate::driver::sys::os::{SystemUnixStream, lends};
use crate::shard::{Close, Core, EndpointId, Kind, Listener, Stream, Waiter};
use socket2::{Domain, SockAddr};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Connections that the kernel completes ahead of accepting.
const BACKLOG: i32 = 4096;

/// A connection over a Unix socket. As [`TcpStream`](crate::net::TcpStream).
#[derive(Debug)]
pub struct UnixStream {
    pub(super) flow: Rc<Flow>,
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
        let id = core.with(|state| state.open_listener(Some(socket), Listener::new(None)))??;
        Ok(UnixListener { core, id, path: path.as_ref().to_owned() })
    }

    /// The next connection. Cancel-safe; see [`TcpListener::accept`](crate::net::TcpListener::accept).
    ///
    /// # Errors
    ///
    /// If the listener is closed or cannot go on.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        let flow = accept(&self.core, self.id).await?;
        Ok(UnixStream { flow: Rc::new(flow) })
    }

    /// Where it listens.
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
