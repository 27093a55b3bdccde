//! [`Socket`]: what a shard keeps of a socket beside its endpoint, and the rules of what waits to be sent.
//!
//! The original writes in the call where it can and keeps two lists of what is left. Here everything goes to the queue
//! of the endpoint, except what must be able to stay behind: bytes of low priority, and bytes for a connection that is
//! not there yet. What a call finds nothing ahead of counts as written directly, as in the original: it is not pending.
#![forbid(unsafe_code)]

use super::datagrams::Waiting;
use super::foreign::Foreign;
use super::ids::SocketId;
use crate::buf::Payload;
use crate::shard::EndpointId;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Bytes pending that are told of.
const WARN_BYTES: u64 = 1 << 20;

/// The life of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// A listener that accepts nothing yet.
    Bound,
    Listening,
    /// The name is being resolved, or the connection made.
    Connecting,
    /// A connection that delivers nothing yet.
    Accepted,
    Connected,
    /// Closed by a call while something was pending: input is dropped, output leaves.
    HalfClosed,
    Datagrams,
}

/// One socket.
pub(super) struct Socket {
    pub(super) id: SocketId,
    pub(super) uid: usize,
    pub(super) state: State,
    pub(super) endpoint: Option<EndpointId>,
    /// Its descriptor is the program's, so it keeps its owner.
    pub(super) adopted: bool,
    /// Small pieces are to leave at once, on whichever address takes the connection.
    pub(super) nodelay: bool,
    /// The shard is asked to tell when everything queued has left.
    pub(super) asked: bool,
    /// A warning was given since nothing was pending.
    warned: bool,
    /// What pending bytes are told of next.
    warn_at: u64,
    /// Bytes given to the endpoint.
    queued: u64,
    /// As many of them, from the first, count as written directly.
    direct: u64,
    pub(super) rest: Option<Box<Rest>>,
}

/// What most sockets lack.
#[derive(Default)]
pub(super) struct Rest {
    /// What is to be sent when the connection is there.
    pub(super) early: VecDeque<Payload>,
    /// What is sent when nothing else is left.
    pub(super) low: VecDeque<Payload>,
    /// Bytes of both.
    held: u64,
    /// Addresses to connect to when the one that is tried refuses, the last first.
    pub(super) addresses: Vec<SocketAddr>,
    /// The default destination of a socket for datagrams.
    pub(super) destination: Option<SocketAddr>,
    /// Datagrams that have yet to leave.
    pub(super) waiting: Waiting,
    /// The descriptor of the program's that was bound.
    pub(super) foreign: Option<Box<Foreign>>,
}

/// Where a payload goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// To the endpoint.
    Out {
        direct: bool,
    },
    /// To the end of a list.
    Early,
    Low,
    /// Nowhere.
    Dropped,
}

impl Socket {
    pub(super) fn new(id: SocketId, uid: usize, state: State, endpoint: Option<EndpointId>) -> Socket {
        Socket {
            id,
            uid,
            state,
            endpoint,
            adopted: false,
            nodelay: false,
            asked: false,
            warned: false,
            warn_at: WARN_BYTES,
            queued: 0,
            direct: 0,
            rest: None,
        }
    }

    pub(super) fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    fn held(&self) -> u64 {
        self.rest.as_ref().map_or(0, |rest| rest.held)
    }

    /// Where a payload goes of which `unsent` bytes are ahead in the endpoint.
    pub(super) fn way(&self, low: bool, unsent: usize) -> Way {
        match self.state {
            State::Connecting if low && self.held() > 0 => Way::Low,
            State::Connecting => Way::Early,
            State::Connected if low && (unsent > 0 || self.held() > 0) => Way::Low,
            // What begins as the first of both lists is queued before it is written.
            State::Connected => Way::Out { direct: !low && unsent == 0 },
            _ => Way::Dropped,
        }
    }

    /// Holds a payload back.
    pub(super) fn hold(&mut self, payload: Payload, way: Way) {
        let rest = self.rest();
        rest.held += payload.len() as u64;
        if way == Way::Low { rest.low.push_back(payload) } else { rest.early.push_back(payload) }
    }

    /// Takes the next payload that was held back.
    pub(super) fn release(&mut self) -> Option<Payload> {
        let rest = self.rest.as_mut()?;
        let payload = rest.early.pop_front().or_else(|| rest.low.pop_front())?;
        rest.held -= payload.len() as u64;
        Some(payload)
    }

    /// Whether payloads wait for the connection.
    pub(super) fn has_early(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| !rest.early.is_empty())
    }

    /// The endpoint has got `bytes`.
    #[inline]
    pub(super) fn count_queued(&mut self, bytes: usize, direct: bool) {
        self.queued += bytes as u64;
        if direct {
            self.direct = self.queued;
        }
    }

    /// Bytes that the system has not taken, with `unsent` bytes in the endpoint, less what counts as written directly.
    #[inline]
    pub(super) fn pending(&self, unsent: usize) -> u64 {
        let left = self.queued.saturating_sub(unsent as u64);
        unsent as u64 - self.direct.saturating_sub(left).min(unsent as u64) + self.held()
    }

    /// Bytes that count as written.
    #[inline]
    pub(super) fn written(&self, pending: u64) -> u64 {
        (self.queued + self.held()).saturating_sub(pending)
    }

    /// Whether so much is pending that it is to be told.
    #[inline]
    pub(super) fn is_warning_due(&self, pending: u64) -> bool {
        pending >= self.warn_at
    }

    /// Takes down that it was told. The next warning comes at twice the threshold, however far this one passed it.
    pub(super) fn warn(&mut self) {
        self.warned = true;
        self.warn_at *= 2;
    }

    /// Everything has left: whether that is to be told.
    pub(super) fn relax(&mut self) -> bool {
        self.warn_at = WARN_BYTES;
        std::mem::take(&mut self.warned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> Socket {
        Socket::new(1, 1, State::Connected, None)
    }

    #[test]
    fn what_finds_nothing_ahead_is_direct_and_never_pending() {
        let mut socket = connected();
        assert_eq!(socket.way(false, 0), Way::Out { direct: true });
        socket.count_queued(100, true);
        assert_eq!(socket.pending(100), 0);
        assert_eq!(socket.way(false, 100), Way::Out { direct: false });
        socket.count_queued(50, false);
        assert_eq!([socket.pending(150), socket.pending(60), socket.pending(20)], [50, 50, 20]);
        assert_eq!(socket.written(20), 130);
    }

    #[test]
    fn low_priority_waits_for_all_else_and_the_first_of_both_is_queued() {
        let mut socket = connected();
        assert_eq!(socket.way(true, 0), Way::Out { direct: false });
        assert_eq!(socket.way(true, 1), Way::Low);
        socket.hold(Payload::from("low"), Way::Low);
        assert_eq!(socket.way(true, 0), Way::Low);
        assert_eq!(socket.pending(0), 3);
        assert_eq!(&*socket.release().unwrap(), b"low");
        assert_eq!(socket.pending(0), 0);
    }

    #[test]
    fn before_the_connection_is_there_the_first_is_high_whatever_its_priority() {
        let mut socket = Socket::new(1, 1, State::Connecting, None);
        for (text, low) in [("a", true), ("b", true), ("c", false)] {
            let way = socket.way(low, 0);
            socket.hold(Payload::from(text), way);
        }
        let order: Vec<_> = std::iter::from_fn(|| socket.release()).map(|p| p.to_vec()).collect();
        assert_eq!(order, [b"a", b"c", b"b"]);
    }

    #[test]
    fn thresholds_double_however_far_they_were_passed() {
        let mut socket = connected();
        assert!(!socket.is_warning_due((1 << 20) - 1));
        assert!(socket.is_warning_due(100 << 20));
        socket.warn();
        assert!(!socket.is_warning_due((2 << 20) - 1) && socket.is_warning_due(2 << 20));
        assert!(socket.relax() && !socket.relax());
        assert!(socket.is_warning_due(1 << 20));
    }
}
