//! The closed set of buffers, and who may hold which.
//!
//! A receive fills a [`Lease`]; a send takes a [`Payload`]; a read into memory of the caller's takes a
//! `Vec<u8>` and gives it back. There is no public buffer trait: every buffer the kernel may touch is one of
//! these, lives on the heap or in a pool, and never moves while an operation holds it (invariant 1).
//!
//! This layer knows neither descriptors nor operations.

mod chain;
mod lease;
mod payload;
mod pool;

pub use chain::Batch;
pub(crate) use chain::Chain;
pub use lease::Lease;
pub use payload::Payload;
pub(crate) use pool::BUFFERS_MAX;
pub(crate) use pool::Region;
pub use pool::{BufferId, Pool};
