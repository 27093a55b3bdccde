//! What happens to packets between two devices: delay, reordering, loss, duplication, bit flips.
//!
//! Each direction draws from a generator of its own, so the n-th packet of a direction has the same fate for the
//! same seed. Which packets there are is up to the two systems, so runs are alike, not equal.
#![forbid(unsafe_code)]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How bad the network is. The last three are parts of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) seed: u64,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) corrupt: f64,
}

/// What has happened to packets so far.
#[derive(Default, Debug)]
pub(crate) struct Tally {
    pub(crate) forwarded: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) duplicated: AtomicU64,
    pub(crate) corrupted: AtomicU64,
    pub(crate) reordered: AtomicU64,
}

/// Packets of one direction that may be under way at once; what comes on top is lost, as in a router.
const QUEUED_MAX: usize = 10_000;
/// The longest packet of a device is far shorter.
const PACKET_MAX: usize = 65_536;
/// Bits are flipped behind the header that routes the packet.
const FLIPS_FROM: usize = 20;
/// How soon a request to stop is seen.
const PATIENCE: Duration = Duration::from_millis(50);

/// Carries packets both ways until `stop`.
///
/// # Errors
///
/// If the devices cannot be waited for.
pub(crate) fn run(devices: &[File; 2], faults: Faults, stop: &AtomicBool, tally: &Tally) -> io::Result<()> {
    let [there, back] = devices;
    let mut ways = [Way::new(there, back, faults, 1), Way::new(back, there, faults, 2)];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let due = ways.iter().filter_map(Way::next_due).min();
        let wait = due.map_or(PATIENCE, |due| due.saturating_duration_since(now)).min(PATIENCE);
        // Milliseconds, rounded up so that it does not spin.
        let wait = PollTimeout::from(wait.as_micros().div_ceil(1000) as u16);
        let mut readable = devices.each_ref().map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN));
        poll(&mut readable, wait)?;
        for way in &mut ways {
            way.take(tally);
            way.deliver(Instant::now(), tally);
        }
    }
    Ok(())
}

/// One direction.
struct Way<'a> {
    from: &'a File,
    to: &'a File,
    faults: Faults,
    random: u64,
    under_way: BinaryHeap<Reverse<Packet>>,
    taken: u64,
    /// The number of the latest packet that was delivered.
    newest: u64,
}

/// A packet under way, in order of the time at which it arrives.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    number: u64,
    bytes: Vec<u8>,
}

impl<'a> Way<'a> {
    fn new(from: &'a File, to: &'a File, faults: Faults, index: u64) -> Way<'a> {
        let random = mix(faults.seed ^ (index << 56));
        Way { from, to, faults, random, under_way: BinaryHeap::new(), taken: 0, newest: 0 }
    }

    fn next_due(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(packet)| packet.due)
    }

    /// Takes what the device has, and decides what becomes of it.
    fn take(&mut self, tally: &Tally) {
        let mut buffer = [0; PACKET_MAX];
        let mut from = self.from;
        while let Ok(length) = from.read(&mut buffer) {
            self.taken += 1;
            let copies = if self.happens(self.faults.duplicate) { 2 } else { 1 };
            if self.happens(self.faults.loss) || self.under_way.len() + copies > QUEUED_MAX {
                tally.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            tally.duplicated.fetch_add(copies as u64 - 1, Ordering::Relaxed);
            for _ in 0..copies {
                self.send_off(buffer[..length].to_vec(), tally);
            }
        }
    }

    fn send_off(&mut self, mut bytes: Vec<u8>, tally: &Tally) {
        if self.happens(self.faults.corrupt) && bytes.len() > FLIPS_FROM {
            let place = FLIPS_FROM + self.next() as usize % (bytes.len() - FLIPS_FROM);
            bytes[place] ^= 1 << (self.next() % 8);
            tally.corrupted.fetch_add(1, Ordering::Relaxed);
        }
        // Evenly between delay - jitter and delay + jitter.
        let spread = self.faults.jitter.mul_f64(2.0 * self.part());
        let delay = (self.faults.delay + spread).saturating_sub(self.faults.jitter);
        self.under_way.push(Reverse(Packet { due: Instant::now() + delay, number: self.taken, bytes }));
    }

    fn deliver(&mut self, now: Instant, tally: &Tally) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse(packet)) = self.under_way.pop() else { return };
            let mut to = self.to;
            // A device whose queue is full loses the packet, as in a router.
            let counter = if to.write(&packet.bytes).is_ok() { &tally.forwarded } else { &tally.lost };
            counter.fetch_add(1, Ordering::Relaxed);
            if packet.number < self.newest {
                tally.reordered.fetch_add(1, Ordering::Relaxed);
            }
            self.newest = self.newest.max(packet.number);
        }
    }

    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }

    /// A number from zero up to one.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn happens(&mut self, part: f64) -> bool {
        self.part() < part
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
