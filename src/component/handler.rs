//! [`Handler`]: what a program does with its connections.
#![forbid(unsafe_code)]

use super::close::{Closed, Failure};
use super::conn::Conn;
use super::id::ConnId;
use super::session::Session;
use super::target::Target;
use crate::api::tcp::Lend;
use crate::buf::Lease;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// A newcomer, before it is admitted.
#[derive(Debug)]
#[non_exhaustive]
pub struct Peer {
    /// The id that the connection has if it is admitted.
    pub id: ConnId,
    /// Its address; none over Unix sockets.
    pub address: Option<SocketAddr>,
    /// The address that it came to.
    pub local: Option<SocketAddr>,
    /// Whom the connection was made to; `None` if it was accepted.
    pub target: Option<Target>,
}

/// Whether a newcomer may stay.
#[derive(Debug)]
pub enum Admission<S> {
    /// It may, with this state.
    Accept(S),
    /// It is closed at once, and there is no `on_close` for it.
    Refuse,
}

/// What becomes of an idle connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Idle {
    /// It ends, for [`CloseReason::IdleTimeout`](crate::component::CloseReason).
    #[default]
    Close,
    /// It may stay for another such time.
    Keep,
}

/// Something that went wrong and ended no connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Trouble<'a> {
    /// A listener cannot accept at present; it goes on by itself.
    Accept(&'a io::Error),
    /// A shard cannot listen. Only where the server was started on a shard's thread, which does not wait for the others; else
    /// it is an error of the start.
    Listen(&'a io::Error),
    /// An attempt to connect failed. With `again` there is another one after that time; else the id is given up.
    Connect {
        /// The id that the connection would have had.
        id: ConnId,
        /// Whom it was to be made to.
        target: &'a Target,
        /// Why it failed; of kind `TimedOut` if it took too long.
        error: &'a io::Error,
        /// When the next attempt comes.
        again: Option<Duration>,
    },
    /// A callback that returns no error panicked; its name.
    Callback(&'static str),
}

/// What a program does with its connections, in callbacks or as one `async` function per connection; both on the same
/// object, and the same for servers, agents and clients.
///
/// One handler serves all connections on all shards (hence `Sync`); what belongs to one connection is its `State`, which
/// never leaves its shard. Calls for one connection are never concurrent. The order is `on_accept`, `on_handshake`,
/// `on_receive` as often as messages come, `on_close` once; between these `on_send`, `on_idle`, `on_drain`. A callback that
/// blocks holds up all connections of its shard: use [`offload`](crate::offload).
///
/// An error of `on_handshake`, `on_receive` or `run` ends the connection for that reason; a panic does the same and no
/// more.
///
/// A handler that is one `async` function overrides [`run`](Self::run), or is an `async` closure given to
/// [`Builder::serve`](crate::component::Builder::serve).
#[allow(async_fn_in_trait, reason = "its futures stay on one shard and need not be Send")]
pub trait Handler: Send + Sync + Sized + 'static {
    /// What it keeps for one connection.
    type State: 'static;

    /// Whether [`on_send`](Self::on_send) is called. It costs a look at the queue for each message.
    const REPORTS_SENT: bool = false;

    /// Before a socket listens, when it is bound: for options that have no place elsewhere. It lends its descriptor (`AsFd`, on
    /// Windows `AsSocket`). `Err` fails the start.
    ///
    /// # Errors
    ///
    /// Whatever is to keep the server from starting.
    fn on_prepare_listen(&self, socket: &dyn Lend) -> io::Result<()> {
        let _ = socket;
        Ok(())
    }

    /// Before a socket connects, for each attempt over TCP: for options that have no place elsewhere, as
    /// [`on_prepare_listen`](Self::on_prepare_listen). `Err` fails the attempt.
    ///
    /// # Errors
    ///
    /// Whatever is to keep the connection from being made.
    fn on_prepare_connect(&self, socket: &dyn Lend) -> io::Result<()> {
        let _ = socket;
        Ok(())
    }

    /// A newcomer, or a connection that was made from here: whether it may stay, and its state.
    fn on_accept(&self, peer: &Peer) -> Admission<Self::State>;

    /// The connection is there, with TLS if the server has it. Messages may be exchanged here already, by code; and a
    /// connection that was made from here goes over to TLS here, by `Conn::connect_tls` (feature `tls`).
    ///
    /// # Errors
    ///
    /// Whatever is to end the connection, at [`Stage::Handshake`](crate::component::Stage).
    async fn on_handshake(&self, conn: &mut Conn<Self::State>) -> Result<(), Failure> {
        let _ = conn;
        Ok(())
    }

    /// A message of the codec, or received bytes where there is none. While it waits nothing else is received, which is
    /// how it slows its peer down.
    ///
    /// # Errors
    ///
    /// Whatever is to end the connection.
    async fn on_receive(&self, conn: &mut Conn<Self::State>, message: Lease) -> Result<(), Failure> {
        let _ = (conn, message);
        Ok(())
    }

    /// More bytes are there to be fetched, `available` in all; only for connections that [pull](Conn::pull), in place of
    /// `on_receive`. What is not fetched stays; when the bound is reached and nothing was fetched the connection ends.
    ///
    /// # Errors
    ///
    /// Whatever is to end the connection.
    async fn on_available(&self, conn: &mut Conn<Self::State>, available: usize) -> Result<(), Failure> {
        let _ = (conn, available);
        Ok(())
    }

    /// `bytes` more have left, codec and TLS included; [`pending`](Session::pending) wait. Only if
    /// [`REPORTS_SENT`](Self::REPORTS_SENT).
    fn on_send(&self, session: &Session, bytes: u64) {
        let _ = (session, bytes);
    }

    /// Nothing came and nothing left for [`Policy::idle_timeout`](crate::component::Policy).
    fn on_idle(&self, session: &Session) -> Idle {
        let _ = session;
        Idle::Close
    }

    /// The component is being shut down: say goodbye, or [end](Session::disconnect) the connection. It may go on until the
    /// deadline.
    fn on_drain(&self, session: &Session) {
        let _ = session;
    }

    /// The connection has ended. Once for each that was admitted, its last call.
    fn on_close(&self, conn: &mut Conn<Self::State>, closed: &Closed) {
        let _ = (conn, closed);
    }

    /// Something went wrong that ended no connection.
    fn on_error(&self, trouble: &Trouble<'_>) {
        let _ = trouble;
    }

    /// The component has ended: after the last `on_close`, once, on one of its shards.
    fn on_shutdown(&self) {}

    /// The life of a connection from the handshake to its end. By default the callbacks; override it for the `async`
    /// form. When it returns the connection is closed, after everything queued has left.
    ///
    /// # Errors
    ///
    /// Whatever is to be the reason of the end. An error that came from the connection itself is told as what it is.
    async fn run(&self, conn: &mut Conn<Self::State>) -> Result<(), Failure> {
        loop {
            if conn.pulled().is_some() {
                match conn.more().await? {
                    true => self.on_available(conn, conn.available()).await?,
                    false if conn.is_full() => return Err(PullFull.into()),
                    false => return Ok(()),
                }
            } else {
                match conn.recv().await? {
                    Some(message) => self.on_receive(conn, message).await?,
                    None => return Ok(()),
                }
            }
        }
    }
}

/// The peer sent more than the handler fetches.
#[derive(Debug)]
struct PullFull;

impl std::fmt::Display for PullFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "the bound of Conn::pull is reached and nothing was fetched; fetch, or pull with a larger bound",
        )
    }
}

impl std::error::Error for PullFull {}

/// An `async` closure as a handler.
pub(crate) struct Closure<F>(pub(crate) F);

impl<F> Handler for Closure<F>
where
    F: AsyncFn(&mut Conn) -> Result<(), Failure> + Send + Sync + 'static,
{
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        Admission::Accept(())
    }

    async fn run(&self, conn: &mut Conn) -> Result<(), Failure> {
        (self.0)(conn).await
    }
}
