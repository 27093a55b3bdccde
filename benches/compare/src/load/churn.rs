//! Connect, send, get it back, close, and again; so many at once.

use super::{Meter, Plan, blocked, check, failure};
use crate::pattern::Pattern;
use crate::results::Metrics;
use crate::sys::{self, EDGE, Epoll, READ, WRITE};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

const SIZE: usize = 32;

struct Attempt {
    socket: socket2::Socket,
    id: usize,
    begun: u64,
    received: usize,
    sent: bool,
}

/// Begins one more connection. Each comes from another address in turn, so that ports never run out.
fn begin(to: SocketAddr, slot: usize, id: usize, epoll: &Epoll, now: u64) -> io::Result<Attempt> {
    let from = Ipv4Addr::new(127, 0, 1 + (id / 200 % 50) as u8, 1 + (id % 200) as u8);
    let socket = sys::begin_connect(to, Some(from))?;
    epoll.add(socket.as_raw_fd(), slot as u64, READ | WRITE | EDGE)?;
    Ok(Attempt { socket, id, begun: now, received: 0, sent: false })
}

impl Attempt {
    /// Goes on as far as it can; `true` when all has come back.
    fn advance(&mut self, pattern: &Pattern) -> io::Result<bool> {
        if !self.sent {
            match sys::send(self.socket.as_raw_fd(), pattern.at(self.id, 0, SIZE)) {
                Ok(SIZE) => self.sent = true,
                Ok(_) => return Err(failure("a connection without room for 32 bytes")),
                Err(error) if blocked(&error) || error.raw_os_error() == Some(libc::ENOTCONN) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; SIZE];
        loop {
            match sys::recv(self.socket.as_raw_fd(), &mut buffer[..SIZE - self.received]) {
                Ok(0) => return Err(failure("the server closed before it had echoed")),
                Ok(n) => {
                    check(pattern, self.id, self.received as u64, &buffer[..n])?;
                    self.received += n;
                }
                Err(error) if blocked(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            if self.received == SIZE {
                return Ok(true);
            }
        }
    }
}

pub(super) fn run(plan: &Plan, parallel: usize) -> io::Result<Metrics> {
    let (pattern, mut epoll) = (Pattern::new(), Epoll::new()?);
    let mut meter = Meter::new(plan);
    let mut next = 0..;
    let mut id = || next.next().unwrap_or(0);
    let mut slots = (0..parallel)
        .map(|slot| begin(plan.address, slot, id(), &epoll, meter.now()))
        .collect::<io::Result<Vec<_>>>()?;
    loop {
        let count = epoll.wait(20)?;
        for at in 0..count {
            let slot = epoll.event(at).0 as usize;
            if slots[slot].advance(&pattern)? {
                let now = meter.now();
                meter.count(slots[slot].begun, now);
                slots[slot] = begin(plan.address, slot, id(), &epoll, now)?;
            }
        }
        if let Some(metrics) = meter.tick(meter.messages >= parallel as u64)? {
            return Ok(metrics);
        }
    }
}
