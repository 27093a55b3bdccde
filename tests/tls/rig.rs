//! Two ends of a TLS connection, and what they show each other.

use crate::certificates::{Authority, Issued};
use crate::common::net::pair;
use anabranch::tls::{
    ClientTls, Identity, Roots, ServerTls, TlsAcceptor, TlsConnector, TlsError, TlsStream, TlsVersion,
    Transport,
};
use anabranch::{net::TcpStream, spawn};
use std::sync::OnceLock;

/// The authority that most tests trust.
pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new("An authority of the tests").unwrap())
}

/// Another one, which nobody trusts.
pub(crate) fn stranger() -> &'static Authority {
    static STRANGER: OnceLock<Authority> = OnceLock::new();
    STRANGER.get_or_init(|| Authority::new("A stranger").unwrap())
}

pub(crate) fn identity(issued: &Issued) -> Identity {
    Identity::from_pem(&issued.certificate, &issued.key).unwrap()
}

/// Of a server with these names, from the authority.
pub(crate) fn serving(names: &[&str]) -> Identity {
    identity(&authority().server(names).unwrap())
}

pub(crate) fn roots() -> Roots {
    Roots::from_pem(&authority().pem).unwrap()
}

/// A server called `localhost`.
pub(crate) fn server() -> ServerTls {
    ServerTls::builder(serving(&["localhost"])).build().unwrap()
}

/// A client that trusts the authority.
pub(crate) fn client() -> ClientTls {
    ClientTls::builder(roots()).build().unwrap()
}

/// The same, with one version only.
pub(crate) fn client_of(version: TlsVersion) -> ClientTls {
    ClientTls::builder(roots()).versions(version, version).build().unwrap()
}

pub(crate) type Outcome = Result<TlsStream, TlsError>;

/// A handshake over two connected streams.
pub(crate) async fn shake_over(
    server: &ServerTls,
    theirs: impl Into<Transport> + 'static,
    client: &ClientTls,
    name: &str,
    ours: impl Into<Transport>,
) -> (Outcome, Outcome) {
    let acceptor = TlsAcceptor::new(server.clone());
    let accepting = spawn(async move { acceptor.accept(theirs).await });
    let connected = TlsConnector::new(client.clone()).connect(name, ours).await;
    (accepting.await.unwrap(), connected)
}

/// A handshake over TCP: the server's end and the client's.
pub(crate) async fn shake(server: &ServerTls, client: &ClientTls, name: &str) -> (Outcome, Outcome) {
    let (ours, theirs) = pair().await;
    shake_over(server, theirs, client, name, ours).await
}

/// The same where nothing goes wrong.
pub(crate) async fn sealed_pair(server: &ServerTls, client: &ClientTls) -> (TlsStream, TlsStream) {
    let (accepted, connected) = shake(server, client, "localhost").await;
    (accepted.unwrap(), connected.unwrap())
}

/// A TLS server, and a plain connection to it.
pub(crate) async fn with_raw_peer(acceptor: TlsAcceptor) -> (anabranch::JoinHandle<Outcome>, TcpStream) {
    let (ours, theirs) = pair().await;
    (spawn(async move { acceptor.accept(theirs).await }), ours)
}

/// Everything up to the end.
pub(crate) async fn recv_all(stream: &mut TlsStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(lease) = stream.recv().await? {
        all.extend_from_slice(&lease);
    }
    Ok(all)
}

/// Sends back what comes, until the peer is done.
pub(crate) async fn echo(mut stream: TlsStream) -> std::io::Result<()> {
    while let Some(lease) = stream.recv().await? {
        stream.send(lease).await?;
    }
    stream.close().await
}
