//! What travels between the two ends of a TCP connection.
//!
//! Each direction is one [`Pipe`], strictly in order: its foremost segment decides when anything arrives, and one that
//! cannot get through is tried again, ever more rarely, while all behind it wait. Nothing is lost, doubled or
//! overtaken; the worst that can happen to bytes is that the connection fails.

#![forbid(unsafe_code)]

use super::super::core::{Core, Event, HostId};
use super::super::{Fault, Outcome, World};
use super::{LinkId, Phase};
use crate::driver::sys::os::libc;
use std::collections::VecDeque;
use std::time::Duration;

const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_LAST: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentKind {
    /// The answer to a SYN.
    Welcome,
    /// The answer to that.
    Hello,
    Data(usize),
    End,
    Reset,
}

#[derive(Debug)]
struct Segment {
    kind: SegmentKind,
    due: Duration,
}

/// One direction of a connection, with what its sender knows.
#[derive(Debug)]
pub(in super::super) struct Pipe {
    /// What was accepted from the application and is not delivered; the first bytes are those in flight.
    bytes: VecDeque<u8>,
    in_flight: usize,
    flight: VecDeque<Segment>,
    /// The end of the stream counts as one byte in these three.
    sent: u64,
    delivered: u64,
    acknowledged: u64,
    /// Up to here the receiver has room, as far as the sender knows.
    limit: u64,
    unacknowledged_since: Option<Duration>,
    end_wanted: bool,
    end_sent: bool,
    again: Duration,
    head_planned: bool,
    acknowledgement_planned: bool,
}

impl Pipe {
    pub(super) fn new(limit: u64) -> Pipe {
        Pipe {
            bytes: VecDeque::new(),
            in_flight: 0,
            flight: VecDeque::new(),
            sent: 0,
            delivered: 0,
            acknowledged: 0,
            limit,
            unacknowledged_since: None,
            end_wanted: false,
            end_sent: false,
            again: Duration::ZERO,
            head_planned: false,
            acknowledgement_planned: false,
        }
    }

    /// Takes bytes from the application, as many as fit.
    pub(super) fn accept(&mut self, bytes: &[u8], capacity: usize) -> Outcome<usize> {
        let count = bytes.len().min(self.space(capacity));
        if count == 0 && !bytes.is_empty() {
            return Err(libc::EAGAIN);
        }
        self.bytes.extend(&bytes[..count]);
        Ok(count)
    }

    pub(super) fn space(&self, capacity: usize) -> usize {
        let unacknowledged = (self.sent - self.acknowledged) as usize;
        capacity.saturating_sub(self.unsent() + unacknowledged)
    }

    pub(super) fn undelivered(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_shut(&self) -> bool {
        self.end_wanted
    }

    /// Nothing more comes from the application.
    pub(super) fn shut(&mut self) {
        self.end_wanted = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.flight.is_empty() && self.end_wanted == self.end_sent
    }

    /// Whether the receiver should tell that it has room up to there.
    pub(super) fn wants_update(&self, limit: u64, capacity: u64) -> bool {
        let has_grown = limit.saturating_sub(self.limit) >= capacity.div_ceil(2);
        let was_full = self.limit <= self.delivered;
        !self.acknowledgement_planned && (has_grown || was_full)
    }

    pub(super) fn drop_unsent(&mut self) {
        self.bytes.truncate(self.in_flight);
        self.end_wanted = self.end_sent;
    }

    pub(super) fn drop_everything(&mut self) {
        self.drop_unsent();
        self.bytes.clear();
        self.flight.clear();
        self.in_flight = 0;
    }

    /// Keeps in flight what arrives until then: who sent it will not send it again.
    pub(super) fn keep_until(&mut self, time: Duration) {
        let kept = self.flight.iter().take_while(|segment| segment.due <= time).count();
        self.flight.truncate(kept);
        self.in_flight = self.flight.iter().map(|segment| segment.kind.bytes()).sum();
        self.drop_unsent();
    }

    /// The receiver's system is gone, and its window with it.
    pub(super) fn forget_limit(&mut self) {
        self.limit = u64::MAX;
    }

    fn unsent(&self) -> usize {
        self.bytes.len() - self.in_flight
    }

    /// How many bytes may be sent now in one segment.
    fn sendable(&self, most: usize) -> usize {
        let window = self.limit.saturating_sub(self.sent);
        most.min(self.unsent()).min(usize::try_from(window).unwrap_or(usize::MAX))
    }

    fn push(&mut self, core: &mut Core, from: HostId, to: HostId, kind: SegmentKind) {
        let mut due = core.now + core.latency(from, to);
        if from != to && kind != SegmentKind::Reset && core.roll(from, Fault::SlowSegment) {
            due += core.span_ms(200, 3000);
        }
        if let Some(last) = self.flight.back() {
            due = due.max(last.due);
        }
        self.sent += kind.length();
        self.in_flight += kind.bytes();
        if self.unacknowledged_since.is_none() {
            self.unacknowledged_since = Some(core.now);
        }
        self.flight.push_back(Segment { kind, due });
    }

    fn check(&self) {
        debug_assert!(self.in_flight <= self.bytes.len(), "more is in flight than there is");
        debug_assert!(self.acknowledged <= self.delivered, "more is acknowledged than was delivered");
        debug_assert!(self.delivered <= self.sent, "more was delivered than was sent");
    }
}

impl SegmentKind {
    fn bytes(self) -> usize {
        if let SegmentKind::Data(count) = self { count } else { 0 }
    }

    /// What it takes of the numbers that are acknowledged.
    fn length(self) -> u64 {
        if self == SegmentKind::End { 1 } else { self.bytes() as u64 }
    }
}

impl World {
    /// Sends what may be sent from an end.
    pub(super) fn transmit(&mut self, id: LinkId, from: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.ends[from].phase != Phase::Open {
            return;
        }
        let (here, there) = (link.ends[from].host, link.ends[1 - from].host);
        let pipe = &mut link.pipes[from];
        let core = &mut self.core;
        loop {
            let mut count = pipe.sendable(core.settings.segment_bytes_max);
            if count == 0 {
                break;
            }
            if count > 1 && core.roll(here, Fault::Segmentation) {
                count = core.random.between(1..=count as u64) as usize;
            }
            pipe.push(core, here, there, SegmentKind::Data(count));
        }
        if pipe.end_wanted && !pipe.end_sent && pipe.unsent() == 0 {
            pipe.end_sent = true;
            pipe.push(core, here, there, SegmentKind::End);
            core.note(here, format_args!("~{} fin", id.0));
        }
        pipe.check();
        self.plan_head(id, from);
    }

    /// Sends a segment without data from an end.
    pub(super) fn put(&mut self, id: LinkId, from: usize, kind: SegmentKind) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (here, there) = (link.ends[from].host, link.ends[1 - from].host);
        link.pipes[from].push(&mut self.core, here, there, kind);
        if kind == SegmentKind::Reset {
            self.core.note(here, format_args!("~{} rst", id.0));
        }
        self.plan_head(id, from);
    }

    /// Asks the other system for a sign of life if something was never acknowledged.
    pub(super) fn probe(&mut self, id: LinkId, from: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let pipe = &mut link.pipes[from];
        let waits = pipe.sent > pipe.acknowledged && pipe.flight.is_empty();
        if link.ends[from].phase == Phase::Open && waits {
            let due = self.core.now + AGAIN_FIRST;
            pipe.flight.push_back(Segment { kind: SegmentKind::Data(0), due });
            self.plan_head(id, from);
        }
    }

    fn plan_head(&mut self, id: LinkId, from: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let pipe = &mut link.pipes[from];
        if pipe.head_planned {
            return;
        }
        if let Some(head) = pipe.flight.front() {
            pipe.head_planned = true;
            self.core.plan_at(head.due, Event::Head { link: id, from });
        }
    }

    /// The foremost segment of a pipe, and all that were held up by it, are there.
    pub(in super::super) fn head_arrives(&mut self, id: LinkId, from: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.pipes[from].head_planned = false;
        }
        while let Some(link) = self.links.get_mut(&id) {
            let (here, there) = (link.ends[from].host, link.ends[1 - from].host);
            let pipe = &mut link.pipes[from];
            match pipe.flight.front() {
                Some(head) if head.due <= self.core.now => {}
                _ => break,
            }
            if self.core.is_blocked(here, there) {
                self.hold_up(id, from);
                break;
            }
            pipe.again = Duration::ZERO;
            let Some(segment) = pipe.flight.pop_front() else { break };
            self.deliver(id, from, segment.kind);
        }
        self.plan_head(id, from);
        self.sweep(id);
    }

    /// The foremost segment does not get through.
    fn hold_up(&mut self, id: LinkId, from: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.ends[from].phase == Phase::Dead {
            // Nobody sends it again.
            link.pipes[from].drop_everything();
            return;
        }
        let now = self.core.now;
        let connecting = link.ends[1 - from].phase == Phase::SynSent;
        if connecting && now >= link.started + self.core.settings.connect_timeout {
            self.kill(id, 1 - from, Some(libc::ETIMEDOUT));
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        let pipe = &mut link.pipes[from];
        if is_too_long(pipe.unacknowledged_since, now, self.core.settings.tcp_timeout) {
            self.give_up(id, from);
            return;
        }
        pipe.again = (pipe.again * 2).clamp(AGAIN_FIRST, AGAIN_LAST);
        let due = now + pipe.again;
        for segment in &mut pipe.flight {
            segment.due = segment.due.max(due);
        }
    }

    /// An end has waited too long for an acknowledgement.
    fn give_up(&mut self, id: LinkId, end: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.pipes[end].drop_everything();
        }
        self.kill(id, end, Some(libc::ETIMEDOUT));
        self.restart_handshake(id);
    }

    /// A segment is there. Its bytes are the first of the pipe.
    fn deliver(&mut self, id: LinkId, from: usize, kind: SegmentKind) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let to = 1 - from;
        let end = &link.ends[to];
        let (here, there, orphan) = (link.ends[from].host, end.host, end.is_orphan());
        match (kind, end.phase) {
            (SegmentKind::Reset, _) => self.reset_arrives(id, to),
            (_, Phase::Dead | Phase::Absent) => {
                link.pipes[from].discard(kind);
                self.put(id, to, SegmentKind::Reset);
            }
            (SegmentKind::Welcome, Phase::SynSent) => {
                self.welcome_arrives(id);
                self.settle(id, from);
            }
            (SegmentKind::Hello, Phase::Handshake) => {
                self.hello_arrives(id);
                self.settle(id, from);
            }
            (SegmentKind::Data(_), _) if orphan => {
                link.pipes[from].discard(kind);
                self.abort(id, to);
            }
            (SegmentKind::Data(count), _) => {
                if self.roll_reset(here, there) {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.pipes[from].discard(kind);
                    }
                    self.reset_both(id);
                    return;
                }
                self.data_arrives(id, from, count);
            }
            (SegmentKind::End, _) => self.end_arrives(id, from),
            (SegmentKind::Welcome | SegmentKind::Hello, _) => debug_assert!(false, "a second handshake"),
        }
    }

    fn data_arrives(&mut self, id: LinkId, from: usize, count: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let capacity = self.core.settings.tcp_receive_buffer;
        let pipe = &mut link.pipes[from];
        let end = &mut link.ends[1 - from];
        debug_assert!(!end.finished, "bytes after the end");
        let (first, second) = pipe.bytes.as_slices();
        let split = first.len().min(count);
        end.inbox.extend(&first[..split]);
        end.inbox.extend(&second[..count - split]);
        debug_assert!(end.inbox.len() <= capacity, "more than the receiver has room for");
        pipe.discard(SegmentKind::Data(count));
        let (host, descriptor) = (end.host, end.descriptor);
        self.core.note(host, format_args!("~{} delivered {count}", id.0));
        self.acknowledge(id, from);
        if let Some(descriptor) = descriptor {
            self.announce(descriptor);
        }
    }

    fn end_arrives(&mut self, id: LinkId, from: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.pipes[from].discard(SegmentKind::End);
        let end = &mut link.ends[1 - from];
        debug_assert!(!end.finished, "a second end");
        end.finished = true;
        let (host, descriptor) = (end.host, end.descriptor);
        self.core.note(host, format_args!("~{} end arrived", id.0));
        self.acknowledge(id, from);
        if let Some(descriptor) = descriptor {
            self.announce(descriptor);
        }
    }

    /// A part of the handshake arrived; it needs no acknowledgement of its own.
    fn settle(&mut self, id: LinkId, from: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let pipe = &mut link.pipes[from];
        if pipe.sent == pipe.acknowledged {
            pipe.unacknowledged_since = None;
        }
    }

    pub(super) fn reset_arrives(&mut self, id: LinkId, end: usize) {
        let Some(link) = self.links.get(&id) else { return };
        let here = &link.ends[end];
        let error = match here.phase {
            Phase::SynSent => libc::ECONNREFUSED,
            // Linux says so to an end that already has the end of the stream.
            Phase::Open if here.finished && !link.pipes[end].is_shut() => libc::EPIPE,
            _ => libc::ECONNRESET,
        };
        self.kill(id, end, Some(error));
    }

    /// The receiver of a pipe tells its sender what arrived and how much room there is.
    pub(super) fn acknowledge(&mut self, id: LinkId, sender: usize) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (here, there) = (link.ends[1 - sender].host, link.ends[sender].host);
        if std::mem::replace(&mut link.pipes[sender].acknowledgement_planned, true) {
            return;
        }
        let mut after = self.core.latency(here, there);
        if here != there && self.core.roll(here, Fault::WindowStall) {
            after += self.core.span_ms(50, 2000);
        }
        self.core.plan(after, Event::Acknowledged { link: id, sender });
    }

    pub(in super::super) fn acknowledgement_arrives(&mut self, id: LinkId, sender: usize) {
        let now = self.core.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        let (here, there) = (link.ends[1 - sender].host, link.ends[sender].host);
        let pipe = &mut link.pipes[sender];
        pipe.acknowledgement_planned = false;
        let alive = link.ends.iter().all(|end| end.phase != Phase::Dead);
        if !alive {
            return;
        }
        if self.core.is_blocked(here, there) {
            if is_too_long(pipe.unacknowledged_since, now, self.core.settings.tcp_timeout) {
                self.give_up(id, sender);
                return self.sweep(id);
            }
            pipe.acknowledgement_planned = true;
            self.core.plan(AGAIN_FIRST, Event::Acknowledged { link: id, sender });
            return;
        }
        let room = link.ends[1 - sender].taken + self.core.settings.tcp_receive_buffer as u64;
        pipe.limit = pipe.limit.max(room);
        let capacity = self.core.settings.tcp_send_buffer;
        let was_full = pipe.space(capacity) < capacity.div_ceil(3);
        pipe.acknowledged = pipe.delivered;
        pipe.unacknowledged_since = (pipe.sent > pipe.acknowledged).then_some(now);
        let freed = was_full && pipe.space(capacity) >= capacity.div_ceil(3);
        let descriptor = link.ends[sender].descriptor.filter(|_| freed);
        self.core.note(there, format_args!("~{} window", id.0));
        if let Some(descriptor) = descriptor {
            self.announce(descriptor);
        }
        self.transmit(id, sender);
    }
}

impl Pipe {
    /// A segment has left the pipe.
    fn discard(&mut self, kind: SegmentKind) {
        self.bytes.drain(..kind.bytes());
        self.in_flight -= kind.bytes();
        self.delivered += kind.length();
        self.check();
    }
}

fn is_too_long(since: Option<Duration>, now: Duration, most: Duration) -> bool {
    since.is_some_and(|since| now >= since + most)
}
