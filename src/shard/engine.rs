//! Everything of a shard but its endpoints: the driver, the wheel, and what waits for the end of the borrow.
//!
//! Endpoints are handed the engine while they handle a completion. They never wake, call back or drop what a
//! user gave from inside: they leave it here, and the loop does it when nothing is borrowed (invariant 12).
#![forbid(unsafe_code)]

use super::endpoint::EndpointId;
use super::event::{Completion, Event};
use super::list::Nodes;
use super::share::Arrival;
use super::spin::Company;
use super::timer::{TimerId, Wheel};
use crate::buf::{Batch, Lease, Payload, Pool};
use crate::config::{Limits, Warning};
use crate::driver::completion::Done;
use crate::driver::{Driver, Rare};
use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

/// What a timer of the wheel is for.
pub(crate) enum Timer {
    /// A future sleeps.
    Sleep(Option<Waker>),
    /// A submission of the completion API.
    Tag(u64),
    /// A closing endpoint has had its time.
    CloseDeadline(EndpointId),
    /// A listener's pause ends.
    AcceptAgain(EndpointId),
}

/// The part of a pool, as one in so many, that is left to receives by what waits.
const RESERVE_OF_WAITING: usize = 4;
/// The same by what is sent at once.
const RESERVE_OF_SENDING: usize = 8;

/// A shard without its endpoints.
pub(crate) struct Engine {
    pub(crate) driver: Driver,
    pub(crate) wheel: Wheel<Timer>,
    pub(crate) limits: Limits,
    pub(crate) zero_copy_bytes_min: usize,
    /// What connections have received and nobody has read.
    pub(crate) inbound: Nodes<Lease>,
    /// What connections have to send.
    pub(crate) outbound: Nodes<Payload>,
    /// Submissions with a tag, see [`Stream`](super::Stream).
    pub(crate) tags: Nodes<(u64, u64)>,
    /// Empty batches, kept so that vectored sends need not allocate.
    pub(crate) batches: Vec<Batch>,
    /// Endpoints that have something to submit.
    pub(crate) dirty: Vec<EndpointId>,
    /// Endpoints for which the driver had no slot; they try again soon.
    pub(crate) refused: Vec<EndpointId>,
    /// Endpoints that wait for a receive buffer, in order.
    pub(crate) starved: VecDeque<EndpointId>,
    /// The same for a buffer for datagrams.
    pub(crate) starved_of_datagrams: VecDeque<EndpointId>,
    /// Futures to wake when nothing is borrowed.
    pub(crate) wakers: Vec<Waker>,
    /// Payloads to drop when nothing is borrowed: their owners may be foreign code.
    pub(crate) remains: Vec<Payload>,
    /// Connections that listeners accepted and that need an endpoint, or another shard.
    pub(crate) arrivals: Vec<Arrival>,
    /// Warnings to report when nothing is borrowed.
    pub(crate) warnings: Vec<Warning>,
    /// Whose completions there are.
    pub(crate) company: Company,
    /// Completions for the completion API.
    pub(crate) events: VecDeque<Completion>,
    pub(crate) ending: bool,
    pub(crate) inbound_total: usize,
    pub(crate) outbound_total: usize,
    pub(crate) starvations: u64,
    pub(crate) accepts: u64,
    pub(crate) accept_pauses: u64,
    pub(crate) handed_over: u64,
    pub(crate) refusals: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) zero_copy_copied: u64,
    pub(crate) truncated: u64,
    pub(crate) opens: u64,
    pub(crate) closes: u64,
    pub(crate) messages_dropped: u64,
}

impl Engine {
    pub(crate) fn new(driver: Driver, limits: Limits, zero_copy_bytes_min: Option<usize>) -> Engine {
        let now = driver.now();
        Engine {
            driver,
            wheel: Wheel::new(now),
            limits,
            zero_copy_bytes_min: zero_copy_bytes_min.unwrap_or(usize::MAX),
            inbound: Nodes::default(),
            outbound: Nodes::default(),
            tags: Nodes::default(),
            batches: Vec::new(),
            dirty: Vec::new(),
            refused: Vec::new(),
            starved: VecDeque::new(),
            starved_of_datagrams: VecDeque::new(),
            wakers: Vec::new(),
            remains: Vec::new(),
            arrivals: Vec::new(),
            warnings: Vec::new(),
            company: Company::default(),
            events: VecDeque::new(),
            ending: false,
            inbound_total: 0,
            outbound_total: 0,
            starvations: 0,
            accepts: 0,
            accept_pauses: 0,
            handed_over: 0,
            refusals: 0,
            bytes_in: 0,
            bytes_out: 0,
            zero_copy_copied: 0,
            truncated: 0,
            opens: 0,
            closes: 0,
            messages_dropped: 0,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.driver.now()
    }

    /// Whether simulations take a rare path here; never on a real machine.
    pub(crate) fn is_rare(&self, rare: Rare) -> bool {
        self.driver.host().is_rare(rare)
    }

    /// What was received as it may wait for the program: copied if it would pin a buffer that is wanted.
    pub(crate) fn made_to_wait(&self, lease: Lease) -> Lease {
        if self.is_rare(Rare::PoolLow) { lease.detach() } else { lease.unpinned(RESERVE_OF_WAITING) }
    }

    /// A payload as it may be queued, copied if it would pin a buffer that is wanted. One that need not wait for
    /// another has a smaller reserve to leave: most peers take it at once.
    pub(crate) fn made_to_leave(&self, payload: Payload, waits: bool) -> Payload {
        if waits && self.is_rare(Rare::PoolLow) {
            return payload.detach();
        }
        payload.unpinned(if waits { RESERVE_OF_WAITING } else { RESERVE_OF_SENDING })
    }

    /// Queues an event of the completion API; it is never delivered from inside a call (invariant 5).
    #[inline]
    pub(crate) fn emit(&mut self, tag: u64, endpoint: EndpointId, more: bool, event: Event) {
        // A shard that ends hands out nothing any more.
        if !self.ending {
            self.events.push_back(Completion { tag, endpoint, more, event });
        }
    }

    /// The endpoint found no slot; it gets another turn.
    pub(crate) fn try_again(&mut self, id: EndpointId) {
        self.refused.push(id);
    }

    pub(crate) fn starve(&mut self, id: EndpointId) {
        self.starvations += 1;
        self.starved.push_back(id);
    }

    /// As [`starve`](Self::starve), for a buffer for datagrams.
    pub(crate) fn starve_for_datagrams(&mut self, id: EndpointId) {
        self.starvations += 1;
        self.starved_of_datagrams.push_back(id);
    }

    /// Whether a buffer for datagrams is free.
    pub(crate) fn has_datagram_buffers(&self) -> bool {
        self.driver.datagram_pool().is_none_or(|pool| pool.available() > 0)
    }

    /// As [`is_pool_low`](Self::is_pool_low), of the buffers for datagrams.
    pub(crate) fn is_datagram_pool_low(&self) -> bool {
        self.driver.datagram_pool().is_some_and(Pool::is_low) || self.is_rare(Rare::PoolLow)
    }

    pub(crate) fn start_close_deadline(&mut self, id: EndpointId) -> TimerId {
        let deadline = self.now() + Duration::from_millis(self.limits.close_flush_ms);
        self.wheel.insert(deadline, Timer::CloseDeadline(id))
    }

    /// Lets go of a payload: one without a foreign destructor at once, another when nothing is borrowed.
    #[inline]
    pub(crate) fn drop_payload(&mut self, payload: Payload) {
        if !payload.is_plain() {
            self.remains.push(payload);
        }
    }

    /// Keeps an empty batch for the next vectored send.
    pub(crate) fn keep_batch(&mut self, batch: Batch) {
        const KEPT_MAX: usize = 64;
        debug_assert!(batch.payloads().is_empty(), "an empty batch");
        if self.batches.len() < KEPT_MAX {
            self.batches.push(batch);
        }
    }

    /// Lets go of an outcome that nobody wants.
    pub(crate) fn discard(&mut self, done: Done) {
        match done {
            Done::Sent(_, payload) | Done::SentCopied(_, payload) => self.drop_payload(payload),
            Done::SentBatch(_, mut batch) => {
                while let Some(payload) = batch.pop() {
                    self.drop_payload(payload);
                }
            }
            Done::SentDatagrams(items) => items.into_iter().for_each(|item| self.drop_payload(item.payload)),
            other => drop(other),
        }
    }

    /// Outbound bytes have left or were dropped.
    pub(crate) fn release_outbound(&mut self, bytes: usize) {
        self.outbound_total -= bytes;
    }
}
