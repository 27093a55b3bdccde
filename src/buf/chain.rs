//! The outbound queue of a stream, and the part of it that one send takes.
//!
//! [`Chain`] belongs to a stream. A send operation takes a [`Batch`] out of its front, so that the slot owns
//! those bytes while the kernel reads them (invariant 1); what a short write left over goes back to the front
//! (invariant 9).
#![forbid(unsafe_code)]

use super::payload::Payload;
use std::collections::VecDeque;

/// Most payloads that one vectored send takes.
pub(crate) const BATCH_MAX: usize = 64;

/// Payloads that leave in one operation, in order.
#[derive(Debug, Default)]
pub struct Batch {
    payloads: Vec<Payload>,
}

impl Batch {
    /// The payloads, in the order in which they leave.
    pub fn payloads(&self) -> &[Payload] {
        &self.payloads
    }

    /// Takes the payloads out.
    pub(crate) fn into_payloads(self) -> impl Iterator<Item = Payload> {
        self.payloads.into_iter()
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.payloads.iter().map(|payload| payload.len()).sum()
    }
}

impl From<Vec<Payload>> for Batch {
    /// A batch of at most 64 payloads.
    ///
    /// # Panics
    ///
    /// If there are more.
    fn from(payloads: Vec<Payload>) -> Batch {
        assert!(payloads.len() <= BATCH_MAX, "a batch has at most {BATCH_MAX} payloads");
        Batch { payloads }
    }
}

/// The outbound queue of a stream.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    payloads: VecDeque<Payload>,
    bytes: usize,
    pooled: usize,
}

impl Chain {
    pub(crate) fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Buffers of the pool that wait.
    pub(crate) fn pooled(&self) -> usize {
        self.pooled
    }

    pub(crate) fn push(&mut self, payload: Payload) {
        self.bytes += payload.len();
        self.pooled += usize::from(payload.is_pooled());
        self.payloads.push_back(payload);
    }

    pub(crate) fn pop(&mut self) -> Option<Payload> {
        let payload = self.payloads.pop_front()?;
        self.bytes -= payload.len();
        self.pooled -= usize::from(payload.is_pooled());
        Some(payload)
    }

    /// Takes what one vectored send carries.
    pub(crate) fn take_batch(&mut self) -> Batch {
        let count = self.payloads.len().min(BATCH_MAX);
        let mut payloads = Vec::with_capacity(count);
        while payloads.len() < count {
            payloads.extend(self.pop());
        }
        Batch { payloads }
    }

    /// Puts back at the front what a send of which `sent` bytes left did not send; gives back the payloads
    /// that are done.
    pub(crate) fn put_back(&mut self, batch: Batch, sent: usize, done: &mut impl FnMut(Payload)) {
        let mut left = sent;
        let mut rest = Vec::new();
        for mut payload in batch.payloads {
            let gone = left.min(payload.len());
            left -= gone;
            payload.advance(gone);
            if payload.is_empty() { done(payload) } else { rest.push(payload) }
        }
        debug_assert_eq!(left, 0, "the kernel sent more than it was given");
        for payload in rest.into_iter().rev() {
            self.put_back_one(payload);
        }
    }

    /// Puts one unsent payload back at the front.
    pub(crate) fn put_back_one(&mut self, payload: Payload) {
        self.bytes += payload.len();
        self.pooled += usize::from(payload.is_pooled());
        self.payloads.push_front(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(chain: &mut Chain) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(payload) = chain.pop() {
            all.extend_from_slice(&payload);
        }
        all
    }

    #[test]
    fn a_short_write_resumes_first_at_every_offset() {
        for sent in 0..=9 {
            let mut chain = Chain::default();
            for part in ["abc", "", "def", "ghi"] {
                chain.push(part.into());
            }
            let batch = chain.take_batch();
            chain.push("later".into());
            let mut done = 0;
            chain.put_back(batch, sent, &mut |_| done += 1);
            assert!(done >= sent / 3);
            assert_eq!(text(&mut chain), &b"abcdefghilater"[sent..]);
            assert_eq!(chain.bytes(), 0);
        }
    }

    #[test]
    fn a_batch_is_bounded() {
        let mut chain = Chain::default();
        for _ in 0..BATCH_MAX + 3 {
            chain.push("x".into());
        }
        assert_eq!(chain.take_batch().payloads().len(), BATCH_MAX);
        assert_eq!((chain.len(), chain.bytes()), (3, 3));
    }
}
