//! A write-ahead log: what was acknowledged after a sync is there after each crash, whole and in order.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, mix, one_in, pattern, small_config, within};
use anabranch::fs::File;
use anabranch::sim::{Builder, Faults};
use anabranch::{sleep, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "files");
    let verdict = Verdict::default();
    let store = Store { verdict: verdict.clone(), files: Rc::default(), acknowledged: Rc::default(), seed };
    let goal = choice.within(5..80);
    let mut builder = Builder::new().faults(faults).config(small_config(&mut choice));
    for _ in 0..choice.within(0..4) {
        let at = Duration::from_millis(choice.within(1..400));
        builder = builder.at(at, |world| world.crash("store"));
    }
    verdict.watch(builder.host("store", move || store.clone().run(goal)))
}

/// What was promised, which outlives crashes: for each file how many records were acknowledged.
#[derive(Clone)]
struct Store {
    verdict: Verdict,
    files: Rc<RefCell<Vec<u64>>>,
    acknowledged: Rc<Cell<u64>>,
    seed: u64,
}

/// A record: its length, its number, a sum, its bytes.
fn record(file: u64, number: u64) -> Vec<u8> {
    let key = mix(file << 32 | number);
    let payload = pattern(key, 0, (key % 700) as usize);
    let len = payload.len() as u32;
    [&len.to_le_bytes()[..], &number.to_le_bytes(), &mix(key).to_le_bytes(), &payload].concat()
}

impl Store {
    async fn run(self, goal: u64) {
        self.recover().await;
        for _ in 0..100 {
            if self.acknowledged.get() >= goal {
                return;
            }
            self.write_file(goal).await;
        }
        self.verdict.wrong("a hundred files were not enough");
    }

    fn path(&self, file: u64) -> String {
        format!("/log/{:x}-{file}", self.seed)
    }

    /// Checks each file that there was before.
    async fn recover(&self) {
        let files = self.files.borrow().clone();
        for (file, acknowledged) in (0..).zip(files) {
            let mut found = None;
            for _ in 0..100 {
                found = self.read(file).await;
                if found.is_some() {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
            let bytes = found.unwrap_or_default();
            let (mut place, mut number) = (0, 0);
            loop {
                let next = record(file, number);
                if !bytes[place..].starts_with(&next) {
                    break;
                }
                place += next.len();
                number += 1;
            }
            self.verdict.require(number >= acknowledged, || {
                format!(
                    "file {file} has {number} whole records after a restart, {acknowledged} were acknowledged"
                )
            });
        }
    }

    /// The bytes of a file, nothing if the disk fails; a file that is not there has none.
    async fn read(&self, file: u64) -> Option<Vec<u8>> {
        let opened = File::open(self.path(file)).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(Vec::new()),
            Err(_) => return None,
        };
        if one_in(3) {
            // Given up in the middle: what the disk brings then is nobody's.
            let _ = timeout(Duration::from_micros(within(1..4000)), opened.read_at(0, 512)).await;
        }
        let mut bytes = Vec::new();
        loop {
            // A read may bring less than there is; only nothing is the end.
            let more = opened.read_at(bytes.len() as u64, within(1..4000) as usize).await.ok()?;
            if more.is_empty() {
                return Some(bytes);
            }
            bytes.extend_from_slice(&more);
        }
    }

    /// Appends records to a new file until something fails or the goal is reached.
    async fn write_file(&self, goal: u64) {
        let number = self.files.borrow().len() as u64;
        self.files.borrow_mut().push(0);
        let Ok(file) = File::create(self.path(number)).await else {
            return sleep(Duration::from_millis(5)).await;
        };
        let (mut offset, mut records) = (0, 0);
        while self.acknowledged.get() < goal {
            let batch = within(1..5);
            for _ in 0..batch {
                let bytes = record(number, records);
                let len = bytes.len() as u64;
                if one_in(8) {
                    // Given up in the middle, and then written once more, all of it.
                    let write = file.write_at(offset, bytes.clone());
                    let _ = timeout(Duration::from_micros(within(1..4000)), write).await;
                }
                if file.write_all_at(offset, bytes).await.is_err() {
                    return;
                }
                offset += len;
                records += 1;
            }
            let synced = if one_in(2) { file.sync_data().await } else { file.sync_all().await };
            // After a failed sync nobody knows what is on the disk; the next file begins.
            if synced.is_err() {
                return;
            }
            self.files.borrow_mut()[number as usize] = records;
            self.acknowledged.set(self.acknowledged.get() + batch);
            if one_in(8) {
                sleep(Duration::from_millis(within(1..100))).await;
            }
        }
        self.recover().await;
    }
}
