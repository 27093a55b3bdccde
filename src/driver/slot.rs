//! The slot table: where operations live while the kernel works on them.
//!
//! A slot owns its operation, and with it the operation's buffers and a reference to its descriptor, from
//! submit to the terminal completion (invariant 1). The table is sized once and refuses beyond (`Full`), so a
//! slot never moves. Memory that the kernel reads or writes besides the buffers (addresses, message headers)
//! is one [`Scratch`] per slot, kept apart from the operations and reached by raw pointer only.
#![allow(unsafe_code)]

use super::op::Op;
use super::sys::os::libc;
use super::token::Token;
use crate::error::Full;
use slab::Slab;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

/// What the kernel may read or write for an operation besides its buffers.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) header: libc::msghdr,
    pub(crate) vector: libc::iovec,
    pub(crate) address: libc::sockaddr_storage,
}

/// An operation in flight.
pub(crate) struct Slot {
    generation: u32,
    state: State,
    /// How the backend encoded it.
    pub(crate) mark: u8,
    /// Somebody asked for its end; an emulated standing operation then does not go on.
    pub(crate) cancel_asked: bool,
    /// The ring had no room: its entry waits in the backlog, unseen by the kernel.
    pub(crate) waiting: bool,
    pub(crate) owner: u64,
    pub(crate) op: Op,
}

/// The life cycle of a slot; it ends at the terminal completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Its completions are delivered.
    Wanted,
    /// Nobody wants its completions: what they carry is given back.
    Abandoned,
}

/// A cache line.
const _: () = assert!(size_of::<Slot>() <= 64);

/// The table of operations in flight.
pub(crate) struct Slots {
    slots: Slab<Slot>,
    scratch: Box<[UnsafeCell<MaybeUninit<Scratch>>]>,
    capacity: usize,
    generation: u32,
    reach: usize,
}

impl Slots {
    /// A table for `capacity` operations. Memory is taken from the system as slots are first used.
    pub(crate) fn new(capacity: usize) -> Slots {
        let scratch = Box::<[UnsafeCell<MaybeUninit<Scratch>>]>::new_uninit_slice(capacity);
        // SAFETY: invariant 1 (slot memory): an `UnsafeCell<MaybeUninit<_>>` needs no initialisation.
        let scratch = unsafe { scratch.assume_init() };
        Slots { slots: Slab::with_capacity(capacity), scratch, capacity, generation: 0, reach: 0 }
    }

    /// Operations in flight.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes an operation; gives it back if the table is full.
    #[inline]
    pub(crate) fn insert(&mut self, op: Op, owner: u64) -> Result<Token, Full<Op>> {
        if self.slots.len() == self.capacity {
            return Err(Full(op));
        }
        // Never zero, so that a token is not.
        self.generation = self.generation.wrapping_add(1).max(1);
        let slot = Slot {
            generation: self.generation,
            state: State::Wanted,
            mark: 0,
            cancel_asked: false,
            waiting: false,
            owner,
            op,
        };
        let index = self.slots.insert(slot);
        self.reach = self.reach.max(index + 1);
        Ok(Token::new(index, self.generation))
    }

    /// The slot that `token` names, unless its operation has ended.
    #[inline]
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut Slot> {
        self.slots.get_mut(token.index()).filter(|slot| slot.generation == token.generation())
    }

    /// The operation and the scratch memory of its slot.
    #[inline]
    pub(crate) fn parts(&mut self, token: Token) -> Option<(&mut Op, *mut Scratch)> {
        self.with_scratch(token).map(|(slot, scratch)| (&mut slot.op, scratch))
    }

    /// A slot and its scratch memory.
    #[inline]
    pub(crate) fn with_scratch(&mut self, token: Token) -> Option<(&mut Slot, *mut Scratch)> {
        let scratch = self.scratch.get(token.index())?.get().cast::<Scratch>();
        self.get_mut(token).map(|slot| (slot, scratch))
    }

    /// Ends an operation.
    #[inline]
    pub(crate) fn remove(&mut self, token: Token) -> Option<Slot> {
        self.get_mut(token)?;
        Some(self.slots.remove(token.index()))
    }

    /// Operations in flight in a part of the table.
    pub(crate) fn part(&self, from: usize, count: usize) -> impl Iterator<Item = (Token, &Op)> {
        let part = from..self.reach.min(from.saturating_add(count));
        part.filter_map(|index| {
            let slot = self.slots.get(index)?;
            Some((Token::new(index, slot.generation), &slot.op))
        })
    }

    /// No slot beyond was ever taken.
    pub(crate) fn reach(&self) -> usize {
        self.reach
    }

    /// The operations in flight.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.slots.iter().map(|(index, slot)| Token::new(index, slot.generation)).collect()
    }
}

impl Slot {
    pub(crate) fn abandon(&mut self) {
        self.state = State::Abandoned;
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.state == State::Abandoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::op::Nop;

    #[test]
    fn a_full_table_gives_the_operation_back() {
        let mut slots = Slots::new(2);
        let first = slots.insert(Op::from(Nop), 1).unwrap();
        slots.insert(Op::from(Nop), 2).unwrap();
        assert!(matches!(slots.insert(Op::from(Nop), 3), Err(Full(Op::Nop(_)))));
        assert_eq!(slots.remove(first).unwrap().owner, 1);
        assert!(slots.insert(Op::from(Nop), 3).is_ok());
    }

    #[test]
    fn a_token_of_an_ended_operation_names_nothing() {
        let mut slots = Slots::new(1);
        let old = slots.insert(Op::from(Nop), 1).unwrap();
        slots.remove(old);
        let new = slots.insert(Op::from(Nop), 2).unwrap();
        assert_eq!(old.index(), new.index());
        assert!(slots.get_mut(old).is_none());
        assert!(slots.remove(old).is_none());
        assert!(slots.parts(old).is_none());
        assert_eq!(slots.get_mut(new).unwrap().owner, 2);
    }

    #[test]
    fn scratch_memory_stays_where_it_is_while_slots_come_and_go() {
        let mut slots = Slots::new(64);
        let kept = slots.insert(Op::from(Nop), 0).unwrap();
        let (_, before) = slots.parts(kept).unwrap();
        // SAFETY: the scratch of a slot in use is this test's alone; no kernel operation refers to it.
        unsafe { (*before).vector.iov_len = 77 };
        for round in 1..50 {
            let tokens: Vec<_> = (0..63).map(|_| slots.insert(Op::from(Nop), round).unwrap()).collect();
            tokens.into_iter().for_each(|token| drop(slots.remove(token)));
        }
        let (_, after) = slots.parts(kept).unwrap();
        assert_eq!(before, after);
        // SAFETY: as above; the field was written before.
        assert_eq!(unsafe { (*after).vector.iov_len }, 77);
    }
}
