//! Listeners that several shards share: who accepts, and who gets the connection.
//!
//! Each member has a live count of its connections. A count rises when a connection is assigned, before it is
//! handed over, and falls when the connection's endpoint ends, wherever it lives; so the counts never miss one.
#![forbid(unsafe_code)]

use super::endpoint::EndpointId;
use super::remote::Remote;
use crate::driver::FdRef;
use crate::driver::sys::os::HAS_SHARED_PORTS;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
    listening: AtomicBool,
    remote: Mutex<Option<Remote>>,
}

impl Group {
    pub(crate) fn new(shards: usize, distribution: Distribution) -> Arc<Group> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let key = NEXT.fetch_add(1, Ordering::Relaxed) as u64;
        let distribution = if HAS_SHARED_PORTS { distribution } else { Distribution::OneAcceptor };
        let member = || Member {
            group: key,
            live: AtomicUsize::new(0),
            listening: AtomicBool::new(false),
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
        let listening =
            self.members.iter().enumerate().filter(|(_, member)| member.listening.load(Ordering::Acquire));
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
        *member.remote.lock().unwrap_or_else(PoisonError::into_inner) = Some(remote);
        member.listening.store(true, Ordering::Release);
        Share { group: Arc::clone(group), index }
    }

    /// Nobody hands over to this shard any more.
    pub(crate) fn leave(&self) {
        self.group.members[self.index].listening.store(false, Ordering::Release);
    }

    /// Whether this shard accepts itself.
    pub(crate) fn accepts(&self) -> bool {
        self.group.accepts(self.index)
    }

    /// A place for a new connection with another shard, if it does not belong to this one. It is taken at once,
    /// so that the next connection of the same turn finds it in the counts.
    pub(crate) fn place_elsewhere(&self) -> Option<Seat> {
        let own = self.group.members[self.index].live.load(Ordering::Relaxed);
        let (fewest, target) = self.group.least()?;
        let over = match self.group.distribution {
            Distribution::ReusePort => false,
            Distribution::Balanced => own > fewest + SLACK,
            Distribution::OneAcceptor => own > fewest,
        };
        (over && target != self.index).then(|| Seat::take(&self.group, target))
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
        (self.0.remote.lock().unwrap_or_else(PoisonError::into_inner).clone(), self.0.group)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that a listener accepted, on its way to an endpoint.
pub(crate) enum Arrival {
    /// A submission of the completion API gets it.
    Here { listener: EndpointId, fd: FdRef, seat: Option<Seat>, tag: u64, more: bool },
    /// It is handed over to another member of the group.
    Elsewhere { listener: EndpointId, fd: FdRef, seat: Seat },
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
        share.place_elsewhere().unwrap_or_else(|| share.sit())
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
