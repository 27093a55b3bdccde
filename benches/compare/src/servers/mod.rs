//! The servers. Each does the same by the means of its runtime: echo over TCP and UDP, fan-out, and, inside its own
//! process, timers and tasks.

mod anabranch_async;
mod anabranch_bulk;
mod anabranch_completion;
mod anabranch_server;
mod bare_epoll;
mod bare_uring;
mod bare_uring_udp;
mod buffer_ring;
mod compio;
mod glommio;
mod micro;
mod mio;
mod monoio;
mod outbox;
mod ready;
mod tls;
mod tokio;

use crate::scenario::Role;
use anabranch::Backend;
use std::io;
use std::net::SocketAddr;

/// Bytes of a receive buffer for streams, and for datagrams.
pub const STREAM_BUFFER: usize = 16 * 1024;
pub const DATAGRAM_BUFFER: usize = 2048;
/// Fan-out: bytes of a message, bytes that may wait for one subscriber, and how connections introduce themselves.
pub const MESSAGE: usize = 32;
pub const FANOUT_BACKLOG: usize = 1 << 20;
pub const PUBLISHER: u8 = b'P';
pub const SUBSCRIBER: u8 = b'S';

/// What a server shall do. It says that it listens by [`Job::ready`].
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub role: Role,
    pub address: SocketAddr,
}

impl Job {
    /// Tells the driver that connections may come.
    pub fn ready(&self) {
        println!("ready");
    }
}

/// A server of the comparison.
pub struct Server {
    pub name: &'static str,
    pub group: Group,
    /// In words, for the documents.
    pub about: &'static str,
    /// Does the work of a role until the process is ended.
    serve: fn(Job) -> io::Result<()>,
    /// Roles it has; the others are missing, with a reason.
    missing: &'static [(Role, &'static str)],
    /// Nanoseconds of CPU per reset of a timer, and per turn of a task.
    micro: Option<fn(Role, usize) -> io::Result<f64>>,
}

/// Which colours a server gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    Bare,
    Ours,
    Peer,
}

/// What a server component has no part in.
const NO_STREAMS: &[(Role, &str)] = &[
    (Role::Udp, "a server component is about streams"),
    (Role::BulkUdp, "a server component is about streams"),
    (Role::Timers, "its timers are those of the async surface"),
    (Role::Tasks, "its tasks are those of the async surface"),
];

const NO_RUNTIME: &[(Role, &str)] = &[(Role::Timers, "has no timers"), (Role::Tasks, "has no tasks")];

/// Asio is a program of its own, built by the driver.
pub const ASIO: &str = "asio";

/// All servers, in the order of the tables.
pub const SERVERS: &[Server] = &[
    Server {
        name: "bare-uring",
        group: Group::Bare,
        about: "a bare loop over io_uring: multishot receives, a buffer ring, one vectored send per connection in flight",
        serve: bare_uring::serve,
        missing: NO_RUNTIME,
        micro: None,
    },
    Server {
        name: "bare-epoll",
        group: Group::Bare,
        about: "a bare loop over edge-triggered epoll; UDP by recvmmsg and sendmmsg, with segmentation offload for bulk",
        serve: bare_epoll::serve,
        missing: NO_RUNTIME,
        micro: None,
    },
    Server {
        name: "anabranch",
        group: Group::Ours,
        about: "async surface on io_uring",
        serve: |job| anabranch_async::serve(job, Backend::Uring),
        missing: &[],
        micro: Some(|role, count| anabranch_async::micro(role, count, Backend::Uring)),
    },
    Server {
        name: "anabranch-completion",
        group: Group::Ours,
        about: "completion API on io_uring",
        serve: |job| anabranch_completion::serve(job, Backend::Uring),
        missing: &[
            (Role::Timers, "timers of the completion API cannot be moved"),
            (Role::Tasks, "the completion API has no tasks"),
        ],
        micro: None,
    },
    Server {
        name: "anabranch-readiness",
        group: Group::Ours,
        about: "async surface on the readiness backend (epoll)",
        serve: |job| anabranch_async::serve(job, Backend::Readiness),
        missing: &[],
        micro: Some(|role, count| anabranch_async::micro(role, count, Backend::Readiness)),
    },
    Server {
        name: "anabranch-completion-readiness",
        group: Group::Ours,
        about: "completion API on the readiness backend (epoll)",
        serve: |job| anabranch_completion::serve(job, Backend::Readiness),
        missing: &[
            (Role::Timers, "timers of the completion API cannot be moved"),
            (Role::Tasks, "the completion API has no tasks"),
        ],
        micro: None,
    },
    Server {
        name: "anabranch-server",
        group: Group::Ours,
        about: "server component with callbacks, its default limits and counters, on io_uring",
        serve: |job| anabranch_server::serve(job, Backend::Uring),
        missing: NO_STREAMS,
        micro: None,
    },
    Server {
        name: "anabranch-server-readiness",
        group: Group::Ours,
        about: "server component with callbacks on the readiness backend (epoll)",
        serve: |job| anabranch_server::serve(job, Backend::Readiness),
        missing: NO_STREAMS,
        micro: None,
    },
    Server {
        name: "tokio",
        group: Group::Peer,
        about: "current-thread runtime",
        serve: tokio::serve,
        missing: &[],
        micro: Some(tokio::micro),
    },
    Server {
        name: "compio",
        group: Group::Peer,
        about: "io_uring driver, single issuer, deferred task work",
        serve: compio::serve,
        missing: &[],
        micro: Some(compio::micro),
    },
    Server {
        name: "monoio",
        group: Group::Peer,
        about: "io_uring driver, cooperative task work",
        serve: monoio::serve,
        missing: &[],
        micro: Some(monoio::micro),
    },
    Server {
        name: "glommio",
        group: Group::Peer,
        about: "local executor as documented",
        serve: glommio::serve,
        missing: &[],
        micro: Some(glommio::micro),
    },
    Server {
        name: "mio",
        group: Group::Peer,
        about: "an event loop over mio; UDP by recv_from and send_to",
        serve: mio::serve,
        missing: NO_RUNTIME,
        micro: None,
    },
    Server {
        name: ASIO,
        group: Group::Peer,
        about: "C++, epoll reactor, one thread, asynchronous reads and writes as documented",
        serve: |_| Err(io::ErrorKind::Unsupported.into()),
        missing: &[(Role::Tasks, "has no tasks (its handlers are callbacks)")],
        micro: None,
    },
];

/// The server of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    SERVERS.iter().find(|server| server.name == name)
}

impl Server {
    /// Why it has no such role, if it has not.
    pub fn lacks(&self, role: Role) -> Option<&'static str> {
        if role == Role::Tls && !tls::SERVERS.contains(&self.name) {
            return Some("TLS is compared with tokio-rustls only");
        }
        self.missing.iter().find(|(missing, _)| *missing == role).map(|(_, reason)| *reason)
    }

    /// Serves until the process is ended.
    pub fn serve(&self, job: Job) -> io::Result<()> {
        (self.serve)(job)
    }

    /// Nanoseconds of CPU per operation of a role that needs no load.
    pub fn micro(&self, role: Role, count: usize) -> io::Result<f64> {
        let run = self.micro.ok_or(io::ErrorKind::Unsupported)?;
        run(role, count)
    }
}
