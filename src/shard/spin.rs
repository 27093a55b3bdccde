//! Watching for news for a while before a sleep, and when to leave that.
//!
//! A shard that sleeps costs its peers an interrupt and itself a switch, and wakes late. What comes within some ten
//! microseconds is cheaper to watch for. While a shard spins it makes no system call, it is awake for other threads
//! (nothing is announced, so nobody makes a call to wake it), and it never spins past its next deadline.
//!
//! Spinning that finds nothing is a waste, so it has to be earned. There is a credit: a spin that found something
//! adds 1, one that did not costs 2, and it lies between 0 and [`CREDIT_MAX`]. Without credit only one sleep in
//! [`SLEEPS_PER_PROBE`] is preceded by a spin. So of `s` sleeps and `w` spins that found something at most
//! `CREDIT_MAX / 2 + w / 2 + s / SLEEPS_PER_PROBE` spins found nothing: a shard that falls idle spins in vain four
//! times, then once in 64 sleeps.
//!
//! It also has to be worth it. A spin buys a short way back for one peer that waits for it; where many are talking there is
//! always some news soon, and sleeping lets it gather, which saves CPU at the price of some latency. So unless the program
//! asks for spinning, a shard spins only while what completes is of a few endpoints ([`Company`]).
//!
//! This file knows neither backend nor clock.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

const CREDIT_MAX: u32 = 8;
const CREDIT_AT_START: u32 = 4;
const PRICE: u32 = 2;
const SLEEPS_PER_PROBE: u32 = 64;

/// Looks between two questions to the clock, which cost about as much as a look.
const LOOKS_PER_CLOCK: u32 = 8;

/// How many endpoints what completes is of: looked at anew for every [`SAMPLE`] completions.
#[derive(Debug, Default)]
pub(crate) struct Company {
    /// One bit for each endpoint that was seen since, by its place modulo 64.
    seen: u64,
    completions: u32,
    is_large: bool,
}

const SAMPLE: u32 = 64;
/// So many endpoints are a few.
const FEW: u32 = 8;

impl Company {
    /// Something of the endpoint at this place of the table has completed.
    #[inline]
    pub(crate) fn note(&mut self, place: usize) {
        self.seen |= 1 << (place % 64);
        self.completions += 1;
        if self.completions == SAMPLE {
            *self = Company { is_large: self.seen.count_ones() > FEW, ..Company::default() };
        }
    }

    pub(crate) fn is_large(&self) -> bool {
        self.is_large
    }
}

/// The account of a shard's spins.
#[derive(Debug)]
pub(crate) struct Spins {
    /// The longest spin; zero means never.
    bound: Duration,
    credit: Cell<u32>,
    /// Sleeps since the last spin.
    sleeps: Cell<u32>,
    made: Cell<u64>,
    won: Cell<u64>,
}

impl Spins {
    pub(crate) fn new(bound: Duration) -> Spins {
        Spins {
            bound,
            credit: Cell::new(CREDIT_AT_START),
            sleeps: Cell::new(0),
            made: Cell::new(0),
            won: Cell::new(0),
        }
    }

    /// Whether a spin may precede the next sleep.
    pub(crate) fn is_due(&self) -> bool {
        !self.bound.is_zero() && (self.credit.get() > 0 || self.sleeps.get() >= SLEEPS_PER_PROBE)
    }

    /// The shard goes to sleep.
    pub(crate) fn on_sleep(&self) {
        self.sleeps.set(self.sleeps.get().saturating_add(1));
    }

    /// Spins until there is news, but not longer than the bound or `wait`: how much of the wait is left then, none at
    /// all if there is news.
    pub(crate) fn spin(
        &self,
        wait: Option<Duration>,
        now: impl Fn() -> Instant,
        has_news: impl FnMut() -> bool,
    ) -> Option<Duration> {
        let (won, spent) = watch(wait.unwrap_or(self.bound).min(self.bound), now, has_news);
        self.made.set(self.made.get() + 1);
        self.won.set(self.won.get() + u64::from(won));
        self.sleeps.set(0);
        let credit = self.credit.get();
        self.credit.set(if won { (credit + 1).min(CREDIT_MAX) } else { credit.saturating_sub(PRICE) });
        if won { Some(Duration::ZERO) } else { wait.map(|wait| wait.saturating_sub(spent)) }
    }

    /// Spins so far, and how many of them found something.
    pub(crate) fn ledger(&self) -> (u64, u64) {
        (self.made.get(), self.won.get())
    }
}

/// Whether there was news within `span`, and how long it watched.
fn watch(span: Duration, now: impl Fn() -> Instant, mut has_news: impl FnMut() -> bool) -> (bool, Duration) {
    let begun = now();
    loop {
        for _ in 0..LOOKS_PER_CLOCK {
            if has_news() {
                return (true, now().saturating_duration_since(begun));
            }
            spin_loop();
        }
        let spent = now().saturating_duration_since(begun);
        if spent >= span {
            return (false, spent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: Duration = Duration::from_micros(50);

    /// A clock on which each question takes a microsecond.
    struct Clock {
        start: Instant,
        asked: Cell<u32>,
    }

    impl Clock {
        fn new() -> Clock {
            Clock { start: Instant::now(), asked: Cell::new(0) }
        }

        fn now(&self) -> Instant {
            self.asked.set(self.asked.get() + 1);
            self.start + Duration::from_micros(self.asked.get().into())
        }
    }

    fn spin(spins: &Spins, wait: Option<Duration>, news: bool) -> (Option<Duration>, u32) {
        let clock = Clock::new();
        let left = spins.spin(wait, || clock.now(), || news);
        (left, clock.asked.get())
    }

    #[test]
    fn news_end_a_spin_at_once_and_leave_nothing_to_wait_for() {
        let spins = Spins::new(BOUND);
        let (left, asked) = spin(&spins, None, true);
        assert_eq!(left, Some(Duration::ZERO));
        assert!(asked <= 2, "{asked}");
        assert_eq!(spins.ledger(), (1, 1));
    }

    #[test]
    fn a_spin_ends_at_its_bound_or_at_the_deadline_whichever_comes_first() {
        let spins = Spins::new(BOUND);
        assert_eq!(spin(&spins, None, false), (None, 51));
        let day = Duration::from_secs(86_400);
        assert_eq!(spin(&spins, Some(day), false), (Some(day - BOUND), 51));
        let near = Duration::from_micros(7);
        assert_eq!(spin(&spins, Some(near), false), (Some(Duration::ZERO), 8));
        assert_eq!(spins.ledger(), (3, 0));
    }

    #[test]
    fn a_company_is_large_while_many_endpoints_take_part() {
        let mut company = Company::default();
        let mut talk = |endpoints: usize, completions: usize| {
            (0..completions).for_each(|completion| company.note(1000 + completion % endpoints));
            company.is_large()
        };
        assert!(!talk(1, 640), "one that talks much");
        assert!(!talk(8, 64));
        assert!(talk(9, 64));
        assert!(talk(1, 63), "not looked at anew yet");
        assert!(!talk(1, 1));
        assert!(talk(10_000, 640));
    }

    #[test]
    fn without_a_bound_nothing_is_due() {
        let spins = Spins::new(Duration::ZERO);
        (0..1000).for_each(|_| spins.on_sleep());
        assert!(!spins.is_due());
    }

    #[test]
    fn what_falls_idle_spins_four_times_and_then_once_in_64_sleeps() {
        let spins = Spins::new(BOUND);
        for _ in 0..100 {
            assert!(spins.is_due());
            spin(&spins, None, true);
        }
        let mut when = Vec::new();
        for sleep in 0..200 {
            if spins.is_due() {
                spin(&spins, None, false);
                when.push(sleep);
            }
            spins.on_sleep();
        }
        assert_eq!(when, [0, 1, 2, 3, 67, 131, 195]);
    }

    #[test]
    fn a_probe_that_finds_something_brings_spinning_back() {
        let spins = Spins::new(BOUND);
        while spins.is_due() {
            spin(&spins, None, false);
        }
        (0..SLEEPS_PER_PROBE).for_each(|_| spins.on_sleep());
        for _ in 0..10 {
            assert!(spins.is_due());
            spin(&spins, None, true);
        }
    }

    proptest! {
        #[test]
        fn the_waste_keeps_within_its_bound(news in prop::collection::vec(any::<bool>(), 0..2000)) {
            let spins = Spins::new(BOUND);
            let mut sleeps = 0;
            for news in news {
                let won = spins.is_due() && spin(&spins, None, news).0.is_some();
                if !won {
                    spins.on_sleep();
                    sleeps += 1;
                }
                let (made, won) = spins.ledger();
                let bound = u64::from(CREDIT_MAX / PRICE) + won / 2 + sleeps / u64::from(SLEEPS_PER_PROBE);
                prop_assert!(made - won <= bound, "{made} spins, {won} won, {sleeps} sleeps");
            }
        }
    }
}
