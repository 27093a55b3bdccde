//! [`Payload`]: bytes on their way out.
#![forbid(unsafe_code)]

use super::lease::Lease;
use bytes::Bytes;
use std::fmt;
use std::ops::Deref;

/// Owned bytes to send: a received [`Lease`] passed on, `Bytes`, a `Vec<u8>`, a `String`, or static bytes.
///
/// None of the conversions copies. The runtime owns the payload from the moment a send accepts it until the
/// kernel no longer needs it.
pub struct Payload(Lease);

impl Payload {
    /// Forgets the first `n` bytes, which have been sent.
    pub(crate) fn advance(&mut self, n: usize) {
        self.0.advance(n);
    }

    /// Whether it holds a buffer of the shard's pool.
    pub(crate) fn is_pooled(&self) -> bool {
        self.0.is_pooled()
    }

    /// Copies the bytes out of the pool, if they are in it.
    pub(crate) fn detach(self) -> Payload {
        Payload(self.0.detach())
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

impl From<Lease> for Payload {
    fn from(lease: Lease) -> Payload {
        Payload(lease)
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        Payload(Lease::from_bytes(bytes))
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Bytes::from(bytes).into()
    }
}

impl From<Box<[u8]>> for Payload {
    fn from(bytes: Box<[u8]>) -> Payload {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Payload {
        Bytes::from(text).into()
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Payload {
        Bytes::from_static(bytes).into()
    }
}

impl<const N: usize> From<&'static [u8; N]> for Payload {
    fn from(bytes: &'static [u8; N]) -> Payload {
        Bytes::from_static(bytes).into()
    }
}

impl From<&'static str> for Payload {
    fn from(text: &'static str) -> Payload {
        Bytes::from_static(text.as_bytes()).into()
    }
}
