//! Random operations on TCP connections, against a model.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, small_config, within};
use super::session::{Book, Wire, begin, join};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::sim::{Builder, Fault, Faults, Host};
use anabranch::{sleep, spawn, timeout};
use std::io;
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "streams");
    let verdict = Verdict::default();
    let book = Book::new(&verdict, is_calm(&faults));
    // A peer that has crashed without a word is found out only by whoever sends to it.
    let crashes = faults.rate(Fault::HostCrash) > 0.0;
    let mut builder = Builder::new().faults(faults).config(small_config(&mut choice));
    let served = book.clone();
    builder = builder
        .add(Host::new("server", move |_| serve(served.clone())).serves().config(small_config(&mut choice)));
    for client in 0..choice.within(1..4) {
        let (book, conversations) = (book.clone(), choice.within(1..5));
        builder = builder.host(format!("client-{client}"), move || {
            let book = book.clone();
            async move { visit(book, conversations, crashes).await }
        });
    }
    verdict.watch(builder)
}

async fn serve(book: Book) -> io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:7000").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let book = book.clone();
        spawn(async move { join(Wire::Tcp(stream), &book).await }).detach();
    }
}

async fn visit(book: Book, conversations: u64, crashes: bool) {
    let all: Vec<_> = (0..conversations)
        .map(|_| {
            let book = book.clone();
            spawn(async move {
                sleep(Duration::from_micros(within(0..5000))).await;
                let Some(stream) = connect(&book).await else { return };
                let talk = begin(Wire::Tcp(stream), &book);
                if timeout(Duration::from_secs(300), talk).await.is_err() && !crashes {
                    book.verdict.wrong("a conversation has not ended after five minutes");
                }
            })
        })
        .collect();
    for one in all {
        let _ = one.await;
    }
}

/// Connects, with as many attempts as it may take where things go wrong.
async fn connect(book: &Book) -> Option<TcpStream> {
    for _ in 0..40 {
        match timeout(Duration::from_secs(30), TcpStream::connect("server:7000")).await {
            Ok(Ok(stream)) => return Some(stream),
            // The server may not listen yet, or not again.
            _ => sleep(Duration::from_millis(within(1..500))).await,
        }
    }
    book.verdict.require(!book.calm, || "no connection in forty attempts".into());
    None
}
