//! One scenario through each surface leaves the same trace.
#![forbid(unsafe_code)]

mod common;

use anabranch::net::{TcpListener, TcpStream};
use anabranch::{Close, Config, Event, spawn};
use common::net::{Driven, anywhere, check, pattern};
use common::on_every_backend;
use std::net::Shutdown;

/// What both ends see, in order, each on its own list; pieces are joined, for their boundaries are the kernel's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Trace {
    server: Vec<String>,
    client: Vec<String>,
}

fn sum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("received {} bytes, {sum:x}", bytes.len())
}

/// The client sends and half-closes; the server answers with the same bytes and a farewell, and closes; a connect
/// to where nobody listens any more is refused.
fn through_futures(config: Config) -> Trace {
    check(config, async {
        let mut client = Vec::new();
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut trace = vec!["accepted".to_owned()];
            let bytes = common::net::recv_all(&mut stream).await.unwrap();
            trace.push(sum(&bytes));
            trace.push("end".into());
            stream.send(bytes).await.unwrap();
            stream.send("farewell").await.unwrap();
            stream.flush().await.unwrap();
            trace.push("sent".into());
            stream.close().await.unwrap();
            trace.push("closed".into());
            listener.close().await;
            trace
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        client.push("connected".to_owned());
        stream.send(pattern(70_000)).await.unwrap();
        stream.shutdown(Shutdown::Write).await.unwrap();
        client.push("shut down".into());
        let bytes = common::net::recv_all(&mut stream).await.unwrap();
        client.push(sum(&bytes));
        client.push("end".into());
        stream.close().await.unwrap();
        client.push("closed".into());
        let server = server.await.unwrap();
        let refused = TcpStream::connect(address).await.unwrap_err();
        client.push(format!("{:?}", refused.kind()));
        Trace { server, client }
    })
}

fn through_completions(config: Config) -> Trace {
    const ACCEPT: u64 = 1;
    const CONNECT: u64 = 2;
    const SERVER: u64 = 10;
    const CLIENT: u64 = 20;
    let mut driven = Driven::new(config);
    let mut trace = Trace::default();
    let listener = driven.shard.listen(anywhere()).unwrap();
    let address = driven.shard.local_addr(listener).unwrap();
    driven.shard.submit_accept(listener, ACCEPT).unwrap();
    let ours = driven.shard.submit_connect(address, CONNECT).unwrap();
    let Event::Accepted(theirs) = *driven.end_of(ACCEPT) else { panic!("{:?}", driven.events) };
    trace.server.push("accepted".into());
    assert!(matches!(driven.end_of(CONNECT), Event::Connected));
    trace.client.push("connected".into());
    driven.shard.submit_recv_multi(theirs, SERVER).unwrap();
    assert!(matches!(driven.shard.submit_send(ours, pattern(70_000), CLIENT), Ok(Ok(()))));
    driven.shard.submit_shutdown(ours, Shutdown::Write, CLIENT + 1).unwrap();
    assert!(matches!(driven.end_of(CLIENT + 1), Event::ShutDown));
    trace.client.push("shut down".into());
    assert!(matches!(driven.end_of(SERVER), Event::End));
    let bytes = driven.bytes(SERVER);
    trace.server.extend([sum(&bytes), "end".into()]);
    assert!(matches!(driven.shard.submit_send(theirs, bytes, SERVER + 1), Ok(Ok(()))));
    assert!(matches!(driven.shard.submit_send(theirs, "farewell", SERVER + 2), Ok(Ok(()))));
    driven.shard.submit_recv_multi(ours, CLIENT + 2).unwrap();
    assert!(matches!(driven.end_of(SERVER + 2), Event::Sent));
    trace.server.push("sent".into());
    driven.shard.submit_close(theirs, Close::Flush, SERVER + 3).unwrap();
    assert!(matches!(driven.end_of(SERVER + 3), Event::Closed));
    trace.server.push("closed".into());
    driven.shard.submit_close(listener, Close::Flush, SERVER + 4).unwrap();
    assert!(matches!(driven.end_of(SERVER + 4), Event::Closed));
    assert!(matches!(driven.end_of(CLIENT + 2), Event::End));
    trace.client.extend([sum(&driven.bytes(CLIENT + 2)), "end".into()]);
    driven.shard.submit_close(ours, Close::Flush, CLIENT + 3).unwrap();
    assert!(matches!(driven.end_of(CLIENT + 3), Event::Closed));
    trace.client.push("closed".into());
    driven.shard.submit_connect(address, CLIENT + 4).unwrap();
    let Event::Failed(anabranch::Error::Io(refused)) = driven.end_of(CLIENT + 4) else {
        panic!("{:?}", driven.events)
    };
    trace.client.push(format!("{:?}", refused.kind()));
    driven.finish();
    trace
}

#[test]
fn both_surfaces_leave_the_same_trace_on_every_backend() {
    on_every_backend(|config| {
        let futures = through_futures(config.clone());
        let completions = through_completions(config);
        assert_eq!(futures, completions);
        assert_eq!(futures.client.last().unwrap(), "ConnectionRefused");
        assert_eq!(futures.server.len() + futures.client.len(), 11, "{futures:?}");
    });
}
