//! A server that ends without cutting anybody off: at SIGTERM (or Ctrl-C) it accepts no more, lets connections finish until a
//! deadline, and ends those that have not; a second signal does not wait. It prints what became of each connection.
//!
//! Try it: `cargo run --example drain -- --grace 30`, then `nc 127.0.0.1 7000` in some terminals, and Ctrl-C here. Ctrl-D ends
//! a client in time.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Admission, CloseReason, Closed, Conn, Failure, Handler, Peer, Server, Session};
use anabranch::os::{Signal, SignalKind};
use anabranch::{Lease, Runtime};
use clap::Parser;
use common::{Flags, either, signal_shard};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Seconds that connections may go on after the first signal.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
}

/// Echoes, and counts how connections ended.
#[derive(Clone, Default)]
struct Echo {
    finished: Arc<AtomicU64>,
    cut: Arc<AtomicU64>,
}

impl Handler for Echo {
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        Admission::Accept(())
    }

    async fn on_receive(&self, conn: &mut Conn, message: Lease) -> Result<(), Failure> {
        Ok(conn.send(message).await?)
    }

    fn on_drain(&self, session: &Session) {
        // A protocol with a word for it would say goodbye here.
        println!("connection {} is to finish", session.id());
    }

    fn on_close(&self, conn: &mut Conn, closed: &Closed) {
        let was_cut = matches!(closed.reason, CloseReason::Drained);
        let counter = if was_cut { &self.cut } else { &self.finished };
        counter.fetch_add(1, Ordering::Relaxed);
        println!("connection {} ended after {} bytes: {}", conn.id(), conn.bytes_in(), closed.reason);
    }
}

/// SIGTERM and Ctrl-C, heard from the beginning to the end.
struct Asked {
    terminate: Signal,
    interrupt: Signal,
}

impl Asked {
    fn new() -> io::Result<Asked> {
        let (terminate, interrupt) =
            (Signal::new(SignalKind::Terminate)?, Signal::new(SignalKind::Interrupt)?);
        Ok(Asked { terminate, interrupt })
    }

    async fn again(&mut self) -> io::Result<()> {
        either(self.terminate.recv(), self.interrupt.recv()).await
    }
}

fn main() -> io::Result<()> {
    let Arguments { flags, grace } = Arguments::parse();
    let settings = Runtime::builder().shards(flags.shards as usize).name("drain").config(flags.config());
    let runtime = settings.start(|context| async move {
        context.stopped().await;
        Ok(())
    })?;
    let echo = Echo::default();
    let server = Server::builder().listen(flags.addr).start(&runtime, echo.clone())?;
    // The signals have a small shard of their own, on this thread.
    signal_shard()?.block_on(async {
        let mut asked = Asked::new()?;
        flags.announce(&runtime.reports()[0], server.addresses()[0]);
        asked.again().await?;
        println!("draining; {} connection(s) may go on for {grace} s", server.connections());
        server.shutdown(Duration::from_secs(grace));
        let again = async {
            if asked.again().await.is_ok() {
                println!("not waiting any more");
                server.shutdown(Duration::ZERO);
            }
            server.ended().await;
        };
        either(server.ended(), again).await;
        io::Result::Ok(())
    })?;
    let (finished, cut) = (echo.finished.load(Ordering::Relaxed), echo.cut.load(Ordering::Relaxed));
    println!("ended; {finished} connection(s) finished, {cut} cut off");
    Ok(())
}
