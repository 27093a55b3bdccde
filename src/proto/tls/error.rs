//! What can be wrong: with a configuration, and with a connection.
#![forbid(unsafe_code)]

use rustls::AlertDescription;
use std::path::PathBuf;
use std::{fmt, io};

/// Why a configuration cannot be used. Each says which file, name or setting is meant.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    Unreadable {
        /// Which one.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Something is not there that should be.
    Missing {
        /// Where it was looked for: the name of a file, or what the bytes are.
        origin: String,
        /// What it is.
        what: &'static str,
    },
    /// Something is there and cannot be understood.
    Malformed {
        /// Where it stands: the name of a file, or what the bytes are.
        origin: String,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A private key is not that of its certificate.
    KeyMismatch {
        /// Where the certificate and the key came from.
        origin: String,
    },
    /// A name that certificates are chosen by is neither a name of hosts nor `*.` before one.
    InvalidName(String),
    /// A certificate is chosen for a name that it is not valid for, so no client would take it.
    NameMismatch {
        /// The name that it was to be chosen for.
        name: String,
        /// Where the certificate came from.
        origin: String,
    },
    /// There is neither a certificate for every name nor one for any.
    NoCertificate,
    /// The provider has no cipher suite of this name.
    UnknownSuite(String),
    /// No cryptography provider was given and none is installed or built in: take the feature `tls-ring`, or install one
    /// (such as aws-lc-rs, by `rustls::crypto::CryptoProvider::install_default`).
    NoProvider,
    /// The settings do not fit together.
    Refused(rustls::Error),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Unreadable { file, error } => {
                write!(f, "{} cannot be read: {error}", file.display())
            }
            ConfigError::Missing { origin, what } => write!(f, "{origin}: there is no {what} in it"),
            ConfigError::Malformed { origin, what, reason } => {
                write!(f, "{origin}: this is no usable {what}: {reason}")
            }
            ConfigError::KeyMismatch { origin } => {
                write!(f, "{origin}: the private key is not that of the certificate")
            }
            ConfigError::InvalidName(name) => {
                write!(f, "{name:?} is neither the name of a host nor `*.` before one")
            }
            ConfigError::NameMismatch { name, origin } => {
                write!(f, "{origin}: the certificate is not valid for {name}")
            }
            ConfigError::NoCertificate => f.write_str("there is no certificate to show"),
            ConfigError::UnknownSuite(name) => write!(f, "the provider has no cipher suite called {name:?}"),
            ConfigError::NoProvider => f.write_str(
                "there is no cryptography provider; take the feature tls-ring, or install one of rustls' providers",
            ),
            ConfigError::Refused(error) => write!(f, "the settings do not fit together: {error}"),
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Unreadable { error, .. } => Some(error),
            ConfigError::Refused(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ConfigError> for io::Error {
    fn from(error: ConfigError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Why a TLS connection ended, or never came to be.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsError {
    /// The connection ended without `close_notify`: bytes may be missing at the end, and somebody may have cut them off.
    Truncated,
    /// The handshake had not ended when its time was over.
    HandshakeTimedOut,
    /// The name of the server is neither one of a host nor an IP address.
    InvalidName(String),
    /// The peer ended the connection with this alert.
    Alert(AlertDescription),
    /// What the peer said or showed was refused, and it was told so by an alert: its certificate, its protocols or
    /// versions, or bytes that are no TLS.
    Refused(rustls::Error),
    /// The connection below failed.
    Io(io::Error),
}

impl TlsError {
    /// The TLS error inside of an error of a stream, if it is one.
    pub fn of(error: &io::Error) -> Option<&TlsError> {
        error.get_ref()?.downcast_ref()
    }

    /// The error of rustls in our words.
    pub(super) fn from_rustls(error: rustls::Error) -> TlsError {
        match error {
            rustls::Error::AlertReceived(alert) => TlsError::Alert(alert),
            other => TlsError::Refused(other),
        }
    }

    /// The same again, for a stream that reports it to each further call.
    pub(crate) fn duplicate(&self) -> TlsError {
        match self {
            TlsError::Truncated => TlsError::Truncated,
            TlsError::HandshakeTimedOut => TlsError::HandshakeTimedOut,
            TlsError::InvalidName(name) => TlsError::InvalidName(name.clone()),
            TlsError::Alert(alert) => TlsError::Alert(*alert),
            TlsError::Refused(error) => TlsError::Refused(error.clone()),
            TlsError::Io(error) => TlsError::Io(match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Truncated => {
                f.write_str("the connection ended without close_notify; bytes may be missing")
            }
            TlsError::HandshakeTimedOut => f.write_str("the TLS handshake took too long"),
            TlsError::InvalidName(name) => write!(f, "{name:?} is no name of a server"),
            TlsError::Alert(alert) => write!(f, "the peer ended the connection with the alert {alert:?}"),
            TlsError::Refused(error) => write!(f, "refused what the peer sent: {error}"),
            TlsError::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TlsError::Refused(error) => Some(error),
            TlsError::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> io::Error {
        let kind = match error {
            TlsError::Io(error) => return error,
            TlsError::Truncated => io::ErrorKind::UnexpectedEof,
            TlsError::HandshakeTimedOut => io::ErrorKind::TimedOut,
            TlsError::InvalidName(_) => io::ErrorKind::InvalidInput,
            TlsError::Alert(_) => io::ErrorKind::ConnectionAborted,
            TlsError::Refused(_) => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> TlsError {
        TlsError::Io(error)
    }
}
