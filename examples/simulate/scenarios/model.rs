//! What scenarios share: a place for what was found wrong, choices from the seed, small bounds, and the bytes that
//! streams carry.
#![forbid(unsafe_code)]

use anabranch::Config;
use anabranch::sim::{Builder, Fault, Faults};
use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// The first thing that was found wrong. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Verdict(Rc<RefCell<Option<String>>>);

impl Verdict {
    /// Something is wrong: the run ends after this step.
    pub(crate) fn wrong(&self, what: impl fmt::Display) {
        self.0.borrow_mut().get_or_insert_with(|| what.to_string());
    }

    /// Something must hold.
    pub(crate) fn require(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong(what());
        }
    }

    /// Lets the simulation look here after each step.
    pub(crate) fn watch(&self, builder: Builder) -> Builder {
        let (always, finally) = (self.clone(), self.clone());
        builder.always(move |_| always.result()).finally(move |_| finally.result())
    }

    fn result(&self) -> Result<(), String> {
        match &*self.0.borrow() {
            None => Ok(()),
            Some(what) => Err(what.clone()),
        }
    }
}

/// Choices that are made before the simulation runs, from its seed.
pub(crate) struct Choice(u64);

impl Choice {
    pub(crate) fn new(seed: u64, scenario: &str) -> Choice {
        Choice(
            scenario.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |state, byte| mix(state ^ u64::from(byte))),
        )
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// A number drawn while the simulation runs.
pub(crate) fn within(range: Range<u64>) -> u64 {
    range.start + anabranch::random() % (range.end - range.start)
}

/// A chance while the simulation runs.
pub(crate) fn one_in(count: u64) -> bool {
    anabranch::random() % count == 0
}

/// Whether nothing goes wrong.
pub(crate) fn is_calm(faults: &Faults) -> bool {
    Fault::ALL.iter().all(|fault| faults.rate(*fault) == 0.0)
}

/// Bounds so small that programs meet them, different ones for each seed.
pub(crate) fn small_config(choice: &mut Choice) -> Config {
    Config::new().with_limits(|limits| {
        limits.operations_max = choice.within(64..256) as usize;
        limits.endpoints_max = 256;
        limits.buffers = choice.within(2..24) as usize;
        limits.buffer_bytes = choice.within(512..2048) as usize;
        (limits.datagram_buffers, limits.datagram_buffer_bytes) = (limits.buffers, limits.buffer_bytes);
        limits.inbound_bytes_max = choice.within(64..8192) as usize;
        limits.inbound_bytes_total_max = choice.within(1024..32_768) as usize;
        limits.outbound_bytes_max = choice.within(64..8192) as usize;
        limits.outbound_bytes_total_max = choice.within(1024..32_768) as usize;
        limits.datagrams_inbound_max = choice.within(1..32) as usize;
        limits.datagrams_outbound_max = choice.within(1..32) as usize;
        limits.accept_queue_max = choice.within(1..8) as usize;
        limits.mailbox_max = choice.within(4..64) as usize;
        limits.completions_per_turn_max = choice.within(2..64) as usize;
        limits.polls_per_turn_max = choice.within(2..64) as usize;
        limits.attempts_per_event_max = choice.within(1..16) as usize;
    })
}

/// Polls a future once and drops it.
pub(crate) async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The bytes of a stream from an offset on; every place of every stream has its own.
pub(crate) fn pattern(key: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let skipped = (offset % 8) as usize;
    let mut word = offset / 8;
    while bytes.len() < len + skipped {
        bytes.extend_from_slice(&mix(key ^ word.wrapping_mul(0xd6e8_feb8_6659_fd93)).to_le_bytes());
        word += 1;
    }
    bytes.truncate(len + skipped);
    bytes.drain(..skipped);
    bytes
}

/// A hash that spreads each bit over all others.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
