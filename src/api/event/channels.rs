//! Delivery through a channel for each uid.
#![forbid(unsafe_code)]

use super::OpenSocket;
use super::message::Event;
use super::sockets::Sockets;
use bytes::Bytes;
use crossbeam_queue::SegQueue;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, mpsc};

/// What a uid receives.
pub type Channel = mpsc::Receiver<Event<Bytes>>;

/// Hands each event to whoever has registered its uid, an actor's inbox, so to say. Events for a uid that nobody has
/// registered, or whose channel is gone, are dropped. Channels have no bound.
#[derive(Clone)]
pub struct Channels {
    waiting: Arc<SegQueue<(usize, mpsc::Sender<Event<Bytes>>)>>,
}

impl Channels {
    /// Receives what is for `uid` from now on; whoever had it before receives no more. What this thread calls afterwards
    /// is answered here.
    pub fn register(&self, uid: usize) -> Channel {
        let (sender, receiver) = mpsc::channel();
        self.waiting.push((uid, sender));
        receiver
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channels")
    }
}

pub(super) fn run(sockets: &OpenSocket) -> io::Result<Channels> {
    let channels = Channels { waiting: Arc::default() };
    let waiting = Arc::clone(&channels.waiting);
    let mut senders = HashMap::new();
    sockets.run(move |_: &Sockets, event| {
        // Who registers and then calls finds itself registered when the call is answered.
        while let Some((uid, sender)) = waiting.pop() {
            senders.insert(uid, sender);
        }
        let uid = event.uid();
        let gone = senders.get(&uid).is_some_and(|sender| sender.send(event.into_send()).is_err());
        if gone {
            senders.remove(&uid);
        }
    })?;
    Ok(channels)
}
