//! An echo server of a few lines: `anabranch::component::Server` with an `async` closure, or with callbacks.
//!
//! Try it: `cargo run --release --example component_echo`, then `nc 127.0.0.1 7000`. Ctrl-C lets connections finish for a
//! second, and ends.

mod common;

use anabranch::component::{Admission, Conn, Failure, Handler, Peer, Server};
use anabranch::{Lease, Runtime};
use clap::Parser;
use common::{Flags, stop_flag};
use std::io;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Answer in callbacks rather than in an `async` closure.
    #[arg(long)]
    callbacks: bool,
}

struct Echo;

impl Handler for Echo {
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        Admission::Accept(())
    }

    async fn on_receive(&self, conn: &mut Conn, message: Lease) -> Result<(), Failure> {
        Ok(conn.send(message).await?)
    }
}

fn main() -> io::Result<()> {
    let Arguments { flags, callbacks } = Arguments::parse();
    let stop = stop_flag();
    let settings = Runtime::builder().shards(flags.shards as usize).name("echo").config(flags.config());
    let runtime = settings.start(|context| async move {
        context.stopped().await;
        Ok(())
    })?;
    let server = Server::builder().listen(flags.addr);
    let server = if callbacks {
        server.start(&runtime, Echo)?
    } else {
        server.serve(&runtime, async |conn: &mut Conn| {
            while let Some(bytes) = conn.recv().await? {
                conn.send(bytes).await?;
            }
            Ok(())
        })?
    };
    flags.announce(&runtime.reports()[0], server.addresses()[0]);
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50));
    }
    server.shutdown(Duration::from_secs(1));
    server.wait();
    if !flags.quiet {
        let totals = server.totals();
        println!("{} connections, {} messages, {} errors", totals.opened, totals.messages_in, totals.errors);
    }
    Ok(())
}
