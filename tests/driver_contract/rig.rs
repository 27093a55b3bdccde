//! A driver with what every test of it needs: patience, and a check that each operation ends once.

use crate::common::net::anywhere;
use crate::common::peer::{TcpListener, TcpStream, UdpSocket};
use anabranch::driver::completion::{Completion, Done, RawCompletion};
use anabranch::driver::op::Op;
use anabranch::driver::{Descriptor, Driver, FdRef, Token};
use anabranch::{BackendKind, Config, Counters, Error, Limits};
use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longer than anything here takes, also on an emulated machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

pub(crate) struct Rig {
    pub(crate) driver: Driver,
    /// Completions that nobody has asked for yet.
    pub(crate) kept: VecDeque<Completion>,
    ended: HashSet<Token>,
}

impl Rig {
    /// A driver with bounds that are small enough for many of them.
    pub(crate) fn new(config: Config) -> Rig {
        Rig::with(config, |_| {})
    }

    pub(crate) fn with(config: Config, change: impl FnOnce(&mut Limits)) -> Rig {
        let config = config.with_limits(|limits| {
            (limits.operations_max, limits.buffers, limits.buffer_bytes) = (256, 64, 2048);
            // So small that a kernel gets all of them at once.
            limits.datagram_buffer_bytes = 2048;
            change(limits);
        });
        let driver = Driver::new(&config).expect("a driver");
        Rig { driver, kept: VecDeque::new(), ended: HashSet::new() }
    }

    pub(crate) fn is(&self, kind: BackendKind) -> bool {
        self.driver.report().backend == kind
    }

    /// Whether the backend may say that it starved though there are buffers.
    pub(crate) fn may_starve(&self) -> bool {
        self.is(BackendKind::Script) || self.is(BackendKind::Simulated)
    }

    pub(crate) fn submit(&mut self, op: impl Into<Op>) -> Token {
        self.driver.submit(op, 0).expect("there is room for the operation")
    }

    /// One wait; what it brings is kept. Says how much it was.
    pub(crate) fn turn(&mut self, timeout: Duration) -> usize {
        let raw = self.raw_turn(timeout);
        self.settle(raw)
    }

    /// So many waits.
    pub(crate) fn turns(&mut self, count: usize, timeout: Duration) {
        for _ in 0..count {
            self.turn(timeout);
        }
    }

    /// One wait; what it brings is not settled.
    pub(crate) fn raw_turn(&mut self, timeout: Duration) -> Vec<RawCompletion> {
        let mut raw = Vec::new();
        self.driver.wait(Some(timeout), &mut raw).expect("a wait");
        raw
    }

    /// Waits until something completes; it is not settled.
    pub(crate) fn raw_news(&mut self) -> Vec<RawCompletion> {
        let end = self.driver.now() + PATIENCE;
        loop {
            let raw = self.raw_turn(Duration::from_millis(20));
            if !raw.is_empty() {
                return raw;
            }
            assert!(self.driver.now() < end, "nothing completes; {:?}", self.driver);
        }
    }

    /// Settles, and checks that nothing comes after a terminal completion (invariant 4).
    pub(crate) fn settle(&mut self, raw: Vec<RawCompletion>) -> usize {
        let count = raw.len();
        for raw in raw {
            assert!(!self.ended.contains(&raw.token), "{raw:?} comes after the terminal completion");
            if !raw.more {
                self.ended.insert(raw.token);
            }
            let completion = self.driver.settle(raw);
            if let Some(completion) = &completion {
                assert_eq!((completion.token, completion.more), (raw.token, raw.more));
            }
            self.kept.extend(completion);
        }
        count
    }

    /// Waits until the condition holds.
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Rig) -> bool) {
        let end = self.driver.now() + PATIENCE;
        while !holds(self) {
            assert!(self.driver.now() < end, "never: {what}; {:?}", self.driver);
            self.turn(Duration::from_millis(50));
        }
    }

    /// The next completion of an operation.
    pub(crate) fn next(&mut self, token: Token) -> Completion {
        let mut found = None;
        self.until("a completion", |rig| {
            let at = rig.kept.iter().position(|completion| completion.token == token);
            found = at.and_then(|at| rig.kept.remove(at));
            found.is_some()
        });
        found.expect("just found")
    }

    /// The only completion of an operation.
    pub(crate) fn last(&mut self, token: Token) -> Done {
        let completion = self.next(token);
        assert!(!completion.more, "{completion:?} is not terminal");
        completion.done
    }

    /// The outcome of an operation that yields nothing.
    pub(crate) fn ended(&mut self, token: Token) -> Result<(), Error> {
        match self.last(token) {
            Done::Ended(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) fn idle(&mut self) {
        self.until("idle", |rig| rig.driver.in_flight() == 0);
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        self.driver.count(&mut counters);
        counters
    }

    /// Ends the driver and checks that nothing is outstanding: operations, buffers, descriptors.
    pub(crate) fn end(mut self) -> Counters {
        assert!(self.driver.drain(), "the driver drains");
        self.kept.clear();
        let mut out = Vec::new();
        // Descriptors that were retired close now.
        self.driver.wait(Some(Duration::ZERO), &mut out).expect("a wait");
        assert_eq!(out, [], "nothing completes when nothing is in flight");
        let pools = [Some(self.driver.pool().clone()), self.driver.datagram_pool().cloned()];
        pools.iter().flatten().for_each(|pool| pool.collect());
        let counters = self.counters();
        counters.settled().expect("the ledger is settled");
        assert_eq!(counters.stale, 0, "no stale completion");
        for pool in pools.iter().flatten() {
            assert_eq!(pool.available(), pool.count(), "every buffer is home");
        }
        counters
    }

    pub(crate) fn adopt(&mut self, fd: impl Into<Descriptor>) -> FdRef {
        self.driver.adopt(fd).expect("a descriptor to adopt")
    }

    /// A connected TCP socket of the driver's, and its peer.
    pub(crate) fn tcp(&mut self) -> (FdRef, TcpStream) {
        let (ours, theirs) = tcp_pair();
        (self.adopt(ours), theirs)
    }

    /// A listening socket of the driver's.
    pub(crate) fn listener(&mut self) -> (FdRef, SocketAddr) {
        let listener = TcpListener::bind(anywhere()).expect("a listener");
        let address = listener.local_addr().expect("its address");
        (self.adopt(listener), address)
    }

    /// A datagram socket of the driver's.
    pub(crate) fn udp(&mut self) -> (FdRef, SocketAddr) {
        let socket = UdpSocket::bind(anywhere()).expect("a socket");
        let address = socket.local_addr().expect("its address");
        (self.adopt(socket), address)
    }
}

/// The address of the peer of a connection that was accepted.
pub(crate) fn peer_of(accepted: Descriptor) -> SocketAddr {
    accepted.peer_addr().expect("it is connected").as_socket().expect("an address of IP")
}

pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(anywhere()).expect("a listener");
    let theirs = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (ours, _) = listener.accept().expect("a connection");
    theirs.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    theirs.set_nodelay(true).expect("no delay");
    (ours, theirs)
}

/// A connection of which the first end can send no more: its buffers are small, of a fixed size, and full.
/// A megabyte does not fit however much the system moves.
pub(crate) fn stuffed_pair() -> (TcpStream, TcpStream) {
    use std::io::Write;
    let (ours, theirs) = tcp_pair();
    for end in [&ours, &theirs] {
        end.set_buffer_sizes(16 * 1024, 16 * 1024).expect("a size");
    }
    ours.set_nonblocking(true).expect("non-blocking");
    while (&ours).write(&[0x55; 64 * 1024]).is_ok() {}
    (ours, theirs)
}

/// Bytes of which no two neighbours are alike, so that a hole shows.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 251) as u8).collect()
}

/// Bytes to send that say when they are released.
pub(crate) struct Watched {
    bytes: Vec<u8>,
    released: Arc<AtomicUsize>,
}

impl Watched {
    pub(crate) fn payload(bytes: Vec<u8>) -> (anabranch::Payload, Arc<AtomicUsize>) {
        let released = Arc::new(AtomicUsize::new(0));
        let watched = Watched { bytes, released: Arc::clone(&released) };
        (bytes::Bytes::from_owner(watched).into(), released)
    }
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Poison: who reads on after the release sends this.
        self.bytes.fill(0xdd);
        self.released.fetch_add(1, Ordering::SeqCst);
    }
}
