//! Hosts with several shards: listeners over all of them, and work from shard to shard.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, mix, one_in, small_config, within};
use super::session::{Book, Wire, begin, join};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::sim::{Builder, Fault, Faults, Host};
use anabranch::{Context, Distribution, Undelivered, sleep, spawn, timeout};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "groups");
    let verdict = Verdict::default();
    let book = Book::new(&verdict, is_calm(&faults));
    let crashes = faults.rate(Fault::HostCrash) > 0.0;
    let distribution = match choice.within(0..3) {
        0 => Distribution::ReusePort,
        1 => Distribution::Balanced,
        _ => Distribution::OneAcceptor,
    };
    let server = {
        let book = book.clone();
        Host::new("server", move |context| serve(context, distribution, book.clone()))
    };
    let shards = choice.within(2..5) as usize;
    let mut builder =
        Builder::new().faults(faults).config(small_config(&mut choice)).add(server.shards(shards).serves());
    for client in 0..choice.within(1..4) {
        let (book, visits) = (book.clone(), choice.within(1..6));
        builder = builder.host(format!("client-{client}"), move || visit(book.clone(), visits, crashes));
    }
    verdict.watch(builder)
}

async fn serve(context: Context, distribution: Distribution, book: Book) -> io::Result<()> {
    let address = SocketAddr::from(([0, 0, 0, 0], 7000));
    let listener = TcpListener::bind_group(&context, address, distribution)?;
    let verdict = book.verdict.clone();
    let accepting = spawn(async move {
        loop {
            let (stream, _) = listener.accept().await?;
            let book = book.clone();
            spawn(async move { join(Wire::Tcp(stream), &book).await }).detach();
        }
    });
    for _ in 0..within(0..4) {
        call_others(&context, &verdict).await;
        sleep(Duration::from_micros(within(1..20_000))).await;
    }
    accepting.await.unwrap_or_else(|error| Err(error.into()))
}

/// Work on another shard: each message that was taken runs once and in order, each task gives its output.
async fn call_others(context: &Context, verdict: &Verdict) {
    let other = context.remote(within(0..context.shards() as u64) as usize);
    let (ran, mut taken) = (Arc::new(AtomicU64::new(0)), 0);
    for _ in 0..within(1..12) {
        let counter = Arc::clone(&ran);
        let expected = taken;
        // A message out of order leaves the counter where it is, so that it never gets to the end.
        let job = move || {
            let _ = counter.compare_exchange(expected, expected + 1, Ordering::SeqCst, Ordering::SeqCst);
        };
        match other.run(job) {
            Ok(()) => taken += 1,
            Err(Undelivered::Full(_)) => sleep(Duration::from_millis(1)).await,
            Err(Undelivered::Ended(_)) => return,
        }
    }
    let token = within(0..u64::MAX);
    let made = other.spawn_on(move || async move {
        if one_in(2) {
            sleep(Duration::from_micros(within(1..5000))).await;
        }
        mix(token)
    });
    if let Ok(handle) = made {
        if one_in(4) {
            drop(handle);
        } else {
            match timeout(Duration::from_secs(60), handle).await {
                Ok(Ok(output)) => verdict
                    .require(output == mix(token), || "a task of another shard gave a wrong output".into()),
                // The group ends.
                Ok(Err(_)) => return,
                Err(_) => verdict.wrong("a task on another shard has not ended after a minute"),
            }
        }
    }
    for _ in 0..600 {
        if ran.load(Ordering::SeqCst) == taken {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let ran = ran.load(Ordering::SeqCst);
    verdict.wrong(format_args!("of {taken} messages to a shard {ran} ran in their order"));
}

async fn visit(book: Book, visits: u64, crashes: bool) {
    let all: Vec<_> = (0..visits)
        .map(|_| {
            let book = book.clone();
            spawn(async move {
                for _ in 0..10 {
                    sleep(Duration::from_micros(within(0..5000))).await;
                    let connecting =
                        timeout(Duration::from_secs(30), TcpStream::connect("server:7000")).await;
                    let Ok(Ok(stream)) = connecting else {
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    let talk = begin(Wire::Tcp(stream), &book);
                    if timeout(Duration::from_secs(300), talk).await.is_err() && !crashes {
                        book.verdict.wrong("a conversation has not ended after five minutes");
                    }
                    return;
                }
                book.verdict.require(!book.calm, || "no connection in ten attempts".into());
            })
        })
        .collect();
    for one in all {
        let _ = one.await;
    }
}
