//! Bounds: what waits when a bound is reached, and that nothing is lost by it.
#![forbid(unsafe_code)]

mod common;

use anabranch::{Event, Full, Lease, counters, sleep, spawn, timeout};
use common::net::{Driven, check, on_typical_backends, pair, pattern, recv_all, with_peer};
use common::peer;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

#[test]
fn the_inbound_bound_disarms_and_arms_again_and_no_byte_is_lost() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.inbound_bytes_max = 8 * 1024;
            limits.buffer_bytes = 1024;
            limits.buffers = 256;
        });
        check(config, async {
            let (mut ours, theirs) = with_peer();
            let sent = pattern(8 << 20);
            let expected = sent.clone();
            let peer = peer::spawn(move || {
                (&theirs).write_all(&sent).unwrap();
            });
            let mut got = ours.recv_exact(100).await.unwrap().to_vec();
            // While nobody receives, no more comes in than the bound and what one turn brings.
            sleep(Duration::from_millis(50)).await;
            let before = counters().unwrap().bytes_in;
            sleep(Duration::from_millis(20)).await;
            assert_eq!(counters().unwrap().bytes_in, before, "the receive is still armed");
            assert!(before < 1 << 20, "{before} bytes came in against a bound of 8 KiB");
            got.extend(recv_all(&mut ours).await.unwrap());
            assert!(got == expected, "{} bytes, or others", got.len());
            peer.join().unwrap();
        });
    });
}

#[test]
fn the_outbound_bound_makes_sending_wait_until_the_peer_reads() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_max = 32 * 1024);
        check(config, async {
            let (mut ours, theirs) = with_peer();
            let mut queued = 0;
            let piece = vec![5; 16 * 1024];
            while let Ok(sent) = timeout(Duration::from_millis(100), ours.send(piece.clone())).await {
                sent.unwrap();
                queued += piece.len();
                assert!(queued < 64 << 20, "nothing bounds the queue");
            }
            let reader = peer::spawn(move || {
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).unwrap();
                all.len()
            });
            // The refused payload was dropped with its future; this one goes through.
            ours.send("end").await.unwrap();
            ours.close().await.unwrap();
            assert_eq!(reader.join().unwrap(), queued + 3);
        });
    });
}

#[test]
fn a_payload_above_the_bound_is_taken_by_an_empty_queue_and_given_back_by_a_full_one() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.outbound_bytes_max = 1000);
        let mut driven = Driven::new(config);
        let (id, theirs) = driven.with_peer();
        assert!(matches!(driven.shard.submit_send(id, vec![1; 5000], 1), Ok(Ok(()))));
        let Err(Full(back)) = driven.shard.submit_send(id, vec![2; 600], 2) else {
            panic!("the queue is above its bound")
        };
        assert_eq!(&*back, &[2; 600]);
        assert!(matches!(driven.end_of(1), Event::Sent));
        assert!(matches!(driven.shard.submit_send(id, back, 2), Ok(Ok(()))));
        assert!(matches!(driven.end_of(2), Event::Sent));
        let mut all = vec![0; 5600];
        (&theirs).read_exact(&mut all).unwrap();
        assert_eq!(driven.finish().refusals, 1);
    });
}

#[test]
fn the_total_of_outbound_bytes_makes_a_second_connection_wait_for_the_first() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.outbound_bytes_max = 64 << 20;
            limits.outbound_bytes_total_max = 16 << 20;
        });
        check(config, async {
            let (mut first, slow) = with_peer();
            let (mut second, other) = with_peer();
            first.send(vec![1; 24 << 20]).await.unwrap();
            // A connection with nothing queued may always queue one payload.
            second.send(vec![2; 16 << 20]).await.unwrap();
            let crowded = timeout(Duration::from_millis(50), second.send(vec![3; 1000])).await;
            assert!(crowded.is_err(), "the total is passed");
            let waiting = spawn(async move {
                second.send(vec![3; 1000]).await.unwrap();
                second.close().await
            });
            let readers = [(slow, 24 << 20), (other, (16 << 20) + 1000)].map(|(peer, expected)| {
                peer::spawn(move || {
                    let mut all = Vec::new();
                    (&peer).read_to_end(&mut all).unwrap();
                    assert_eq!(all.len(), expected);
                })
            });
            waiting.await.unwrap().unwrap();
            first.close().await.unwrap();
            for reader in readers {
                reader.join().unwrap();
            }
        });
    });
}

#[test]
fn the_total_of_inbound_bytes_stops_a_connection_with_data_and_not_one_without() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.inbound_bytes_max = 1 << 20;
            limits.inbound_bytes_total_max = 16 * 1024;
            limits.buffer_bytes = 1024;
        });
        check(config, async {
            let (mut full, peer) = with_peer();
            let flood = peer::spawn(move || (&peer).write_all(&pattern(4 << 20)).unwrap());
            let head = full.recv_exact(10).await.unwrap();
            sleep(Duration::from_millis(30)).await;
            let (mut ours, mut theirs) = pair().await;
            for round in 0..10_u8 {
                ours.send(vec![round]).await.unwrap();
                assert_eq!(&theirs.recv_exact(1).await.unwrap()[..], [round]);
            }
            let rest = recv_all(&mut full).await.unwrap();
            assert!([&head[..], &rest].concat() == pattern(4 << 20), "the bytes differ");
            flood.join().unwrap();
        });
    });
}

#[test]
fn a_slow_reader_does_not_stop_the_others() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut slow, _never_reads) = with_peer();
            let stuck = spawn(async move {
                loop {
                    if slow.send(vec![0; 64 * 1024]).await.is_err() {
                        return;
                    }
                }
            });
            sleep(Duration::from_millis(20)).await;
            let (mut ours, mut theirs) = pair().await;
            for round in 0..50_u32 {
                ours.send(round.to_be_bytes().to_vec()).await.unwrap();
                assert_eq!(&theirs.recv_exact(4).await.unwrap()[..], round.to_be_bytes());
            }
            assert!(!stuck.is_finished(), "its peer does not read");
            let mut stuck = stuck;
            stuck.abort();
        });
    });
}

#[test]
fn data_that_waits_while_buffers_are_short_is_copied_out_of_them() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.buffers = 8;
            limits.buffer_bytes = 1024;
        });
        check(config, async {
            // More connections hold unread data than there are buffers.
            let mut streams = Vec::new();
            for n in 0..24_u8 {
                let (mut ours, theirs) = with_peer();
                (&theirs).write_all(&[n; 500]).unwrap();
                assert_eq!(&ours.recv_exact(1).await.unwrap()[..], [n]);
                streams.push((ours, theirs));
            }
            let (mut ours, mut theirs) = pair().await;
            ours.send("still served").await.unwrap();
            assert_eq!(theirs.recv_exact(12).await.unwrap(), "still served");
            for (n, (mut stream, _peer)) in streams.into_iter().enumerate() {
                assert_eq!(stream.recv_exact(499).await.unwrap(), vec![n as u8; 499]);
            }
        });
    });
}

#[test]
fn leases_that_the_program_holds_leave_a_reserve_for_the_others() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.buffers = 8;
            limits.buffer_bytes = 512;
        });
        check(config, async {
            let (mut ours, theirs) = with_peer();
            (&theirs).write_all(&pattern(40 * 512)).unwrap();
            theirs.shutdown(Shutdown::Write).unwrap();
            let mut held: Vec<Lease> = Vec::new();
            while let Some(lease) = ours.recv().await.unwrap() {
                held.push(lease);
            }
            let pooled: usize = held.iter().filter(|lease| lease.is_pooled()).map(|lease| lease.len()).sum();
            assert!(pooled < 8 * 512, "all buffers are held");
            let got: Vec<u8> = held.drain(..).flat_map(|lease| lease.to_vec()).collect();
            assert!(got == pattern(40 * 512), "the bytes differ");
        });
    });
}

/// Polls until nothing comes any more for want of buffers.
fn until_starved(driven: &mut Driven) {
    loop {
        let before = driven.events.len();
        driven.idle(Duration::from_millis(100));
        if driven.events.len() == before && driven.shard.counters().starved > 0 {
            return;
        }
    }
}

/// A waiting remainder, however short, holds a whole buffer; so short ones are copied out before buffers are short.
#[test]
fn hundreds_of_slow_consumers_of_a_few_bytes_do_not_starve_a_fast_one() {
    on_typical_backends(|config| {
        let count = if peer::is_simulated(&config) { 100 } else { 400 };
        let config = config.with_limits(|limits| {
            limits.buffers = 8;
            limits.buffer_bytes = 4096;
        });
        check(config, async move {
            let (mut ours, mut theirs) = pair().await;
            let mut slow = Vec::new();
            for number in 0..count {
                let (mut stream, peer) = with_peer();
                (&peer).write_all(&[number as u8; 33]).unwrap();
                assert_eq!(&stream.recv_exact(1).await.unwrap()[..], [number as u8]);
                slow.push((stream, peer));
                // Others come between, so that each buffer has something that waits.
                if number % (count / 50) == 0 {
                    ours.send(pattern(3000)).await.unwrap();
                    assert_eq!(theirs.recv_exact(3000).await.unwrap(), pattern(3000));
                }
            }
            let sent = pattern(1 << 20);
            let (mut from, mut to) = theirs.into_split();
            let reader = spawn(async move { from.recv_exact(1 << 20).await.unwrap() == pattern(1 << 20) });
            ours.send(sent).await.unwrap();
            assert!(reader.await.unwrap(), "the bytes differ");
            to.shutdown().await.unwrap();
            assert!(ours.recv().await.unwrap().is_none());
            for (number, (mut stream, _peer)) in slow.into_iter().enumerate() {
                assert_eq!(stream.recv_exact(32).await.unwrap(), vec![number as u8; 32]);
            }
        });
    });
}

#[test]
fn leases_that_the_program_holds_starve_a_connection_and_it_recovers() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.buffers = 4;
            limits.buffer_bytes = 512;
        });
        let mut driven = Driven::new(config);
        let (id, theirs) = driven.with_peer();
        let sent = pattern(40 * 512);
        driven.shard.submit_recv_multi(id, 1).unwrap();
        (&theirs).write_all(&sent).unwrap();
        until_starved(&mut driven);
        let (count, bytes) = (driven.events.len(), driven.bytes(1).len());
        assert!(bytes > 4 * 384 && bytes <= 4 * 512, "{bytes} bytes fill the pool");
        let turns = driven.shard.counters().turns;
        driven.idle(Duration::from_millis(50));
        let spent = driven.shard.counters().turns - turns;
        assert!(spent < 500, "it spins while it starves: {spent} turns");
        assert_eq!(driven.events.len(), count, "it was served without a buffer");
        let mut got = Vec::new();
        while got.len() < sent.len() {
            driven.until(|events| !events.is_empty());
            got.extend(driven.bytes(1));
            driven.events.clear();
        }
        assert!(got == sent, "the bytes differ");
        driven.finish();
    });
}

#[test]
fn a_starved_connection_is_woken_when_another_thread_drops_the_bytes() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.buffers = 2;
            limits.buffer_bytes = 512;
        });
        let mut driven = Driven::new(config);
        let (id, theirs) = driven.with_peer();
        driven.shard.submit_recv_multi(id, 1).unwrap();
        (&theirs).write_all(&pattern(5 * 512)).unwrap();
        until_starved(&mut driven);
        let held: Vec<_> = driven
            .events
            .drain(..)
            .filter_map(|completion| match completion.event {
                Event::Received(lease) => Some(lease.into_bytes()),
                _ => None,
            })
            .collect();
        let other = peer::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            let bytes: Vec<u8> = held.concat();
            drop(held);
            bytes
        });
        let mut next = Vec::new();
        let start = peer::now();
        while next.is_empty() {
            // Without a wake this would wait in vain.
            let patience = Some(Duration::from_secs(10));
            driven.shard.poll(patience, |completion| next.push(completion)).unwrap();
        }
        assert!(peer::now() - start < Duration::from_secs(5), "nobody woke it");
        let Event::Received(lease) = &next[0].event else { panic!("{next:?}") };
        let got = [other.join().unwrap(), lease.to_vec()].concat();
        assert_eq!(got, pattern(5 * 512)[..got.len()]);
        drop(next);
        driven.finish();
    });
}

#[test]
fn an_echo_of_pooled_buffers_through_a_slow_peer_does_not_pin_the_pool() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| {
            limits.buffers = 16;
            limits.buffer_bytes = 1024;
        });
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            let echo = spawn(async move {
                while let Some(lease) = theirs.recv().await.unwrap() {
                    theirs.send(lease).await.unwrap();
                }
                theirs.close().await.unwrap();
            });
            let sent = pattern(512 * 1024);
            let (mut from, mut to) = {
                ours.send(sent.clone()).await.unwrap();
                ours.into_split()
            };
            // Read late: the echo's outbound queue fills with leases first.
            sleep(Duration::from_millis(20)).await;
            let got = from.recv_exact(sent.len()).await.unwrap();
            assert!(got == sent, "the bytes differ");
            to.shutdown().await.unwrap();
            echo.await.unwrap();
            assert!(from.recv().await.unwrap().is_none());
        });
    });
}

#[test]
fn a_full_table_of_operations_delays_and_loses_nothing() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.operations_max = 6);
        check(config, async {
            let mut tasks = Vec::new();
            for n in 0..4_u8 {
                let (mut ours, theirs) = with_peer();
                tasks.push(spawn(async move {
                    (&theirs).write_all(&vec![n; 3000]).unwrap();
                    theirs.shutdown(Shutdown::Write).unwrap();
                    ours.send(vec![n; 3000]).await.unwrap();
                    assert_eq!(recv_all(&mut ours).await.unwrap(), vec![n; 3000]);
                    ours.close().await.unwrap();
                    let mut back = Vec::new();
                    (&theirs).read_to_end(&mut back).unwrap();
                    assert_eq!(back, vec![n; 3000]);
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
        });
    });
}
