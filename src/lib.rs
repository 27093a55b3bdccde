#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(target_os = "linux"),
    allow(
        dead_code,
        unused_imports,
        reason = "what only rings use; Linux is where the unused is looked for"
    )
)]

#[cfg(all(feature = "sim", not(unix)))]
compile_error!("simulations run on Unix");

mod api;
pub mod buf;
#[cfg(all(feature = "capi", unix))]
pub mod capi;
mod config;
mod counters;
pub mod driver;
mod error;
mod report;
mod shard;
#[cfg(feature = "sim")]
pub mod sim;
mod sync;

pub use api::broadcast::Broadcast;
pub use api::offload::offload;
pub use api::task::{
    JoinError, JoinHandle, RemoteHandle, block_on, counters, current, random, report, spawn, yield_now,
};
pub use buf::{Lease, Payload};
pub use config::{Backend, Config, Limits, Spin, Warning};
pub use counters::Counters;
#[doc(hidden)]
pub use driver::sys::script::Script;
pub use error::{Error, Full};
pub use report::{BackendKind, BackendReport, Capabilities, Capability};
pub use shard::{
    Builder, Close, Completion, Context, Delivered, Departed, Departure, Distribution, EndpointId, Event,
    PanicPolicy, Pinning, Remote, Runtime, Shard, ShardEnd, Slow, Undelivered,
};

/// Sockets.
pub mod net {
    pub use crate::api::dns::resolve;
    pub use crate::api::relay::{
        RelayBy, RelayError, RelaySide, Sink, Source, copy, copy_bidirectional, copy_bidirectional_by,
        copy_by,
    };
    pub use crate::api::send_file::SendFileError;
    pub use crate::api::tcp::{OwnedReadHalf, OwnedWriteHalf, TcpListener, TcpStream, ToAddresses};
    pub use crate::api::udp::{SendOptions, UdpSocket};
    pub use crate::api::unix::{UnixListener, UnixStream};
    pub use crate::driver::datagram::{Datagram, Ecn, InvalidDatagram, LocalAddress, Segments};
}

pub use api::event;

/// Files.
pub mod fs {
    pub use crate::api::file::File;
}

/// Time.
pub mod time {
    pub use crate::api::time::{
        Interval, Limited, MissedTicks, Sleep, TimeLimit, Timeout, interval, now, sleep, sleep_until,
        timeout, timeout_at, wall,
    };
}

/// Foreign descriptors and signals.
pub mod os {
    pub use crate::api::ready::Ready;
    pub use crate::api::signal::{Signal, SignalKind, ctrl_c};
}

pub use os::ctrl_c;
pub use time::{interval, sleep, sleep_until, timeout};
