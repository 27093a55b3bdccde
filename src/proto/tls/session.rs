//! One TLS connection: fed ciphertext and plaintext, it gives plaintext and ciphertext.
//!
//! Nothing here grows with what a peer sends: little more than [`PLAIN_PIECE`] bytes of plaintext are made of one feeding,
//! and none while plaintext waits. rustls joins handshake messages up to 64 KiB and refuses longer ones, and
//! counts what a peer may send for nothing (key updates, warnings, empty records of a handshake).
#![forbid(unsafe_code)]

use super::error::TlsError;
use super::info::{TlsInfo, TlsVersion};
use crate::buf::Lease;
use bytes::Bytes;
use rustls::{Connection, HandshakeKind};
use std::collections::VecDeque;
use std::io::{BufRead, Write};

/// Plaintext of one feeding, about; what is left of the ciphertext waits. Larger pieces were dearer: an allocator gives the
/// memory of pieces of 64 KiB back to the system and takes it anew each time.
const PLAIN_PIECE: usize = 16 * 1024;

/// Most bytes of plaintext in a record. (RFC 8446 5.1)
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Header, explicit nonce and tag of a record, or header, kind and tag; with room to spare.
const RECORD_OVERHEAD_MAX: usize = 64;

/// Bytes that rustls holds sealed: four records, which are taken out before it seals more.
const BUFFER_LIMIT: usize = 4 * RECORD_BYTES_MAX;

/// A TLS connection.
pub(crate) struct Session {
    connection: Connection,
    /// Plaintext that nobody has taken.
    plain: VecDeque<Lease>,
    end: Option<End>,
    closed: bool,
    /// Whether it has said anything yet; a server that has not has no keys either.
    has_spoken: bool,
    /// An alert that rustls does not send.
    alert: Option<&'static [u8]>,
}

/// A fatal `unexpected_message`, as it is before there are keys. (RFC 8446 6)
const UNEXPECTED_MESSAGE: &[u8] = &[21, 3, 3, 0, 2, 2, 10];

/// How the inbound side ended.
enum End {
    /// By `close_notify`.
    Clean,
    Failed(TlsError),
}

impl Session {
    pub(super) fn new(mut connection: Connection) -> Session {
        connection.set_buffer_limit(Some(BUFFER_LIMIT));
        let plain = VecDeque::new();
        Session { connection, plain, end: None, closed: false, has_spoken: false, alert: None }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes ciphertext off the front of `lease`, and makes plaintext of it, until there is a piece of it or an end.
    pub(crate) fn feed(&mut self, lease: &mut Lease) {
        let mut gathered = Vec::new();
        while !lease.is_empty() && gathered.len() < PLAIN_PIECE && self.end.is_none() {
            self.feed_some(lease, &mut gathered);
        }
        if !gathered.is_empty() {
            self.plain.push_back(Lease::from_bytes(Bytes::from(gathered)));
        }
    }

    /// As much as rustls takes at once, which is about 4 KiB.
    fn feed_some(&mut self, lease: &mut Lease, gathered: &mut Vec<u8>) {
        match self.connection.read_tls(&mut &lease[..]) {
            // It wants no more, since the peer has said that it is done.
            Ok(0) => lease.advance(lease.len()),
            Ok(taken) => lease.advance(taken),
            Err(error) => return self.end = Some(End::Failed(TlsError::Io(error))),
        }
        let outcome = self.connection.process_new_packets();
        let ready = outcome.as_ref().map_or(0, |state| state.plaintext_bytes_to_read());
        // Exactly as long as it gets where nothing follows: `Bytes` need no count of their own then.
        match gathered.is_empty() {
            true => gathered.reserve_exact(ready + lease.len().min(PLAIN_PIECE)),
            false => gathered.reserve(ready),
        }
        self.gather(gathered);
        match outcome {
            Ok(state) if state.peer_has_closed() => self.end = Some(End::Clean),
            Ok(_) => {}
            Err(error) => self.fail(TlsError::from_rustls(error)),
        }
    }

    /// rustls refuses some first messages without an alert.
    fn fail(&mut self, error: TlsError) {
        if !self.has_spoken && !self.connection.wants_write() && matches!(error, TlsError::Refused(_)) {
            self.alert = Some(UNEXPECTED_MESSAGE);
        }
        self.end = Some(End::Failed(error));
    }

    /// Takes what rustls has decrypted.
    fn gather(&mut self, gathered: &mut Vec<u8>) {
        let mut reader = self.connection.reader();
        // To have nothing is an error here, as long as the end has not come.
        while let Ok(chunk) = reader.fill_buf() {
            let len = chunk.len();
            if len == 0 {
                break;
            }
            gathered.extend_from_slice(chunk);
            reader.consume(len);
        }
    }

    /// The ciphertext has ended. Without `close_notify` that is an error, since anybody can end a connection.
    pub(crate) fn feed_end(&mut self) {
        self.end.get_or_insert(End::Failed(TlsError::Truncated));
    }

    /// Whether it gives no more plaintext than what waits, and why.
    pub(crate) fn end(&self) -> Option<Result<(), TlsError>> {
        self.end.as_ref().map(|end| match end {
            End::Clean => Ok(()),
            End::Failed(error) => Err(error.duplicate()),
        })
    }

    pub(crate) fn take_plain(&mut self) -> Option<Lease> {
        self.plain.pop_front()
    }

    /// Puts plaintext back that was taken and not used.
    pub(crate) fn put_back(&mut self, lease: Lease) {
        self.plain.push_front(lease);
    }

    /// Whether it has ciphertext to send.
    pub(crate) fn wants_write(&self) -> bool {
        self.alert.is_some() || self.connection.wants_write()
    }

    /// The ciphertext that it has to send.
    pub(crate) fn take_sealed(&mut self) -> Vec<u8> {
        let mut sealed = self.alert.take().unwrap_or_default().to_vec();
        self.take_sealed_into(&mut sealed);
        self.has_spoken = true;
        sealed
    }

    fn take_sealed_into(&mut self, sealed: &mut Vec<u8>) {
        while self.connection.wants_write() {
            // Writing to memory does not fail.
            let _ = self.connection.write_tls(sealed);
        }
    }

    /// Seals plaintext: ciphertext, after all that is to be sent before it.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        if plain.len() > RECORD_BYTES_MAX {
            sealed.reserve_exact(sealed_len(plain.len()));
        }
        let mut left = plain;
        while !left.is_empty() {
            // As much as its limit allows; the rest when that has been taken out.
            let taken = self.connection.writer().write(left).unwrap_or(left.len());
            left = &left[taken..];
            self.take_sealed_into(&mut sealed);
        }
        sealed
    }

    /// Says that no more plaintext will be sealed.
    pub(crate) fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.connection.send_close_notify();
        }
    }

    /// Whether nothing can be sealed any more: it was closed here, or the connection is broken.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed || matches!(self.end, Some(End::Failed(_)))
    }

    /// What was agreed on, once the handshake is over.
    pub(crate) fn info(&self) -> Option<TlsInfo> {
        let sni = match &self.connection {
            Connection::Server(server) => server.server_name().map(str::to_ascii_lowercase),
            Connection::Client(_) => None,
        };
        let certificates = self.connection.peer_certificates().unwrap_or_default();
        Some(TlsInfo {
            version: TlsVersion::of(self.connection.protocol_version()?)?,
            cipher: self.connection.negotiated_cipher_suite()?.suite().as_str().unwrap_or("unknown"),
            sni,
            alpn: self.connection.alpn_protocol().map(<[u8]>::to_vec),
            peer_certificates: certificates.iter().map(|der| Bytes::copy_from_slice(der)).collect(),
            resumed: self.connection.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }
}

/// How long plaintext may get when it is sealed.
pub(crate) fn sealed_len(plain: usize) -> usize {
    plain + (plain / RECORD_BYTES_MAX + 1) * RECORD_OVERHEAD_MAX
}
