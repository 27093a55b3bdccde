//! Files at offsets: a server of HTTP/1.0 GET for the files of one directory.
//!
//! A file is sent by `send_file`, which reads no more than the connection has room for, so a slow client costs a bounded
//! number of bytes; one that takes nothing for a while is cut off. Paths that leave the directory are refused, also through
//! symbolic links. Names are taken as they are; there is no percent-decoding.
//!
//! Try it: `cargo run --example file_server -- --root src`, then `curl http://127.0.0.1:7004/lib.rs`. Ctrl-C ends it.
#![forbid(unsafe_code)]

mod common;

use anabranch::fs::File;
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Backend, Config, Shard, offload, spawn, timeout};
use clap::Parser;
use common::until_asked_to_end;
use std::io;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Bytes of a request at most.
const REQUEST_MAX: usize = 8 * 1024;
/// Bytes that a client must take within its time.
const PIECE: u64 = 256 * 1024;
/// How long a client may take for its request, and for each piece of a file.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves the files of a directory.
#[derive(Parser)]
struct Flags {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7004")]
    addr: SocketAddr,
    /// The directory.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let root = flags.root.canonicalize()?;
    let shard = Shard::new(Config::new().backend(flags.backend))?;
    shard.block_on(until_asked_to_end(serve(flags.addr, root)))
}

async fn serve(address: SocketAddr, root: PathBuf) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("serving {} on {}", root.display(), listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(answer(stream, root.clone())).detach();
    }
}

async fn answer(mut stream: TcpStream, root: PathBuf) -> io::Result<()> {
    let request = timeout(PATIENCE, stream.recv_until(b"\r\n\r\n", REQUEST_MAX)).await?;
    let status = match request {
        Ok(Some(request)) => match find(&request, root).await {
            Ok((file, len)) => return send_file(stream, File::from_std(file)?, len).await,
            Err(status) => status,
        },
        Ok(None) => return Ok(()),
        Err(_) => "400 Bad Request",
    };
    stream.send(format!("HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n")).await?;
    stream.close().await
}

/// The file that a request asks for, or the status that refuses it.
async fn find(request: &[u8], root: PathBuf) -> Result<(std::fs::File, u64), &'static str> {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| "400 Bad Request")?;
    let mut words = line.split(' ');
    let path = match (words.next(), words.next()) {
        (Some("GET"), Some(path)) => path.split('?').next().unwrap_or_default().to_owned(),
        (Some("GET"), None) => return Err("400 Bad Request"),
        _ => return Err("501 Not Implemented"),
    };
    // Looking for a file and opening it may block.
    let opened = offload(move || open_below(&root, path.trim_start_matches('/'))).await;
    match opened.and_then(|opened| opened) {
        Ok(found) => Ok(found),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err("403 Forbidden"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err("503 Service Unavailable"),
        Err(_) => Err("404 Not Found"),
    }
}

/// Opens a regular file below `root`.
fn open_below(root: &Path, path: &str) -> io::Result<(std::fs::File, u64)> {
    if Path::new(path).components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Without links, so that it shows where the file really is.
    let path = root.join(path).canonicalize()?;
    if !path.starts_with(root) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Opening something like a pipe could wait for ever.
    if !path.metadata()?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

async fn send_file(mut stream: TcpStream, file: File, len: u64) -> io::Result<()> {
    stream.send(format!("HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n")).await?;
    let mut offset = 0;
    while offset < len {
        let end = len.min(offset + PIECE);
        match timeout(PATIENCE, stream.send_file(&file, offset..end)).await {
            Ok(Ok(_)) => offset = end,
            // The client takes nothing, or the file has become shorter: it shall see that something is missing.
            Ok(Err(error)) => {
                stream.abort();
                return Err(error.into());
            }
            Err(late) => {
                stream.abort();
                return Err(late);
            }
        }
    }
    stream.close().await
}
