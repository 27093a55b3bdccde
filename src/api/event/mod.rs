//! `OpenSocket` in Rust: sockets with small ids, calls from any thread, one callback.
//!
//! A layer over the completion API of shards that run on threads of their own. Calls made from inside the callback act
//! at once on the shard; those of other threads go through a queue to it (`command.rs`). What calls cause is told later,
//! never from inside the call. Each id leads by one word to its shard and row (`ids.rs`); a row has what the facade adds
//! to the endpoint: owner, state, what is held back (`socket.rs`). No thread per socket, and no lock on the way of an
//! event.
//!
//! # The life of a socket
//!
//! [`listen`](Sockets::listen), [`connect`](Sockets::connect), [`bind`](Sockets::bind) and [`udp`](Sockets::udp) give an
//! id at once; an accept brings one with [`Event::Accept`]. Listeners and accepted connections deliver nothing until
//! [`start`](Sockets::start); started again, whatever delivers gets another owner. The owner, `uid`, is in each event,
//! so that the callback can pass it on to whom it concerns ([`Channels`] does).
//!
//! The last event of an id is `Close` or `Error`, exactly one of them; only errors that
//! [are survived](Trouble::is_survived) come earlier. A close of an id that does not live is answered with a `Close` all
//! the same. Events of one id keep their order; between ids nothing is promised.
//!
//! Sends keep the order of the thread that makes them, and each stays together. [`Sockets::send`] goes before
//! [`Sockets::send_low_priority`] when both wait. What waits has no bound unless
//! [`Limits::outbound_bytes_max`](crate::Limits) sets one: then a connection that passes it ends with an error.
//!
//! ```
//! use anabranch::event::{Event, OpenSocket};
//! use std::sync::mpsc;
//!
//! let server = OpenSocket::new();
//! let (sender, received) = mpsc::channel();
//! server.run(move |sockets, event| match event {
//!     Event::Accept { accepted, .. } => sockets.start(2, accepted),
//!     Event::Open { id, uid: 3, .. } => sockets.send(id, "ping").unwrap(),
//!     Event::Data { id, uid: 2, data } => sockets.send(id, data).unwrap(),
//!     Event::Data { data, .. } => sender.send(data.to_vec()).unwrap(),
//!     _ => {}
//! })?;
//! let listener = server.listen(1, "127.0.0.1", 0, 16)?;
//! server.start(1, listener);
//! let port = loop {
//!     if let Some(info) = server.socket_info().first() {
//!         break info.address.unwrap().port();
//!     }
//! };
//! server.connect(3, "127.0.0.1", port)?;
//! assert_eq!(received.recv().unwrap(), b"ping");
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

mod channels;
mod command;
mod connect;
mod datagrams;
mod foreign;
mod ids;
mod local;
mod message;
mod meter;
mod names;
mod pages;
mod run;
mod send;
mod socket;
mod sockets;

pub use channels::{Channel, Channels};
pub use ids::SocketId;
pub use message::{Event, Opened, Trouble};
pub use meter::{Info, InfoKind};
pub use names::domain_name_to_ip;
pub use sockets::Sockets;

use crate::config::Config;
use ids::SHARDS_MAX;
use sockets::Shared;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A set of sockets, the threads that serve them, and a callback. The calls are those of [`Sockets`].
///
/// Calls made before [`run`](Self::run) wait for it. Dropping it ends the threads: every socket is closed, what the
/// system takes without waiting is still sent, and no callback runs after the drop has returned. (Dropped from inside
/// its own callback it cannot wait for that callback, and returns at once.)
pub struct OpenSocket {
    sockets: Sockets,
    /// By the index of their shard.
    threads: Mutex<Vec<(usize, thread::JoinHandle<()>)>>,
}

/// How an [`OpenSocket`] is set up.
#[derive(Debug)]
pub struct Builder {
    shards: usize,
    config: Config,
}

impl Default for Builder {
    fn default() -> Builder {
        let config = Config::new().with_limits(|limits| {
            limits.endpoints_max = 1 << 18;
            limits.operations_max = 1 << 19;
            limits.outbound_bytes_max = usize::MAX;
            limits.outbound_bytes_total_max = usize::MAX;
            limits.datagrams_outbound_max = usize::MAX;
            // Of sockets for datagrams; a connection ends here only when all has left.
            limits.close_flush_ms = 3_600_000;
        });
        Builder { shards: 1, config }
    }
}

impl Builder {
    /// How many threads serve the sockets, 1 to 128. The default is one, as in the original: then all events come on one
    /// thread. With more, a socket stays on one of them.
    pub fn shards(mut self, shards: usize) -> Builder {
        self.shards = shards;
        self
    }

    /// Changes the configuration of the shards. By default at most 262 144 sockets are open in each, what waits to
    /// be sent has no bound, and sockets for datagrams that close have an hour to send it; connections, which tell of
    /// their close, have as long as they need, unless a [`shutdown`](Sockets::shutdown) ends them.
    pub fn config(mut self, change: impl FnOnce(Config) -> Config) -> Builder {
        self.config = change(self.config);
        self
    }

    /// Makes it; nothing runs yet.
    ///
    /// # Panics
    ///
    /// If the number of shards is not in its range.
    pub fn build(self) -> OpenSocket {
        assert!((1..=SHARDS_MAX).contains(&self.shards), "an OpenSocket has 1 to {SHARDS_MAX} shards");
        let sockets = Sockets { shared: Arc::new(Shared::new(self.config, self.shards)) };
        OpenSocket { sockets, threads: Mutex::default() }
    }
}

impl OpenSocket {
    /// One with the default settings.
    pub fn new() -> OpenSocket {
        OpenSocket::builder().build()
    }

    /// Settings to begin with.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts the thread; returns when it serves. The callback gets each event, one at a time, on that thread; while it
    /// runs nothing else happens to these sockets. If it panics, the sockets close and further calls fail.
    ///
    /// # Errors
    ///
    /// Of kind `AlreadyExists` if it runs already, `InvalidInput` if it has several shards (see
    /// [`run_each`](Self::run_each)); or if no shard can be set up.
    pub fn run<F>(&self, callback: F) -> io::Result<()>
    where
        F: FnMut(&Sockets, Event) + Send + 'static,
    {
        if self.sockets.shared.stations.len() > 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "several shards need run_each"));
        }
        let mut callback = Some(callback);
        self.run_each(|_| callback.take().expect("there is one shard"))
    }

    /// As [`run`](Self::run), with a callback for each shard, which `make` makes for the index of it.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub fn run_each<F>(&self, mut make: impl FnMut(usize) -> F) -> io::Result<()>
    where
        F: FnMut(&Sockets, Event) + Send + 'static,
    {
        let shared = &self.sockets.shared;
        if shared.started.swap(true, Ordering::AcqRel) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it runs already"));
        }
        for index in 0..shared.stations.len() {
            match run::start(&self.sockets, index, make(index)) {
                Ok(thread) => {
                    self.threads.lock().unwrap_or_else(PoisonError::into_inner).push((index, thread));
                }
                Err(error) => {
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Delivers through a channel for each uid; see [`Channels`].
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub fn run_channels(&self) -> io::Result<Channels> {
        channels::run(self)
    }

    /// Ends it, as dropping it does. Calls fail from now on.
    pub fn stop(&self) {
        self.sockets.shared.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let own = run::current_shard(&self.sockets.shared);
        for (_, thread) in threads.into_iter().filter(|(index, _)| own != Some(*index)) {
            // A callback that panicked has ended what there was to end.
            let _ = thread.join();
        }
    }

    /// The calls, for other threads. They can be cloned, and do not keep it running.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }
}

impl Default for OpenSocket {
    fn default() -> OpenSocket {
        OpenSocket::new()
    }
}

impl Deref for OpenSocket {
    type Target = Sockets;

    fn deref(&self) -> &Sockets {
        &self.sockets
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for OpenSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSocket")
            .field("shards", &self.sockets.shared.stations.len())
            .finish_non_exhaustive()
    }
}
