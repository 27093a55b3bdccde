//! What a handshake agreed on.
#![forbid(unsafe_code)]

use bytes::Bytes;
use rustls::ProtocolVersion;

/// A version of TLS. Older ones are not spoken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum TlsVersion {
    /// RFC 5246, with forward secrecy and authenticated encryption only.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl TlsVersion {
    pub(super) fn of(version: ProtocolVersion) -> Option<TlsVersion> {
        match version {
            ProtocolVersion::TLSv1_2 => Some(TlsVersion::Tls12),
            ProtocolVersion::TLSv1_3 => Some(TlsVersion::Tls13),
            _ => None,
        }
    }
}

/// What a handshake agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TlsInfo {
    /// The version.
    pub version: TlsVersion,
    /// The cipher suite, by its name in the registry of the IETF.
    pub cipher: &'static str,
    /// On a server the name that the client asked for, in lower case, if it named one; none on a client.
    pub sni: Option<String>,
    /// The protocol that both sides chose, if they talked about it.
    pub alpn: Option<Vec<u8>>,
    /// The certificates that the peer showed, its own first, as DER. They have been verified. None if it showed none.
    pub peer_certificates: Vec<Bytes>,
    /// Whether an earlier session was resumed, so that no certificate was shown or checked anew.
    pub resumed: bool,
}
