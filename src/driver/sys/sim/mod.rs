//! A simulated kernel and network: hosts, sockets, files and time as one state machine that a seed drives.
//!
//! Nothing in here looks at a real clock, a thread or an address of memory, and everything that varies comes from
//! one [`Random`]; so a seed is a whole run, and the same seed is the same run. Calls behave like the non-blocking
//! system calls of Linux. Nothing in here knows a driver or a shard.

#![forbid(unsafe_code)]
#![allow(dead_code, reason = "a few calls of the simulated system are made by its own tests alone so far")]

mod address;
mod backend;
mod company;
mod core;
mod descriptor;
mod fault;
mod file;
mod log;
mod machine;
mod node;
mod ports;
mod random;
mod socket;
mod tcp;
#[cfg(test)]
mod testing;
mod udp;
mod unix;
mod world;

pub use fault::{Fault, FaultCounts, Faults};

#[allow(unused_imports, reason = "some of these are named by the tests alone")]
pub(crate) use self::{
    address::SimAddress,
    backend::SimBackend,
    core::{HostId, Settings},
    descriptor::{CALL_BYTES_MAX, Descriptor},
    file::OpenOptions,
    log::Log,
    machine::{Exclusive, Machine, Simulation, interruption, is_running, placeholder},
    node::NodeId,
    random::Random,
    socket::{DescriptorId, Family, Flag, Kind},
    tcp::{ConnectionInfo, ConnectionState},
    world::World,
};

/// What a simulated call gives: a value, or a positive error number.
pub(crate) type Outcome<T> = Result<T, i32>;
