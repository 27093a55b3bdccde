//! Whether a shard sleeps, and who has to wake it: the protocol of park and wake.
//!
//! One `Parking` belongs to one shard, the *owner*. Its other users are *senders*: threads that put something
//! into one of the owner's queues. This file knows neither the queues nor the wake-up call; it only tells a
//! sender whether the call is its to make.
//!
//! ```text
//! owner    prepare()    parked = true ; fence       sender    push into a queue
//!          look into every queue again                        must_wake()    fence ; take parked
//!          nothing there: sleep                               true: make the one wake-up call
//!          resume()     parked = false
//! ```
//!
//! # No wake-up is lost
//!
//! Each side writes, then reads what the other side wrote. Release and acquire alone let both reads miss both
//! writes (store buffering): the owner sleeps with a message in its queue and nobody calls. Hence a `SeqCst`
//! fence on each side between the write and the read. All such fences have one total order:
//!
//! - The sender's fence comes first. Then the owner's second look, which follows its own fence, finds the
//!   message, and the owner does not sleep.
//! - The owner's fence comes first. Then the sender reads `parked` as `prepare` left it, or newer. `true`: it
//!   makes the call. `false`: another sender took this park and makes the call, or the owner has resumed and
//!   will prepare, fence and look again before it sleeps the next time.
//!
//! It does not matter how the queues are synchronised, as long as a push is an atomic write before
//! `must_wake` and the second look is an atomic read after `prepare`. Nor does it matter that the wake-up
//! call may come late: until it came, the sender that took the park has not finished.
//!
//! # At most one call per park
//!
//! Only `prepare` stores `true`, and a read-modify-write always reads the newest value. So each `true` is
//! taken once: by the exchange of one sender, or by the swap in `resume`.
//!
//! # What it must not do
//!
//! Sleep, make a system call, or count messages. A wake-up may be spurious: a sender can take the park just
//! before the second look finds its message, and its call then ends the *next* sleep early.
#![forbid(unsafe_code)]

use crate::sync::{AtomicBool, Ordering, fence};

/// The flag between a shard that goes to sleep and the threads that send to it.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    /// The owner announced a sleep and nobody took the duty to wake it yet.
    parked: AtomicBool,
}

impl Parking {
    /// The parking of a shard that is awake.
    pub(crate) fn new() -> Parking {
        Parking { parked: AtomicBool::new(false) }
    }

    /// Owner: announces a sleep. Between this and the sleep, every queue must be looked into again.
    ///
    /// Whether the owner then sleeps or not, it calls [`resume`](Parking::resume) before it works on.
    pub(crate) fn prepare(&self) {
        debug_assert!(!self.parked.load(Ordering::Relaxed), "a second `prepare` without `resume`");
        // Relaxed, because the store publishes nothing; the fence alone puts it before the second look.
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Owner: ends the park, slept or not. True if a sender took it: its wake-up call was made or will be.
    ///
    /// If true, everything that this sender did before [`must_wake`](Parking::must_wake) is visible.
    pub(crate) fn resume(&self) -> bool {
        // Acquire pairs with the fence of the sender whose `false` is read here.
        !self.parked.swap(false, Ordering::Acquire)
    }

    /// Sender, after its push: whether it has to make the wake-up call. True for at most one sender per park.
    ///
    /// A refused push needs no call: nothing came that the owner could miss.
    #[must_use = "the owner may sleep for ever if the sender that took the park does not wake it"]
    pub(crate) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        // The load keeps the common case, an owner that is awake, from taking the cache line for itself. What
        // it read may be outdated by now, so the exchange decides; one that fails writes nothing. Relaxed,
        // because the fence above already is the release that `resume` acquires, and a sender reads nothing
        // of the owner.
        self.parked.load(Ordering::Relaxed)
            && self.parked.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

// tests/loom.rs runs these a second time, on loom's threads.
#[cfg(test)]
mod tests {
    use super::Parking;
    use crate::sync::testing::{Arc, Condvar, Mutex, ROUNDS, check, thread};
    use crate::sync::{AtomicUsize, Ordering};

    #[test]
    fn an_owner_that_is_awake_needs_no_wake_up() {
        check(|| {
            let parking = Parking::new();
            assert!(!parking.must_wake());
            parking.prepare();
            assert!(!parking.resume(), "nobody took this park");
            assert!(!parking.must_wake());
        });
    }

    #[test]
    fn the_first_sender_takes_the_park_and_the_second_does_not() {
        check(|| {
            let parking = Parking::new();
            for _ in 0..2 {
                parking.prepare();
                assert!(parking.must_wake());
                assert!(!parking.must_wake());
                assert!(parking.resume(), "the first sender took it");
            }
        });
    }

    #[test]
    fn one_of_two_racing_senders_takes_a_park() {
        check(|| {
            let parking = Arc::new(Parking::new());
            for _ in 0..ROUNDS.min(200) {
                parking.prepare();
                let other = Arc::clone(&parking);
                let sender = thread::spawn(move || usize::from(other.must_wake()));
                let taken = usize::from(parking.must_wake()) + sender.join().unwrap();
                assert_eq!(taken, 1);
                assert!(parking.resume());
            }
        });
    }

    #[test]
    fn an_owner_that_sleeps_without_a_time_limit_sees_every_message() {
        check(|| {
            let shard = Arc::new(Shard::default());
            let other = Arc::clone(&shard);
            let sender = thread::spawn(move || (0..ROUNDS).for_each(|_| other.send()));
            let mut seen = 0;
            while seen < ROUNDS {
                seen = shard.sleep_until_more_than(seen);
            }
            sender.join().unwrap();
        });
    }

    /// A shard whose queue only counts, and whose wake-up call ends a sleep on a condition variable.
    #[derive(Default)]
    struct Shard {
        parking: Parking,
        messages: AtomicUsize,
        calls: Mutex<usize>,
        called: Condvar,
    }

    impl Shard {
        fn send(&self) {
            self.messages.fetch_add(1, Ordering::Relaxed);
            if self.parking.must_wake() {
                *self.calls.lock().unwrap() += 1;
                self.called.notify_one();
            }
        }

        fn sleep_until_more_than(&self, seen: usize) -> usize {
            self.parking.prepare();
            if self.messages.load(Ordering::Relaxed) == seen {
                let mut calls = self.calls.lock().unwrap();
                while *calls == 0 {
                    calls = self.called.wait(calls).unwrap();
                }
                *calls = 0;
            }
            self.parking.resume();
            self.messages.load(Ordering::Relaxed)
        }
    }
}
