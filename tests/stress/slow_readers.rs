//! Many clients that ask for much and never read, and a few good ones whose echoes must stay fast.

use crate::common::net::raise_descriptors;
use crate::tools::{Run, percentile, resident, scenario, trim};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Shard, spawn};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const REQUEST_BYTES: usize = 1024;
const REPLY_BYTES: usize = 1 << 20;
const PIECE_BYTES: usize = 4096;
pub(crate) const GOOD: usize = 20;

#[test]
fn clients_that_never_read_cost_bounded_memory_and_slow_nobody_down() {
    scenario("slow readers", |run| {
        let mut count = run.size(200, 1000);
        let most = raise_descriptors().saturating_sub(500) / 2;
        if count > most {
            run.say(format_args!("NOT COVERED: {count} clients; the limit of descriptors allows {most}"));
            count = most;
        }
        // Small socket buffers, inherited by what is accepted: the bytes shall wait here, not in the kernel.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).set_send_buffer_size(16 * 1024).unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let clients = std::thread::spawn({
            let (over, full) = (Arc::clone(&over), run.full);
            move || {
                let seen = measure(address, count, full);
                over.store(true, Ordering::Release);
                seen
            }
        });
        let mut config = run.config.clone();
        config.limits.outbound_bytes_total_max = 16 << 20;
        config.limits.inbound_bytes_total_max = 8 << 20;
        config.limits.buffers = 32;
        let limits = config.limits.clone();
        let shard = Shard::new(config).expect("a shard");
        shard.block_on(serve(listener, &over));
        run.settle(shard);
        let seen = clients.join().expect("the clients end well");
        // A connection with nothing queued may always queue one payload.
        let cap = limits.outbound_bytes_total_max
            + limits.inbound_bytes_total_max
            + limits.buffers * limits.buffer_bytes
            + count * PIECE_BYTES;
        judge(run, count, cap, &seen);
    });
}

async fn serve(listener: std::net::TcpListener, over: &AtomicBool) {
    let listener = TcpListener::from_std(listener).unwrap();
    while !over.load(Ordering::Acquire) {
        if let Ok(Ok((stream, _))) = anabranch::timeout(Duration::from_millis(20), listener.accept()).await {
            spawn(handle(stream)).detach();
        }
    }
}

/// A request that begins with 'b' is answered with 1 MiB in pieces, any other one is echoed.
async fn handle(mut stream: TcpStream) {
    while let Ok(Some(request)) = stream.recv().await {
        if request[0] != b'b' {
            if stream.send(request).await.is_err() {
                return;
            }
            continue;
        }
        drop(request);
        for _ in 0..REPLY_BYTES / PIECE_BYTES {
            if stream.send(vec![b'b'; PIECE_BYTES]).await.is_err() {
                return;
            }
        }
    }
}

struct Measured {
    before: Duration,
    during: Duration,
    grown_max: usize,
}

fn measure(address: SocketAddr, count: usize, full: bool) -> Measured {
    let mut good: Vec<_> = (0..GOOD).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    for socket in &good {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    let windows = if full { 7 } else { 3 };
    // Memory that echoes need is no growth.
    echo(&mut good, full);
    trim();
    let resident_before = resident();
    let before = best_p99(windows, || echo(&mut good, full));
    let greedy: Vec<_> = (0..count).map(|_| greedy(address)).collect();
    let mut grown_max = 0;
    let during = best_p99(windows, || {
        let p99 = echo(&mut good, full);
        grown_max = grown_max.max(resident().saturating_sub(resident_before));
        p99
    });
    drop(greedy);
    Measured { before, during, grown_max }
}

fn greedy(address: SocketAddr) -> std::net::TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).expect("a connection");
    let mut socket = std::net::TcpStream::from(socket);
    socket.write_all(&[b'b'; REQUEST_BYTES]).unwrap();
    socket
}

/// The 99th percentile of echoes over all good clients, one window.
pub(crate) fn echo(sockets: &mut [std::net::TcpStream], full: bool) -> Duration {
    let rounds = if full { 500 } else { 100 };
    let mut times = Vec::new();
    for _ in 0..rounds {
        for socket in &mut *sockets {
            let start = Instant::now();
            socket.write_all(&[b'e'; 64]).unwrap();
            socket.read_exact(&mut [0; 64]).expect("an echo");
            times.push(start.elapsed());
        }
    }
    percentile(&mut times, 0.99)
}

/// The best of several windows, because something else may run on the machine during one.
pub(crate) fn best_p99(windows: usize, mut window: impl FnMut() -> Duration) -> Duration {
    (0..windows).map(|_| window()).min().unwrap_or_default()
}

fn judge(run: &Run, count: usize, cap: usize, seen: &Measured) {
    let bound = cap + cap / 10;
    run.say(format_args!(
        "{count} clients ask and do not read: memory grew by {} KiB of {} KiB allowed; echo p99 {:.0?} before, {:.0?} during",
        seen.grown_max / 1024,
        bound / 1024,
        seen.before,
        seen.during
    ));
    assert!(seen.grown_max <= bound, "memory stays within the limits");
    let factor = if run.full { 2 } else { 20 };
    // What it costs to wake a thread on another core comes and goes with the system's scheduler; a base below it
    // counts as this much.
    let base = seen.before.max(Duration::from_micros(50));
    assert!(seen.during < base * factor, "echoes take less than {factor} times as long");
}
