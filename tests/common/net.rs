//! Connections, peers and child processes for the behaviour tests.

use super::{peer, real_backends, run, simulated_backends};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Completion, Config, Counters, EndpointId, Event, Script, Shard, timeout};
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

/// After this long a scenario counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// The system's backends, one that misbehaves within the contract, and simulated machines.
pub(crate) fn typical_backends() -> Vec<(String, Config)> {
    let mut all = real_backends();
    all.push(("script (rough 7)".to_owned(), Config::new().script(Script::rough(7))));
    all.extend(simulated_backends());
    all
}

/// Runs a test on the system's backends, a rough script and simulated machines.
pub(crate) fn on_typical_backends(test: impl Fn(Config)) {
    super::on(typical_backends(), test);
}

/// Runs a test on the system's backends.
pub(crate) fn on_real_backends(test: impl Fn(Config)) {
    super::on(real_backends(), test);
}

/// As `run`; a future that does not end is a failure.
pub(crate) fn check<F: Future>(config: Config, future: F) -> F::Output {
    counted(config, future).0
}

/// As `check`, with the last counters.
pub(crate) fn counted<F: Future>(config: Config, future: F) -> (F::Output, Counters) {
    run(config, async { timeout(PATIENCE, future).await.expect("the scenario hangs") })
}

/// Any port on the loopback interface.
pub(crate) fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// An address where nobody listens. A port that was free a moment ago may be another test's by now.
pub(crate) fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// Two ends of a TCP connection, both on the current shard.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (theirs, _) = listener.accept().await.unwrap();
    (ours, theirs)
}

#[cfg(windows)]
pub(crate) use anabranch::net::TcpStream as LocalStream;
/// A connection within the machine: a Unix socket, or where there are none a TCP one.
#[cfg(unix)]
pub(crate) use anabranch::net::UnixStream as LocalStream;

/// Two ends of such a connection, both on the current shard.
pub(crate) async fn local_pair() -> (LocalStream, LocalStream) {
    #[cfg(unix)]
    return LocalStream::pair().unwrap();
    #[cfg(windows)]
    return pair().await;
}

/// A TCP connection of the current shard, and its blocking other end.
pub(crate) fn with_peer() -> (TcpStream, peer::TcpStream) {
    let (ours, theirs) = std_pair();
    (ours.adopt().unwrap(), theirs)
}

/// Two blocking ends of a TCP connection.
pub(crate) fn std_pair() -> (peer::TcpStream, peer::TcpStream) {
    let listener = peer::TcpListener::bind(anywhere()).unwrap();
    let ours = peer::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_nodelay(true).unwrap();
    (ours, theirs)
}

/// Checks that a connection has been reset. Wine forgets a reset that comes before somebody receives, and tells the end.
pub(crate) fn assert_reset<T: std::fmt::Debug>(received: io::Result<T>) {
    match received {
        Ok(_) if super::is_wine() => println!("NOT COVERED: a reset, which Wine told as an end"),
        other => assert_eq!(other.unwrap_err().kind(), io::ErrorKind::ConnectionReset),
    }
}

/// Closes a blocking stream with a reset.
pub(crate) fn reset(stream: peer::TcpStream) {
    stream.reset().unwrap();
}

/// Everything up to the end of the stream.
pub(crate) async fn recv_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(lease) = stream.recv().await? {
        all.extend_from_slice(&lease);
    }
    Ok(all)
}

/// Bytes of which no two stretches look alike.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A small generator of random numbers (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A shard that is driven by the completion API, with everything that it reported.
pub(crate) struct Driven {
    pub(crate) shard: Shard,
    pub(crate) events: Vec<Completion>,
}

impl Driven {
    pub(crate) fn new(config: Config) -> Driven {
        Driven { shard: Shard::new(config).expect("a shard"), events: Vec::new() }
    }

    /// Polls until `done` says so.
    pub(crate) fn until(&mut self, done: impl Fn(&[Completion]) -> bool) {
        let end = peer::now() + PATIENCE;
        while !done(&self.events) {
            assert!(peer::now() < end, "nothing comes any more after {:?}", self.events);
            let events = &mut self.events;
            self.shard.poll(Some(Duration::from_millis(10)), |completion| events.push(completion)).unwrap();
        }
    }

    /// Polls until the submission with this tag has ended.
    pub(crate) fn end_of(&mut self, tag: u64) -> &Event {
        self.until(|events| events.iter().any(|completion| completion.tag == tag && !completion.more));
        &self.all(tag).last().unwrap().event
    }

    /// Polls for a while.
    pub(crate) fn idle(&mut self, duration: Duration) {
        let end = peer::now() + duration;
        while peer::now() < end {
            let events = &mut self.events;
            self.shard.poll(Some(Duration::from_millis(1)), |completion| events.push(completion)).unwrap();
        }
    }

    /// What was reported for a tag.
    pub(crate) fn all(&self, tag: u64) -> Vec<&Completion> {
        self.events.iter().filter(|completion| completion.tag == tag).collect()
    }

    /// The bytes received for a tag so far.
    pub(crate) fn bytes(&self, tag: u64) -> Vec<u8> {
        let leases = self.all(tag).into_iter().filter_map(|completion| match &completion.event {
            Event::Received(lease) => Some(lease.to_vec()),
            _ => None,
        });
        leases.flatten().collect()
    }

    /// A connection with its blocking other end.
    pub(crate) fn with_peer(&self) -> (EndpointId, peer::TcpStream) {
        let (ours, theirs) = std_pair();
        (self.shard.adopt_stream(ours).unwrap(), theirs)
    }

    /// Ends the shard and checks that the ledger is settled and that each tag ended at most once.
    pub(crate) fn finish(self) -> Counters {
        let Driven { shard, events } = self;
        let mut ended = std::collections::HashSet::new();
        for Completion { tag, more, event, .. } in &events {
            assert!(!ended.contains(tag), "{event:?} for tag {tag}, which had ended: {events:?}");
            if !more {
                ended.insert(*tag);
            }
        }
        drop(events);
        let counters = shard.finish();
        counters.settled().expect("the ledger is settled");
        assert_eq!(counters.stale, 0, "no stale completion");
        counters
    }
}

const CHILD: &str = "ANABRANCH_TEST_CHILD";

/// Whether this process was started by [`in_child`].
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one test of this file in a process of its own, with these variables set, and gives what it said.
pub(crate) fn in_child(test: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    command.envs(variables.iter().copied());
    command.output().expect("the test can be run once more")
}

/// Lets this process have as many descriptors as it may, up to 65 536; how many it may have.
#[cfg(unix)]
pub(crate) fn raise_descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of descriptors");
    let wanted = hard.min(65_536);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        return wanted as usize;
    }
    soft as usize
}

/// Handles have no limit that matters here.
#[cfg(windows)]
pub(crate) fn raise_descriptors() -> usize {
    65_536
}

/// Runs `body` in a process of its own, where it may change what belongs to the whole process.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    if is_child() {
        return body();
    }
    let output = in_child(test, &[]);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the child failed:\n{said}");
    assert!(said.contains("1 passed"), "the child ran no test:\n{said}");
    print!("{said}");
}
