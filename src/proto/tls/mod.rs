//! TLS without input and output: what a connection says for which bytes, and what it is configured with.
//!
//! [`Session`] is the only place that names a connection of rustls, so that another version of it, or another library,
//! changes one file. It is fed ciphertext and gives plaintext, seals plaintext and gives ciphertext; when and where the
//! bytes go is the component's business. Configurations are checked where they are made: whatever can be wrong with a
//! certificate, a key or a name is a [`ConfigError`] before the first connection.
#![forbid(unsafe_code)]

mod client;
mod error;
mod identity;
mod info;
mod provider;
mod resolver;
mod roots;
mod server;
mod session;

pub use client::{ClientTls, ClientTlsBuilder};
pub use error::{ConfigError, TlsError};
pub use identity::Identity;
pub use info::{TlsInfo, TlsVersion};
pub use resolver::CertResolver;
pub use roots::Roots;
pub use server::{ClientAuth, ServerTls, ServerTlsBuilder};
pub(crate) use session::{Session, sealed_len};
