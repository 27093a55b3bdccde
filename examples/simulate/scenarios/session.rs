//! Conversations over a connection: both ends do what chance says, and a model knows what each may see.
//!
//! The bytes of a direction are given by its key and their offset. So the model of a direction is how many bytes
//! were accepted and how many received: what is received must be the bytes of the next offsets, there must not be
//! more than was accepted, and the end must come after all of them, and only if the sender is done.
#![forbid(unsafe_code)]

use super::model::{Verdict, one_in, pattern, poll_once, within};
use anabranch::net::{OwnedReadHalf, OwnedWriteHalf, TcpStream, UnixStream};
use anabranch::{sleep, spawn, timeout};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

/// What all conversations of a simulation share.
#[derive(Clone)]
pub(crate) struct Book {
    pub(crate) verdict: Verdict,
    /// Nothing goes wrong, so nothing may fail without a cause in the program.
    pub(crate) calm: bool,
    connections: Rc<RefCell<BTreeMap<u64, Rc<Connection>>>>,
}

/// The model of a connection: a way from each side, the side that connected first.
struct Connection {
    key: u64,
    unix: bool,
    ways: [RefCell<Way>; 2],
}

/// The model of a direction.
#[derive(Default)]
struct Way {
    accepted: u64,
    received: u64,
    /// The sender has said that nothing more comes, or is gone.
    done: bool,
    /// The sender gave the connection up.
    aborted: bool,
    /// The receiver reads no more, so that what arrives may be answered with a reset.
    deaf: bool,
    send_failed: bool,
}

/// One side of a connection in the model. When it is dropped, its program has let go of the connection.
pub(crate) struct Side {
    book: Book,
    connection: Rc<Connection>,
    me: usize,
    does: Does,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Both,
    Sends,
    Receives,
    /// It goes on as its halves.
    Nothing,
}

/// A connection, or a half of one.
pub(crate) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    Read(OwnedReadHalf),
    Write(OwnedWriteHalf),
}

impl Book {
    pub(crate) fn new(verdict: &Verdict, calm: bool) -> Book {
        Book { verdict: verdict.clone(), calm, connections: Rc::default() }
    }
}

/// Begins a conversation on a connection that was made here: tells the other side which one it is.
pub(crate) async fn begin(mut wire: Wire, book: &Book) {
    let key = anabranch::random();
    let unix = matches!(wire, Wire::Unix(_));
    let connection = Rc::new(Connection { key, unix, ways: Default::default() });
    book.connections.borrow_mut().insert(key, Rc::clone(&connection));
    let side = Side { book: book.clone(), connection, me: 0, does: Does::Both };
    if let Err(error) = wire.send(key.to_le_bytes().to_vec()).await {
        side.excuse("the greeting failed", &error);
        return;
    }
    converse(wire, side).await;
}

/// Takes part in a conversation on a connection that was accepted here.
pub(crate) async fn join(mut wire: Wire, book: &Book) {
    // Whoever connected may have gone already, or its greeting may be lost.
    let Ok(Ok(greeting)) = timeout(Duration::from_secs(60), wire.recv_exact(8)).await else { return };
    let key = u64::from_le_bytes(greeting[..].try_into().unwrap_or_default());
    let Some(connection) = book.connections.borrow().get(&key).cloned() else {
        return book.verdict.wrong(format_args!("a greeting that nobody sent: {key:x}"));
    };
    converse(wire, Side { book: book.clone(), connection, me: 1, does: Does::Both }).await;
}

async fn converse(wire: Wire, side: Side) {
    if one_in(3) { talk_in_halves(wire, side).await } else { talk(wire, side).await }
}

/// One task does everything, one after the other, and gives nothing more time than it may take.
async fn talk(mut wire: Wire, mut side: Side) {
    for _ in 0..within(1..24) {
        let goes = match within(0..16) {
            0..=5 => side.send_some(&mut wire, true).await,
            6 => side.flush(&mut wire, true).await,
            7 => pause().await,
            _ => side.receive_some(&mut wire, true).await,
        };
        if !goes {
            break;
        }
    }
    match within(0..8) {
        0 => return side.abort(wire),
        1 => return,
        2 => return side.close(wire).await,
        _ => {}
    }
    side.way(side.me).done = true;
    let patience = Duration::from_millis(within(1..50));
    let shut = timeout(patience, wire.shutdown(Shutdown::Write)).await;
    side.check_shutdown(shut.unwrap_or(Ok(())));
    side.receive_all(&mut wire).await;
    if one_in(2) {
        side.close(wire).await;
    }
}

/// One task sends, one receives, each for as long as it takes.
async fn talk_in_halves(wire: Wire, side: Side) {
    let (mut read, mut write) = wire.split();
    let (mut incoming, mut outgoing) = side.split();
    let sender = spawn(async move {
        for _ in 0..within(1..16) {
            if !outgoing.send_some(&mut write, false).await {
                break;
            }
            if one_in(8) && !outgoing.flush(&mut write, false).await {
                break;
            }
        }
        outgoing.way(outgoing.me).done = true;
        if one_in(2) {
            let shut = write.shutdown(Shutdown::Write).await;
            outgoing.check_shutdown(shut);
        }
    });
    let stays = !one_in(6);
    let turns = if stays { u64::MAX } else { within(0..12) };
    let mut turn = 0;
    while turn < turns && incoming.receive_some(&mut read, false).await {
        turn += 1;
    }
    drop((read, incoming));
    let _ = sender.await;
}

async fn pause() -> bool {
    sleep(Duration::from_micros(within(1..20_000))).await;
    true
}

impl Side {
    fn split(mut self) -> (Side, Side) {
        self.does = Does::Nothing;
        let half = |does| Side {
            book: self.book.clone(),
            connection: Rc::clone(&self.connection),
            me: self.me,
            does,
        };
        (half(Does::Receives), half(Does::Sends))
    }

    fn way(&self, from: usize) -> std::cell::RefMut<'_, Way> {
        self.connection.ways[from].borrow_mut()
    }

    fn peer(&self) -> usize {
        1 - self.me
    }

    fn wrong(&self, what: impl std::fmt::Display) {
        let (key, me) = (self.connection.key, self.me);
        let (mine, theirs) = (self.way(me), self.way(self.peer()));
        self.book.verdict.wrong(format_args!(
            "connection {key:x}, side {me}: {what}; of what it sent {} bytes were accepted and {} received, of what \
             its peer sent {} and {}",
            mine.accepted, mine.received, theirs.accepted, theirs.received
        ));
    }

    /// Something failed; where nothing goes wrong, that needs a cause.
    fn excuse(&self, what: &str, error: &io::Error) {
        let aborted = self.way(self.peer()).aborted;
        let caused = aborted || self.way(self.me).deaf;
        if self.book.calm && !caused {
            self.wrong(format_args!("{what} without a cause: {error}"));
        }
    }

    async fn send_some(&mut self, wire: &mut Wire, hurried: bool) -> bool {
        if one_in(5) {
            return self.send_several(wire, hurried).await;
        }
        let payload = self.payload(self.way(self.me).accepted);
        let len = payload.len() as u64;
        let sent = if hurried {
            timeout(Duration::from_micros(within(1..5000)), wire.send(payload)).await
        } else {
            Ok(wire.send(payload).await)
        };
        // A send that was dropped before it completed sends nothing.
        let Ok(sent) = sent else { return true };
        self.note_sent(len, sent)
    }

    /// Several payloads at once. When the next one is asked for, the one before was accepted.
    async fn send_several(&mut self, wire: &mut Wire, hurried: bool) -> bool {
        let count = within(1..6);
        let mut offset = self.way(self.me).accepted;
        let payloads: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let payload = self.payload(offset);
                offset += payload.len() as u64;
                payload
            })
            .collect();
        let mut asked = 0;
        let connection = Rc::clone(&self.connection);
        let me = self.me;
        let offered = payloads.into_iter().inspect(|payload| {
            connection.ways[me].borrow_mut().accepted += asked;
            asked = payload.len() as u64;
        });
        let sent = if hurried {
            timeout(Duration::from_micros(within(1..5000)), wire.send_vectored(offered)).await
        } else {
            Ok(wire.send_vectored(offered).await)
        };
        match sent {
            Ok(sent) => self.note_sent(asked, sent),
            Err(_) => true,
        }
    }

    fn payload(&self, offset: u64) -> Vec<u8> {
        let len = match within(0..12) {
            0 => 0,
            1 => within(1..8000),
            2..=4 => within(1..1000),
            _ => within(1..100),
        };
        pattern(self.connection.key ^ self.me as u64, offset, len as usize)
    }

    fn note_sent(&self, len: u64, sent: io::Result<()>) -> bool {
        match sent {
            Ok(()) => {
                if self.way(self.me).send_failed {
                    self.wrong("a send was accepted after one had failed");
                }
                self.way(self.me).accepted += len;
                true
            }
            Err(error) => {
                self.way(self.me).send_failed = true;
                self.excuse("a send failed", &error);
                false
            }
        }
    }

    async fn flush(&mut self, wire: &mut Wire, hurried: bool) -> bool {
        let patience = Duration::from_micros(if hurried { within(1..5000) } else { u64::MAX / 4 });
        match timeout(patience, wire.flush()).await {
            Ok(Err(error)) => {
                self.way(self.me).send_failed = true;
                self.excuse("a flush failed", &error);
                false
            }
            _ => true,
        }
    }

    fn check_shutdown(&self, shut: io::Result<()>) {
        if let Err(error) = shut {
            self.excuse("a shutdown failed", &error);
        }
    }

    /// One receive of some kind; false if nothing more will come.
    async fn receive_some(&mut self, wire: &mut Wire, hurried: bool) -> bool {
        let patience =
            Duration::from_micros(if hurried || one_in(4) { within(1..10_000) } else { u64::MAX / 4 });
        match within(0..10) {
            0 => self.receive_exactly(wire, patience).await,
            1 => self.receive_until(wire, patience).await,
            2 => self.receive_into(wire, patience).await,
            3 => match poll_once(wire.recv()).await {
                Some(received) => self.note(received),
                None => true,
            },
            _ => match timeout(patience, wire.recv()).await {
                Ok(received) => self.note(received),
                Err(_) => true,
            },
        }
    }

    fn note<B: AsRef<[u8]>>(&self, received: io::Result<Option<B>>) -> bool {
        match received {
            Ok(Some(bytes)) => self.take(bytes.as_ref()),
            Ok(None) => self.note_end(),
            Err(error) => {
                self.excuse("a receive failed", &error);
                false
            }
        }
    }

    fn take(&self, bytes: &[u8]) -> bool {
        let from = self.peer();
        let way = self.way(from);
        let (received, accepted) = (way.received, way.accepted);
        drop(way);
        if bytes.is_empty() {
            self.wrong("a receive brought no bytes");
        }
        if received + bytes.len() as u64 > accepted {
            self.wrong(format_args!("{} bytes came that were not sent", bytes.len()));
        } else if bytes != pattern(self.connection.key ^ from as u64, received, bytes.len()) {
            self.wrong(format_args!("{} bytes came that are not those that were sent", bytes.len()));
        }
        self.way(from).received += bytes.len() as u64;
        true
    }

    fn note_end(&self) -> bool {
        let way = self.way(self.peer());
        // Only TCP can tell a peer that the connection was given up; a Unix connection just ends.
        let cut = way.aborted && self.connection.unix;
        let (done, whole) = (way.done, cut || way.received == way.accepted);
        drop(way);
        if !done {
            self.wrong("the end came though the sender is not done");
        }
        if !whole {
            self.wrong("the end came before all that was sent");
        }
        false
    }

    async fn receive_exactly(&mut self, wire: &mut Wire, patience: Duration) -> bool {
        let len = within(1..600) as usize;
        match timeout(patience, wire.recv_exact(len)).await {
            Ok(Ok(bytes)) if bytes.len() == len => self.take(&bytes),
            Ok(Ok(bytes)) => {
                self.wrong(format_args!("{len} bytes were asked for and {} came", bytes.len()));
                false
            }
            // What did arrive can still be received.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => true,
            Ok(Err(error)) => self.note_failure(wire, &error).await,
            Err(_) => true,
        }
    }

    async fn receive_until(&mut self, wire: &mut Wire, patience: Duration) -> bool {
        let max = within(2..2000) as usize;
        let delimiter = [within(0..256) as u8];
        match timeout(patience, wire.recv_until(&delimiter, max)).await {
            Ok(Ok(Some(bytes))) => {
                let place = bytes.iter().position(|byte| *byte == delimiter[0]);
                if bytes.len() > max || place != Some(bytes.len() - 1) {
                    self.wrong("what came does not end at the first delimiter");
                }
                self.take(&bytes)
            }
            Ok(Ok(None)) => self.note_end(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => true,
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => true,
            Ok(Err(error)) => self.note_failure(wire, &error).await,
            Err(_) => true,
        }
    }

    /// Some bytes may have been gathered before the failure; they can still be received, and then it comes again.
    async fn note_failure(&mut self, wire: &mut Wire, error: &io::Error) -> bool {
        self.excuse("a receive failed", error);
        while self.note(wire.recv().await) {}
        false
    }

    async fn receive_into(&mut self, wire: &mut Wire, patience: Duration) -> bool {
        let buffer = Vec::with_capacity(within(1..2000) as usize);
        match timeout(patience, wire.recv_into(buffer)).await {
            Ok((Ok(count), buffer)) if count == buffer.len() => match count {
                0 => self.note_end(),
                _ => self.take(&buffer),
            },
            Ok((Ok(_), _)) => {
                self.wrong("the count is not that of the bytes in the buffer");
                false
            }
            Ok((Err(error), _)) => self.note::<&[u8]>(Err(error)),
            Err(_) => true,
        }
    }

    async fn receive_all(&mut self, wire: &mut Wire) {
        while self.receive_some(wire, false).await {}
        // Nothing comes after the end or a failure.
        if let Some(Ok(Some(bytes))) = poll_once(wire.recv()).await {
            self.wrong(format_args!("{} bytes came after the end", bytes.len()));
        }
    }

    fn abort(&self, wire: Wire) {
        self.way(self.me).done = true;
        self.way(self.me).aborted = true;
        wire.abort();
    }

    async fn close(&self, wire: Wire) {
        self.way(self.me).done = true;
        self.way(self.peer()).deaf = true;
        if let Err(error) = wire.close().await {
            self.excuse("a close failed", &error);
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if matches!(self.does, Does::Both | Does::Sends) {
            self.way(self.me).done = true;
        }
        if matches!(self.does, Does::Both | Does::Receives) {
            self.way(self.peer()).deaf = true;
        }
    }
}

/// Calls a method of whatever the wire is; asking a half for what it does not do is a mistake of the scenario.
macro_rules! on_wire {
    ($wire:expr, receiving $call:ident($($argument:expr),*)) => {
        match $wire {
            Wire::Tcp(stream) => stream.$call($($argument),*).await,
            Wire::Unix(stream) => stream.$call($($argument),*).await,
            Wire::Read(half) => half.$call($($argument),*).await,
            Wire::Write(_) => unreachable!("the sending half does not receive"),
        }
    };
    ($wire:expr, sending $call:ident($($argument:expr),*)) => {
        match $wire {
            Wire::Tcp(stream) => stream.$call($($argument),*).await,
            Wire::Unix(stream) => stream.$call($($argument),*).await,
            Wire::Write(half) => half.$call($($argument),*).await,
            Wire::Read(_) => unreachable!("the receiving half does not send"),
        }
    };
}

impl Wire {
    async fn recv(&mut self) -> io::Result<Option<anabranch::Lease>> {
        on_wire!(self, receiving recv())
    }

    async fn recv_exact(&mut self, len: usize) -> io::Result<impl std::ops::Deref<Target = [u8]> + use<>> {
        on_wire!(self, receiving recv_exact(len))
    }

    async fn recv_until(
        &mut self,
        delimiter: &[u8],
        max: usize,
    ) -> io::Result<Option<impl std::ops::Deref<Target = [u8]> + use<>>> {
        on_wire!(self, receiving recv_until(delimiter, max))
    }

    async fn recv_into(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        on_wire!(self, receiving recv_into(buffer))
    }

    async fn send(&mut self, payload: Vec<u8>) -> io::Result<()> {
        on_wire!(self, sending send(payload))
    }

    async fn send_vectored(&mut self, payloads: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
        on_wire!(self, sending send_vectored(payloads))
    }

    async fn flush(&mut self) -> io::Result<()> {
        on_wire!(self, sending flush())
    }

    async fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        match self {
            Wire::Tcp(stream) => stream.shutdown(how).await,
            Wire::Unix(stream) => stream.shutdown(how).await,
            Wire::Write(half) => half.shutdown().await,
            Wire::Read(_) => unreachable!("the receiving half does not shut down"),
        }
    }

    async fn close(self) -> io::Result<()> {
        match self {
            Wire::Tcp(stream) => stream.close().await,
            Wire::Unix(stream) => stream.close().await,
            Wire::Read(_) | Wire::Write(_) => Ok(()),
        }
    }

    fn abort(self) {
        match self {
            Wire::Tcp(stream) => stream.abort(),
            Wire::Unix(stream) => stream.abort(),
            Wire::Read(_) | Wire::Write(_) => {}
        }
    }

    fn split(self) -> (Wire, Wire) {
        let (read, write) = match self {
            Wire::Tcp(stream) => stream.into_split(),
            Wire::Unix(stream) => stream.into_split(),
            Wire::Read(_) | Wire::Write(_) => unreachable!("a half is not split again"),
        };
        (Wire::Read(read), Wire::Write(write))
    }
}
