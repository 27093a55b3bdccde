//! Servers under TLS.
#![forbid(unsafe_code)]

#[path = "../examples/common/certificates.rs"]
mod certificates;
mod common;

#[path = "tls/rig.rs"]
#[allow(dead_code, reason = "a part of it is for other tests")]
mod rig;

use anabranch::Lease;
use anabranch::codec::Pack;
use anabranch::component::{Admission, Agent, Conn, Failure, Handler, Peer, Policy, Server, Shards};
use anabranch::net::TcpStream;
use anabranch::tls::{TlsAcceptor, TlsConnector};
use anabranch::{sleep, timeout};
use common::net::{anywhere, check, on_typical_backends};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn on_each(test: impl AsyncFn() + Copy) {
    on_typical_backends(|config| {
        check(config, test());
    });
}

async fn echo(conn: &mut Conn) -> Result<(), Failure> {
    assert_eq!(conn.tls().expect("it is sealed").sni.as_deref(), Some("localhost"));
    while let Some(message) = conn.recv().await? {
        conn.send(message).await?;
    }
    Ok(())
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.addresses()[0]).await.unwrap()
}

fn connector() -> TlsConnector {
    TlsConnector::new(rig::client())
}

async fn closed_for(server: &Server, reason: &str) {
    let wait = async {
        while server.totals().closed_for(reason) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{reason}: {:?}", server.totals()));
}

async fn end(server: &Server) {
    server.shutdown(Duration::ZERO);
    timeout(PATIENCE, server.ended()).await.expect("the server ends");
}

fn builder() -> anabranch::component::Builder {
    Server::builder().listen(anywhere())
}

fn here() -> Shards {
    Shards::current().unwrap()
}

#[test]
fn messages_of_a_codec_are_served_under_tls_and_broadcasts_too() {
    on_each(async || {
        let builder = builder().tls(rig::server()).codec(Pack::new);
        let server = builder.serve(here(), echo).unwrap();
        let mut client = connector().connect("localhost", connect(&server).await).await.unwrap();
        client.send("\x05\0\0\0hello").await.unwrap();
        assert_eq!(client.recv_exact(9).await.unwrap(), "\x05\0\0\0hello");
        server.broadcast("all").unwrap();
        assert_eq!(client.recv_exact(7).await.unwrap(), "\x03\0\0\0all");
        client.close().await.unwrap();
        closed_for(&server, "peer_closed").await;
        end(&server).await;
    });
}

#[test]
fn each_way_in_which_tls_fails_has_its_reason() {
    on_each(async || {
        let mut policy = Policy::new();
        policy.handshake_timeout = Some(Duration::from_millis(300));
        let server = builder().policy(policy).tls(rig::server()).serve(here(), echo).unwrap();
        // No TLS at all.
        let mut plain = connect(&server).await;
        plain.send("GET / HTTP/1.1\r\n\r\n").await.unwrap();
        closed_for(&server, "tls").await;
        // Nothing at all.
        let silent = connect(&server).await;
        closed_for(&server, "handshake_timeout").await;
        drop(silent);
        // An end without a farewell.
        let mut rude = connector().connect("localhost", connect(&server).await).await.unwrap();
        rude.send("x").await.unwrap();
        rude.recv_exact(1).await.unwrap();
        rude.abort();
        let totals = async {
            while server.totals().closed_for("truncated") + server.totals().closed_for("failed") == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, totals).await.expect("its end is told");
        end(&server).await;
        let totals = server.totals();
        assert_eq!(totals.opened, totals.closed_total());
    });
}

#[test]
fn a_connection_goes_over_to_tls_in_its_midst() {
    on_each(async || {
        let server = builder()
            .serve(here(), async |conn: &mut Conn| {
                let asked = conn.recv().await?.ok_or("it left")?;
                assert_eq!(&*asked, b"STARTTLS\n");
                assert!(conn.tls().is_none());
                conn.send("go\n").await?;
                conn.accept_tls(&TlsAcceptor::new(rig::server())).await?;
                echo(conn).await
            })
            .unwrap();
        let mut plain = connect(&server).await;
        plain.send("STARTTLS\n").await.unwrap();
        assert_eq!(plain.recv_exact(3).await.unwrap(), "go\n");
        let mut sealed = connector().connect("localhost", plain).await.unwrap();
        sealed.send("secret").await.unwrap();
        assert_eq!(sealed.recv_exact(6).await.unwrap(), "secret");
        sealed.close().await.unwrap();
        closed_for(&server, "peer_closed").await;
        end(&server).await;
    });
}

#[test]
fn broadcasts_are_sealed_for_whoever_has_gone_over_to_tls() {
    on_each(async || {
        let server = builder()
            .serve(here(), async |conn: &mut Conn| {
                conn.session().join("room");
                conn.send("joined\n").await?;
                conn.recv().await?.ok_or("it left")?;
                conn.send("go\n").await?;
                conn.accept_tls(&TlsAcceptor::new(rig::server())).await?;
                conn.send("sealed\n").await?;
                while conn.recv().await?.is_some() {}
                Ok(())
            })
            .unwrap();
        let mut plain = connect(&server).await;
        assert_eq!(plain.recv_exact(7).await.unwrap(), "joined\n");
        server.broadcast("to all").unwrap();
        server.broadcast_to("room", "to some").unwrap();
        assert_eq!(plain.recv_exact(13).await.unwrap(), "to allto some");
        plain.send("STARTTLS\n").await.unwrap();
        assert_eq!(plain.recv_exact(3).await.unwrap(), "go\n");
        let mut sealed = connector().connect("localhost", plain).await.unwrap();
        assert_eq!(sealed.recv_exact(7).await.unwrap(), "sealed\n");
        server.broadcast("to all").unwrap();
        server.broadcast_to("room", "to some").unwrap();
        assert_eq!(sealed.recv_exact(13).await.unwrap(), "to allto some");
        sealed.close().await.unwrap();
        closed_for(&server, "peer_closed").await;
        end(&server).await;
    });
}

/// What an agent does that speaks TLS: the handshake is part of its own.
struct Secret;

impl Handler for Secret {
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        Admission::Accept(())
    }

    async fn on_handshake(&self, conn: &mut Conn) -> Result<(), Failure> {
        Ok(conn.connect_tls("localhost", &connector()).await?)
    }

    async fn on_receive(&self, conn: &mut Conn, message: Lease) -> Result<(), Failure> {
        assert_eq!(&*message, b"secret");
        conn.disconnect();
        Ok(())
    }
}

#[test]
fn an_agent_speaks_tls_from_its_handshake_on() {
    on_each(async || {
        let server = builder().tls(rig::server()).codec(Pack::new).serve(here(), echo).unwrap();
        let agent = Agent::builder().codec(Pack::new).start(here(), Secret).unwrap();
        let connected = agent.connect(server.addresses()[0]).unwrap().await.unwrap();
        agent.send(connected, "secret").unwrap();
        closed_for(&server, "peer_closed").await;
        let ended = async {
            while agent.totals().closed_for("disconnected") == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, ended).await.expect("it got its echo and left");
        agent.shutdown(Duration::ZERO);
        agent.ended().await;
        end(&server).await;
    });
}
