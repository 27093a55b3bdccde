//! Hundreds of short connections that are made, taken, given up and dropped in every phase.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, one_in, poll_once, small_config, within};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::sim::{Builder, Fault, Faults, Host};
use anabranch::{sleep, spawn, timeout};
use std::io;
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "churn");
    let verdict = Verdict::default();
    let mut faults = faults;
    if !is_calm(&faults) {
        faults = faults.with(Fault::OutOfDescriptors, 0.05);
    }
    let config = small_config(&mut choice).with_limits(|limits| limits.accept_queue_max = 2);
    let mut builder = Builder::new().config(small_config(&mut choice)).faults(faults);
    builder = builder.add(Host::new("server", |_| serve()).serves().config(config));
    for client in 0..choice.within(1..4) {
        let connections = choice.within(10..60);
        let verdict = verdict.clone();
        builder = builder.host(format!("client-{client}"), move || visit(verdict.clone(), connections));
    }
    verdict.watch(builder)
}

/// Listens, takes some, closes, and listens again.
async fn serve() -> io::Result<()> {
    loop {
        let listener = TcpListener::bind("0.0.0.0:7").await?;
        for _ in 0..within(5..60) {
            let accepted = match within(0..4) {
                0 => poll_once(listener.accept()).await,
                1 => timeout(Duration::from_micros(within(1..20_000)), listener.accept()).await.ok(),
                _ => Some(listener.accept().await),
            };
            if let Some(accepted) = accepted {
                spawn(answer(accepted?.0)).detach();
            }
        }
        if one_in(2) {
            listener.close().await;
        } else {
            drop(listener);
            sleep(Duration::from_millis(within(0..20))).await;
        }
    }
}

async fn answer(mut stream: TcpStream) {
    match within(0..8) {
        0 => return,
        1 => return stream.abort(),
        2 => {
            let _ = stream.close().await;
            return;
        }
        3 => sleep(Duration::from_micros(within(1..5000))).await,
        _ => {}
    }
    while let Ok(Some(bytes)) = stream.recv().await {
        if stream.send(bytes).await.is_err() || one_in(16) {
            return;
        }
    }
}

async fn visit(verdict: Verdict, connections: u64) {
    let all: Vec<_> = (0..connections)
        .map(|number| {
            let verdict = verdict.clone();
            spawn(async move {
                sleep(Duration::from_micros(within(0..50_000))).await;
                let stay = call(&verdict, number);
                if timeout(Duration::from_secs(200), stay).await.is_err() {
                    verdict.wrong("a call with time-outs has not ended");
                }
            })
        })
        .collect();
    for one in all {
        let _ = one.await;
    }
}

async fn call(verdict: &Verdict, number: u64) {
    let patience = if one_in(4) { within(1..1500) } else { within(1..100_000_000) };
    let connecting = TcpStream::connect("server:7");
    let Ok(Ok(mut stream)) = timeout(Duration::from_micros(patience), connecting).await else { return };
    match within(0..8) {
        0 => return,
        1 => return stream.abort(),
        2 => {
            let _ = timeout(Duration::from_secs(60), stream.close()).await;
            return;
        }
        _ => {}
    }
    let word = number.to_le_bytes();
    for _ in 0..within(1..4) {
        if stream.send(word.to_vec()).await.is_err() {
            return;
        }
        if one_in(6) {
            return;
        }
        match timeout(Duration::from_secs(30), stream.recv_exact(8)).await {
            Ok(Ok(echo)) => verdict.require(echo[..] == word, || "an echo of other bytes".into()),
            _ => return,
        }
    }
}
