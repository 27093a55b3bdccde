//! Peers of the code under test: blocking sockets, files and threads of the system, or of the simulated machine if the
//! test runs on one.
//!
//! The names and calls are those of the standard library, so that a test reads the same. Which of the two a call means
//! is decided by the configuration that the current test runs with, see [`enter`].

use anabranch::Config;
use anabranch::driver::Descriptor;
#[cfg(feature = "sim")]
use anabranch::sim::alone::{self, Alone, Socket};
use socket2::{Domain, SockAddr, Type};
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(windows)]
pub(crate) use std::net::{TcpListener as SystemListener, TcpStream as SystemStream};
/// The system's Unix sockets. Where it has none, a connection over the loopback interface is as good for most tests; the
/// others do not run there.
#[cfg(unix)]
pub(crate) use std::os::unix::net::{UnixListener as SystemListener, UnixStream as SystemStream};

/// Two ends of such a connection.
#[cfg(unix)]
pub(crate) fn system_pair() -> io::Result<(SystemStream, SystemStream)> {
    SystemStream::pair()
}

/// Two ends of such a connection.
#[cfg(windows)]
pub(crate) fn system_pair() -> io::Result<(SystemStream, SystemStream)> {
    let listener = SystemListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let near = SystemStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

thread_local! {
    #[cfg(feature = "sim")]
    static MACHINE: RefCell<Option<Alone>> = const { RefCell::new(None) };
    /// Paths that a test of this thread has asked for, kept until the next test begins.
    static FOLDERS: RefCell<Vec<tempfile::TempDir>> = const { RefCell::new(Vec::new()) };
}

/// From now on peers of this thread live on the machine of this configuration.
pub(crate) fn enter(config: &Config) {
    #[cfg(feature = "sim")]
    MACHINE.set(Alone::of(config));
    FOLDERS.take();
    let _ = config;
}

/// Whether a configuration is one of a simulated machine.
pub(crate) fn is_simulated(config: &Config) -> bool {
    #[cfg(feature = "sim")]
    return Alone::of(config).is_some();
    #[cfg(not(feature = "sim"))]
    {
        let _ = config;
        false
    }
}

#[cfg(feature = "sim")]
fn machine() -> Option<Alone> {
    MACHINE.with_borrow(Clone::clone)
}

/// A call of the simulated machine, if the test runs on one, or else of the system.
macro_rules! here {
    ($machine:ident => $simulated:expr, $real:expr) => {{
        #[cfg(feature = "sim")]
        if let Some($machine) = machine() {
            return Ok($simulated);
        }
        Ok($real)
    }};
}

/// The clock of the machine that the test runs on.
pub(crate) fn now() -> Instant {
    #[cfg(feature = "sim")]
    if let Some(machine) = machine() {
        return machine.now();
    }
    Instant::now()
}

/// As `std::thread::sleep`, in the time of the machine; nothing runs on the shard of this thread meanwhile.
pub(crate) fn pause(duration: Duration) {
    #[cfg(feature = "sim")]
    if let Some(machine) = machine() {
        return machine.pass(duration);
    }
    std::thread::sleep(duration);
}

/// As `std::thread::spawn`, for a thread that waits for peers and for nothing else that the shard does.
pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Thread<T> {
    #[cfg(feature = "sim")]
    if let Some(machine) = machine() {
        let inside = machine.clone();
        return Thread::Simulated(machine.spawn(move || {
            MACHINE.set(Some(inside));
            work()
        }));
    }
    Thread::Real(std::thread::spawn(work))
}

/// A thread beside the shard.
pub(crate) enum Thread<T> {
    Real(std::thread::JoinHandle<T>),
    #[cfg(feature = "sim")]
    Simulated(alone::Thread<T>),
}

impl<T> Thread<T> {
    pub(crate) fn join(self) -> std::thread::Result<T> {
        match self {
            Thread::Real(thread) => thread.join(),
            #[cfg(feature = "sim")]
            Thread::Simulated(thread) => thread.join(),
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        match self {
            Thread::Real(thread) => thread.is_finished(),
            #[cfg(feature = "sim")]
            Thread::Simulated(thread) => thread.is_finished(),
        }
    }
}

/// A peer: a wrapper for each of the standard library's types, in the same words.
macro_rules! peers {
    ($($name:ident $real:ty;)*) => {$(
        #[derive(Debug)]
        pub(crate) enum $name {
            Real($real),
            #[cfg(feature = "sim")]
            Simulated(Socket),
        }

        impl From<$name> for Descriptor {
            fn from(peer: $name) -> Descriptor {
                match peer {
                    $name::Real(real) => real.into(),
                    #[cfg(feature = "sim")]
                    $name::Simulated(socket) => socket.into(),
                }
            }
        }
    )*};
}

peers! {
    TcpStream std::net::TcpStream;
    TcpListener std::net::TcpListener;
    UdpSocket std::net::UdpSocket;
    UnixStream SystemStream;
    UnixListener SystemListener;
    FreshSocket socket2::Socket;
}

/// The same call on either kind.
macro_rules! on {
    ($peer:expr, $real:ident => $there:expr, $simulated:ident => $here:expr) => {
        match $peer {
            Self::Real($real) => $there,
            #[cfg(feature = "sim")]
            Self::Simulated($simulated) => $here,
        }
    };
}

/// What both kinds of streams can do.
macro_rules! streams {
    ($($name:ident)*) => {$(
        impl $name {
            pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                on!(self, real => real.shutdown(how), socket => socket.shutdown(how))
            }

            pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                on!(self, real => real.set_nonblocking(nonblocking),
                    socket => { socket.set_nonblocking(nonblocking); Ok(()) })
            }

            /// A simulated call that can never end fails by itself.
            pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                on!(self, real => real.set_read_timeout(timeout), _socket => { let _ = timeout; Ok(()) })
            }
        }

        impl Read for &$name {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                match self {
                    $name::Real(real) => (&*real).read(into),
                    #[cfg(feature = "sim")]
                    $name::Simulated(socket) => (&*socket).read(into),
                }
            }
        }

        impl Read for $name {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                (&*self).read(into)
            }
        }

        impl Write for &$name {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                match self {
                    $name::Real(real) => (&*real).write(bytes),
                    #[cfg(feature = "sim")]
                    $name::Simulated(socket) => (&*socket).write(bytes),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        impl Write for $name {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                (&*self).write(bytes)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
    )*};
}

streams! { TcpStream UnixStream }

impl TcpStream {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
        here!(machine => TcpStream::Simulated(machine.connect(&address.into())?),
            TcpStream::Real(std::net::TcpStream::connect(address)?))
    }

    /// The stream as one of the current shard.
    pub(crate) fn adopt(self) -> io::Result<anabranch::net::TcpStream> {
        on!(self, real => anabranch::net::TcpStream::from_std(real),
            socket => anabranch::net::TcpStream::from_descriptor(socket.into()))
    }

    /// Closes it with a reset.
    pub(crate) fn reset(self) -> io::Result<()> {
        on!(self, real => socket2::SockRef::from(&real).set_linger(Some(Duration::ZERO)),
            socket => socket.reset())
    }

    pub(crate) fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        on!(self, real => real.set_nodelay(nodelay), _socket => { let _ = nodelay; Ok(()) })
    }

    /// Sizes of the kernel's buffers; a simulated kernel has small ones.
    pub(crate) fn set_buffer_sizes(&self, receive: usize, send: usize) -> io::Result<()> {
        on!(self, real => {
            socket2::SockRef::from(real).set_recv_buffer_size(receive)?;
            socket2::SockRef::from(real).set_send_buffer_size(send)
        }, _socket => { let _ = (receive, send); Ok(()) })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        on!(self, real => real.local_addr(), socket => inet(socket.local_addr()))
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        on!(self, real => real.peer_addr(), socket => inet(socket.peer_addr()))
    }
}

impl TcpListener {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        here!(machine => TcpListener::Simulated(machine.listen(&address.into(), 128)?),
            TcpListener::Real(std::net::TcpListener::bind(address)?))
    }

    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        on!(self, real => real.accept().map(|(stream, from)| (TcpStream::Real(stream), from)), socket => {
            let stream = TcpStream::Simulated(socket.accept()?);
            let from = stream.peer_addr()?;
            Ok((stream, from))
        })
    }

    /// The listener as one of the current shard.
    pub(crate) fn adopt(self) -> io::Result<anabranch::net::TcpListener> {
        on!(self, real => anabranch::net::TcpListener::from_std(real),
            socket => anabranch::net::TcpListener::from_descriptor(socket.into()))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        on!(self, real => real.local_addr(), socket => inet(socket.local_addr()))
    }
}

impl UdpSocket {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
        here!(machine => UdpSocket::Simulated(machine.datagrams(address)?),
            UdpSocket::Real(std::net::UdpSocket::bind(address)?))
    }

    /// The socket as one of the current shard.
    pub(crate) fn adopt(self) -> io::Result<anabranch::net::UdpSocket> {
        on!(self, real => anabranch::net::UdpSocket::from_std(real),
            socket => anabranch::net::UdpSocket::from_descriptor(socket.into()))
    }

    pub(crate) fn recv_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        on!(self, real => real.recv_from(into), socket => socket.recv_from(into))
    }

    pub(crate) fn recv(&self, into: &mut [u8]) -> io::Result<usize> {
        self.recv_from(into).map(|(bytes, _)| bytes)
    }

    pub(crate) fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        on!(self, real => real.send_to(bytes, to), socket => socket.send_to(bytes, to))
    }

    /// A simulated call that can never end fails by itself.
    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        on!(self, real => real.set_read_timeout(timeout), _socket => { let _ = timeout; Ok(()) })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        on!(self, real => real.local_addr(), socket => inet(socket.local_addr()))
    }
}

impl UnixStream {
    pub(crate) fn pair() -> io::Result<(UnixStream, UnixStream)> {
        here!(machine => {
            let (a, b) = machine.pair()?;
            (UnixStream::Simulated(a), UnixStream::Simulated(b))
        }, {
            let (a, b) = system_pair()?;
            (UnixStream::Real(a), UnixStream::Real(b))
        })
    }
}

#[cfg(unix)]
impl UnixListener {
    pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
        here!(machine => UnixListener::Simulated(machine.listen(&SockAddr::unix(path)?, 128)?),
            UnixListener::Real(SystemListener::bind(path)?))
    }

    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        on!(self, real => real.accept().map(|(stream, _)| UnixStream::Real(stream)),
            socket => socket.accept().map(UnixStream::Simulated))
    }
}

/// A stream socket that neither listens nor is connected.
impl FreshSocket {
    pub(crate) fn new(domain: Domain) -> io::Result<FreshSocket> {
        here!(machine => FreshSocket::Simulated(machine.stream(domain)?),
            FreshSocket::Real(socket2::Socket::new(domain, Type::STREAM, None)?))
    }

    pub(crate) fn bind(&self, address: SocketAddr) -> io::Result<()> {
        on!(self, real => real.bind(&address.into()), socket => socket.bind(&address.into()))
    }

    pub(crate) fn listen(&self, backlog: i32) -> io::Result<()> {
        on!(self, real => real.listen(backlog), socket => socket.listen(backlog))
    }

    /// A simulated machine gives up by itself.
    pub(crate) fn connect_timeout(&self, to: &SockAddr, timeout: Duration) -> io::Result<()> {
        on!(self, real => real.connect_timeout(to, timeout), socket => { let _ = timeout; socket.connect(to) })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SockAddr> {
        on!(self, real => real.local_addr(), socket => socket.local_addr())
    }
}

/// Makes a file of these bytes.
pub(crate) fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    here!(machine => machine.write_file(path, bytes.as_ref())?, std::fs::write(path, bytes)?)
}

/// An empty file that is open for reading, for writing or both.
pub(crate) fn file(read: bool, write: bool) -> io::Result<Descriptor> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("file");
    write_file(&path, "")?;
    FOLDERS.with_borrow_mut(|folders| folders.push(folder));
    here!(machine => machine.file(&path, read, write)?,
        std::fs::OpenOptions::new().read(read).write(write).open(&path)?.into())
}

#[cfg(feature = "sim")]
fn inet(address: io::Result<SockAddr>) -> io::Result<SocketAddr> {
    Ok(address?.as_socket().expect("an address of IP"))
}
