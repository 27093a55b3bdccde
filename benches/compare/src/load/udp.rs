//! UDP echo: each socket keeps a number of datagrams on the way, sent in bursts.

use super::{Meter, Plan, blocked, failure};
use crate::pattern::Pattern;
use crate::results::Metrics;
use crate::sys::{self, Batch, EDGE, Epoll, READ};
use std::io;
use std::os::fd::AsRawFd;

/// A datagram is its number and a piece of the pattern.
const HEAD: usize = 8;
/// Room for what the kernel hands over in one piece.
const PIECE_BYTES: usize = 65_536;
const PIECES: usize = 32;
/// Without an answer for so long, what is on the way counts as lost.
const LOST_AFTER_NS: u64 = 200_000_000;

struct Peer {
    socket: std::net::UdpSocket,
    id: usize,
    next: u64,
    /// By number modulo the window: when it left, and 0 once it is back.
    window: Vec<(u64, u64)>,
    /// Datagrams that are back and may be replaced.
    due: usize,
    answered_at: u64,
}

impl Peer {
    /// Sends full bursts of what is due.
    fn write(
        &mut self,
        batch: &mut Batch,
        pattern: &Pattern,
        size: usize,
        burst: usize,
        now: u64,
    ) -> io::Result<()> {
        while self.due >= burst {
            let mut pieces = 0;
            let first = self.next;
            while self.due >= burst && pieces < PIECES {
                let from = self.next;
                let segment = if burst > 1 { size as u16 } else { 0 };
                batch.fill(pieces, size * burst, segment, |bytes| {
                    for (number, datagram) in (from..).zip(bytes.chunks_exact_mut(size)) {
                        datagram[..HEAD].copy_from_slice(&number.to_le_bytes());
                        datagram[HEAD..].copy_from_slice(pattern.at(self.id, number * 31, size - HEAD));
                    }
                });
                self.next += burst as u64;
                self.due -= burst;
                pieces += 1;
            }
            let len = self.window.len() as u64;
            (first..self.next).for_each(|number| self.window[(number % len) as usize] = (number, now.max(1)));
            // What does not fit now is found missing later, as anything that is lost.
            match batch.send_first(self.socket.as_raw_fd(), pieces) {
                Err(error) if !blocked(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        batch: &mut Batch,
        pattern: &Pattern,
        size: usize,
        meter: &mut Meter,
    ) -> io::Result<()> {
        loop {
            let count = match batch.recv(self.socket.as_raw_fd()) {
                Ok(count) => count,
                Err(error) if blocked(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            let now = meter.now();
            for at in 0..count {
                for datagram in batch.piece(at).chunks(batch.segment_len(at).max(1)) {
                    self.take(datagram, pattern, size, now, meter)?;
                }
            }
            if count < PIECES {
                return Ok(());
            }
        }
    }

    fn take(
        &mut self,
        datagram: &[u8],
        pattern: &Pattern,
        size: usize,
        now: u64,
        meter: &mut Meter,
    ) -> io::Result<()> {
        let wrong = |what: &str| Err(failure(format!("WRONG BYTES: socket {}: {what}", self.id)));
        if datagram.len() != size {
            return wrong(&format!("a datagram of {} bytes", datagram.len()));
        }
        let (head, rest) = datagram.split_at(HEAD);
        let number = u64::from_le_bytes(head.try_into().expect("the head has eight bytes"));
        if number >= self.next || rest != pattern.at(self.id, number * 31, rest.len()) {
            return wrong("a datagram that was never sent");
        }
        let len = self.window.len() as u64;
        let place = &mut self.window[(number % len) as usize];
        // Later than it was given up is not wrong, and does not count.
        if place.0 == number && place.1 != 0 {
            meter.count(place.1, now);
            *place = (number, 0);
            self.due += 1;
            self.answered_at = now;
        }
        Ok(())
    }

    /// Gives up what has been on the way for too long.
    fn give_up(&mut self, now: u64, meter: &mut Meter) {
        if now.saturating_sub(self.answered_at) < LOST_AFTER_NS {
            return;
        }
        self.answered_at = now;
        let mut missing = 0;
        for place in self.window.iter_mut().filter(|place| place.1 != 0) {
            place.1 = 0;
            missing += 1;
        }
        meter.lost += missing as u64;
        self.due = self.window.len();
    }
}

pub(super) fn run(
    plan: &Plan,
    sockets: usize,
    size: usize,
    outstanding: usize,
    burst: usize,
) -> io::Result<Metrics> {
    let (pattern, mut epoll, mut meter) = (Pattern::new(), Epoll::new()?, Meter::new(plan));
    let (mut incoming, mut outgoing) = (Batch::new(PIECES, PIECE_BYTES), Batch::new(PIECES, size * burst));
    let mut peers = Vec::new();
    for id in 0..sockets {
        let socket = sys::udp_socket("127.0.0.1:0".parse().expect("an address"))?;
        socket.connect(plan.address)?;
        if burst > 1 {
            sys::set_receive_offload(socket.as_raw_fd())?;
        }
        epoll.add(socket.as_raw_fd(), id as u64, READ | EDGE)?;
        let window = vec![(0, 0); outstanding];
        let mut peer = Peer { socket, id, next: 0, window, due: outstanding, answered_at: meter.now() };
        peer.write(&mut outgoing, &pattern, size, burst, meter.now())?;
        peers.push(peer);
    }
    loop {
        for at in 0..epoll.wait(20)? {
            let peer = &mut peers[epoll.event(at).0 as usize];
            peer.read(&mut incoming, &pattern, size, &mut meter)?;
            peer.write(&mut outgoing, &pattern, size, burst, meter.now())?;
        }
        let now = meter.now();
        for peer in &mut peers {
            peer.give_up(now, &mut meter);
            peer.write(&mut outgoing, &pattern, size, burst, now)?;
        }
        if let Some(mut metrics) = meter.tick(meter.messages >= sockets as u64)? {
            let sent: u64 = peers.iter().map(|peer| peer.next).sum();
            metrics.insert("lost_share".into(), meter.lost as f64 / sent.max(1) as f64);
            return Ok(metrics);
        }
    }
}
