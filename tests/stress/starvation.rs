//! Sixteen small buffers, very many connections that talk, and a program that holds each buffer for 50 ms.

use crate::common::net::raise_descriptors;
use crate::tools::{Run, busy, pair, percentile, resident, scenario, trim};
use anabranch::{Event, Lease, Shard};
use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BUFFERS: usize = 16;
const BUFFER_BYTES: usize = 512;
const HOLD: Duration = Duration::from_millis(50);

#[test]
fn a_short_pool_serves_everybody_without_spinning() {
    scenario("starvation", |run| {
        let mut count = run.size(200, 2000);
        let most = raise_descriptors().saturating_sub(500) / 2;
        if count > most {
            run.say(format_args!("NOT COVERED: {count} connections; the limit of descriptors allows {most}"));
            count = most;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (far, near): (Vec<_>, Vec<_>) = (0..count).map(|_| pair(&listener)).unzip();
        let over = Arc::new(AtomicBool::new(false));
        let talking = std::thread::spawn({
            let over = Arc::clone(&over);
            move || talk(far, &over)
        });
        serve(run, near);
        over.store(true, Ordering::Release);
        talking.join().unwrap();
    });
}

/// Each connection fills a buffer twice a second.
fn talk(mut sockets: Vec<TcpStream>, over: &AtomicBool) {
    sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    let pause = Duration::from_millis(500) / sockets.len() as u32 * 20;
    while !over.load(Ordering::Acquire) {
        for group in sockets.chunks_mut(20) {
            for socket in group {
                // A full socket is a connection that has said enough.
                let _ = socket.write(&[1; BUFFER_BYTES]);
            }
            std::thread::sleep(pause);
        }
    }
}

fn serve(run: &Run, sockets: Vec<TcpStream>) {
    trim();
    let mut config = run.config.clone();
    (config.limits.buffers, config.limits.buffer_bytes) = (BUFFERS, BUFFER_BYTES);
    let shard = Shard::new(config).expect("a shard");
    let count = sockets.len();
    let mut turns = HashMap::new();
    for socket in sockets {
        let id = shard.adopt_stream(socket).expect("room for a connection");
        shard.submit_recv_multi(id, 0).unwrap();
        turns.insert(id, Vec::new());
    }
    let mut held: VecDeque<(Instant, Lease)> = VecDeque::new();
    // A whole round of all connections at the best possible rate, twice and a half.
    let round = HOLD * (count / BUFFERS + 1) as u32;
    let start = Instant::now();
    let mut measured = None;
    while start.elapsed() < round * 5 / 2 + Duration::from_secs(2) {
        let wait = held.front().map_or(HOLD, |(until, _)| until.saturating_duration_since(Instant::now()));
        shard
            .poll(Some(wait), |completion| match completion.event {
                Event::Received(lease) => {
                    turns.get_mut(&completion.endpoint).expect("a known connection").push(start.elapsed());
                    held.push_back((Instant::now() + HOLD, lease));
                }
                other => panic!("{other:?}"),
            })
            .unwrap();
        while held.front().is_some_and(|(until, _)| *until <= Instant::now()) {
            held.pop_front();
        }
        // The first second sets everything up.
        if measured.is_none() && start.elapsed() > Duration::from_secs(1) {
            measured = Some((Instant::now(), busy(), resident()));
        }
    }
    let (since, busy_before, resident_before) = measured.expect("more than a second has passed");
    let share = (busy() - busy_before).as_secs_f64() / since.elapsed().as_secs_f64();
    let grown = resident().saturating_sub(resident_before);
    held.clear();
    report(run, round, turns.into_values().collect(), share, grown);
    let counters = run.settle(shard);
    assert!(counters.starved > 0, "nobody starved");
}

fn report(run: &Run, round: Duration, turns: Vec<Vec<Duration>>, share: f64, grown: usize) {
    let silent = turns.iter().filter(|turns| turns.is_empty()).count();
    let total: usize = turns.iter().map(Vec::len).sum();
    let gap = |pair: &[Duration]| pair[1] - pair[0];
    let mut gaps: Vec<Duration> = turns.iter().flat_map(|turns| turns.windows(2).map(gap)).collect();
    let mut firsts: Vec<Duration> = turns.iter().filter_map(|turns| turns.first().copied()).collect();
    run.say(format_args!(
        "{} connections, {total} receives, {silent} never served; a fair round takes {round:.1?}: first one after at most \
         {:.1?}, gaps {:.1?} median, {:.1?} worst; thread {:.1} % busy; memory grew by {} KiB",
        turns.len(),
        percentile(&mut firsts, 1.0),
        percentile(&mut gaps, 0.5),
        percentile(&mut gaps, 1.0),
        share * 100.0,
        grown / 1024
    ));
    assert_eq!(silent, 0, "all make progress");
    let bound = if run.full { 0.10 } else { 0.40 };
    assert!(share < bound, "a starved shard is busy for less than {bound} of its time");
    assert!(grown < 4 << 20, "memory is flat while starved");
}
