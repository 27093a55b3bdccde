//! Certificates with their private keys.
#![forbid(unsafe_code)]

use super::error::ConfigError;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A chain of certificates, its own first, with the private key of the first.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    origin: String,
}

impl Identity {
    /// Reads a chain and a key from files, each PEM or DER. A key may be of PKCS#8, PKCS#1 or SEC1, and must not be
    /// encrypted. Both may stand in one file of PEM.
    ///
    /// The files are read at once, by calls that block; in a server that runs, read them by other means and use
    /// [`from_pem`](Self::from_pem).
    ///
    /// # Errors
    ///
    /// The file that cannot be read, and what is missing or wrong in which file.
    pub fn from_files(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Identity, ConfigError> {
        let (chain_file, key_file) = (chain.as_ref(), key.as_ref());
        let (chain, key) = (read(chain_file)?, read(key_file)?);
        let of_chain = chain_file.display().to_string();
        let of_key = key_file.display().to_string();
        Identity::parse(chain, of_chain, key, of_key)
    }

    /// A chain and a key as PEM. Both may be the same bytes.
    ///
    /// # Errors
    ///
    /// What is missing or wrong.
    pub fn from_pem(chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Identity, ConfigError> {
        let (of_chain, of_key) = ("the PEM of the chain".to_owned(), "the PEM of the key".to_owned());
        let chain = certificates_of_pem(chain.as_ref(), &of_chain)?;
        let key = key_of_pem(key.as_ref(), &of_key)?;
        Ok(Identity { chain, key, origin: of_chain })
    }

    /// A chain and a key as DER.
    ///
    /// # Errors
    ///
    /// If there is no certificate, or the key has no known form.
    pub fn from_der(chain: Vec<Vec<u8>>, key: Vec<u8>) -> Result<Identity, ConfigError> {
        let origin = "the DER of the chain".to_owned();
        if chain.is_empty() {
            return Err(ConfigError::Missing { origin, what: "certificate" });
        }
        let key = key_of_der(key, "the DER of the key")?;
        Ok(Identity { chain: chain.into_iter().map(CertificateDer::from).collect(), key, origin })
    }

    fn parse(
        chain: Vec<u8>,
        of_chain: String,
        key: Vec<u8>,
        of_key: String,
    ) -> Result<Identity, ConfigError> {
        let chain = certificates(chain, &of_chain)?;
        let key = if is_pem(&key) { key_of_pem(&key, &of_key) } else { key_of_der(key, &of_key) }?;
        Ok(Identity { chain, key, origin: format!("{of_chain} and {of_key}") })
    }

    /// Where it came from, for messages.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) fn into_parts(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, String) {
        (self.chain, self.key, self.origin)
    }

    pub(super) fn end_entity(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// The identity as a provider uses it; the key must be that of the certificate.
    pub(super) fn certify(self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, ConfigError> {
        let (chain, key, origin) = self.into_parts();
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => ConfigError::KeyMismatch { origin },
            other => ConfigError::Malformed {
                origin,
                what: "certificate with its private key",
                reason: other.to_string(),
            },
        })?;
        Ok(Arc::new(certified))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} certificates from {})", self.chain.len(), self.origin)
    }
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(file).map_err(|error| ConfigError::Unreadable { file: file.to_owned(), error })
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"-----BEGIN ")
}

/// Certificates as PEM, or one as DER.
pub(super) fn certificates(
    bytes: Vec<u8>,
    origin: &str,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    match bytes.first() {
        None => Err(ConfigError::Missing { origin: origin.to_owned(), what: "certificate" }),
        // A DER certificate is a sequence, and begins with its tag.
        Some(0x30) => Ok(vec![CertificateDer::from(bytes)]),
        Some(_) => certificates_of_pem(&bytes, origin),
    }
}

pub(super) fn certificates_of_pem(
    pem: &[u8],
    origin: &str,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let what = "certificate";
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| malformed(origin, what, error.to_string()))?;
    match found.is_empty() {
        true => Err(ConfigError::Missing { origin: origin.to_owned(), what }),
        false => Ok(found),
    }
}

fn key_of_pem(pem: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            ConfigError::Missing { origin: origin.to_owned(), what: "private key that is not encrypted" }
        }
        other => malformed(origin, "private key", other.to_string()),
    })
}

fn key_of_der(der: Vec<u8>, origin: &str) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::try_from(der).map_err(|reason| malformed(origin, "private key", reason.to_owned()))
}

pub(super) fn malformed(origin: &str, what: &'static str, reason: String) -> ConfigError {
    ConfigError::Malformed { origin: origin.to_owned(), what, reason }
}
