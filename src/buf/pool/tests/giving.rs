//! What pools promise whose buffers can be given away.
#![allow(unsafe_code)]

use super::*;

unsafe extern "C" {
    fn free(memory: *mut std::ffi::c_void);
}

/// Memory that a pool has given away.
struct Given(NonNull<u8>);

impl Drop for Given {
    fn drop(&mut self) {
        // SAFETY: it is ours, and came from `malloc`.
        unsafe { free(self.0.as_ptr().cast()) }
    }
}

impl Given {
    fn shows(&self, bytes: &[u8]) -> bool {
        // SAFETY: so many bytes were received into it.
        bytes == unsafe { std::slice::from_raw_parts(self.0.as_ptr(), bytes.len()) }
    }
}

fn apart(count: usize, bytes: usize) -> Pool {
    Pool::over(Memory::apart(count, bytes), Purpose::Streams, false, Box::new(|| {}))
}

#[test]
fn what_fills_half_a_buffer_that_lies_apart_can_be_given_away_without_a_copy() {
    let pool = apart(1, 64);
    let lease = received(&pool, &[1; 32]).unwrap();
    let start = lease.as_ptr();
    let given = lease.into_malloced().map(Given).unwrap();
    assert_eq!(given.0.as_ptr().cast_const(), start);
    assert_eq!((pool.available(), pool.ledger()), (1, (1, 1)), "its place is free again");
    let mut kernel = Kernel::default();
    kernel.publish(&pool, 1);
    let next = kernel.fill(&pool, &[2; 64], true).unwrap();
    assert_ne!(next.as_ptr(), start);
    drop(pool);
    let next = next.into_malloced().map(Given).unwrap();
    assert!(given.shows(&[1; 32]) && next.shows(&[2; 64]), "both outlive the pool and each other");
}

#[test]
fn what_is_small_shared_or_not_at_the_beginning_is_not_given_away() {
    let pool = apart(2, 64);
    let small = received(&pool, &[1; 31]).unwrap();
    assert_eq!(&*small.into_malloced().unwrap_err(), &[1; 31], "half of a buffer for less than that");
    let mut shared = received(&pool, &[2; 64]).unwrap();
    let rest = shared.split_off(40);
    let shared = shared.into_malloced().unwrap_err();
    assert_eq!((&*shared, &*rest), (&[2; 40][..], &[2; 24][..]));
    drop(shared);
    assert!(rest.into_malloced().is_err(), "it does not begin where the memory does");
    let mut kernel = Kernel::default();
    kernel.publish(&pool, 1);
    let filling = kernel.fill(&pool, &[3; 40], false).unwrap();
    assert!(filling.into_malloced().is_err(), "the kernel goes on with it");
    assert!(Lease::from_bytes(vec![4; 64].into()).into_malloced().is_err());
}

#[test]
fn what_lies_in_one_block_is_not_given_away() {
    assert!(received(&pool(1, 64), &[1; 64]).unwrap().into_malloced().is_err());
}

fn give(lease: Lease) -> Result<Shows, Lease> {
    let given = Given(lease.into_malloced()?);
    Ok(Box::new(move |bytes| given.shows(bytes)))
}

proptest! {
    #[test]
    fn what_was_given_away_is_never_written_to_again(
        steps in proptest::collection::vec(step(), 1..120),
        zero in any::<bool>(),
        apart in any::<bool>(),
    ) {
        follow(steps, zero, apart, give);
    }
}
