//! The simulation itself: that it replays, that it finds what it shall find, and that it looks like the real thing.
#![cfg(feature = "sim")]
#![forbid(unsafe_code)]

use anabranch::net::{TcpListener, TcpStream};
use anabranch::sim::{Builder, Faults, Host, seeds};
use anabranch::{Close, Completion, Event, Shard};
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

async fn echo_server() -> io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:80").await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        anabranch::spawn(async move {
            while let Ok(Some(bytes)) = stream.recv().await {
                if stream.send(bytes).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn exchange() -> io::Result<()> {
    let mut stream = TcpStream::connect("server:80").await?;
    stream.send("hello").await?;
    assert_eq!(&stream.recv_exact(5).await?[..], b"hello");
    Ok(())
}

async fn patient_client() {
    loop {
        match anabranch::timeout(Duration::from_secs(60), exchange()).await {
            Ok(Ok(())) => return,
            _ => anabranch::sleep(Duration::from_millis(100)).await,
        }
    }
}

#[test]
fn an_echo_over_a_calm_network_takes_a_few_latencies() {
    let report = Builder::new().server("server", echo_server).host("client", exchange).run().unwrap();
    println!("{report}");
    assert!(report.elapsed() < Duration::from_millis(20), "{report}");
    assert_eq!((report.connections(), report.faults().total()), (1, 0));
}

#[test]
fn an_echo_survives_rough_faults() {
    for seed in seeds(0..300) {
        let builder = Builder::new().seed(seed).faults(Faults::rough());
        let report = builder.server("server", echo_server).host("client", patient_client).run().unwrap();
        println!("{report}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in seeds(0..50) {
        let builder = Builder::new().seed(seed).faults(Faults::rough());
        builder.server("server", echo_server).host("client", patient_client).replays().unwrap();
    }
}

#[test]
fn a_loop_over_the_completion_api_is_driven() {
    for seed in seeds(0..100) {
        let server = Host::driven("server", |shard| {
            let listener = shard.listen_shared("0.0.0.0:80".parse().unwrap()).ok();
            if let Some(listener) = listener {
                shard.submit_accept_multi(listener, 1).unwrap();
            } else {
                shard.submit_timeout(Duration::ZERO, 4).unwrap();
            }
            move |shard: &Shard, completion: Completion| {
                match (completion.tag, completion.event) {
                    (1, Event::Accepted(connection)) => drop(shard.submit_recv_multi(connection, 2)),
                    (2, Event::Received(bytes)) => drop(shard.submit_send(completion.endpoint, bytes, 3)),
                    (2, Event::End | Event::Failed(_)) => {
                        drop(shard.submit_close(completion.endpoint, Close::Flush, 5));
                    }
                    (4, _) => return ControlFlow::Break(Err("there is no listener")),
                    _ => {}
                }
                ControlFlow::Continue(())
            }
        });
        let builder = Builder::new().seed(seed).faults(Faults::rough()).add(server.serves());
        builder.host("client", patient_client).run().unwrap();
    }
}
