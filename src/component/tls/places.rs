//! A bounded number of places, given out in the order in which they were asked for.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// The places.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    taken: Cell<usize>,
    line: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

impl Places {
    pub(super) fn new(max: usize) -> Places {
        Places { max, taken: Cell::new(0), line: RefCell::default(), next: Cell::new(0) }
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Waits for a place.
    pub(super) fn take(&self) -> Turn<'_> {
        Turn { places: self, number: None }
    }

    /// Wakes whoever is first in line, if there is a place.
    fn wake_first(&self) {
        if self.taken.get() < self.max {
            let first = self.line.borrow().front().map(|(_, waker)| waker.clone());
            // Not under the borrow: a waker may be foreign code.
            if let Some(waker) = first {
                waker.wake();
            }
        }
    }
}

/// Stands in line for a place. Dropping it leaves the line.
pub(super) struct Turn<'a> {
    places: &'a Places,
    /// Its number, while it stands in line.
    number: Option<u64>,
}

impl<'a> Turn<'a> {
    fn stands_first(&self) -> bool {
        self.places.line.borrow().front().map(|(first, _)| *first) == self.number
    }

    fn stand(&mut self, waker: &Waker) {
        let mut line = self.places.line.borrow_mut();
        let own = self.number;
        if let Some((_, place)) = line.iter_mut().find(|(number, _)| Some(*number) == own) {
            place.clone_from(waker);
            return;
        }
        let number = self.places.next.get();
        self.places.next.set(number + 1);
        self.number = Some(number);
        line.push_back((number, waker.clone()));
    }

    fn leave(&mut self) {
        if let Some(own) = self.number.take() {
            self.places.line.borrow_mut().retain(|(number, _)| *number != own);
        }
    }
}

impl<'a> Future for Turn<'a> {
    type Output = Place<'a>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Place<'a>> {
        let places = self.places;
        // Who has no number comes after all who have one.
        if places.taken.get() >= places.max || !self.stands_first() {
            self.stand(context.waker());
            return Poll::Pending;
        }
        self.leave();
        places.taken.set(places.taken.get() + 1);
        places.wake_first();
        Poll::Ready(Place { places })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.number.is_some() {
            self.leave();
            self.places.wake_first();
        }
    }
}

/// A place. Dropping it gives it to the next in line.
pub(super) struct Place<'a> {
    places: &'a Places,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.taken.set(self.places.taken.get() - 1);
        self.places.wake_first();
    }
}
