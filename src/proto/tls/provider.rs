//! Which cryptography is used, and what of it.
#![forbid(unsafe_code)]

use super::error::ConfigError;
use super::info::TlsVersion;
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::server::ProducesTickets;
use std::sync::Arc;

/// What servers and clients choose alike.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) provider: Option<Arc<CryptoProvider>>,
    pub(super) suites: Option<Vec<String>>,
    pub(super) oldest: TlsVersion,
    pub(super) newest: TlsVersion,
    pub(super) alpn: Vec<Vec<u8>>,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            provider: None,
            suites: None,
            oldest: TlsVersion::Tls12,
            newest: TlsVersion::Tls13,
            alpn: Vec::new(),
        }
    }
}

impl Choice {
    /// The provider with the suites that were chosen.
    pub(super) fn provider(&self) -> Result<Arc<CryptoProvider>, ConfigError> {
        let provider = self.provider.clone().or_else(default_provider).ok_or(ConfigError::NoProvider)?;
        let Some(names) = &self.suites else { return Ok(provider) };
        let mut chosen = CryptoProvider::clone(&provider);
        chosen.cipher_suites.clear();
        for name in names {
            let known = provider.cipher_suites.iter().find(|known| known.suite().as_str() == Some(name));
            chosen.cipher_suites.push(*known.ok_or_else(|| ConfigError::UnknownSuite(name.clone()))?);
        }
        Ok(Arc::new(chosen))
    }

    pub(super) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let is_chosen = |(version, _): &(TlsVersion, _)| (self.oldest..=self.newest).contains(version);
        let all =
            [(TlsVersion::Tls13, &rustls::version::TLS13), (TlsVersion::Tls12, &rustls::version::TLS12)];
        all.into_iter().filter(is_chosen).map(|(_, version)| version).collect()
    }
}

/// The one of the process, if one was installed, or the one that is built in.
fn default_provider() -> Option<Arc<CryptoProvider>> {
    CryptoProvider::get_default().cloned().or_else(built_in)
}

fn built_in() -> Option<Arc<CryptoProvider>> {
    #[cfg(feature = "tls-ring")]
    return Some(Arc::new(rustls::crypto::ring::default_provider()));
    #[cfg(not(feature = "tls-ring"))]
    None
}

/// What seals session tickets, with keys that change every six hours; none if no provider is built in, and sessions are
/// then kept in memory.
pub(super) fn ticketer() -> Result<Option<Arc<dyn ProducesTickets>>, ConfigError> {
    #[cfg(feature = "tls-ring")]
    return rustls::crypto::ring::Ticketer::new().map(Some).map_err(ConfigError::Refused);
    #[cfg(not(feature = "tls-ring"))]
    Ok(None)
}
