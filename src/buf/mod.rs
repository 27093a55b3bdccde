//! The closed set of buffers, and who may hold which.
//!
//! A receive fills a [`Lease`]; a send takes a [`Payload`]; a read into memory of the caller's takes a
//! `Vec<u8>` and gives it back. There is no public buffer trait: every buffer the kernel may touch is one of
//! these, lives on the heap or in a pool, and never moves while an operation holds it (invariant 1).
//!
//! This layer knows neither descriptors nor operations.

mod batch;
mod lease;
mod memory;
mod payload;
mod pool;

pub(crate) use batch::BATCH_MAX;
pub use batch::Batch;
pub use lease::Lease;
pub(crate) use memory::Memory;
pub(crate) use payload::Block;
pub use payload::Payload;
#[cfg(test)]
pub(crate) use pool::tests::filled;
pub(crate) use pool::{BUFFERS_MAX, Purpose, Region};
pub use pool::{BufferId, Pool};
