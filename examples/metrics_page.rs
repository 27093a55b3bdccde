//! An echo server with a second listener, whose answer to any HTTP request is a page of counters in the text format of
//! Prometheus: those of the server by shard, and those of the shards themselves.
//!
//! Try it: `cargo run --release --example metrics_page`, then `nc 127.0.0.1 7000`, and `curl http://127.0.0.1:7011/`.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Conn, Failure, Policy, Server, prometheus};
use anabranch::{Counters, Remote, Runtime, counters};
use clap::Parser;
use common::{Flags, stop_flag};
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Address of the page; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7011")]
    page: SocketAddr,
}

/// Bytes of the head of a request at most.
const HEAD_MAX: usize = 8 * 1024;

fn main() -> io::Result<()> {
    let Arguments { flags, page } = Arguments::parse();
    let stop = stop_flag();
    let settings = Runtime::builder().shards(flags.shards as usize).name("echo").config(flags.config());
    let runtime = settings.start(|context| async move {
        context.stopped().await;
        Ok(())
    })?;
    let echo = Server::builder().listen(flags.addr).serve(&runtime, async |conn: &mut Conn| {
        while let Some(bytes) = conn.recv().await? {
            conn.send(bytes).await?;
        }
        Ok(())
    })?;
    let shards: Vec<Remote> = (0..runtime.shards()).map(|shard| runtime.remote(shard)).collect();
    let counted = echo.clone();
    // Whoever asks for the page has little time, and there are few of them: they must not cost the service anything.
    let mut policy = Policy::new();
    policy.connections_max = 16;
    policy.idle_timeout = Some(Duration::from_secs(5));
    policy.lifetime = Some(Duration::from_secs(10));
    let pages = Server::builder()
        .listen(page)
        .policy(policy)
        .serve(&runtime, async move |conn: &mut Conn| answer(conn, &counted, &shards).await)?;
    println!("page on {}", pages.addresses()[0]);
    flags.announce(&runtime.reports()[0], echo.addresses()[0]);
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50));
    }
    for server in [&pages, &echo] {
        server.shutdown(Duration::from_secs(1));
        server.wait();
    }
    Ok(())
}

/// Waits for the head of a request, whatever it asks for, and answers. When this returns the answer is sent and the
/// connection closed.
async fn answer(conn: &mut Conn, server: &Server, shards: &[Remote]) -> Result<(), Failure> {
    conn.pull(HEAD_MAX);
    while conn.pulled().and_then(|head| head.find(b"\r\n\r\n")).is_none() {
        if !conn.more().await? {
            return Err("the head of a request did not end, or was too long".into());
        }
    }
    let is_head = conn.pulled().and_then(|head| head.peek(5)).is_some_and(|begin| *begin == *b"HEAD ");
    let mut text = prometheus("echo", &server.snapshots());
    write_shards(&mut text, &count(shards).await)?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        text.len()
    );
    conn.send(head).await?;
    if !is_head {
        conn.send(text).await?;
    }
    Ok(())
}

/// The counters of each shard, asked for one after the other; nothing of a shard that has ended or is too busy to say.
async fn count(shards: &[Remote]) -> Vec<(usize, Counters)> {
    let mut all = Vec::new();
    for (at, shard) in shards.iter().enumerate() {
        let Ok(asked) = shard.spawn_on(|| async { counters() }) else { continue };
        if let Ok(Ok(counters)) = asked.await {
            all.push((at, counters));
        }
    }
    all
}

type Read = fn(&Counters) -> u64;

/// What is told of shards: name, help, and how to read it.
const OF_SHARDS: &[(&str, &str, Read)] = &[
    ("turns", "Turns of the loop.", |counters| counters.turns),
    ("parks", "Sleeps of the loop.", |counters| counters.parks),
    ("operations", "Operations submitted.", |counters| counters.submitted),
    ("accepts", "Connections accepted.", |counters| counters.accepts),
    ("accept_pauses", "Pauses for lack of descriptors.", |counters| counters.accept_pauses),
    ("refusals", "Requests refused by a bound.", |counters| counters.refusals),
    ("starved", "Receives that found no buffer.", |counters| counters.starved),
    ("bytes_in", "Bytes received.", |counters| counters.bytes_in),
    ("bytes_out", "Bytes sent.", |counters| counters.bytes_out),
    ("panics", "Panics that were contained.", |counters| counters.panics),
];

fn write_shards(out: &mut String, shards: &[(usize, Counters)]) -> std::fmt::Result {
    for (name, help, read) in OF_SHARDS {
        writeln!(out, "# HELP shard_{name}_total {help}\n# TYPE shard_{name}_total counter")?;
        for (shard, counters) in shards {
            writeln!(out, "shard_{name}_total{{shard=\"{shard}\"}} {}", read(counters))?;
        }
    }
    Ok(())
}
