//! Clients: one connection that comes back, for tasks and for threads that block.
#![forbid(unsafe_code)]

mod common;

use anabranch::codec::{Delimiter, Pack};
use anabranch::component::{
    BlockingClient, BlockingOptions, Client, ClientError, Closed, Conn, ConnectError, Failure, Handler, Peer,
    Reconnect, Server, Shards,
};
use anabranch::{Config, Lease, Runtime, sleep, timeout};
use common::net::{anywhere, check, nobody, on_real_backends, on_typical_backends, pattern};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(25);
const MILLISECOND: Duration = Duration::from_millis(1);

fn here() -> Shards {
    Shards::current().unwrap()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            sleep(MILLISECOND).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("it never came that {what}"));
}

/// What a client heard, and how its connections ended.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<String>>>);

impl Ear {
    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Handler for Ear {
    type State = ();

    fn on_accept(&self, _: &Peer) -> anabranch::component::Admission<()> {
        self.0.lock().unwrap().push("accept".to_owned());
        anabranch::component::Admission::Accept(())
    }

    async fn on_receive(&self, _: &mut Conn, message: Lease) -> Result<(), Failure> {
        self.0.lock().unwrap().push(String::from_utf8(message.to_vec())?);
        Ok(())
    }

    fn on_close(&self, _: &mut Conn, closed: &Closed) {
        self.0.lock().unwrap().push(closed.reason.name().to_owned());
    }
}

/// A server that sends each line back, and leaves at "bye".
fn lines(address: SocketAddr) -> io::Result<Server> {
    Server::builder().listen(address).codec(|| Delimiter::new("\n")).serve(here(), async |conn: &mut Conn| {
        while let Some(line) = conn.recv().await? {
            let leaves = &*line == b"bye";
            conn.send(line).await?;
            if leaves {
                break;
            }
        }
        Ok(())
    })
}

#[test]
fn a_client_is_connected_disconnected_and_connected_again() {
    on_typical_backends(|config| {
        check(config, async {
            let server = lines(anywhere()).unwrap();
            let ear = Ear::default();
            let client = Client::builder(server.addresses()[0]).codec(|| Delimiter::new("\n"));
            let client = client.start(here(), ear.clone()).unwrap();
            assert!(!client.is_connected() && !client.disconnect().unwrap());
            client.send("to nobody").unwrap();
            assert_eq!(client.totals().undelivered, 1);
            for round in 1..=3 {
                let id = client.connect().unwrap().await.unwrap();
                assert_eq!(client.id(), Some(id));
                assert!(client.is_connected());
                assert!(matches!(client.connect(), Err(ConnectError::Connected)));
                client.send("hello").unwrap();
                until("it answers", || ear.heard().len() == 3 * round - 1).await;
                assert!(client.disconnect().unwrap());
                until("it ends", || ear.heard().len() == 3 * round).await;
            }
            assert_eq!(ear.heard(), ["accept", "hello", "disconnected"].repeat(3));
            // The next one need not wait for the end of the last.
            client.connect().unwrap().await.unwrap();
            client.reconnect().unwrap().await.unwrap();
            client.shutdown(Duration::ZERO);
            client.ended().await;
            assert_eq!((client.totals().opened, client.totals().closed_total()), (5, 5));
            server.shutdown(Duration::ZERO);
        });
    });
}

#[test]
fn a_client_comes_back_by_itself() {
    on_typical_backends(|config| {
        check(config, async {
            let server = lines(anywhere()).unwrap();
            let ear = Ear::default();
            let client = Client::builder(server.addresses()[0]).codec(|| Delimiter::new("\n"));
            let client = client.reconnect(Reconnect::every(MILLISECOND)).start(here(), ear.clone()).unwrap();
            client.connect().unwrap().await.unwrap();
            for round in 1..=3 {
                until("it is there", || client.totals().opened == round && client.totals().handshaking == 0)
                    .await;
                client.send("bye").unwrap();
                until("it ends", || client.totals().closed_for("peer_closed") == round).await;
            }
            until("it is there", || client.totals().opened == 4).await;
            client.shutdown(Duration::ZERO);
            client.ended().await;
            assert_eq!(client.totals().connects_failed, 0);
            assert_eq!(ear.heard().iter().filter(|line| *line == "bye").count(), 3);
            server.shutdown(Duration::ZERO);
        });
    });
}

/// A blocking server of the standard library for one connection after another.
fn serve(times: usize, serve: impl Fn(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(anywhere()).unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || (0..times).for_each(|_| serve(listener.accept().unwrap().0)));
    (address, thread)
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 65536];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..n]).unwrap();
    }
}

/// On each backend with a shard of its own, and once on one that is there.
fn blocking(test: impl Fn(BlockingOptions)) {
    on_real_backends(|config: Config| {
        test(BlockingOptions::new().config(config.clone()).timeout(PATIENCE));
        let runtime = runtime(config);
        test(BlockingOptions::new().on(&runtime).timeout(PATIENCE));
        runtime.stop();
        for end in runtime.join() {
            end.counters.settled().expect("the ledger is settled");
        }
    });
}

fn runtime(config: Config) -> Runtime {
    let settings = Runtime::builder().shards(1).config(config);
    let started = settings.start(|group| async move {
        group.stopped().await;
        Ok(())
    });
    started.expect("a shard")
}

#[test]
fn a_thread_sends_and_receives_and_connects_again() {
    blocking(|options| {
        let (address, server) = serve(2, echo);
        let client = BlockingClient::connect(address, options).unwrap();
        for _ in 0..2 {
            assert!(client.is_connected());
            client.send("hello").unwrap();
            client.send(" world").unwrap();
            assert_eq!(client.recv_exact(3).unwrap(), "hel");
            assert_eq!(client.recv_exact(6).unwrap(), "lo wor");
            client.send("!").unwrap();
            let mut rest = Vec::new();
            while rest.len() < 3 {
                rest.extend_from_slice(&client.recv().unwrap().expect("no end"));
            }
            assert_eq!(rest, b"ld!");
            // A megabyte and more, which is more than the queues take.
            let sent = pattern(5 << 20);
            thread::scope(|scope| {
                scope.spawn(|| sent.chunks(100_000).for_each(|piece| client.send(piece.to_vec()).unwrap()));
                assert!(client.recv_exact(5 << 20).unwrap() == sent, "the bytes differ");
            });
            if client.fleet().totals().opened == 1 {
                client.reconnect().unwrap();
            }
        }
        client.close().unwrap();
        assert!(!client.is_connected());
        assert!(matches!(client.send("x"), Err(ClientError::Ended { reason: "finished", .. })));
        drop(client);
        server.join().unwrap();
    });
}

#[test]
fn messages_of_a_codec_go_both_ways() {
    blocking(|options| {
        let (address, server) = serve(1, echo);
        let client = BlockingClient::connect(address, options.codec(Pack::new)).unwrap();
        let messages = [&b"one"[..], b"two", &[7; 70_000]];
        messages.iter().for_each(|message| client.send(message.to_vec()).unwrap());
        for message in messages {
            assert_eq!(client.recv().unwrap().expect("a message"), message);
        }
        drop(client);
        server.join().unwrap();
    });
}

#[test]
fn what_was_queued_leaves_before_the_close_and_the_end_of_the_peer_is_told() {
    blocking(|options| {
        let received = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&received);
        let (address, server) = serve(1, move |mut stream| {
            stream.write_all(b"farewell").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_to_end(&mut all.lock().unwrap()).unwrap();
        });
        let client = BlockingClient::connect(address, options).unwrap();
        assert_eq!(client.recv_exact(4).unwrap(), "fare");
        assert!(matches!(client.recv_exact(5), Err(ClientError::EndOfStream)));
        assert_eq!(client.recv().unwrap().unwrap(), "well");
        assert!(client.recv().unwrap().is_none() && client.recv().unwrap().is_none());
        // The other direction is open still.
        client.send(pattern(3_000_000)).unwrap();
        client.close().unwrap();
        server.join().unwrap();
        assert!(*received.lock().unwrap() == pattern(3_000_000), "the bytes differ");
    });
}

#[test]
fn a_thread_that_does_not_receive_slows_the_peer_down() {
    const BYTES: usize = 32 << 20;
    const BOUND: usize = 64 << 10;
    blocking(|options| {
        let (address, server) = serve(1, |mut stream| stream.write_all(&pattern(BYTES)).unwrap());
        let client = BlockingClient::connect(address, options.inbound_bytes_max(BOUND)).unwrap();
        let held = || client.fleet().totals().bytes_in as usize;
        while held() < BOUND {
            thread::sleep(MILLISECOND);
        }
        for _ in 0..20 {
            thread::sleep(MILLISECOND);
            assert!(held() <= BOUND + (256 << 10), "{} bytes were taken", held());
        }
        let expected = pattern(BYTES);
        let mut at = 0;
        while let Some(bytes) = client.recv().unwrap() {
            assert!(expected[at..].starts_with(&bytes), "the bytes differ");
            at += bytes.len();
        }
        assert_eq!(at, BYTES);
        server.join().unwrap();
    });
}

#[test]
fn a_call_that_takes_too_long_says_so_and_loses_nothing() {
    blocking(|options| {
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let (address, server) = serve(1, move |mut stream| {
            stream.write_all(b"ab").unwrap();
            // Until the client has had enough of waiting.
            let _ = gone.lock().unwrap().recv();
            stream.write_all(b"cd").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        let options = options.timeout(Duration::from_millis(100)).outbound_bytes_max(1000);
        let client = BlockingClient::connect(address, options).unwrap();
        assert!(matches!(client.recv_exact(4), Err(ClientError::TimedOut)));
        // A peer that takes nothing: what waits is bounded.
        let full = (0..1000).find_map(|_| client.send(vec![0; 1 << 20]).err());
        assert!(matches!(full, Some(ClientError::TimedOut)), "{full:?}");
        go.send(()).unwrap();
        let mut received = Vec::new();
        while received.len() < 4 {
            match client.recv() {
                Ok(Some(bytes)) => received.extend_from_slice(&bytes),
                Ok(None) => panic!("no end"),
                Err(error) => assert!(matches!(error, ClientError::TimedOut), "{error}"),
            }
        }
        assert_eq!(received, b"abcd");
        drop(client);
        server.join().unwrap();
    });
}

#[test]
fn errors_are_typed_and_nobody_waits_for_a_shard_that_has_ended() {
    on_real_backends(|config| {
        let options = || BlockingOptions::new().config(config.clone());
        let refused = BlockingClient::connect(nobody(), options()).unwrap_err();
        assert!(
            matches!(&refused, ClientError::Connect(ConnectError::Failed(error)) if error.kind() == io::ErrorKind::ConnectionRefused),
            "{refused:?}"
        );
        let (address, server) = serve(1, |mut stream| drop(stream.read_to_end(&mut Vec::new())));
        let runtime = runtime(config.clone());
        let client = BlockingClient::connect(address, BlockingOptions::new().on(&runtime)).unwrap();
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| client.recv());
            runtime.stop();
            waiting.join().unwrap()
        });
        assert!(matches!(waiting, Err(ClientError::Ended { reason: "stopped", .. })), "{waiting:?}");
        assert!(matches!(client.send("x"), Err(ClientError::Ended { .. })));
        runtime.join();
        client.close().unwrap();
        assert!(matches!(client.reconnect(), Err(ClientError::Connect(ConnectError::Ended))));
        drop(client);
        server.join().unwrap();
        check(config.clone(), async {
            let here = BlockingClient::connect(nobody(), BlockingOptions::new());
            assert!(matches!(here, Err(ClientError::OnShard)));
        });
    });
}

#[test]
fn a_reset_is_told_with_its_reason_after_what_came_before() {
    blocking(|options| {
        let (address, server) = serve(1, |mut stream| {
            let mut byte = [0];
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut byte).unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        });
        let client = BlockingClient::connect(address, options).unwrap();
        assert_eq!(client.recv_exact(1).unwrap(), "x");
        client.send("y").unwrap();
        match client.recv() {
            Err(ClientError::Ended { reason: "failed", .. }) => {}
            // Told as an end where the system forgets the reset.
            other => assert!(common::is_wine(), "{other:?}"),
        }
        server.join().unwrap();
    });
}
