//! Servers: callbacks and their order, the async form, limits, ends, and what is counted.
#![forbid(unsafe_code)]

mod common;

use anabranch::codec::{Delimiter, Pack};
use anabranch::component::{
    Admission, Closed, Conn, ConnId, Failure, Handler, Idle, Peer, Phase, Policy, Server, Session, Shards,
    Stage, Trouble,
};
use anabranch::net::TcpStream;
use anabranch::{Config, Lease, sleep, spawn, timeout};
use common::net::{anywhere, check, on_typical_backends};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a handler was told, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, text: impl Into<String>) {
        self.0.lock().unwrap().push(text.into());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until a line begins so.
    async fn has(&self, beginning: &str) {
        let wait = async {
            while !self.lines().iter().any(|line| line.starts_with(beginning)) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("{beginning:?} never came; there is {:?}", self.lines()));
    }
}

/// Writes down whatever it is told, and does what messages ask for.
struct Scribe {
    log: Log,
    /// Refuses newcomers from here on.
    admits: usize,
}

impl Scribe {
    fn new(log: &Log) -> Scribe {
        Scribe { log: log.clone(), admits: usize::MAX }
    }
}

impl Handler for Scribe {
    type State = Vec<u8>;

    const REPORTS_SENT: bool = true;

    fn on_prepare_listen(&self, _: &dyn anabranch::os::Lend) -> std::io::Result<()> {
        self.log.add("prepare");
        Ok(())
    }

    fn on_accept(&self, peer: &Peer) -> Admission<Vec<u8>> {
        assert!(peer.address.is_some() && peer.local.is_some());
        let accepted = self.log.lines().iter().filter(|line| *line == "accept").count();
        if accepted >= self.admits {
            self.log.add("refuse");
            return Admission::Refuse;
        }
        self.log.add("accept");
        Admission::Accept(Vec::new())
    }

    async fn on_handshake(&self, conn: &mut Conn<Vec<u8>>) -> Result<(), Failure> {
        assert_eq!(conn.stage(), Stage::Handshake);
        self.log.add("handshake");
        Ok(())
    }

    async fn on_receive(&self, conn: &mut Conn<Vec<u8>>, message: Lease) -> Result<(), Failure> {
        assert_eq!(conn.stage(), Stage::Open);
        conn.state.extend_from_slice(&message);
        self.log.add(format!("receive {}", String::from_utf8_lossy(&message)));
        match &*message {
            b"fail" => Err("it was asked to fail".into()),
            b"panic" => panic!("it was asked to panic"),
            b"leave" => {
                conn.disconnect();
                Ok(())
            }
            _ => Ok(conn.send(message).await?),
        }
    }

    fn on_send(&self, session: &Session, bytes: u64) {
        assert!(bytes > 0);
        if session.pending() == 0 {
            self.log.add("sent");
        }
    }

    fn on_idle(&self, _: &Session) -> Idle {
        self.log.add("idle");
        Idle::Close
    }

    fn on_drain(&self, _: &Session) {
        self.log.add("drain");
    }

    fn on_close(&self, conn: &mut Conn<Vec<u8>>, closed: &Closed) {
        let state = String::from_utf8_lossy(&conn.state).into_owned();
        assert!(conn.peer_addr().is_some(), "addresses are still there");
        self.log.add(format!("close {} {:?} {state}", closed.reason.name(), closed.stage));
    }

    fn on_error(&self, trouble: &Trouble<'_>) {
        self.log.add(format!("error {trouble:?}"));
    }

    fn on_shutdown(&self) {
        self.log.add("shutdown");
    }
}

fn builder() -> anabranch::component::Builder {
    Server::builder().listen(anywhere())
}

fn here() -> Shards {
    Shards::current().unwrap()
}

async fn ended(server: &Server) {
    server.shutdown(Duration::ZERO);
    timeout(PATIENCE, server.ended()).await.expect("the server ends");
    assert_eq!(server.phase(), Phase::Ended);
}

#[test]
fn the_callbacks_come_in_their_order_and_the_end_once() {
    on_typical_backends(|config| {
        check(config, async {
            let log = Log::default();
            let server = builder().start(here(), Scribe::new(&log)).unwrap();
            let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
            client.send("hello").await.unwrap();
            assert_eq!(client.recv_exact(5).await.unwrap(), "hello");
            log.has("sent").await;
            client.close().await.unwrap();
            log.has("close").await;
            ended(&server).await;
            let expected = [
                "prepare",
                "accept",
                "handshake",
                "receive hello",
                "sent",
                "close peer_closed Open hello",
                "shutdown",
            ];
            assert_eq!(log.lines(), expected);
            let totals = server.totals();
            assert_eq!((totals.opened, totals.live, totals.handshaking), (1, 0, 0));
            assert_eq!((totals.bytes_in, totals.bytes_out), (5, 5));
            assert_eq!((totals.messages_in, totals.messages_out), (1, 1));
            assert_eq!((totals.closed_total(), totals.closed_for("peer_closed")), (1, 1));
        });
    });
}

/// What ends a connection, and how its end is told.
async fn end_told_for(send: &'static str, then: impl AsyncFnOnce(&Server, TcpStream), expected: &str) {
    let log = Log::default();
    // Messages, because bytes may come in pieces.
    let server = builder().codec(|| Delimiter::new(b"\n")).start(here(), Scribe::new(&log)).unwrap();
    let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
    client.send(format!("{send}\n")).await.unwrap();
    log.has("receive").await;
    then(&server, client).await;
    log.has("close").await;
    ended(&server).await;
    let ends: Vec<_> = log.lines().into_iter().filter(|line| line.starts_with("close")).collect();
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert!(ends[0].starts_with(&format!("close {expected} Open")), "{ends:?}");
    assert_eq!(server.totals().closed_total(), 1);
    assert_eq!(log.lines().last().unwrap(), "shutdown");
}

#[test]
fn each_way_to_end_has_its_own_reason_and_is_told_once() {
    on_typical_backends(|config| {
        check(config, async {
            let stay = async |_: &Server, mut client: TcpStream| {
                while let Ok(Some(_)) = client.recv().await {}
            };
            end_told_for("fail", stay, "handler").await;
            end_told_for("panic", stay, "panicked").await;
            end_told_for("leave", stay, "disconnected").await;
            let close = async |_: &Server, mut client: TcpStream| {
                // Else the system tells the server of a reset.
                client.recv_exact(2).await.unwrap();
                client.close().await.unwrap();
            };
            end_told_for("x", close, "peer_closed").await;
            end_told_for("x", async |_, client| client.abort(), "failed").await;
            let all = async |server: &Server, client| {
                server.disconnect_all().unwrap();
                stay(server, client).await;
            };
            end_told_for("x", all, "disconnected").await;
            let shut = async |server: &Server, client| {
                server.shutdown(Duration::ZERO);
                stay(server, client).await;
            };
            end_told_for("x", shut, "drained").await;
        });
    });
}

#[test]
fn a_refused_newcomer_is_closed_without_a_close_event() {
    on_typical_backends(|config| {
        check(config, async {
            let log = Log::default();
            let server = builder().start(here(), Scribe { log: log.clone(), admits: 1 }).unwrap();
            let first = TcpStream::connect(server.addresses()[0]).await.unwrap();
            log.has("handshake").await;
            let mut second = TcpStream::connect(server.addresses()[0]).await.unwrap();
            assert!(!matches!(second.recv().await, Ok(Some(_))));
            drop(first);
            log.has("close").await;
            ended(&server).await;
            assert_eq!(server.totals().refused, 1);
            assert_eq!(log.lines().iter().filter(|line| line.starts_with("close")).count(), 1);
        });
    });
}

#[test]
fn a_connection_that_is_silent_is_asked_about_and_ends_as_idle() {
    on_typical_backends(|config| {
        check(config, async {
            let log = Log::default();
            let mut policy = Policy::new();
            policy.idle_timeout = Some(Duration::from_millis(30));
            let server = builder().policy(policy).start(here(), Scribe::new(&log)).unwrap();
            let _client = TcpStream::connect(server.addresses()[0]).await.unwrap();
            log.has("close idle_timeout Open").await;
            ended(&server).await;
            assert_eq!(log.lines().iter().filter(|line| *line == "idle").count(), 1);
            assert_eq!(server.totals().closed_for("idle_timeout"), 1);
        });
    });
}

#[test]
fn messages_of_a_codec_come_whole_and_wrong_ones_end_the_connection() {
    on_typical_backends(|config| {
        check(config, async {
            let log = Log::default();
            let server = builder().codec(|| Pack::new().max(100)).start(here(), Scribe::new(&log)).unwrap();
            let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
            for byte in b"\x03\0\0\0one\x03\0\0\0two" {
                client.send(vec![*byte]).await.unwrap();
                client.flush().await.unwrap();
            }
            assert_eq!(client.recv_exact(14).await.unwrap(), &b"\x03\0\0\0one\x03\0\0\0two"[..]);
            client.send(&b"\x65\0\0\0"[..]).await.unwrap();
            log.has("close codec Open onetwo").await;
            ended(&server).await;
            assert_eq!((server.totals().messages_in, server.totals().bytes_in), (2, 18));
        });
    });
}

#[test]
fn one_async_function_serves_as_well() {
    on_typical_backends(|config| {
        check(config, async {
            let server = builder()
                .serve(here(), async |conn: &mut Conn| {
                    conn.pull(100);
                    while let Some(head) = conn.fetch(1).await? {
                        let body = conn.fetch(usize::from(head[0])).await?.ok_or("it ended in a message")?;
                        conn.send(body).await?;
                    }
                    Ok(())
                })
                .unwrap();
            let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
            client.send("\x05hello\x02ab\x03xy").await.unwrap();
            assert_eq!(client.recv_exact(7).await.unwrap(), "helloab");
            client.shutdown(std::net::Shutdown::Write).await.unwrap();
            assert!(client.recv().await.unwrap().is_none());
            ended(&server).await;
            assert_eq!(server.totals().closed_for("handler"), 1, "{:?}", server.totals());
        });
    });
}

#[test]
fn an_id_that_was_kept_too_long_names_nobody() {
    on_typical_backends(|config| {
        check(config, async {
            let ids: Arc<Mutex<Vec<ConnId>>> = Arc::default();
            let seen = Arc::clone(&ids);
            let server = builder()
                .serve(here(), async move |conn: &mut Conn| {
                    seen.lock().unwrap().push(conn.id());
                    while conn.recv().await?.is_some() {}
                    Ok(())
                })
                .unwrap();
            for round in 1..=3 {
                let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
                while server.totals().opened < round {
                    sleep(Duration::from_millis(1)).await;
                }
                if round < 3 {
                    client.close().await.unwrap();
                    while server.connections() > 0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                    continue;
                }
                let ids = ids.lock().unwrap().clone();
                assert!(ids.len() == 3 && ids[0] != ids[1] && ids[1] != ids[2]);
                server.send(ids[0], "for somebody else").unwrap();
                server.disconnect(ids[1]).unwrap();
                server.send(ids[2], "for you").unwrap();
                assert_eq!(client.recv_exact(7).await.unwrap(), "for you");
            }
            ended(&server).await;
        });
    });
}

#[test]
fn a_broadcast_reaches_everybody_and_a_group_its_members() {
    on_typical_backends(|config| {
        check(config, async {
            let server = builder()
                .codec(Pack::new)
                .serve(here(), async |conn: &mut Conn| {
                    while let Some(message) = conn.recv().await? {
                        conn.session().join(std::str::from_utf8(&message)?);
                        conn.send("joined").await?;
                    }
                    Ok(())
                })
                .unwrap();
            let mut clients = Vec::new();
            for group in ["even", "odd", "even", "odd"] {
                let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
                client.send(format!("{}\0\0\0{group}", char::from(group.len() as u8))).await.unwrap();
                assert_eq!(client.recv_exact(10).await.unwrap(), "\x06\0\0\0joined");
                clients.push(client);
            }
            server.broadcast_to("odd", "1").unwrap();
            server.broadcast_to("nobody", "2").unwrap();
            server.broadcast("all").unwrap();
            for (index, mut client) in clients.into_iter().enumerate() {
                if index % 2 == 1 {
                    assert_eq!(client.recv_exact(5).await.unwrap(), "\x01\0\0\x001");
                }
                assert_eq!(client.recv_exact(7).await.unwrap(), "\x03\0\0\0all");
            }
            ended(&server).await;
        });
    });
}

#[test]
fn connections_may_finish_until_the_deadline_of_a_shutdown() {
    on_typical_backends(|config| {
        check(config, async {
            let log = Log::default();
            let server = builder().start(here(), Scribe::new(&log)).unwrap();
            let mut patient = TcpStream::connect(server.addresses()[0]).await.unwrap();
            let mut quick = TcpStream::connect(server.addresses()[0]).await.unwrap();
            for client in [&mut patient, &mut quick] {
                client.send("x").await.unwrap();
                client.recv_exact(1).await.unwrap();
            }
            server.shutdown(Duration::from_secs(3600));
            assert_eq!(server.phase(), Phase::Draining);
            log.has("drain").await;
            // What is there goes on, and nobody comes in.
            quick.send("y").await.unwrap();
            assert_eq!(quick.recv_exact(1).await.unwrap(), "y");
            quick.close().await.unwrap();
            log.has("close peer_closed").await;
            assert_eq!(server.phase(), Phase::Draining);
            let waiting = spawn({
                let server = server.clone();
                async move { server.ended().await }
            });
            // A second call ends at once.
            server.shutdown(Duration::ZERO);
            timeout(PATIENCE, waiting).await.expect("it ends").unwrap();
            assert!(!matches!(patient.recv().await, Ok(Some(_))));
            let ends = log.lines().iter().filter(|line| line.starts_with("close")).count();
            assert_eq!((ends, server.totals().closed_for("drained")), (2, 1));
        });
    });
}

#[test]
fn a_shutdown_does_not_wait_for_a_connection_that_cannot_close() {
    on_typical_backends(|config| {
        check(config, async {
            let server = builder()
                .serve(here(), async |conn: &mut Conn| {
                    // More than sockets take; then it is closed, which takes until the peer reads.
                    for _ in 0..60 {
                        if timeout(Duration::from_millis(20), conn.send(vec![0; 100_000])).await.is_err() {
                            break;
                        }
                    }
                    Ok(())
                })
                .unwrap();
            let _stubborn = TcpStream::connect(server.addresses()[0]).await.unwrap();
            while server.totals().bytes_out == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_millis(100)).await;
            let start = anabranch::time::now();
            server.shutdown(Duration::ZERO);
            timeout(PATIENCE, server.ended()).await.expect("the server ends");
            // Closing alone would take Limits::close_flush_ms, ten seconds.
            assert!(anabranch::time::now() - start < Duration::from_secs(5));
            assert_eq!(server.totals().closed_total(), 1);
        });
    });
}

#[test]
fn no_more_connections_are_served_than_the_policy_allows() {
    on_typical_backends(|config: Config| {
        check(config, async {
            let mut policy = Policy::new();
            policy.connections_max = 2;
            let server = builder()
                .policy(policy)
                .serve(here(), async |conn: &mut Conn| {
                    conn.send("welcome").await?;
                    while conn.recv().await?.is_some() {}
                    Ok(())
                })
                .unwrap();
            let mut clients = Vec::new();
            for _ in 0..3 {
                clients.push(TcpStream::connect(server.addresses()[0]).await.unwrap());
            }
            let mut third = clients.pop().unwrap();
            for client in &mut clients {
                assert_eq!(client.recv_exact(7).await.unwrap(), "welcome");
            }
            assert_eq!(server.connections(), 2);
            assert!(timeout(Duration::from_millis(50), third.recv()).await.is_err(), "the third waits");
            drop(clients);
            assert_eq!(third.recv_exact(7).await.unwrap(), "welcome");
            ended(&server).await;
        });
    });
}
