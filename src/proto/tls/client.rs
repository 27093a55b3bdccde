//! What a client speaks, and whom it trusts.
#![forbid(unsafe_code)]

use super::error::{ConfigError, TlsError};
use super::identity::Identity;
use super::info::TlsVersion;
use super::provider::Choice;
use super::roots::Roots;
use super::session::Session;
use rustls::ClientConfig;
use rustls::client::{ClientConnection, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;

/// What the connections of a client have in common. Cloning it is cheap, and clones share the sessions that can be resumed;
/// it may go to other threads.
///
/// The certificate of the server must go back to one of the roots and be valid for the name; there is no way around that
/// but [`from_rustls`](Self::from_rustls).
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Begins a configuration that trusts these roots.
    pub fn builder(roots: Roots) -> ClientTlsBuilder {
        ClientTlsBuilder { roots, identity: None, choice: Choice::default(), resume: true }
    }

    /// Takes a configuration of rustls as it is, with everything that it allows.
    pub fn from_rustls(config: Arc<ClientConfig>) -> ClientTls {
        ClientTls { config }
    }

    /// A connection to the server of that name, or of that IP address, which is not told to it (no SNI).
    pub(crate) fn session(&self, server: &str) -> Result<Session, TlsError> {
        let name =
            ServerName::try_from(server).map_err(|_| TlsError::InvalidName(server.to_owned()))?.to_owned();
        let connection =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(TlsError::from_rustls)?;
        Ok(Session::new(connection.into()))
    }
}

/// A [`ClientTls`] in the making.
#[derive(Debug)]
pub struct ClientTlsBuilder {
    roots: Roots,
    identity: Option<Identity>,
    choice: Choice,
    resume: bool,
}

impl ClientTlsBuilder {
    /// The certificate that is shown to servers that ask for one; none by default.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> ClientTlsBuilder {
        self.identity = Some(identity);
        self
    }

    /// The protocols that are offered, the best first. A server that speaks none of them refuses, if it talks about protocols
    /// at all; which one it took is in [`TlsInfo::alpn`](super::TlsInfo).
    #[must_use]
    pub fn alpn<P: Into<Vec<u8>>>(mut self, protocols: impl IntoIterator<Item = P>) -> ClientTlsBuilder {
        self.choice.alpn = protocols.into_iter().map(Into::into).collect();
        self
    }

    /// The oldest and the newest version that is spoken; both by default.
    #[must_use]
    pub fn versions(mut self, oldest: TlsVersion, newest: TlsVersion) -> ClientTlsBuilder {
        (self.choice.oldest, self.choice.newest) = (oldest, newest);
        self
    }

    /// The cipher suites that are offered; see [`ServerTlsBuilder::suites`](super::ServerTlsBuilder::suites).
    #[must_use]
    pub fn suites<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> ClientTlsBuilder {
        self.choice.suites = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Whether sessions are resumed, of which 256 are kept in memory; yes by default.
    #[must_use]
    pub fn resume(mut self, resume: bool) -> ClientTlsBuilder {
        self.resume = resume;
        self
    }

    /// The cryptography; by default the one that the process has installed, else ring with the feature `tls-ring`.
    #[must_use]
    pub fn provider(mut self, provider: Arc<CryptoProvider>) -> ClientTlsBuilder {
        self.choice.provider = Some(provider);
        self
    }

    pub(crate) fn finish(self, clock: Arc<dyn TimeProvider>) -> Result<ClientTls, ConfigError> {
        let provider = self.choice.provider()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots.store(), Arc::clone(&provider))
            .build()
            .map_err(|error| ConfigError::Refused(rustls::Error::General(error.to_string())))?;
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), clock)
            .with_protocol_versions(&self.choice.versions())
            .map_err(ConfigError::Refused)?
            .with_webpki_verifier(verifier);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let certified = SingleCertAndKey::from(identity.certify(&provider)?);
                builder.with_client_cert_resolver(Arc::new(certified))
            }
        };
        config.alpn_protocols = self.choice.alpn;
        if !self.resume {
            config.resumption = Resumption::disabled();
        }
        Ok(ClientTls { config: Arc::new(config) })
    }
}
