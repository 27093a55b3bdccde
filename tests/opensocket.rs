//! The event facade beyond the recorded scenarios: many sockets, many threads, its end.
#![forbid(unsafe_code)]

mod common;
#[path = "opensocket/endings.rs"]
mod endings;
#[path = "opensocket/instances.rs"]
mod instances;
#[path = "opensocket/names.rs"]
mod names;
#[path = "opensocket/sending.rs"]
mod sending;

use anabranch::event::{Event, OpenSocket, SocketId, Sockets};
use anabranch::{Backend, Config};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails rather than hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn on_each_backend(test: impl Fn(Backend)) {
    common::on(common::real_backends(), |config: Config| test(config.backend));
}

pub(crate) fn new(backend: Backend) -> OpenSocket {
    OpenSocket::builder().config(|config| config.backend(backend)).build()
}

/// What an event is, without its bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) kind: char,
    pub(crate) id: SocketId,
    pub(crate) uid: usize,
    pub(crate) accepted: SocketId,
    pub(crate) bytes: usize,
}

pub(crate) fn told(event: &Event) -> Told {
    let (mut accepted, mut bytes) = (0, 0);
    let kind = match event {
        Event::Data { data, .. } => {
            bytes = data.len();
            'D'
        }
        Event::Close { .. } => 'C',
        Event::Open { .. } => 'O',
        Event::Accept { accepted: id, .. } => {
            accepted = *id;
            'A'
        }
        Event::Error { .. } => 'E',
        Event::Udp { data, .. } => {
            bytes = data.len();
            'U'
        }
        Event::Warning { .. } => 'W',
    };
    Told { kind, id: event.id(), uid: event.uid(), accepted, bytes }
}

/// Waits for an event that satisfies.
pub(crate) fn wait(events: &mpsc::Receiver<Told>, is_it: impl Fn(&Told) -> bool) -> Told {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).expect("the event comes");
        if is_it(&event) {
            return event;
        }
    }
}

/// A started listener and its port.
pub(crate) fn listener(sockets: &Sockets) -> (SocketId, u16) {
    let id = sockets.listen(1, "127.0.0.1", 0, 1024).unwrap();
    sockets.start(1, id);
    let until = Instant::now() + PATIENCE;
    loop {
        let info = sockets.socket_info().into_iter().find(|info| info.id == id);
        if let Some(address) = info.and_then(|info| info.address) {
            return (id, address.port());
        }
        assert!(Instant::now() < until, "the listener was never started");
        thread::yield_now();
    }
}
