//! Servers over several shards, used from plain threads.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Conn, ConnId, Failure, Phase, Server};
use anabranch::net::ListeningSockets;
use anabranch::{Config, Distribution, Runtime, block_on};
use common::net::{anywhere, on_real_backends};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const SHARDS: usize = 3;

fn runtime(config: &Config) -> Runtime {
    let settings = Runtime::builder().shards(SHARDS).config(config.clone());
    let started = settings.start(|group| async move {
        group.stopped().await;
        Ok(())
    });
    started.expect("shards")
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    stream.read_exact(&mut read).expect("bytes within the time");
    read
}

fn wait_until(mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "it takes too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

async fn echo(conn: &mut Conn) -> Result<(), Failure> {
    conn.session().join(if conn.id().as_u64() % 2 == 0 { "even" } else { "odd" });
    while let Some(message) = conn.recv().await? {
        conn.send(message).await?;
    }
    Ok(())
}

fn settled(runtime: Runtime) {
    runtime.stop();
    for end in runtime.join() {
        end.result.expect("the shard ends well");
        end.counters.settled().expect("the ledger is settled");
    }
}

#[test]
fn every_shard_serves_and_one_handle_reaches_all_connections() {
    on_real_backends(|config| {
        for distribution in [Distribution::Balanced, Distribution::OneAcceptor] {
            let runtime = runtime(&config);
            let builder = Server::builder().listen(anywhere()).distribution(distribution);
            let server = builder.serve(&runtime, echo).unwrap();
            let mut clients: Vec<_> = (0..30).map(|_| connect(&server)).collect();
            for client in &mut clients {
                client.write_all(b"hello").unwrap();
                assert_eq!(read(client, 5), b"hello");
            }
            let ids = block_on(server.gather(|session| (session.id(), session.bytes_in()))).unwrap().unwrap();
            assert_eq!(ids.len(), 30);
            assert!(ids.iter().all(|(_, bytes)| *bytes == 5));
            assert_eq!(server.totals().errors, 0);
            let shards: BTreeSet<_> = ids.iter().map(|(id, _)| id.shard()).collect();
            assert_eq!(shards.len(), SHARDS, "all of them serve: {ids:?}");
            server.broadcast("everybody").unwrap();
            for client in &mut clients {
                assert_eq!(read(client, 9), b"everybody");
            }
            server.send(ids[29].0, "you").unwrap();
            server.disconnect(ids[0].0).unwrap();
            wait_until(|| server.connections() == 29);
            server.disconnect_older(Duration::from_secs(3600)).unwrap();
            server.disconnect_all().unwrap();
            let rest: usize = clients
                .iter_mut()
                .map(|client| {
                    let mut rest = Vec::new();
                    client.read_to_end(&mut rest).expect("the end");
                    rest.len()
                })
                .sum();
            assert_eq!(rest, 3);
            server.shutdown(PATIENCE);
            server.wait();
            assert_eq!((server.phase(), server.totals().closed_for("disconnected")), (Phase::Ended, 30));
            settled(runtime);
        }
    });
}

#[test]
fn a_group_is_one_over_all_shards() {
    on_real_backends(|config| {
        let runtime = runtime(&config);
        let seen: Arc<Mutex<Vec<ConnId>>> = Arc::default();
        let server = Server::builder().listen(anywhere()).serve(&runtime, echo).unwrap();
        let mut clients: Vec<_> = (0..20).map(|_| connect(&server)).collect();
        for client in &mut clients {
            client.write_all(b"x").unwrap();
            read(client, 1);
        }
        let odd = block_on(server.gather(|session| session.id().as_u64() % 2)).unwrap().unwrap();
        let odd = odd.into_iter().sum::<u64>() as usize;
        server.broadcast_all(Some("odd"), vec!["1".into(), "3".into()]).unwrap();
        server.broadcast("!").unwrap();
        let got: Vec<_> = clients
            .iter_mut()
            .map(|client| match read(client, 1)[0] {
                b'1' => {
                    assert_eq!(read(client, 2), b"3!");
                    1
                }
                other => {
                    assert_eq!(other, b'!');
                    0
                }
            })
            .collect();
        assert_eq!(got.iter().sum::<usize>(), odd);
        drop(seen);
        server.shutdown(Duration::ZERO);
        server.wait();
        settled(runtime);
    });
}

#[test]
fn shards_that_end_end_the_server_with_one_event_for_each_connection() {
    on_real_backends(|config| {
        let runtime = runtime(&config);
        let server = Server::builder().listen(anywhere()).serve(&runtime, echo).unwrap();
        let mut clients: Vec<_> = (0..20).map(|_| connect(&server)).collect();
        for client in &mut clients {
            client.write_all(b"x").unwrap();
            read(client, 1);
        }
        settled(runtime);
        server.wait();
        assert_eq!(server.totals().closed_for("stopped"), 20);
        assert_eq!(server.broadcast("nobody").unwrap_err().shards, SHARDS);
        server.shutdown(Duration::ZERO);
    });
}

#[test]
fn a_server_that_has_ended_can_be_started_again_where_it_was() {
    on_real_backends(|config| {
        let runtime = runtime(&config);
        let mut address = anywhere();
        for _ in 0..3 {
            let server = Server::builder().listen(address).serve(&runtime, echo).unwrap();
            address = server.addresses()[0];
            let mut client = connect(&server);
            client.write_all(b"x").unwrap();
            assert_eq!(read(&mut client, 1), b"x");
            server.shutdown(Duration::ZERO);
            server.wait();
        }
        settled(runtime);
    });
}

#[test]
fn a_server_listens_on_sockets_that_it_was_given() {
    on_real_backends(|config| {
        let runtime = runtime(&config);
        let given = std::net::TcpListener::bind(anywhere()).unwrap();
        let address = given.local_addr().unwrap();
        let sockets = ListeningSockets::from_std(vec![given]).unwrap();
        let server = Server::builder().listen_on(sockets).serve(&runtime, echo).unwrap();
        assert_eq!(server.addresses(), [address]);
        let mut clients: Vec<_> = (0..10).map(|_| connect(&server)).collect();
        for client in &mut clients {
            client.write_all(b"x").unwrap();
            assert_eq!(read(client, 1), b"x");
        }
        server.shutdown(Duration::ZERO);
        server.wait();
        settled(runtime);
    });
}

#[test]
fn a_port_that_is_taken_is_an_error_of_the_start() {
    on_real_backends(|config| {
        let taken = std::net::TcpListener::bind(anywhere()).unwrap();
        let runtime = runtime(&config);
        let started = Server::builder().listen(taken.local_addr().unwrap()).serve(&runtime, echo);
        assert_eq!(started.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        settled(runtime);
    });
}

#[cfg(unix)]
#[test]
fn unix_sockets_are_served_as_well() {
    on_real_backends(|config| {
        let runtime = runtime(&config);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = Server::builder().listen_unix(&path).serve(&runtime, echo).unwrap();
        wait_until(|| path.exists());
        let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        client.write_all(b"hello").unwrap();
        let mut read = [0; 5];
        client.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
        server.shutdown(Duration::ZERO);
        server.wait();
        settled(runtime);
    });
}
