//! Which certificates the certificates of peers must go back to.
#![forbid(unsafe_code)]

use super::error::ConfigError;
use super::identity::{certificates, certificates_of_pem, malformed, read};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Root certificates: a peer's certificate is trusted if it goes back to one of them.
#[derive(Clone)]
pub struct Roots {
    store: Arc<RootCertStore>,
}

impl Roots {
    /// All certificates of PEM.
    ///
    /// # Errors
    ///
    /// If there is none, or one cannot be used as a root.
    pub fn from_pem(pem: impl AsRef<[u8]>) -> Result<Roots, ConfigError> {
        let origin = "the PEM of the roots";
        Roots::collect(certificates_of_pem(pem.as_ref(), origin)?, origin)
    }

    /// All certificates of a file of PEM, or the one of a file of DER. The file is read at once, by calls that block.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, has none, or one of them cannot be used as a root.
    pub fn from_file(file: impl AsRef<Path>) -> Result<Roots, ConfigError> {
        let file = file.as_ref();
        let origin = file.display().to_string();
        Roots::collect(certificates(read(file)?, &origin)?, &origin)
    }

    /// Certificates as DER.
    ///
    /// # Errors
    ///
    /// If there is none, or one cannot be used as a root.
    pub fn from_der(certificates: Vec<Vec<u8>>) -> Result<Roots, ConfigError> {
        let origin = "the DER of the roots";
        if certificates.is_empty() {
            return Err(ConfigError::Missing { origin: origin.to_owned(), what: "certificate" });
        }
        Roots::collect(certificates.into_iter().map(CertificateDer::from).collect(), origin)
    }

    /// The roots that Mozilla trusts, as they were when the crate `webpki-roots` was made.
    #[cfg(feature = "tls-webpki-roots")]
    pub fn mozilla() -> Roots {
        Roots { store: Arc::new(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()) }
    }

    fn collect(certificates: Vec<CertificateDer<'static>>, origin: &str) -> Result<Roots, ConfigError> {
        let mut store = RootCertStore::empty();
        for certificate in certificates {
            store
                .add(certificate)
                .map_err(|error| malformed(origin, "root certificate", error.to_string()))?;
        }
        Ok(Roots { store: Arc::new(store) })
    }

    pub(super) fn store(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.store)
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({} certificates)", self.store.len())
    }
}
