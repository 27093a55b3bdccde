//! Who tells which descriptors are ready: epoll on Linux, the `polling` crate elsewhere.
//!
//! On Linux each wait is one system call, and an event says whether the peer has ended its side (`EPOLLRDHUP`); so a
//! receive that got less than it asked for need not be tried again to know that there is no more.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What happened to a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// The key that it was added with.
    pub(crate) key: usize,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// A receive that got less than it asked for may have left something: the end of the stream, an error, or what is
    /// behind urgent data.
    pub(crate) has_end: bool,
}

/// Watches descriptors.
#[derive(Debug)]
pub(crate) struct Poller(inner::Poller);

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        inner::Poller::new().map(Poller)
    }

    /// Whether an event is told once each time a descriptor becomes ready, rather than once for each
    /// [`set_interest`](Self::set_interest).
    pub(crate) fn has_edges(&self) -> bool {
        self.0.has_edges()
    }

    /// Watches a descriptor, with edges in both directions; without edges in none yet. Fails with `PermissionDenied`
    /// for what is always ready.
    ///
    /// # Safety
    ///
    /// It is [deleted](Self::delete) before it is closed, or nobody mistakes its events for those of another
    /// (invariant 10).
    pub(crate) unsafe fn add(&self, fd: BorrowedFd<'_>, key: usize) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(fd, key) }
    }

    /// Without edges: asks for the next event of these directions.
    pub(crate) fn set_interest(&self, fd: BorrowedFd<'_>, key: usize, directions: [bool; 2]) {
        self.0.set_interest(fd, key, directions);
    }

    /// Watches a descriptor no more. It does not matter if it was not watched.
    pub(crate) fn delete(&self, fd: BorrowedFd<'_>) {
        self.0.delete(fd);
    }

    /// Waits until something happens, at most for `timeout`, or until [`notify`](Self::notify) is called, now or before.
    /// The end of a time-out is rounded up to milliseconds.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>, each: impl FnMut(Event)) -> io::Result<()> {
        match self.0.wait(timeout, each) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            waited => waited,
        }
    }

    /// What ends the wait from any thread.
    pub(crate) fn notifier(&self) -> Notifier {
        Notifier(self.0.notifier())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ends the wait of a [`Poller`].
#[derive(Clone, Debug)]
pub(crate) struct Notifier(inner::Notifier);

impl Notifier {
    pub(crate) fn notify(&self) {
        self.0.notify();
    }
}

#[cfg(target_os = "linux")]
mod inner {
    use super::Event;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::sync::Arc;
    use std::time::Duration;

    /// Events of one wait.
    const EVENTS_MAX: usize = 64;
    /// The key of the notifications.
    const NOTIFIED: u64 = u64::MAX;

    #[derive(Debug)]
    pub(super) struct Poller {
        epoll: Epoll,
        /// Each write is an edge, so nobody need read it.
        event: Notifier,
        events: Box<[EpollEvent]>,
    }

    impl Poller {
        pub(super) fn new() -> io::Result<Poller> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let event = Arc::new(EventFd::from_value_and_flags(0, flags)?);
            epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, NOTIFIED))?;
            let events = vec![EpollEvent::empty(); EVENTS_MAX].into();
            Ok(Poller { epoll, event: Notifier(event), events })
        }

        pub(super) fn has_edges(&self) -> bool {
            true
        }

        pub(super) unsafe fn add(&self, fd: BorrowedFd<'_>, key: usize) -> io::Result<()> {
            use EpollFlags as Flags;
            let interest =
                Flags::EPOLLIN | Flags::EPOLLOUT | Flags::EPOLLRDHUP | Flags::EPOLLPRI | Flags::EPOLLET;
            Ok(self.epoll.add(fd, EpollEvent::new(interest, key as u64))?)
        }

        pub(super) fn set_interest(&self, _: BorrowedFd<'_>, _: usize, _: [bool; 2]) {}

        pub(super) fn delete(&self, fd: BorrowedFd<'_>) {
            let _ = self.epoll.delete(fd);
        }

        pub(super) fn wait(
            &mut self,
            timeout: Option<Duration>,
            mut each: impl FnMut(Event),
        ) -> io::Result<()> {
            use EpollFlags as Flags;
            let timeout = timeout.map_or(EpollTimeout::NONE, |timeout| {
                let up = timeout.as_micros().div_ceil(1000);
                i32::try_from(up)
                    .ok()
                    .and_then(|up| EpollTimeout::try_from(up).ok())
                    .unwrap_or(EpollTimeout::MAX)
            });
            let count = self.epoll.wait(&mut self.events, timeout)?;
            for event in self.events[..count].iter().filter(|event| event.data() != NOTIFIED) {
                let flags = event.events();
                let is = |any: Flags| flags.intersects(any);
                let failed = Flags::EPOLLHUP | Flags::EPOLLERR;
                each(Event {
                    key: event.data() as usize,
                    readable: is(Flags::EPOLLIN | Flags::EPOLLRDHUP | Flags::EPOLLPRI | failed),
                    writable: is(Flags::EPOLLOUT | failed),
                    has_end: is(Flags::EPOLLRDHUP | Flags::EPOLLPRI | failed),
                });
            }
            Ok(())
        }

        pub(super) fn notifier(&self) -> Notifier {
            self.event.clone()
        }
    }

    impl AsFd for Poller {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.epoll.0.as_fd()
        }
    }

    #[derive(Clone, Debug)]
    pub(super) struct Notifier(Arc<EventFd>);

    impl Notifier {
        pub(super) fn notify(&self) {
            // 2^64 writes are out of reach.
            let _ = self.0.write(1);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod inner {
    use super::Event;
    use polling::{Events, PollMode};
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
    use std::sync::Arc;
    use std::time::Duration;

    pub(super) struct Poller {
        poller: Arc<polling::Poller>,
        events: Events,
        mode: PollMode,
    }

    impl Poller {
        pub(super) fn new() -> io::Result<Poller> {
            let poller = Arc::new(polling::Poller::new()?);
            let mode = if poller.supports_edge() { PollMode::Edge } else { PollMode::Oneshot };
            Ok(Poller { poller, events: Events::new(), mode })
        }

        pub(super) fn has_edges(&self) -> bool {
            self.mode == PollMode::Edge
        }

        pub(super) unsafe fn add(&self, fd: BorrowedFd<'_>, key: usize) -> io::Result<()> {
            let interest =
                if self.has_edges() { polling::Event::all(key) } else { polling::Event::none(key) };
            // SAFETY: the caller's promise.
            unsafe { self.poller.add_with_mode(fd.as_raw_fd(), interest, self.mode) }
        }

        pub(super) fn set_interest(&self, fd: BorrowedFd<'_>, key: usize, [read, write]: [bool; 2]) {
            let _ = self.poller.modify_with_mode(fd, polling::Event::new(key, read, write), self.mode);
        }

        pub(super) fn delete(&self, fd: BorrowedFd<'_>) {
            let _ = self.poller.delete(fd);
        }

        pub(super) fn wait(
            &mut self,
            timeout: Option<Duration>,
            mut each: impl FnMut(Event),
        ) -> io::Result<()> {
            self.events.clear();
            self.poller.wait(&mut self.events, timeout)?;
            for polling::Event { key, readable, writable, .. } in self.events.iter() {
                // The crate does not tell of ends.
                each(Event { key, readable, writable, has_end: true });
            }
            Ok(())
        }

        pub(super) fn notifier(&self) -> Notifier {
            Notifier(Arc::clone(&self.poller))
        }
    }

    impl std::fmt::Debug for Poller {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.poller.fmt(f)
        }
    }

    impl AsFd for Poller {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.poller.as_fd()
        }
    }

    #[derive(Clone, Debug)]
    pub(super) struct Notifier(Arc<polling::Poller>);

    impl Notifier {
        pub(super) fn notify(&self) {
            let _ = self.0.notify();
        }
    }
}
