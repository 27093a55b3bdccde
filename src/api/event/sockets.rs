//! [`Sockets`]: the calls, from any thread.
#![forbid(unsafe_code)]

use super::command::{Command, Commands};
use super::ids::{Ids, PLACES, SocketId, Word};
use super::meter::{Info, Meter};
use super::names::{self, HOST_BYTES_MAX};
use super::pages::Pages;
use super::run;
use crate::buf::Payload;
use crate::config::Config;
use crate::driver::Descriptor;
use crate::driver::sys::os::{Lend, Owned, duplicate};
use crate::error::Error;
use socket2::{Domain, SockAddr};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The calls of an [`OpenSocket`](super::OpenSocket), for any thread and for the callback. Clones name the same sockets.
///
/// No call waits, except that names given to [`listen`](Self::listen), [`udp`](Self::udp) and
/// [`udp_connect`](Self::udp_connect) are resolved before they return. Calls of one thread act in their order.
#[derive(Clone)]
pub struct Sockets {
    pub(super) shared: Arc<Shared>,
}

/// What all threads share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) ids: Ids,
    pub(super) stations: Box<[Station]>,
    pub(super) started: AtomicBool,
    pub(super) stopped: AtomicBool,
}

/// What other threads see of a shard.
pub(super) struct Station {
    pub(super) commands: Commands,
    /// The numbers of its sockets, by row.
    pub(super) meters: Pages<Meter>,
}

/// Rows for which there are numbers at once: 24 KiB.
const METERS_PER_PAGE: usize = 256;

impl Shared {
    pub(super) fn new(config: Config, shards: usize) -> Shared {
        let station =
            || Station { commands: Commands::default(), meters: Pages::new(PLACES, METERS_PER_PAGE) };
        Shared {
            config,
            ids: Ids::new(),
            stations: (0..shards).map(|_| station()).collect(),
            started: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    /// Which shard gets a new socket.
    pub(super) fn shard_of(&self, id: SocketId) -> usize {
        id as usize % self.stations.len()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.stations.iter().for_each(|station| station.commands.tell());
    }
}

impl Sockets {
    /// Listens. No host means all addresses of IPv4, port 0 one that is free (see [`socket_info`](Self::socket_info)).
    /// Peers can connect from now on; they are accepted after [`start`](Self::start).
    ///
    /// A port above 65 535 loses its upper bits, as in the original.
    ///
    /// # Errors
    ///
    /// If the name cannot be resolved or the address not be listened on.
    pub fn listen(&self, uid: usize, host: &str, port: impl Into<i32>, backlog: i32) -> io::Result<SocketId> {
        let host_of_shards = &self.shared.config.host;
        let address = names::local(host_of_shards, host, port.into())?;
        let socket = host_of_shards.stream_socket(Domain::for_address(address))?;
        socket.set_reuse_address(true)?;
        // Accepted connections inherit it.
        socket.probe_idle()?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(backlog)?;
        let id = self.reserve(None)?;
        self.order(id, Command::Listen { id, uid, socket });
        Ok(id)
    }

    /// Connects: [`Event::Open`](super::Event::Open) or [`Event::Error`](super::Event::Error) follows. Names are resolved off the loop; addresses are tried one
    /// after the other. What is sent meanwhile leaves when the connection is there.
    ///
    /// # Errors
    ///
    /// If the host is longer than 231 bytes, or no more ids are free.
    pub fn connect(&self, uid: usize, host: &str, port: impl Into<i32>) -> io::Result<SocketId> {
        if host.len() > HOST_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a host name has at most 231 bytes"));
        }
        let id = self.reserve(None)?;
        self.order(id, Command::Connect { id, uid, host: host.to_owned(), port: port.into() });
        Ok(id)
    }

    /// Takes a descriptor of the program's: a socket of any kind, a pipe, a terminal.
    /// [`Event::Open`](super::Event::Open) or [`Event::Error`](super::Event::Error) follows. It stays the program's,
    /// and is left open; it is non-blocking from now on. Files and directories are refused, since they are always ready
    /// and would hold up the others.
    ///
    /// Each read, of up to 64 KiB, is one [`Event::Data`](super::Event::Data), so each datagram is; empty ones are not
    /// told of. On a socket for datagrams or packets each send is one, to the peer that the socket is connected to; a
    /// datagram that is too long is dropped. [`Limits::outbound_bytes_max`](crate::Limits) holds for what waits, the
    /// bounds of the whole shard do not. A write that fails is a [`Event::Close`](super::Event::Close).
    ///
    /// # Errors
    ///
    /// If no more ids are free.
    pub fn bind(&self, uid: usize, socket: impl Lend) -> io::Result<SocketId> {
        self.adopt(uid, duplicate(&socket))
    }

    pub(crate) fn adopt(&self, uid: usize, socket: io::Result<Owned>) -> io::Result<SocketId> {
        let id = self.reserve(None)?;
        let socket = socket.map(Descriptor::from);
        self.order(id, Command::Bind { id, uid, socket });
        Ok(id)
    }

    /// Opens a socket for datagrams, which delivers at once. No host means all addresses of IPv4.
    ///
    /// # Errors
    ///
    /// If the name cannot be resolved or the address not be bound.
    pub fn udp(&self, uid: usize, host: &str, port: impl Into<i32>) -> io::Result<SocketId> {
        let host_of_shards = &self.shared.config.host;
        let address = names::local(host_of_shards, host, port.into())?;
        let socket = host_of_shards.datagram_socket(Domain::for_address(address))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(address))?;
        let id = self.reserve(Some(address.is_ipv6()))?;
        self.order(id, Command::Udp { id, uid, socket });
        Ok(id)
    }

    fn reserve(&self, datagram_v6: Option<bool>) -> io::Result<SocketId> {
        if self.shared.is_stopped() {
            return Err(Error::ShardGone.into());
        }
        let reserved = self.shared.ids.reserve(|id| self.shared.shard_of(id), datagram_v6);
        reserved.ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, "1 048 576 sockets are open"))
    }

    /// Starts a listener or an accepted connection, or gives another owner to what delivers already:
    /// [`Event::Open`](super::Event::Open). Nothing happens to what connects, closes or was bound, and to a listener
    /// that was started.
    pub fn start(&self, uid: usize, id: SocketId) {
        self.order(id, Command::Start { id, uid });
    }

    /// Closes after what waits has been sent: [`Event::Close`](super::Event::Close), at once with this `uid` if nothing
    /// waits, else with the owner's when all has left. Until then input is dropped.
    pub fn close(&self, uid: usize, id: SocketId) {
        self.order(id, Command::Close { id, uid });
    }

    /// Closes at once: what the system takes without waiting is still sent. [`Event::Close`](super::Event::Close)
    /// with this `uid`.
    pub fn shutdown(&self, uid: usize, id: SocketId) {
        self.order(id, Command::Shutdown { id, uid });
    }

    /// Sends small pieces at once (TCP_NODELAY), which is off otherwise. Without effect on what is no connection.
    pub fn nodelay(&self, id: SocketId) {
        if self.shared.ids.look(id).is_some() {
            self.order(id, Command::Nodelay { id });
        }
    }

    /// Sends, whole and after what this thread sent before; on a socket for datagrams, one to its default destination.
    /// Accepted is not sent: what a listener, a connection that was not started, or one that closes is given is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the id does not live, or has no destination.
    pub fn send(&self, id: SocketId, payload: impl Into<Payload>) -> Result<(), Error> {
        self.give(id, payload.into(), false)
    }

    /// As [`send`](Self::send), but behind everything that other sends on this socket have waiting, save what has begun
    /// to leave.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn send_low_priority(&self, id: SocketId, payload: impl Into<Payload>) -> Result<(), Error> {
        self.give(id, payload.into(), true)
    }

    /// What is known of an id that something can be sent on.
    fn sendable(&self, id: SocketId) -> Result<Word, Error> {
        let word = self.shared.ids.look(id).ok_or(Error::Closed)?;
        let reaches = word.datagram_v6().is_none() || word.is_connected();
        if reaches { Ok(word) } else { Err(Error::Closed) }
    }

    fn give(&self, id: SocketId, payload: Payload, low: bool) -> Result<(), Error> {
        let word = self.sendable(id)?;
        let mut payload = Some(payload);
        if let Some(row) = word.row() {
            run::on_shard(&self.shared, word.shard(), |local| {
                if let Some(payload) = payload.take() {
                    local.borrow_mut().send(row, id, payload, low);
                }
            });
        }
        let Some(payload) = payload else { return Ok(()) };
        self.put(word.shard(), Command::Send { id, bytes: payload.into_lease().into_bytes(), low })
    }

    /// Sets the default destination of a socket for datagrams. Datagrams are received from anybody all the same.
    /// For one of another family, or on a connection, [`Event::Error`](super::Event::Error) follows.
    ///
    /// # Errors
    ///
    /// If the name cannot be resolved; [`Error::Closed`] if the id does not live.
    pub fn udp_connect(&self, id: SocketId, host: &str, port: impl Into<i32>) -> io::Result<()> {
        let word = self.shared.ids.look(id).ok_or(Error::Closed)?;
        let to = names::resolve(&self.shared.config.host, host, port.into())?[0];
        if word.datagram_v6() == Some(to.is_ipv6()) {
            self.shared.ids.connect(id);
        }
        self.order(id, Command::UdpConnect { id, to });
        Ok(())
    }

    /// Sends one datagram; one that is too long is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such socket for datagrams, or the address is of another family.
    pub fn udp_send(&self, id: SocketId, to: SocketAddr, payload: impl Into<Payload>) -> Result<(), Error> {
        let word = self.shared.ids.look(id).ok_or(Error::Closed)?;
        if word.datagram_v6() != Some(to.is_ipv6()) {
            return Err(Error::Closed);
        }
        let mut payload = Some(payload.into());
        if let Some(row) = word.row() {
            run::on_shard(&self.shared, word.shard(), |local| {
                if let Some(payload) = payload.take() {
                    local.borrow_mut().send_to(row, id, to, payload);
                }
            });
        }
        let Some(payload) = payload else { return Ok(()) };
        self.put(word.shard(), Command::UdpSend { id, to, bytes: payload.into_lease().into_bytes() })
    }

    /// What there is to know of every socket that delivers, and of started listeners, in the order of their places.
    /// Waits for nobody; sockets that change meanwhile are told of as they were before or after.
    pub fn socket_info(&self) -> Vec<Info> {
        let mut all = Vec::with_capacity(self.told().count());
        self.each_info(|info| all.push(info));
        all
    }

    /// Tells the same, one after the other.
    pub(crate) fn each_info(&self, tell: impl FnMut(Info)) {
        // The numbers themselves are moved once only, because there may be many.
        let mut all: Vec<(usize, &Meter)> = self.told().collect();
        all.sort_unstable_by_key(|(place, _)| *place);
        all.into_iter().filter_map(|(_, meter)| meter.info()).for_each(tell);
    }

    /// How many sockets there are to tell of.
    #[cfg(feature = "capi")]
    pub(crate) fn info_count(&self) -> usize {
        self.told().count()
    }

    /// The sockets to tell of, each with its place.
    fn told(&self) -> impl Iterator<Item = (usize, &Meter)> {
        let meters = self.shared.stations.iter().flat_map(|station| station.meters.used());
        meters.filter_map(|meter| Some((meter.id()? as usize % PLACES, meter)))
    }

    /// Does what a call asks, at once on the socket's own shard, else through its queue.
    fn order(&self, id: SocketId, command: Command) {
        let word = self.shared.ids.look(id);
        let own = run::current_shard(&self.shared);
        let shard = word.map_or(own.unwrap_or(0), |word| word.shard());
        // What another thread has asked for and the shard has not seen yet must come first.
        let is_known = word.is_none_or(|word| word.row().is_some()) || command.makes_socket();
        let mut command = Some(command);
        if is_known {
            run::on_shard(&self.shared, shard, |local| {
                if let Some(command) = command.take() {
                    local.borrow_mut().execute(command);
                }
            });
        }
        if let Some(command) = command {
            let _ = self.put(shard, command);
        }
    }

    fn put(&self, shard: usize, command: Command) -> Result<(), Error> {
        if self.shared.is_stopped() {
            return Err(Error::ShardGone);
        }
        self.shared.stations[shard].commands.push(command);
        Ok(())
    }

    /// As [`send`](Self::send), or [`send_low_priority`](Self::send_low_priority), of borrowed bytes. In the callback
    /// they are copied only as far as the system does not take them at once.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn send_slice(&self, id: SocketId, bytes: &[u8], low: bool) -> Result<(), Error> {
        let word = self.sendable(id)?;
        let mut done = false;
        if let Some(row) = word.row() {
            run::on_shard(&self.shared, word.shard(), |local| {
                local.borrow_mut().send_borrowed(row, id, bytes, low);
                done = true;
            });
        }
        if done {
            Ok(())
        } else {
            self.put(word.shard(), Command::Send { id, bytes: bytes.to_vec().into(), low })
        }
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("shards", &self.shared.stations.len()).finish_non_exhaustive()
    }
}
