//! Which certificate a server shows for which name.
#![forbid(unsafe_code)]

use super::error::ConfigError;
use super::identity::Identity;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{DnsName, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// The certificates of a server, chosen by the name that a client asks for: that of exactly this name, else that of a
/// wildcard, else the default. Names do not depend on case.
#[derive(Debug, Default)]
pub struct CertResolver {
    default: Option<Identity>,
    named: Vec<(String, Identity)>,
}

impl CertResolver {
    /// Has none yet, and none for clients that name nothing or something unknown: they are refused.
    pub fn new() -> CertResolver {
        CertResolver::default()
    }

    /// The one for clients that name nothing, or nothing that is known here.
    #[must_use]
    pub fn with_default(mut self, identity: Identity) -> CertResolver {
        self.default = Some(identity);
        self
    }

    /// The one for a name, as `www.example.org`, or for all names with one label more, as `*.example.org`. The last one
    /// of a name counts.
    ///
    /// # Errors
    ///
    /// If that is no name, or the certificate is not valid for it.
    pub fn with_name(mut self, name: &str, identity: Identity) -> Result<CertResolver, ConfigError> {
        // A dot at the end says that the name is whole; clients do not send it.
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        check_name(&name, &identity)?;
        self.named.push((name, identity));
        Ok(self)
    }

    pub(super) fn certify(self, provider: &CryptoProvider) -> Result<Chosen, ConfigError> {
        if self.default.is_none() && self.named.is_empty() {
            return Err(ConfigError::NoCertificate);
        }
        let default = self.default.map(|identity| identity.certify(provider)).transpose()?;
        let mut named = HashMap::new();
        for (name, identity) in self.named {
            named.insert(name, identity.certify(provider)?);
        }
        Ok(Chosen { default, named })
    }
}

impl From<Identity> for CertResolver {
    /// The same for every name.
    fn from(identity: Identity) -> CertResolver {
        CertResolver::new().with_default(identity)
    }
}

/// A wildcard is tried with a label in its place.
fn check_name(name: &str, identity: &Identity) -> Result<(), ConfigError> {
    let invalid = || ConfigError::InvalidName(name.to_owned());
    let sample = match name.strip_prefix("*.") {
        Some("") => return Err(invalid()),
        Some(rest) => format!("a.{rest}"),
        None => name.to_owned(),
    };
    let host = DnsName::try_from(sample).map_err(|_| invalid())?;
    let mismatch =
        |_| ConfigError::NameMismatch { name: name.to_owned(), origin: identity.origin().to_owned() };
    let certificate = ParsedCertificate::try_from(identity.end_entity()).map_err(mismatch)?;
    verify_server_name(&certificate, &ServerName::DnsName(host)).map_err(mismatch)
}

/// Certificates as the provider uses them.
#[derive(Debug)]
pub(super) struct Chosen {
    default: Option<Arc<CertifiedKey>>,
    /// By name; a wildcard stands with its star.
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl Chosen {
    fn of(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wildcard = || self.named.get(&format!("*.{}", name.split_once('.')?.1));
            self.named.get(&name).or_else(wildcard)
        });
        named.or(self.default.as_ref()).cloned()
    }
}

/// What rustls asks: the certificates as they are now.
pub(super) struct Current {
    provider: Arc<CryptoProvider>,
    chosen: RwLock<Arc<Chosen>>,
}

impl Current {
    pub(super) fn new(resolver: CertResolver, provider: Arc<CryptoProvider>) -> Result<Current, ConfigError> {
        let chosen = RwLock::new(Arc::new(resolver.certify(&provider)?));
        Ok(Current { provider, chosen })
    }

    /// Handshakes that begin from now on are shown these.
    pub(super) fn replace(&self, resolver: CertResolver) -> Result<(), ConfigError> {
        let chosen = Arc::new(resolver.certify(&self.provider)?);
        *self.chosen.write().unwrap_or_else(PoisonError::into_inner) = chosen;
        Ok(())
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = Arc::clone(&self.chosen.read().unwrap_or_else(PoisonError::into_inner));
        chosen.of(hello.server_name())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current(..)")
    }
}
