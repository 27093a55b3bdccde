//! [`Client`]: one connection that is made from here, and made again.
#![forbid(unsafe_code)]

use super::agent::{Agent, ConnectError, Connecting, Settings, Slot, settings};
use super::close::Failure;
use super::conn::Conn;
use super::dial::Reconnect;
use super::fleet::{Busy, Fleet};
use super::handler::{Closure, Handler};
use super::id::ConnId;
use super::policy::Policy;
use super::shards::Shards;
use super::target::Target;
use crate::codec::Codec;
use bytes::Bytes;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How a client is set up.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    settings: Settings,
    target: Target,
}

impl ClientBuilder {
    settings!();

    /// Starts on the first of `shards`. There is no connection until [`Client::connect`].
    ///
    /// # Errors
    ///
    /// As [`AgentBuilder::start`](super::AgentBuilder::start).
    pub fn start<H: Handler>(self, shards: impl Into<Shards>, handler: H) -> io::Result<Client> {
        let agent = self.settings.start(&shards.into().first(), handler)?;
        Ok(Client { agent, target: self.target, current: Arc::default() })
    }

    /// As [`start`](Self::start), with one `async` closure as the handler, which is called for each connection.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn serve<F>(self, shards: impl Into<Shards>, handler: F) -> io::Result<Client>
    where
        F: AsyncFn(&mut Conn) -> Result<(), Failure> + Send + Sync + 'static,
    {
        self.start(shards, Closure(handler))
    }
}

/// One connection, as a handle for any thread: HP-Socket's TcpClient, CppServer's TCPClient. It is made again when it ends
/// ([`Reconnect::default`], unless told otherwise), and can be disconnected and connected as often as one likes. What it has
/// in common with other components is in [`Fleet`], to which it dereferences: counters, [`shutdown`](Fleet::shutdown).
///
/// ```
/// use anabranch::component::{Client, Conn, Server, Shards};
///
/// # fn main() -> std::io::Result<()> {
/// anabranch::block_on(async {
///     let greet = async |conn: &mut Conn| {
///         conn.send("welcome").await?;
///         while conn.recv().await?.is_some() {}
///         Ok(())
///     };
///     let server = Server::builder().listen("127.0.0.1:0".parse().unwrap()).serve(Shards::current()?, greet)?;
///     let client = Client::builder(server.addresses()[0]).serve(Shards::current()?, async |conn: &mut Conn| {
///         while let Some(bytes) = conn.recv().await? {
///             println!("{bytes:?}");
///         }
///         Ok(())
///     })?;
///     client.connect()?.await?;
///     client.send("hello")?;
///     client.disconnect()?;
///     client.connect()?.await?;
///     assert_eq!(client.totals().opened, 2);
///     Ok(())
/// })?
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    target: Target,
    current: Arc<Mutex<Option<Current>>>,
}

/// The connection that is there, or being made.
struct Current {
    id: ConnId,
    slot: Weak<Slot>,
}

impl Client {
    /// How a client of this peer is set up.
    pub fn builder(target: impl Into<Target>) -> ClientBuilder {
        let settings = Settings { reconnect: Some(Reconnect::default()), ..Settings::default() };
        ClientBuilder { settings, target: target.into() }
    }

    /// Whom it connects to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects. Returns at once, as [`Agent::connect`].
    ///
    /// # Errors
    ///
    /// [`ConnectError::Connected`] while there is a connection, or attempts to make one; [`Busy`](ConnectError::Busy) or
    /// [`Ended`](ConnectError::Ended).
    pub fn connect(&self) -> Result<Connecting, ConnectError> {
        let mut current = self.current();
        if current.as_ref().is_some_and(|current| current.slot.strong_count() > 0) {
            return Err(ConnectError::Connected);
        }
        let (connecting, slot) = self.agent.dial(self.target.clone())?;
        *current = Some(Current { id: connecting.id(), slot });
        Ok(connecting)
    }

    /// Ends the connection, after what is queued on it has left, or gives up making it. It is not made again until
    /// [`connect`](Self::connect), which may follow at once. False if there was none.
    ///
    /// # Errors
    ///
    /// If its shard took no message; there is the connection still.
    pub fn disconnect(&self) -> Result<bool, Busy> {
        let mut current = self.current();
        let Some(Current { id, slot }) = current.as_ref() else { return Ok(false) };
        let was_there = slot.strong_count() > 0;
        self.agent.disconnect(*id)?;
        *current = None;
        Ok(was_there)
    }

    /// Disconnects if there is a connection, and connects.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn reconnect(&self) -> Result<Connecting, ConnectError> {
        self.disconnect().map_err(|_| ConnectError::Busy)?;
        self.connect()
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.agent.connections() > 0
    }

    /// The id of the connection that is there, being made, or was last.
    pub fn id(&self) -> Option<ConnId> {
        self.current().as_ref().map(|current| current.id)
    }

    /// Sends a message, as [`Fleet::send`]: what becomes of it is counted, not told. Without a connection it is lost, and
    /// counted as [`undelivered`](super::Snapshot::undelivered).
    ///
    /// # Errors
    ///
    /// If the shard took no message.
    pub fn send(&self, message: impl Into<Bytes>) -> Result<(), Busy> {
        // No connection ever has the number 0.
        self.agent.send(self.id().unwrap_or(ConnId::new(0, 0)), message)
    }
}

impl Deref for Client {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.agent
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.target)
            .field("connected", &self.is_connected())
            .finish()
    }
}
