//! Name resolution, as the system does it, off the loop.
#![forbid(unsafe_code)]

use super::offload::offload;
use crate::shard::Core;
use std::io;
use std::net::SocketAddr;

/// The addresses of `host` (a name or an address, with a port: `"localhost:80"`).
///
/// # Errors
///
/// If the name cannot be resolved, or as [`offload`](crate::offload).
pub async fn resolve(host: impl Into<String>) -> io::Result<Vec<SocketAddr>> {
    let host = host.into();
    if let Ok(address) = host.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let Some((name, Ok(port))) = host.rsplit_once(':').map(|(name, port)| (name.to_owned(), port.parse()))
    else {
        let text = "an address has a port: \"localhost:80\"";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    resolve_name(name, port).await
}

/// The addresses of a name, each with `port`.
pub(crate) async fn resolve_name(name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = Core::required()?.config.host.clone();
    let found = offload(move || host.resolve(&name, port)).await??;
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}
