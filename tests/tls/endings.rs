//! How connections end, and how that is told.

use crate::common::net::{assert_reset, check, on_real_backends, on_typical_backends};
use crate::rig::{client, recv_all, sealed_pair, server, with_raw_peer};
use anabranch::net::TcpStream;
use anabranch::tls::{TlsAcceptor, TlsError, TlsStream, Transport};
use std::io::{self, ErrorKind};
use std::net::Shutdown;

fn tcp(stream: &TlsStream) -> &TcpStream {
    match stream.transport() {
        Transport::Tcp(stream) => stream,
        other => panic!("{other:?}"),
    }
}

/// The TLS error inside.
fn tls<T: std::fmt::Debug>(outcome: &io::Result<T>) -> &TlsError {
    outcome.as_ref().err().and_then(TlsError::of).unwrap_or_else(|| panic!("{outcome:?}"))
}

/// Ends the connection below without a word. (The system's descriptor is shared with its copy.)
#[cfg(unix)]
fn cut(stream: &TlsStream) {
    use std::os::fd::AsFd;
    let copy = tcp(stream).as_fd().try_clone_to_owned().unwrap();
    std::net::TcpStream::from(copy).shutdown(Shutdown::Write).unwrap();
}

#[test]
#[cfg(unix)]
fn a_stream_that_is_cut_is_not_taken_for_whole() {
    on_real_backends(|config| {
        check(config, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            accepted.send("all but the end").await.unwrap();
            accepted.flush().await.unwrap();
            cut(&accepted);
            assert_eq!(connected.recv_exact(15).await.unwrap(), "all but the end");
            for _ in 0..2 {
                let end = connected.recv().await;
                assert!(matches!(tls(&end), TlsError::Truncated));
                assert_eq!(end.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            }
            let sent = connected.send("in vain").await;
            assert!(matches!(tls(&sent), TlsError::Truncated));
        });
    });
}

#[test]
fn a_stream_that_is_closed_or_dropped_ends_cleanly() {
    on_typical_backends(|config| {
        check(config, async {
            for drops in [false, true] {
                let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
                accepted.send("everything").await.unwrap();
                match drops {
                    true => drop(accepted),
                    false => accepted.close().await.unwrap(),
                }
                assert_eq!(recv_all(&mut connected).await.unwrap(), b"everything");
                assert!(connected.recv().await.unwrap().is_none());
            }
        });
    });
}

#[test]
fn after_a_shutdown_nothing_is_sent_and_everything_received() {
    on_real_backends(|config| {
        check(config, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            connected.send("a question").await.unwrap();
            connected.shutdown().await.unwrap();
            connected.shutdown().await.unwrap();
            assert_eq!(connected.send("more").await.unwrap_err().kind(), ErrorKind::NotConnected);
            assert_eq!(recv_all(&mut accepted).await.unwrap(), b"a question");
            accepted.send("an answer").await.unwrap();
            accepted.close().await.unwrap();
            assert_eq!(recv_all(&mut connected).await.unwrap(), b"an answer");
        });
    });
}

#[test]
fn an_abort_is_a_reset() {
    on_real_backends(|config| {
        check(config, async {
            let (accepted, mut connected) = sealed_pair(&server(), &client()).await;
            connected.send("never read").await.unwrap();
            connected.flush().await.unwrap();
            accepted.abort();
            // Tickets may have come before.
            assert_reset(connected.recv().await);
        });
    });
}

#[test]
fn bytes_that_are_no_tls_are_refused_with_an_alert() {
    on_typical_backends(|config| {
        check(config, async {
            // The last is a hello in two records, with a record of data in between.
            let mixed = [&[22, 3, 1, 0, 2, 1, 0][..], &[23, 3, 3, 0, 0], &[22, 3, 1, 0, 2, 0, 50]].concat();
            for garbage in
                [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0; 64], &[0x16, 3, 1, 0xff, 0xff, 0, 0], &mixed]
            {
                let (accepting, mut raw) = with_raw_peer(TlsAcceptor::new(server())).await;
                raw.send(garbage.to_vec()).await.unwrap();
                let alert = raw.recv_exact(7).await.unwrap();
                // Content type 21, and a level of 2, which is fatal.
                assert_eq!((alert[0], alert[5]), (21, 2));
                assert!(raw.recv().await.unwrap().is_none(), "the connection is closed");
                drop(raw);
                let accepted = accepting.await.unwrap();
                assert!(matches!(accepted, Err(TlsError::Refused(_))), "{accepted:?}");
            }
        });
    });
}

#[test]
fn a_peer_that_leaves_during_the_handshake_is_told_as_that() {
    on_real_backends(|config| {
        check(config, async {
            let (accepting, raw) = with_raw_peer(TlsAcceptor::new(server())).await;
            raw.close().await.unwrap();
            let accepted = accepting.await.unwrap();
            assert!(matches!(accepted, Err(TlsError::Truncated)), "{accepted:?}");
        });
    });
}

#[test]
#[cfg(unix)]
fn bytes_that_were_changed_on_the_way_end_the_connection_on_both_sides() {
    on_real_backends(|config| {
        check(config, async {
            let (mut accepted, mut connected) = sealed_pair(&server(), &client()).await;
            accepted.send("good").await.unwrap();
            accepted.flush().await.unwrap();
            forge(&accepted);
            assert_eq!(connected.recv_exact(4).await.unwrap(), "good");
            for _ in 0..2 {
                let got = connected.recv().await;
                assert!(matches!(tls(&got), TlsError::Refused(_)), "{got:?}");
            }
            let sent = connected.send("in vain").await;
            assert!(matches!(tls(&sent), TlsError::Refused(_)));
            // The alert is sent though the stream is only dropped.
            drop(connected);
            let heard = accepted.recv().await;
            assert!(matches!(tls(&heard), TlsError::Alert(_)), "{heard:?}");
        });
    });
}

/// Sends a record whose seal is wrong.
#[cfg(unix)]
fn forge(stream: &TlsStream) {
    use std::io::Write;
    use std::os::fd::AsFd;
    let copy = tcp(stream).as_fd().try_clone_to_owned().unwrap();
    let mut record = vec![0x17, 3, 3, 0, 40];
    record.extend_from_slice(&[7; 40]);
    std::net::TcpStream::from(copy).write_all(&record).unwrap();
}
