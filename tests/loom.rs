//! Models of park, wake and mailbox: loom runs the crate's own sources through the interleavings.
//!
//! The two files are compiled into this test beside a `sync` module whose atomics are loom's, so no global
//! `--cfg loom` is needed and every other test stays as it is. Their unit tests come along and run here a
//! second time, on loom's threads. A sleep without a wake-up shows as loom's "deadlock" panic.
//!
//! Each ordering, each fence and the second look were removed or weakened one at a time when this was
//! written; each time a model failed. Loom has one blind spot to know about: it does not order a plain store
//! after a read-modify-write that it must follow, so a `swap` that changes nothing can hide a later store and
//! raise a false alarm. An exchange that fails writes nothing and is modelled right.
// Not on Windows: the models know no system.
#![cfg(unix)]
#![forbid(unsafe_code)]

use loom::thread;
use mailbox::{Mailbox, Refused};
use parking::Parking;
use sync::testing::{Arc, Condvar, Mutex, check};
use sync::{AtomicUsize, Ordering};

#[path = "../src/shard/mailbox.rs"]
#[allow(dead_code, reason = "the models use a part of what the shard uses")]
mod mailbox;

#[path = "../src/shard/parking.rs"]
#[allow(dead_code, reason = "the models use a part of what the shard uses")]
mod parking;

/// What src/sync.rs is for the crate, made of loom's primitives.
mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(crate) use loom::thread::yield_now;
    use std::collections::VecDeque;

    /// Stands for `crossbeam_queue::ArrayQueue`, and promises less.
    ///
    /// The messages are behind a lock, but whether there are any is read from two counters without it, as in
    /// the original. This matters: a look that takes the lock would order owner and sender by itself and hide
    /// a missing fence. Unlike the original the look has no `SeqCst` of its own, so what the models show does
    /// not depend on how the queue is made.
    pub(crate) struct ArrayQueue<T> {
        capacity: usize,
        messages: loom::sync::Mutex<VecDeque<T>>,
        pushed: AtomicUsize,
        popped: AtomicUsize,
    }

    impl<T> ArrayQueue<T> {
        /// An empty queue.
        pub(crate) fn new(capacity: usize) -> ArrayQueue<T> {
            assert!(capacity > 0, "capacity must be non-zero");
            ArrayQueue {
                capacity,
                messages: loom::sync::Mutex::new(VecDeque::new()),
                pushed: AtomicUsize::new(0),
                popped: AtomicUsize::new(0),
            }
        }

        /// Appends a message or gives it back.
        pub(crate) fn push(&self, message: T) -> Result<(), T> {
            let mut messages = self.messages.lock().unwrap();
            if messages.len() == self.capacity {
                return Err(message);
            }
            messages.push_back(message);
            self.pushed.fetch_add(1, Ordering::Release);
            Ok(())
        }

        /// Takes the oldest message.
        pub(crate) fn pop(&self) -> Option<T> {
            if self.is_empty() {
                return None;
            }
            let message = self.messages.lock().unwrap().pop_front()?;
            self.popped.fetch_add(1, Ordering::Release);
            Some(message)
        }

        /// Whether the counters are equal.
        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }

        /// The difference of the counters.
        pub(crate) fn len(&self) -> usize {
            let popped = self.popped.load(Ordering::Acquire);
            self.pushed.load(Ordering::Acquire).wrapping_sub(popped)
        }
    }

    /// What the models and the unit tests of the two files run on.
    pub(crate) mod testing {
        pub(crate) use loom::sync::{Arc, Condvar, Mutex};
        pub(crate) use loom::thread;

        /// Loom enumerates what threads have to meet by chance, so a second round only shows that the first
        /// left no trace.
        pub(crate) const ROUNDS: usize = 2;

        /// Runs a body once per interleaving with at most three preemptions.
        pub(crate) fn check(body: impl Fn() + Send + Sync + 'static) {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(3);
            model.check(body);
        }
    }
}

/// A sleep that counts the calls that end it, like an eventfd: a call before the sleep is not lost.
struct Wake {
    calls: Mutex<usize>,
    called: Condvar,
}

impl Wake {
    fn new() -> Wake {
        Wake { calls: Mutex::new(0), called: Condvar::new() }
    }

    fn call(&self) {
        *self.calls.lock().unwrap() += 1;
        self.called.notify_one();
    }

    fn sleep(&self) {
        let mut calls = self.calls.lock().unwrap();
        while *calls == 0 {
            calls = self.called.wait(calls).unwrap();
        }
        *calls = 0;
    }
}

/// As much of a shard as other threads can see.
struct Shard<T> {
    mailbox: Mailbox<T>,
    parking: Parking,
    wake: Wake,
    /// Connections that this shard owns or is about to own.
    live: AtomicUsize,
    /// Wake-up calls made by senders.
    wakes: AtomicUsize,
}

impl<T> Shard<T> {
    fn new(mailbox_max: usize) -> Arc<Shard<T>> {
        Arc::new(Shard {
            mailbox: Mailbox::new(mailbox_max),
            parking: Parking::new(),
            wake: Wake::new(),
            live: AtomicUsize::new(0),
            wakes: AtomicUsize::new(0),
        })
    }

    fn send(&self, message: T) -> Result<(), Refused<T>> {
        self.mailbox.push(message)?;
        if self.parking.must_wake() {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            self.wake.call();
        }
        Ok(())
    }

    /// The owner's turn: sleeps if nothing is there, then pops everything into `taken`.
    fn turn(&self, taken: &mut Vec<T>) {
        self.parking.prepare();
        if self.mailbox.is_empty() {
            self.wake.sleep();
        }
        self.parking.resume();
        taken.extend(std::iter::from_fn(|| self.mailbox.pop()));
    }
}

/// A connection that has to be closed by one owner, once.
struct Connection {
    closed: Arc<AtomicUsize>,
}

impl Connection {
    fn close(self, owner: &Shard<Connection>) {
        self.closed.fetch_add(1, Ordering::Relaxed);
        assert!(owner.live.fetch_sub(1, Ordering::Relaxed) > 0, "closed before it was counted");
    }
}

/// Moves a connection and its place in the live counts; a refusal leaves both where they were.
///
/// The target is counted first: once the push succeeded, the target may close the connection at any time.
fn hand_over(from: &Shard<Connection>, to: &Shard<Connection>, connection: Connection) -> Option<Connection> {
    to.live.fetch_add(1, Ordering::Relaxed);
    match to.send(connection) {
        Ok(()) => {
            from.live.fetch_sub(1, Ordering::Relaxed);
            None
        }
        Err(Refused::Full(connection) | Refused::Closed(connection)) => {
            to.live.fetch_sub(1, Ordering::Relaxed);
            Some(connection)
        }
    }
}

#[test]
fn an_owner_that_sleeps_without_a_time_limit_sees_the_messages_of_two_senders() {
    check(|| {
        let shard = Shard::new(2);
        let senders = [1, 2].map(|message| {
            let shard = Arc::clone(&shard);
            thread::spawn(move || shard.send(message).unwrap())
        });
        let mut taken = Vec::new();
        while taken.len() < 2 {
            shard.turn(&mut taken);
        }
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn an_owner_that_sleeps_again_sees_the_second_message_of_one_sender() {
    check(|| {
        let shard = Shard::new(2);
        let other = Arc::clone(&shard);
        let sender = thread::spawn(move || [1, 2].map(|message| other.send(message).unwrap()));
        let mut taken = Vec::new();
        while taken.len() < 2 {
            shard.turn(&mut taken);
        }
        assert_eq!(taken, [1, 2]);
        sender.join().unwrap();
    });
}

#[test]
fn two_senders_make_at_most_one_wake_up_call_per_park() {
    check(|| {
        let shard = Shard::new(2);
        shard.parking.prepare();
        let senders = [1, 2].map(|message| {
            let shard = Arc::clone(&shard);
            thread::spawn(move || shard.send(message).unwrap())
        });
        let taken = shard.parking.resume();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(
            shard.wakes.load(Ordering::Relaxed),
            usize::from(taken),
            "one park, taken by a sender or by its owner"
        );
    });
}

#[test]
fn two_parks_take_at_most_two_wake_up_calls_of_three() {
    check(|| {
        let shard = Shard::new(3);
        let other = Arc::clone(&shard);
        let sender = thread::spawn(move || [1, 2].map(|message| other.send(message).unwrap()));
        let taken = [(); 2].map(|()| {
            shard.parking.prepare();
            usize::from(shard.parking.resume())
        });
        shard.send(3).unwrap();
        sender.join().unwrap();
        assert_eq!(shard.wakes.load(Ordering::Relaxed), taken[0] + taken[1]);
    });
}

#[test]
fn a_park_that_a_sender_took_shows_the_owner_what_the_sender_wrote() {
    check(|| {
        let parking = Arc::new(Parking::new());
        let written = Arc::new(AtomicUsize::new(0));
        parking.prepare();
        let (sender_parking, sender_written) = (Arc::clone(&parking), Arc::clone(&written));
        let sender = thread::spawn(move || {
            sender_written.store(1, Ordering::Relaxed);
            sender_parking.must_wake()
        });
        let taken = parking.resume();
        if taken {
            assert_eq!(written.load(Ordering::Relaxed), 1);
        }
        assert_eq!(sender.join().unwrap(), taken);
    });
}

#[test]
fn a_message_pushed_while_the_mailbox_closes_is_refused_or_drained() {
    check(|| {
        let mailbox = Arc::new(Mailbox::new(2));
        let senders = [1, 2].map(|message| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || match mailbox.push(message) {
                Ok(()) => None,
                Err(Refused::Closed(message)) => Some(message),
                Err(Refused::Full(_)) => panic!("there is room for both"),
            })
        });
        let popped = mailbox.pop();
        mailbox.close();
        let mut found = mailbox.drain_after_close();
        found.extend(popped);
        found.extend(senders.into_iter().filter_map(|sender| sender.join().unwrap()));
        found.sort_unstable();
        assert_eq!(found, [1, 2]);
        assert!(mailbox.is_empty(), "nothing comes after the last drain");
    });
}

#[test]
fn one_of_two_messages_comes_back_from_a_mailbox_with_one_place() {
    check(|| {
        let mailbox = Arc::new(Mailbox::new(1));
        let other = Arc::clone(&mailbox);
        let sender = thread::spawn(move || other.push(1));
        let pushed = [mailbox.push(2), sender.join().unwrap()];
        let kept = mailbox.pop().unwrap();
        let expected =
            if kept == 2 { [Ok(()), Err(Refused::Full(1))] } else { [Err(Refused::Full(2)), Ok(())] };
        assert_eq!(pushed, expected);
        assert_eq!(mailbox.pop(), None);
    });
}

#[test]
fn a_connection_handed_to_a_shard_that_closes_has_one_owner_and_one_count() {
    check(|| {
        let (a, b) = (Shard::new(1), Shard::new(1));
        let closed = Arc::new(AtomicUsize::new(0));
        a.live.fetch_add(2, Ordering::Relaxed);
        let mut connections = [0, 1].map(|_| Connection { closed: Arc::clone(&closed) }).into_iter();

        // A hands both over; the second may find the mailbox full, each may find it closed.
        let (from, to) = (Arc::clone(&a), Arc::clone(&b));
        let shard_a = thread::spawn(move || {
            let kept: Vec<_> = connections.by_ref().filter_map(|it| hand_over(&from, &to, it)).collect();
            assert_eq!(from.live.load(Ordering::Relaxed), kept.len());
            kept.into_iter().for_each(|connection| connection.close(&from));
        });

        // B serves at most one and ends.
        if let Some(connection) = b.mailbox.pop() {
            connection.close(&b);
        }
        b.mailbox.close();
        b.mailbox.drain_after_close().into_iter().for_each(|connection| connection.close(&b));

        shard_a.join().unwrap();
        let counts = [&closed, &a.live, &b.live].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [2, 0, 0]);
    });
}

#[test]
fn a_connection_handed_to_a_sleeping_shard_wakes_it_and_is_closed_there() {
    check(|| {
        let (a, b) = (Shard::new(1), Shard::new(1));
        let closed = Arc::new(AtomicUsize::new(0));
        a.live.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { closed: Arc::clone(&closed) };

        let (from, to) = (Arc::clone(&a), Arc::clone(&b));
        let shard_a = thread::spawn(move || assert!(hand_over(&from, &to, connection).is_none()));
        let mut taken = Vec::new();
        while taken.is_empty() {
            b.turn(&mut taken);
        }
        taken.into_iter().for_each(|connection| connection.close(&b));

        shard_a.join().unwrap();
        let counts = [&closed, &a.live, &b.live].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [1, 0, 0]);
    });
}
