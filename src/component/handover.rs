//! Servers that are replaced without a refused connection: sockets from a service manager, and sockets from the process
//! before.
//!
//! A listening socket that closes resets the connections of its backlog, and between its end and the next bind of its
//! address connections are refused. So a server that is to be replaced *keeps its sockets open* and passes them on:
//!
//! 1. The successor asks at a path of the file system ([`take_over`]) and gets every socket, of a group with
//!    SO_REUSEPORT all of them.
//! 2. It accepts on them. Both processes do for a moment; each connection goes to one of them.
//! 3. It says so ([`TakenOver::ready`]).
//! 4. The predecessor stops accepting ([`stop_accepting`](crate::net::TcpListener::stop_accepting)), serves what it has
//!    accepted, and ends.
//!
//! If the successor dies before 3, or takes too long, the predecessor goes on as if nothing had been. The path stays the
//! same socket all the time, since it is passed on with the others. Messages are described in the source
//! (`protocol.rs`).
//!
//! Who may take over: processes of the same user, and of root. The socket at the path has mode 0600, and both sides look at
//! the other's user.
//!
//! Predecessor and successor must run on the same kind of backend: whether a socket blocks is a property of the socket,
//! which both share, and a ring needs the one and readiness the other. A successor that differs is refused, and nothing
//! changes.
//!
//! Sockets that a service manager opened come from [`activated`]. A server asks, in this order, its predecessor, its
//! service manager, and its configuration.
#![forbid(unsafe_code)]

mod activation;
mod protocol;

pub use activation::{ActivationError, activated};
pub use protocol::HandoverError;

use crate::api::passing::{Carried, PassedSocket, Wire, listen_privately};
use crate::api::task::report;
use crate::api::time::{sleep, timeout};
use crate::api::unix::{UnixListener, UnixStream};
use crate::report::BackendKind;
use protocol::{HEAD_BYTES, Head, Message, SOCKETS_MAX};
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long one hand-over may take, if nothing else is said.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The name of the socket of the hand-over itself, among the others.
const OWN_NAME: &str = "handover";

/// Waits for processes that want to take over from this one. It belongs to the shard that made it.
#[derive(Debug)]
pub struct HandoverServer {
    listener: UnixListener,
    limit: Duration,
    over: bool,
}

impl HandoverServer {
    /// Listens at `path` for successors. Only this user and root may connect. A socket that is left there, and at which
    /// nobody answers, is removed; two processes that do that at the same moment may both believe that they listen.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if somebody answers at the path (then [`take_over`] is what to call), `AlreadyExists` if there is
    /// something else than a socket, `Unsupported` on Windows; else if the path cannot be bound.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<HandoverServer> {
        HandoverServer::on(UnixListener::from_std(listen_privately(path.as_ref())?)?)
    }

    fn on(listener: UnixListener) -> io::Result<HandoverServer> {
        Ok(HandoverServer { listener, limit: TIME_LIMIT, over: false })
    }

    /// How long one hand-over may take: from the first word of a successor to its being ready. 30 seconds by default.
    pub fn time_limit(mut self, limit: Duration) -> HandoverServer {
        self.limit = limit;
        self
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// The next process that wants to take over. One that says something else, or nothing, or belongs to somebody else
    /// is turned away.
    ///
    /// Cancel-safe, but for a successor that is just introducing itself: it is turned away, and tries again.
    ///
    /// # Errors
    ///
    /// [`HandoverError::Over`] after a hand-over; else if the listener cannot go on.
    pub async fn successor(&mut self) -> io::Result<Successor<'_>> {
        if self.over {
            return Err(HandoverError::Over.into());
        }
        loop {
            let stream = self.listener.accept().await?;
            if let Ok(Ok(wire)) = timeout(self.limit, greet(stream)).await {
                return Ok(Successor { server: self, wire });
            }
        }
    }
}

/// Lets a process introduce itself.
async fn greet(stream: UnixStream) -> io::Result<Wire> {
    let wire = trusted(stream).await?;
    expect(&wire, &Message::Hello).await?;
    Ok(wire)
}

async fn trusted(stream: UnixStream) -> io::Result<Wire> {
    let (stream, unread) = stream.into_std().await?;
    debug_assert!(unread.is_empty(), "nothing was received before");
    let wire = Wire::new(stream);
    match wire.stranger()? {
        Some(user) => Err(HandoverError::Stranger(user).into()),
        None => Ok(wire),
    }
}

/// A process that wants to take over. Dropping it turns it away.
#[derive(Debug)]
pub struct Successor<'a> {
    server: &'a mut HandoverServer,
    wire: Wire,
}

impl Successor<'_> {
    /// Passes these sockets on, and that of the hand-over, and waits until the successor accepts on them. Then this
    /// process is to stop accepting, and to serve what it has.
    ///
    /// The sockets are handles of this process's ([`TcpListener::duplicate`](crate::net::TcpListener::duplicate)), and
    /// the originals go on accepting meanwhile.
    ///
    /// Dropping the future turns the successor away, unless it was just told that it is in charge.
    ///
    /// # Errors
    ///
    /// If the successor ended, said something else, or was not ready within the time limit (`TimedOut`): this process
    /// goes on, and may wait for another one. [`HandoverError::SocketCount`] if there are too many sockets.
    pub async fn pass(self, sockets: &[PassedSocket]) -> io::Result<()> {
        let Successor { server, wire } = self;
        let limit = server.limit;
        timeout(limit, offer(&wire, sockets, &server.listener)).await??;
        send(&wire, &Message::Released, None).await?;
        server.over = true;
        // Who asks here from now on asks the successor. One that was accepted before is turned away, and tries again.
        server.listener.stop_accepting().await;
        Ok(())
    }
}

async fn offer(wire: &Wire, sockets: &[PassedSocket], listener: &UnixListener) -> io::Result<()> {
    let count = sockets.len() + 1;
    if count > SOCKETS_MAX {
        return Err(HandoverError::SocketCount(count).into());
    }
    send(wire, &Message::Offer { sockets: count, blocking: wants_blocking()? }, None).await?;
    for socket in sockets {
        let message = Message::Socket { of_handover: false, name: socket.name().to_owned() };
        send(wire, &message, Some(socket)).await?;
    }
    let own = PassedSocket::new(OWN_NAME, listener.duplicate()?)?;
    let message = Message::Socket { of_handover: true, name: OWN_NAME.to_owned() };
    send(wire, &message, Some(&own)).await?;
    expect(wire, &Message::Ready).await
}

/// Whether sockets of this shard block; those of a ring do.
fn wants_blocking() -> io::Result<bool> {
    Ok(report()?.backend == BackendKind::Uring)
}

/// How often a successor asks again that was turned away by a process that was just replaced itself.
const ATTEMPTS_MAX: usize = 10;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

/// Asks the process that waits at `path` for its sockets; nothing if none does. From then on both processes may accept on
/// them; the other one goes on until it hears that this one is [`ready`](TakenOver::ready). Call it on a shard with the
/// backend that will accept.
///
/// Dropping the future takes nothing over.
///
/// # Errors
///
/// [`HandoverError`]; `TimedOut` if the other process does not answer within 30 seconds; else what the system says.
pub async fn take_over(path: impl AsRef<Path>) -> io::Result<Option<TakenOver>> {
    let mut attempt = 1;
    loop {
        let asked = timeout(TIME_LIMIT, ask(path.as_ref())).await;
        let turned_away = match asked.and_then(|asked| asked) {
            Err(error) if is_turned_away(&error) => error,
            other => return other,
        };
        if attempt == ATTEMPTS_MAX {
            return Err(turned_away);
        }
        attempt += 1;
        sleep(BETWEEN_ATTEMPTS).await;
    }
}

fn is_turned_away(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

async fn ask(path: &Path) -> io::Result<Option<TakenOver>> {
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let wire = trusted(stream).await?;
    send(&wire, &Message::Hello, None).await?;
    let (Message::Offer { sockets: count, blocking }, None) = receive(&wire).await? else {
        return Err(HandoverError::OutOfTurn.into());
    };
    if blocking != wants_blocking()? {
        return Err(HandoverError::OtherBackend.into());
    }
    let mut sockets = Vec::new();
    for index in 1..=count {
        let (Message::Socket { of_handover, name }, Some(descriptor)) = receive(&wire).await? else {
            return Err(HandoverError::OutOfTurn.into());
        };
        if of_handover != (index == count) {
            return Err(HandoverError::OutOfTurn.into());
        }
        sockets.push(PassedSocket::new(name, descriptor)?);
    }
    let own = sockets.pop().ok_or(HandoverError::OutOfTurn)?;
    Ok(Some(TakenOver { wire, sockets, own }))
}

/// The sockets of the process before. Dropping it leaves that process in charge.
#[derive(Debug)]
pub struct TakenOver {
    wire: Wire,
    sockets: Vec<PassedSocket>,
    own: PassedSocket,
}

impl TakenOver {
    /// The sockets that nobody has taken yet.
    pub fn sockets(&self) -> &[PassedSocket] {
        &self.sockets
    }

    /// Takes all sockets with this name, in the order in which they were passed.
    pub fn take(&mut self, name: &str) -> Vec<PassedSocket> {
        let (taken, left) =
            std::mem::take(&mut self.sockets).into_iter().partition(|socket| socket.name() == name);
        self.sockets = left;
        taken
    }

    /// Tells the process before that this one accepts on the sockets, and takes its place also for the next successor:
    /// what it gives listens at the same path, on the current shard. Sockets that nobody has taken are closed.
    ///
    /// # Errors
    ///
    /// [`HandoverError::NotReleased`] if the other process has not answered: it goes on, and this one is to end. (Or it
    /// died in that moment; then nobody listens at the path any more.)
    pub async fn ready(self) -> io::Result<HandoverServer> {
        let TakenOver { wire, sockets, own } = self;
        drop(sockets);
        let released = timeout(TIME_LIMIT, async {
            send(&wire, &Message::Ready, None).await?;
            expect(&wire, &Message::Released).await
        });
        match released.await {
            Ok(Ok(())) => HandoverServer::on(UnixListener::from_std(own.into_unix_listener()?)?),
            _ => Err(HandoverError::NotReleased.into()),
        }
    }
}

async fn send(wire: &Wire, message: &Message, socket: Option<&PassedSocket>) -> io::Result<()> {
    wire.send(&message.encode(), socket).await
}

/// The next message, and the descriptor that it carries.
async fn receive(wire: &Wire) -> io::Result<(Message, Option<Carried>)> {
    let mut carried = Vec::new();
    let mut head = [0; HEAD_BYTES];
    wire.receive(&mut head, &mut carried).await?;
    let head = Head::read(&head)?;
    let mut body = vec![0; head.body_len];
    wire.receive(&mut body, &mut carried).await?;
    let message = head.message(&body)?;
    let descriptor = carried.pop();
    if !carried.is_empty() {
        return Err(HandoverError::Malformed("it carries more than one descriptor").into());
    }
    Ok((message, descriptor))
}

/// Receives this message and nothing else.
async fn expect(wire: &Wire, message: &Message) -> io::Result<()> {
    match receive(wire).await? {
        (received, None) if received == *message => Ok(()),
        _ => Err(HandoverError::OutOfTurn.into()),
    }
}
