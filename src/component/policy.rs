//! The limits of components: on by default, each with a reason of its own for ending a connection.
#![forbid(unsafe_code)]

use crate::shard::Slow;
use std::time::Duration;

/// What a server does when it has as many connections as it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum AtLimit {
    /// Accept no more until one ends; newcomers wait in the backlog of the system.
    #[default]
    Wait,
    /// Accept and close at once, so that newcomers know.
    Refuse,
}

/// The limits of a server, an agent or a client. All have a default; `None` turns one off.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// Connections at once, over all shards. By default the soft limit of open descriptors less 64 (and a tenth of it), because
    /// logs, files and the shards themselves need some.
    pub connections_max: usize,
    /// What happens at [`connections_max`](Self::connections_max).
    pub at_limit: AtLimit,
    /// Connections accepted in a second, on each shard; above, newcomers wait in the backlog. Off by default.
    pub accepts_per_second_max: Option<u32>,
    /// From the transport's connection to the end of the handshake. 10 s.
    pub handshake_timeout: Option<Duration>,
    /// Handshakes of TLS at once on each shard; further ones wait, and their time counts. 256.
    pub handshakes_max: usize,
    /// Nothing received and nothing sent for so long ends a connection, unless
    /// [`on_idle`](crate::component::Handler::on_idle) keeps it. 120 s.
    pub idle_timeout: Option<Duration>,
    /// From the first byte of a message to its last one, and a second more for each
    /// [`message_bytes_per_second_min`](Self::message_bytes_per_second_min) bytes of it that have arrived. 10 s. Only where a
    /// [`Codec`](crate::codec::Codec) says what a message is.
    pub message_timeout: Option<Duration>,
    /// Bytes of a message in progress that have to arrive in a second on average. 1024.
    pub message_bytes_per_second_min: u32,
    /// The peer takes nothing of what is queued for so long. 30 s. What it takes is seen when a send ends, and a send has up
    /// to [`Limits::outbound_bytes_max`](crate::Limits) bytes; so one that takes less than such a queue in this time ends,
    /// too.
    pub write_stall_timeout: Option<Duration>,
    /// A connection is open for so long at most. Off by default.
    pub lifetime: Option<Duration>,
    /// Bytes that may wait to be sent on a connection, for [`push`](crate::component::Session::push) and broadcasts.
    /// 512 KiB, and never more than [`Limits::outbound_bytes_max`](crate::Limits).
    pub outbound_bytes_max: usize,
    /// What happens above that. [`send`](crate::component::Conn::send) waits instead.
    pub slow: Slow,
    /// Bytes that the shards of this process may hold for connections, received and to be sent. Above, the connection with
    /// the most to send is ended, one in each 50 ms and shard, and nobody is accepted. Half of what the shards' own limits
    /// allow for 8 shards: 512 MiB.
    pub memory_bytes_max: Option<usize>,
    /// TCP_NODELAY. On: the runtime joins small sends itself.
    pub nodelay: bool,
    /// Probes an idle connection after this time (tcp(7): SO_KEEPALIVE). Off by default.
    pub keepalive: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Policy {
        let descriptors = crate::api::passing::descriptors_max();
        Policy {
            connections_max: descriptors.saturating_sub(64 + descriptors / 10).max(1),
            at_limit: AtLimit::default(),
            accepts_per_second_max: None,
            handshake_timeout: Some(Duration::from_secs(10)),
            handshakes_max: 256,
            idle_timeout: Some(Duration::from_secs(120)),
            message_timeout: Some(Duration::from_secs(10)),
            message_bytes_per_second_min: 1024,
            write_stall_timeout: Some(Duration::from_secs(30)),
            lifetime: None,
            outbound_bytes_max: 512 * 1024,
            slow: Slow::default(),
            memory_bytes_max: Some(512 * 1024 * 1024),
            nodelay: true,
            keepalive: None,
        }
    }
}

impl Policy {
    /// The defaults.
    pub fn new() -> Policy {
        Policy::default()
    }

    /// Refuses what no connection could live with.
    pub(crate) fn check(&self) -> Result<(), String> {
        let times = [
            ("handshake_timeout", self.handshake_timeout),
            ("idle_timeout", self.idle_timeout),
            ("message_timeout", self.message_timeout),
            ("write_stall_timeout", self.write_stall_timeout),
            ("lifetime", self.lifetime),
        ];
        if let Some((name, _)) = times.iter().find(|(_, time)| *time == Some(Duration::ZERO)) {
            return Err(format!("Policy::{name} is zero; None turns it off"));
        }
        let counts = [
            ("connections_max", self.connections_max),
            ("handshakes_max", self.handshakes_max),
            ("outbound_bytes_max", self.outbound_bytes_max),
            ("message_bytes_per_second_min", self.message_bytes_per_second_min as usize),
            ("accepts_per_second_max", self.accepts_per_second_max.map_or(1, |rate| rate as usize)),
        ];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => Err(format!("Policy::{name} must be at least 1")),
            None => Ok(()),
        }
    }
}
