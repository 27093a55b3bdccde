//! What a shard found: its backend, why that one, and what the kernel can do.
#![forbid(unsafe_code)]

use std::fmt;

/// Something a kernel may or may not have, found by trying it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[repr(u8)]
pub enum Capability {
    /// The ring belongs to one thread, which saves the kernel its locks (Linux 6.0).
    SingleIssuer,
    /// Completion work runs when the loop asks for it (Linux 6.1).
    DeferTaskrun,
    /// Completion work does not interrupt the loop (Linux 5.19).
    CoopTaskrun,
    /// The submission ring has no index array (Linux 6.6).
    NoSqArray,
    /// A refused entry does not stop the rest of a batch (Linux 5.18).
    SubmitAll,
    /// The ring's own descriptor is registered, which makes `enter` cheaper (Linux 5.18, used from 6.3).
    RegisteredRing,
    /// The kernel picks receive buffers from a ring shared with it (Linux 5.19).
    BufferRing,
    /// The kernel fills a buffer of that ring piece by piece instead of one for each receive (Linux 6.12).
    IncrementalBuffers,
    /// One accept for many connections (Linux 5.19).
    MultishotAccept,
    /// One receive for many messages of a stream (Linux 6.0).
    MultishotReceive,
    /// One receive for many datagrams (Linux 6.0).
    MultishotReceiveMessage,
    /// Sends without a copy (Linux 6.0).
    ZeroCopySend,
    /// Datagrams to an address without a message header (after Linux 6.0).
    AddressedSend,
    /// One send for several datagrams of one size (Linux 4.18).
    SegmentedSend,
}

impl Capability {
    /// All of them, in order.
    pub const ALL: [Capability; 14] = [
        Capability::SingleIssuer,
        Capability::DeferTaskrun,
        Capability::CoopTaskrun,
        Capability::NoSqArray,
        Capability::SubmitAll,
        Capability::RegisteredRing,
        Capability::BufferRing,
        Capability::IncrementalBuffers,
        Capability::MultishotAccept,
        Capability::MultishotReceive,
        Capability::MultishotReceiveMessage,
        Capability::ZeroCopySend,
        Capability::AddressedSend,
        Capability::SegmentedSend,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Capability::SingleIssuer => "single-issuer",
            Capability::DeferTaskrun => "defer-taskrun",
            Capability::CoopTaskrun => "coop-taskrun",
            Capability::NoSqArray => "no-sqarray",
            Capability::SubmitAll => "submit-all",
            Capability::RegisteredRing => "registered-ring",
            Capability::BufferRing => "buffer-ring",
            Capability::IncrementalBuffers => "incremental-buffers",
            Capability::MultishotAccept => "multishot-accept",
            Capability::MultishotReceive => "multishot-receive",
            Capability::MultishotReceiveMessage => "multishot-receive-message",
            Capability::ZeroCopySend => "zero-copy-send",
            Capability::AddressedSend => "addressed-send",
            Capability::SegmentedSend => "segmented-send",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of [`Capability`]s.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u32);

impl Capabilities {
    /// Whether `capability` is in the set.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u8) != 0
    }

    /// The members, in order.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL.into_iter().filter(move |capability| self.has(*capability))
    }

    pub(crate) fn insert(&mut self, capability: Capability) {
        self.0 |= 1 << capability as u8;
    }

    pub(crate) fn remove(&mut self, capability: Capability) {
        self.0 &= !(1 << capability as u8);
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Capability::name).collect();
        f.write_str(if names.is_empty() { "-" } else { "" })?;
        f.write_str(&names.join(" "))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({self})")
    }
}

/// The backend that a shard ended up with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BackendKind {
    /// io_uring.
    Uring,
    /// Completions emulated over epoll, kqueue or poll.
    Readiness,
    /// I/O completion ports.
    Iocp,
    /// The scripted backend for tests.
    Script,
    /// A host of a simulation (feature `sim`).
    Simulated,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendKind::Uring => "uring",
            BackendKind::Readiness => "readiness",
            BackendKind::Iocp => "iocp",
            BackendKind::Script => "script",
            BackendKind::Simulated => "simulated",
        })
    }
}

/// Which backend a shard has, why, what was tried on the way, and what it can do.
///
/// Printed it takes five lines, and a sixth where [`Config::hardened`](crate::Config::hardened) was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BackendReport {
    /// The backend.
    pub backend: BackendKind,
    /// Why this one; where io_uring was refused, what to do about it.
    pub reason: String,
    /// What was tried, in order, with its outcome.
    pub ladder: Vec<String>,
    /// What is used.
    pub capabilities: Capabilities,
    /// What is emulated, and why. Grows when the kernel refuses something later on.
    pub lowered: Vec<(Capability, String)>,
    /// What the ring is restricted to, or why there is nothing to restrict; `None` if nobody asked for it.
    pub hardened: Option<String>,
}

impl fmt::Display for BackendReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lowered: Vec<_> = self.lowered.iter().map(|(what, why)| format!("{what} ({why})")).collect();
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        writeln!(f, "backend  {}", self.backend)?;
        writeln!(f, "reason   {}", self.reason)?;
        writeln!(f, "ladder   {}", or_dash(self.ladder.join("; ")))?;
        writeln!(f, "uses     {}", self.capabilities)?;
        write!(f, "emulates {}", or_dash(lowered.join(", ")))?;
        self.hardened.iter().try_for_each(|hardened| write!(f, "\nhardened {hardened}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_five_lines_and_names_what_is_emulated() {
        let mut capabilities = Capabilities::default();
        capabilities.insert(Capability::BufferRing);
        let mut report = BackendReport {
            backend: BackendKind::Uring,
            reason: "asked for".into(),
            ladder: vec!["1024 entries: ok".into()],
            capabilities,
            lowered: vec![(Capability::ZeroCopySend, "masked".into())],
            hardened: None,
        };
        let text = report.to_string();
        assert_eq!(text.lines().count(), 5);
        assert!(text.contains("buffer-ring") && text.contains("zero-copy-send (masked)"));
        report.hardened = Some("takes recv, send".into());
        assert_eq!(report.to_string(), format!("{text}\nhardened takes recv, send"));
    }

    #[test]
    fn every_capability_has_its_own_bit_and_name() {
        let mut set = Capabilities::default();
        for capability in Capability::ALL {
            assert!(!set.has(capability));
            set.insert(capability);
        }
        assert_eq!(set.iter().count(), Capability::ALL.len());
    }
}
