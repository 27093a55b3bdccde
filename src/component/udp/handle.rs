//! [`NodeHandle`]: nodes as other threads see them.
//!
//! Each node has a bounded queue behind a lock, which its shard empties; nobody waits for anybody but in
//! [`NodeHandle::wait`].
#![forbid(unsafe_code)]

use super::SendError;
use super::endpoint::{Meter, UdpCounters};
use super::node::NodeOptions;
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle for other threads to the nodes that were made with the same [`NodeOptions`]: one, or one on each shard of a
/// group. It keeps none of them open.
#[derive(Clone, Default)]
pub struct NodeHandle {
    nodes: Arc<Mutex<Nodes>>,
}

#[derive(Default)]
struct Nodes {
    /// The latest ones; one that is gone makes room when another is made.
    members: Vec<Arc<Member>>,
    /// The counters of those that made room.
    past: UdpCounters,
    stopped: bool,
}

impl NodeHandle {
    pub(super) fn new() -> NodeHandle {
        NodeHandle::default()
    }

    pub(super) fn join(&self, member: &Arc<Member>) {
        let mut nodes = lock(&self.nodes);
        let (gone, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut nodes.members).into_iter().partition(|member| member.is_gone());
        nodes.past = gone.iter().fold(nodes.past, |sum, member| sum.add(member.counters()));
        nodes.members = left;
        nodes.members.push(Arc::clone(member));
        if nodes.stopped {
            member.stop();
        }
    }

    fn members(&self) -> Vec<Arc<Member>> {
        lock(&self.nodes).members.clone()
    }

    /// Hands a datagram to the node's shard, soon to be sent; of several nodes always the same one sends to an address,
    /// so that order is kept as well as the network keeps it.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLong`]; [`SendError::Full`] if [`NodeOptions::mail_max`] datagrams wait;
    /// [`SendError::Stopped`] if there is no node (any more).
    pub fn send_to(&self, payload: impl Into<Bytes>, to: SocketAddr) -> Result<(), SendError> {
        let nodes = lock(&self.nodes);
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(to);
        let count = nodes.members.len();
        let first = (hash % count.max(1) as u64) as usize;
        let mut in_turn = nodes.members.iter().cycle().skip(first).take(count);
        let member = Arc::clone(in_turn.find(|member| member.is_open()).ok_or(SendError::Stopped)?);
        // A payload that is refused is dropped, which may run code of its owner's: not behind a lock.
        drop(nodes);
        member.post(payload.into(), to)
    }

    /// The counters of all nodes together, those that have ended included.
    pub fn counters(&self) -> UdpCounters {
        let nodes = lock(&self.nodes);
        nodes.members.iter().fold(nodes.past, |sum, member| sum.add(member.counters()))
    }

    /// Stops all nodes, soon, and those that are yet to be made with the same options. What was handed over before is
    /// still sent.
    pub fn stop(&self) {
        let mut nodes = lock(&self.nodes);
        nodes.stopped = true;
        nodes.members.iter().for_each(|member| member.stop());
    }

    /// Waits until each node that has been made so far is gone: stopped, and dropped by who served it.
    ///
    /// It blocks the thread, which must not be that of a shard with one of the nodes.
    pub fn wait(&self) {
        self.members().iter().for_each(|member| member.wait());
    }
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeHandle({} nodes)", lock(&self.nodes).members.len())
    }
}

/// What a shard and other threads share of one node.
pub(super) struct Member {
    mail: Mutex<Mailbox>,
    gone: Condvar,
    meter: Arc<Meter>,
    datagram_bytes_max: usize,
    mail_max: usize,
}

#[derive(Default)]
struct Mailbox {
    queue: VecDeque<(Bytes, SocketAddr)>,
    state: State,
    waker: Option<Waker>,
    /// Datagrams that were refused.
    dropped: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Open,
    /// Somebody wants it to stop; the shard has not heard of it yet.
    Stopping,
    Closed,
    /// The node is dropped.
    Gone,
}

/// What the node's shard finds.
pub(super) enum Mail {
    Datagram(Bytes, SocketAddr),
    /// Also when the node has closed.
    Stop,
}

impl Member {
    pub(super) fn new(options: &NodeOptions, meter: Arc<Meter>) -> Arc<Member> {
        let (datagram_bytes_max, mail_max) = (options.datagram_bytes_max, options.mail_max);
        Arc::new(Member { mail: Mutex::default(), gone: Condvar::new(), meter, datagram_bytes_max, mail_max })
    }

    fn post(&self, payload: Bytes, to: SocketAddr) -> Result<(), SendError> {
        let (bytes, max) = (payload.len(), self.datagram_bytes_max);
        let mut mail = lock(&self.mail);
        let refused = if mail.state != State::Open {
            Some(SendError::Stopped)
        } else if bytes > max {
            Some(SendError::TooLong { bytes, max })
        } else {
            (mail.queue.len() >= self.mail_max).then_some(SendError::Full)
        };
        if let Some(refused) = refused {
            mail.dropped += u64::from(!matches!(refused, SendError::Stopped));
            return Err(refused);
        }
        mail.queue.push_back((payload, to));
        Member::wake(mail);
        Ok(())
    }

    fn is_open(&self) -> bool {
        lock(&self.mail).state == State::Open
    }

    fn is_gone(&self) -> bool {
        lock(&self.mail).state == State::Gone
    }

    /// Wakes the shard when the lock is free again.
    fn wake(mut mail: MutexGuard<'_, Mailbox>) {
        let waker = mail.waker.take();
        drop(mail);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn stop(&self) {
        let mut mail = lock(&self.mail);
        if mail.state == State::Open {
            mail.state = State::Stopping;
            Member::wake(mail);
        }
    }

    /// The next thing to do; else the waker is used when there is one.
    pub(super) fn poll_mail(&self, waker: &Waker) -> Option<Mail> {
        let mut mail = lock(&self.mail);
        if let Some((payload, to)) = mail.queue.pop_front() {
            return Some(Mail::Datagram(payload, to));
        }
        if mail.state != State::Open {
            return Some(Mail::Stop);
        }
        mail.waker = Some(waker.clone());
        None
    }

    /// Takes no more; what waits is given out.
    pub(super) fn close(&self) -> VecDeque<(Bytes, SocketAddr)> {
        let mut mail = lock(&self.mail);
        if mail.state != State::Gone {
            mail.state = State::Closed;
        }
        let left = std::mem::take(&mut mail.queue);
        Member::wake(mail);
        left
    }

    /// The node is gone.
    pub(super) fn end(&self) {
        lock(&self.mail).state = State::Gone;
        self.gone.notify_all();
    }

    fn wait(&self) {
        let mut mail = lock(&self.mail);
        while mail.state != State::Gone {
            mail = self.gone.wait(mail).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn counters(&self) -> UdpCounters {
        let mut counters = self.meter.read();
        counters.dropped_out += lock(&self.mail).dropped;
        counters
    }
}
