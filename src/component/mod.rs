//! One object and a few callbacks are a whole server: service, server, session, agent, client.
//!
//! A [`Server`] listens on any number of shards and gives each connection to a [`Handler`]: callbacks, or one `async`
//! function per connection. What a server must have is on by default: limits for everything that a peer may do slowly or too
//! often ([`Policy`]), a [reason](CloseReason) and a counter for each end, exactly one `on_close` per connection, and a
//! [shutdown](Fleet::shutdown) that lets connections finish.
#![forbid(unsafe_code)]

mod acceptor;
mod agent;
mod blocking;
mod client;
mod close;
mod conn;
mod dial;
mod drain;
mod fleet;
mod handler;
pub mod handover;
mod id;
mod life;
mod link;
mod member;
mod memory;
mod metrics;
mod order;
mod phase;
mod pipe;
mod policy;
mod registry;
mod secure;
mod server;
mod service;
mod session;
mod shards;
mod target;
mod timer;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub mod udp;
mod watch;

pub use agent::{Agent, AgentBuilder, ConnectError, Connecting};
pub use blocking::{BlockingClient, BlockingOptions, ClientError};
pub use client::{Client, ClientBuilder};
pub use close::{CloseReason, Closed, Failure, Stage};
pub use conn::Conn;
pub use dial::Reconnect;
pub use fleet::{Busy, Fleet};
pub use handler::{Admission, Handler, Idle, Peer, Trouble};
pub use id::ConnId;
pub use metrics::{Snapshot, prometheus};
pub use phase::Phase;
pub use policy::{AtLimit, Policy};
pub use server::{Builder, Server};
pub use service::{Job, Service, ServiceBuilder, ServiceError, ServiceHandle, ServiceHandler, WorkOutput};
pub use session::{Refused, Session, WhyRefused};
pub use shards::Shards;
pub use target::Target;
pub use timer::{Expiry, Timer, Wait};
