//! Sending a part of a file on a connection.
//!
//! By reads of large pieces, which on the ring cost no thread while the file is in the page cache, and sends of the same
//! memory. `sendfile(2)` would have to run on a thread, because it waits for the device; with 64 MiB from the page cache
//! the two cost the same on the ring.
#![forbid(unsafe_code)]

use super::file::File;
use super::stream::Flow;
use std::fmt;
use std::io;
use std::ops::{Bound, Range, RangeBounds};

/// Bytes of one read; smaller ones cost more CPU.
const PIECE_BYTES: u64 = 256 * 1024;

/// Why not all of a range of a file was sent.
#[derive(Debug)]
#[non_exhaustive]
pub struct SendFileError {
    /// Bytes of the range that the connection had accepted.
    pub sent: u64,
    /// What it met: `UnexpectedEof` if the file ends before the range does.
    pub error: io::Error,
}

impl fmt::Display for SendFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error.kind() {
            io::ErrorKind::UnexpectedEof => {
                write!(f, "the file ended after {} bytes of the range", self.sent)
            }
            _ => write!(f, "sending a file failed after {} bytes: {}", self.sent, self.error),
        }
    }
}

impl std::error::Error for SendFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// With the kind of what it met.
impl From<SendFileError> for io::Error {
    fn from(error: SendFileError) -> io::Error {
        io::Error::new(error.error.kind(), error)
    }
}

/// Sends the bytes of `file` in `range`, piece by piece; gives their number.
pub(crate) async fn send_file(
    flow: &Flow,
    file: &File,
    range: impl RangeBounds<u64>,
) -> Result<u64, SendFileError> {
    let mut sent = 0;
    let range = bounds(file, range).map_err(|error| SendFileError { sent, error })?;
    match pass_on(flow, file, range, &mut sent).await {
        Ok(()) => Ok(sent),
        Err(error) => Err(SendFileError { sent, error }),
    }
}

async fn pass_on(flow: &Flow, file: &File, range: Range<u64>, sent: &mut u64) -> io::Result<()> {
    // Half the bound, so that one piece leaves while the next is read.
    let piece_bytes = PIECE_BYTES.min(flow.core.config.limits.outbound_bytes_max as u64 / 2).max(1);
    let mut offset = range.start;
    while offset < range.end {
        let len = (range.end - offset).min(piece_bytes);
        let piece = file.read_at(offset, len as usize).await?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = piece.len() as u64;
        // Waits above the bound of the outbound queue, until the peer has taken something.
        flow.send(piece.into()).await?;
        offset += bytes;
        *sent += bytes;
    }
    Ok(())
}

/// The range as numbers; an open end is that of the file as it is now.
fn bounds(file: &File, range: impl RangeBounds<u64>) -> io::Result<Range<u64>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "the range of the file ends before it begins");
    let after = |at: &u64| at.checked_add(1).ok_or_else(wrong);
    let start = match range.start_bound() {
        Bound::Included(at) => *at,
        Bound::Excluded(at) => after(at)?,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(at) => after(at)?,
        Bound::Excluded(at) => *at,
        Bound::Unbounded => file.len()?.max(start),
    };
    // What the system can express as an offset.
    if start > end || i64::try_from(end).is_err() { Err(wrong()) } else { Ok(start..end) }
}
