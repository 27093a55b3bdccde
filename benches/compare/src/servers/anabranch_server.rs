//! anabranch, a server component with callbacks, on either backend: what `examples/broadcast_server.rs` does.

use super::anabranch_async::config;
use super::{FANOUT_BACKLOG, Job, MESSAGE, PUBLISHER, STREAM_BUFFER, SUBSCRIBER};
use crate::scenario::Role;
use anabranch::component::{Admission, Conn, Failure, Handler, Peer, Policy, Server, Shards};
use anabranch::{Backend, Lease, Shard};
use std::io;

/// Limits and counters are on, as by default; only what the role asks for is another.
pub fn serve(job: Job, backend: Backend) -> io::Result<()> {
    Shard::new(config(job.role, backend))?.block_on(async move {
        let builder = Server::builder().listen(job.address);
        let server = if job.role == Role::FanOut {
            let mut policy = Policy::new();
            policy.outbound_bytes_max = FANOUT_BACKLOG;
            policy.memory_bytes_max = None;
            builder.policy(policy).start(Shards::current()?, Hub)?
        } else {
            builder.start(Shards::current()?, Echo)?
        };
        job.ready();
        server.ended().await;
        Ok(())
    })
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

const SUBSCRIBERS: &str = "subscribers";

struct Hub;

impl Handler for Hub {
    /// Whether it publishes.
    type State = bool;

    fn on_accept(&self, _: &Peer) -> Admission<bool> {
        Admission::Accept(false)
    }

    async fn on_handshake(&self, conn: &mut Conn<bool>) -> Result<(), Failure> {
        conn.pull(16 * STREAM_BUFFER);
        let Some(kind) = conn.fetch(1).await? else { return Ok(()) };
        match kind[0] {
            PUBLISHER => conn.state = true,
            SUBSCRIBER => {}
            _ => return Err("neither a publisher nor a subscriber".into()),
        }
        Ok(conn.send(kind).await?)
    }

    async fn run(&self, conn: &mut Conn<bool>) -> Result<(), Failure> {
        if !conn.state {
            conn.session().join(SUBSCRIBERS);
            while conn.recv().await?.is_some() {}
            return Ok(());
        }
        publish(conn);
        while conn.more().await? {
            publish(conn);
        }
        Ok(())
    }
}

fn publish(conn: &mut Conn<bool>) {
    let whole = conn.available() / MESSAGE * MESSAGE;
    let Some(bytes) = conn.pulled().filter(|_| whole > 0).and_then(|there| there.fetch(whole)) else {
        return;
    };
    let bytes = bytes.into_bytes();
    let messages = (0..bytes.len() / MESSAGE).map(|at| bytes.slice(at * MESSAGE..(at + 1) * MESSAGE));
    // There is one shard, and it is this one.
    let _ = conn.fleet().broadcast_all(Some(SUBSCRIBERS), messages.collect());
}
