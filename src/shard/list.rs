//! The queues of all endpoints of a shard, as lists in one table.
//!
//! An endpoint holds the two ends of its [`List`], eight bytes; the items lie in the shard's [`Nodes`]. So an endpoint
//! whose queues are empty owns no memory for them, and a queue that fills and empties with each message allocates
//! nothing: the node that was freed last is the next one taken.
#![forbid(unsafe_code)]

use slab::Slab;

const NONE: u32 = u32::MAX;

/// The ends of a list whose items lie in a [`Nodes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
}

impl Default for List {
    fn default() -> List {
        List { head: NONE, tail: NONE }
    }
}

impl List {
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// Whether it has exactly one item.
    pub(crate) fn is_single(&self) -> bool {
        self.head == self.tail && self.head != NONE
    }
}

/// The items of many lists.
#[derive(Debug)]
pub(crate) struct Nodes<T> {
    table: Slab<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    item: T,
    next: u32,
}

impl<T> Default for Nodes<T> {
    fn default() -> Nodes<T> {
        Nodes { table: Slab::new() }
    }
}

impl<T> Nodes<T> {
    fn insert(&mut self, item: T, next: u32) -> u32 {
        let index = self.table.insert(Node { item, next });
        // A node is larger than an index is long: memory ends first.
        u32::try_from(index).ok().filter(|index| *index != NONE).expect("fewer items than indices")
    }

    #[inline]
    pub(crate) fn push_back(&mut self, list: &mut List, item: T) {
        let index = self.insert(item, NONE);
        if list.is_empty() {
            list.head = index;
        } else {
            self.table[list.tail as usize].next = index;
        }
        list.tail = index;
    }

    #[inline]
    pub(crate) fn push_front(&mut self, list: &mut List, item: T) {
        list.head = self.insert(item, list.head);
        if list.tail == NONE {
            list.tail = list.head;
        }
    }

    #[inline]
    pub(crate) fn pop_front(&mut self, list: &mut List) -> Option<T> {
        if list.is_empty() {
            return None;
        }
        let Node { item, next } = self.table.remove(list.head as usize);
        list.head = next;
        if next == NONE {
            list.tail = NONE;
        }
        Some(item)
    }

    pub(crate) fn front(&self, list: &List) -> Option<&T> {
        self.table.get(list.head as usize).filter(|_| !list.is_empty()).map(|node| &node.item)
    }

    pub(crate) fn back_mut(&mut self, list: &List) -> Option<&mut T> {
        self.table.get_mut(list.tail as usize).filter(|_| !list.is_empty()).map(|node| &mut node.item)
    }

    /// The items of a list, in order.
    #[inline]
    pub(crate) fn iter(&self, list: &List) -> impl Iterator<Item = &T> {
        let mut at = list.head;
        std::iter::from_fn(move || {
            let node = (at != NONE).then(|| &self.table[at as usize])?;
            at = node.next;
            Some(&node.item)
        })
    }

    /// Changes each item of a list, in order.
    pub(crate) fn for_each_mut(&mut self, list: &List, mut change: impl FnMut(&mut T)) {
        let mut at = list.head;
        while at != NONE {
            let node = &mut self.table[at as usize];
            change(&mut node.item);
            at = node.next;
        }
    }

    /// The first item of a list that `matches`.
    pub(crate) fn find_mut(&mut self, list: &List, mut matches: impl FnMut(&T) -> bool) -> Option<&mut T> {
        let mut at = list.head;
        while at != NONE && !matches(&self.table[at as usize].item) {
            at = self.table[at as usize].next;
        }
        (at != NONE).then(|| &mut self.table[at as usize].item)
    }

    /// Takes the first item that `matches` out of a list.
    pub(crate) fn remove_first(&mut self, list: &mut List, mut matches: impl FnMut(&T) -> bool) -> Option<T> {
        let (mut before, mut at) = (NONE, list.head);
        while at != NONE && !matches(&self.table[at as usize].item) {
            (before, at) = (at, self.table[at as usize].next);
        }
        if at == NONE || before == NONE {
            return if at == NONE { None } else { self.pop_front(list) };
        }
        let Node { item, next } = self.table.remove(at as usize);
        self.table[before as usize].next = next;
        if next == NONE {
            list.tail = before;
        }
        Some(item)
    }

    /// Takes everything out of a list, in order.
    pub(crate) fn drain(&mut self, list: &mut List) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.pop_front(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn lists_in_one_table_are_queues(steps in prop::collection::vec((0..3usize, 0..9u8), 0..400)) {
            let mut nodes = Nodes::default();
            let mut lists = [List::default(); 3];
            let mut models: [VecDeque<usize>; 3] = Default::default();
            for (item, (which, step)) in steps.into_iter().enumerate() {
                let (list, model) = (&mut lists[which], &mut models[which]);
                match step {
                    0 | 1 => {
                        nodes.push_back(list, item);
                        model.push_back(item);
                    }
                    2 => {
                        nodes.push_front(list, item);
                        model.push_front(item);
                    }
                    3 => {
                        // Of the items in the list a part matches: one at the front, in the middle, at the back, or none.
                        let matches = |other: &usize| other % 5 == item % 5;
                        let place = model.iter().position(matches);
                        let removed = place.and_then(|place| model.remove(place));
                        prop_assert_eq!(nodes.remove_first(list, matches), removed);
                    }
                    4 => {
                        let matches = |other: &usize| other % 5 == item % 5;
                        let (found, expected) = (nodes.find_mut(list, matches), model.iter_mut().find(|one| matches(one)));
                        prop_assert_eq!(&found, &expected);
                        found.into_iter().chain(expected).for_each(|one| *one += 1);
                    }
                    5 => {
                        nodes.for_each_mut(list, |one| *one += item);
                        model.iter_mut().for_each(|one| *one += item);
                    }
                    _ => prop_assert_eq!(nodes.pop_front(list), model.pop_front()),
                }
                prop_assert!(nodes.iter(list).eq(model.iter()));
                prop_assert_eq!(nodes.back_mut(list), model.back_mut());
                prop_assert_eq!(nodes.front(list), model.front());
                prop_assert_eq!((list.is_empty(), list.is_single()), (model.is_empty(), model.len() == 1));
            }
            for (list, model) in lists.iter_mut().zip(models) {
                prop_assert!(nodes.drain(list).eq(model));
                prop_assert!(list.is_empty());
            }
            prop_assert!(nodes.table.is_empty());
        }
    }
}
