//! The timers of one shard: a wheel of seven levels with 64 slots each.
//!
//! A wheel owns the payloads of its timers until they fire or are removed. Start, stop and reset cost the
//! same with ten timers and with ten million; a slot of level 0 is one tick of a millisecond, a slot of the
//! level above is 64 ticks, and so on. When time reaches a coarse slot, its timers move to finer ones.
//!
//! Three rules keep it simple:
//!
//! * A timer lives on the level of the highest base-64 digit in which its deadline differs from the current
//!   tick. So each level only holds slots ahead of the current one, nothing wraps around, every slot of a
//!   fine level comes before every slot of a coarse one, and the next slot to visit is the first set bit
//!   of the first level that has one. Empty time costs nothing, however long it was.
//! * A deadline is rounded up to its tick and the clock is rounded down, so that no timer fires early. A
//!   deadline that has passed already counts as the current tick.
//! * A reset only writes the new deadline, unless that lies before the slot the timer waits in. Timers that
//!   are pushed back with every message stay where they are; when their old slot comes due, they move on
//!   to the slot of the deadline that is then the last one.
//!
//! The wheel must not read a clock, and it must not run foreign code: whoever calls [`Wheel::expire`]
//! brings the time and gets payloads.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::{Duration, Instant};

/// Levels of the wheel. Seven reach 139 years after its start, and no deadline is later than that.
const LEVELS: usize = 7;
/// Slots of a level, so that the occupied ones fit into one word.
const SLOTS: usize = 64;
/// How many bits of a tick choose the slot of a level.
const DIGIT_BITS: u32 = SLOTS.ilog2();
/// The last tick. Later deadlines count as this one.
const TICK_MAX: u64 = (1 << (DIGIT_BITS * LEVELS as u32)) - 1;
/// How many timers one call of [`Wheel::expire`] may move between slots, about a tenth of a millisecond.
const MOVES_MAX: usize = 4096;
/// No entry: the end of a list.
const NONE: u32 = u32::MAX;

/// The name of a started timer. It goes stale when the timer fires or is removed; a stale one finds nothing.
///
/// The generation wraps after four thousand million uses of one entry, only a name kept for that long could
/// find a stranger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TimerId {
    /// The place in the wheel's table.
    index: u32,
    /// How many timers had this place before.
    generation: u32,
}

/// A timer, or a free place in the table.
struct Entry<T> {
    /// What comes out when the timer fires; `None` for a free place.
    value: Option<T>,
    /// The tick at which it fires. It may be later than the slot says, see the head of this file.
    deadline: u64,
    /// How many timers had this place before.
    generation: u32,
    /// The neighbour before it in its slot.
    previous: u32,
    /// The neighbour after it in its slot, or the next free place.
    next: u32,
    /// The slot whose list it is in.
    slot: u16,
}

const _: () = assert!(size_of::<Entry<u64>>() <= 32 + size_of::<u64>());

/// The timers of one slot, oldest first, so that a slot that is emptied in portions starves nobody.
#[derive(Clone, Copy)]
struct List {
    /// The entry to take next.
    first: u32,
    /// The entry that came last.
    last: u32,
}

/// What one call of [`Wheel::expire`] may still do.
struct Budget {
    /// Timers to fire.
    fires: usize,
    /// Timers to move to another slot.
    moves: usize,
}

/// A set of timers with payloads of type `T`. See the head of this file.
pub(crate) struct Wheel<T> {
    /// The instant of tick 0.
    start: Instant,
    /// The current tick: every slot that begins before it is empty or is being emptied.
    tick: u64,
    /// How many timers wait.
    len: usize,
    /// The first free place in the table.
    free: u32,
    /// The table. It grows with the largest number of timers that ever waited and never shrinks.
    entries: Vec<Entry<T>>,
    /// One bit for each slot that holds a timer.
    occupied: [u64; LEVELS],
    /// The lists, `SLOTS` for each level.
    slots: Box<[List]>,
}

impl<T> Wheel<T> {
    /// An empty wheel. Deadlines before `now` count as `now`.
    pub(crate) fn new(now: Instant) -> Wheel<T> {
        let empty = List { first: NONE, last: NONE };
        Wheel {
            start: now,
            tick: 0,
            len: 0,
            free: NONE,
            entries: Vec::new(),
            occupied: [0; LEVELS],
            slots: vec![empty; LEVELS * SLOTS].into_boxed_slice(),
        }
    }

    /// How many timers wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Starts a timer.
    pub(crate) fn insert(&mut self, deadline: Instant, value: T) -> TimerId {
        let deadline = self.deadline_tick(deadline);
        let index = self.take_free();
        let entry = &mut self.entries[index as usize];
        entry.value = Some(value);
        entry.deadline = deadline;
        let id = TimerId { index, generation: entry.generation };
        self.len += 1;
        self.link(index);
        id
    }

    /// Gives a timer another deadline; false if it has fired or was removed.
    ///
    /// This is the call of every message on a connection with an idle limit, so it avoids the lists: only a
    /// deadline before the begin of the timer's slot has to move it.
    pub(crate) fn reset(&mut self, id: TimerId, deadline: Instant) -> bool {
        let deadline = self.deadline_tick(deadline);
        let Some(entry) = self.find(id) else { return false };
        entry.deadline = deadline;
        let slot = entry.slot as usize;
        if deadline < self.slot_begin(slot) {
            self.unlink(id.index);
            self.link(id.index);
        }
        true
    }

    /// Stops a timer and gives its payload back, unless it has fired or was removed.
    pub(crate) fn remove(&mut self, id: TimerId) -> Option<T> {
        self.find(id)?;
        self.take(id.index)
    }

    /// The payload of a waiting timer.
    pub(crate) fn get_mut(&mut self, id: TimerId) -> Option<&mut T> {
        self.find(id)?.value.as_mut()
    }

    /// When to call [`Wheel::expire`] next, `None` if no timer waits.
    ///
    /// Never later than the first timer, but maybe earlier: when the next slot is a coarse one, or its timers
    /// were reset. That call fires nothing, but moves them on, and the next answer is later: after a call of
    /// `expire` that returned false, the answer always lies in the future.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.len == 0 {
            return None;
        }
        let tick = self.slot_begin(self.next_slot()?).max(self.tick);
        Some(self.start + Duration::from_millis(tick))
    }

    /// Moves the payloads of due timers to `out`, at most `budget`, in the order of their deadlines' ticks.
    ///
    /// True if it has to be called again with the same time: more timers are due, or so many had to move to
    /// finer slots that the rest was put off. A `now` before an earlier call's fires nothing.
    pub(crate) fn expire(&mut self, now: Instant, budget: usize, out: &mut Vec<T>) -> bool {
        let now_tick = self.elapsed_ticks(now);
        let mut budget = Budget { fires: budget, moves: MOVES_MAX };
        while let Some(slot) = self.next_slot() {
            let tick = self.slot_begin(slot).max(self.tick);
            if tick > now_tick {
                break;
            }
            self.tick = tick;
            if !self.empty_slot(slot, &mut budget, out) {
                return true;
            }
        }
        // No slot begins in between, so this keeps every timer on the level its deadline asks for.
        self.tick = self.tick.max(now_tick);
        false
    }

    /// Fires or moves every timer of a slot that begins at the current tick; false if the budget ended first.
    ///
    /// A moved timer never comes back to the same slot: its deadline either lies beyond the slot, or differs
    /// from the current tick in a lower digit only.
    fn empty_slot(&mut self, slot: usize, budget: &mut Budget, out: &mut Vec<T>) -> bool {
        while self.slots[slot].first != NONE {
            let index = self.slots[slot].first;
            let due = self.entries[index as usize].deadline <= self.tick;
            let allowance = if due { &mut budget.fires } else { &mut budget.moves };
            if *allowance == 0 {
                return false;
            }
            *allowance -= 1;
            if due {
                out.extend(self.take(index));
            } else {
                self.unlink(index);
                self.link(index);
            }
        }
        true
    }

    /// The occupied slot that begins first.
    fn next_slot(&self) -> Option<usize> {
        // A coarse slot that holds the current tick was left half emptied; its timers may be due before
        // those on finer levels.
        let unfinished = |&level: &usize| self.occupied[level] >> digit(self.tick, level) & 1 == 1;
        if let Some(level) = (1..LEVELS).find(unfinished) {
            return Some(level * SLOTS + digit(self.tick, level));
        }
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        Some(level * SLOTS + self.occupied[level].trailing_zeros() as usize)
    }

    /// The first tick of an occupied slot.
    fn slot_begin(&self, slot: usize) -> u64 {
        let (level, slot) = (slot / SLOTS, slot % SLOTS);
        let shift = DIGIT_BITS * level as u32;
        let round = self.tick >> shift >> DIGIT_BITS;
        (round << DIGIT_BITS | slot as u64) << shift
    }

    /// The slot in which a timer with this deadline has to wait.
    fn slot_for(&self, deadline: u64) -> usize {
        debug_assert!(deadline >= self.tick, "tick {deadline} was passed, now is {}", self.tick);
        let highest_bit = (deadline ^ self.tick).checked_ilog2().unwrap_or(0);
        let level = (highest_bit / DIGIT_BITS) as usize;
        level * SLOTS + digit(deadline, level)
    }

    /// Appends an entry to the list of the slot its deadline asks for.
    fn link(&mut self, index: u32) {
        let slot = self.slot_for(self.entries[index as usize].deadline);
        let list = &mut self.slots[slot];
        let previous = std::mem::replace(&mut list.last, index);
        match previous {
            NONE => list.first = index,
            _ => self.entries[previous as usize].next = index,
        }
        let entry = &mut self.entries[index as usize];
        (entry.previous, entry.next, entry.slot) = (previous, NONE, slot as u16);
        self.occupied[slot / SLOTS] |= 1 << (slot % SLOTS);
    }

    /// Takes an entry out of the list it is in.
    fn unlink(&mut self, index: u32) {
        let Entry { previous, next, slot, .. } = self.entries[index as usize];
        let slot = slot as usize;
        match previous {
            NONE => self.slots[slot].first = next,
            _ => self.entries[previous as usize].next = next,
        }
        match next {
            NONE => self.slots[slot].last = previous,
            _ => self.entries[next as usize].previous = previous,
        }
        if self.slots[slot].first == NONE {
            self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        }
    }

    /// Takes a waiting timer out of the wheel and frees its place.
    fn take(&mut self, index: u32) -> Option<T> {
        self.unlink(index);
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = std::mem::replace(&mut self.free, index);
        self.len -= 1;
        entry.value.take()
    }

    /// A place for a new timer: one that was used before, or a new one.
    fn take_free(&mut self) -> u32 {
        if self.free != NONE {
            let index = self.free;
            self.free = self.entries[index as usize].next;
            return index;
        }
        assert!(self.entries.len() < NONE as usize, "a wheel holds less than 2^32 timers");
        let index = self.entries.len() as u32;
        self.entries.push(Entry {
            value: None,
            deadline: 0,
            generation: 0,
            previous: NONE,
            next: NONE,
            slot: 0,
        });
        index
    }

    /// The entry of a timer that still waits.
    fn find(&mut self, id: TimerId) -> Option<&mut Entry<T>> {
        let entry = self.entries.get_mut(id.index as usize)?;
        (entry.generation == id.generation && entry.value.is_some()).then_some(entry)
    }

    /// The tick at which a timer with this deadline fires.
    fn deadline_tick(&self, deadline: Instant) -> u64 {
        let span = deadline.saturating_duration_since(self.start);
        let part_ms = u64::from(span.subsec_nanos()).div_ceil(1_000_000);
        let tick = span.as_secs().saturating_mul(1000).saturating_add(part_ms);
        tick.clamp(self.tick, TICK_MAX)
    }

    /// How many ticks have passed completely.
    fn elapsed_ticks(&self, now: Instant) -> u64 {
        let span = now.saturating_duration_since(self.start);
        let tick = span.as_secs().saturating_mul(1000).saturating_add(u64::from(span.subsec_millis()));
        tick.min(TICK_MAX)
    }
}

impl<T> fmt::Debug for Wheel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wheel").field("len", &self.len).field("tick", &self.tick).finish_non_exhaustive()
    }
}

/// The slot of a tick on a level.
fn digit(tick: u64, level: usize) -> usize {
    (tick >> (DIGIT_BITS * level as u32)) as usize % SLOTS
}

#[cfg(test)]
mod tests;
