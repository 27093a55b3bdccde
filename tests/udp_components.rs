//! Datagram components: nodes, sessions by peer address, and options of sockets that speak to many.
#![forbid(unsafe_code)]

#[path = "udp_components/casting.rs"]
mod casting;
mod common;
#[path = "udp_components/nodes.rs"]
mod nodes;
#[path = "udp_components/sessions.rs"]
mod sessions;
#[path = "udp_components/sessions_async.rs"]
mod sessions_async;
