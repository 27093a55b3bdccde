//! What pools promise.
#![allow(unsafe_code)]

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

#[cfg(feature = "capi")]
mod giving;

fn pool(count: usize, bytes: usize) -> Pool {
    Pool::new(count, bytes, Box::new(|| {}))
}

/// A pool whose buffers are overwritten when they come home.
fn erased(memory: Option<Memory>) -> Pool {
    Pool::over(memory.expect("a little memory"), Purpose::Streams, true, Box::new(|| {}))
}

/// What a receive of these bytes into a buffer of its own would bring.
pub(crate) fn filled(pool: &Pool, bytes: &[u8]) -> Lease {
    let id = pool.take().expect("a free buffer");
    // SAFETY: the buffer was just taken, so it is ours alone, and it is large enough.
    unsafe { pool.pointer(id).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    pool.lend(id, 0, bytes.len())
}

#[test]
fn a_lease_shows_filled_bytes_only_and_returns_itself() {
    let pool = pool(2, 64);
    let lease = filled(&pool, b"hello");
    assert_eq!(&*lease, b"hello");
    assert_eq!(pool.available(), 1);
    drop(lease);
    assert_eq!(pool.available(), 2);
    assert_eq!(pool.ledger(), (1, 1));
}

#[test]
fn bytes_made_from_a_lease_come_home_from_another_thread() {
    let pool = pool(1, 64);
    let bytes = filled(&pool, b"across").into_bytes();
    std::thread::spawn(move || assert_eq!(&bytes[..], b"across")).join().unwrap();
    assert_eq!(pool.available(), 0);
    pool.collect();
    assert_eq!(pool.available(), 1);
    assert_eq!(pool.ledger(), (1, 1));
}

#[test]
fn leases_and_bytes_outlive_the_pool() {
    let pool = pool(2, 64);
    let lease = filled(&pool, b"one");
    let bytes = filled(&pool, b"two").into_bytes();
    drop(pool);
    assert_eq!((&*lease, &bytes[..]), (&b"one"[..], &b"two"[..]));
}

#[test]
fn a_return_from_elsewhere_wakes_a_hungry_pool_only() {
    let woken = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&woken);
    let pool = Pool::new(1, 8, Box::new(move || seen.store(true, Ordering::SeqCst)));
    drop(filled(&pool, b"a").into_bytes());
    assert!(!woken.load(Ordering::SeqCst));
    pool.collect();
    pool.set_hungry(true);
    drop(filled(&pool, b"a").into_bytes());
    assert!(woken.load(Ordering::SeqCst));
}

#[test]
fn stale_bytes_are_never_shown_and_zeroing_erases_them() {
    let pool = erased(Memory::block(1, 16));
    drop(filled(&pool, b"secret"));
    let id = pool.take().unwrap();
    let lease = pool.lend(id, 0, 16);
    assert_eq!(&*lease, &[0; 16]);
}

#[test]
fn a_leaked_lease_is_a_leak_and_nothing_else() {
    let pool = pool(2, 8);
    let leaked = std::mem::ManuallyDrop::new(filled(&pool, b"x"));
    assert_eq!(pool.available(), 1);
    drop(pool);
    assert_eq!(&**leaked, b"x", "its memory stays as long as it could be used");
    // Freed in the end, so that checkers of leaks have nothing to report.
    drop(std::mem::ManuallyDrop::into_inner(leaked));
}

/// Fills the room of a pool as a receive in user space does.
fn received(pool: &Pool, bytes: &[u8]) -> Option<Lease> {
    let (start, room) = pool.room()?;
    let len = bytes.len().min(room);
    // SAFETY: the room is ours until it is carved, and `len` bytes long.
    unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), len) }
    let id = pool.carve(len);
    Some(pool.lend(id, 0, len))
}

/// What a kernel has of a pool: buffers in order, each with the place where it goes on.
#[derive(Default)]
struct Kernel(VecDeque<(u16, *mut u8, usize)>);

impl Kernel {
    fn publish(&mut self, pool: &Pool, count: usize) {
        pool.move_to_kernel(count, |index, start| self.0.push_back((index, start, 0)));
    }

    /// Fills a piece of the first buffer; with `whole` it gives the buffer up afterwards.
    fn fill(&mut self, pool: &Pool, bytes: &[u8], whole: bool) -> Option<Lease> {
        let (index, start, filled) = self.0.pop_front()?;
        let len = bytes.len().min(pool.buffer_bytes() - filled);
        // SAFETY: the buffer is the kernel's, and its rest is at least `len` bytes long.
        unsafe { start.add(filled).copy_from_nonoverlapping(bytes.as_ptr(), len) }
        let stays = !whole && filled + len < pool.buffer_bytes();
        if stays {
            self.0.push_front((index, start, filled + len));
        }
        let id = pool.left_kernel(index, len, stays);
        Some(pool.lend(id, 0, len))
    }
}

#[test]
fn a_buffer_is_filled_piece_by_piece_and_comes_home_after_its_last_piece() {
    let pool = pool(2, 16);
    let mut kernel = Kernel::default();
    kernel.publish(&pool, 1);
    let first = kernel.fill(&pool, b"first", false).unwrap();
    let second = kernel.fill(&pool, b"second", false).unwrap();
    assert_eq!((pool.in_kernel(), pool.available()), (1, 2), "a buffer that is filling can be received into");
    let third = kernel.fill(&pool, b"third", false).unwrap();
    assert_eq!((pool.in_kernel(), pool.available()), (0, 1), "now it is full");
    drop(second);
    drop(first);
    assert_eq!((&*third, pool.available()), (&b"third"[..], 1));
    drop(third);
    assert_eq!((pool.available(), pool.ledger()), (2, (3, 3)));
}

#[test]
fn the_current_buffer_is_carved_and_begins_anew_when_all_of_it_was_read() {
    let pool = pool(2, 64);
    let (start, room) = pool.room().unwrap();
    assert_eq!((room, pool.room().unwrap()), (64, (start, 64)), "asking costs nothing");
    let first = received(&pool, &[1; 20]).unwrap();
    let second = received(&pool, &[2; 20]).unwrap();
    assert_eq!(second.as_ptr(), first.as_ptr().wrapping_add(20));
    drop((first, second));
    let again = received(&pool, &[3; 50]).unwrap();
    assert_eq!(again.as_ptr(), start.cast_const(), "warm bytes first");
    let next = received(&pool, &[4; 64]).unwrap();
    assert_eq!((&*again, &*next), (&[3; 50][..], &[4; 64][..]), "fourteen bytes of 64 are too few to go on");
    assert!(pool.room().is_none() && pool.available() == 0);
    drop(again);
    assert!(pool.room().is_some());
}

#[test]
fn the_buffer_that_came_home_last_is_used_first() {
    let pool = pool(4, 64);
    let first = pool.take().unwrap();
    let second = pool.take().unwrap();
    pool.untake(second);
    pool.untake(first);
    let mut order = Vec::new();
    pool.move_to_kernel(3, |index, _| order.push(index));
    assert_eq!(order[..2], [first.index, second.index]);
    assert_eq!((order.len(), pool.in_kernel(), pool.available()), (3, 3, 4));
}

#[test]
fn a_lease_splits_without_a_copy_and_each_part_holds_the_buffer() {
    let pool = pool(1, 64);
    let mut lease = filled(&pool, b"head and tail");
    let tail = lease.split_off(5);
    let start = lease.as_ptr();
    let nothing = lease.split_to(0);
    assert_eq!((&*lease, &*tail, &*nothing), (&b"head "[..], &b"and tail"[..], &b""[..]));
    assert_eq!((lease.as_ptr(), tail.as_ptr()), (start, start.wrapping_add(5)));
    assert_eq!(pool.ledger(), (3, 0));
    drop((lease, nothing));
    let bytes = tail.into_bytes();
    assert_eq!(pool.available(), 0);
    drop(bytes);
    pool.collect();
    assert_eq!((pool.available(), pool.ledger()), (1, (3, 3)));
}

#[test]
fn every_byte_of_a_buffer_is_erased_before_it_is_used_anew() {
    let pool = erased(Memory::block(1, 64));
    let all = |pool: &Pool| {
        let id = pool.take().unwrap();
        pool.lend(id, 0, 64)
    };
    drop(received(&pool, b"a secret").unwrap());
    drop(received(&pool, b"another").unwrap());
    drop(received(&pool, &[7; 64]).unwrap());
    assert_eq!(*all(&pool), [0; 64]);
    let mut kernel = Kernel::default();
    kernel.publish(&pool, 1);
    drop(kernel.fill(&pool, b"a secret", false).unwrap());
    drop(kernel.fill(&pool, b"another", true).unwrap());
    assert_eq!(*all(&pool), [0; 64]);
    let (start, _) = pool.room().unwrap();
    drop(received(&pool, b"warm").unwrap());
    pool.room().unwrap();
    // SAFETY: nobody holds a piece of the buffer.
    assert_eq!(unsafe { start.cast::<[u8; 4]>().read() }, [0; 4], "and before its beginning is");
}

#[test]
fn what_waits_keeps_no_buffer_that_is_wanted() {
    let pool = pool(8, 256);
    let short = |pool: &Pool| filled(pool, b"1234").unpinned(4).is_pooled();
    let long = |pool: &Pool, reserve| filled(pool, b"12345").unpinned(reserve).is_pooled();
    let mut held = Vec::new();
    let mut seen = Vec::new();
    // Each look takes a buffer itself.
    for _ in 0..8 {
        seen.push((short(&pool), long(&pool, 4), long(&pool, 8)));
        held.push(filled(&pool, b"held"));
    }
    let (all, long, sent, none) =
        ((true, true, true), (false, true, true), (false, false, true), (false, false, false));
    assert_eq!(seen, [all, all, all, all, long, sent, none, none]);
}

#[test]
fn the_demand_on_the_kernel_is_told_once() {
    let pool = pool(4, 16);
    let mut kernel = Kernel::default();
    kernel.publish(&pool, 2);
    drop(kernel.fill(&pool, b"five!", false));
    drop(kernel.fill(&pool, b"three", false));
    pool.note_starved();
    assert_eq!(pool.take_demand(), (10, true));
    assert_eq!(pool.take_demand(), (0, false));
}

#[test]
#[should_panic(expected = "a completion claims 12 bytes of a buffer with 11")]
fn a_completion_that_claims_more_than_the_rest_of_a_buffer_is_not_believed() {
    let pool = pool(1, 16);
    let mut kernel = Kernel::default();
    kernel.publish(&pool, 1);
    let _first = kernel.fill(&pool, b"first", false);
    pool.left_kernel(0, 12, true);
}

#[test]
#[should_panic(expected = "buffer 1 is not filling")]
fn a_completion_that_names_a_buffer_of_somebody_else_is_not_believed() {
    let pool = pool(2, 16);
    Kernel::default().publish(&pool, 1);
    pool.left_kernel(1, 4, true);
}

#[test]
#[should_panic(expected = "a completion claims 8 bytes from 5 on, where 11 were filled")]
fn no_lease_shows_bytes_behind_its_piece() {
    let pool = pool(1, 16);
    let mut kernel = Kernel::default();
    kernel.publish(&pool, 1);
    let _first = kernel.fill(&pool, b"first", false);
    let id = pool.left_kernel(0, 6, true);
    pool.lend(id, 0, 8);
}

/// One step of the model.
#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    Fill { bytes: usize, whole: bool },
    Receive { bytes: usize },
    Take,
    Untake,
    Split { which: usize, at: usize },
    Drop { which: usize },
    Send { which: usize },
    DropSent { which: usize },
    Give { which: usize },
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..64_usize;
    prop_oneof![
        2 => (1..4_usize).prop_map(Step::Publish),
        6 => (1..40_usize, proptest::bool::weighted(0.1)).prop_map(|(bytes, whole)| Step::Fill { bytes, whole }),
        4 => (1..40_usize).prop_map(|bytes| Step::Receive { bytes }),
        1 => Just(Step::Take),
        1 => Just(Step::Untake),
        2 => (any.clone(), any.clone()).prop_map(|(which, at)| Step::Split { which, at }),
        6 => any.clone().prop_map(|which| Step::Drop { which }),
        3 => any.clone().prop_map(|which| Step::Send { which }),
        3 => any.clone().prop_map(|which| Step::DropSent { which }),
        3 => any.prop_map(|which| Step::Give { which }),
        2 => Just(Step::Collect),
    ]
}

/// A lease or what it became, with the bytes that it must show as long as it lives.
struct Held<T>(T, Vec<u8>);

/// Tells whether memory that was given away shows these bytes.
type Shows = Box<dyn Fn(&[u8]) -> bool>;

/// Does what the steps say and checks after each that all that is held shows what it was filled with: so no piece
/// overlaps another, and no buffer comes home too early. Then that everything came home.
fn follow(steps: Vec<Step>, zero: bool, apart: bool, give: fn(Lease) -> Result<Shows, Lease>) {
    const COUNT: usize = 3;
    let memory = if apart { Memory::apart(COUNT, 64) } else { Memory::block(COUNT, 64).expect("a little") };
    let pool = Pool::over(memory, Purpose::Streams, zero, Box::new(|| {}));
    let mut kernel = Kernel::default();
    let mut leases: Vec<Held<Lease>> = Vec::new();
    let mut sent: Vec<Held<bytes::Bytes>> = Vec::new();
    let mut given: Vec<Held<Shows>> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let pattern = |bytes: usize| vec![number as u8 + 1; bytes];
        match step {
            Step::Publish(count) => kernel.publish(&pool, count),
            Step::Fill { bytes, whole } => {
                let lease = kernel.fill(&pool, &pattern(bytes), whole);
                leases.extend(lease.map(|lease| {
                    let expected = pattern(lease.len());
                    Held(lease, expected)
                }));
            }
            Step::Receive { bytes } => {
                let lease = received(&pool, &pattern(bytes));
                leases.extend(lease.map(|lease| {
                    let expected = pattern(lease.len());
                    Held(lease, expected)
                }));
            }
            Step::Take if pool.has_free() => leases.push(Held(filled(&pool, &pattern(9)), pattern(9))),
            Step::Untake => pool.take().into_iter().for_each(|id| pool.untake(id)),
            Step::Split { which, at } if !leases.is_empty() => {
                let at_end = leases.len();
                let Held(lease, expected) = &mut leases[which % at_end];
                let at = at % (lease.len() + 1);
                let rest = Held(lease.split_off(at), expected.split_off(at));
                leases.push(rest);
            }
            Step::Drop { which } if !leases.is_empty() => drop(leases.remove(which % leases.len())),
            Step::Send { which } if !leases.is_empty() => {
                let Held(lease, expected) = leases.remove(which % leases.len());
                sent.push(Held(lease.into_bytes(), expected));
            }
            Step::DropSent { which } if !sent.is_empty() => {
                let Held(bytes, expected) = sent.remove(which % sent.len());
                let thread = std::thread::spawn(move || assert_eq!(bytes, expected));
                thread.join().expect("another thread sees the same");
            }
            Step::Give { which } if !leases.is_empty() => {
                let Held(lease, expected) = leases.remove(which % leases.len());
                match give(lease) {
                    Ok(shows) => given.push(Held(shows, expected)),
                    Err(lease) => leases.push(Held(lease, expected)),
                }
            }
            Step::Collect => pool.collect(),
            _ => {}
        }
        leases.iter().for_each(|Held(lease, expected)| assert_eq!(**lease, **expected));
        sent.iter().for_each(|Held(bytes, expected)| assert_eq!(*bytes, *expected));
        given.iter().for_each(|Held(shows, expected)| assert!(shows(expected)));
        assert!(apart || given.is_empty());
        assert_eq!(pool.in_kernel(), kernel.0.len());
        let (lent, returned) = pool.ledger();
        assert!(lent - returned >= (leases.len() + sent.len()) as u64);
    }
    drop((leases, sent));
    pool.collect();
    assert_eq!(pool.available(), COUNT, "every buffer can be received into again");
    let (lent, returned) = pool.ledger();
    assert_eq!(lent, returned);
}

proptest! {
    #[test]
    fn pieces_never_overlap_and_every_buffer_comes_home(
        steps in proptest::collection::vec(step(), 1..120),
        zero in any::<bool>(),
        apart in any::<bool>(),
    ) {
        follow(steps, zero, apart, Err);
    }
}

#[test]
fn pieces_that_end_on_many_threads_at_once_are_all_counted() {
    let woken = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&woken);
    let wake = Box::new(move || {
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let pool = Pool::new(2, 64, wake);
    for _ in 0..50 {
        let mut lease = filled(&pool, &[5; 64]);
        let pieces: Vec<_> = (0..8).map(|_| lease.split_to(8).into_bytes()).collect();
        drop(lease);
        pool.set_hungry(true);
        let threads =
            pieces.into_iter().map(|piece| std::thread::spawn(move || assert_eq!(piece, [5; 8][..])));
        let threads: Vec<_> = threads.collect();
        while pool.available() < 2 {
            pool.collect();
            std::hint::spin_loop();
        }
        threads.into_iter().for_each(|thread| thread.join().expect("it saw the bytes"));
        assert!(woken.swap(0, Ordering::SeqCst) > 0, "nobody was woken");
    }
    let (lent, returned) = pool.ledger();
    assert_eq!(lent, returned);
}
