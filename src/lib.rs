#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod api;
pub mod buf;
mod config;
mod counters;
pub mod driver;
mod error;
mod report;
mod shard;
#[cfg(feature = "sim")]
pub mod sim;
mod sync;

pub use api::offload::offload;
pub use api::task::{
    JoinError, JoinHandle, RemoteHandle, block_on, counters, current, random, report, spawn, yield_now,
};
pub use buf::{Lease, Payload};
pub use config::{Backend, Config, Limits, Warning};
pub use counters::Counters;
#[doc(hidden)]
pub use driver::sys::script::Script;
pub use error::{Error, Full};
pub use report::{BackendKind, BackendReport, Capabilities, Capability};
pub use shard::{
    Builder, Close, Completion, Context, Distribution, EndpointId, Event, PanicPolicy, Pinning, Remote,
    Runtime, Shard, ShardEnd, Undelivered,
};

/// Sockets.
pub mod net {
    pub use crate::api::dns::resolve;
    pub use crate::api::tcp::{OwnedReadHalf, OwnedWriteHalf, TcpListener, TcpStream, ToAddresses, copy};
    pub use crate::api::udp::UdpSocket;
    pub use crate::api::unix::{UnixListener, UnixStream};
    pub use crate::driver::completion::Datagram;
}

/// Files.
pub mod fs {
    pub use crate::api::file::File;
}

/// Time.
pub mod time {
    pub use crate::api::time::{
        Interval, MissedTicks, Sleep, interval, now, sleep, sleep_until, timeout, timeout_at, wall,
    };
}

/// Foreign descriptors and signals.
pub mod os {
    pub use crate::api::ready::Ready;
    pub use crate::api::signal::{Signal, SignalKind, ctrl_c};
}

pub use os::ctrl_c;
pub use time::{interval, sleep, sleep_until, timeout};
