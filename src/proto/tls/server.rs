//! What a server speaks and shows.
#![forbid(unsafe_code)]

use super::error::{ConfigError, TlsError};
use super::info::TlsVersion;
use super::provider::{Choice, ticketer};
use super::resolver::{CertResolver, Current};
use super::roots::Roots;
use super::session::Session;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use std::sync::Arc;

/// Whether clients have to show a certificate.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum ClientAuth {
    /// They are not asked for one.
    #[default]
    None,
    /// They are asked for one. Who shows none is served all the same; one that does not go back to these roots is refused.
    Optional(Roots),
    /// Who shows none that goes back to these roots is refused.
    Required(Roots),
}

/// What the connections of a server have in common. Cloning it is cheap, and clones share their certificates and tickets;
/// it may go to other threads.
///
/// There is no renegotiation, no data ahead of the handshake (0-RTT), no compression, and secrets cannot be taken out.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    current: Option<Arc<Current>>,
}

impl ServerTls {
    /// Begins a configuration that shows these certificates; an [`Identity`](super::Identity) is shown to all.
    pub fn builder(certificates: impl Into<CertResolver>) -> ServerTlsBuilder {
        ServerTlsBuilder {
            certificates: certificates.into(),
            auth: ClientAuth::None,
            choice: Choice::default(),
            tickets: true,
        }
    }

    /// Takes a configuration of rustls as it is, with everything that it allows. [`reload`](Self::reload) is refused for it.
    pub fn from_rustls(config: Arc<ServerConfig>) -> ServerTls {
        ServerTls { config, current: None }
    }

    /// Shows these certificates from the next handshake on, on all clones and threads. Connections that there are, and
    /// handshakes that have begun, go on; a session that is resumed shows no certificate.
    ///
    /// # Errors
    ///
    /// What is wrong with them, or that the configuration is one of rustls; the old ones stay then.
    pub fn reload(&self, certificates: impl Into<CertResolver>) -> Result<(), ConfigError> {
        match &self.current {
            Some(current) => current.replace(certificates.into()),
            None => {
                let why = "a configuration of rustls chooses its certificates itself".to_owned();
                Err(ConfigError::Refused(rustls::Error::General(why)))
            }
        }
    }

    pub(crate) fn session(&self) -> Result<Session, TlsError> {
        let connection = ServerConnection::new(Arc::clone(&self.config)).map_err(TlsError::from_rustls)?;
        Ok(Session::new(connection.into()))
    }
}

/// A [`ServerTls`] in the making.
#[derive(Debug)]
pub struct ServerTlsBuilder {
    certificates: CertResolver,
    auth: ClientAuth,
    choice: Choice,
    tickets: bool,
}

impl ServerTlsBuilder {
    /// Whether clients have to show a certificate; not asked for by default.
    #[must_use]
    pub fn client_auth(mut self, auth: ClientAuth) -> ServerTlsBuilder {
        self.auth = auth;
        self
    }

    /// The protocols that are spoken, the best first. A client that names protocols and none of these is refused; one that
    /// names none is served.
    #[must_use]
    pub fn alpn<P: Into<Vec<u8>>>(mut self, protocols: impl IntoIterator<Item = P>) -> ServerTlsBuilder {
        self.choice.alpn = protocols.into_iter().map(Into::into).collect();
        self
    }

    /// The oldest and the newest version that is spoken; both by default.
    #[must_use]
    pub fn versions(mut self, oldest: TlsVersion, newest: TlsVersion) -> ServerTlsBuilder {
        (self.choice.oldest, self.choice.newest) = (oldest, newest);
        self
    }

    /// The cipher suites that are used, the best first, by their names in the registry of the IETF with `TLS13_` for those of
    /// TLS 1.3; those of the provider by default.
    #[must_use]
    pub fn suites<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> ServerTlsBuilder {
        self.choice.suites = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Whether clients may resume sessions, by tickets whose keys change every six hours; yes by default.
    #[must_use]
    pub fn session_tickets(mut self, tickets: bool) -> ServerTlsBuilder {
        self.tickets = tickets;
        self
    }

    /// The cryptography; by default the one that the process has installed, else ring with the feature `tls-ring`.
    #[must_use]
    pub fn provider(mut self, provider: Arc<CryptoProvider>) -> ServerTlsBuilder {
        self.choice.provider = Some(provider);
        self
    }

    pub(crate) fn finish(self, clock: Arc<dyn TimeProvider>) -> Result<ServerTls, ConfigError> {
        let provider = self.choice.provider()?;
        let current = Arc::new(Current::new(self.certificates, Arc::clone(&provider))?);
        let mut config = ServerConfig::builder_with_details(Arc::clone(&provider), clock)
            .with_protocol_versions(&self.choice.versions())
            .map_err(ConfigError::Refused)?
            .with_client_cert_verifier(verifier(&self.auth, &provider)?)
            .with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = self.choice.alpn;
        if !self.tickets {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else if let Some(ticketer) = ticketer()? {
            config.ticketer = ticketer;
        }
        Ok(ServerTls { config: Arc::new(config), current: Some(current) })
    }
}

fn verifier(
    auth: &ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, ConfigError> {
    let builder =
        |roots: &Roots| WebPkiClientVerifier::builder_with_provider(roots.store(), Arc::clone(provider));
    let built = match auth {
        ClientAuth::None => return Ok(WebPkiClientVerifier::no_client_auth()),
        ClientAuth::Optional(roots) => builder(roots).allow_unauthenticated().build(),
        ClientAuth::Required(roots) => builder(roots).build(),
    };
    built.map_err(|error| ConfigError::Refused(rustls::Error::General(error.to_string())))
}
