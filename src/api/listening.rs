//! Listening before there are shards, and leaving off.
//!
//! A server binds on a plain thread, so that whoever starts it hears what is wrong with an address, and then gives each
//! shard its part:
//!
//! 1. [`ListeningSockets`] are made: bound here, or *given* (inherited from a service manager, received from a
//!    predecessor). They listen from then on; connections wait in the system's backlog.
//! 2. [`spread`](ListeningSockets::spread) makes a [`ShardListeners`] for each shard, which can be sent there.
//! 3. [`open`](ShardListeners::open), on the shard, makes them listeners of that shard, members of one group.
//!
//! How many sockets there are need not be how many shards there are. Too few are shared: a shard without a socket of its
//! own accepts on another handle of one of the others'. Of too many some shards get several, since a socket that shares
//! its port and is closed takes the connections of its backlog with it.
#![forbid(unsafe_code)]

use super::tcp::{Lend, TcpListener, inet, listen_with};
use super::unix::UnixListener;
use crate::driver::sys::os::{self, HAS_SHARED_PORTS, OwnedSocket, SystemUnixListener};
use crate::driver::{Descriptor, Host};
use crate::error::Error;
use crate::shard::{Core, Distribution, EndpointId, Group, Remote, Share, Waiter};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

/// Connections that the kernel completes ahead of accepting, where nothing else is said.
const BACKLOG: u32 = 4096;

/// How to listen on an address.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ListenOptions {
    /// A socket for each shard, all on one port (SO_REUSEPORT), so that the kernel spreads connections; else one socket
    /// that all shards accept on. The default; on Windows there is one socket always.
    pub reuse_port: bool,
    /// Connections that the system completes ahead of accepting, per socket; it may allow less (`net.core.somaxconn` on
    /// Linux). 4096 by default.
    pub backlog: u32,
    /// An address of IPv6 takes connections of IPv6 alone. Off by default.
    pub only_v6: bool,
    /// TCP_NODELAY of accepted connections. On by default, because the runtime joins small sends itself.
    pub nodelay: bool,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions { reuse_port: true, backlog: BACKLOG, only_v6: false, nodelay: true }
    }
}

/// Sockets that listen on one address and belong to no shard yet. See [`ShardListeners`].
///
/// ```
/// use anabranch::net::{ListenOptions, ListeningSockets};
/// use anabranch::{Distribution, Runtime};
/// use std::sync::Mutex;
///
/// let sockets = ListeningSockets::bind("127.0.0.1:0".parse().unwrap(), 2, &ListenOptions::default())?;
/// let parts = Mutex::new(sockets.spread(2, Distribution::Balanced)?);
/// Runtime::builder().shards(2).run(move |_| {
///     let part = parts.lock().unwrap().pop().expect("a part for each shard");
///     async move {
///         for listener in part.open()? {
///             listener.stop_accepting().await;
///             while let Some((stream, _)) = listener.next().await? {
///                 stream.close().await?;
///             }
///             listener.close().await;
///         }
///         Ok(())
///     }
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ListeningSockets {
    sockets: Vec<Descriptor>,
}

impl ListeningSockets {
    /// Listens on `address` for so many shards. With port 0 all sockets get the same port.
    ///
    /// May be called on any thread. Sockets of a simulated host come from a call on its shards.
    ///
    /// # Errors
    ///
    /// `InvalidInput` without a shard; else if the address cannot be bound.
    pub fn bind(address: SocketAddr, shards: usize, options: &ListenOptions) -> io::Result<ListeningSockets> {
        ListeningSockets::bind_prepared(address, shards, options, &|_| Ok(()))
    }

    /// The same; `prepare` sees each socket when it is bound, before it listens.
    pub(crate) fn bind_prepared(
        address: SocketAddr,
        shards: usize,
        options: &ListenOptions,
        prepare: &dyn Fn(&dyn Lend) -> io::Result<()>,
    ) -> io::Result<ListeningSockets> {
        require_shards(shards)?;
        let host = Core::current().map_or_else(Host::default, |core| core.config.host.clone());
        let shared = options.reuse_port && HAS_SHARED_PORTS;
        let options = ListenOptions { reuse_port: shared, ..options.clone() };
        let first = listen_with(&host, address, &options, prepare)?;
        let bound = inet(first.local_addr()?)?;
        let mut sockets = vec![first];
        for _ in 1..if shared { shards } else { 1 } {
            sockets.push(listen_with(&host, bound, &options, prepare)?);
        }
        Ok(ListeningSockets { sockets })
    }

    /// Takes sockets that listen already, all on one address.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is none.
    pub fn from_std(sockets: Vec<std::net::TcpListener>) -> io::Result<ListeningSockets> {
        ListeningSockets::given(sockets.into_iter().map(Descriptor::from).collect())
    }

    /// As [`from_std`](Self::from_std), for Unix sockets.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is none.
    pub fn from_std_unix(sockets: Vec<SystemUnixListener>) -> io::Result<ListeningSockets> {
        ListeningSockets::given(sockets.into_iter().map(Descriptor::from).collect())
    }

    fn given(sockets: Vec<Descriptor>) -> io::Result<ListeningSockets> {
        if sockets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no socket to listen on was given"));
        }
        Ok(ListeningSockets { sockets })
    }

    /// The address of TCP sockets.
    ///
    /// # Errors
    ///
    /// If they are Unix sockets.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        inet(self.sockets[0].local_addr()?)
    }

    /// Another handle of each TCP socket, to pass them on to another process.
    ///
    /// # Errors
    ///
    /// If the process is out of descriptors; in a simulation, always.
    pub fn duplicate(&self) -> io::Result<Vec<std::net::TcpListener>> {
        let handles = self.sockets.iter().map(|socket| Ok(OwnedSocket::try_from(another(socket)?)?.into()));
        handles.collect()
    }

    /// A part for each of so many shards. What `distribution` says holds for each group of sockets: there is one
    /// group, or with more sockets than shards several; with [`Distribution::OneAcceptor`] the first shard accepts on
    /// all sockets.
    ///
    /// # Errors
    ///
    /// `InvalidInput` without a shard; if the process is out of descriptors, where sockets have to be shared.
    pub fn spread(self, shards: usize, distribution: Distribution) -> io::Result<Vec<ShardListeners>> {
        require_shards(shards)?;
        let address = self.local_addr().ok();
        let one_acceptor = distribution == Distribution::OneAcceptor || !HAS_SHARED_PORTS;
        let mut parts: Vec<ShardListeners> =
            (0..shards).map(|index| ShardListeners { index, address, places: Vec::new() }).collect();
        let mut left = self.sockets;
        while !left.is_empty() {
            let rest = left.split_off(left.len().min(if one_acceptor { 1 } else { shards }));
            // Only the first group has to reach every shard.
            let first = parts[0].places.is_empty();
            let members = if one_acceptor || first { shards } else { left.len() };
            let own = if one_acceptor { 1 } else { members };
            share_out(&mut left, own)?;
            let group = Group::new(members, distribution);
            let mut sockets = left.into_iter();
            for part in &mut parts[..members] {
                part.places.push((Arc::clone(&group), sockets.next()));
            }
            left = rest;
        }
        Ok(parts)
    }
}

fn require_shards(shards: usize) -> io::Result<()> {
    match shards {
        0 => Err(io::Error::new(io::ErrorKind::InvalidInput, "a listener needs at least one shard")),
        _ => Ok(()),
    }
}

/// Makes `count` handles of fewer sockets, in turn.
fn share_out(sockets: &mut Vec<Descriptor>, count: usize) -> io::Result<()> {
    for index in 0..count.saturating_sub(sockets.len()) {
        sockets.push(another(&sockets[index])?);
    }
    Ok(())
}

/// Another handle of a socket.
fn another(socket: &Descriptor) -> io::Result<Descriptor> {
    if socket.is_simulated() {
        let text = "a simulated socket has one handle; let it have a socket for each shard";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(os::duplicate(socket)?.into())
}

/// One shard's part of [`ListeningSockets`], to be sent there.
///
/// Dropping it closes its sockets, and connections of their backlogs with them.
#[derive(Debug)]
pub struct ShardListeners {
    index: usize,
    address: Option<SocketAddr>,
    places: Vec<(Arc<Group>, Option<Descriptor>)>,
}

impl ShardListeners {
    /// Whether these are Unix sockets: they have no IP address.
    pub(crate) fn is_unix(&self) -> bool {
        self.address.is_none()
    }

    /// Makes listeners of the current shard, usually one; they accept from now on, each into a queue of
    /// [`Limits::accept_queue_max`](crate::Limits) connections.
    ///
    /// # Errors
    ///
    /// If no shard runs here, it has [`Limits::endpoints_max`](crate::Limits) endpoints, or the sockets are Unix sockets.
    pub fn open(self) -> io::Result<Vec<TcpListener>> {
        let address = self.address.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "Unix sockets are opened with open_unix")
        })?;
        self.each(|core, socket, share| {
            let listener = TcpListener::open(core, socket, Some(share))?;
            Ok(listener.at(address))
        })
    }

    /// As [`open`](Self::open), of Unix sockets.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); if the sockets are no Unix sockets.
    pub fn open_unix(self) -> io::Result<Vec<UnixListener>> {
        self.each(|core, socket, share| UnixListener::open(core, socket, Some(share)))
    }

    fn each<L>(
        self,
        open: impl Fn(Rc<Core>, Option<Descriptor>, Share) -> io::Result<L>,
    ) -> io::Result<Vec<L>> {
        let core = Core::required()?;
        let remote = Remote { link: Arc::clone(&core.link) };
        let index = self.index;
        let opened = self.places.into_iter().map(|(group, socket)| {
            open(Rc::clone(&core), socket, Share::join(&group, index, remote.clone()))
        });
        opened.collect()
    }
}

/// Holds accepting up.
pub(super) fn hold(core: &Core, id: EndpointId) {
    let _ = core.with(|state| state.listener_mut(id, |listener, _, engine| listener.hold(engine)));
}

/// Goes on accepting.
pub(super) fn resume(core: &Core, id: EndpointId) {
    let _ = core.with(|state| state.listener_mut(id, |listener, core, engine| listener.resume(core, engine)));
}

/// Ends accepting; completes when every connection that was accepted is in the listener's queue.
pub(super) async fn stop(core: &Core, id: EndpointId) {
    poll_fn(|context| {
        let waiter = || Waiter::Future(context.waker().clone());
        let ended = core.with(|state| {
            state.listener_mut(id, |listener, core, engine| {
                listener.end(core, engine);
                listener.ended(core, waiter)
            })
        });
        match ended {
            Ok(Ok(false)) => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
    .await;
}

/// Whether an accept says that there are no more connections.
pub(super) fn is_stop(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(inner, Some(Error::Stopped))
}

/// Another handle of a listener's socket.
pub(super) fn duplicate(core: &Core, id: EndpointId) -> io::Result<OwnedSocket> {
    let socket = super::stream::on_socket(core, id, another)?;
    OwnedSocket::try_from(socket)
}
