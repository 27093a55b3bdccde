//! Broadcasts: one payload to many connections, in order, bounded, and fair to those that keep up.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::TcpStream;
use anabranch::{Broadcast, Close, Config, Departure, Error, Event, Shard, Slow, sleep, spawn, yield_now};
use bytes::Bytes;
use common::net::{
    Driven, Random, alone, assert_reset, check, counted, on_typical_backends, pair, pattern,
    raise_descriptors, recv_all, reset, with_peer,
};
use common::peer::{SystemStream, system_pair};
use common::{on, on_every_backend, real_backends};
use std::io::Read;
use std::time::Duration;

/// Message `number`, which tells its number and its length, and is filled with its number.
fn message(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    bytes
}

/// The numbers of whole messages; anything else is a failure.
fn numbers(mut bytes: &[u8]) -> Vec<u32> {
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (number, len) = (word(0), word(4) as usize);
        assert_eq!(bytes[..len], message(number, len), "message {number} is whole and itself");
        numbers.push(number);
        bytes = &bytes[len..];
    }
    numbers
}

/// A room with one member that is not read, in a turn of its own: what is sent now waits.
async fn room_with_one(cap: usize, slow: Slow) -> (Broadcast, TcpStream, TcpStream) {
    let (ours, theirs) = pair().await;
    let mut room = Broadcast::new().unwrap().backlog_bytes_max(cap).slow(slow);
    room.join(&ours).unwrap();
    yield_now().await;
    (room, ours, theirs)
}

async fn all_numbers(ours: TcpStream, mut theirs: TcpStream) -> Vec<u32> {
    let closing = spawn(async move { ours.close().await });
    let all = recv_all(&mut theirs).await.unwrap();
    closing.await.unwrap().unwrap();
    numbers(&all)
}

#[test]
fn a_hundred_members_get_the_same_bytes_in_the_same_order() {
    on_typical_backends(|config| {
        let (_, counters) = counted(config, async {
            let mut room = Broadcast::new().unwrap();
            let (mut kept, mut readers) = (Vec::new(), Vec::new());
            for _ in 0..100 {
                let (ours, mut theirs) = pair().await;
                room.join(&ours).unwrap();
                kept.push(ours);
                readers.push(spawn(async move { recv_all(&mut theirs).await.unwrap() }));
            }
            let (mut random, mut expected) = (Random(7), Vec::new());
            for number in 0..200 {
                let bytes =
                    message(number, 8 + random.below(if number % 8 == 0 { 5000 } else { 300 }) as usize);
                expected.extend_from_slice(&bytes);
                let delivered = room.send(bytes);
                assert_eq!((delivered.queued, delivered.dropped, delivered.departed.len()), (100, 0, 0));
                match random.below(6) {
                    0 => yield_now().await,
                    1 => sleep(Duration::from_millis(1)).await,
                    _ => {}
                }
            }
            drop(kept);
            for reader in readers {
                assert_eq!(reader.await.unwrap(), expected);
            }
            assert_eq!(room.send("x").departed.len(), 100, "who has gone is told");
        });
        assert_eq!(counters.messages_dropped, 0);
    });
}

#[test]
fn broadcasts_and_what_is_sent_to_one_alone_keep_their_order() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut room, mut ours, theirs) = room_with_one(1 << 20, Slow::DropNewest).await;
            for number in 0..60 {
                let bytes = message(number, 8 + number as usize * 40);
                if number % 3 == 1 {
                    ours.send(bytes).await.unwrap();
                } else {
                    assert_eq!(room.send(bytes).queued, 1);
                }
                if number % 7 == 0 {
                    yield_now().await;
                }
            }
            assert_eq!(all_numbers(ours, theirs).await, (0..60).collect::<Vec<_>>());
        });
    });
}

#[test]
fn a_member_without_room_does_not_get_the_newest() {
    on_every_backend(|config| {
        check(config, async {
            let (mut room, ours, theirs) = room_with_one(10_000, Slow::DropNewest).await;
            let delivered: Vec<_> = (0..100).map(|number| room.send(message(number, 1000))).collect();
            // A message that waits costs a little more than its bytes, so the tenth has no room.
            assert_eq!(delivered.iter().map(|one| one.queued).sum::<usize>(), 9);
            assert_eq!(delivered.iter().map(|one| one.dropped).sum::<u64>(), 91);
            assert_eq!((room.dropped(), room.dropped_of(&ours)), (91, Some(91)));
            assert_eq!(anabranch::counters().unwrap().messages_dropped, 91);
            assert_eq!(all_numbers(ours, theirs).await, (0..9).collect::<Vec<_>>());
        });
    });
}

#[test]
fn a_member_without_room_loses_the_oldest() {
    on_every_backend(|config| {
        check(config, async {
            let (mut room, ours, theirs) = room_with_one(10_000, Slow::DropOldest).await;
            for number in 0..100 {
                let delivered = room.send(message(number, 1000));
                assert_eq!((delivered.queued, delivered.dropped), (1, u64::from(number >= 9)));
            }
            assert_eq!((room.dropped(), room.dropped_of(&ours)), (91, Some(91)));
            assert_eq!(all_numbers(ours, theirs).await, (91..100).collect::<Vec<_>>());
        });
    });
}

#[test]
fn what_was_sent_to_one_alone_is_never_dropped_and_its_completion_comes() {
    on_every_backend(|config| {
        let mut driven = Driven::new(config);
        let mut room = driven.shard.broadcast().backlog_bytes_max(5000).slow(Slow::DropOldest);
        let (id, theirs) = driven.with_peer();
        room.join(id).unwrap();
        let mut dropped = 0;
        for number in 0..30 {
            if number % 10 == 5 {
                let sent = driven.shard.submit_send(id, message(number, 1000), number.into());
                assert!(matches!(sent, Ok(Ok(()))));
            } else {
                dropped += room.send(message(number, 1000)).dropped;
            }
        }
        driven.end_of(5);
        driven.end_of(15);
        driven.end_of(25);
        assert!(driven.events.iter().all(|one| matches!(one.event, Event::Sent)));
        driven.shard.submit_close(id, Close::Flush, 99).unwrap();
        driven.end_of(99);
        let mut all = Vec::new();
        (&theirs).read_to_end(&mut all).unwrap();
        let got = numbers(&all);
        assert_eq!(got, [5, 15, 25, 29], "the oldest of the others make room for the newest");
        assert_eq!(dropped, 26);
        driven.finish();
    });
}

#[test]
fn messages_that_are_larger_than_the_backlog_go_one_at_a_time() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut room, ours, theirs) = room_with_one(1000, Slow::DropOldest).await;
            assert_eq!(room.send(message(0, 5000)).queued, 1);
            let second = room.send(message(1, 5000));
            assert_eq!((second.queued, second.dropped), (1, 1), "the first has not begun to leave");
            assert_eq!(all_numbers(ours, theirs).await, [1]);
        });
    });
}

#[test]
fn joined_messages_are_counted_each_and_stay_together() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut room, ours, theirs) = room_with_one(2000, Slow::DropOldest).await;
            for number in 0..10 {
                let both = [message(number, 400), message(100 + number, 400)].concat();
                let delivered = room.send_joined(both, 2);
                assert_eq!((delivered.queued, delivered.dropped), (1, if number < 2 { 0 } else { 2 }));
            }
            assert_eq!(all_numbers(ours, theirs).await, [8, 108, 9, 109]);
        });
    });
}

#[test]
fn several_messages_at_once_fare_as_one_after_the_other() {
    on_typical_backends(|config| {
        check(config, async {
            for seed in 0..60 {
                let mut random = Random(seed + 1);
                let slow = if seed % 2 == 0 { Slow::DropNewest } else { Slow::DropOldest };
                let cap = 20 + random.below(20_000) as usize;
                let (mut single, first, from_first) = room_with_one(cap, slow).await;
                let (mut several, second, from_second) = room_with_one(cap, slow).await;
                let mut next = 0;
                for _ in 0..1 + random.below(4) {
                    let some: Vec<_> = (0..random.below(12))
                        .map(|_| {
                            next += 1;
                            let spread = if random.below(4) == 0 { 9000 } else { 500 };
                            message(next, 8 + random.below(spread) as usize)
                        })
                        .collect();
                    let each: Vec<_> = some.iter().map(|message| single.send(message.clone())).collect();
                    let all = several.send_all(some);
                    assert_eq!(all.dropped, each.iter().map(|one| one.dropped).sum::<u64>(), "seed {seed}");
                    let queued = each.is_empty() || each.iter().any(|one| one.queued == 1);
                    assert_eq!(all.queued == 1, queued, "seed {seed}");
                }
                assert_eq!(single.dropped_of(&first), several.dropped_of(&second));
                let expected = all_numbers(first, from_first).await;
                assert_eq!(all_numbers(second, from_second).await, expected, "seed {seed}");
            }
        });
    });
}

#[test]
fn a_member_without_room_is_disconnected_and_nobody_else() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut room, ours, mut theirs) = room_with_one(4000, Slow::Disconnect).await;
            // One that has joined later has more room.
            let (late, late_theirs) = pair().await;
            for number in 0..3 {
                assert_eq!(room.send(message(number, 1000)).queued, 1);
            }
            room.join(&late).unwrap();
            let delivered = room.send(message(3, 1000));
            assert_eq!((delivered.queued, delivered.dropped), (1, 1));
            let [departed] = &delivered.departed[..] else { panic!("{delivered:?}") };
            assert_eq!((departed.id, departed.dropped), (ours.id(), 1));
            assert!(matches!(departed.why, Departure::TooSlow));
            assert_eq!(room.len(), 1);
            let (mut ours, late) = (ours, late);
            assert!(ours.recv().await.is_err(), "who reads from it is told");
            drop(ours);
            assert_reset(theirs.recv().await);
            assert_eq!(room.send(message(4, 1000)).departed.len(), 0, "a departure is told once");
            assert_eq!(all_numbers(late, late_theirs).await, [3, 4]);
        });
    });
}

#[test]
fn a_member_that_stalls_loses_exactly_what_is_counted() {
    for slow in [Slow::DropNewest, Slow::DropOldest] {
        on_typical_backends(|config| {
            let (lost, counters) = counted(config, stall(slow));
            assert_eq!(counters.messages_dropped, lost);
        });
    }
}

/// Much more than the system holds is sent to one that reads at the end, and to one that reads all the time.
async fn stall(slow: Slow) -> u64 {
    let (mut room, ours, mut theirs) = room_with_one(200_000, slow).await;
    let (mut good, mut good_theirs) = pair().await;
    room.join(&good).unwrap();
    let good_reader = spawn(async move { recv_all(&mut good_theirs).await.unwrap() });
    let (mut random, mut count) = (Random(3), 0);
    while count < 300 || room.dropped_of(&ours) < Some(50) {
        assert!(count < 5000, "the system holds more than this test can send");
        let len = if random.below(3) == 0 { 60_000 } else { 8 + random.below(900) as usize };
        let _ = room.send(message(count, len));
        count += 1;
        if count % 3 == 0 {
            good.flush().await.unwrap();
        }
    }
    let lost = room.dropped_of(&ours).unwrap();
    let lost_good = room.dropped_of(&good).unwrap();
    let closing = spawn(async move { ours.close().await });
    let got = numbers(&recv_all(&mut theirs).await.unwrap());
    closing.await.unwrap().unwrap();
    assert!(got.is_sorted(), "in order");
    assert_eq!(got.len() as u64 + lost, u64::from(count));
    good.close().await.unwrap();
    assert_eq!(numbers(&good_reader.await.unwrap()).len() as u64 + lost_good, u64::from(count));
    assert_eq!(lost_good, 0, "who keeps up loses nothing");
    lost + lost_good
}

#[test]
fn who_leaves_gets_what_was_sent_before_and_nothing_after() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut room, ours, theirs) = room_with_one(1 << 20, Slow::DropNewest).await;
            let _ = room.send(message(0, 100));
            assert_eq!(room.leave(&ours), Some(0));
            assert_eq!(room.leave(&ours), None);
            assert_eq!(room.send(message(1, 100)).queued, 0);
            room.join(&ours).unwrap();
            room.join(&ours).unwrap();
            assert_eq!(room.len(), 1, "who is a member does not become one twice");
            assert_eq!(room.send(message(2, 100)).queued, 1);
            assert_eq!(all_numbers(ours, theirs).await, [0, 2]);
        });
    });
}

#[test]
fn members_that_end_in_the_middle_are_told_once_and_the_others_get_everything() {
    on_typical_backends(|config| {
        check(config, async {
            let mut room = Broadcast::new().unwrap();
            let (dropped, _dropped_theirs) = pair().await;
            let (half_dropped, _half_theirs) = pair().await;
            let (failed, failed_theirs) = with_peer();
            let (good, good_theirs) = pair().await;
            let (_reading, half) = half_dropped.into_split();
            room.join(&half).unwrap();
            for stream in [&dropped, &failed, &good] {
                room.join(stream).unwrap();
            }
            assert_eq!(room.send(message(0, 2000)).queued, 4);
            let (dropped_id, half_id, failed_id) = (dropped.id(), half.id(), failed.id());
            drop(dropped);
            drop(half);
            let delivered = room.send(message(1, 2000));
            assert_eq!(delivered.queued, 2);
            let mut ids: Vec<_> = delivered.departed.iter().map(|one| one.id).collect();
            ids.sort();
            assert_eq!(ids, [dropped_id, half_id]);
            assert!(delivered.departed.iter().all(|one| matches!(one.why, Departure::Closed)));
            assert!(matches!(room.join(half_id), Err(Error::Closed)));
            reset(failed_theirs);
            let mut number = 2;
            let departed = loop {
                let delivered = room.send(message(number, 2000));
                number += 1;
                if let Some(departed) = delivered.departed.into_iter().next() {
                    break departed;
                }
                sleep(Duration::from_millis(1)).await;
            };
            assert_eq!(departed.id, failed_id);
            assert!(matches!(departed.why, Departure::Failed(Error::Io(_))), "{departed:?}");
            assert_eq!(room.len(), 1);
            assert_eq!(all_numbers(good, good_theirs).await, (0..number).collect::<Vec<_>>());
        });
    });
}

#[test]
fn slow_members_take_nothing_from_those_that_keep_up() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_total_max = 100_000);
        check(config, async {
            let mut room = Broadcast::new().unwrap().backlog_bytes_max(64_000);
            let mut pairs = Vec::new();
            for _ in 0..9 {
                let (ours, theirs) = pair().await;
                room.join(&ours).unwrap();
                pairs.push((ours, theirs));
            }
            yield_now().await;
            let queued: usize = (0..100).map(|number| room.send(message(number, 1000)).queued).sum();
            assert!((81..=100).contains(&queued), "{queued}: all together have no more than the bound");
            let (ours, theirs) = pair().await;
            room.join(&ours).unwrap();
            for (ours, theirs) in pairs {
                assert!(all_numbers(ours, theirs).await.len() >= 9);
            }
            assert_eq!(room.send(message(100, 1000)).queued, 1);
            assert_eq!(all_numbers(ours, theirs).await, [100]);
        });
    });
}

#[test]
fn members_that_come_and_go_without_a_message_are_not_kept() {
    on_typical_backends(|config| {
        check(config, async {
            let mut room = Broadcast::new().unwrap();
            for _ in 0..200 {
                let (ours, _theirs) = pair().await;
                room.join(&ours).unwrap();
                assert!(room.len() <= 65, "{}", room.len());
            }
            assert_eq!(room.send("x").departed.len(), 200);
            assert!(room.is_empty());
        });
    });
}

/// Bytes whose destructor uses the shard, as foreign code may.
struct Foreign(Vec<u8>);

impl AsRef<[u8]> for Foreign {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        assert!(anabranch::counters().is_ok());
    }
}

#[test]
fn the_owner_of_the_bytes_is_dropped_when_nothing_is_borrowed() {
    on_typical_backends(|config| {
        let (_, counters) = counted(config, async {
            let (mut room, ours, mut theirs) = room_with_one(10_000, Slow::DropOldest).await;
            let (other, _other_theirs) = pair().await;
            for len in [10, 4000, 500, 8000, 20, 9000] {
                let _ = room.send(Bytes::from_owner(Foreign(pattern(len))));
            }
            drop(ours);
            recv_all(&mut theirs).await.unwrap();
            let _ = room.send(Bytes::from_owner(Foreign(pattern(4000))));
            room.join(&other).unwrap();
            let _ = room.send(Bytes::from_owner(Foreign(pattern(4000))));
            other.abort();
        });
        assert_eq!(counters.panics, 0);
    });
}

#[test]
fn a_broadcast_that_outlives_its_shard_says_that_all_have_left() {
    on_typical_backends(|config| {
        let shard = Shard::new(config).unwrap();
        let mut room = shard.broadcast();
        let (ours, _theirs) = common::net::std_pair();
        room.join(shard.adopt_stream(ours).unwrap()).unwrap();
        drop(shard);
        assert_eq!(room.send("x").departed.len(), 1);
        assert!(room.is_empty());
    });
}

/// Makes many connections members; gives their other ends.
fn join_many(driven: &Driven, room: &mut Broadcast, members: u64) -> Vec<SystemStream> {
    let join = |_| {
        let (ours, theirs) = system_pair().unwrap();
        room.join(driven.shard.adopt_stream(ours).unwrap()).unwrap();
        theirs
    };
    (0..members).map(join).collect()
}

/// Sends to many members, and gives the turns that it took until every send had ended.
fn turns_for(config: Config, members: u64) -> u64 {
    let mut driven = Driven::new(config);
    let mut room = driven.shard.broadcast();
    let peers = join_many(&driven, &mut room, members);
    driven.idle(Duration::from_millis(5));
    let mut turns = 0;
    for round in 0..3 {
        let before = driven.shard.counters();
        for number in 0..4 {
            assert_eq!(room.send(message(round * 4 + number, 32)).queued as u64, members);
        }
        driven.shard.poll(Some(Duration::ZERO), |_| {}).unwrap();
        let after = driven.shard.counters();
        assert_eq!(after.submitted - before.submitted, members, "one send for each member");
        assert_eq!(after.turns - before.turns, 1);
        while driven.shard.counters().bytes_out < members * u64::from(round + 1) * 4 * 32 {
            driven.shard.poll(Some(Duration::from_millis(10)), |_| {}).unwrap();
        }
        turns += driven.shard.counters().turns - before.turns;
    }
    for mut theirs in peers {
        let mut bytes = [0; 3 * 4 * 32];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(numbers(&bytes), (0..12).collect::<Vec<_>>());
    }
    driven.finish();
    turns
}

#[test]
fn a_thousand_members_get_a_broadcast_in_one_batch() {
    raise_descriptors();
    on(real_backends(), |config| assert!(turns_for(config, 900) <= 6));
}

#[test]
fn more_members_than_the_ring_has_places_get_it_in_several() {
    raise_descriptors();
    on(real_backends(), |config| {
        let turns = turns_for(config.ring_entries(64), 900);
        assert!(turns <= 3 * (900 / 64 + 3), "{turns} turns");
    });
}

/// Members that are disconnected in one broadcast, while the sends of most of them wait for a place in the ring.
fn disconnect_many(config: Config, members: u64) {
    let driven = Driven::new(config);
    let mut room = driven.shard.broadcast().backlog_bytes_max(1000).slow(Slow::Disconnect);
    let peers = join_many(&driven, &mut room, members);
    assert_eq!(room.send(vec![1; 900]).queued as u64, members);
    driven.shard.poll(Some(Duration::ZERO), |_| {}).unwrap();
    // Where the first ones have left, the second still finds room.
    let both = [room.send(vec![2; 900]), room.send(vec![3; 900])];
    let departed: Vec<_> = both.into_iter().flat_map(|delivered| delivered.departed).collect();
    assert!(departed.iter().all(|one| matches!(one.why, Departure::TooSlow)));
    assert_eq!((room.len(), room.dropped(), departed.len() as u64), (0, members, members));
    let end = common::peer::now() + Duration::from_secs(30);
    while driven.shard.counters().closes < members {
        assert!(common::peer::now() < end, "{:?}", driven.shard.counters());
        driven.shard.poll(Some(Duration::from_millis(10)), |_| {}).unwrap();
    }
    for mut theirs in peers {
        let mut bytes = Vec::new();
        let _ = theirs.read_to_end(&mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 1), "nothing is sent after the end");
    }
    let counters = driven.finish();
    assert_eq!(counters.messages_dropped, members);
}

#[test]
fn members_whose_sends_wait_for_the_ring_are_disconnected_together() {
    raise_descriptors();
    on(real_backends(), |config| disconnect_many(config.ring_entries(64), 900));
}

/// As many members as descriptors allow, up to ten thousand.
#[test]
fn ten_thousand_members_get_a_broadcast_and_are_disconnected() {
    alone("ten_thousand_members_get_a_broadcast_and_are_disconnected", || {
        // Without Unix sockets each member takes a port.
        let most = if cfg!(windows) { 2_000 } else { 10_000 };
        let members = (raise_descriptors().saturating_sub(200) as u64 / 2).min(most);
        on(real_backends(), |config| {
            let turns = turns_for(config.clone(), members);
            println!("{members} members: {turns} turns");
            assert!(turns <= 3 * (members / 256 + 3), "{turns} turns");
            let begin = common::peer::now();
            disconnect_many(config.ring_entries(64), members);
            println!("{members} members disconnected: {:?}", begin.elapsed());
        });
    });
}

#[test]
fn completions_come_in_time_though_messages_in_front_were_dropped() {
    on(real_backends(), |config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_max = 64 << 20);
        let mut driven = Driven::new(config);
        let (id, theirs) = driven.with_peer();
        let mut room = driven.shard.broadcast().backlog_bytes_max(64 << 20).slow(Slow::DropOldest);
        // More than the system holds, so that a send stays in flight.
        assert!(matches!(driven.shard.submit_send(id, vec![0; 32 << 20], 1), Ok(Ok(()))));
        driven.idle(Duration::from_millis(5));
        room.join(id).unwrap();
        let _ = room.send(vec![1; 1000]);
        assert!(matches!(driven.shard.submit_send(id, vec![2; 1000], 2), Ok(Ok(()))));
        let _ = room.send(vec![3; 1000]);
        assert!(matches!(driven.shard.submit_send(id, vec![4; 1000], 3), Ok(Ok(()))));
        room = room.backlog_bytes_max(100);
        assert_eq!(room.send(vec![5; 1000]).queued, 0, "nothing is dropped in vain");
        room = room.backlog_bytes_max((32 << 20) + 3500);
        assert_eq!(room.send(vec![6; 1000]).dropped, 2, "both broadcasts make room");
        driven.idle(Duration::from_millis(5));
        assert!(driven.events.is_empty(), "the send in flight has not ended");
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; (32 << 20) + 3000];
            (&theirs).read_exact(&mut all).unwrap();
            (all, theirs)
        });
        for tag in [1, 2, 3] {
            assert!(matches!(driven.end_of(tag), Event::Sent));
        }
        let (all, _theirs) = reader.join().unwrap();
        let rest: Vec<_> = all[32 << 20..].chunks(1000).map(|one| (one[0], one[999])).collect();
        assert_eq!(rest, [(2, 2), (4, 4), (6, 6)]);
        driven.finish();
    });
}
