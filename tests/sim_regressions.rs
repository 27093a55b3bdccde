//! What the simulation found, each as small as it could be made.
#![cfg(feature = "sim")]
#![forbid(unsafe_code)]

use anabranch::net::{TcpListener, TcpStream};
use anabranch::sim::Builder;
use anabranch::{sleep, time};
use std::io;
use std::time::Duration;

async fn gives_up() -> io::Result<()> {
    let mut stream = TcpStream::connect("server:80").await?;
    stream.send(vec![7; 1000]).await?;
    stream.flush().await?;
    sleep(Duration::from_millis(10)).await;
    stream.abort();
    sleep(Duration::from_secs(5)).await;
    Ok(())
}

/// `simulate --scenario streams --seeds 35..36`: a connection was reset while a receive did not look and a send went
/// out. The system tells the reset once; the send got it, the next receive got zero bytes, and the stream said that
/// its end had come, as if what was received were all.
#[test]
fn a_reset_that_a_send_was_told_of_is_no_end_of_the_stream() {
    let serve = || async {
        let listener = TcpListener::bind("0.0.0.0:80").await?;
        let (mut stream, _) = listener.accept().await?;
        let start = time::now();
        sleep(Duration::from_secs(1)).await;
        stream.send("x").await?;
        let sent = stream.flush().await;
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut received = 0;
        let end = loop {
            match stream.recv().await {
                Ok(Some(bytes)) => received += bytes.len(),
                end => break end,
            }
        };
        assert_eq!(received, 1000);
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(time::now() - start < Duration::from_secs(2));
        Ok::<(), io::Error>(())
    };
    Builder::new().host("server", serve).host("client", gives_up).run().unwrap();
}
