//! The server that every loop over readiness is: echo and fan-out, edge-triggered.

use super::outbox::Messages;
use super::{FANOUT_BACKLOG, Job, PUBLISHER, STREAM_BUFFER, SUBSCRIBER};
use crate::scenario::Role;
use slab::Slab;
use std::io::{self, Read, Write};

/// What tells that sockets are ready.
pub trait Poller {
    type Stream: Read + Write;

    /// The next connection; `WouldBlock` if there is none.
    fn accept(&mut self) -> io::Result<Self::Stream>;

    /// Wants to know, by edges, when a connection is ready for either direction.
    fn register(&mut self, stream: &mut Self::Stream, token: usize) -> io::Result<()>;

    /// Waits; appends what is ready. The listener is [`LISTENER`].
    fn wait(&mut self, ready: &mut Vec<Ready>) -> io::Result<()>;
}

/// The token of the listener.
pub const LISTENER: usize = usize::MAX;

pub struct Ready {
    pub token: usize,
    pub readable: bool,
    pub writable: bool,
}

#[derive(PartialEq)]
enum Kind {
    Echo,
    Unknown,
    Publisher(Messages),
    Subscriber,
}

impl PartialEq for Messages {
    fn eq(&self, _: &Messages) -> bool {
        true
    }
}

struct Connection<S> {
    stream: S,
    kind: Kind,
    /// What the system had no room for.
    backlog: Vec<u8>,
    /// Reading stopped because of the backlog.
    held: bool,
    dirty: bool,
}

fn blocked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl<S: Read + Write> Connection<S> {
    /// Sends, and keeps what there is no room for.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        if self.backlog.is_empty() {
            while sent < bytes.len() {
                match self.stream.write(&bytes[sent..]) {
                    Ok(n) => sent += n,
                    Err(error) if blocked(&error) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        self.backlog.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Sends what was kept.
    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.backlog.len() {
            match self.stream.write(&self.backlog[sent..]) {
                Ok(n) => sent += n,
                Err(error) if blocked(&error) => break,
                Err(error) => return Err(error),
            }
        }
        self.backlog.drain(..sent);
        Ok(())
    }
}

pub fn serve<P: Poller>(mut poller: P, job: Job) -> io::Result<()> {
    let mut all: Slab<Connection<P::Stream>> = Slab::new();
    let (mut ready, mut buffer, mut messages) = (Vec::new(), vec![0; STREAM_BUFFER], Vec::new());
    let mut dirty = Vec::new();
    loop {
        poller.wait(&mut ready)?;
        for event in ready.drain(..) {
            if event.token == LISTENER {
                accept(&mut poller, &mut all, job.role)?;
                continue;
            }
            let Some(connection) = all.get_mut(event.token) else { continue };
            let mut alive = Ok(true);
            if event.writable && !connection.backlog.is_empty() {
                alive = connection.flush().map(|()| true);
            }
            if alive.is_ok() && (event.readable || (connection.held && connection.backlog.is_empty())) {
                alive = read(connection, &mut buffer, &mut messages);
            }
            if !matches!(alive, Ok(true)) {
                all.remove(event.token);
            }
            if !messages.is_empty() {
                publish(&mut all, &messages, &mut dirty);
                messages.clear();
            }
        }
        for token in dirty.drain(..) {
            let Some(connection) = all.get_mut(token) else { continue };
            connection.dirty = false;
            if connection.flush().is_err() {
                all.remove(token);
            }
        }
    }
}

fn accept<P: Poller>(poller: &mut P, all: &mut Slab<Connection<P::Stream>>, role: Role) -> io::Result<()> {
    loop {
        match poller.accept() {
            Ok(mut stream) => {
                let entry = all.vacant_entry();
                poller.register(&mut stream, entry.key())?;
                let kind = if role == Role::FanOut { Kind::Unknown } else { Kind::Echo };
                entry.insert(Connection { stream, kind, backlog: Vec::new(), held: false, dirty: false });
            }
            Err(error) if blocked(&error) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads until there is no more; `false` at the end of the stream. Whole messages of a publisher go to `messages`.
fn read<S: Read + Write>(
    connection: &mut Connection<S>,
    buffer: &mut [u8],
    messages: &mut Vec<u8>,
) -> io::Result<bool> {
    loop {
        connection.held = !connection.backlog.is_empty() && connection.kind == Kind::Echo;
        if connection.held {
            return Ok(true);
        }
        let n = match connection.stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(error) if blocked(&error) => return Ok(true),
            Err(error) => return Err(error),
        };
        let mut bytes = &buffer[..n];
        if connection.kind == Kind::Unknown {
            connection.kind = match bytes[0] {
                PUBLISHER => Kind::Publisher(Messages::default()),
                SUBSCRIBER => Kind::Subscriber,
                _ => return Ok(false),
            };
            connection.send(&buffer[..1])?;
            bytes = &bytes[1..];
        }
        match &mut connection.kind {
            Kind::Echo => connection.send(bytes)?,
            Kind::Publisher(cut) => cut.feed(bytes).for_each(|message| messages.extend_from_slice(&message)),
            Kind::Unknown | Kind::Subscriber => {}
        }
        // Less than there was room for: the next bytes are a new edge.
        if n < buffer.len() {
            return Ok(true);
        }
    }
}

/// Queues messages for each subscriber that has room; they leave at the end of the turn.
fn publish<S>(all: &mut Slab<Connection<S>>, messages: &[u8], dirty: &mut Vec<usize>) {
    for (token, subscriber) in all.iter_mut().filter(|(_, connection)| connection.kind == Kind::Subscriber) {
        for message in messages.chunks_exact(super::MESSAGE) {
            if subscriber.backlog.len() + message.len() <= FANOUT_BACKLOG {
                subscriber.backlog.extend_from_slice(message);
            }
        }
        if !subscriber.dirty {
            subscriber.dirty = true;
            dirty.push(token);
        }
    }
}
