//! Files sent on connections.
#![forbid(unsafe_code)]

mod common;

use anabranch::fs::File;
use anabranch::net::TcpStream;
use anabranch::{counters, sleep, spawn, timeout};
use common::net::{check, local_pair, on_real_backends, on_typical_backends, pair, pattern, recv_all};
use common::peer;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

const LEN: usize = 700_001;

/// What arrives when `send` has sent its part, and the connection ends.
async fn sent<R>(path: &Path, send: impl AsyncFnOnce(&mut TcpStream, &File) -> R) -> (R, Vec<u8>) {
    let (mut ours, mut theirs) = pair().await;
    let taking = spawn(async move { recv_all(&mut theirs).await.unwrap() });
    let file = File::open(path).await.unwrap();
    let outcome = send(&mut ours, &file).await;
    ours.close().await.unwrap();
    (outcome, taking.await.unwrap())
}

#[test]
fn any_range_of_a_file_arrives_behind_what_was_queued_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_typical_backends(|config| {
        peer::write_file(&path, pattern(LEN)).unwrap();
        check(config, async {
            let all = pattern(LEN);
            for (from, to) in [(0, LEN), (0, 1), (1, LEN - 1), (LEN, LEN), (300_000, 300_000)] {
                let (count, got) = sent(&path, async |stream, file| {
                    stream.send("head").await.unwrap();
                    let count = stream.send_file(file, from as u64..to as u64).await.unwrap();
                    stream.send("tail").await.unwrap();
                    count
                })
                .await;
                assert_eq!(count as usize, to - from);
                let expected = [&b"head"[..], &all[from..to], &b"tail"[..]].concat();
                assert!(got == expected, "{from}..{to}: {} bytes, or others", got.len());
            }
            let (count, got) =
                sent(&path, async |stream, file| stream.send_file(file, ..).await.unwrap()).await;
            assert!(count as usize == LEN && got == all);
            let (count, got) =
                sent(&path, async |stream, file| stream.send_file(file, 5..=6).await.unwrap()).await;
            assert!(count == 2 && got == all[5..=6]);
        });
    });
}

#[test]
fn a_range_that_makes_no_sense_is_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_typical_backends(|config| {
        peer::write_file(&path, pattern(100)).unwrap();
        check(config, async {
            let ((), got) = sent(&path, async |stream, file| {
                #[expect(clippy::reversed_empty_ranges, reason = "that is the question")]
                let backwards = stream.send_file(file, 7..3).await.unwrap_err();
                let beyond = stream.send_file(file, 0..u64::MAX).await.unwrap_err();
                for error in [backwards, beyond] {
                    assert_eq!((error.sent, error.error.kind()), (0, ErrorKind::InvalidInput));
                }
            })
            .await;
            assert!(got.is_empty());
        });
    });
}

#[test]
fn a_file_that_is_shorter_than_the_range_is_an_error_with_the_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_typical_backends(|config| {
        peer::write_file(&path, pattern(LEN)).unwrap();
        check(config, async {
            let (error, got) =
                sent(&path, async |stream, file| stream.send_file(file, 1..1 << 40).await.unwrap_err()).await;
            assert_eq!((error.sent, error.error.kind()), (LEN as u64 - 1, ErrorKind::UnexpectedEof));
            assert!(got == pattern(LEN)[1..]);
            assert_eq!(io::Error::from(error).kind(), ErrorKind::UnexpectedEof);
        });
    });
}

#[test]
fn a_file_that_is_cut_while_it_is_sent_is_an_error_with_the_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_real_backends(|config| {
        std::fs::write(&path, vec![1; 64 << 20]).unwrap();
        check(config, async {
            let (mut ours, mut theirs) = local_pair().await;
            let file = File::open(&path).await.unwrap();
            let sending = spawn(async move {
                let error = ours.send_file(&file, ..).await.unwrap_err();
                ours.shutdown(Shutdown::Write).await.unwrap();
                error
            });
            let mut got = theirs.recv_exact(1000).await.unwrap().len() as u64;
            std::fs::File::options().write(true).open(&path).unwrap().set_len(2000).unwrap();
            while let Some(lease) = theirs.recv().await.unwrap() {
                got += lease.len() as u64;
            }
            let error = sending.await.unwrap();
            assert_eq!((error.sent, error.error.kind()), (got, ErrorKind::UnexpectedEof));
        });
    });
}

#[test]
fn a_peer_that_reads_nothing_costs_a_few_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_real_backends(|config| {
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let config = config.with_limits(|limits| limits.outbound_bytes_max = 64 * 1024);
        check(config, async {
            let (mut ours, theirs) = local_pair().await;
            let file = File::open(&path).await.unwrap();
            let sending = ours.send_file(&file, ..);
            assert!(timeout(Duration::from_millis(100), sending).await.is_err(), "it should be stuck");
            let submitted = counters().unwrap().submitted;
            sleep(Duration::from_millis(20)).await;
            // One operation at most: the sleep itself is none.
            assert!(counters().unwrap().submitted <= submitted + 1, "it still reads");
            ours.abort();
            drop(theirs);
        });
    });
}

#[test]
fn a_connection_that_fails_ends_it_with_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    on_typical_backends(|config| {
        peer::write_file(&path, pattern(LEN)).unwrap();
        check(config, async {
            let (mut ours, theirs) = pair().await;
            let file = File::open(&path).await.unwrap();
            theirs.abort();
            let error = loop {
                if let Err(error) = ours.send_file(&file, ..).await {
                    break error;
                }
            };
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(kinds.contains(&error.error.kind()), "{error}");
            ours.abort();
        });
    });
}
