//! Waking a driver that waits, from any thread.
#![forbid(unsafe_code)]

#[cfg(windows)]
use super::iocp::Port;
#[cfg(unix)]
use super::poller::Notifier;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends a wait of the driver it belongs to, now or the next one. Cheap to clone, works from any thread, and
/// harmless after the driver has gone.
#[derive(Clone)]
pub struct Wake(Way);

#[derive(Clone)]
enum Way {
    #[cfg(target_os = "linux")]
    Event(Arc<nix::sys::eventfd::EventFd>),
    #[cfg(unix)]
    Poller(Notifier),
    #[cfg(windows)]
    Port(Arc<Port>),
    Flag(Arc<AtomicBool>),
    #[cfg(feature = "sim")]
    Simulated(super::sim::Machine, super::sim::NodeId),
}

impl Wake {
    #[cfg(target_os = "linux")]
    pub(crate) fn event(event: Arc<nix::sys::eventfd::EventFd>) -> Wake {
        Wake(Way::Event(event))
    }

    #[cfg(unix)]
    pub(crate) fn poller(notifier: Notifier) -> Wake {
        Wake(Way::Poller(notifier))
    }

    #[cfg(windows)]
    pub(crate) fn port(port: Arc<Port>) -> Wake {
        Wake(Way::Port(port))
    }

    pub(crate) fn flag(flag: Arc<AtomicBool>) -> Wake {
        Wake(Way::Flag(flag))
    }

    #[cfg(feature = "sim")]
    pub(crate) fn simulated(machine: super::sim::Machine, node: super::sim::NodeId) -> Wake {
        Wake(Way::Simulated(machine, node))
    }

    /// Wakes the driver.
    pub fn wake(&self) {
        match &self.0 {
            // The counter cannot overflow: the driver reads it back to zero, and 2^64 writes are out of reach.
            #[cfg(target_os = "linux")]
            Way::Event(event) => drop(event.write(1)),
            #[cfg(unix)]
            Way::Poller(notifier) => notifier.notify(),
            #[cfg(windows)]
            Way::Port(port) => port.wake(),
            Way::Flag(flag) => flag.store(true, Ordering::SeqCst),
            #[cfg(feature = "sim")]
            Way::Simulated(machine, node) => machine.wake(*node),
        }
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}
