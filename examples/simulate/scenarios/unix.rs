//! Random operations on Unix connections and pairs, against the model of streams.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, one_in, small_config, within};
use super::session::{Book, Wire, begin, join};
use anabranch::net::{UnixListener, UnixStream};
use anabranch::sim::{Builder, Faults};
use anabranch::{sleep, spawn, timeout};
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "unix");
    let verdict = Verdict::default();
    let book = Book::new(&verdict, is_calm(&faults));
    let conversations = choice.within(1..10);
    let builder = Builder::new().faults(faults).config(small_config(&mut choice));
    verdict.watch(builder.host("alone", move || live(book.clone(), conversations)))
}

async fn live(book: Book, conversations: u64) {
    // After a crash the path is still there, as it is on a disk.
    let path = format!("/run/{:x}", anabranch::random());
    let Some(listener) = bind(&path).await else { return };
    let served = book.clone();
    let mut accepting = spawn(async move {
        loop {
            match timeout(Duration::from_micros(within(1..50_000)), listener.accept()).await {
                Ok(Ok(stream)) => {
                    let book = served.clone();
                    spawn(async move { join(Wire::Unix(stream), &book).await }).detach();
                }
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
    });
    let all: Vec<_> = (0..conversations)
        .map(|_| {
            let (book, path) = (book.clone(), path.clone());
            spawn(async move {
                sleep(Duration::from_micros(within(0..5000))).await;
                let Some(stream) = connect(&book, &path).await else { return };
                let talk = begin(Wire::Unix(stream), &book);
                if timeout(Duration::from_secs(300), talk).await.is_err() {
                    book.verdict.wrong("a conversation has not ended after five minutes");
                }
            })
        })
        .collect();
    for one in all {
        let _ = one.await;
    }
    accepting.abort();
}

async fn bind(path: &str) -> Option<UnixListener> {
    for _ in 0..50 {
        if let Ok(listener) = UnixListener::bind(path) {
            return Some(listener);
        }
        sleep(Duration::from_millis(10)).await;
    }
    None
}

/// A stream to the listener, or one end of a pair.
async fn connect(book: &Book, path: &str) -> Option<UnixStream> {
    for _ in 0..40 {
        if one_in(3) {
            if let Ok((mine, other)) = UnixStream::pair() {
                let book = book.clone();
                spawn(async move { join(Wire::Unix(other), &book).await }).detach();
                return Some(mine);
            }
        } else if let Ok(Ok(stream)) = timeout(Duration::from_secs(10), UnixStream::connect(path)).await {
            return Some(stream);
        }
        sleep(Duration::from_millis(within(1..50))).await;
    }
    book.verdict.require(!book.calm, || "no connection in forty attempts".into());
    None
}
