//! The contract of the driver, on every backend. The numbers are those of the invariants.
//!
//! Most tests run on all backends: the system's own, io_uring with one capability masked off at a time, and the
//! scripted one, calm and rough. A test that runs on fewer, or expects something else of some, says why.

mod common;

#[path = "driver_contract/bounds.rs"]
mod bounds;
#[path = "driver_contract/cancel.rs"]
mod cancel;
#[path = "driver_contract/datagrams.rs"]
mod datagrams;
#[path = "driver_contract/files.rs"]
mod files;
#[path = "driver_contract/ownership.rs"]
mod ownership;
#[path = "driver_contract/receive.rs"]
mod receive;
#[path = "driver_contract/rig.rs"]
mod rig;
// Not on Windows: it has no splices.
#[cfg(unix)]
#[path = "driver_contract/splice.rs"]
mod splice;
#[path = "driver_contract/streams.rs"]
mod streams;
#[path = "driver_contract/waiting.rs"]
mod waiting;
#[path = "driver_contract/zero_copy.rs"]
mod zero_copy;
