//! What the TLS servers have in common: the same configuration of the same rustls with the same provider.

use rustls::ServerConfig;
use std::io;
use std::sync::Arc;

/// The servers that have TLS.
pub const SERVERS: &[&str] = &["anabranch", "anabranch-readiness", "tokio"];

/// The defaults of rustls over ring, with a certificate that is made for the run.
pub fn config() -> io::Result<Arc<ServerConfig>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
    let key = made
        .signing_key
        .serialize_der()
        .try_into()
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.into()], key));
    config.map(Arc::new).map_err(io::Error::other)
}
