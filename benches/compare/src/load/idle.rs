//! Memory of connections that do nothing: before their first message, and after one each.

use super::{PATIENCE, Plan, blocked, check, connect_all, failure};
use crate::pattern::Pattern;
use crate::process;
use crate::results::Metrics;
use crate::sys;
use std::io;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

const SIZE: usize = 32;

/// Waits until the server's memory stays as it is.
fn settled(server: u32) -> io::Result<f64> {
    let mut before = process::resident(server)?;
    for _ in 0..50 {
        sleep(Duration::from_millis(40));
        let now = process::resident(server)?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before as f64)
}

pub(super) fn run(plan: &Plan, connections: usize) -> io::Result<Metrics> {
    let pattern = Pattern::new();
    let (base, base_descriptors) = (settled(plan.server)?, process::descriptors(plan.server)?);
    let begun = Instant::now();
    let sockets = connect_all(plan.address, connections)?;
    // What the system has accepted the server may not have taken yet.
    while process::descriptors(plan.server)? < base_descriptors + connections {
        if begun.elapsed() > PATIENCE * 2 {
            return Err(failure("the server does not take all connections"));
        }
        sleep(Duration::from_millis(5));
    }
    let quiet = settled(plan.server)?;
    for (id, socket) in sockets.iter().enumerate() {
        let sent = sys::send(socket.as_raw_fd(), pattern.at(id, 0, SIZE))?;
        if sent != SIZE {
            return Err(failure("a connection without room for 32 bytes"));
        }
    }
    for (id, socket) in sockets.iter().enumerate() {
        let (mut buffer, mut received, limit) = ([0; SIZE], 0, Instant::now() + PATIENCE);
        while received < SIZE {
            match sys::recv(socket.as_raw_fd(), &mut buffer[received..]) {
                Ok(0) => return Err(failure(format!("connection {id} was closed by the server"))),
                Ok(n) => received += n,
                Err(error) if blocked(&error) && Instant::now() < limit => sleep(Duration::from_micros(200)),
                Err(error) => return Err(failure(format!("connection {id} has no echo: {error}"))),
            }
        }
        check(&pattern, id, 0, &buffer)?;
    }
    let touched = settled(plan.server)?;
    let each = |bytes: f64| (bytes - base).max(0.0) / connections as f64;
    let mut metrics = Metrics::new();
    metrics.insert("base_kib".into(), base / 1024.0);
    metrics.insert("bytes_per_connection".into(), each(quiet));
    metrics.insert("bytes_per_connection_touched".into(), each(touched));
    Ok(metrics)
}
