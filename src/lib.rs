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
pub mod component;
mod config;
mod counters;
pub mod driver;
mod error;
mod proto;
mod report;
mod shard;
#[cfg(feature = "sim")]
pub mod sim;
mod sync;
mod trace;

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
pub use proto::codec;
pub use report::{BackendKind, BackendReport, Capabilities, Capability};
pub use shard::{
    Builder, Close, Completion, Context, Delivered, Departed, Departure, Distribution, EndpointId, Event,
    PanicPolicy, Pinning, Remote, Runtime, Shard, ShardEnd, Slow, Undelivered,
};

/// Sockets.
pub mod net {
    pub use crate::api::dns::resolve;
    pub use crate::api::listening::{ListenOptions, ListeningSockets, ShardListeners};
    pub use crate::api::relay::{
        RelayBy, RelayError, RelaySide, Sink, Source, copy, copy_bidirectional, copy_bidirectional_by,
        copy_by,
    };
    pub use crate::api::send_file::SendFileError;
    pub use crate::api::tcp::{OwnedReadHalf, OwnedWriteHalf, TcpListener, TcpStream, ToAddresses};
    pub use crate::api::udp::{
        Interface, InvalidMulticast, OptionRefused, SendOptions, UdpOptions, UdpSocket,
    };
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

/// TLS 1.3 and 1.2 over TCP and Unix sockets, by rustls.
///
/// A [`TlsAcceptor`](tls::TlsAcceptor) or [`TlsConnector`](tls::TlsConnector) makes a [`TlsStream`](tls::TlsStream) of a
/// connection, at its beginning or in its midst. What it speaks and shows is in a [`ServerTls`](tls::ServerTls) or
/// [`ClientTls`](tls::ClientTls), which may be shared by all shards.
#[cfg(feature = "tls")]
pub mod tls {
    pub use crate::component::tls::{TlsAcceptor, TlsConnector, TlsStream, Transport};
    pub use crate::proto::tls::{
        CertResolver, ClientAuth, ClientTls, ClientTlsBuilder, ConfigError, Identity, Roots, ServerTls,
        ServerTlsBuilder, TlsError, TlsInfo, TlsVersion,
    };
    /// The version of rustls that is used, for a provider or a configuration of one's own.
    pub use rustls;
}

/// Foreign descriptors, sockets of other processes, and signals.
pub mod os {
    pub use crate::api::passing::{PassedSocket, SocketKind, descriptors_max};
    pub use crate::api::ready::Ready;
    pub use crate::api::signal::{Signal, SignalKind, ctrl_c};
    /// What lends a socket of the system: `AsFd`, and on Windows `AsSocket`.
    pub use crate::api::tcp::Lend;
}

pub use os::ctrl_c;
pub use time::{interval, sleep, sleep_until, timeout};
