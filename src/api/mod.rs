//! The surfaces. All of them look at the same endpoint queues; none owns an operation.
#![forbid(unsafe_code)]

pub(crate) mod broadcast;
mod completion;
pub(crate) mod dns;
pub mod event;
pub(crate) mod file;
#[cfg(feature = "futures-io")]
mod futures_io;
pub(crate) mod gather;
pub(crate) mod listening;
mod methods;
pub(crate) mod offload;
pub(crate) mod passing;
pub(crate) mod ready;
pub(crate) mod relay;
pub(crate) mod send_file;
pub(crate) mod signal;
pub(crate) mod stream;
pub(crate) mod task;
pub(crate) mod tcp;
pub(crate) mod time;
pub(crate) mod udp;
pub(crate) mod unix;
