//! TLS over the connections of a shard: handshakes, and streams that are sealed.
//!
//! What is sealed and opened is the business of `proto::tls`; here the bytes move. The handshakes of an acceptor that run at
//! once are bounded, and each has a deadline.
#![forbid(unsafe_code)]

mod flow;
mod places;
mod stream;

pub use stream::{TlsStream, Transport};

use self::flow::TlsFlow;
use self::places::Places;
use crate::api::time::{timeout, wall};
use crate::proto::tls::{ClientTls, ClientTlsBuilder, ConfigError, ServerTls, ServerTlsBuilder, TlsError};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a handshake may take, where nothing else is said.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes of an acceptor that may run at once, where nothing else is said.
const HANDSHAKES_MAX: usize = 1024;

/// Makes TLS streams of accepted connections. Cloning it is cheap; clones share the bound on handshakes. It belongs to a
/// shard; the [`ServerTls`] inside may be shared by all.
#[derive(Clone, Debug)]
pub struct TlsAcceptor {
    config: ServerTls,
    deadline: Duration,
    places: Rc<Places>,
}

impl TlsAcceptor {
    /// An acceptor of this configuration.
    pub fn new(config: ServerTls) -> TlsAcceptor {
        TlsAcceptor { config, deadline: HANDSHAKE, places: Rc::new(Places::new(HANDSHAKES_MAX)) }
    }

    /// How long a handshake may take, the wait for its turn included; 10 s by default.
    #[must_use]
    pub fn handshake_deadline(mut self, deadline: Duration) -> TlsAcceptor {
        self.deadline = deadline;
        self
    }

    /// How many handshakes may run at once, at least one; 1024 by default. The others wait for their turn, in order, and
    /// read nothing meanwhile.
    #[must_use]
    pub fn handshakes_max(mut self, max: usize) -> TlsAcceptor {
        self.places = Rc::new(Places::new(max.max(1)));
        self
    }

    /// Handshakes that run now.
    pub fn handshakes(&self) -> usize {
        self.places.taken()
    }

    /// The configuration.
    pub fn config(&self) -> &ServerTls {
        &self.config
    }

    /// Does the handshake of a server. The connection may have been used before, as where a protocol begins plain and a
    /// command asks for TLS; what was received and not read belongs to the handshake then.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    ///
    /// Why there is no TLS. A peer that broke a rule has been told by an alert, which this gives up to a second to arrive.
    /// The connection is closed.
    pub async fn accept(&self, stream: impl Into<Transport>) -> Result<TlsStream, TlsError> {
        self.accept_or(stream.into(), |_| ()).await
    }

    /// The same; `failed` is told of an error before the peer is.
    pub(super) async fn accept_or(
        &self,
        stream: Transport,
        failed: impl FnOnce(&TlsError),
    ) -> Result<TlsStream, TlsError> {
        let flow = TlsFlow::new(stream, self.config.session()?);
        let shaken = timeout(self.deadline, async {
            let _place = self.places.take().await;
            poll_fn(|context| flow.poll_handshake(context)).await
        });
        let outcome = shaken.await.unwrap_or(Err(TlsError::HandshakeTimedOut));
        flow.concluded(outcome, failed).await
    }
}

/// Makes TLS streams of connections to servers.
#[derive(Clone, Debug)]
pub struct TlsConnector {
    config: ClientTls,
    deadline: Duration,
}

impl TlsConnector {
    /// A connector of this configuration.
    pub fn new(config: ClientTls) -> TlsConnector {
        TlsConnector { config, deadline: HANDSHAKE }
    }

    /// How long a handshake may take; 10 s by default.
    #[must_use]
    pub fn handshake_deadline(mut self, deadline: Duration) -> TlsConnector {
        self.deadline = deadline;
        self
    }

    /// Does the handshake of a client with the server of that name, for which its certificate must be valid. The name may be
    /// an IP address, which the server is not told (there is no SNI then). The connection may have been used before.
    ///
    /// In TLS 1.3 the client is done before the server has looked at its certificate: whether that is refused is known from
    /// the first receive.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    ///
    /// Why there is no TLS. A peer that broke a rule has been told by an alert, which this gives up to a second to arrive.
    /// The connection is closed.
    pub async fn connect(&self, name: &str, stream: impl Into<Transport>) -> Result<TlsStream, TlsError> {
        let flow = TlsFlow::new(stream.into(), self.config.session(name)?);
        let shaken = timeout(self.deadline, poll_fn(|context| flow.poll_handshake(context)));
        let outcome = shaken.await.unwrap_or(Err(TlsError::HandshakeTimedOut));
        flow.concluded(outcome, |_| ()).await
    }
}

impl ServerTlsBuilder {
    /// The configuration.
    ///
    /// # Errors
    ///
    /// What is wrong with a certificate, a key, or the choice of what is spoken.
    pub fn build(self) -> Result<ServerTls, ConfigError> {
        self.finish(Arc::new(ShardClock))
    }
}

impl ClientTlsBuilder {
    /// The configuration.
    ///
    /// # Errors
    ///
    /// What is wrong with a certificate, a key, or the choice of what is spoken.
    pub fn build(self) -> Result<ClientTls, ConfigError> {
        self.finish(Arc::new(ShardClock))
    }
}

/// The wall clock of the shard that runs, by which certificates are valid or not.
#[derive(Debug)]
struct ShardClock;

impl TimeProvider for ShardClock {
    fn current_time(&self) -> Option<UnixTime> {
        // The time since then, of whatever clock lent it.
        let since = wall().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}
