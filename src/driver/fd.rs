//! [`FdRef`]: a descriptor that operations keep open.
#![forbid(unsafe_code)]

use super::sys::descriptor::Descriptor;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;

/// How many descriptors came under a driver's care and left it.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) opened: Cell<u64>,
    pub(crate) closed: Cell<u64>,
    /// Registrations of descriptors that were closed by dropping them.
    pub(crate) left_behind: RefCell<Vec<u32>>,
}

/// A reference to a descriptor. The descriptor closes when its last reference goes, and each operation in flight
/// holds one (invariant 1).
#[derive(Clone, Debug)]
pub struct FdRef(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    fd: Option<Descriptor>,
    /// Where the readiness backend keeps its queues for this descriptor.
    registration: Cell<Option<u32>>,
    /// Counted as gone already.
    left: Cell<bool>,
    census: Rc<Census>,
}

impl FdRef {
    pub(crate) fn new(fd: Descriptor, census: &Rc<Census>) -> FdRef {
        census.opened.set(census.opened.get() + 1);
        let shared = Shared {
            fd: Some(fd),
            registration: Cell::new(None),
            left: Cell::new(false),
            census: Rc::clone(census),
        };
        FdRef(Rc::new(shared))
    }

    /// The descriptor itself, if this is its only reference.
    pub(crate) fn into_owned(self) -> Result<Descriptor, FdRef> {
        let mut shared = Rc::try_unwrap(self.0).map_err(FdRef)?;
        Ok(shared.fd.take().expect("a live descriptor is open"))
    }

    /// The descriptor, for calls on it.
    #[inline]
    pub(crate) fn descriptor(&self) -> &Descriptor {
        self.0.fd.as_ref().expect("a live descriptor is open")
    }

    /// The descriptor leaves the driver's care though somebody still holds it.
    pub(crate) fn leave(&self) {
        if !self.0.left.replace(true) {
            self.0.census.closed.set(self.0.census.closed.get() + 1);
        }
    }

    /// Whether this is the only reference.
    pub(crate) fn is_unique(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }

    pub(crate) fn registration(&self) -> Option<u32> {
        self.0.registration.get()
    }

    pub(crate) fn set_registration(&self, registration: Option<u32>) {
        self.0.registration.set(registration);
    }
}

impl AsFd for FdRef {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor().as_fd()
    }
}

impl AsRawFd for FdRef {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.left.get() {
            self.census.closed.set(self.census.closed.get() + 1);
        }
        self.census.left_behind.borrow_mut().extend(self.registration.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(census: &Rc<Census>) -> FdRef {
        let file = std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("a file");
        FdRef::new(file.into(), census)
    }

    #[test]
    fn a_descriptor_closes_with_its_last_reference() {
        let census = Rc::default();
        let first = open(&census);
        let second = first.clone();
        drop(first);
        assert_eq!((census.opened.get(), census.closed.get()), (1, 0));
        drop(second);
        assert_eq!(census.closed.get(), 1);
    }

    #[test]
    fn only_the_last_reference_can_give_the_descriptor_away() {
        let census = Rc::default();
        let first = open(&census);
        let second = first.clone();
        let first = first.into_owned().expect_err("another holds it");
        drop(second);
        assert!(first.is_unique());
        let owned = first.into_owned().expect("nobody else holds it");
        assert_eq!(census.closed.get(), 1, "what is given away has left the driver's care");
        drop(owned);
    }

    #[test]
    fn a_registration_is_told_when_its_descriptor_is_dropped() {
        let census = Rc::default();
        let (registered, other) = (open(&census), open(&census));
        registered.set_registration(Some(7));
        drop((registered, other));
        assert_eq!(*census.left_behind.borrow(), [7]);
    }
}
