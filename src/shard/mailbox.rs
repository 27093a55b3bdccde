//! The inbox of a shard: a bounded queue with many senders and one owner.
//!
//! Senders push from any thread and never wait; a refusal gives the message back. The owner pops, and when
//! its shard ends it closes the mailbox and takes what is left. From then on every push is refused.
//!
//! # Nothing falls between push and close
//!
//! One word, the *gate*, holds the closed bit and the number of pushes in progress. A push enters with one
//! read-modify-write that both counts itself and reads the bit. All such operations on one word have one
//! total order, so a push either entered before the closed bit was set, and then the count shows it until its
//! message is in the queue, or it entered after, and then it is refused. The owner's last drain waits for the
//! count to reach zero. This wait is short: a push in progress holds no lock, runs no foreign code and waits
//! for nobody. Two words, a flag and a counter, would need a `SeqCst` fence on both sides for the same
//! promise.
//!
//! # What it must not do
//!
//! Wake the owner: that is `shard/parking.rs`, asked by the sender after a push that succeeded. Drop a
//! message: the destructor may be foreign code, so messages always go back to a caller.
#![forbid(unsafe_code)]

use crate::sync::{ArrayQueue, AtomicUsize, Ordering, spin_loop, yield_now};
use std::{fmt, iter};

/// The bit of the gate that says closed.
const CLOSED: usize = 1;

/// What one push in progress adds to the gate.
const PUSHING: usize = 2;

/// How often the last drain looks for the end of a push before it gives its time slice away.
const LOOKS_BEFORE_YIELD: usize = 64;

/// A bounded queue of messages to one shard.
pub(crate) struct Mailbox<T> {
    queue: ArrayQueue<T>,
    /// `CLOSED`, plus `PUSHING` for each push between entering and leaving.
    gate: AtomicUsize,
}

/// Why a push was refused, with the message that was not pushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused<T> {
    /// The owner is behind; there may be room later.
    Full(T),
    /// The owner's shard has ended; there will never be room again.
    Closed(T),
}

impl<T> Mailbox<T> {
    /// An open mailbox for at most `capacity` messages; zero is a programmer's error and panics.
    pub(crate) fn new(capacity: usize) -> Mailbox<T> {
        Mailbox { queue: ArrayQueue::new(capacity), gate: AtomicUsize::new(0) }
    }

    /// Sender: puts a message behind the earlier ones, or gives it back.
    ///
    /// Messages of one sender keep their order. Nothing is promised between senders.
    pub(crate) fn push(&self, message: T) -> Result<(), Refused<T>> {
        if !self.enter() {
            return Err(Refused::Closed(message));
        }
        let pushed = self.queue.push(message);
        self.leave();
        pushed.map_err(Refused::Full)
    }

    /// Owner: takes the oldest message.
    pub(crate) fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Whether there is nothing to pop; the owner's second look before it sleeps.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many messages wait; a snapshot that may be outdated at once.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Owner: refuses every push from now on. A push in progress may still succeed.
    ///
    /// Messages already there stay; [`drain_after_close`](Mailbox::drain_after_close) takes them.
    pub(crate) fn close(&self) {
        // Relaxed, because only the place in the gate's own order counts.
        self.gate.fetch_or(CLOSED, Ordering::Relaxed);
    }

    /// Owner, after [`close`](Mailbox::close): waits for the pushes in progress, then takes all that is left.
    ///
    /// Together with what was popped before, this is every message whose push succeeded.
    pub(crate) fn drain_after_close(&self) -> Vec<T> {
        self.wait_for_pushes_in_progress();
        iter::from_fn(|| self.pop()).collect()
    }

    /// Counts a push as in progress, unless the mailbox is closed.
    fn enter(&self) -> bool {
        // Senders that keep trying after the close must not keep the count above zero, so they are turned
        // away without touching it as soon as they can see the bit.
        if self.gate.load(Ordering::Relaxed) & CLOSED != 0 {
            return false;
        }
        // Relaxed, because only the place in the gate's own order counts; `leave` publishes the message.
        if self.gate.fetch_add(PUSHING, Ordering::Relaxed) & CLOSED == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Ends what `enter` counted.
    fn leave(&self) {
        // Release publishes the message to the drain. Later pushes only continue its release sequence, so an
        // owner that reads a count of zero acquires every push that was counted.
        self.gate.fetch_sub(PUSHING, Ordering::Release);
    }

    /// Returns when no push that saw the mailbox open is in progress any more.
    fn wait_for_pushes_in_progress(&self) {
        let mut looks = 0;
        loop {
            let gate = self.gate.load(Ordering::Acquire);
            assert!(gate & CLOSED != 0, "the last drain needs a closed mailbox");
            if gate == CLOSED {
                return;
            }
            if looks < LOOKS_BEFORE_YIELD {
                looks += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = self.gate.load(Ordering::Relaxed) & CLOSED != 0;
        f.debug_struct("Mailbox").field("len", &self.len()).field("closed", &closed).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused::Full(_) => "Full(..)",
            Refused::Closed(_) => "Closed(..)",
        })
    }
}

// tests/loom.rs runs these a second time, on loom's threads.
#[cfg(test)]
mod tests {
    use super::{Mailbox, Refused};
    use crate::sync::testing::{Arc, ROUNDS, check, thread};

    #[test]
    fn messages_of_one_sender_keep_their_order() {
        check(|| {
            let mailbox = Mailbox::new(3);
            assert!(mailbox.is_empty());
            for message in 1..=3 {
                mailbox.push(message).unwrap();
            }
            assert_eq!((mailbox.len(), mailbox.is_empty()), (3, false));
            assert_eq!(
                [mailbox.pop(), mailbox.pop(), mailbox.pop(), mailbox.pop()],
                [Some(1), Some(2), Some(3), None]
            );
            assert!(mailbox.is_empty());
        });
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back_and_takes_it_after_a_pop() {
        check(|| {
            let mailbox = Mailbox::new(1);
            mailbox.push("first").unwrap();
            assert_eq!(mailbox.push("second"), Err(Refused::Full("second")));
            assert_eq!(mailbox.pop(), Some("first"));
            assert_eq!(mailbox.push("second"), Ok(()));
        });
    }

    #[test]
    fn a_closed_mailbox_gives_the_message_back_even_if_it_is_full() {
        check(|| {
            let mailbox = Mailbox::new(1);
            mailbox.push("first").unwrap();
            mailbox.close();
            assert_eq!(mailbox.push("second"), Err(Refused::Closed("second")));
            assert_eq!(mailbox.drain_after_close(), ["first"]);
            assert_eq!(mailbox.push("third"), Err(Refused::Closed("third")));
            mailbox.close();
            assert!(mailbox.drain_after_close().is_empty(), "closing and draining twice does no harm");
        });
    }

    #[test]
    #[should_panic(expected = "the last drain needs a closed mailbox")]
    fn draining_an_open_mailbox_is_a_programmers_error() {
        check(|| drop(Mailbox::<u8>::new(1).drain_after_close()));
    }

    #[test]
    fn a_refused_message_is_not_dropped_by_the_mailbox() {
        check(|| {
            let message = Arc::new(());
            let mailbox = Mailbox::new(1);
            mailbox.close();
            let refused = mailbox.push(Arc::clone(&message));
            assert_eq!(Arc::strong_count(&message), 2);
            assert_eq!(
                format!("{refused:?} {mailbox:?}"),
                "Err(Closed(..)) Mailbox { len: 0, closed: true, .. }"
            );
        });
    }

    #[test]
    fn a_push_that_races_with_close_is_refused_or_drained() {
        check(|| {
            for _ in 0..ROUNDS.min(200) {
                let mailbox = Arc::new(Mailbox::new(2));
                let other = Arc::clone(&mailbox);
                let sender =
                    thread::spawn(move || [1, 2].into_iter().filter(|n| other.push(*n).is_ok()).collect());
                mailbox.close();
                let drained = mailbox.drain_after_close();
                let accepted: Vec<i32> = sender.join().unwrap();
                assert_eq!(drained, accepted);
            }
        });
    }

    #[test]
    fn a_small_mailbox_passes_every_message_on_if_the_sender_tries_again() {
        check(|| {
            let mailbox = Arc::new(Mailbox::new(1));
            let other = Arc::clone(&mailbox);
            let sender = thread::spawn(move || {
                for message in 0..ROUNDS {
                    while other.push(message).is_err() {
                        thread::yield_now();
                    }
                }
            });
            for expected in 0..ROUNDS {
                let message = loop {
                    match mailbox.pop() {
                        Some(message) => break message,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(message, expected);
            }
            sender.join().unwrap();
        });
    }
}
