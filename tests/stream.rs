//! Connections: what is received, what is sent, and how they end.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{TcpListener, TcpStream, copy};
use anabranch::{Payload, Script, offload, sleep, spawn};
use bytes::Bytes;
use common::net::{
    assert_reset, check, nobody, on_typical_backends, pair, pattern, recv_all, reset, with_peer,
};
use common::{on, on_every_backend, peer};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

#[test]
fn bytes_arrive_and_are_answered() {
    on_every_backend(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            let echo = spawn(async move {
                while let Some(lease) = theirs.recv().await? {
                    theirs.send(lease).await?;
                }
                theirs.close().await
            });
            for round in 0..20 {
                let text = format!("round {round}");
                ours.send(text.clone()).await.unwrap();
                assert_eq!(ours.recv_exact(text.len()).await.unwrap(), text);
            }
            ours.shutdown(Shutdown::Write).await.unwrap();
            assert!(ours.recv().await.unwrap().is_none());
            echo.await.unwrap().unwrap();
        });
    });
}

#[test]
fn a_large_transfer_keeps_its_order_through_short_writes() {
    on_every_backend(|config| {
        let short = config.clone().with_limits(|limits| limits.buffer_bytes = 1024);
        check(short, async {
            let (mut ours, mut theirs) = pair().await;
            let sent = pattern(200_000);
            let expected = sent.clone();
            let sender = spawn(async move {
                // Pieces of odd lengths, so that no boundary falls together with a buffer's.
                for piece in Bytes::from(sent).chunks(3_331) {
                    ours.send(piece.to_vec()).await.unwrap();
                }
                ours.close().await.unwrap();
            });
            assert!(recv_all(&mut theirs).await.unwrap() == expected, "the bytes differ");
            sender.await.unwrap();
        });
    });
}

#[test]
fn vectored_payloads_leave_in_order_and_empty_ones_do_no_harm() {
    on_every_backend(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send_vectored(["one ", "", "two ", "three"]).await.unwrap();
            ours.send("").await.unwrap();
            ours.send_vectored((0..100).map(|n| format!("{n} "))).await.unwrap();
            ours.close().await.unwrap();
            let numbers: String = (0..100).map(|n| format!("{n} ")).collect();
            assert_eq!(recv_all(&mut theirs).await.unwrap(), format!("one two three{numbers}").into_bytes());
        });
    });
}

#[test]
fn every_kind_of_payload_can_be_sent() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            let payloads: Vec<Payload> = vec![
                Bytes::from_static(b"bytes ").into(),
                b"static ".into(),
                "text ".into(),
                String::from("string ").into(),
                vec![b'v', b' '].into(),
                vec![b'b', b' '].into_boxed_slice().into(),
            ];
            ours.send_vectored(payloads).await.unwrap();
            let lease = theirs.recv_exact(29).await.unwrap();
            assert_eq!(lease, "bytes static text string v b ");
            theirs.send(lease).await.unwrap();
            assert_eq!(ours.recv_exact(29).await.unwrap(), "bytes static text string v b ");
        });
    });
}

#[test]
fn an_exact_receive_takes_no_byte_more() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send(pattern(100_000)).await.unwrap();
            let mut got = Vec::new();
            for len in [0, 1, 2, 40_000, 16_384, 3] {
                let bytes = theirs.recv_exact(len).await.unwrap();
                assert_eq!(bytes.len(), len);
                got.extend_from_slice(&bytes);
            }
            ours.close().await.unwrap();
            got.extend(recv_all(&mut theirs).await.unwrap());
            assert!(got == pattern(100_000), "the bytes differ");
        });
    });
}

#[test]
fn an_exact_receive_that_meets_the_end_leaves_what_came() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send("short").await.unwrap();
            ours.close().await.unwrap();
            assert_eq!(theirs.recv_exact(6).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(theirs.recv_exact(5).await.unwrap(), "short");
            assert!(theirs.recv().await.unwrap().is_none());
            assert!(theirs.recv().await.unwrap().is_none(), "the end stays the end");
        });
    });
}

#[test]
fn a_receive_until_a_delimiter_finds_it_across_pieces() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            let sender = spawn(async move {
                for piece in ["GET / HTTP/1.1\r", "\nHost: a\r\n\r", "\nbody"] {
                    ours.send(piece).await.unwrap();
                    ours.flush().await.unwrap();
                    sleep(Duration::from_millis(5)).await;
                }
                ours.close().await.unwrap();
            });
            let head = theirs.recv_until(b"\r\n\r\n", 100).await.unwrap().unwrap();
            assert_eq!(head, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let error = theirs.recv_until(b"\n", 100).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            assert_eq!(theirs.recv_exact(4).await.unwrap(), "body");
            assert!(theirs.recv_until(b"\n", 100).await.unwrap().is_none());
            sender.await.unwrap();
        });
    });
}

#[test]
fn a_receive_until_a_delimiter_keeps_to_its_maximum() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send("0123456789\n").await.unwrap();
            let error = theirs.recv_until(b"\n", 10).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains("10 bytes"), "{error}");
            assert_eq!(theirs.recv_until(b"\n", 11).await.unwrap().unwrap(), "0123456789\n");
            assert_eq!(theirs.recv_until(b"", 11).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        });
    });
}

#[test]
fn a_receive_into_a_buffer_fills_its_room_and_leaves_the_rest() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send("0123456789").await.unwrap();
            ours.close().await.unwrap();
            let mut buffer = Vec::with_capacity(4);
            let room = buffer.capacity();
            while buffer.len() < room {
                let (read, back) = theirs.recv_into(buffer).await;
                assert!(read.unwrap() > 0);
                buffer = back;
            }
            assert_eq!(buffer, &b"0123456789"[..room]);
            let (read, buffer) = theirs.recv_into(buffer).await;
            assert_eq!((read.unwrap(), buffer.len()), (0, room), "no room, no byte");
            assert_eq!(theirs.recv_exact(10 - room).await.unwrap(), &b"0123456789"[room..]);
            assert_eq!(theirs.recv_into(Vec::with_capacity(1)).await.0.unwrap(), 0);
        });
    });
}

#[test]
fn a_flush_completes_when_the_kernel_has_everything() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, theirs) = with_peer();
            ours.flush().await.unwrap();
            ours.send("flushed").await.unwrap();
            ours.flush().await.unwrap();
            // Nothing runs on the shard any more while the peer reads.
            let mut buffer = [0; 7];
            (&theirs).read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"flushed");
        });
    });
}

#[test]
fn after_a_half_close_the_other_direction_goes_on() {
    on_every_backend(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send("question").await.unwrap();
            ours.shutdown(Shutdown::Write).await.unwrap();
            assert_eq!(recv_all(&mut theirs).await.unwrap(), b"question");
            theirs.send("answer").await.unwrap();
            theirs.close().await.unwrap();
            assert_eq!(recv_all(&mut ours).await.unwrap(), b"answer");
            let refused = ours.send("late").await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotConnected);
        });
    });
}

#[test]
fn shutting_the_inbound_side_down_ends_receiving_and_not_sending() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.shutdown(Shutdown::Read).await.unwrap();
            assert!(ours.recv().await.unwrap().is_none());
            ours.send("still").await.unwrap();
            assert_eq!(theirs.recv_exact(5).await.unwrap(), "still");
        });
    });
}

#[test]
fn a_reset_is_reported_after_the_bytes_before_it() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, theirs) = with_peer();
            (&theirs).write_all(b"last words").unwrap();
            assert_eq!(ours.recv_exact(4).await.unwrap(), "last");
            reset(theirs);
            assert_eq!(ours.recv_exact(6).await.unwrap(), " words");
            assert_reset(ours.recv().await);
            // It stays.
            assert_reset(ours.recv().await);
        });
    });
}

#[test]
fn sending_to_a_peer_that_has_gone_fails_and_goes_on_failing() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut ours, theirs) = with_peer();
            reset(theirs);
            let error = loop {
                let sent = async {
                    ours.send(vec![0; 1000]).await?;
                    ours.flush().await
                };
                if let Err(error) = sent.await {
                    break error;
                }
            };
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
            assert_eq!(ours.send("again").await.unwrap_err().kind(), error.kind());
            assert!(ours.close().await.is_err());
        });
    });
}

#[test]
fn the_halves_of_a_connection_work_in_two_tasks() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, mut theirs) = pair().await;
            let (mut from, mut to) = ours.into_split();
            assert_eq!(from.id(), to.id());
            let reader = spawn(async move {
                let mut total = 0;
                while let Some(lease) = from.recv().await.unwrap() {
                    total += lease.len();
                }
                total
            });
            let writer = spawn(async move {
                for _ in 0..50 {
                    to.send(vec![7; 1000]).await.unwrap();
                }
                to.flush().await.unwrap();
                // Dropped here: that shuts the direction down.
            });
            assert_eq!(recv_all(&mut theirs).await.unwrap().len(), 50_000);
            theirs.send(vec![1; 30_000]).await.unwrap();
            theirs.close().await.unwrap();
            assert_eq!(reader.await.unwrap(), 30_000);
            writer.await.unwrap();
        });
    });
}

#[test]
fn copying_passes_everything_on_and_counts_it() {
    on_typical_backends(|config| {
        check(config, async {
            let (mut source, left) = pair().await;
            let (right, mut sink) = pair().await;
            let relay = spawn(async move {
                let (mut from, _left_out) = left.into_split();
                let (_right_in, mut to) = right.into_split();
                let copied = copy(&mut from, &mut to).await.unwrap();
                to.shutdown().await.unwrap();
                copied
            });
            let sent = pattern(150_000);
            let expected = sent.clone();
            let sender = spawn(async move {
                source.send(sent).await.unwrap();
                source.shutdown(Shutdown::Write).await.unwrap();
                source
            });
            assert!(recv_all(&mut sink).await.unwrap() == expected, "the bytes differ");
            assert_eq!(relay.await.unwrap(), 150_000);
            drop(sender.await);
        });
    });
}

#[test]
fn a_connection_given_away_keeps_its_unread_bytes_and_blocks_again() {
    common::on(
        common::not_simulated(
            "a_connection_given_away_keeps_its_unread_bytes_and_blocks_again",
            common::net::typical_backends(),
        ),
        |config| {
            check(config, async {
                let (mut ours, theirs) = with_peer();
                (&theirs).write_all(b"first second").unwrap();
                assert_eq!(ours.recv_exact(6).await.unwrap(), "first ");
                ours.send("sent before").await.unwrap();
                let (std, unread) = ours.into_std().await.unwrap();
                assert_eq!(unread.concat(), b"second");
                (&theirs).write_all(b" third").unwrap();
                let mut buffer = [0; 6];
                (&std).read_exact(&mut buffer).unwrap();
                assert_eq!(&buffer, b" third");
                let mut before = [0; 11];
                (&theirs).read_exact(&mut before).unwrap();
                assert_eq!(&before, b"sent before");
            });
        },
    );
}

#[test]
fn a_connection_given_away_can_come_back_to_another_shard() {
    on(common::real_backends(), |config| {
        let given = check(config.clone(), async {
            let (mut ours, theirs) = with_peer();
            (&theirs).write_all(b"one").unwrap();
            assert_eq!(ours.recv_exact(3).await.unwrap(), "one");
            (ours.into_std().await.unwrap().0, theirs)
        });
        check(config, async {
            let (std, theirs) = given;
            let mut ours = TcpStream::from_std(std).unwrap();
            (&theirs).write_all(b"two").unwrap();
            match ours.recv_exact(3).await {
                Err(error) if common::is_wine() => println!("NOT COVERED: Wine keeps it: {error}"),
                received => assert_eq!(received.unwrap(), "two"),
            }
        });
    });
}

#[test]
fn a_connection_given_away_while_bytes_arrive_loses_none() {
    common::on(
        common::not_simulated(
            "a_connection_given_away_while_bytes_arrive_loses_none",
            common::net::typical_backends(),
        ),
        |config| {
            check(config, async {
                for _ in 0..10 {
                    let (mut ours, theirs) = with_peer();
                    let peer = peer::spawn(move || {
                        pattern(20_000).chunks(500).for_each(|piece| (&theirs).write_all(piece).unwrap());
                    });
                    let mut got = ours.recv_exact(3_000).await.unwrap().to_vec();
                    let (mut std, unread) = ours.into_std().await.unwrap();
                    got.extend(unread.concat());
                    let rest = offload(move || {
                        let mut rest = Vec::new();
                        std.read_to_end(&mut rest).map(|_| rest)
                    });
                    got.extend(rest.await.unwrap().unwrap());
                    peer.join().unwrap();
                    assert!(got == pattern(20_000), "{} bytes of 20000, or others", got.len());
                }
            });
        },
    );
}

#[test]
fn options_and_addresses_are_those_of_the_socket() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, theirs) = pair().await;
            assert_eq!(ours.peer_addr().unwrap(), theirs.local_addr().unwrap());
            assert_eq!(ours.local_addr().unwrap(), theirs.peer_addr().unwrap());
            assert!(ours.nodelay().unwrap() && theirs.nodelay().unwrap(), "on from the start");
            ours.set_nodelay(false).unwrap();
            assert!(!ours.nodelay().unwrap());
            assert_ne!(ours.id(), theirs.id());
        });
    });
}

#[test]
fn an_option_that_is_set_is_that_of_the_socket_of_the_system() {
    common::on(
        common::not_simulated(
            "an_option_that_is_set_is_that_of_the_socket_of_the_system",
            common::net::typical_backends(),
        ),
        |config| {
            check(config, async {
                let (ours, _theirs) = pair().await;
                ours.set_keepalive(Some(Duration::from_secs(30))).unwrap();
                assert!(socket2::SockRef::from(&ours).keepalive().unwrap());
                ours.set_keepalive(None).unwrap();
                assert!(!socket2::SockRef::from(&ours).keepalive().unwrap());
            });
        },
    );
}

#[test]
fn a_refused_connect_says_so() {
    on_every_backend(|config| {
        check(config, async {
            let gone = nobody();
            assert_eq!(TcpStream::connect(gone).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn a_connect_tries_every_address_and_a_name_is_resolved() {
    on_typical_backends(|config| {
        check(config, async {
            let gone = nobody();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let here = listener.local_addr().unwrap();
            TcpStream::connect(&[gone, here][..]).await.unwrap();
            TcpStream::connect(("localhost", here.port())).await.unwrap();
            TcpStream::connect(format!("localhost:{}", here.port())).await.unwrap();
            for _ in 0..3 {
                listener.accept().await.unwrap();
            }
            let nowhere = TcpStream::connect(&[][..]).await.unwrap_err();
            assert_eq!(nowhere.kind(), ErrorKind::InvalidInput);
            assert!(TcpStream::connect("no-such-name.invalid:1").await.is_err());
        });
    });
}

#[test]
fn bytes_queued_before_the_connect_has_ended_wait_for_it() {
    let scripts = (1..6)
        .map(|seed| (format!("script (rough {seed})"), anabranch::Config::new().script(Script::rough(seed))));
    on(scripts.collect(), |config| {
        check(config, async {
            let (mut ours, mut theirs) = pair().await;
            ours.send("at once").await.unwrap();
            assert_eq!(theirs.recv_exact(7).await.unwrap(), "at once");
        });
    });
}

#[test]
fn sends_without_a_copy_arrive_whole_and_release_their_payload() {
    on_typical_backends(|config| {
        let payload = Bytes::from(pattern(300_000));
        let kept = payload.clone();
        check(config.zero_copy_bytes_min(4096), async {
            let (mut ours, mut theirs) = pair().await;
            let sender = spawn(async move {
                ours.send(payload).await.unwrap();
                ours.send("small").await.unwrap();
                ours.close().await.unwrap();
            });
            let got = recv_all(&mut theirs).await.unwrap();
            assert!(got[..300_000] == kept[..] && &got[300_000..] == b"small", "the bytes differ");
            sender.await.unwrap();
        });
        assert!(kept.is_unique(), "the shard has ended and still holds the payload");
    });
}

#[cfg(feature = "futures-io")]
mod futures_io_adapter {
    use super::*;
    use futures_io::{AsyncRead, AsyncWrite};
    use std::future::poll_fn;
    use std::pin::Pin;

    async fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
        poll_fn(|context| Pin::new(&mut *stream).poll_read(context, buffer)).await
    }

    async fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let used = poll_fn(|context| Pin::new(&mut *stream).poll_write(context, bytes)).await?;
            bytes = &bytes[used..];
        }
        poll_fn(|context| Pin::new(&mut *stream).poll_flush(context)).await
    }

    #[test]
    fn borrowed_buffers_are_filled_and_written_whole() {
        on_typical_backends(|config| {
            check(config, async {
                let (mut ours, mut theirs) = pair().await;
                let sender = spawn(async move {
                    write_all(&mut ours, &pattern(100_000)).await.unwrap();
                    poll_fn(|context| Pin::new(&mut ours).poll_close(context)).await.unwrap();
                    assert!(write_all(&mut ours, b"late").await.is_err());
                });
                let (mut got, mut buffer) = (Vec::new(), [0; 777]);
                assert_eq!(read(&mut theirs, &mut []).await.unwrap(), 0);
                loop {
                    match read(&mut theirs, &mut buffer).await.unwrap() {
                        0 => break,
                        used => got.extend_from_slice(&buffer[..used]),
                    }
                }
                assert!(got == pattern(100_000), "the bytes differ");
                sender.await.unwrap();
            });
        });
    }
}
