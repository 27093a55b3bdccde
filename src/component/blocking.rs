//! [`BlockingClient`]: a connection for threads that block.
//!
//! The connection itself lives on a shard, as any other; a [`Pipe`] joins it with the thread: two bounded queues behind a
//! lock. Whoever waits is told of the end of the connection by `on_close`, which comes for each that was admitted,
//! also when its shard ends.
#![forbid(unsafe_code)]

use super::agent::{Agent, ConnectError, Settings, settings};
use super::close::{Closed, Failure};
use super::conn::Conn;
use super::dial::Reconnect;
use super::fleet::Fleet;
use super::handler::{Admission, Handler, Peer};
use super::pipe::{Next, Pipe};
use super::policy::Policy;
use super::session::Sending;
use super::shards::Shards;
use super::target::Target;
use crate::api::time::{far, now};
use crate::codec::Codec;
use crate::config::Config;
use crate::shard::{Core, Runtime};
use bytes::{Bytes, BytesMut};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a client that is dropped lets what is queued leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Blocks this thread until the future completes; none on the thread of a shard, which might wait for itself.
pub(super) fn block_thread<F: Future>(future: F) -> Option<F::Output> {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    if is_on_shard() {
        return None;
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        thread::park();
    }
}

fn is_on_shard() -> bool {
    Core::with_current(|core| core.is_some())
}

/// Settings of a [`BlockingClient`].
#[derive(Clone, Debug)]
pub struct BlockingOptions {
    settings: Settings,
    timeout: Option<Duration>,
    inbound_bytes_max: usize,
    outbound_bytes_max: usize,
    shards: Option<Shards>,
    config: Config,
}

impl Default for BlockingOptions {
    fn default() -> BlockingOptions {
        let policy = Policy { idle_timeout: None, ..Policy::default() };
        BlockingOptions {
            settings: Settings { policy, ..Settings::default() },
            timeout: None,
            inbound_bytes_max: 1 << 20,
            outbound_bytes_max: 1 << 20,
            shards: None,
            config: Config::default(),
        }
    }
}

impl BlockingOptions {
    /// The defaults: a shard of its own, no codec, no time-outs but that of connecting, and limits as
    /// [`Policy::default`] has them, with no idle time-out.
    pub fn new() -> BlockingOptions {
        BlockingOptions::default()
    }

    settings!();

    /// How long each call may block. Without end by default.
    pub fn timeout(mut self, timeout: Duration) -> BlockingOptions {
        self.timeout = Some(timeout);
        self
    }

    /// Bytes that may wait to be received (and what one receive brings more), with 64 for each message; then the peer has to
    /// wait. 1 MiB.
    pub fn inbound_bytes_max(mut self, bytes: usize) -> BlockingOptions {
        self.inbound_bytes_max = bytes;
        self
    }

    /// Bytes that may wait to be sent, with 64 for each message, or one message of any length; then
    /// [`send`](BlockingClient::send) waits. 1 MiB.
    pub fn outbound_bytes_max(mut self, bytes: usize) -> BlockingOptions {
        self.outbound_bytes_max = bytes;
        self
    }

    /// Runs the connection on the first of these, not on a shard of its own.
    pub fn on(mut self, shards: impl Into<Shards>) -> BlockingOptions {
        self.shards = Some(shards.into().first());
        self
    }

    /// The configuration of its own shard.
    pub fn config(mut self, config: Config) -> BlockingOptions {
        self.config = config;
        self
    }
}

/// A connection for threads that block, framed by a codec if one is given. Several threads may use it at once; messages of
/// one thread keep their order. A thread that does not receive slows the peer down. Dropping it closes the connection; what
/// is queued has a second to leave.
///
/// None of its calls waits for ever unless the peer is silent and there is no
/// [time-out](BlockingOptions::timeout): the end of the connection or of its shard wakes them all, and on the thread of a
/// shard they are errors.
///
/// ```
/// use anabranch::component::{BlockingClient, BlockingOptions};
/// use std::io::{Read, Write};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
/// let address = listener.local_addr().unwrap();
/// let server = std::thread::spawn(move || {
///     let (mut stream, _) = listener.accept().unwrap();
///     let mut bytes = [0; 5];
///     stream.read_exact(&mut bytes).unwrap();
///     stream.write_all(&bytes).unwrap();
/// });
/// let client = BlockingClient::connect(address, BlockingOptions::new()).unwrap();
/// client.send("hello").unwrap();
/// assert_eq!(client.recv_exact(5).unwrap(), "hello");
/// assert_eq!(client.recv().unwrap(), None);
/// client.close().unwrap();
/// server.join().unwrap();
/// ```
pub struct BlockingClient {
    agent: Agent,
    target: Target,
    bridge: Arc<Bridge>,
    timeout: Option<Duration>,
    /// Bytes that were received and not asked for.
    rest: Mutex<BytesMut>,
    /// Its own shard; ends with it.
    runtime: Option<Runtime>,
}

impl BlockingClient {
    /// Connects, and waits until the connection is open.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`]; [`ClientError::OnShard`].
    pub fn connect(
        target: impl Into<Target>,
        options: BlockingOptions,
    ) -> Result<BlockingClient, ClientError> {
        if is_on_shard() {
            return Err(ClientError::OnShard);
        }
        let failed = |error| ClientError::Connect(ConnectError::Failed(error));
        let (shards, runtime) = match options.shards {
            Some(shards) => (shards, None),
            None => {
                let runtime = own_shard(options.config).map_err(failed)?;
                (Shards::from(&runtime), Some(runtime))
            }
        };
        let bounds = (options.inbound_bytes_max, options.outbound_bytes_max);
        let bridge = Arc::new(Bridge { bounds, current: Mutex::new(Arc::new(Pipe::new(0, bounds))) });
        let agent = options.settings.start(&shards, Arc::clone(&bridge)).map_err(failed)?;
        let (target, timeout) = (target.into(), options.timeout);
        let client = BlockingClient { agent, target, bridge, timeout, rest: Mutex::default(), runtime };
        client.open()?;
        Ok(client)
    }

    fn open(&self) -> Result<(), ClientError> {
        let number = self.bridge.renew();
        let connecting = self.agent.connect(self.target.clone().tag(number)).map_err(ClientError::Connect)?;
        connecting.wait().map_err(ClientError::Connect)?;
        Ok(())
    }

    /// Closes the connection if there is one, forgets what was received, and connects again.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect) and [`close`](Self::close).
    pub fn reconnect(&self) -> Result<(), ClientError> {
        self.close()?;
        self.rest().clear();
        self.open()
    }

    /// Counters and whatever else components have in common.
    pub fn fleet(&self) -> &Fleet {
        &self.agent
    }

    /// Whether the connection is there; what was received may wait all the same if not.
    pub fn is_connected(&self) -> bool {
        self.bridge.current().is_open()
    }

    fn rest(&self) -> MutexGuard<'_, BytesMut> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadline(&self) -> Result<Option<Instant>, ClientError> {
        if is_on_shard() {
            return Err(ClientError::OnShard);
        }
        Ok(self.timeout.map(|timeout| far(now(), timeout)))
    }

    /// Queues a message; waits while the queue is full. A message that the codec cannot send ends the connection.
    ///
    /// # Errors
    ///
    /// [`ClientError::TimedOut`], and then it is not sent; [`ClientError::Ended`].
    pub fn send(&self, message: impl Into<Bytes>) -> Result<(), ClientError> {
        let deadline = self.deadline()?;
        self.bridge.current().send(message.into(), deadline)
    }

    /// The next message, or without a codec the next bytes as they came; `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// [`ClientError::TimedOut`], and nothing is lost; [`ClientError::Ended`], after what came before was received.
    pub fn recv(&self) -> Result<Option<Bytes>, ClientError> {
        let deadline = self.deadline()?;
        let mut rest = self.rest();
        if !rest.is_empty() {
            return Ok(Some(rest.split().freeze()));
        }
        drop(rest);
        self.bridge.current().recv(deadline)
    }

    /// Exactly `n` bytes, however they came. For connections without a codec, and one receiving thread.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), and [`ClientError::EndOfStream`] if the stream ends before; what came is received by the next
    /// call then.
    pub fn recv_exact(&self, n: usize) -> Result<Bytes, ClientError> {
        let deadline = self.deadline()?;
        let pipe = self.bridge.current();
        let mut rest = self.rest();
        while rest.len() < n {
            match pipe.recv(deadline)? {
                Some(bytes) => rest.extend_from_slice(&bytes),
                None => return Err(ClientError::EndOfStream),
            }
        }
        Ok(rest.split_to(n).freeze())
    }

    /// Closes the connection after what is queued has left, and waits until it has ended. Nothing if there is none.
    ///
    /// # Errors
    ///
    /// [`ClientError::TimedOut`]; it ends all the same.
    pub fn close(&self) -> Result<(), ClientError> {
        let deadline = self.deadline()?;
        let pipe = self.bridge.current();
        pipe.close();
        match pipe.wait_for_end(deadline) {
            true => Ok(()),
            false => Err(ClientError::TimedOut),
        }
    }
}

impl Drop for BlockingClient {
    fn drop(&mut self) {
        let pipe = self.bridge.current();
        pipe.close();
        if self.runtime.is_some() && !is_on_shard() {
            pipe.wait_for_end(Some(far(now(), FAREWELL)));
        }
        self.agent.shutdown(FAREWELL);
    }
}

impl fmt::Debug for BlockingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.is_connected();
        f.debug_struct("BlockingClient")
            .field("target", &self.target)
            .field("connected", &connected)
            .finish_non_exhaustive()
    }
}

fn own_shard(config: Config) -> io::Result<Runtime> {
    let settings = Runtime::builder().shards(1).name("client").config(config);
    settings.start(|context| async move {
        context.stopped().await;
        Ok(())
    })
}

/// The handler of a client's connections: each has the pipe that was made for it.
struct Bridge {
    bounds: (usize, usize),
    current: Mutex<Arc<Pipe>>,
}

impl Bridge {
    fn current(&self) -> Arc<Pipe> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new pipe, for the connection whose target has this tag.
    fn renew(&self) -> u64 {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let number = current.number() + 1;
        *current = Arc::new(Pipe::new(number, self.bounds));
        number
    }
}

impl Handler for Arc<Bridge> {
    type State = Arc<Pipe>;

    fn on_accept(&self, peer: &Peer) -> Admission<Arc<Pipe>> {
        let pipe = self.current();
        let number = peer.target.as_ref().map(Target::tagged);
        // One that comes when nobody waits for it any more, or in place of another, would mix two streams.
        match number == Some(pipe.number()) && pipe.begin() {
            true => Admission::Accept(pipe),
            false => Admission::Refuse,
        }
    }

    async fn run(&self, conn: &mut Conn<Arc<Pipe>>) -> Result<(), Failure> {
        let (pipe, session) = (Arc::clone(&conn.state), Rc::clone(conn.session()));
        let (mut sending, mut receives): (Option<Sending>, bool) = (None, true);
        poll_fn(|context| {
            loop {
                let message = match &mut sending {
                    Some(message) => message,
                    None => match pipe.next_out(context) {
                        Next::Message(bytes) => sending.insert(Sending::new(bytes.into())),
                        Next::Nothing => break,
                        Next::End => return Poll::Ready(Ok(())),
                    },
                };
                match session.poll_send(context, message) {
                    Poll::Ready(Ok(())) => sending = None,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(session.blame_error(error).into())),
                    Poll::Pending => break,
                }
            }
            while receives && pipe.has_room(context) {
                match session.poll_recv(context) {
                    // Copied: what waits for a thread must not keep a buffer that others receive into.
                    Poll::Ready(Ok(Some(lease))) => pipe.deliver(lease.detach().into_bytes()),
                    Poll::Ready(Ok(None)) => {
                        receives = false;
                        pipe.end_of_stream();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(session.blame_error(error).into())),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await
    }

    fn on_close(&self, conn: &mut Conn<Arc<Pipe>>, closed: &Closed) {
        conn.state.end(closed);
    }
}

/// Why a call of a [`BlockingClient`] gave nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// It took longer than [`BlockingOptions::timeout`].
    TimedOut,
    /// There is no connection.
    Connect(ConnectError),
    /// The connection has ended.
    Ended {
        /// The [name](super::CloseReason::name) of the reason.
        reason: &'static str,
        /// The reason in full.
        text: String,
    },
    /// The stream ended before so many bytes had come.
    EndOfStream,
    /// It would block the thread of a shard.
    OnShard,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::TimedOut => f.write_str("the call took too long (BlockingOptions::timeout)"),
            ClientError::Connect(error) => write!(f, "no connection: {error}"),
            ClientError::Ended { text, .. } => write!(f, "the connection has ended: {text}"),
            ClientError::EndOfStream => f.write_str("the stream ended before so many bytes had come"),
            ClientError::OnShard => f.write_str("it would block the thread of a shard; use Client there"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> io::Error {
        let kind = match error {
            ClientError::Connect(error) => return error.into(),
            ClientError::TimedOut => io::ErrorKind::TimedOut,
            ClientError::Ended { .. } => io::ErrorKind::NotConnected,
            ClientError::EndOfStream => io::ErrorKind::UnexpectedEof,
            ClientError::OnShard => io::ErrorKind::Other,
        };
        io::Error::new(kind, error.to_string())
    }
}
