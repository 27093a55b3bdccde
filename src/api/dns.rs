//! Name resolution, as the system does it, off the loop.
#![forbid(unsafe_code)]

use super::offload::offload;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

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
    let found: Vec<SocketAddr> = offload(move || host.to_socket_addrs()).await??.collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}
