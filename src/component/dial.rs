//! Making connections, one task for each that was asked for: attempts, their time-out, and those that follow an end.
#![forbid(unsafe_code)]

use super::agent::{ConnectError, Slot};
use super::close::CloseReason;
use super::handler::{Handler, Trouble};
use super::id::ConnId;
use super::link::Link;
use super::member::Member;
use super::target::{Place, Target};
use crate::api::dns::resolve;
use crate::api::task::{Promise, random, spawn};
use crate::api::tcp::{Lend, TcpStream};
use crate::api::time::{Sleep, now, sleep, timeout};
use crate::api::unix::UnixStream;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// The next address of a name is tried when the one before has not connected for so long (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);
/// The pause before a Unix socket whose backlog is full is tried again.
const PAUSE: Duration = Duration::from_millis(5);

/// When a connection that ended, or could not be made, is made again.
///
/// The pause before the n-th attempt in a row is a random part of `first` · 2ⁿ⁻¹, of `max` at most (*full jitter*), so that
/// many who lost the same server do not come back at once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reconnect {
    /// The longest first pause. 500 ms.
    pub first: Duration,
    /// The longest pause. 30 s.
    pub max: Duration,
    /// Attempts in a row after which it is given up, the first one included; by default none is the last.
    pub attempts_max: Option<u32>,
    /// A connection that lived for so long makes the next pause a first one. 10 s.
    pub reset_after: Duration,
    /// Whether pauses are random. On.
    pub jitter: bool,
    /// After which ends it is made again. By default [`is_worth_it`](Self::is_worth_it).
    pub when: fn(&CloseReason) -> bool,
}

impl Default for Reconnect {
    fn default() -> Reconnect {
        Reconnect {
            first: Duration::from_millis(500),
            max: Duration::from_secs(30),
            attempts_max: None,
            reset_after: Duration::from_secs(10),
            jitter: true,
            when: Reconnect::is_worth_it,
        }
    }
}

impl Reconnect {
    /// The defaults.
    pub fn new() -> Reconnect {
        Reconnect::default()
    }

    /// Always after the same pause.
    pub fn every(pause: Duration) -> Reconnect {
        Reconnect { first: pause, max: pause, jitter: false, ..Reconnect::default() }
    }

    /// After all ends but those that were wanted on this side ([`Finished`](CloseReason::Finished),
    /// [`Disconnected`](CloseReason::Disconnected), [`Drained`](CloseReason::Drained)), after which there is no shard
    /// ([`Stopped`](CloseReason::Stopped)), or that come again with the next connection
    /// ([`Panicked`](CloseReason::Panicked), [`MemoryCap`](CloseReason::MemoryCap)).
    pub fn is_worth_it(reason: &CloseReason) -> bool {
        use CloseReason::{Disconnected, Drained, Finished, MemoryCap, Panicked, Stopped};
        !matches!(reason, Finished | Disconnected | Drained | Stopped | Panicked | MemoryCap)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.first.is_zero() || self.max < self.first {
            return Err("Reconnect::first must be more than zero, and no more than max".to_owned());
        }
        match self.attempts_max {
            Some(0) => Err("Reconnect::attempts_max must be at least 1".to_owned()),
            _ => Ok(()),
        }
    }

    /// The pause after so many attempts in a row; none if that was the last.
    fn pause(&self, attempts: u32) -> Option<Duration> {
        if self.attempts_max.is_some_and(|max| attempts >= max) {
            return None;
        }
        let doublings = attempts.saturating_sub(1).min(31);
        let longest = self.first.saturating_mul(1 << doublings).min(self.max);
        if !self.jitter {
            return Some(longest);
        }
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        Some(Duration::from_nanos(random() % nanos.saturating_add(1).max(1)))
    }
}

/// How connections are made.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    pub(super) connect_timeout: Duration,
    pub(super) reconnect: Option<Reconnect>,
}

/// What becomes of a connection that is to be made.
pub(super) type Outcome = Result<ConnId, ConnectError>;

/// An order to make a connection.
pub(super) struct Call {
    pub(super) id: ConnId,
    pub(super) target: Target,
    pub(super) ways: Arc<Ways>,
    /// Its place among those that the policy allows.
    pub(super) slot: Arc<Slot>,
    pub(super) promise: Promise<Outcome>,
}

/// What makes connections on one shard, whatever its handler is.
pub(super) trait Dialer {
    /// Makes one, and those that take its place, in a task of its own.
    fn dial(self: Rc<Self>, call: Call);
}

impl<H: Handler> Dialer for Member<H> {
    fn dial(self: Rc<Self>, call: Call) {
        let Call { id, target, ways, slot, promise } = call;
        if !self.dials.insert(id, promise) {
            return;
        }
        let dial = Dial { member: self, id, target, ways, _slot: slot };
        spawn(dial.run()).detach();
    }
}

/// The connections on one shard that are made from here, while they live or are being made.
#[derive(Default)]
pub(super) struct Dials {
    all: RefCell<BTreeMap<ConnId, Entry>>,
    /// No further ones.
    closed: Cell<bool>,
}

struct Entry {
    /// Somebody wants no connection any more.
    off: bool,
    task: Option<Waker>,
    promise: Option<Promise<Outcome>>,
}

impl Dials {
    /// Takes an order, unless there are to be no more.
    fn insert(&self, id: ConnId, promise: Promise<Outcome>) -> bool {
        if self.closed.get() {
            promise.keep(Ok(Err(ConnectError::Cancelled)));
            return false;
        }
        self.all.borrow_mut().insert(id, Entry { off: false, task: None, promise: Some(promise) });
        true
    }

    /// Tells whoever asked for the connection what came of it, if nobody has.
    fn tell(&self, id: ConnId, outcome: Outcome) {
        let promise = self.all.borrow_mut().get_mut(&id).and_then(|entry| entry.promise.take());
        if let Some(promise) = promise {
            promise.keep(Ok(outcome));
        }
    }

    /// The connection is open.
    pub(super) fn opened(&self, id: ConnId) {
        self.tell(id, Ok(id));
    }

    /// No attempt any more for this one.
    pub(super) fn call_off(&self, id: ConnId) {
        let task = self.all.borrow_mut().get_mut(&id).and_then(|entry| {
            entry.off = true;
            entry.task.take()
        });
        if let Some(task) = task {
            task.wake();
        }
    }

    /// No attempt any more for those that are there.
    pub(super) fn call_off_all(&self) {
        let ids: Vec<ConnId> = self.all.borrow().keys().copied().collect();
        ids.into_iter().for_each(|id| self.call_off(id));
    }

    /// No attempt any more at all.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.call_off_all();
    }

    fn is_off(&self, id: ConnId) -> bool {
        self.all.borrow().get(&id).is_none_or(|entry| entry.off)
    }

    /// The output of `work`; none if the attempt is called off before.
    async fn unless_off<T>(&self, id: ConnId, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.is_off(id) {
                return Poll::Ready(None);
            }
            if let Some(entry) = self.all.borrow_mut().get_mut(&id) {
                entry.task = Some(context.waker().clone());
            }
            work.as_mut().poll(context).map(Some)
        })
        .await
    }
}

/// One connection that is made from here, and those that take its place.
struct Dial<H: Handler> {
    member: Rc<Member<H>>,
    id: ConnId,
    target: Target,
    ways: Arc<Ways>,
    _slot: Arc<Slot>,
}

impl<H: Handler> Drop for Dial<H> {
    fn drop(&mut self) {
        let entry = self.member.dials.all.borrow_mut().remove(&self.id);
        drop(entry);
    }
}

impl<H: Handler> Dial<H> {
    /// The task: attempts and connections in turn, until there is to be none any more.
    async fn run(self) {
        let dials = Rc::clone(&self.member.dials);
        let mut attempts = 0;
        let end = loop {
            attempts += 1;
            let pause = match dials.unless_off(self.id, self.attempt()).await {
                None => break ConnectError::Cancelled,
                Some(Err(error)) => {
                    let again = self.ways.reconnect.as_ref().and_then(|reconnect| reconnect.pause(attempts));
                    self.report(&error, again);
                    let Some(pause) = again else { break ConnectError::Failed(error) };
                    pause
                }
                Some(Ok(link)) => match self.live(link, &mut attempts).await {
                    Ok(pause) => pause,
                    Err(end) => break end,
                },
            };
            if dials.unless_off(self.id, sleep(pause)).await.is_none() {
                break ConnectError::Cancelled;
            }
        };
        dials.tell(self.id, Err(end));
    }

    /// One attempt. On the heap, so that a connection that lives keeps no memory of it.
    async fn attempt(&self) -> io::Result<Link> {
        let limit = self.ways.connect_timeout;
        let made = timeout(limit, Box::pin(make_link(&self.target, |socket| self.prepare(socket)))).await;
        made.unwrap_or_else(|_| {
            let text = format!("no connection within {limit:?} (connect_timeout)");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })
    }

    fn prepare(&self, socket: &dyn Lend) -> io::Result<()> {
        let handler = &self.member.handler;
        let prepared = self.member.call("on_prepare_connect", || handler.on_prepare_connect(socket));
        prepared.unwrap_or_else(|| Err(io::Error::other("on_prepare_connect panicked")))
    }

    fn report(&self, error: &io::Error, again: Option<Duration>) {
        self.member.registry.tally.connects_failed.add(1);
        self.member.report(&Trouble::Connect { id: self.id, target: &self.target, error, again });
    }

    /// Lets a connection live; the pause before the next one, or why there is none.
    async fn live(&self, link: Link, attempts: &mut u32) -> Result<Duration, ConnectError> {
        let Dial { member, id, target, ways, .. } = self;
        if member.dials.is_off(*id) {
            link.abort();
            return Err(ConnectError::Cancelled);
        }
        let life = member.take_in(*id, Some(target), link).ok_or(ConnectError::Refused)?;
        let since = now();
        // A task of its own, so that a panic of the handler ends it alone.
        let Ok(closed) = spawn(life.live()).await else { return Err(ConnectError::Ended) };
        let error =
            || ConnectError::Failed(io::Error::new(io::ErrorKind::ConnectionAborted, closed.to_string()));
        let Some(reconnect) = &ways.reconnect else { return Err(error()) };
        if !(reconnect.when)(&closed.reason) || member.dials.is_off(*id) {
            return Err(error());
        }
        if now().saturating_duration_since(since) >= reconnect.reset_after {
            *attempts = 1;
        }
        reconnect.pause(*attempts).ok_or_else(error)
    }
}

/// Connects. The one place where a connection that is made from here becomes a link.
async fn make_link(target: &Target, prepare: impl Fn(&dyn Lend) -> io::Result<()>) -> io::Result<Link> {
    let addresses = match &target.place {
        Place::Unix(path) => return Ok(Link::Unix(connect_unix(path).await?)),
        Place::Address(address) => vec![*address],
        Place::Name(name) => resolve(&**name).await?,
    };
    let same_family =
        |address: &SocketAddr| target.local.is_none_or(|local| local.is_ipv4() == address.is_ipv4());
    let addresses = in_turn(addresses.into_iter().filter(same_family).collect());
    race(addresses, |address| TcpStream::connect_from(address, target.local, &prepare)).await.map(Link::Tcp)
}

/// Where there is no ring, a full backlog of a Unix socket cannot be waited for.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(PAUSE).await,
            made => return made,
        }
    }
}

/// Both families by turns, in the order in which the system prefers them (RFC 8305, 4).
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_family = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_family);
    let mut mixed = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let before = mixed.len();
        mixed.extend(first.next());
        mixed.extend(second.next());
        if mixed.len() == before {
            return mixed;
        }
    }
}

/// The first address that connects. Each has a start ahead of the next one; the rest are given up.
async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut waiting = addresses.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut start: Option<Sleep> = None;
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address of the family to connect from");
    poll_fn(|context| {
        loop {
            let mut failed = false;
            let mut index = 0;
            while let Some(attempt) = running.get_mut(index) {
                match attempt.as_mut().poll(context) {
                    Poll::Ready(Ok(made)) => return Poll::Ready(Ok(made)),
                    Poll::Ready(Err(error)) => {
                        (last, failed) = (error, true);
                        drop(running.swap_remove(index));
                    }
                    Poll::Pending => index += 1,
                }
            }
            let is_due = failed
                || running.is_empty()
                || start.as_mut().is_some_and(|start| Pin::new(start).poll(context).is_ready());
            match is_due.then(|| waiting.next()).flatten() {
                Some(address) => {
                    running.push(Box::pin(connect(address)));
                    start = (waiting.len() > 0).then(|| sleep(STAGGER));
                }
                None if running.is_empty() => {
                    return Poll::Ready(Err(std::mem::replace(&mut last, io::ErrorKind::Other.into())));
                }
                None => return Poll::Pending,
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::task::block_on;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_the_attempts() {
        let second = Duration::from_secs(1);
        let reconnect = Reconnect { max: 5 * second, attempts_max: Some(5), ..Reconnect::every(second) };
        let pauses: Vec<_> = (1..=5).map(|attempts| reconnect.pause(attempts)).collect();
        assert_eq!(pauses, [Some(second), Some(2 * second), Some(4 * second), Some(5 * second), None]);
        let endless = Reconnect { attempts_max: None, ..reconnect };
        assert_eq!(endless.pause(u32::MAX), Some(5 * second));
    }

    #[test]
    fn a_random_pause_is_a_part_of_the_longest() {
        let reconnect = Reconnect::default();
        let pauses: Vec<_> = (0..100).map(|_| reconnect.pause(1).unwrap()).collect();
        assert!(pauses.iter().all(|pause| *pause <= reconnect.first));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }

    #[test]
    fn families_take_turns() {
        let mixed = in_turn(addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"]));
        assert_eq!(mixed, addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"]));
    }

    #[test]
    fn the_next_address_is_tried_when_one_fails_or_hangs() {
        let raced =
            block_on(race(addresses(&["[::1]:1", "[::2]:2", "[::3]:3"]), async |address| {
                match address.port() {
                    1 => Err(io::ErrorKind::ConnectionRefused.into()),
                    2 => std::future::pending().await,
                    port => Ok(port),
                }
            }));
        assert_eq!(raced.unwrap().unwrap(), 3);
        let nobody = block_on(race::<(), _>(addresses(&["[::1]:1", "[::2]:2"]), async |address| {
            Err(io::Error::other(address.port().to_string()))
        }));
        assert_eq!(nobody.unwrap().unwrap_err().to_string(), "2");
    }
}
