//! Unix sockets, and foreign descriptors.
// Not on Windows: it has no Unix sockets with completions.
#![cfg(unix)]
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{UnixListener, UnixStream};
use anabranch::os::Ready;
use anabranch::{sleep, spawn, timeout};
use common::net::{check, on_typical_backends, pattern};
use common::on_every_backend;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

#[test]
fn a_conversation_over_a_path() {
    on_every_backend(|config| {
        let folder = tempfile::tempdir().unwrap();
        check(config, async {
            let path = folder.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            assert_eq!(listener.path(), path);
            let server = spawn(async move {
                let mut stream = listener.accept().await.unwrap();
                while let Some(lease) = stream.recv().await.unwrap() {
                    stream.send(lease).await.unwrap();
                }
                stream.close().await.unwrap();
                listener.close().await;
            });
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.send(pattern(100_000)).await.unwrap();
            assert!(stream.recv_exact(100_000).await.unwrap() == pattern(100_000), "the bytes differ");
            stream.shutdown(Shutdown::Write).await.unwrap();
            assert!(stream.recv().await.unwrap().is_none());
            server.await.unwrap();
            assert_eq!(UnixStream::connect(&path).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(UnixListener::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse, "the file stays");
        });
    });
}

#[test]
fn a_connect_to_no_socket_says_so() {
    on_typical_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        check(config, async {
            let nothing = UnixStream::connect(folder.path().join("nothing")).await.unwrap_err();
            assert_eq!(nothing.kind(), ErrorKind::NotFound);
            let long = UnixStream::connect("x".repeat(200)).await.unwrap_err();
            assert_eq!(long.kind(), ErrorKind::InvalidInput);
        });
    });
}

#[test]
fn both_ends_of_a_pair_and_their_halves_work() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (mut from, mut to) = ours.into_split();
            to.send("there").await.unwrap();
            assert_eq!(theirs.recv_exact(5).await.unwrap(), "there");
            theirs.send("and back\n").await.unwrap();
            assert_eq!(from.recv_until(b"\n", 100).await.unwrap().unwrap(), "and back\n");
            drop(to);
            assert!(theirs.recv().await.unwrap().is_none());
            theirs.send("still").await.unwrap();
            assert_eq!(from.recv_exact(5).await.unwrap(), "still");
        });
    });
}

#[test]
fn a_stream_of_the_standard_library_comes_in_and_goes_out() {
    common::on(
        common::not_simulated(
            "a_stream_of_the_standard_library_comes_in_and_goes_out",
            common::net::typical_backends(),
        ),
        |config| {
            check(config, async {
                let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                let mut ours = UnixStream::from_std(ours).unwrap();
                theirs.write_all(b"one two").unwrap();
                assert_eq!(ours.recv_exact(4).await.unwrap(), "one ");
                let (mut std, unread) = ours.into_std().await.unwrap();
                assert_eq!(unread.concat(), b"two");
                theirs.write_all(b"three").unwrap();
                let mut buffer = [0; 5];
                std.read_exact(&mut buffer).unwrap();
                assert_eq!(&buffer, b"three");
            });
        },
    );
}

#[test]
fn a_regular_file_is_always_ready() {
    common::on(common::not_simulated("a_regular_file_is_always_ready", common::every_backend()), |config| {
        check(config, async {
            let ready = Ready::new(&tempfile::tempfile().unwrap()).unwrap();
            ready.readable().await.unwrap();
            ready.writable().await.unwrap();
        });
    });
}

#[test]
fn a_foreign_descriptor_is_waited_for_and_may_be_closed_meanwhile() {
    common::on(
        common::not_simulated(
            "a_foreign_descriptor_is_waited_for_and_may_be_closed_meanwhile",
            common::every_backend(),
        ),
        |config| {
            check(config, async {
                let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
                let (readable, writable) = (Ready::new(&reader).unwrap(), Ready::new(&writer).unwrap());
                writable.writable().await.unwrap();
                assert!(timeout(Duration::from_millis(5), readable.readable()).await.is_err());
                let task = spawn(async move {
                    readable.readable().await.unwrap();
                    readable
                });
                sleep(Duration::from_millis(2)).await;
                writer.write_all(b"x").unwrap();
                let readable = task.await.unwrap();
                readable.readable().await.unwrap();
                drop(reader);
                readable.readable().await.unwrap();
                drop((writer, writable));
                readable.readable().await.unwrap();
            });
        },
    );
}
