//! Memory that was given back must not be written any more: an allocator that overwrites large freed blocks with
//! a pattern, keeps them, and looks later whether the pattern is still there. The reads that it watches are in
//! flight in the kernel or on a worker thread when their shard is dropped.

use crate::tools::{Run, descriptors, scenario, wait_until};
use anabranch::fs::File;
use anabranch::{Shard, spawn, yield_now};
use nix::libc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

/// Blocks of at least this size are watched.
const WATCHED_BYTES: usize = 1 << 20;
const PATTERN: u8 = 0xa5;
const BLOCKS_MAX: usize = 48;

/// The system's allocator, with a quarantine for large blocks while it is armed.
pub(crate) struct Quarantine;

static ARMED: AtomicBool = AtomicBool::new(false);
static KEPT: Kept = Kept {
    locked: AtomicBool::new(false),
    list: UnsafeCell::new(List { blocks: [None; BLOCKS_MAX], len: 0 }),
};

/// Freed blocks, behind a lock that does not allocate.
struct Kept {
    locked: AtomicBool,
    list: UnsafeCell<List>,
}

struct List {
    blocks: [Option<(*mut u8, Layout)>; BLOCKS_MAX],
    len: usize,
}

// SAFETY: the list is reached under the lock only, and the blocks in it belong to nobody else.
unsafe impl Sync for Kept {}

impl Kept {
    fn with<R>(&self, work: impl FnOnce(&mut List) -> R) -> R {
        while self.locked.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        // SAFETY: the lock is held.
        let result = work(unsafe { &mut *self.list.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

// SAFETY: all memory comes from and goes to the system's allocator with the caller's layout; a block in
// quarantine is given back later, once.
unsafe impl GlobalAlloc for Quarantine {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: passed on.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() >= WATCHED_BYTES && ARMED.load(Ordering::Acquire) {
            let kept = KEPT.with(|list| {
                let place = list.blocks.get_mut(list.len)?;
                // SAFETY: the caller gives the block back, so it is nobody's.
                unsafe { block.write_bytes(PATTERN, layout.size()) }
                *place = Some((block, layout));
                list.len += 1;
                Some(())
            });
            if kept.is_some() {
                return;
            }
        }
        // SAFETY: passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Blocks in quarantine.
fn kept() -> usize {
    KEPT.with(|list| list.len)
}

/// Gives the blocks back; tells how many were looked at, and how many bytes had been written since.
fn release() -> (usize, usize) {
    KEPT.with(|list| {
        let mut changed = 0;
        for block in &mut list.blocks[..list.len] {
            let Some((block, layout)) = block.take() else { continue };
            // SAFETY: the block is in quarantine: nobody else's, and filled over its whole length.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            changed += changed_bytes(bytes);
            // SAFETY: it was kept instead of being given back, with this layout.
            unsafe { System.dealloc(block, layout) }
        }
        (std::mem::take(&mut list.len), changed)
    })
}

fn changed_bytes(bytes: &[u8]) -> usize {
    static UNCHANGED: [u8; 4096] = [PATTERN; 4096];
    let changed = |chunk: &[u8]| match *chunk == UNCHANGED[..chunk.len()] {
        true => 0,
        false => chunk.iter().filter(|byte| **byte != PATTERN).count(),
    };
    bytes.chunks(UNCHANGED.len()).map(changed).sum()
}

struct Armed;

impl Armed {
    fn new() -> Armed {
        ARMED.store(true, Ordering::Release);
        Armed
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        ARMED.store(false, Ordering::Release);
        release();
    }
}

fn pipe() -> (std::fs::File, std::fs::File) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    (reader.into(), writer.into())
}

/// A check that finds nothing must be one that can find something.
fn finds_a_late_write() {
    let (mut reader, mut writer) = pipe();
    writer.write_all(b"late").unwrap();
    let mut buffer: Vec<u8> = Vec::with_capacity(WATCHED_BYTES);
    let start = buffer.as_mut_ptr();
    drop(std::hint::black_box(buffer));
    // SAFETY: the block is in quarantine, so the memory is still mapped; the late write is what is looked for.
    let read = unsafe { libc::read(reader.as_raw_fd(), start.cast(), 4) };
    assert_eq!(read, 4);
    assert_eq!(release(), (1, 4), "the quarantine finds a write after the end");
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

const FILE_BYTES: u64 = 32 << 20;
const READ_BYTES: usize = 4 << 20;

#[test]
fn memory_is_given_back_only_after_the_system_is_done_with_it() {
    scenario("reads in flight at the end of a shard", |run| {
        let _armed = Armed::new();
        release();
        finds_a_late_write();
        let mut file = tempfile::tempfile().expect("a file");
        for _ in 0..FILE_BYTES >> 20 {
            file.write_all(&[1; 1 << 20]).unwrap();
        }
        file.sync_all().unwrap();
        file.rewind().unwrap();
        let (mut rng, tries) = (run.rng(), run.size(60, 1000));
        let (mut watched, mut inflight) = (0, 0);
        for turn in 0..tries {
            run.progress(turn, tries);
            let choice = rng.next();
            inflight += usize::from(one_try(run, &file, turn % 3, choice));
            if kept() > BLOCKS_MAX - 8 || turn + 1 == tries {
                std::thread::sleep(Duration::from_millis(50));
                let (blocks, changed) = release();
                assert_eq!(changed, 0, "bytes written after the memory was given back");
                watched += blocks;
            }
        }
        assert!(watched >= tries, "each try gives back its buffer: {watched} of {tries}");
        run.say(format_args!("{watched} blocks watched, {inflight} of {tries} reads in flight at the end"));
        assert!(inflight > tries / 10, "most reads had ended before the shard was dropped");
    });
}

/// One read that is abandoned at once, together with its shard; whether it was in flight then.
fn one_try(run: &Run, file: &std::fs::File, source: usize, choice: u64) -> bool {
    let mut config = run.config.clone();
    (config.limits.buffers, config.limits.buffer_bytes) = (64, 16 * 1024);
    let shard = Shard::new(config).expect("a shard");
    let offset = choice % (FILE_BYTES / 2);
    let (source, mut writer): (OwnedFd, _) = match source {
        // A file whose pages are not in memory: the read sleeps in the kernel.
        0 => {
            // SAFETY: the descriptor is open; the call changes no memory of this process.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            (file.try_clone().unwrap().into(), None)
        }
        // The kernel computes for milliseconds.
        1 => (std::fs::File::open("/dev/urandom").unwrap().into(), None),
        // Written to at the moment of the cancel. At an offset worker threads refuse a pipe at once.
        _ => {
            let (reader, writer) = pipe();
            (reader.into(), Some(writer))
        }
    };
    let late = writer.take().map(|mut writer| {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(choice % 300));
            let _ = writer.write_all(&[3; 32 * 1024]);
        })
    });
    let descriptors_before = descriptors();
    shard.block_on(async {
        let file = File::from_std(source.into()).expect("a file of the shard");
        let mut read =
            Box::pin(async move { file.read_into_at(offset, Vec::with_capacity(READ_BYTES)).await });
        if choice & 1 == 0 {
            let _task = spawn(async move { drop(read.await) });
            yield_now().await;
        } else {
            let mut read = pin!(read.as_mut());
            let _ = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            for _ in 0..choice >> 1 & 3 {
                yield_now().await;
            }
        }
    });
    let before = shard.counters();
    run.settle(shard);
    if let Some(late) = late {
        late.join().unwrap();
    }
    // The descriptor of the read has gone with it.
    wait_until("descriptors of the shard are closed", Duration::from_secs(5), || {
        descriptors() <= descriptors_before
    });
    before.submitted > before.completed
}
