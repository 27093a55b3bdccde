//! The limits of servers: each ends what it is for, with its own reason, and nobody else.
#![forbid(unsafe_code)]

mod common;

use anabranch::codec::Delimiter;
use anabranch::component::{AtLimit, Builder, Conn, Failure, Policy, Server, Shards, WhyRefused};
use anabranch::net::TcpStream;
use anabranch::{Config, Slow, sleep, spawn, timeout};
use common::net::{anywhere, check, on_typical_backends};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(40);

fn builder(change: impl FnOnce(&mut Policy)) -> Builder {
    let mut policy = Policy::new();
    change(&mut policy);
    Server::builder().listen(anywhere()).policy(policy)
}

fn here() -> Shards {
    Shards::current().unwrap()
}

async fn echo(conn: &mut Conn) -> Result<(), Failure> {
    while let Some(message) = conn.recv().await? {
        conn.send(message).await?;
    }
    Ok(())
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.addresses()[0]).await.unwrap()
}

/// Waits until so many connections have ended for this reason.
async fn closed_for(server: &Server, reason: &str, count: u64) {
    let wait = async {
        while server.totals().closed_for(reason) < count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{reason}: {:?}", server.totals()));
}

async fn end(server: &Server) {
    server.shutdown(Duration::ZERO);
    timeout(PATIENCE, server.ended()).await.expect("the server ends");
}

/// A client that behaves, as long as somebody asks it to.
async fn is_served(client: &mut TcpStream) {
    client.send("good\n").await.unwrap();
    assert_eq!(client.recv_exact(5).await.unwrap(), "good\n");
}

fn on_each(test: impl AsyncFn() + Copy) {
    on_typical_backends(|config: Config| {
        check(config, test());
    });
}

#[test]
fn a_message_that_drips_in_ends_its_connection_and_no_other() {
    on_each(async || {
        let server = builder(|policy| policy.message_timeout = Some(SHORT));
        let server = server.codec(|| Delimiter::new(b"\n")).serve(here(), echo).unwrap();
        let (mut good, mut bad) = (connect(&server).await, connect(&server).await);
        let dripping = spawn(async move {
            // Each drop comes in time; the message does not.
            while bad.send("x").await.is_ok() && bad.flush().await.is_ok() {
                sleep(SHORT / 8).await;
            }
        });
        closed_for(&server, "message_timeout", 1).await;
        dripping.await.unwrap();
        is_served(&mut good).await;
        end(&server).await;
        assert_eq!(server.totals().closed_total(), 2);
    });
}

#[test]
fn a_connection_ends_with_its_lifetime_though_it_is_busy() {
    on_each(async || {
        let server = builder(|policy| policy.lifetime = Some(SHORT)).serve(here(), echo).unwrap();
        let mut client = connect(&server).await;
        while client.send("x").await.is_ok() && matches!(client.recv().await, Ok(Some(_))) {
            sleep(SHORT / 8).await;
        }
        closed_for(&server, "lifetime", 1).await;
        end(&server).await;
    });
}

#[test]
fn a_peer_that_takes_nothing_stalls_and_is_cut_off() {
    on_each(async || {
        let server = builder(|policy| policy.write_stall_timeout = Some(SHORT));
        let server = server
            .serve(here(), async |conn: &mut Conn| {
                loop {
                    conn.send(vec![0; 64 * 1024]).await?;
                }
            })
            .unwrap();
        let client = connect(&server).await;
        closed_for(&server, "write_stall", 1).await;
        drop(client);
        end(&server).await;
    });
}

#[test]
fn a_handshake_that_takes_too_long_ends() {
    on_each(async || {
        struct Slowly;
        impl anabranch::component::Handler for Slowly {
            type State = ();
            fn on_accept(&self, _: &anabranch::component::Peer) -> anabranch::component::Admission<()> {
                anabranch::component::Admission::Accept(())
            }
            async fn on_handshake(&self, conn: &mut Conn) -> Result<(), Failure> {
                conn.recv().await?;
                Ok(())
            }
        }
        let server = builder(|policy| policy.handshake_timeout = Some(SHORT)).start(here(), Slowly).unwrap();
        let (mut quick, _slow) = (connect(&server).await, connect(&server).await);
        quick.send("hello").await.unwrap();
        closed_for(&server, "handshake_timeout", 1).await;
        assert_eq!((server.connections(), server.totals().handshaking), (1, 0));
        end(&server).await;
    });
}

#[test]
fn pushes_to_a_slow_reader_are_refused_and_its_memory_is_bounded() {
    on_each(async || {
        const MAX: usize = 100_000;
        let server = builder(|policy| policy.outbound_bytes_max = MAX).serve(here(), echo).unwrap();
        let (client, mut good) = (connect(&server).await, connect(&server).await);
        is_served(&mut good).await;
        let (mut pushed, mut refused) = (0_usize, 0_usize);
        while refused < 50 {
            let most = server.gather(|session| {
                let fits = session.push(vec![1; 10_000]);
                let full = matches!(&fits, Err(refused) if matches!(refused.why, WhyRefused::Full));
                assert!(session.pending() <= MAX + 10_000, "{} bytes wait", session.pending());
                (fits.is_ok(), full)
            });
            let most = most.await.unwrap();
            pushed += most.iter().filter(|(fits, _)| *fits).count();
            refused += most.iter().filter(|(_, full)| *full).count();
        }
        assert!(pushed > 0);
        assert_eq!(server.totals().dropped, refused as u64);
        drop(client);
        end(&server).await;
    });
}

#[test]
fn a_slow_reader_of_broadcasts_is_disconnected_where_the_policy_says_so() {
    on_each(async || {
        let server = builder(|policy| {
            policy.outbound_bytes_max = 100_000;
            policy.slow = Slow::Disconnect;
        });
        let server = server.serve(here(), echo).unwrap();
        let _slow = connect(&server).await;
        let mut good = connect(&server).await;
        is_served(&mut good).await;
        while server.totals().closed_for("slow_reader") == 0 {
            server.broadcast(vec![b'y'; 50_000]).unwrap();
            good.recv_exact(50_000).await.unwrap();
        }
        closed_for(&server, "slow_reader", 1).await;
        is_served(&mut good).await;
        end(&server).await;
        assert_eq!(server.totals().closed_for("slow_reader"), 1);
    });
}

#[test]
fn newcomers_above_the_limit_are_refused_where_the_policy_says_so() {
    on_each(async || {
        let server = builder(|policy| {
            policy.connections_max = 1;
            policy.at_limit = AtLimit::Refuse;
        });
        let server = server.serve(here(), echo).unwrap();
        let mut first = connect(&server).await;
        is_served(&mut first).await;
        let mut second = connect(&server).await;
        assert!(!matches!(second.recv().await, Ok(Some(_))), "it is closed");
        is_served(&mut first).await;
        end(&server).await;
        assert_eq!((server.totals().over_limit, server.totals().opened), (1, 1));
    });
}

#[test]
fn accepts_are_spread_over_time_and_nobody_is_lost() {
    on_each(async || {
        let server = builder(|policy| policy.accepts_per_second_max = Some(200)).serve(here(), echo).unwrap();
        let start = anabranch::time::now();
        let mut clients = Vec::new();
        for _ in 0..60 {
            clients.push(connect(&server).await);
        }
        for client in &mut clients {
            is_served(client).await;
        }
        // 20 at once, 40 more at 200 a second.
        assert!(anabranch::time::now() - start >= Duration::from_millis(190));
        drop(clients);
        end(&server).await;
        assert_eq!(server.totals().opened, 60);
    });
}

#[test]
fn a_paused_server_lets_newcomers_wait() {
    on_each(async || {
        let server = builder(|_| ()).serve(here(), echo).unwrap();
        let mut first = connect(&server).await;
        is_served(&mut first).await;
        server.pause().unwrap();
        let (mut second, mut third) = (connect(&server).await, connect(&server).await);
        for client in [&mut second, &mut third] {
            client.send("good\n").await.unwrap();
        }
        assert!(timeout(SHORT, third.recv()).await.is_err(), "it waits");
        is_served(&mut first).await;
        server.resume().unwrap();
        for client in [&mut second, &mut third] {
            assert_eq!(client.recv_exact(5).await.unwrap(), "good\n");
        }
        end(&server).await;
    });
}

#[test]
fn the_connection_that_holds_the_most_goes_when_the_process_holds_too_much() {
    on_each(async || {
        let server = builder(|policy| policy.memory_bytes_max = Some(200_000));
        let server = server
            .serve(here(), async |conn: &mut Conn| {
                while let Some(asked) = conn.recv().await? {
                    let bytes = std::str::from_utf8(&asked)?.trim().parse::<usize>()?;
                    for _ in 0..bytes / 100_000 {
                        conn.send(vec![b'z'; 100_000]).await?;
                    }
                    conn.send("done\n").await?;
                }
                Ok(())
            })
            .unwrap();
        let (mut greedy, mut modest) = (connect(&server).await, connect(&server).await);
        // More than sockets take, and never read.
        greedy.send("50000000").await.unwrap();
        closed_for(&server, "memory_cap", 1).await;
        modest.send("5").await.unwrap();
        assert_eq!(modest.recv_exact(5).await.unwrap(), "done\n");
        drop(greedy);
        end(&server).await;
        assert_eq!(server.totals().closed_for("memory_cap"), 1);
    });
}

#[test]
fn a_policy_that_nothing_could_live_with_is_refused_with_the_name_of_the_field() {
    on_each(async || {
        let started = builder(|policy| policy.idle_timeout = Some(Duration::ZERO)).serve(here(), echo);
        assert!(started.unwrap_err().to_string().contains("idle_timeout"));
        let started = Server::builder().serve(here(), echo);
        assert_eq!(started.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    });
}
