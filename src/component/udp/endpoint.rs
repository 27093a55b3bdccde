//! What node and sessions have in common: a socket with a bound on datagrams, and what is counted of it.
//!
//! It takes batches as the system gives them, sorts out what is too long, and ends only when the socket is closed. It
//! knows nothing of peers and never sends by itself.
#![forbid(unsafe_code)]

use super::{SendError, UdpError};
use crate::buf::Payload;
use crate::error::Full;
use crate::net::{Segments, SendOptions, UdpSocket};
use crate::shard::SendFailure;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// So many failed receives in a row, without a datagram between them, and each further one waits a while.
const FAILURES_IN_A_ROW_MAX: u32 = 16;
const PAUSE: Duration = Duration::from_millis(10);

/// What went in and out so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct UdpCounters {
    /// Datagrams that came in and were short enough.
    pub datagrams_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Datagrams that were accepted to be sent.
    pub datagrams_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Errors that were met, told or not: datagrams that the system refused to send, receives that failed.
    pub errors: u64,
    /// Datagrams that came in and were dropped because they were too long.
    pub dropped_in: u64,
    /// Datagrams that were not accepted to be sent: too long, or no room for them.
    pub dropped_out: u64,
}

impl UdpCounters {
    pub(super) fn add(self, other: UdpCounters) -> UdpCounters {
        UdpCounters {
            datagrams_in: self.datagrams_in + other.datagrams_in,
            bytes_in: self.bytes_in + other.bytes_in,
            datagrams_out: self.datagrams_out + other.datagrams_out,
            bytes_out: self.bytes_out + other.bytes_out,
            errors: self.errors + other.errors,
            dropped_in: self.dropped_in + other.dropped_in,
            dropped_out: self.dropped_out + other.dropped_out,
        }
    }
}

/// A number that one shard writes and every thread reads.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    /// Only the shard of the socket may call this: the store is none that others could interrupt.
    fn add(&self, n: usize) {
        self.0.store(self.0.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of a socket, for every thread to read.
#[derive(Default)]
pub(super) struct Meter {
    datagrams_in: Count,
    bytes_in: Count,
    datagrams_out: Count,
    bytes_out: Count,
    errors: Count,
    dropped_in: Count,
    dropped_out: Count,
}

impl Meter {
    pub(super) fn read(&self) -> UdpCounters {
        UdpCounters {
            datagrams_in: self.datagrams_in.get(),
            bytes_in: self.bytes_in.get(),
            datagrams_out: self.datagrams_out.get(),
            bytes_out: self.bytes_out.get(),
            errors: self.errors.get(),
            dropped_in: self.dropped_in.get(),
            dropped_out: self.dropped_out.get(),
        }
    }
}

/// What comes next.
pub(super) enum Arrival {
    Batch(Segments),
    Error(UdpError),
}

pub(super) struct Endpoint {
    pub(super) socket: UdpSocket,
    datagram_bytes_max: usize,
    meter: Arc<Meter>,
    /// The rest of a batch that had to be sorted; at most as many as the kernel joins.
    sorted: RefCell<VecDeque<Arrival>>,
    failures_in_a_row: Cell<u32>,
}

impl Endpoint {
    /// `joined` lets the kernel join datagrams, where it can.
    pub(super) fn new(socket: UdpSocket, datagram_bytes_max: usize, joined: bool) -> Endpoint {
        socket.tell_failures();
        if joined {
            // A system that cannot, or buffers that are too small for it, are no reason not to serve.
            let _ = socket.set_gro(true);
        }
        Endpoint {
            socket,
            datagram_bytes_max,
            meter: Arc::default(),
            sorted: RefCell::default(),
            failures_in_a_row: Cell::default(),
        }
    }

    pub(super) fn datagram_bytes_max(&self) -> usize {
        self.datagram_bytes_max
    }

    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Waits if receiving fails again and again, so that it costs no processor. Takes nothing.
    pub(super) async fn pause_if_failing(&self) {
        if self.failures_in_a_row.get() >= FAILURES_IN_A_ROW_MAX {
            crate::time::sleep(PAUSE).await;
        }
    }

    /// What comes next; nothing when the socket is closed.
    pub(super) fn poll_arrival(&self, context: &mut Context<'_>) -> Poll<Option<Arrival>> {
        if let Some(arrival) = self.sorted.borrow_mut().pop_front() {
            return Poll::Ready(Some(arrival));
        }
        match self.socket.poll_arrival(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_closed)) => Poll::Ready(None),
            Poll::Ready(Ok(Err(failure))) => Poll::Ready(Some(Arrival::Error(self.failed(failure)))),
            Poll::Ready(Ok(Ok(batch))) => {
                self.failures_in_a_row.set(0);
                Poll::Ready(self.sort(batch))
            }
        }
    }

    fn failed(&self, SendFailure { to, error }: SendFailure) -> UdpError {
        self.meter.errors.add(1 + self.socket.take_untold() as usize);
        let error = error.into();
        match to {
            Some(peer) => UdpError::Send { peer, error },
            None => {
                self.failures_in_a_row.set(self.failures_in_a_row.get().saturating_add(1));
                UdpError::Receive { error }
            }
        }
    }

    /// The batch, if all of it is short enough; else the first of its datagrams, by itself, or what is wrong with it.
    fn sort(&self, batch: Segments) -> Option<Arrival> {
        if !batch.is_truncated() && batch.segment_bytes() <= self.datagram_bytes_max {
            self.meter.datagrams_in.add(batch.count_left());
            self.meter.bytes_in.add(batch.bytes().len());
            return Some(Arrival::Batch(batch));
        }
        let mut sorted = self.sorted.borrow_mut();
        for datagram in batch {
            let (bytes, max) = (datagram.lease.len(), self.datagram_bytes_max);
            if datagram.truncated || bytes > max {
                self.meter.dropped_in.add(1);
                sorted.push_back(Arrival::Error(UdpError::TooLong { peer: datagram.from, bytes, max }));
            } else {
                self.meter.datagrams_in.add(1);
                self.meter.bytes_in.add(bytes);
                sorted.push_back(Arrival::Batch(datagram.into()));
            }
        }
        sorted.pop_front()
    }

    /// Queues datagrams, if they are short enough and there is room; else, with a waker, gives the payload back and wakes
    /// it when there is.
    pub(super) fn offer(
        &self,
        payload: Payload,
        to: SocketAddr,
        options: SendOptions,
        waker: Option<&Waker>,
    ) -> Result<Result<(), SendError>, Full<Payload>> {
        let bytes = payload.len();
        let size = options.segment_bytes.unwrap_or(bytes);
        if size.min(bytes) > self.datagram_bytes_max {
            self.meter.dropped_out.add(1);
            let max = self.datagram_bytes_max;
            return Ok(Err(SendError::TooLong { bytes: size.min(bytes), max }));
        }
        let datagrams = if size == 0 { 1 } else { bytes.div_ceil(size).max(1) };
        match self.socket.offer(payload, Some(to), options, waker) {
            Ok(Ok(())) => {
                self.meter.datagrams_out.add(datagrams);
                self.meter.bytes_out.add(bytes);
                Ok(Ok(()))
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotConnected => Ok(Err(SendError::Stopped)),
            Ok(Err(error)) => {
                self.meter.dropped_out.add(datagrams);
                Ok(Err(SendError::Io(error)))
            }
            Err(Full(payload)) => Err(Full(payload)),
        }
    }

    /// Queues datagrams, or says why not.
    pub(super) fn try_send(
        &self,
        payload: Payload,
        to: SocketAddr,
        options: SendOptions,
    ) -> Result<(), SendError> {
        self.offer(payload, to, options, None).unwrap_or_else(|Full(_)| {
            self.meter.dropped_out.add(1);
            Err(SendError::Full)
        })
    }

    /// Queues datagrams as soon as there is room. Dropped before it completes, it sends nothing.
    pub(super) async fn send(
        &self,
        payload: Payload,
        to: SocketAddr,
        options: SendOptions,
    ) -> Result<(), SendError> {
        let mut payload = Some(payload);
        poll_fn(|context| {
            let Some(taken) = payload.take() else { return Poll::Ready(Ok(())) };
            match self.offer(taken, to, options, Some(context.waker())) {
                Ok(outcome) => Poll::Ready(outcome),
                Err(Full(back)) => {
                    payload = Some(back);
                    Poll::Pending
                }
            }
        })
        .await
    }
}
