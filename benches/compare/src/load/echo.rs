//! TCP echo: each connection keeps a number of messages on the way.

use super::{Meter, Plan, blocked, check, connect_all, failure};
use crate::pattern::{PIECE_MAX, Pattern};
use crate::results::Metrics;
use crate::sys::{self, EDGE, Epoll, READ, WRITE};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

struct Connection {
    socket: socket2::Socket,
    id: usize,
    /// Bytes sent, and bytes that may be sent.
    sent: u64,
    goal: u64,
    received: u64,
    /// When the messages that are on the way were due to leave.
    stamps: VecDeque<u64>,
}

impl Connection {
    fn write(&mut self, pattern: &Pattern) -> io::Result<()> {
        while self.sent < self.goal {
            let len = ((self.goal - self.sent) as usize).min(PIECE_MAX);
            match sys::send(self.socket.as_raw_fd(), pattern.at(self.id, self.sent, len)) {
                Ok(n) => self.sent += n as u64,
                Err(error) if blocked(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn allow(&mut self, messages: u64, size: usize, now: u64) {
        self.goal += messages * size as u64;
        self.stamps.extend((0..messages).map(|_| now));
    }

    /// Reads what there is, and answers each whole message with a new one.
    fn read(
        &mut self,
        pattern: &Pattern,
        buffer: &mut [u8],
        size: usize,
        meter: &mut Meter,
    ) -> io::Result<()> {
        loop {
            let n = match sys::recv(self.socket.as_raw_fd(), buffer) {
                Ok(0) => return Err(failure(format!("connection {} was closed by the server", self.id))),
                Ok(n) => n,
                Err(error) if blocked(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            check(pattern, self.id, self.received, &buffer[..n])?;
            let before = self.received / size as u64;
            self.received += n as u64;
            if self.received > self.sent {
                return Err(failure(format!("WRONG BYTES: connection {} got more than it sent", self.id)));
            }
            let whole = self.received / size as u64 - before;
            let now = meter.now();
            for _ in 0..whole {
                meter.count(self.stamps.pop_front().unwrap_or(now), now);
            }
            self.allow(whole, size, now);
            self.write(pattern)?;
            // Less than there was room for: the next bytes are a new edge.
            if n < buffer.len() {
                return Ok(());
            }
        }
    }
}

pub(super) fn run(
    plan: &Plan,
    connections: usize,
    size: usize,
    outstanding: usize,
    spin: bool,
) -> io::Result<Metrics> {
    let (pattern, mut epoll) = (Pattern::new(), Epoll::new()?);
    let sockets = connect_all(plan.address, connections)?;
    let mut meter = Meter::new(plan);
    let mut all = Vec::with_capacity(connections);
    for (id, socket) in sockets.into_iter().enumerate() {
        epoll.add(socket.as_raw_fd(), id as u64, READ | WRITE | EDGE)?;
        let stamps = VecDeque::with_capacity(outstanding + 1);
        let mut connection = Connection { socket, id, sent: 0, goal: 0, received: 0, stamps };
        connection.allow(outstanding as u64, size, meter.now());
        connection.write(&pattern)?;
        all.push(connection);
    }
    let mut buffer = vec![0; PIECE_MAX];
    // Each connection must have had an echo before anything counts.
    let mut silent = connections;
    loop {
        let count = epoll.wait(if spin { 0 } else { 20 })?;
        for at in 0..count {
            let (token, events) = epoll.event(at);
            let connection = &mut all[token as usize];
            if events & WRITE != 0 {
                connection.write(&pattern)?;
            }
            if events & !WRITE != 0 {
                let was_silent = connection.received < size as u64;
                connection.read(&pattern, &mut buffer, size, &mut meter)?;
                silent -= usize::from(was_silent && connection.received >= size as u64);
            }
        }
        if let Some(metrics) = meter.tick(silent == 0)? {
            return Ok(metrics);
        }
    }
}
