//! Servers whose handlers fetch what they want of what has arrived.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Admission, Closed, Conn, Failure, Handler, Peer, Server, Shards};
use anabranch::net::TcpStream;
use anabranch::{sleep, timeout};
use common::net::{anywhere, check, on_typical_backends};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const BOUND: usize = 100;

/// Takes messages of ten bytes, and writes down what it was told of.
#[derive(Clone, Default)]
struct Tens {
    available: Arc<Mutex<Vec<usize>>>,
    closed: Arc<Mutex<Option<String>>>,
    /// Fetches nothing.
    idle: bool,
}

impl Handler for Tens {
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        Admission::Accept(())
    }

    async fn on_handshake(&self, conn: &mut Conn) -> Result<(), Failure> {
        conn.pull(BOUND);
        Ok(())
    }

    async fn on_available(&self, conn: &mut Conn, available: usize) -> Result<(), Failure> {
        assert_eq!(available, conn.available());
        self.available.lock().unwrap().push(available);
        let Some(pull) = conn.pulled() else { return Err("it was pulled".into()) };
        assert!(pull.fetch(available + 1).is_none(), "more than there is");
        assert!(pull.peek(available).is_some_and(|there| there.len() == available), "and all is still there");
        let whole = if self.idle { 0 } else { available / 10 * 10 };
        let Some(messages) = pull.fetch(whole).filter(|_| whole > 0) else { return Ok(()) };
        Ok(conn.send(messages).await?)
    }

    fn on_close(&self, _: &mut Conn, closed: &Closed) {
        self.closed.lock().unwrap().replace(closed.to_string());
    }
}

async fn wait_until(is: impl Fn() -> bool) {
    let wait = async {
        while !is() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it comes so far");
}

fn serve(handler: &Tens) -> Server {
    let builder = Server::builder().listen(anywhere());
    builder.start(Shards::current().unwrap(), handler.clone()).unwrap()
}

async fn end(server: &Server) {
    server.shutdown(Duration::ZERO);
    timeout(PATIENCE, server.ended()).await.expect("the server ends");
}

#[test]
fn callbacks_fetch_what_they_want_and_what_they_leave_stays() {
    on_typical_backends(|config| {
        check(config, async {
            let handler = Tens::default();
            let server = serve(&handler);
            let told = || handler.available.lock().unwrap().last().copied();
            let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
            // Each piece is seen before the next one is sent, so that what is announced is known.
            for (piece, announced) in [("0123", 4), ("4567", 8), ("89abcd", 14)] {
                client.send(piece).await.unwrap();
                wait_until(|| told() == Some(announced)).await;
            }
            assert_eq!(client.recv_exact(10).await.unwrap(), "0123456789");
            client.send("efghij").await.unwrap();
            assert_eq!(client.recv_exact(10).await.unwrap(), "abcdefghij");
            // What is left at the end of the stream is no message.
            client.send("xyz").await.unwrap();
            wait_until(|| told() == Some(3)).await;
            client.close().await.unwrap();
            wait_until(|| handler.closed.lock().unwrap().is_some()).await;
            end(&server).await;
            assert_eq!(*handler.available.lock().unwrap(), [4, 8, 14, 10, 3]);
            assert_eq!(server.totals().closed_for("peer_closed"), 1);
        });
    });
}

#[test]
fn who_sends_more_than_is_fetched_is_ended_at_the_bound() {
    on_typical_backends(|config| {
        check(config, async {
            let handler = Tens { idle: true, ..Tens::default() };
            let server = serve(&handler);
            let mut client = TcpStream::connect(server.addresses()[0]).await.unwrap();
            // Byte by byte, so that nothing comes in one piece that is larger than what is left of the bound.
            for at in 1..=BOUND {
                client.send("x").await.unwrap();
                let told = || handler.available.lock().unwrap().last().is_some_and(|told| *told >= at);
                wait_until(|| told() || handler.closed.lock().unwrap().is_some()).await;
            }
            wait_until(|| handler.closed.lock().unwrap().is_some()).await;
            assert!(!matches!(client.recv().await, Ok(Some(_))));
            end(&server).await;
            let closed = handler.closed.lock().unwrap().take().unwrap();
            assert!(closed.contains("Conn::pull"), "{closed}");
            assert_eq!(handler.available.lock().unwrap().last(), Some(&BOUND));
            assert_eq!(server.totals().closed_for("handler"), 1);
        });
    });
}
