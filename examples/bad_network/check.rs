//! An echo server at one end of the bad network and a client at the other, which checks every byte.
#![forbid(unsafe_code)]

use crate::Flags;
use crate::network::{Network, Side};
use crate::relay::Tally;
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Backend, Config, Counters, Shard, spawn, timeout};
use indicatif::ProgressBar;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What came of it on one backend.
pub(crate) struct Checked {
    pub(crate) backend: Backend,
    pub(crate) tally: Arc<Tally>,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Of the client and of the server.
    pub(crate) counters: [Counters; 2],
    pub(crate) error: Option<io::Error>,
}

/// Sends `flags.bytes` there and back.
pub(crate) fn run(flags: &Flags, backend: Backend, bar: &ProgressBar) -> io::Result<Checked> {
    let network = Network::new(flags.faults())?;
    let (start, limit) = (Instant::now(), Duration::from_secs(flags.seconds));
    let (bound, address) = mpsc::channel();
    let [near, far] = &network.sides;
    let config = Config::new().backend(backend);
    let (client, server) = thread::scope(|scope| {
        let server_config = config.clone();
        let server = scope.spawn(move || on_shard(far, server_config, limit, serve(far, bound)));
        let client = scope.spawn(move || {
            let server = address.recv().map_err(io::Error::other)?;
            on_shard(near, config, limit, transfer(server, flags.bytes, bar))
        });
        (client.join(), server.join())
    });
    let gone = |_| io::Error::other("a shard panicked");
    let ((sent, of_client), (served, of_server)) = (client.map_err(gone)??, server.map_err(gone)??);
    let settled = of_client.settled().and(of_server.settled()).map_err(io::Error::other);
    Ok(Checked {
        backend,
        bytes: bar.position(),
        seconds: start.elapsed().as_secs_f64(),
        counters: [of_client, of_server],
        error: sent.and(served).and(settled).err(),
        tally: network.end()?,
    })
}

/// Runs a future on a shard whose sockets are at this end of the network.
fn on_shard(
    side: &Side,
    config: Config,
    limit: Duration,
    future: impl Future<Output = io::Result<()>>,
) -> io::Result<(io::Result<()>, Counters)> {
    side.enter()?;
    let shard = Shard::new(config)?;
    let outcome = shard.block_on(async { timeout(limit, future).await? });
    Ok((outcome, shard.finish()))
}

/// Echoes one connection to its end.
async fn serve(side: &Side, bound: mpsc::Sender<SocketAddr>) -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((side.address, 0))).await?;
    let _ = bound.send(listener.local_addr()?);
    let (mut stream, _) = listener.accept().await?;
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}

/// Sends so many bytes and checks that the same ones come back, in order, and no others.
async fn transfer(server: SocketAddr, bytes: u64, bar: &ProgressBar) -> io::Result<()> {
    const CHUNK: u64 = 16 * 1024;
    let (mut receiving, mut sending) = TcpStream::connect(server).await?.into_split();
    let sender = spawn(async move {
        for start in (0..bytes).step_by(CHUNK as usize) {
            let end = bytes.min(start + CHUNK);
            sending.send((start..end).map(byte).collect::<Vec<u8>>()).await?;
        }
        sending.shutdown().await
    });
    let mut at = 0;
    while let Some(received) = receiving.recv().await? {
        for received in received.iter() {
            if at >= bytes || *received != byte(at) {
                return Err(io::Error::other(format!("byte {at} is not the one that was sent")));
            }
            at += 1;
        }
        bar.set_position(at);
    }
    sender.await.map_err(|error| io::Error::other(error.to_string()))??;
    if at < bytes {
        return Err(io::Error::other(format!("the stream ended after {at} of {bytes} bytes")));
    }
    Ok(())
}

/// The byte at a place: no two stretches look alike.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}
