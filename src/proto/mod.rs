//! Protocols without sockets: bytes come in, messages and bytes go out.
//!
//! What lies here knows neither descriptors nor shards nor a clock, so that it can be tested with bytes alone and used over
//! anything that carries them. Surfaces and components above bring the bytes.
#![forbid(unsafe_code)]

pub mod codec;
#[cfg(feature = "tls")]
pub(crate) mod tls;
