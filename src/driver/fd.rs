//! [`FdRef`]: a descriptor that operations keep open.
//!
//! The counted descriptors of a driver lie in chunks that its [`Census`] owns: an open connection takes a small place
//! there instead of an allocation of its own. Chunks never move and are freed with the census, which each taken place
//! keeps alive; so a reference may outlive the driver.
#![allow(unsafe_code)]

use super::sys::descriptor::Descriptor;
use super::sys::os::Raw;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::rc::Rc;

/// The descriptors under a driver's care, and how many came and left.
pub(crate) struct Census {
    pub(crate) opened: Cell<u64>,
    pub(crate) closed: Cell<u64>,
    /// Registrations of descriptors that were closed by dropping them.
    pub(crate) left_behind: RefCell<Vec<u32>>,
    chunks: RefCell<Vec<NonNull<Chunk>>>,
    /// The first free place; each free place names the next one.
    free: Cell<u32>,
}

/// Places of a chunk; which one of them a place is fits into a byte.
const CHUNK_PLACES: usize = 256;
/// No place, or no registration.
const NONE: u32 = u32::MAX;

#[repr(C)]
struct Chunk {
    /// Of each taken place one count is held.
    census: *const Census,
    /// How many chunks are before it.
    number: u32,
    places: [Shared; CHUNK_PLACES],
}

/// A place for a descriptor, free or taken.
struct Shared {
    /// None if it is free.
    references: Cell<u32>,
    /// Where the readiness backend keeps its queues for this descriptor; of a free place, the next free one.
    link: Cell<u32>,
    fd: Option<Descriptor>,
    /// Which one of its chunk it is.
    place: u8,
    /// Counted as gone already.
    left: Cell<bool>,
}

/// Three words of four bytes beside the descriptor, which is another one, or longer with simulated ones.
const _: () = assert!(
    size_of::<Shared>() <= (size_of::<Option<Descriptor>>() + 12).next_multiple_of(align_of::<Shared>())
);

impl Default for Census {
    fn default() -> Census {
        Census {
            opened: Cell::default(),
            closed: Cell::default(),
            left_behind: RefCell::default(),
            chunks: RefCell::default(),
            free: Cell::new(NONE),
        }
    }
}

impl Census {
    /// Puts a descriptor into a free place, which has one reference then.
    fn take_place(self: &Rc<Self>, fd: Descriptor) -> NonNull<Shared> {
        if self.free.get() == NONE {
            self.add_chunk();
        }
        let index = self.free.get();
        let chunk = self.chunks.borrow()[index as usize / CHUNK_PLACES];
        // The place's count of the census; `Shared::end` takes it back.
        let _ = Rc::into_raw(Rc::clone(self));
        // SAFETY: invariant 1: chunks live as long as the census, and nothing refers to a free place.
        unsafe {
            let shared =
                (&raw mut (*chunk.as_ptr()).places).cast::<Shared>().add(index as usize % CHUNK_PLACES);
            self.free.set((*shared).link.replace(NONE));
            (*shared).references.set(1);
            (*shared).left.set(false);
            (*shared).fd = Some(fd);
            NonNull::new_unchecked(shared)
        }
    }

    fn add_chunk(self: &Rc<Self>) {
        let mut chunks = self.chunks.borrow_mut();
        // An index is shorter than the places are long: memory ends first.
        let first = u32::try_from(chunks.len() * CHUNK_PLACES).expect("fewer descriptors than indices");
        let places = std::array::from_fn(|place| Shared {
            references: Cell::new(0),
            link: Cell::new(if place + 1 < CHUNK_PLACES { first + place as u32 + 1 } else { NONE }),
            fd: None,
            place: place as u8,
            left: Cell::new(false),
        });
        let chunk = Box::new(Chunk { census: Rc::as_ptr(self), number: chunks.len() as u32, places });
        chunks.push(NonNull::from(Box::leak(chunk)));
        self.free.set(first);
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        for chunk in self.chunks.take() {
            // SAFETY: invariant 1: a taken place holds a count of the census, so all places are free; the chunk came
            // from a box.
            drop(unsafe { Box::from_raw(chunk.as_ptr()) });
        }
    }
}

impl fmt::Debug for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Census({} opened, {} closed)", self.opened.get(), self.closed.get())
    }
}

impl Shared {
    /// The last reference has gone: closes the descriptor, unless somebody has taken it, and frees the place.
    #[cold]
    fn end(this: NonNull<Shared>) {
        // SAFETY: invariant 1: the place is taken until the end of this function, so its census and chunk live; it lies
        // in the array of its chunk at the position that it says. The reference was the last, so nobody else looks at
        // the place.
        let (census, number, shared) = unsafe {
            let shared = &mut *this.as_ptr();
            let places = this.as_ptr().sub(usize::from(shared.place));
            let chunk = places.byte_sub(offset_of!(Chunk, places)).cast::<Chunk>();
            (Rc::from_raw((*chunk).census), (*chunk).number, shared)
        };
        if !shared.left.get() {
            census.closed.set(census.closed.get() + 1);
        }
        let registration = shared.link.get();
        census.left_behind.borrow_mut().extend((registration != NONE).then_some(registration));
        drop(shared.fd.take());
        shared.link.set(census.free.get());
        census.free.set(number * CHUNK_PLACES as u32 + u32::from(shared.place));
    }
}

/// A reference to a descriptor. The descriptor closes when its last reference goes, and each operation in flight
/// holds one (invariant 1).
pub struct FdRef(NonNull<Shared>);

impl FdRef {
    pub(crate) fn new(fd: Descriptor, census: &Rc<Census>) -> FdRef {
        census.opened.set(census.opened.get() + 1);
        FdRef(census.take_place(fd))
    }

    #[inline]
    fn shared(&self) -> &Shared {
        // SAFETY: invariant 1: the place stays taken, and is not written to but through cells, while a reference to it
        // is there.
        unsafe { self.0.as_ref() }
    }

    /// The descriptor itself, if this is its only reference.
    pub(crate) fn into_owned(self) -> Result<Descriptor, FdRef> {
        if !self.is_unique() {
            return Err(self);
        }
        // SAFETY: invariant 1: this is the only reference, and nobody has borrowed from it.
        let fd = unsafe { (*self.0.as_ptr()).fd.take() };
        Ok(fd.expect("a live descriptor is open"))
    }

    /// The descriptor, for calls on it.
    #[inline]
    pub(crate) fn descriptor(&self) -> &Descriptor {
        self.shared().fd.as_ref().expect("a live descriptor is open")
    }

    /// What the system knows it by.
    pub(crate) fn raw(&self) -> Raw {
        self.descriptor().raw()
    }

    /// The descriptor leaves the driver's care though somebody still holds it.
    pub(crate) fn leave(&self, census: &Census) {
        if !self.shared().left.replace(true) {
            census.closed.set(census.closed.get() + 1);
        }
    }

    /// Whether this is the only reference.
    pub(crate) fn is_unique(&self) -> bool {
        self.shared().references.get() == 1
    }

    #[inline]
    pub(crate) fn registration(&self) -> Option<u32> {
        Some(self.shared().link.get()).filter(|registration| *registration != NONE)
    }

    pub(crate) fn set_registration(&self, registration: Option<u32>) {
        self.shared().link.set(registration.unwrap_or(NONE));
    }
}

impl Clone for FdRef {
    #[inline]
    fn clone(&self) -> FdRef {
        let references = &self.shared().references;
        // References that were leaked may be many.
        references.set(references.get().checked_add(1).expect("fewer than 2^32 references"));
        FdRef(self.0)
    }
}

impl Drop for FdRef {
    #[inline]
    fn drop(&mut self) {
        let left = self.shared().references.get() - 1;
        self.shared().references.set(left);
        if left == 0 {
            Shared::end(self.0);
        }
    }
}

impl fmt::Debug for FdRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FdRef").field(self.descriptor()).finish()
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
    fn a_descriptor_outlives_the_care_of_its_driver() {
        let census = Rc::default();
        let fds: Vec<_> = (0..3).map(|_| open(&census)).collect();
        let weak = Rc::downgrade(&census);
        drop(census);
        assert!(fds.iter().all(|fd| fd.descriptor().to_file().is_ok()));
        drop(fds);
        assert!(weak.upgrade().is_none(), "the last descriptor takes the census with it");
    }

    #[test]
    fn places_are_used_anew_and_never_shared() {
        let census = Rc::default();
        let mut fds: Vec<FdRef> = (0..CHUNK_PLACES + 1).map(|_| open(&census)).collect();
        assert_eq!(census.chunks.borrow().len(), 2);
        fds[CHUNK_PLACES].set_registration(Some(7));
        let mut index = 0;
        fds.retain(|_| {
            index += 1;
            index % 8 != 0
        });
        fds.extend((fds.len()..CHUNK_PLACES + 1).map(|_| open(&census)));
        let numbers: std::collections::HashSet<_> = fds.iter().map(FdRef::raw).collect();
        assert_eq!(numbers.len(), fds.len(), "each reference names a descriptor of its own");
        assert!(fds.iter().all(FdRef::is_unique));
        assert_eq!(fds.iter().filter_map(FdRef::registration).collect::<Vec<_>>(), [7]);
        assert_eq!(census.chunks.borrow().len(), 2);
        assert_eq!(census.opened.get() - census.closed.get(), fds.len() as u64);
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
