//! Descriptor numbers that come again at once, while receives of the old owner are in flight; and completions
//! that name an operation of the past.

use crate::tools::{Rng, Run, after_polls, number, pair, scenario};
use anabranch::driver::op::RecvMulti;
use anabranch::driver::{Done, Driver, Token, completion::Received};
use anabranch::net::TcpStream;
use anabranch::{Close, Counters, EndpointId, Event, Shard};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A message that names its connection.
fn message(id: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&id.to_le_bytes()));
    bytes
}

/// Bytes of connection `id` may come in pieces, from any place of the repeated id on.
fn check(id: u64, at: &mut usize, bytes: &[u8]) {
    for byte in bytes {
        assert_eq!(*byte, id.to_le_bytes()[*at % 8], "connection {id} got a byte of another");
        *at += 1;
    }
}

#[test]
fn a_reused_descriptor_gets_nothing_of_its_last_owner() {
    scenario("reused descriptors", |run| {
        let rounds = run.size(800, 10_000);
        let mut rng = run.rng();
        let (again, bytes) = by_completions(run, rounds / 2, &mut rng);
        run.say(format_args!(
            "completions: {} reopened, {again} on the same number, {bytes} bytes",
            rounds / 2
        ));
        assert!(again > rounds / 4, "most descriptors have a number that was used before");
        let again = by_futures(run, rounds / 2, &mut rng);
        run.say(format_args!("futures: {} reopened, {again} on the same number", rounds / 2));
        assert!(again > rounds / 4, "most descriptors have a number that was used before");
    });
}

/// A few connections, each closed with its receive in flight and opened again.
fn by_completions(run: &Run, rounds: usize, rng: &mut Rng) -> (usize, usize) {
    const RECEIVE: u64 = 1;
    const CLOSE: u64 = 2;
    let shard = Shard::new(run.config.clone()).expect("a shard");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut open: HashMap<EndpointId, (u64, usize, std::net::TcpStream)> = HashMap::new();
    let (mut numbers, mut again, mut opened, mut closed, mut bytes) = (HashSet::new(), 0, 0, 0, 0);
    while closed < rounds {
        while open.len() < 4 && opened < rounds {
            let (mut far, near) = pair(&listener);
            again += usize::from(!numbers.insert(number(&near)));
            let id = shard.adopt_stream(near).expect("room for a connection");
            shard.submit_recv_multi(id, RECEIVE).expect("an open connection");
            if rng.below(2) == 0 {
                far.write_all(&message(opened as u64)).unwrap();
            }
            assert!(open.insert(id, (opened as u64, 0, far)).is_none());
            opened += 1;
        }
        let mut events = Vec::new();
        shard.poll(Some(Duration::ZERO), |completion| events.push(completion)).unwrap();
        for completion in events {
            let Some((own, at, _)) = open.get_mut(&completion.endpoint) else {
                // Each close that was asked for is answered; nothing else comes after the first answer.
                assert!(
                    matches!(completion.event, Event::Closed),
                    "{:?} came after the close",
                    completion.event
                );
                continue;
            };
            match completion.event {
                Event::Received(lease) => {
                    check(*own, at, &lease);
                    bytes += lease.len();
                }
                Event::Failed(_) => assert_eq!(completion.tag, RECEIVE),
                Event::Closed => {
                    // The far end may still send: it must not reach whoever has the number now.
                    let (own, _, mut far) = open.remove(&completion.endpoint).unwrap();
                    let _ = far.write(&message(own));
                    closed += 1;
                    run.progress(closed, rounds);
                }
                other => panic!("tag {} got {other:?}", completion.tag),
            }
        }
        for (id, (own, _, far)) in &mut open {
            let _ = far.write(&message(*own));
            if rng.below(2) == 0 {
                let how = if rng.below(2) == 0 { Close::Abort } else { Close::Flush };
                // It may be closing already.
                let _ = shard.submit_close(*id, how, CLOSE);
            }
        }
    }
    run.settle(shard);
    (again, bytes)
}

/// Connections that are dropped with a receive in flight; the next one opens while the last one closes.
fn by_futures(run: &Run, rounds: usize, rng: &mut Rng) -> usize {
    let shard = Shard::new(run.config.clone()).expect("a shard");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut numbers, mut again) = (HashSet::new(), 0);
    shard.block_on(async {
        for round in 0..rounds as u64 {
            run.progress(round as usize, rounds);
            let (mut far, near) = pair(&listener);
            again += usize::from(!numbers.insert(number(&near)));
            let mut stream = TcpStream::from_std(near).expect("room for a connection");
            let (mut at, polls) = (0, rng.below(3));
            let _ = after_polls(polls, stream.recv()).await;
            far.write_all(&message(round)).unwrap();
            if rng.below(2) == 0 {
                if let Some(came) = after_polls(polls, stream.recv()).await {
                    check(round, &mut at, &came.unwrap().expect("the far end is open"));
                }
            } else {
                let bytes = stream.recv_exact(32).await.expect("the far end has sent 32 bytes");
                check(round, &mut at, &bytes);
            }
            far.write_all(&message(round)).unwrap();
            if rng.below(2) == 0 {
                stream.abort()
            } else {
                drop(stream)
            }
            let _ = far.write(&message(round));
        }
    });
    run.settle(shard);
    again
}

#[test]
fn forged_completions_reach_no_new_connection() {
    scenario("forged completions", |run| {
        let rounds = run.size(1_000, 10_000);
        let mut rng = run.rng();
        let mut driver = Driver::new(&run.config).expect("a driver");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut forged = 0;
        let mut old: Option<Token> = None;
        for round in 0..rounds as u64 {
            run.progress(round as usize, rounds);
            let (mut far, near) = pair(&listener);
            let socket = driver.adopt(near).unwrap();
            let token = driver.submit(RecvMulti::new(socket.clone()), round).expect("a free slot");
            let (index, generation) = parts(token);
            // What the last owner of the slot might still get, and what never was.
            let mut late: Vec<(usize, u32)> = old.iter().map(|token| parts(*token)).collect();
            late.extend([(index, generation - 1), (index + 1, generation), (index, generation + 1)]);
            for (index, generation) in late {
                let result = [0, 1, 32, -1, -104, -125][rng.below(6) as usize];
                assert!(
                    driver.settle_forged(index, generation, result).is_none(),
                    "a stale completion was delivered"
                );
                forged += 1;
            }
            far.write_all(&message(round)).unwrap();
            receive(&mut driver, token, round);
            driver.cancel(token);
            drop(socket);
            until_over(&mut driver, token);
            old = Some(token);
        }
        let mut counters = Counters::default();
        driver.count(&mut counters);
        run.check(&counters, forged);
        run.say(format_args!("{forged} forged, none delivered"));
    });
}

/// The index and the generation of a token, from its text: programs have no other way to them.
fn parts(token: Token) -> (usize, u32) {
    let text = format!("{token:?}");
    let inside = text.strip_prefix("Token(").and_then(|text| text.strip_suffix(')')).expect("Token(i:g)");
    let (index, generation) = inside.split_once(':').expect("Token(i:g)");
    (index.parse().unwrap(), generation.parse().unwrap())
}

fn receive(driver: &mut Driver, token: Token, id: u64) {
    let (mut at, mut out, end) = (0, Vec::new(), Instant::now() + Duration::from_secs(10));
    while at < 32 {
        assert!(Instant::now() < end, "the bytes of connection {id} do not come");
        driver.wait(Some(Duration::from_millis(100)), &mut out).unwrap();
        for raw in out.drain(..) {
            let Some(completion) = driver.settle(raw) else {
                panic!("a stale completion that nobody forged")
            };
            assert_eq!((completion.token, completion.owner), (token, id));
            match completion.done {
                Done::Received(Received::Data(lease)) => check(id, &mut at, &lease),
                other => panic!("connection {id} got {other:?}"),
            }
        }
    }
}

fn until_over(driver: &mut Driver, token: Token) {
    let mut out = Vec::new();
    loop {
        driver.wait(Some(Duration::from_millis(100)), &mut out).unwrap();
        for raw in out.drain(..) {
            let completion = driver.settle(raw).expect("no stale completion that nobody forged");
            assert_eq!(completion.token, token);
            if !completion.more {
                return;
            }
        }
    }
}
