//! The payloads that leave in one operation.
//!
//! A send operation takes a [`Batch`] out of the front of a stream's outbound queue, so that the slot owns those bytes
//! while the kernel reads them (invariant 1); what a short write left over goes back to the front (invariant 9).
#![forbid(unsafe_code)]

use super::payload::Payload;

/// Most payloads that one vectored send takes.
pub(crate) const BATCH_MAX: usize = 64;

/// Payloads that leave in one operation, in order.
#[derive(Default)]
pub struct Batch(Box<Parts>);

/// Bytes of a payload, laid out as systems read them (`struct iovec`).
#[repr(C)]
pub(crate) struct Vector {
    pub(crate) start: *const u8,
    pub(crate) len: usize,
}

#[derive(Default)]
struct Parts {
    payloads: Vec<Payload>,
    /// Room for the addresses by which the kernel reads them.
    vectors: Vec<Vector>,
}

impl Batch {
    /// The payloads, in the order in which they leave.
    pub fn payloads(&self) -> &[Payload] {
        &self.0.payloads
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.payloads().iter().map(|payload| payload.len()).sum()
    }

    pub(crate) fn push(&mut self, payload: Payload) {
        debug_assert!(self.0.payloads.len() < BATCH_MAX, "a batch has at most {BATCH_MAX} payloads");
        self.0.payloads.push(payload);
    }

    /// Takes the last payload out.
    pub(crate) fn pop(&mut self) -> Option<Payload> {
        self.0.payloads.pop()
    }

    /// Points the vectors at what is left of the payloads after `skip` bytes, at most `bytes_max` of it.
    pub(crate) fn vectors(&mut self, mut skip: usize, mut bytes_max: usize) -> &mut [Vector] {
        let Parts { payloads, vectors } = &mut *self.0;
        vectors.clear();
        for payload in payloads {
            let start = skip.min(payload.len());
            skip -= start;
            let rest = &payload[start..];
            let len = rest.len().min(bytes_max);
            bytes_max -= len;
            if len > 0 {
                vectors.push(Vector { start: rest.as_ptr(), len });
            }
        }
        vectors
    }

    /// Forgets the first `sent` bytes, and hands each payload over: the last one first, with what is left of it.
    pub(crate) fn take_back(&mut self, sent: usize, mut each: impl FnMut(Payload)) {
        let mut left = sent;
        for payload in &mut self.0.payloads {
            let gone = left.min(payload.len());
            left -= gone;
            payload.advance(gone);
        }
        debug_assert_eq!(left, 0, "the kernel sent more than it was given");
        while let Some(payload) = self.pop() {
            each(payload);
        }
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Batch").field(&self.payloads()).finish()
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
        Batch(Box::new(Parts { payloads, vectors: Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        ["abc", "", "def", "ghi"].into_iter().map(Payload::from).collect::<Vec<_>>().into()
    }

    #[test]
    fn what_is_left_comes_back_in_order_at_every_offset() {
        for sent in 0..=9 {
            let (mut batch, mut back) = (batch(), Vec::new());
            batch.take_back(sent, |payload| back.push(payload.to_vec()));
            back.reverse();
            assert_eq!(back.concat(), &b"abcdefghi"[sent..]);
            assert!(batch.payloads().is_empty());
        }
    }

    #[test]
    fn the_vectors_cover_what_is_left_and_no_more() {
        for skip in 0..=9 {
            for bytes_max in 0..=10 {
                let mut batch = batch();
                let covered: usize = batch.vectors(skip, bytes_max).iter().map(|vector| vector.len).sum();
                assert_eq!(covered, (9 - skip).min(bytes_max));
            }
        }
    }
}
