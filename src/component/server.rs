//! [`Server`]: listeners, their connections and their end, on any number of shards.
#![forbid(unsafe_code)]

use super::acceptor::{Listening, accept_all};
use super::close::Failure;
use super::conn::Conn;
use super::fleet::{Busy, Fleet, Plan};
use super::handler::{Closure, Handler};
use super::member::{MakeFramer, Member};
use super::policy::Policy;
use super::secure::Security;
use super::shards::Shards;
use crate::api::listening::{ListenOptions, ListeningSockets, ShardListeners};
use crate::api::task::spawn;
use crate::api::tcp::Lend;
use crate::api::unix::UnixListener;
use crate::codec::{Codec, Framer};
use crate::shard::Distribution;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// How a server is set up.
#[derive(Default)]
pub struct Builder {
    addresses: Vec<SocketAddr>,
    paths: Vec<PathBuf>,
    sockets: Vec<ListeningSockets>,
    options: ListenOptions,
    policy: Policy,
    distribution: Distribution,
    make_framer: Option<MakeFramer>,
    security: Option<Security>,
}

impl Builder {
    /// Listens there, too.
    pub fn listen(mut self, address: SocketAddr) -> Builder {
        self.addresses.push(address);
        self
    }

    /// Listens on a Unix socket, too, on the first shard. The path must not exist.
    pub fn listen_unix(mut self, path: impl Into<PathBuf>) -> Builder {
        self.paths.push(path.into());
        self
    }

    /// Listens on these sockets, too: given by a service manager, or by the process before; see
    /// [`handover`](super::handover).
    pub fn listen_on(mut self, sockets: ListeningSockets) -> Builder {
        self.sockets.push(sockets);
        self
    }

    /// How the sockets of [`listen`](Self::listen) are made.
    pub fn listen_options(mut self, options: ListenOptions) -> Builder {
        self.options = options;
        self
    }

    /// Sets the limits.
    pub fn policy(mut self, policy: Policy) -> Builder {
        self.policy = policy;
        self
    }

    /// How connections are spread over the shards.
    pub fn distribution(mut self, distribution: Distribution) -> Builder {
        self.distribution = distribution;
        self
    }

    /// What a message is; `make` makes the codec of each connection. Without one the handler gets bytes as they come.
    pub fn codec<C: Codec>(mut self, make: impl Fn() -> C + Send + Sync + 'static) -> Builder {
        self.make_framer = Some(Arc::new(move || Framer::new(make())));
        self
    }

    /// Every connection begins with TLS. Its handshake comes before [`Handler::on_handshake`]; the certificates may be
    /// exchanged while the server runs, by [`CertResolver`](crate::tls::CertResolver).
    #[cfg(feature = "tls")]
    pub fn tls(mut self, security: crate::tls::ServerTls) -> Builder {
        self.security = Some(security);
        self
    }

    /// Binds, and starts serving on each of `shards`. When it returns, the system accepts connections.
    ///
    /// # Errors
    ///
    /// What binding meets; `InvalidInput` for a policy that nothing could live with, or without an address; what
    /// [`Handler::on_prepare_listen`] returns; an error if one of the shards has ended or has no room for messages.
    pub fn start<H: Handler>(self, shards: impl Into<Shards>, handler: H) -> io::Result<Server> {
        Server::start(self, &shards.into(), Arc::new(handler))
    }

    fn listens_nowhere(&self) -> bool {
        self.addresses.is_empty() && self.paths.is_empty() && self.sockets.is_empty()
    }

    /// The addresses that are bound, and each shard's part of all sockets.
    fn spread<H: Handler>(
        self,
        shards: usize,
        handler: &H,
    ) -> io::Result<(Vec<SocketAddr>, Vec<Vec<ShardListeners>>)> {
        let one = self.distribution == Distribution::OneAcceptor;
        let options =
            ListenOptions { reuse_port: self.options.reuse_port && shards > 1 && !one, ..self.options };
        let prepare = |socket: &dyn Lend| handler.on_prepare_listen(socket);
        let bound = self
            .addresses
            .iter()
            .map(|address| ListeningSockets::bind_prepared(*address, shards, &options, &prepare));
        let mut all = bound.collect::<io::Result<Vec<_>>>()?;
        all.extend(self.sockets);
        let addresses = all.iter().filter_map(|sockets| sockets.local_addr().ok()).collect();
        let mut parts: Vec<Vec<ShardListeners>> = (0..shards).map(|_| Vec::new()).collect();
        for sockets in all {
            let spread = sockets.spread(shards, self.distribution)?;
            parts.iter_mut().zip(spread).for_each(|(parts, part)| parts.push(part));
        }
        Ok((addresses, parts))
    }

    /// As [`start`](Self::start), with one `async` closure as the handler: it is called for each connection, which ends when
    /// it returns.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn serve<F>(self, shards: impl Into<Shards>, handler: F) -> io::Result<Server>
    where
        F: AsyncFn(&mut Conn) -> Result<(), Failure> + Send + Sync + 'static,
    {
        self.start(shards, Closure(handler))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("addresses", &self.addresses)
            .field("paths", &self.paths)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// A running server, as a handle for any thread. What it does with its connections is in [`Fleet`], to which it dereferences. Dropping it ends nothing: the server lives as long as its shards, until it is
/// [shut down](Fleet::shutdown).
///
/// ```
/// use anabranch::component::{Failure, Server};
/// use anabranch::net::TcpStream;
///
/// # fn main() -> std::io::Result<()> {
/// anabranch::block_on(async {
///     let server = Server::builder()
///         .listen("127.0.0.1:0".parse().unwrap())
///         .serve(anabranch::component::Shards::current()?, async |conn| {
///             while let Some(bytes) = conn.recv().await? {
///                 conn.send(bytes).await?;
///             }
///             Ok::<(), Failure>(())
///         })?;
///     let mut client = TcpStream::connect(server.addresses()[0]).await?;
///     client.send("hello").await?;
///     assert_eq!(client.recv_exact(5).await?, "hello");
///     client.close().await?;
///     server.shutdown(std::time::Duration::from_secs(1));
///     server.ended().await;
///     assert_eq!(server.totals().closed_for("peer_closed"), 1);
///     Ok(())
/// })?
/// # }
/// ```
#[derive(Clone)]
pub struct Server {
    fleet: Fleet,
    addresses: Arc<[SocketAddr]>,
}

impl Server {
    /// How a server is set up.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start<H: Handler>(mut builder: Builder, shards: &Shards, handler: Arc<H>) -> io::Result<Server> {
        builder.policy.check().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
        let count = shards.remotes().len();
        if count == 0 || builder.listens_nowhere() {
            let text = "a server needs a shard, and an address: Builder::listen";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let Builder { policy, make_framer, security, paths, .. } = &mut builder;
        let (policy, mut paths) = (policy.clone(), std::mem::take(paths));
        let (make_framer, security) = (make_framer.clone(), security.clone());
        let (addresses, parts) = builder.spread(count, &*handler)?;
        let mut parts = parts.into_iter();
        let plan = Plan { handler, policy, make_framer, security };
        let fleet = Fleet::found(shards, plan, |_| {
            // Sockets of paths are opened on the first shard.
            let (parts, paths) = (parts.next().unwrap_or_default(), std::mem::take(&mut paths));
            move || {
                let listeners = listeners(parts, paths)?;
                Ok(move |member: &Rc<Member<H>>| {
                    let tasks = listeners.into_iter().map(|listener| accept_all(Rc::clone(member), listener));
                    tasks.for_each(|task| spawn(task).detach());
                })
            }
        })?;
        Ok(Server { fleet, addresses: addresses.into() })
    }

    /// The addresses that it listens on, in the order in which they were asked for, with the ports that the system chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Accepts no more until [`resume`](Self::resume); newcomers wait in the backlog of the system.
    ///
    /// # Errors
    ///
    /// If a shard took no message; the others did.
    pub fn pause(&self) -> Result<(), Busy> {
        self.fleet.on_all(|local| local.orders.pause(true))
    }

    /// Accepts again.
    ///
    /// # Errors
    ///
    /// If a shard took no message; the others did.
    pub fn resume(&self) -> Result<(), Busy> {
        self.fleet.on_all(|local| local.orders.pause(false))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .field("phase", &self.phase())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Deref for Server {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

/// Opens the listeners of one shard.
fn listeners(parts: Vec<ShardListeners>, paths: Vec<PathBuf>) -> io::Result<Vec<Listening>> {
    let mut all = Vec::new();
    for part in parts {
        match part.is_unix() {
            true => all.extend(part.open_unix()?.into_iter().map(Listening::Unix)),
            false => all.extend(part.open()?.into_iter().map(Listening::Tcp)),
        }
    }
    for path in paths {
        all.push(Listening::Unix(UnixListener::bind(path)?));
    }
    Ok(all)
}
