//! What the completion API reports.
#![forbid(unsafe_code)]

use super::endpoint::EndpointId;
use crate::buf::Lease;
use crate::driver::datagram::{Ecn, LocalAddress};
use crate::error::Error;
use std::net::SocketAddr;

/// The outcome of a submission of the completion API.
#[derive(Debug)]
pub struct Completion {
    /// The tag that was given with the submission.
    pub tag: u64,
    /// The endpoint it was submitted on.
    pub endpoint: EndpointId,
    /// Whether further completions of the same submission follow.
    pub more: bool,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection was accepted; it is open and nothing is armed on it.
    Accepted(EndpointId),
    /// The connect succeeded.
    Connected,
    /// Bytes arrived.
    Received(Lease),
    /// The peer has ended its side of the stream.
    End,
    /// A datagram arrived.
    ReceivedFrom {
        /// Its bytes, perhaps none.
        lease: Lease,
        /// Its sender.
        from: SocketAddr,
        /// Whether its end was cut off because the receive buffer was too small.
        truncated: bool,
        /// Its congestion codepoint, if the socket asks for it.
        ecn: Option<Ecn>,
        /// The address that it was sent to and its interface, if the socket asks for them.
        local: Option<Box<LocalAddress>>,
    },
    /// All bytes of the payload, or the datagram, are with the kernel.
    Sent,
    /// At most half of what the outbound queue may hold waits in it.
    Writable,
    /// The direction is shut down.
    ShutDown,
    /// The time-out passed.
    Elapsed,
    /// The endpoint is closed; its last event.
    Closed,
    /// The submission failed.
    Failed(Error),
}
