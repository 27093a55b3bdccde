//! Receiving a number of bytes, or up to a delimiter: the same for all that gives bytes piece by piece.
#![forbid(unsafe_code)]

use crate::buf::Lease;
use bytes::{Bytes, BytesMut};
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

/// What gives bytes piece by piece, and takes back what was not used.
pub(crate) trait Inbound {
    /// The next bytes; none at the end.
    fn poll_recv(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>>;

    /// Puts bytes back before those that come next.
    fn unread(&self, lease: Lease);
}

/// Exactly `len` bytes; not copied if they came in one piece.
pub(crate) async fn recv_exact(source: &impl Inbound, len: usize) -> io::Result<Bytes> {
    let mut gathered = Gathered { source, bytes: BytesMut::new() };
    loop {
        let missing = len - gathered.bytes.len();
        if missing == 0 {
            return Ok(gathered.take());
        }
        let Some(mut lease) = poll_fn(|context| source.poll_recv(context)).await? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if gathered.bytes.is_empty() && lease.len() >= missing {
            let first = lease.split_to(missing);
            source.unread(lease);
            return Ok(first.into_bytes());
        }
        let used = lease.len().min(missing);
        gathered.bytes.extend_from_slice(&lease[..used]);
        lease.advance(used);
        source.unread(lease);
    }
}

/// The bytes up to and including `delimiter`, at most `max`; none if there are no more.
pub(crate) async fn recv_until(
    source: &impl Inbound,
    delimiter: &[u8],
    max: usize,
) -> io::Result<Option<Bytes>> {
    if delimiter.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the delimiter is empty"));
    }
    let mut gathered = Gathered { source, bytes: BytesMut::new() };
    loop {
        let Some(lease) = poll_fn(|context| source.poll_recv(context)).await? else {
            let nothing = gathered.bytes.is_empty();
            return if nothing { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        };
        // The delimiter may begin in what was gathered before.
        let from = gathered.bytes.len().saturating_sub(delimiter.len() - 1);
        gathered.bytes.extend_from_slice(&lease);
        drop(lease);
        let found = gathered.bytes[from..].windows(delimiter.len()).position(|window| window == delimiter);
        if let Some(end) = found.map(|start| from + start + delimiter.len()).filter(|end| *end <= max) {
            let rest = gathered.bytes.split_off(end);
            source.unread(Lease::from_bytes(rest.freeze()));
            return Ok(Some(gathered.take()));
        }
        if gathered.bytes.len() >= max {
            let text = format!("no delimiter within {max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    }
}

/// Bytes gathered by a future; they go back to the source if it is dropped or fails.
struct Gathered<'a, S: Inbound> {
    source: &'a S,
    bytes: BytesMut,
}

impl<S: Inbound> Gathered<'_, S> {
    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes).freeze()
    }
}

impl<S: Inbound> Drop for Gathered<'_, S> {
    fn drop(&mut self) {
        let bytes = self.take();
        if !bytes.is_empty() {
            self.source.unread(Lease::from_bytes(bytes));
        }
    }
}
