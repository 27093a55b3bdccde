//! Very many time-outs in one tick, on a ring that is much too small for the cancels they cause.

use crate::common::net::raise_descriptors;
use crate::tools::{Run, Sequence, busy, pair, percentile, scenario};
use anabranch::net::{TcpStream, UdpSocket};
use anabranch::time::timeout_at;
use anabranch::{Shard, sleep, spawn};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

#[test]
fn many_timeouts_in_one_tick_all_fire_and_cancel() {
    scenario("time-outs in one tick", |run| {
        let mut count = run.size(1_500, 10_000);
        // Two of five guard a TCP connection, which takes two descriptors.
        let most = raise_descriptors().saturating_sub(500) * 5 / 7;
        if count > most {
            run.say(format_args!("NOT COVERED: {count} time-outs; the limit of descriptors allows {most}"));
            count = most;
        }
        let shard = Shard::new(run.config.clone().ring_entries(64)).expect("a shard");
        let seen = Rc::new(Seen::default());
        shard.block_on(all(run, count, &seen));
        let mut late = seen.late.take();
        let silent = count as u64 - seen.served.get();
        assert_eq!(late.len(), count, "all have fired");
        let counters = run.settle(shard);
        // A receive that got something later may have ended with it.
        assert!(counters.canceled >= silent, "the receives that got nothing were cancelled: {counters}");
        let (half, worst) = (percentile(&mut late, 0.5), percentile(&mut late, 1.0));
        run.say(format_args!(
            "{count} fired, median {half:.1?} and at most {worst:.1?} late; loop lag {:.1?}, {:.1?} of it busy",
            seen.lag.get(),
            seen.own_lag.get()
        ));
        let bound = Duration::from_millis(if run.full { 100 } else { 1000 });
        assert!(seen.own_lag.get() < bound, "the loop lags by less than {bound:?} of its own time");
    });
}

#[derive(Default)]
struct Seen {
    /// How long after its deadline each task went on.
    late: RefCell<Vec<Duration>>,
    /// The longest time between two beats.
    lag: Cell<Duration>,
    /// The same in processor time of the loop's thread, which leaves out what other programs took.
    own_lag: Cell<Duration>,
    /// Receives that got something after their time-out.
    served: Cell<u64>,
    /// The far ends of the connections, which stay open.
    far: RefCell<Vec<std::net::TcpStream>>,
}

/// So long after the deadline other things happen.
const LATER: Duration = Duration::from_millis(500);

async fn all(run: &Run, count: usize, seen: &Rc<Seen>) {
    let deadline = Instant::now() + Duration::from_millis(run.size(1500, 4000) as u64);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut tasks = Vec::new();
    for index in 0..count {
        let seen = Rc::clone(seen);
        if index % 5 < 2 {
            let (far, near) = pair(&listener);
            tasks.push(spawn(stream(near, far, index as u64, deadline, seen)));
        } else {
            tasks.push(spawn(datagram(index, deadline, seen)));
        }
        if index % 64 == 0 {
            anabranch::yield_now().await;
        }
    }
    assert!(Instant::now() < deadline, "the machine is too slow to have all waiting at the deadline");
    let beats = spawn(heartbeat(deadline, Rc::clone(seen)));
    for task in tasks {
        task.await.expect("a waiting task ends well");
    }
    beats.await.unwrap();
}

/// Looks how long the loop takes for a turn, from shortly before the deadline on.
async fn heartbeat(deadline: Instant, seen: Rc<Seen>) {
    anabranch::sleep_until(deadline - Duration::from_millis(20)).await;
    let (mut last, mut last_busy) = (Instant::now(), busy());
    while Instant::now() < deadline + LATER {
        sleep(Duration::from_millis(1)).await;
        let gap = last.elapsed().saturating_sub(Duration::from_millis(1));
        seen.lag.set(seen.lag.get().max(gap));
        seen.own_lag.set(seen.own_lag.get().max(busy() - last_busy));
        (last, last_busy) = (Instant::now(), busy());
    }
}

fn timed_out<T: std::fmt::Debug>(outcome: std::io::Result<T>, deadline: Instant, seen: &Seen) {
    assert_eq!(outcome.expect_err("nothing was sent").kind(), ErrorKind::TimedOut);
    let late = Instant::now().checked_duration_since(deadline).expect("nothing fires early");
    seen.late.borrow_mut().push(late);
}

async fn datagram(index: usize, deadline: Instant, seen: Rc<Seen>) {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a socket");
    let waited = timeout_at(deadline, socket.recv_from()).await;
    timed_out(waited, deadline, &seen);
    if index % 2 == 0 {
        // What comes later is not lost. It comes after the rush, whose lag is measured.
        sleep(LATER).await;
        let to = socket.local_addr().unwrap();
        socket.send_to(format!("for {index}"), to).await.expect("a datagram is sent");
        let datagram = anabranch::timeout(Duration::from_secs(20), socket.recv_from()).await;
        assert_eq!(&*datagram.expect("not lost").unwrap().lease, format!("for {index}").as_bytes());
        seen.served.set(seen.served.get() + 1);
    }
    socket.close().await;
}

async fn stream(
    near: std::net::TcpStream,
    mut far: std::net::TcpStream,
    id: u64,
    deadline: Instant,
    seen: Rc<Seen>,
) {
    let mut stream = TcpStream::from_std(near).expect("room for a connection");
    let waited = timeout_at(deadline, stream.recv_exact(100)).await;
    timed_out(waited, deadline, &seen);
    if id % 2 == 0 {
        sleep(LATER).await;
        let mut sequence = Sequence::new(id);
        far.write_all(&sequence.peek(100)).unwrap();
        let bytes = anabranch::timeout(Duration::from_secs(20), stream.recv_exact(100)).await;
        sequence.check(&bytes.expect("not lost").unwrap());
        seen.served.set(seen.served.get() + 1);
    }
    stream.abort();
    seen.far.borrow_mut().push(far);
}
