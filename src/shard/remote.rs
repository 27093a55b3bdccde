//! The way to a shard from other threads: messages, woken tasks, and the wake itself.
#![forbid(unsafe_code)]

use super::executor::Ready;
use super::mailbox::{Mailbox, Refused};
use super::parking::Parking;
use super::share::{Passage, Seat};
use crate::driver::{Descriptor, Wake, interruption};
use crate::error::Full;
use crossbeam_queue::SegQueue;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Work to be done on the shard's thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// What a mailbox carries.
pub(crate) enum Message {
    Run(Job),
    /// A connection from another member of a group of listeners, with its place in the counts.
    Connection {
        group: u64,
        fd: Descriptor,
        seat: Seat,
        passage: Passage,
    },
}

/// What other threads share with a shard.
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) mailbox: Mailbox<Message>,
    /// Tasks of the shard that other threads woke. A task is in it once at most, so the number of tasks
    /// bounds it.
    pub(crate) tasks: SegQueue<Ready>,
    pub(crate) parking: Parking,
    wake: Wake,
    wakes: AtomicU64,
    ended: AtomicBool,
}

impl Link {
    pub(crate) fn new(mailbox_max: usize, wake: Wake) -> Arc<Link> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Link {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            mailbox: Mailbox::new(mailbox_max),
            tasks: SegQueue::new(),
            parking: Parking::new(),
            wake,
            wakes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Wakes the shard if it sleeps; one system call per sleep at most (invariant 13).
    pub(crate) fn unpark(&self) {
        if self.parking.must_wake() {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            self.wake.wake();
        }
    }

    pub(crate) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    /// Whether another thread has left something.
    pub(crate) fn has_mail(&self) -> bool {
        !self.mailbox.is_empty() || !self.tasks.is_empty()
    }

    /// A task was woken on another thread. Only the shard's own thread takes it out again.
    pub(crate) fn push_task(&self, task: Ready) {
        if self.ended.load(Ordering::Acquire) {
            // Its future was dropped when the shard ended; the empty shell must not be touched here.
            std::mem::forget(task);
            return;
        }
        self.tasks.push(task);
        interruption();
        self.unpark();
    }

    /// No shard any more: its tasks are dropped, and its mailbox is closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.id)
    }
}

/// A handle to a shard for other threads. Clones name the same shard; it may outlive the shard.
#[derive(Clone)]
pub struct Remote {
    pub(crate) link: Arc<Link>,
}

/// Why a message was not taken; it is given back.
pub enum Undelivered<T> {
    /// The mailbox holds [`Limits::mailbox_max`](crate::Limits) messages.
    Full(T),
    /// The shard has ended.
    Ended(T),
}

impl<T> Undelivered<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            Undelivered::Full(message) | Undelivered::Ended(message) => message,
        }
    }
}

impl<T> fmt::Debug for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undelivered::Full(_) => "Full(..)",
            Undelivered::Ended(_) => "Ended(..)",
        })
    }
}

impl<T> fmt::Display for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undelivered::Full(_) => "the shard's mailbox is full (Limits::mailbox_max); try again later",
            Undelivered::Ended(_) => "the shard has ended",
        })
    }
}

impl<T> std::error::Error for Undelivered<T> {}

impl Remote {
    /// A number that tells shards of this process apart.
    pub fn id(&self) -> u64 {
        self.link.id
    }

    /// Runs `job` on the shard's thread, soon, in order with other messages of this thread.
    ///
    /// # Errors
    ///
    /// Gives the job back if the mailbox is full or the shard has ended.
    pub fn run(
        &self,
        job: impl FnOnce() + Send + 'static,
    ) -> Result<(), Undelivered<Box<dyn FnOnce() + Send>>> {
        let job_of = |message| match message {
            Message::Run(job) => job,
            Message::Connection { .. } => unreachable!("a job was sent"),
        };
        self.send(Message::Run(Box::new(job))).map_err(|refused| match refused {
            Undelivered::Full(message) => Undelivered::Full(job_of(message)),
            Undelivered::Ended(message) => Undelivered::Ended(job_of(message)),
        })
    }

    pub(crate) fn send(&self, message: Message) -> Result<(), Undelivered<Message>> {
        match self.link.mailbox.push(message) {
            Ok(()) => {
                interruption();
                self.link.unpark();
                Ok(())
            }
            Err(Refused::Full(message)) => Err(Undelivered::Full(message)),
            Err(Refused::Closed(message)) => Err(Undelivered::Ended(message)),
        }
    }
}

impl<T> From<Undelivered<T>> for Full<T> {
    fn from(undelivered: Undelivered<T>) -> Full<T> {
        Full(undelivered.into_inner())
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.link.id)
    }
}
