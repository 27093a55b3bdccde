//! Shards that end in the middle of their traffic.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, small_config, within};
use super::session::{Book, Wire, begin, join};
use anabranch::net::{TcpListener, TcpStream, UnixStream};
use anabranch::sim::{Builder, Faults, Host};
use anabranch::{offload, sleep, spawn};
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "drain");
    let verdict = Verdict::default();
    let book = Book::new(&verdict, is_calm(&faults));
    let hosts = choice.within(2..4);
    let mut builder = Builder::new().faults(faults);
    for host in 0..hosts {
        let (book, calls) = (book.clone(), choice.within(0..8));
        let host = Host::new(format!("host-{host}"), move |_| live(book.clone(), hosts, calls));
        builder = builder.add(host.shards(1).config(small_config(&mut choice)));
    }
    verdict.watch(builder)
}

/// Starts all kinds of things, and ends before they do.
async fn live(book: Book, hosts: u64, calls: u64) {
    let served = book.clone();
    spawn(async move {
        let Ok(listener) = TcpListener::bind("0.0.0.0:7000").await else { return };
        while let Ok((stream, _)) = listener.accept().await {
            let book = served.clone();
            spawn(async move { join(Wire::Tcp(stream), &book).await }).detach();
        }
    })
    .detach();
    for _ in 0..calls {
        let book = book.clone();
        spawn(async move {
            sleep(Duration::from_micros(within(0..3000))).await;
            let target = format!("host-{}:7000", within(0..hosts));
            if let Ok(stream) = TcpStream::connect(target).await {
                begin(Wire::Tcp(stream), &book).await;
            }
        })
        .detach();
    }
    if let Ok((mine, other)) = UnixStream::pair() {
        let (book, theirs) = (book.clone(), book.clone());
        spawn(async move { begin(Wire::Unix(mine), &book).await }).detach();
        spawn(async move { join(Wire::Unix(other), &theirs).await }).detach();
    }
    spawn(async move {
        let _ = offload(|| ()).await;
        sleep(Duration::from_secs(3600)).await;
    })
    .detach();
    sleep(Duration::from_micros(within(0..30_000))).await;
}
