//! [`Agent`]: many connections that are made from here, on any number of shards.
#![forbid(unsafe_code)]

use super::blocking::block_thread;
use super::close::Failure;
use super::conn::Conn;
use super::dial::{Call, Outcome as Dialled, Reconnect, Ways};
use super::fleet::{Fleet, Plan};
use super::handler::{Closure, Handler};
use super::id::ConnId;
use super::member::{MakeFramer, Member};
use super::phase::Phase;
use super::policy::Policy;
use super::shards::Shards;
use super::target::Target;
use crate::api::task::{Outcome, Promise};
use crate::codec::{Codec, Framer};
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

/// How connections are made from here: what agents and clients have in common.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) policy: Policy,
    pub(super) make_framer: Option<MakeFramer>,
    pub(super) connect_timeout: Duration,
    pub(super) reconnect: Option<Reconnect>,
}

impl Default for Settings {
    fn default() -> Settings {
        let connect_timeout = Duration::from_secs(10);
        Settings { policy: Policy::default(), make_framer: None, connect_timeout, reconnect: None }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("policy", &self.policy)
            .field("connect_timeout", &self.connect_timeout)
            .field("reconnect", &self.reconnect)
            .finish_non_exhaustive()
    }
}

impl Settings {
    pub(super) fn set_codec<C: Codec>(&mut self, make: impl Fn() -> C + Send + Sync + 'static) {
        self.make_framer = Some(Arc::new(move || Framer::new(make())));
    }

    /// Starts a component that connects to nobody yet.
    pub(super) fn start<H: Handler>(self, shards: &Shards, handler: H) -> io::Result<Agent> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        if self.connect_timeout.is_zero() {
            return Err(invalid("connect_timeout must be more than zero".to_owned()));
        }
        self.reconnect.as_ref().map_or(Ok(()), Reconnect::check).map_err(invalid)?;
        let connections_max = self.policy.connections_max;
        let plan = Plan {
            handler: Arc::new(handler),
            policy: self.policy,
            make_framer: self.make_framer,
            security: None,
        };
        let fleet = Fleet::found(shards, plan, |_| || Ok(|_: &Rc<Member<H>>| {}))?;
        let ways = Arc::new(Ways { connect_timeout: self.connect_timeout, reconnect: self.reconnect });
        Ok(Agent { fleet, ways, turns: Arc::default(), slots: Arc::default(), connections_max })
    }
}

/// The methods of a builder with `settings` in it.
macro_rules! settings {
    () => {
        /// Sets the limits. [`Policy::connections_max`] holds for connections and those that are being made.
        pub fn policy(mut self, policy: Policy) -> Self {
            self.settings.policy = policy;
            self
        }

        /// What a message is; `make` makes the codec of each connection. Without one the handler gets bytes as they come.
        pub fn codec<C: Codec>(mut self, make: impl Fn() -> C + Send + Sync + 'static) -> Self {
            self.settings.set_codec(make);
            self
        }

        /// How long one attempt may take, with finding the addresses. 10 s.
        pub fn connect_timeout(mut self, timeout: Duration) -> Self {
            self.settings.connect_timeout = timeout;
            self
        }

        /// Whether and when a connection that ended, or could not be made, is made again.
        pub fn reconnect(mut self, reconnect: impl Into<Option<Reconnect>>) -> Self {
            self.settings.reconnect = reconnect.into();
            self
        }
    };
}
pub(super) use settings;

/// How an agent is set up.
#[derive(Clone, Debug, Default)]
pub struct AgentBuilder {
    settings: Settings,
}

impl AgentBuilder {
    settings!();

    /// Starts on each of `shards`. There is no connection until [`Agent::connect`].
    ///
    /// # Errors
    ///
    /// `InvalidInput` for settings that nothing could live with; an error if one of the shards has ended or has no room for
    /// messages.
    pub fn start<H: Handler>(self, shards: impl Into<Shards>, handler: H) -> io::Result<Agent> {
        self.settings.start(&shards.into(), handler)
    }

    /// As [`start`](Self::start), with one `async` closure as the handler: it is called for each connection, which ends when
    /// it returns.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn serve<F>(self, shards: impl Into<Shards>, handler: F) -> io::Result<Agent>
    where
        F: AsyncFn(&mut Conn) -> Result<(), Failure> + Send + Sync + 'static,
    {
        self.start(shards, Closure(handler))
    }
}

/// Many connections that are made from here, as a handle for any thread: HP-Socket's TcpAgent. What it does with its
/// connections is in [`Fleet`], to which it dereferences; what happens on them goes to its [`Handler`], as with a
/// [`Server`](super::Server), [`on_accept`](Handler::on_accept) included. Dropping it ends nothing.
///
/// ```
/// use anabranch::component::{Agent, Conn, Server, Shards};
///
/// # fn main() -> std::io::Result<()> {
/// anabranch::block_on(async {
///     let echo = async |conn: &mut Conn| {
///         while let Some(bytes) = conn.recv().await? {
///             conn.send(bytes).await?;
///         }
///         Ok(())
///     };
///     let server = Server::builder().listen("127.0.0.1:0".parse().unwrap()).serve(Shards::current()?, echo)?;
///     let agent = Agent::builder().serve(Shards::current()?, async |conn: &mut Conn| {
///         conn.send("hello").await?;
///         conn.recv().await?;
///         Ok(())
///     })?;
///     let id = agent.connect(server.addresses()[0])?.await?;
///     while agent.totals().closed_total() == 0 {
///         anabranch::sleep(std::time::Duration::from_millis(1)).await;
///     }
///     assert!(agent.totals().bytes_in > 0 && agent.totals().opened == 1 && id.shard() == 0);
///     Ok(())
/// })?
/// # }
/// ```
#[derive(Clone)]
pub struct Agent {
    fleet: Fleet,
    ways: Arc<Ways>,
    /// How many connections were asked for: the shard of the next one.
    turns: Arc<AtomicUsize>,
    /// Connections there are, or that are being made.
    slots: Arc<AtomicUsize>,
    connections_max: usize,
}

/// A place among the connections that the policy allows.
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(slots: &Arc<AtomicUsize>, max: usize) -> Option<Slot> {
        let slot = Slot(Arc::clone(slots));
        // Counted before it is looked at; one that is too many is given back by its drop.
        (slots.fetch_add(1, Ordering::Relaxed) < max).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Agent {
    /// How an agent is set up.
    pub fn builder() -> AgentBuilder {
        AgentBuilder::default()
    }

    /// Makes a connection on the next shard. Returns at once; what becomes of it is told by what this returns, which may be
    /// dropped, and each attempt that fails by [`Trouble::Connect`](super::Trouble).
    ///
    /// The id names this connection and, with [`Reconnect`], those that take its place, one at a time. No other
    /// connection ever gets it.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Limit`], [`Busy`](ConnectError::Busy) or [`Ended`](ConnectError::Ended).
    pub fn connect(&self, target: impl Into<Target>) -> Result<Connecting, ConnectError> {
        self.dial(target.into()).map(|(connecting, _)| connecting)
    }

    /// As [`connect`](Self::connect), to the Unix socket at `path`.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_unix(&self, path: impl AsRef<Path>) -> Result<Connecting, ConnectError> {
        self.connect(Target::unix(path))
    }

    /// Connections that are there, or being made, now or after a pause.
    pub fn targets(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// Makes a connection; its slot lives until there is to be none any more.
    pub(super) fn dial(&self, target: Target) -> Result<(Connecting, Weak<Slot>), ConnectError> {
        if self.fleet.phase() != Phase::Running {
            return Err(ConnectError::Ended);
        }
        let slot = Slot::take(&self.slots, self.connections_max);
        let slot = Arc::new(slot.ok_or(ConnectError::Limit(self.connections_max))?);
        let place = Arc::downgrade(&slot);
        let shard = self.turns.fetch_add(1, Ordering::Relaxed) % self.fleet.shards();
        let id = self.fleet.next_id(shard);
        let outcome: Arc<Outcome<Dialled>> = Arc::default();
        let promise = Promise(Arc::clone(&outcome));
        let call = Call { id, target, ways: Arc::clone(&self.ways), slot, promise };
        let sent = self.fleet.on_shard(shard, move |local| {
            if let Some(dialer) = local.dialer.upgrade() {
                dialer.dial(call);
            }
        });
        match sent {
            Ok(()) => Ok((Connecting { id, outcome }, place)),
            Err(_) if self.fleet.has_ended(shard) => Err(ConnectError::Ended),
            Err(_) => Err(ConnectError::Busy),
        }
    }
}

impl Deref for Agent {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("fleet", &self.fleet)
            .field("targets", &self.targets())
            .finish_non_exhaustive()
    }
}

/// A connection that is being made. Awaiting it, or [waiting](Self::wait) for it, gives its id once it is open (after
/// [`on_handshake`](Handler::on_handshake)), or the reason why it was given up; with [`Reconnect`] that comes after the last
/// attempt. Dropping it lets the connection be made all the same. Cancel-safe.
#[must_use = "awaited or waited for it tells what became of the connection; dropping it is fine, too: let _ ="]
pub struct Connecting {
    id: ConnId,
    outcome: Arc<Outcome<Dialled>>,
}

impl Connecting {
    /// The id that it has, or will have.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Blocks this thread until then.
    ///
    /// # Errors
    ///
    /// Why it was given up; [`ConnectError::OnShard`] on the thread of a shard, which might wait for itself.
    pub fn wait(self) -> Result<ConnId, ConnectError> {
        block_thread(self).unwrap_or(Err(ConnectError::OnShard))
    }
}

impl Future for Connecting {
    type Output = Result<ConnId, ConnectError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.outcome.poll(context).map(|outcome| outcome.unwrap_or(Err(ConnectError::Ended)))
    }
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connecting({})", self.id)
    }
}

/// Why there is no connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The last attempt failed, of kind `TimedOut` if it took too long; or the connection ended before it was open.
    Failed(io::Error),
    /// [`Handler::on_accept`] did not want it.
    Refused,
    /// It was disconnected, or the component shut down, before it was there.
    Cancelled,
    /// There are so many connections already: [`Policy::connections_max`].
    Limit(usize),
    /// The client has one already, or is making one.
    Connected,
    /// Its shard takes no message at present; try again later.
    Busy,
    /// The component or its shard has ended.
    Ended,
    /// It would block the thread of a shard.
    OnShard,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectError::Failed(error) => return error.fmt(f),
            ConnectError::Limit(max) => {
                return write!(f, "there are {max} connections already (Policy::connections_max)");
            }
            ConnectError::Refused => "the handler's on_accept refused the connection",
            ConnectError::Cancelled => "it was disconnected, or the component shut down, before it was there",
            ConnectError::Connected => "the client is connected, or connecting; disconnect first",
            ConnectError::Busy => "the shard's mailbox is full (Limits::mailbox_max); try again later",
            ConnectError::Ended => "the component or its shard has ended",
            ConnectError::OnShard => "it would block the thread of a shard; await it there",
        })
    }
}

impl std::error::Error for ConnectError {}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> io::Error {
        match error {
            ConnectError::Failed(error) => error,
            ConnectError::Busy | ConnectError::Limit(_) => {
                io::Error::new(io::ErrorKind::WouldBlock, error.to_string())
            }
            other => io::Error::other(other.to_string()),
        }
    }
}
