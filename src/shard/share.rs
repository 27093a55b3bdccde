//! Listeners that several shards share: who accepts, and who gets the connection.
//!
//! Each member has a live count of its connections. A count rises when a connection is assigned, before it is
//! handed over, and falls when the connection's endpoint ends, wherever it lives; so the counts never miss one.
//!
//! A member has a *gate* too, one word with a bit that says closed and the number of connections on their way to it. A
//! connection enters with one read-modify-write that both counts it and reads the bit, so it either entered before the
//! gate was closed, and then the count shows it until it has arrived or was given back, or it stays with who accepted
//! it. So a member whose gate is closed and empty will never get another one, which is what it needs to know before it
//! says that there are no more.
#![forbid(unsafe_code)]

use super::endpoint::EndpointId;
use super::remote::Remote;
use crate::driver::FdRef;
use crate::driver::sys::os::HAS_SHARED_PORTS;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// How connections are spread over the shards of a group. On Windows, where sockets cannot share a port, it is always
/// [`OneAcceptor`](Self::OneAcceptor).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Distribution {
    /// Every shard accepts on its own SO_REUSEPORT listener and keeps what the kernel gives it. No hand-over,
    /// best locality; the kernel spreads by hash, so counts differ by chance.
    ReusePort,
    /// As [`ReusePort`](Self::ReusePort), but a shard that has more connections than the least busy one hands
    /// new ones over to it. The default.
    #[default]
    Balanced,
    /// Shard 0 alone accepts and hands connections over to whoever has fewest. Keeps order of arrival at the
    /// price of one busy shard.
    OneAcceptor,
}

/// Connections a shard may have more than the least busy one before it hands over.
const SLACK: usize = 1;

/// The members of a group of listeners on one address.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) key: u64,
    distribution: Distribution,
    members: Vec<Arc<Member>>,
}

#[derive(Debug)]
struct Member {
    /// The key of its group.
    group: u64,
    live: AtomicUsize,
    /// `CLOSED`, plus `ON_THE_WAY` for each connection that is handed over to this member and has not arrived.
    gate: AtomicUsize,
    /// Futures to wake when the gate is closed and empty.
    waiting: Mutex<Vec<Waker>>,
    remote: Mutex<Option<Remote>>,
}

/// The bit of a gate that says closed.
const CLOSED: usize = 1;
/// What one connection on its way adds to a gate.
const ON_THE_WAY: usize = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Member {
    fn is_listening(&self) -> bool {
        self.gate.load(Ordering::Relaxed) & CLOSED == 0
    }

    /// Counts a connection as on its way, unless the gate is closed. Whom to wake for having looked goes to `woken`.
    fn enter(self: &Arc<Member>, woken: &mut Vec<Waker>) -> Option<Passage> {
        let before = self.gate.fetch_add(ON_THE_WAY, Ordering::AcqRel);
        if before & CLOSED == 0 {
            return Some(Passage(Some(Arc::clone(self))));
        }
        woken.extend(self.leave());
        None
    }

    /// Ends what `enter` counted: whom to wake if that was the last one of a closed gate.
    fn leave(&self) -> Vec<Waker> {
        let before = self.gate.fetch_sub(ON_THE_WAY, Ordering::AcqRel);
        if before == CLOSED + ON_THE_WAY { std::mem::take(&mut *lock(&self.waiting)) } else { Vec::new() }
    }
}

impl Group {
    pub(crate) fn new(shards: usize, distribution: Distribution) -> Arc<Group> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let key = NEXT.fetch_add(1, Ordering::Relaxed) as u64;
        let distribution = if HAS_SHARED_PORTS { distribution } else { Distribution::OneAcceptor };
        let member = || Member {
            group: key,
            live: AtomicUsize::new(0),
            gate: AtomicUsize::new(CLOSED),
            waiting: Mutex::default(),
            remote: Mutex::new(None),
        };
        let members = (0..shards).map(|_| Arc::new(member())).collect();
        Arc::new(Group { key, distribution, members })
    }

    /// Live connections per shard.
    pub(crate) fn live(&self) -> Vec<usize> {
        self.members.iter().map(|member| member.live.load(Ordering::Relaxed)).collect()
    }

    /// Whether a member accepts itself.
    pub(crate) fn accepts(&self, index: usize) -> bool {
        self.distribution != Distribution::OneAcceptor || index == 0
    }

    /// The member that has fewest connections among those that listen.
    fn least(&self) -> Option<(usize, usize)> {
        let listening = self.members.iter().enumerate().filter(|(_, member)| member.is_listening());
        listening.map(|(index, member)| (member.live.load(Ordering::Relaxed), index)).min()
    }
}

/// One shard's part in a group.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) group: Arc<Group>,
    index: usize,
}

impl Share {
    /// Joins the group: from now on others may hand connections over to this shard.
    pub(crate) fn join(group: &Arc<Group>, index: usize, remote: Remote) -> Share {
        let member = &group.members[index];
        *lock(&member.remote) = Some(remote);
        let share = Share { group: Arc::clone(group), index };
        share.come_back();
        share
    }

    fn member(&self) -> &Arc<Member> {
        &self.group.members[self.index]
    }

    /// Nobody begins to hand over to this shard any more; what is on its way still arrives.
    pub(crate) fn leave(&self) {
        self.member().gate.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Others may hand over again.
    pub(crate) fn come_back(&self) {
        self.member().gate.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// Whether this shard has left and nothing is on its way to it.
    pub(crate) fn is_empty(&self) -> bool {
        self.member().gate.load(Ordering::Acquire) == CLOSED
    }

    /// Wakes a future when nothing is on its way any more. Whoever asks looks again afterwards: the last connection may
    /// have arrived before.
    pub(crate) fn wake_when_empty(&self, waker: &Waker) {
        let mut waiting = lock(&self.member().waiting);
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    /// Whether this shard accepts itself.
    pub(crate) fn accepts(&self) -> bool {
        self.group.accepts(self.index)
    }

    /// A place for a new connection with another shard, if it does not belong to this one. It is taken at once,
    /// so that the next connection of the same turn finds it in the counts. Whom to wake when nothing is borrowed goes to
    /// `woken`.
    pub(crate) fn place_elsewhere(&self, woken: &mut Vec<Waker>) -> Option<(Seat, Passage)> {
        let own = self.member().live.load(Ordering::Relaxed);
        let (fewest, target) = self.group.least()?;
        let over = match self.group.distribution {
            Distribution::ReusePort => false,
            Distribution::Balanced => own > fewest + SLACK,
            Distribution::OneAcceptor => own > fewest,
        };
        if !over || target == self.index {
            return None;
        }
        let passage = self.group.members[target].enter(woken)?;
        Some((Seat::take(&self.group, target), passage))
    }

    /// Takes a place for a connection of this shard.
    pub(crate) fn sit(&self) -> Seat {
        Seat::take(&self.group, self.index)
    }
}

/// The place of one connection in the live counts; it is given up when the connection ends.
#[derive(Debug)]
pub(crate) struct Seat(Arc<Member>);

impl Seat {
    /// Counts a connection for a member.
    pub(crate) fn take(group: &Arc<Group>, index: usize) -> Seat {
        let member = Arc::clone(&group.members[index]);
        member.live.fetch_add(1, Ordering::Relaxed);
        Seat(member)
    }

    /// The shard that has the place, and the key of its group.
    pub(crate) fn whose(&self) -> (Option<Remote>, u64) {
        (lock(&self.0.remote).clone(), self.0.group)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's way to another member, from the moment it was given a place there until it has arrived.
#[derive(Debug)]
pub(crate) struct Passage(Option<Arc<Member>>);

impl Passage {
    /// It has arrived, or stays where it was accepted: whom to wake when nothing is borrowed.
    pub(crate) fn end(mut self) -> Vec<Waker> {
        self.0.take().map_or_else(Vec::new, |member| member.leave())
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let woken = self.0.take().map_or_else(Vec::new, |member| member.leave());
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A connection that a listener accepted, on its way to an endpoint.
pub(crate) enum Arrival {
    /// A submission of the completion API gets it.
    Here { listener: EndpointId, fd: FdRef, seat: Option<Seat>, tag: u64, more: bool },
    /// It is handed over to another member of the group.
    Elsewhere { listener: EndpointId, fd: FdRef, seat: Seat, passage: Passage },
    /// Nothing comes after what came before: who waits is told.
    NoMore { listener: EndpointId },
}

#[cfg(test)]
mod tests {
    use super::super::remote::Link;
    use super::*;
    use crate::driver::Wake;
    use proptest::prelude::*;
    use std::thread;

    fn members(shards: usize, distribution: Distribution) -> Vec<Share> {
        let group = Group::new(shards, distribution);
        let remote = || Remote { link: Link::new(1, Wake::flag(Arc::default())) };
        (0..shards).map(|index| Share::join(&group, index, remote())).collect()
    }

    fn arrive(share: &Share) -> Seat {
        share.place_elsewhere(&mut Vec::new()).map_or_else(|| share.sit(), |(seat, _)| seat)
    }

    /// Few connections differ by chance: some may close together.
    const DIFFERENCE_MIN: f64 = 4.0;

    /// Whether each count is within a tenth of the mean.
    fn is_balanced(live: &[usize]) -> bool {
        let mean = live.iter().sum::<usize>() as f64 / live.len() as f64;
        let most = (mean / 10.0).max(DIFFERENCE_MIN);
        live.iter().all(|count| (*count as f64 - mean).abs() <= most)
    }

    /// A small generator of random numbers (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    const ARRIVALS: usize = 10_000;

    /// Where connections arrive.
    #[derive(Clone, Copy, Debug)]
    enum Skew {
        AllAtTheFirst,
        MostAtTheLast,
        Anywhere,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Of ten connections `short` close soon again, the others stay; so many stay at most.
        #[test]
        fn counts_differ_by_a_tenth_at_most_whoever_accepts_and_whatever_closes(
            shards in 2_usize..=8,
            one_acceptor: bool,
            skew in prop_oneof![Just(Skew::AllAtTheFirst), Just(Skew::MostAtTheLast), Just(Skew::Anywhere)],
            short in 0_usize..=10,
            stay_max in 200_usize..4000,
            seed in 1_u64..,
        ) {
            let distribution = if one_acceptor { Distribution::OneAcceptor } else { Distribution::Balanced };
            let shares = members(shards, distribution);
            let (mut random, mut stays, mut goes) = (Random(seed), Vec::new(), Vec::new());
            for arrival in 0..ARRIVALS {
                let place = match skew {
                    _ if one_acceptor => 0,
                    Skew::AllAtTheFirst => 0,
                    Skew::MostAtTheLast if random.below(10) > 0 => shards - 1,
                    _ => random.below(shards),
                };
                let seat = arrive(&shares[place]);
                if random.below(10) < short { goes.push(seat) } else { stays.push(seat) }
                if goes.len() > 100 {
                    goes.swap_remove(random.below(100));
                }
                if stays.len() > stay_max {
                    stays.swap_remove(random.below(stay_max));
                }
                let live = shares[0].group.live();
                prop_assert!(is_balanced(&live), "{live:?} after {arrival} arrivals");
            }
            drop((stays, goes));
            prop_assert_eq!(shares[0].group.live(), vec![0; shards]);
        }
    }

    #[test]
    fn counts_stay_even_while_every_member_accepts_on_a_thread_of_its_own() {
        let shares = members(4, Distribution::Balanced);
        let group = Arc::clone(&shares[0].group);
        // Of each hundred connections the first members accept nearly all.
        let kept: Vec<Vec<Seat>> = thread::scope(|scope| {
            let threads = shares.iter().zip([70, 28, 1, 1]).map(|(share, percent)| {
                scope.spawn(move || {
                    let (mut random, mut seats) = (Random(percent as u64), Vec::new());
                    for _ in 0..ARRIVALS * percent / 100 {
                        seats.push(arrive(share));
                        if random.below(3) == 0 {
                            seats.swap_remove(random.below(seats.len()));
                        }
                    }
                    seats
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let live = group.live();
        assert!(is_balanced(&live), "{live:?}");
        assert_eq!(live.iter().sum::<usize>(), kept.iter().map(Vec::len).sum::<usize>());
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn one_that_has_left_is_empty_when_the_last_connection_on_its_way_has_arrived() {
        let shares = members(2, Distribution::OneAcceptor);
        let arrival = |_| (shares[0].sit(), shares[0].place_elsewhere(&mut Vec::new()));
        let mut on_the_way: Vec<_> = (0..6).map(arrival).collect();
        assert!(on_the_way.iter().all(|(_, place)| place.is_some()));
        let woken = Arc::new(Woken::default());
        shares[1].leave();
        shares[1].wake_when_empty(&Waker::from(Arc::clone(&woken)));
        assert!(shares[0].place_elsewhere(&mut Vec::new()).is_none(), "its gate is closed");
        while let Some((_, place)) = on_the_way.pop() {
            assert!(!shares[1].is_empty());
            assert_eq!(woken.0.load(Ordering::SeqCst), 0);
            let (_, passage) = place.expect("it has a place");
            // Some arrive, some are given back or dropped on the way.
            match on_the_way.len() % 2 {
                0 => passage.end().into_iter().for_each(Waker::wake),
                _ => drop(passage),
            }
        }
        assert!(shares[1].is_empty());
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        shares[1].come_back();
        let _own = shares[0].sit();
        assert!(
            !shares[1].is_empty() && shares[0].place_elsewhere(&mut Vec::new()).is_some(),
            "it may come back"
        );
    }

    #[test]
    fn a_gate_that_closes_while_connections_enter_counts_each_or_refuses_it() {
        for _ in 0..200 {
            let shares = members(2, Distribution::OneAcceptor);
            let (acceptor, leaving) = (&shares[0], &shares[1]);
            let _own: Vec<Seat> = (0..100).map(|_| acceptor.sit()).collect();
            let (entered, arrived) = (AtomicUsize::new(0), AtomicUsize::new(0));
            thread::scope(|scope| {
                scope.spawn(|| {
                    while let Some((seat, passage)) = acceptor.place_elsewhere(&mut Vec::new()) {
                        drop(seat);
                        entered.fetch_add(1, Ordering::SeqCst);
                        arrived.fetch_add(1, Ordering::SeqCst);
                        drop(passage);
                    }
                });
                thread::yield_now();
                leaving.leave();
                while !leaving.is_empty() {
                    thread::yield_now();
                }
                // Whatever had entered has arrived, and nothing enters any more.
                let arrived = arrived.load(Ordering::SeqCst);
                thread::yield_now();
                assert_eq!(entered.load(Ordering::SeqCst), arrived);
            });
        }
    }

    #[test]
    fn one_that_has_left_gets_nothing_and_may_lose_what_it_has() {
        let shares = members(3, Distribution::Balanced);
        shares[2].leave();
        let seats: Vec<Seat> = (0..100).map(|_| arrive(&shares[0])).collect();
        assert_eq!(shares[0].group.live()[2], 0);
        assert!(is_balanced(&shares[0].group.live()[..2]));
        drop(seats);
    }
}
