//! Fan-out: one connection publishes, all others subscribe. A connection says with its first byte which it is, and
//! the server answers with that byte.

use super::{Meter, PATIENCE, Plan, blocked, connect_all, failure};
use crate::pattern::Pattern;
use crate::results::Metrics;
use crate::servers::{FANOUT_BACKLOG, MESSAGE, PUBLISHER, SUBSCRIBER};
use crate::sys::{self, EDGE, Epoll, READ};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

/// A message is its number, when it left, and a piece of the pattern.
struct Publisher<'a> {
    socket: socket2::Socket,
    pattern: &'a Pattern,
    next: u64,
    backlog: Vec<u8>,
}

impl Publisher<'_> {
    fn publish(&mut self, count: u64, now: u64) {
        for _ in 0..count {
            self.backlog.extend_from_slice(&self.next.to_le_bytes());
            self.backlog.extend_from_slice(&now.to_le_bytes());
            self.backlog.extend_from_slice(self.pattern.at(0, self.next * 31, MESSAGE - 16));
            self.next += 1;
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match sys::send(self.socket.as_raw_fd(), &self.backlog) {
                Ok(n) => drop(self.backlog.drain(..n)),
                Err(error) if blocked(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

struct Subscriber {
    socket: socket2::Socket,
    /// The number of the next message, and the begin of one that has not arrived whole.
    next: u64,
    begun: Vec<u8>,
}

impl Subscriber {
    /// Reads what there is. `each` gets the time each message left; the numbers of messages that were left out are
    /// added to `dropped`.
    fn read(
        &mut self,
        pattern: &Pattern,
        buffer: &mut [u8],
        dropped: &mut u64,
        mut each: impl FnMut(u64),
    ) -> io::Result<()> {
        loop {
            let old = self.begun.len();
            buffer[..old].copy_from_slice(&self.begun);
            let room = buffer.len();
            let n = match sys::recv(self.socket.as_raw_fd(), &mut buffer[old..]) {
                Ok(0) => return Err(failure("the server closed a subscriber")),
                Ok(n) => n,
                Err(error) if blocked(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            let whole = (old + n) / MESSAGE * MESSAGE;
            for message in buffer[..whole].chunks_exact(MESSAGE) {
                let word =
                    |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("eight bytes"));
                let (number, sent) = (word(0), word(8));
                if number < self.next
                    || message[16..] != *pattern.at(0, number.wrapping_mul(31), MESSAGE - 16)
                {
                    return Err(failure(format!(
                        "WRONG BYTES: a subscriber got {number} after {}",
                        self.next
                    )));
                }
                *dropped += number - self.next;
                self.next = number + 1;
                each(sent);
            }
            self.begun.clear();
            self.begun.extend_from_slice(&buffer[whole..old + n]);
            if old + n < room {
                return Ok(());
            }
        }
    }
}

/// Says what each connection is and waits for the answers.
fn introduce(sockets: &[socket2::Socket], kind: u8) -> io::Result<()> {
    for socket in sockets {
        sys::send(socket.as_raw_fd(), &[kind])?;
    }
    for socket in sockets {
        let (mut answer, limit) = ([0], Instant::now() + PATIENCE);
        loop {
            match sys::recv(socket.as_raw_fd(), &mut answer) {
                Ok(1) if answer[0] == kind => break,
                Ok(_) => return Err(failure("WRONG BYTES: no answer to the first byte")),
                Err(error) if blocked(&error) && Instant::now() < limit => {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
                Err(error) => return Err(failure(format!("a subscriber was not taken: {error}"))),
            }
        }
    }
    Ok(())
}

fn join<'a>(plan: &Plan, count: usize, pattern: &'a Pattern) -> io::Result<(Publisher<'a>, Vec<Subscriber>)> {
    let sockets = connect_all(plan.address, count)?;
    introduce(&sockets, SUBSCRIBER)?;
    let mut publishers = connect_all(plan.address, 1)?;
    introduce(&publishers, PUBLISHER)?;
    let socket = publishers.remove(0);
    let subscriber = |socket| Subscriber { socket, next: 0, begun: Vec::with_capacity(MESSAGE) };
    let publisher = Publisher { socket, pattern, next: 0, backlog: Vec::new() };
    Ok((publisher, sockets.into_iter().map(subscriber).collect()))
}

pub(super) fn run(plan: &Plan, count: usize, ahead: usize) -> io::Result<Metrics> {
    let pattern = Pattern::new();
    let mut epoll = Epoll::new()?;
    let (mut publisher, mut subscribers) = join(plan, count, &pattern)?;
    for (at, subscriber) in subscribers.iter().enumerate() {
        epoll.add(subscriber.socket.as_raw_fd(), at as u64, READ | EDGE)?;
    }
    let mut meter = Meter::new(plan);
    let mut buffer = vec![0; 64 * 1024];
    let mut dropped = 0;
    loop {
        // So many deliveries are done that the messages before this one may leave.
        let limit = (meter.messages + dropped) / count as u64 + ahead as u64;
        if publisher.next < limit {
            publisher.publish(limit - publisher.next, meter.now());
        }
        publisher.write()?;
        for at in 0..epoll.wait(if publisher.backlog.is_empty() { 20 } else { 0 })? {
            let subscriber = &mut subscribers[epoll.event(at).0 as usize];
            let now = meter.now();
            subscriber.read(&pattern, &mut buffer, &mut dropped, |sent| meter.count(sent, now))?;
        }
        meter.lost = dropped;
        if let Some(metrics) = meter.tick(meter.messages >= count as u64)? {
            if dropped > 0 {
                return Err(failure(format!(
                    "{dropped} messages were dropped though every subscriber reads"
                )));
            }
            return Ok(metrics);
        }
    }
}

/// Bytes that are published while one subscriber does not read: more than its backlog and any socket buffer hold.
const STALLED_BYTES: u64 = 16 << 20;

/// The last subscriber does not read. The others must get everything, and it must have lost whole messages only.
pub(super) fn stalled(plan: &Plan, count: usize) -> io::Result<Metrics> {
    const BATCH: u64 = 1024;
    let pattern = Pattern::new();
    let mut epoll = Epoll::new()?;
    let (mut publisher, mut subscribers) = join(plan, count.max(2), &pattern)?;
    let mut stalled = subscribers.pop().expect("there are two");
    for (at, subscriber) in subscribers.iter().enumerate() {
        epoll.add(subscriber.socket.as_raw_fd(), at as u64, READ | EDGE)?;
    }
    let (mut buffer, mut dropped, total) = (vec![0; 64 * 1024], 0, STALLED_BYTES / MESSAGE as u64);
    let mut progress = Instant::now();
    while subscribers.iter().any(|subscriber| subscriber.next < total) {
        let slowest = subscribers.iter().map(|subscriber| subscriber.next).min().unwrap_or(total);
        if publisher.next < total && publisher.next < slowest + BATCH {
            publisher.publish(BATCH.min(total - publisher.next), 0);
        }
        publisher.write()?;
        for at in 0..epoll.wait(if publisher.backlog.is_empty() { 20 } else { 0 })? {
            let subscriber = &mut subscribers[epoll.event(at).0 as usize];
            subscriber.read(&pattern, &mut buffer, &mut dropped, |_| ())?;
            progress = Instant::now();
        }
        if dropped > 0 || progress.elapsed() > PATIENCE {
            return Err(failure(format!("a subscriber that reads lost {dropped} messages or was held up")));
        }
    }
    let (mut got, mut lost, mut quiet) = (0_u64, 0, Instant::now());
    while quiet.elapsed().as_millis() < 150 {
        let before = got;
        stalled.read(&pattern, &mut buffer, &mut lost, |_| got += 1)?;
        if got > before {
            quiet = Instant::now();
        } else {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    if got >= total {
        return Err(failure("the stalled subscriber got everything: its backlog has no bound"));
    }
    if got * (MESSAGE as u64) < FANOUT_BACKLOG as u64 / 2 {
        return Err(failure(format!("the stalled subscriber got {got} messages only")));
    }
    Ok(Metrics::from([("messages".into(), total as f64), ("dropped".into(), (total - got) as f64)]))
}
