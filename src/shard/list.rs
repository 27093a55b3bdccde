//! The queues of all endpoints of a shard, as lists in one table.
//!
//! An endpoint holds the end of its [`List`], four bytes; the items lie in the shard's [`Nodes`], in a ring: the last one
//! names the first. So an endpoint whose queues are empty owns no memory for them, and a queue that fills and empties
//! with each message allocates nothing: the node that was freed last is the next one taken.
#![forbid(unsafe_code)]

use slab::Slab;

const NONE: u32 = u32::MAX;

/// The end of a list whose items lie in a [`Nodes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    last: u32,
}

impl Default for List {
    fn default() -> List {
        List { last: NONE }
    }
}

impl List {
    pub(crate) fn is_empty(&self) -> bool {
        self.last == NONE
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
    /// The one behind it; behind the last one comes the first.
    next: u32,
}

impl<T> Default for Nodes<T> {
    fn default() -> Nodes<T> {
        Nodes { table: Slab::new() }
    }
}

impl<T> Nodes<T> {
    /// Puts an item between the last one of a list and the first.
    #[inline]
    fn insert(&mut self, list: List, item: T) -> u32 {
        let index = self.table.vacant_key();
        // A node is larger than an index is long: memory ends first.
        let index =
            u32::try_from(index).ok().filter(|index| *index != NONE).expect("fewer items than indices");
        let next = match list.is_empty() {
            true => index,
            false => std::mem::replace(&mut self.table[list.last as usize].next, index),
        };
        self.table.insert(Node { item, next });
        index
    }

    #[inline]
    pub(crate) fn push_back(&mut self, list: &mut List, item: T) {
        list.last = self.insert(*list, item);
    }

    #[inline]
    pub(crate) fn push_front(&mut self, list: &mut List, item: T) {
        let first = self.insert(*list, item);
        if list.is_empty() {
            list.last = first;
        }
    }

    #[inline]
    pub(crate) fn pop_front(&mut self, list: &mut List) -> Option<T> {
        if list.is_empty() {
            return None;
        }
        Some(self.remove_behind(list, list.last))
    }

    /// Takes out the item behind the one at `before`, which is that one itself if it is the only one.
    #[inline]
    fn remove_behind(&mut self, list: &mut List, before: u32) -> T {
        let at = self.table[before as usize].next;
        let Node { item, next } = self.table.remove(at as usize);
        if at == before {
            list.last = NONE;
            return item;
        }
        self.table[before as usize].next = next;
        if at == list.last {
            list.last = before;
        }
        item
    }

    /// The place of the first item of a list that `matches`, and that of the one before it.
    fn find(&self, list: &List, mut matches: impl FnMut(&T) -> bool) -> Option<(u32, u32)> {
        let mut before = list.last;
        while !list.is_empty() {
            let at = self.table[before as usize].next;
            if matches(&self.table[at as usize].item) {
                return Some((before, at));
            }
            if at == list.last {
                break;
            }
            before = at;
        }
        None
    }

    /// Whether a list has exactly one item.
    #[inline]
    pub(crate) fn is_single(&self, list: &List) -> bool {
        !list.is_empty() && self.table[list.last as usize].next == list.last
    }

    pub(crate) fn front(&self, list: &List) -> Option<&T> {
        self.iter(list).next()
    }

    pub(crate) fn back_mut(&mut self, list: &List) -> Option<&mut T> {
        self.table.get_mut(list.last as usize).filter(|_| !list.is_empty()).map(|node| &mut node.item)
    }

    /// The items of a list, in order.
    #[inline]
    pub(crate) fn iter(&self, list: &List) -> impl Iterator<Item = &T> {
        let last = list.last;
        let mut before = Some(last).filter(|last| *last != NONE);
        std::iter::from_fn(move || {
            let at = self.table[before? as usize].next;
            before = Some(at).filter(|at| *at != last);
            Some(&self.table[at as usize].item)
        })
    }

    /// Changes each item of a list, in order.
    pub(crate) fn for_each_mut(&mut self, list: &List, mut change: impl FnMut(&mut T)) {
        let mut at = list.last;
        while !list.is_empty() {
            at = self.table[at as usize].next;
            change(&mut self.table[at as usize].item);
            if at == list.last {
                break;
            }
        }
    }

    /// The first item of a list that `matches`.
    pub(crate) fn find_mut(&mut self, list: &List, matches: impl FnMut(&T) -> bool) -> Option<&mut T> {
        let (_, at) = self.find(list, matches)?;
        Some(&mut self.table[at as usize].item)
    }

    /// Takes the first item that `matches` out of a list.
    pub(crate) fn remove_first(&mut self, list: &mut List, matches: impl FnMut(&T) -> bool) -> Option<T> {
        let (before, _) = self.find(list, matches)?;
        Some(self.remove_behind(list, before))
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
                prop_assert_eq!((list.is_empty(), nodes.is_single(list)), (model.is_empty(), model.len() == 1));
            }
            for (list, model) in lists.iter_mut().zip(models) {
                prop_assert!(nodes.drain(list).eq(model));
                prop_assert!(list.is_empty());
            }
            prop_assert!(nodes.table.is_empty());
        }
    }
}
