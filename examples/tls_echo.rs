//! An echo server over TLS 1.3 and 1.2, on any number of shards.
//!
//! Try it: `cargo run --release --features tls-ring --example tls_echo`, then
//! `openssl s_client -connect 127.0.0.1:7000`. Without `--cert` it shows a certificate of its own making. Ctrl-C ends it.

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use anabranch::net::{TcpListener, TcpStream};
use anabranch::tls::{ClientAuth, ConfigError, Identity, Roots, ServerTls, TlsAcceptor, TlsStream};
use anabranch::{Context, Distribution, Payload, Runtime, report, spawn};
use certificates::Authority;
use clap::Parser;
use common::{Flags, stop_when_asked};
use std::io;
use std::path::PathBuf;

/// Flags: those of the echo server, and those of TLS.
#[derive(Parser, Clone, Debug)]
struct TlsFlags {
    #[command(flatten)]
    echo: Flags,
    /// File with the certificates of the server, PEM or DER, its own first; without it one is made.
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// File with its private key.
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    /// File with roots: clients must show a certificate that goes back to one of them.
    #[arg(long)]
    client_ca: Option<PathBuf>,
    /// Echo whole requests, up to the empty line at their end, as clients of HTTP send them.
    #[arg(long)]
    requests: bool,
}

/// Most bytes of a request.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

fn main() -> io::Result<()> {
    let flags = TlsFlags::parse();
    let server = configure(&flags)?;
    let echo = &flags.echo;
    let settings = Runtime::builder().shards(echo.shards as usize).name("tls_echo").config(echo.config());
    let quiet = echo.quiet;
    let runtime = settings.start(move |context| serve(context, flags.clone(), server.clone()))?;
    let mut result = Ok(());
    for end in runtime.join() {
        if !quiet {
            println!("ledger of shard {}: {}", end.index, end.counters);
        }
        result = result.and(end.result);
    }
    result
}

fn configure(flags: &TlsFlags) -> io::Result<ServerTls> {
    let identity = match (&flags.cert, &flags.key) {
        (Some(cert), Some(key)) => Identity::from_files(cert, key)?,
        _ => self_made()?,
    };
    let auth = flags.client_ca.as_ref().map(Roots::from_file).transpose()?;
    let auth = auth.map_or(ClientAuth::None, ClientAuth::Required);
    Ok(ServerTls::builder(identity).client_auth(auth).build()?)
}

fn self_made() -> io::Result<Identity> {
    let authority = Authority::new("An authority of tls_echo").map_err(io::Error::other)?;
    let issued = authority.server(&["localhost", "127.0.0.1", "::1"]).map_err(io::Error::other)?;
    Identity::from_pem(issued.certificate, issued.key).map_err(|error: ConfigError| error.into())
}

async fn serve(context: Context, flags: TlsFlags, server: ServerTls) -> io::Result<()> {
    stop_when_asked(&context).await;
    let listener = TcpListener::bind_group(&context, flags.echo.addr, Distribution::Balanced)?;
    if context.index() == 0 {
        flags.echo.announce(&report()?, listener.local_addr()?);
    }
    let acceptor = TlsAcceptor::new(server);
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(echo(acceptor.clone(), stream, flags.requests)).detach();
    }
}

async fn echo(acceptor: TlsAcceptor, stream: TcpStream, requests: bool) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    while let Some(bytes) = next(&mut stream, requests).await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}

async fn next(stream: &mut TlsStream, requests: bool) -> io::Result<Option<Payload>> {
    if requests {
        let request = stream.recv_until(b"\r\n\r\n", REQUEST_BYTES_MAX).await?;
        return Ok(request.map(Into::into));
    }
    Ok(stream.recv().await?.map(Into::into))
}
