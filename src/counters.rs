//! The counters of a shard: plain numbers that cost nothing, read as a snapshot.
//!
//! Together they are the *ledger*: when a shard is idle and its endpoints are closed, what was submitted has
//! completed, what was lent has come back, and what was opened is closed.
#![forbid(unsafe_code)]

use std::fmt;

/// A snapshot of a shard's counters since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Operations submitted.
    pub submitted: u64,
    /// Operations that ended (terminal completions).
    pub completed: u64,
    /// Completions that named an operation which had ended: counted, dropped, never delivered.
    pub stale: u64,
    /// Operations that ended as cancelled.
    pub canceled: u64,
    /// Times an endpoint had to wait for a receive buffer.
    pub starved: u64,
    /// Times the loop went to sleep.
    pub parks: u64,
    /// Times the loop watched for news before it would have gone to sleep; see [`Config::spin`](crate::Config::spin).
    pub spins: u64,
    /// Spins that found something, so that no sleep was needed.
    pub spins_won: u64,
    /// System calls made to wake another shard.
    pub wakes: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Times a listener began to pause for lack of descriptors.
    pub accept_pauses: u64,
    /// Connections handed over to another shard.
    pub handed_over: u64,
    /// Requests refused by a bound.
    pub refusals: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Datagrams that were cut because they exceed a receive buffer.
    pub truncated: u64,
    /// Pieces of receive buffers lent: one for each receive that brought something, and one for each
    /// [`split`](crate::Lease::split_to).
    pub buffers_lent: u64,
    /// Pieces of receive buffers returned.
    pub buffers_returned: u64,
    /// Bytes passed on by splices; also counted as received and sent.
    pub bytes_spliced: u64,
    /// Pipes opened for relays.
    pub pipes_opened: u64,
    /// Pipes lent to relays that had bytes to pass on.
    pub pipes_lent: u64,
    /// Pipes that came back.
    pub pipes_returned: u64,
    /// Zero-copy sends of which the kernel said that it copied all the same.
    pub zero_copy_copied: u64,
    /// Descriptors taken under the shard's care.
    pub descriptors_opened: u64,
    /// Descriptors closed or given away.
    pub descriptors_closed: u64,
    /// Endpoints opened.
    pub opens: u64,
    /// Endpoints closed.
    pub closes: u64,
    /// Messages that broadcasts dropped, because a member was too slow; one for each member that lost it.
    pub messages_dropped: u64,
    /// Tasks, messages, wakers, hooks and destructors of payloads that panicked; the panic was contained.
    pub panics: u64,
}

impl Counters {
    /// Adds those of another shard.
    #[cfg(feature = "sim")]
    pub(crate) fn add(&mut self, other: &Counters) {
        self.submitted += other.submitted;
        self.completed += other.completed;
        self.stale += other.stale;
        self.canceled += other.canceled;
        self.starved += other.starved;
        self.parks += other.parks;
        self.spins += other.spins;
        self.spins_won += other.spins_won;
        self.wakes += other.wakes;
        self.turns += other.turns;
        self.accepts += other.accepts;
        self.accept_pauses += other.accept_pauses;
        self.handed_over += other.handed_over;
        self.refusals += other.refusals;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.truncated += other.truncated;
        self.buffers_lent += other.buffers_lent;
        self.buffers_returned += other.buffers_returned;
        self.bytes_spliced += other.bytes_spliced;
        self.pipes_opened += other.pipes_opened;
        self.pipes_lent += other.pipes_lent;
        self.pipes_returned += other.pipes_returned;
        self.zero_copy_copied += other.zero_copy_copied;
        self.descriptors_opened += other.descriptors_opened;
        self.descriptors_closed += other.descriptors_closed;
        self.opens += other.opens;
        self.closes += other.closes;
        self.messages_dropped += other.messages_dropped;
        self.panics += other.panics;
    }

    /// Checks that nothing is outstanding: operations, buffers, descriptors and endpoints.
    ///
    /// # Errors
    ///
    /// Names the first pair that differs.
    pub fn settled(&self) -> Result<(), String> {
        let pairs = [
            ("operations submitted and completed", self.submitted, self.completed),
            ("buffers lent and returned", self.buffers_lent, self.buffers_returned),
            ("pipes lent and returned", self.pipes_lent, self.pipes_returned),
            ("descriptors opened and closed", self.descriptors_opened, self.descriptors_closed),
            ("endpoints opened and closed", self.opens, self.closes),
        ];
        match pairs.iter().find(|(_, a, b)| a != b) {
            Some((what, a, b)) => Err(format!("{what} differ: {a} and {b}")),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "operations {}/{} (canceled {}, stale {}), buffers {}/{} (starved {}), descriptors {}/{}, endpoints {}/{}",
            self.submitted,
            self.completed,
            self.canceled,
            self.stale,
            self.buffers_lent,
            self.buffers_returned,
            self.starved,
            self.descriptors_opened,
            self.descriptors_closed,
            self.opens,
            self.closes
        )
    }
}
