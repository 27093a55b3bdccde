//! [`Pages`]: a table of fixed size whose memory is taken a page at a time, as it is first used, and never moves.
#![forbid(unsafe_code)]

use std::ops::Index;
use std::sync::OnceLock;

/// Items by index, shared by threads; each begins as its default.
pub(super) struct Pages<T> {
    pages: Box<[OnceLock<Box<[T]>>]>,
    per_page: usize,
}

impl<T: Default> Pages<T> {
    /// A table of `count` items, `per_page` of which are made at once.
    pub(super) fn new(count: usize, per_page: usize) -> Pages<T> {
        Pages { pages: (0..count.div_ceil(per_page)).map(|_| OnceLock::new()).collect(), per_page }
    }

    /// The item, if its page has been used before.
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        let page = self.pages.get(index / self.per_page)?.get()?;
        page.get(index % self.per_page)
    }

    /// The items of pages that have been used.
    pub(super) fn used(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().filter_map(OnceLock::get).flatten()
    }
}

/// The item, whose page is made if it must be.
impl<T: Default> Index<usize> for Pages<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        let make = || (0..self.per_page).map(|_| T::default()).collect();
        &self.pages[index / self.per_page].get_or_init(make)[index % self.per_page]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_page_is_made_when_it_is_first_used() {
        let pages: Pages<AtomicUsize> = Pages::new(10, 4);
        assert!(pages.get(5).is_none() && pages.get(50).is_none());
        pages[5].store(7, Ordering::Relaxed);
        assert_eq!(pages.get(5).unwrap().load(Ordering::Relaxed), 7);
        assert_eq!(pages.used().count(), 4);
        assert!(pages.get(9).is_none());
    }
}
