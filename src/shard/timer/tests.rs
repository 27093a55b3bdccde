//! Tests of the wheel.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Everything that is due at `now`, however many calls it takes.
fn expire_all<T>(wheel: &mut Wheel<T>, now: Instant) -> Vec<T> {
    let mut out = Vec::new();
    while wheel.expire(now, usize::MAX, &mut out) {}
    out
}

/// Asserts that lists, bits, count and levels tell the same story.
fn check<T>(wheel: &Wheel<T>) {
    let mut seen = 0;
    for (slot, list) in wheel.slots.iter().enumerate() {
        let (level, place) = (slot / SLOTS, slot % SLOTS);
        assert_eq!(wheel.occupied[level] >> place & 1 == 1, list.first != NONE);
        let (mut index, mut previous) = (list.first, NONE);
        while index != NONE {
            let entry = &wheel.entries[index as usize];
            assert!(entry.value.is_some());
            assert_eq!((entry.slot as usize, entry.previous), (slot, previous));
            assert!(place >= digit(wheel.tick, level), "a slot behind the current tick holds a timer");
            assert!(entry.deadline >= wheel.slot_begin(slot));
            seen += 1;
            (previous, index) = (index, entry.next);
        }
        assert_eq!(list.last, previous);
    }
    assert_eq!(seen, wheel.len());
}

#[test]
fn a_timer_fires_at_its_deadline_rounded_up_and_not_before() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    let mut out = Vec::new();
    wheel.insert(start + Duration::from_micros(2_001), 'a');
    assert_eq!(wheel.next_deadline(), Some(start + ms(3)));
    assert!(!wheel.expire(start + Duration::from_micros(2_999), 10, &mut out));
    assert!(out.is_empty());
    assert!(!wheel.expire(start + ms(3), 10, &mut out));
    assert_eq!(out, ['a']);
    assert!(wheel.is_empty());
    assert_eq!(wheel.next_deadline(), None);
}

#[test]
fn timers_on_every_level_fire_in_order_and_at_their_tick() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    let deadlines: Vec<u64> = (0..41).map(|power| 1 << power).collect();
    for &deadline in deadlines.iter().rev() {
        wheel.insert(start + ms(deadline), deadline);
    }
    for &deadline in &deadlines {
        assert!(expire_all(&mut wheel, start + ms(deadline) - Duration::from_nanos(1)).is_empty());
        check(&wheel);
        assert_eq!(expire_all(&mut wheel, start + ms(deadline)), [deadline]);
    }
}

#[test]
fn sleeping_until_next_deadline_reaches_a_far_timer_within_one_wake_up_per_level() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    let deadline = start + ms(123_456_789_012);
    wheel.insert(deadline, ());
    let mut wake_ups = 0;
    loop {
        let now = wheel.next_deadline().expect("the timer waits");
        wake_ups += 1;
        if !expire_all(&mut wheel, now).is_empty() {
            assert_eq!(now, deadline);
            break;
        }
    }
    assert!(wake_ups <= LEVELS, "{wake_ups} wake-ups");
}

#[test]
fn a_hundred_thousand_timers_of_one_tick_come_out_in_portions() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    for number in 0..100_000 {
        wheel.insert(start + ms(5), number);
    }
    let (mut out, mut calls) = (Vec::new(), 1);
    while wheel.expire(start + ms(5), 1000, &mut out) {
        assert_eq!(out.len(), calls * 1000);
        calls += 1;
    }
    assert_eq!(calls, 100);
    assert!(out.into_iter().eq(0..100_000));
    assert!(wheel.is_empty());
}

#[test]
fn a_budget_of_nothing_only_tells_whether_a_timer_is_due() {
    let start = Instant::now();
    let (mut wheel, mut out) = (Wheel::new(start), Vec::new());
    let id = wheel.insert(start + ms(100), ());
    assert!(!wheel.expire(start + ms(99), 0, &mut out));
    assert!(wheel.expire(start + ms(100), 0, &mut out));
    assert!(wheel.reset(id, start + ms(101)));
    assert!(!wheel.expire(start + ms(100), 0, &mut out));
    assert!(out.is_empty());
}

#[test]
fn a_crowded_coarse_slot_moves_in_portions_and_stays_usable_meanwhile() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    // All of them wait in one slot of level 1, and fire one tick after it begins.
    let ids: Vec<_> = (0..3 * MOVES_MAX).map(|number| wheel.insert(start + ms(65), number)).collect();
    let mut out = Vec::new();
    assert!(wheel.expire(start + ms(64), 10, &mut out));
    check(&wheel);
    assert_eq!(wheel.next_deadline(), Some(start + ms(64)));
    let last = *ids.last().expect("there are many");
    assert_eq!(wheel.remove(last), Some(3 * MOVES_MAX - 1));
    assert!(wheel.reset(ids[2 * MOVES_MAX], start + ms(70)));
    assert!(wheel.reset(ids[0], start + ms(64)));
    wheel.insert(start + ms(66), usize::MAX);
    check(&wheel);
    assert_eq!(expire_all(&mut wheel, start + ms(64)), [0]);
    assert_eq!(expire_all(&mut wheel, start + ms(65)).len(), 3 * MOVES_MAX - 3);
    assert_eq!(expire_all(&mut wheel, start + ms(70)), [usize::MAX, 2 * MOVES_MAX]);
}

#[test]
fn a_stale_id_finds_nothing_even_when_its_place_is_used_again() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    let removed = wheel.insert(start + ms(1), 1);
    assert_eq!(wheel.remove(removed), Some(1));
    assert_eq!(wheel.remove(removed), None);
    let fired = wheel.insert(start + ms(1), 2);
    assert_eq!(fired.index, removed.index);
    assert_ne!(fired, removed);
    assert_eq!(expire_all(&mut wheel, start + ms(1)), [2]);
    let alive = wheel.insert(start + ms(9), 3);
    for stale in [removed, fired, TimerId { index: 77, generation: 0 }] {
        assert_eq!(wheel.remove(stale), None);
        assert_eq!(wheel.get_mut(stale), None);
        assert!(!wheel.reset(stale, start));
    }
    *wheel.get_mut(alive).expect("it waits") += 1;
    assert_eq!(wheel.remove(alive), Some(4));
}

#[test]
fn a_reset_to_a_later_deadline_leaves_the_timer_in_its_slot_until_that_comes_due() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    let id = wheel.insert(start + ms(30), ());
    let slot = wheel.entries[0].slot;
    for message in 1..1000 {
        assert!(wheel.reset(id, start + ms(30 + message)));
        assert_eq!(wheel.entries[0].slot, slot);
    }
    assert_eq!(wheel.next_deadline(), Some(start + ms(30)));
    assert!(expire_all(&mut wheel, start + ms(1028)).is_empty());
    check(&wheel);
    assert_eq!(expire_all(&mut wheel, start + ms(1029)).len(), 1);
}

#[test]
fn a_reset_to_an_earlier_deadline_takes_effect_at_once() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    let id = wheel.insert(start + ms(1_000_000), ());
    assert!(wheel.reset(id, start + ms(7)));
    check(&wheel);
    assert_eq!(wheel.next_deadline(), Some(start + ms(7)));
    assert!(expire_all(&mut wheel, start + ms(6)).is_empty());
    assert_eq!(expire_all(&mut wheel, start + ms(7)).len(), 1);
}

#[test]
fn a_deadline_of_the_past_is_due_now() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start + ms(50));
    assert!(expire_all(&mut wheel, start + ms(500)).is_empty());
    wheel.insert(start, 1);
    wheel.insert(start + ms(60), 2);
    assert_eq!(wheel.next_deadline(), Some(start + ms(500)));
    assert_eq!(expire_all(&mut wheel, start + ms(500)), [1, 2]);
}

#[test]
fn a_huge_deadline_waits_and_can_be_reset_and_removed() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    let century = Duration::from_secs(100 * 365 * 86_400);
    let mut furthest = century;
    while start.checked_add(furthest * 2).is_some() && furthest < Duration::MAX / 4 {
        furthest *= 2;
    }
    wheel.insert(start + century, "century");
    let id = wheel.insert(start + furthest, "eternity");
    assert_eq!(expire_all(&mut wheel, start + century - ms(1)), [] as [&str; 0]);
    assert_eq!(expire_all(&mut wheel, start + century), ["century"]);
    assert!(wheel.next_deadline().is_some_and(|next| next > start + century));
    assert!(wheel.reset(id, start + century + ms(1)));
    assert!(wheel.reset(id, start + furthest));
    check(&wheel);
    assert_eq!(wheel.remove(id), Some("eternity"));
    // A clock beyond the last tick ends all waiting, and the wheel still works.
    wheel.insert(start + furthest, "end");
    assert_eq!(expire_all(&mut wheel, start + furthest), ["end"]);
    wheel.insert(start + furthest, "after the end");
    assert_eq!(expire_all(&mut wheel, start + furthest), ["after the end"]);
}

#[test]
fn a_jump_over_hours_fires_everything_in_order_and_visits_no_empty_time() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start);
    for number in (0..5_000_u64).rev() {
        wheel.insert(start + ms(number * 7_919), number);
    }
    let jump = start + Duration::from_secs(30 * 86_400);
    assert!(expire_all(&mut wheel, jump).into_iter().eq(0..5_000));
    // A month is 2.6 thousand million ticks; a loop over them would not end within the test's patience.
    for month in 2..1_000 {
        wheel.insert(start + Duration::from_secs(month * 30 * 86_400), month);
        assert_eq!(expire_all(&mut wheel, start + Duration::from_secs(month * 30 * 86_400)), [month]);
    }
}

#[test]
fn a_clock_that_steps_back_fires_nothing_and_breaks_nothing() {
    let start = Instant::now();
    let mut wheel = Wheel::new(start + ms(1000));
    assert!(expire_all(&mut wheel, start + ms(2000)).is_empty());
    wheel.insert(start + ms(1500), 'a');
    assert!(expire_all(&mut wheel, start + ms(1700)).is_empty());
    assert!(expire_all(&mut wheel, start).is_empty());
    check(&wheel);
    assert_eq!(expire_all(&mut wheel, start + ms(2000)), ['a']);
}

/// One step of the model test; times are microseconds, `usize`s choose one of the waiting timers.
#[derive(Debug, Clone)]
enum Step {
    Insert(i64),
    Remove(usize),
    Reset(usize, i64),
    Advance(i64, usize),
}

fn span() -> impl Strategy<Value = i64> {
    prop_oneof![
        -5_000..5_000_i64,
        0..100_000_i64,
        0..10_000_000_i64,
        0..10_000_000_000_i64,
        0..100_000_000_000_000_i64,
    ]
}

fn budget() -> impl Strategy<Value = usize> {
    prop_oneof![Just(usize::MAX), 0..4_usize]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => span().prop_map(Step::Insert),
        1 => any::<usize>().prop_map(Step::Remove),
        3 => (any::<usize>(), span()).prop_map(|(timer, after)| Step::Reset(timer, after)),
        3 => (span(), budget()).prop_map(|(by, budget)| Step::Advance(by, budget)),
    ]
}

/// What the wheel should hold: names, ticks and numbers of the waiting timers.
struct Model {
    wheel: Wheel<usize>,
    start: Instant,
    now_us: u64,
    waiting: Vec<(TimerId, u64, usize)>,
    started: usize,
}

impl Model {
    fn deadline(&self, after_us: i64) -> (Instant, u64) {
        let deadline_us = self.now_us.saturating_add_signed(after_us);
        let tick = deadline_us.div_ceil(1000).max(self.wheel.tick);
        (self.start + Duration::from_micros(deadline_us), tick)
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Insert(after) => {
                let (deadline, tick) = self.deadline(after);
                self.waiting.push((self.wheel.insert(deadline, self.started), tick, self.started));
                self.started += 1;
            }
            Step::Advance(by, budget) => {
                self.now_us = self.now_us.saturating_add_signed(by);
                self.expire(budget);
            }
            Step::Remove(_) | Step::Reset(..) if self.waiting.is_empty() => {}
            Step::Remove(timer) => {
                let (id, _, number) = self.waiting.swap_remove(timer % self.waiting.len());
                assert_eq!(self.wheel.remove(id), Some(number));
                assert_eq!(self.wheel.remove(id), None);
            }
            Step::Reset(timer, after) => {
                let (deadline, tick) = self.deadline(after);
                let timer = timer % self.waiting.len();
                self.waiting[timer].1 = tick;
                assert!(self.wheel.reset(self.waiting[timer].0, deadline));
            }
        }
        self.compare();
    }

    fn expire(&mut self, budget: usize) {
        let (now, now_tick) = (self.start + Duration::from_micros(self.now_us), self.now_us / 1000);
        let mut out = Vec::new();
        let more = self.wheel.expire(now, budget, &mut out);
        assert!(out.len() <= budget);
        let mut last_tick = 0;
        for number in out {
            let place = self.waiting.iter().position(|timer| timer.2 == number).expect("it waited");
            let (id, tick, _) = self.waiting.swap_remove(place);
            assert!(last_tick <= tick && tick <= now_tick, "tick {tick} after {last_tick}, now {now_tick}");
            assert_eq!(self.wheel.get_mut(id), None);
            last_tick = tick;
        }
        assert!(self.waiting.iter().all(|timer| timer.1 >= last_tick));
        assert_eq!(more, self.waiting.iter().any(|timer| timer.1 <= now_tick));
        if !more {
            assert!(self.wheel.next_deadline().is_none_or(|next| next > now), "this would spin");
        }
    }

    fn compare(&mut self) {
        check(&self.wheel);
        assert_eq!(self.wheel.len(), self.waiting.len());
        let first = self.waiting.iter().map(|timer| timer.1).min();
        let next = self.wheel.next_deadline();
        assert_eq!(next.is_some(), first.is_some());
        assert!(next.is_none_or(|next| Some(next) <= first.map(|tick| self.start + ms(tick))));
        for &(id, _, number) in &self.waiting {
            assert_eq!(self.wheel.get_mut(id).copied(), Some(number));
        }
    }
}

proptest! {
    #[test]
    fn any_sequence_of_calls_agrees_with_a_plain_list(steps in prop::collection::vec(step(), 1..150)) {
        let start = Instant::now();
        let wheel = Wheel::new(start);
        let mut model = Model { wheel, start, now_us: 0, waiting: Vec::new(), started: 0 };
        for step in steps {
            model.apply(step);
        }
    }
}
