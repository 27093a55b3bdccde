//! What fan-out servers have in common: cutting a stream into messages, and queues with a bound.

use super::{FANOUT_BACKLOG, MESSAGE};
use bytes::Bytes;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Cuts the publisher's stream into whole messages.
#[derive(Default)]
pub struct Messages(Vec<u8>);

impl Messages {
    /// The messages that are whole now.
    pub fn feed(&mut self, bytes: &[u8]) -> impl Iterator<Item = Bytes> + use<> {
        self.0.extend_from_slice(bytes);
        let whole = self.0.len() / MESSAGE * MESSAGE;
        let chunk = Bytes::copy_from_slice(&self.0[..whole]);
        self.0.drain(..whole);
        (0..whole / MESSAGE).map(move |at| chunk.slice(at * MESSAGE..(at + 1) * MESSAGE))
    }
}

/// What waits for one subscriber, for runtimes on one thread.
#[derive(Default)]
pub struct Outbox {
    queue: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    waker: Cell<Option<Waker>>,
}

/// Bytes that a writer takes at once.
const TAKE: usize = 64 * 1024;

impl Outbox {
    /// Appends a message; one for which there is no room is dropped.
    fn push(&self, message: &Bytes) {
        if self.bytes.get() + message.len() > FANOUT_BACKLOG {
            return;
        }
        self.bytes.set(self.bytes.get() + message.len());
        self.queue.borrow_mut().push_back(message.clone());
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for messages and gives them as one piece of memory.
    pub async fn take(&self, mut into: Vec<u8>) -> Vec<u8> {
        into.clear();
        poll_fn(|context| {
            if self.bytes.get() > 0 {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
        let mut queue = self.queue.borrow_mut();
        while into.len() < TAKE {
            let Some(message) = queue.pop_front() else { break };
            into.extend_from_slice(&message);
        }
        self.bytes.set(self.bytes.get() - into.len());
        into
    }
}

/// All subscribers of a server.
#[derive(Clone, Default)]
pub struct Room(Rc<RefCell<Slab<Rc<Outbox>>>>);

impl Room {
    pub fn join(&self) -> (usize, Rc<Outbox>) {
        let outbox = Rc::<Outbox>::default();
        (self.0.borrow_mut().insert(Rc::clone(&outbox)), outbox)
    }

    pub fn leave(&self, place: usize) {
        self.0.borrow_mut().remove(place);
    }

    pub fn publish(&self, messages: impl Iterator<Item = Bytes>) {
        let members = self.0.borrow();
        for message in messages {
            members.iter().for_each(|(_, outbox)| outbox.push(&message));
        }
    }
}
