//! Files at offsets.
#![forbid(unsafe_code)]

mod common;

use anabranch::fs::File;
use anabranch::spawn;
use common::net::{check, on_typical_backends, pattern};
use common::{on_every_backend, peer};
use std::io::ErrorKind;
use std::rc::Rc;

#[test]
fn what_was_written_is_read_back_at_any_offset() {
    let folder = tempfile::tempdir().unwrap();
    on_every_backend(|config| {
        check(config, async {
            let path = folder.path().join("written");
            let file = File::create(&path).await.unwrap();
            file.write_all_at(0, pattern(200_000)).await.unwrap();
            assert_eq!(file.write_at(200_000, "tail").await.unwrap(), 4);
            assert_eq!(file.len().unwrap(), 200_004);
            drop(file);
            let file = File::open(&path).await.unwrap();
            let mut got = Vec::new();
            while got.len() < 200_000 {
                let piece = file.read_at(got.len() as u64, 60_000).await.unwrap();
                assert!(!piece.is_empty());
                got.extend(piece);
            }
            assert!(got[..200_000] == pattern(200_000) && &got[200_000..] == b"tail", "the bytes differ");
        });
    });
}

#[test]
fn a_sync_completes_once_the_device_has_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    // Devices take their time, so few backends and little to write.
    on_typical_backends(|config| {
        check(config, async {
            let file = File::create(folder.path().join("synced")).await.unwrap();
            file.write_all_at(0, "little").await.unwrap();
            file.sync_data().await.unwrap();
            file.sync_all().await.unwrap();
        });
    });
}

#[test]
fn reading_at_the_end_gives_less_and_beyond_it_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short");
    on_every_backend(|config| {
        peer::write_file(&path, "0123456789").unwrap();
        check(config, async {
            let file = File::open(&path).await.unwrap();
            assert_eq!(file.read_at(8, 0).await.unwrap(), b"");
            let mut got = Vec::new();
            while got.len() < 2 {
                got.extend(file.read_at(8 + got.len() as u64, 100).await.unwrap());
            }
            assert_eq!(got, b"89");
            assert_eq!(file.read_at(10, 100).await.unwrap(), b"");
            assert_eq!(file.read_at(1 << 40, 100).await.unwrap(), b"");
            let mut buffer = Vec::with_capacity(16);
            buffer.extend_from_slice(b"kept ");
            let (read, buffer) = file.read_into_at(9, buffer).await;
            assert_eq!((read.unwrap(), &buffer[..]), (1, &b"kept 9"[..]));
        });
    });
}

#[test]
fn errors_of_files_are_those_of_the_system() {
    let folder = tempfile::tempdir().unwrap();
    on_every_backend(|config| {
        check(config, async {
            let gone = folder.path().join("gone");
            assert_eq!(File::open(&gone).await.unwrap_err().kind(), ErrorKind::NotFound);
            let path = folder.path().join("only-written");
            let written = File::create(&path).await.unwrap();
            let (read, buffer) = written.read_into_at(0, Vec::with_capacity(10)).await;
            assert_eq!(read.unwrap_err().raw_os_error(), Some(common::BAD_FILE));
            assert_eq!(buffer.capacity(), 10, "the buffer comes back");
            let only_read = File::open(&path).await.unwrap();
            let error = only_read.write_all_at(0, "x").await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(common::BAD_FILE));
        });
    });
}

#[test]
fn metadata_are_those_of_the_system_and_a_directory_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let name = "metadata_are_those_of_the_system_and_a_directory_cannot_be_read";
    common::on(common::not_simulated(name, common::every_backend()), |config| {
        check(config, async {
            let file = File::create(folder.path().join("file")).await.unwrap();
            file.write_all_at(0, "four").await.unwrap();
            let metadata = file.metadata().await.unwrap();
            assert!(metadata.len() == 4 && metadata.is_file());
            if cfg!(windows) {
                // A directory is opened by another call there.
                let refused = File::open(folder.path()).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
                return;
            }
            let directory = File::open(folder.path()).await.unwrap();
            assert!(directory.metadata().await.unwrap().is_dir());
            assert_eq!(directory.read_at(0, 10).await.unwrap_err().kind(), ErrorKind::IsADirectory);
        });
    });
}

#[test]
fn many_reads_of_one_file_may_be_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many");
    on_every_backend(|config| {
        peer::write_file(&path, pattern(64 * 1024)).unwrap();
        check(config, async {
            let file = Rc::new(File::open(&path).await.unwrap());
            let tasks: Vec<_> = (0..64_u64)
                .map(|n| {
                    let file = Rc::clone(&file);
                    spawn(async move { file.read_at(n * 1024, 1).await.unwrap() })
                })
                .collect();
            for (n, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await.unwrap(), [pattern(64 * 1024)[n * 1024]]);
            }
        });
    });
}
