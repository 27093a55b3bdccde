//! [`Broadcast`]: one payload to many connections.
#![forbid(unsafe_code)]

use super::tcp::{OwnedWriteHalf, TcpStream};
use super::unix::UnixStream;
use crate::buf::Payload;
use crate::error::Error;
use crate::shard::{Core, Delivered, EndpointId, Members, Shard, Slow};
use std::fmt;
use std::io;
use std::rc::Rc;

/// Bytes that may wait for one member unless something else is said.
const BACKLOG_BYTES_MAX: usize = 1 << 20;

/// Connections of one shard that get the same messages.
///
/// [`send`](Self::send) puts one payload into the outbound queue of every member: the bytes are shared, not copied, and
/// nothing is allocated per member once its queue has grown to what it needs. It never waits. All members' sends leave
/// together at the end of the turn, in one system call on io_uring as long as the ring has room for them; several
/// messages that wait for the same member leave in one send.
///
/// Each member gets the messages in the order in which they were sent, in one line with what is sent to its connection
/// directly. A member that does not keep up is treated as its [policy](Slow) says, and nobody else notices. Its backlog
/// is bounded: the bytes queued or in flight on its connection, whoever sent them, and a few bytes more (the size of a
/// [`Payload`]) for each message that waits. One message always finds room on a connection that has nothing queued,
/// however large. Above [`Limits::outbound_bytes_total_max`](crate::Limits) a member may only have its share of that
/// bound, the bound divided by the number of members; so slow members take nothing from those that keep up. The bytes
/// of a message that many wait for count for each of them, though they are held once.
///
/// A member leaves when its connection, or the sending side of it, has failed or was closed or dropped; the next
/// broadcast tells ([`Delivered::departed`]). A broadcast holds no connection open, and dropping it ends nothing.
///
/// ```no_run
/// # async fn example(listener: anabranch::net::TcpListener) -> std::io::Result<()> {
/// use anabranch::{Broadcast, Slow};
///
/// let mut room = Broadcast::new()?.backlog_bytes_max(64 * 1024).slow(Slow::DropOldest);
/// let (stream, _) = listener.accept().await?;
/// room.join(&stream)?;
/// let delivered = room.send("welcome\n");
/// println!("{} got it, {} messages were lost", delivered.queued, delivered.dropped);
/// # Ok(())
/// # }
/// ```
pub struct Broadcast {
    core: Rc<Core>,
    members: Members,
}

impl Broadcast {
    /// A broadcast without members on the shard that runs here, with a backlog of 1 MiB (or
    /// [`Limits::outbound_bytes_max`](crate::Limits), if that is less) and [`Slow::DropNewest`].
    ///
    /// # Errors
    ///
    /// If no shard runs on this thread.
    pub fn new() -> io::Result<Broadcast> {
        Ok(Broadcast::of(Core::required()?))
    }

    pub(crate) fn of(core: Rc<Core>) -> Broadcast {
        let members = Members::new(BACKLOG_BYTES_MAX.min(core.config.limits.outbound_bytes_max));
        Broadcast { core, members }
    }

    /// Sets the backlog that a member may have, in bytes; [`Limits::outbound_bytes_max`](crate::Limits) at most, which
    /// bounds a connection whoever sends on it.
    pub fn backlog_bytes_max(mut self, bytes: usize) -> Broadcast {
        self.members.backlog_bytes_max = bytes.min(self.core.config.limits.outbound_bytes_max);
        self
    }

    /// Sets what happens to members that do not keep up.
    pub fn slow(mut self, slow: Slow) -> Broadcast {
        self.members.slow = slow;
        self
    }

    /// Makes a connection a member: a stream, its sending half, or its id in the completion API. Nothing happens if it is
    /// one. The first message that it gets is the next one sent. One that is still connecting may join; its messages
    /// leave when it is connected.
    ///
    /// An id must be one of this shard; that of another shard may name another connection here.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such connection or its outbound side is closed; the error of the connection if it
    /// failed.
    pub fn join(&mut self, member: impl Into<EndpointId>) -> Result<(), Error> {
        let (id, members) = (member.into(), &mut self.members);
        self.core.with(|state| state.join(members, id))?
    }

    /// Ends a membership. What was sent before still gets to the connection. Messages that it lost as a member; nothing
    /// if it was none.
    pub fn leave(&mut self, member: impl Into<EndpointId>) -> Option<u64> {
        self.members.remove(member.into())
    }

    /// Sends one message to every member.
    ///
    /// The message is the unit: a member gets the whole of it or nothing. A received [`Lease`](crate::Lease) is copied
    /// once, because the slowest member says how long the bytes are held.
    pub fn send(&mut self, message: impl Into<Payload>) -> Delivered {
        self.send_joined(message, 1)
    }

    /// Sends `messages` messages that stand one after the other in `payload`, as when they were received in one piece.
    /// They stay together: a member gets all of them or none, and what is counted as dropped is messages. Costs what one
    /// message costs.
    pub fn send_joined(&mut self, payload: impl Into<Payload>, messages: u32) -> Delivered {
        self.deliver(std::iter::once((payload.into(), messages)))
    }

    /// Sends several messages to every member: what [`send`](Self::send) does with one after the other, at nearly the
    /// cost of one, since the members are gone over once. Each member gets each message whole or not at all.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # anabranch::block_on(async {
    /// let mut room = anabranch::Broadcast::new()?;
    /// let received = bytes::Bytes::from_static(b"one\ntwo\nthree\n");
    /// let lines = received.split_inclusive(|byte| *byte == b'\n').map(|line| received.slice_ref(line));
    /// let delivered = room.send_all(lines);
    /// assert_eq!((delivered.queued, delivered.dropped), (0, 0), "there are no members");
    /// # Ok(())
    /// # })?
    /// # }
    /// ```
    pub fn send_all(&mut self, messages: impl IntoIterator<Item = impl Into<Payload>>) -> Delivered {
        // Whatever the caller computes, it does so while nothing is borrowed (invariant 12).
        let messages: Vec<_> = messages.into_iter().map(|message| (message.into(), 1)).collect();
        self.deliver(messages.into_iter())
    }

    fn deliver(&mut self, messages: impl Iterator<Item = (Payload, u32)>) -> Delivered {
        let members = &mut self.members;
        match self.core.with(|state| state.broadcast(members, messages)) {
            Ok(delivered) => delivered,
            Err(_) => self.members.all_departed(),
        }
    }

    /// Members, with those that have gone since the last broadcast.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages that members have lost so far; one for each member that lost it.
    pub fn dropped(&self) -> u64 {
        self.members.dropped
    }

    /// Messages that a member has lost since it joined; nothing if it is none.
    pub fn dropped_of(&self, member: impl Into<EndpointId>) -> Option<u64> {
        self.members.dropped_of(member.into())
    }
}

impl Shard {
    /// A [`Broadcast`] on this shard, as [`Broadcast::new`] makes one on the shard that runs.
    pub fn broadcast(&self) -> Broadcast {
        Broadcast::of(Rc::clone(&self.core))
    }
}

impl fmt::Debug for Broadcast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broadcast({} members, {} messages dropped)", self.len(), self.dropped())
    }
}

impl From<&TcpStream> for EndpointId {
    fn from(stream: &TcpStream) -> EndpointId {
        stream.id()
    }
}

impl From<&OwnedWriteHalf> for EndpointId {
    fn from(half: &OwnedWriteHalf) -> EndpointId {
        half.id()
    }
}

impl From<&UnixStream> for EndpointId {
    fn from(stream: &UnixStream) -> EndpointId {
        stream.id()
    }
}
