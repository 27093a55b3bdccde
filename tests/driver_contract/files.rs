//! Files: at an offset, never readiness.

use crate::common::{masked_backends, on, on_every_backend, peer, real_backends};
use crate::rig::{Rig, pattern};
use anabranch::Config;
use anabranch::driver::completion::Done;
use anabranch::driver::op::{Fsync, ReadAt, WriteAt};
use std::fs::File;
use std::io::Write;
use std::time::Duration;

#[test]
fn a_file_is_written_synced_and_read_back_at_an_offset() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let file = rig.adopt(peer::file(true, true).unwrap());
        let bytes = pattern(100_000);
        let write = WriteAt { file: file.clone(), payload: bytes.clone().into(), offset: 1000 };
        let write = rig.submit(write);
        assert!(matches!(rig.last(write), Done::Sent(Ok(100_000), payload) if *payload == *bytes));
        for data_only in [false, true] {
            let sync = rig.submit(Fsync { file: file.clone(), data_only });
            rig.ended(sync).unwrap();
        }
        let mut buffer = Vec::with_capacity(60_000);
        buffer.push(b'>');
        let read = rig.submit(ReadAt { file: file.clone(), buffer, offset: 51_000 });
        let Done::Filled(Ok(50_000), buffer) = rig.last(read) else { panic!("not read") };
        assert_eq!((buffer[0], &buffer[1..]), (b'>', &bytes[50_000..]));
        let read = rig.submit(ReadAt { file, buffer: Vec::with_capacity(10), offset: 101_000 });
        assert!(matches!(rig.last(read), Done::Filled(Ok(0), _)), "zero bytes are the end");
        rig.end();
    });
}

#[test]
fn a_read_of_a_file_that_is_open_for_writing_only_fails_and_gives_the_buffer_back() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let file = rig.adopt(peer::file(false, true).unwrap());
        let read = rig.submit(ReadAt { file, buffer: Vec::with_capacity(77), offset: 0 });
        let Done::Filled(Err(_), buffer) = rig.last(read) else { panic!("no error") };
        assert_eq!((buffer.len(), buffer.capacity()), (0, 77));
        rig.end();
    });
}

#[test]
fn more_file_operations_than_threads_and_queue_places_all_end() {
    on_every_backend(|config| {
        let mut rig = Rig::with(config, |limits| {
            (limits.blocking_threads_max, limits.blocking_queue_max) = (2, 3);
        });
        let file = rig.adopt(peer::file(true, true).unwrap());
        let tokens: Vec<_> = (0..100u64)
            .map(|number| {
                let payload = vec![number as u8; 10].into();
                rig.submit(WriteAt { file: file.clone(), payload, offset: number * 10 })
            })
            .collect();
        // Some are cancelled; those end too, one way or the other.
        tokens.iter().skip(50).step_by(3).for_each(|token| rig.driver.cancel(*token));
        for token in tokens {
            assert!(matches!(rig.last(token), Done::Sent(_, payload) if payload.len() == 10));
        }
        drop(file);
        rig.end();
    });
}

/// Invariant 11. The memory of the freed buffers is taken again at once and watched.
///
/// The file is read past the cache where its file system can do that, so that the read takes a while and the
/// device writes into the memory itself. Where it cannot, the blocking threads of readiness are still slow.
#[test]
fn a_file_read_whose_driver_is_dropped_writes_no_byte_after_it() {
    let named = tempfile::NamedTempFile::new().unwrap();
    let mut file = named.as_file();
    file.write_all(&vec![0x11; READ_BYTES]).unwrap();
    file.sync_all().unwrap();
    on(real_backends(), |config| (0..50).for_each(|_| drop_while_reading(&named, config.clone())));
    // A script reads inside of its turns, so nothing could be late.
    on(masked_backends(), |config| (0..5).for_each(|_| drop_while_reading(&named, config.clone())));
}

const READ_BYTES: usize = 2 * 1024 * 1024;

/// A buffer whose spare capacity begins and ends where a device can write to, if the allocator plays along.
fn aligned() -> Vec<u8> {
    const BLOCK: usize = 4096;
    let mut buffer = Vec::<u8>::new();
    let mut pad = BLOCK - 16;
    for _ in 0..4 {
        buffer = Vec::with_capacity(pad + READ_BYTES);
        let needed = buffer.as_ptr().align_offset(BLOCK);
        if needed == pad {
            break;
        }
        pad = needed;
    }
    buffer.resize(pad, 0);
    buffer
}

#[cfg(target_os = "linux")]
fn open_uncached(path: &std::path::Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(nix::fcntl::OFlag::O_DIRECT.bits()).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_uncached(path: &std::path::Path) -> std::io::Result<File> {
    File::open(path)
}

fn drop_while_reading(named: &tempfile::NamedTempFile, config: Config) {
    const CANARY: u8 = 0xa5;
    let intact = vec![CANARY; READ_BYTES + 4096];
    let file = open_uncached(named.path()).unwrap_or_else(|_| named.reopen().unwrap());
    let mut rig = Rig::with(config, |limits| limits.buffers = 2);
    let file = rig.adopt(file);
    for _ in 0..2 {
        rig.submit(ReadAt { file: file.clone(), buffer: aligned(), offset: 0 });
    }
    drop(file);
    // Hands them to the system, and waits for none of them.
    let raw = rig.raw_turn(Duration::ZERO);
    rig.settle(raw);
    drop(rig);
    let watched: Vec<_> = (0..2).map(|_| vec![CANARY; READ_BYTES + 4096]).collect();
    std::thread::sleep(Duration::from_millis(1));
    assert!(watched.iter().all(|bytes| *bytes == intact), "bytes were written after the driver was gone");
}
