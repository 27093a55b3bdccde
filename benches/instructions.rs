//! A bounded echo workload for counting instructions: scripts/instructions.sh runs it under callgrind.
//!
//! Server and client share one thread, so that a run takes the same path each time. In a round the client writes
//! one message on each connection, the shard turns until every reply is there. What the client does is in
//! [`client_write`] and [`client_read`], which are left out of the count.
#![forbid(unsafe_code)]

use anabranch::codec::Pack;
use anabranch::component::{Conn, Server, Shards};
use anabranch::net::{TcpListener, TcpStream as Connection};
use anabranch::{Backend, Config, Event, Shard, spawn, yield_now};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// What to run; every flag has a default, so that `cargo bench` runs something small.
struct Plan {
    surface: String,
    backend: Backend,
    hardened: bool,
    rounds: usize,
    connections: usize,
    bytes: usize,
}

impl Plan {
    fn from_arguments() -> Result<Plan, String> {
        let (surface, backend) = ("async".to_owned(), Backend::Auto);
        let mut plan = Plan { surface, backend, hardened: false, rounds: 10, connections: 100, bytes: 32 };
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            // What cargo adds says nothing about the plan.
            if flag == "--bench" || flag == "--test" {
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || value.parse::<usize>().map_err(|_| format!("{flag} needs a number"));
            match flag.as_str() {
                "--surface" => plan.surface = value,
                "--backend" if value == "uring" => plan.backend = Backend::Uring,
                "--backend" if value == "readiness" => plan.backend = Backend::Readiness,
                "--backend" if value == "hardened" => {
                    (plan.backend, plan.hardened) = (Backend::Uring, true);
                }
                "--rounds" => plan.rounds = number()?,
                "--connections" => plan.connections = number()?.max(1),
                "--bytes" => plan.bytes = number()?.max(1),
                _ => return Err(format!("there is no {flag} {value}")),
            }
        }
        Ok(plan)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let plan = Plan::from_arguments()?;
    let config = Config::new().backend(plan.backend).hardened(plan.hardened);
    let shard = Shard::new(config)?;
    let messages = match plan.surface.as_str() {
        "completion" => run_completion(&shard, &plan)?,
        "component" | "component-pack" => shard.block_on(run_component(&plan))?,
        surface => shard.block_on(run_async(surface, &plan))?,
    };
    let counters = shard.finish();
    println!("{messages} messages, {} turns, {} submissions", counters.turns, counters.submitted);
    Ok(())
}

/// The far ends of the connections.
struct Client {
    sockets: Vec<(TcpStream, usize)>,
    message: Vec<u8>,
    replies: Vec<u8>,
}

impl Client {
    fn connect(to: SocketAddr, plan: &Plan) -> io::Result<Client> {
        let mut sockets = Vec::new();
        for _ in 0..plan.connections {
            let socket = TcpStream::connect(to)?;
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            sockets.push((socket, 0));
        }
        Ok(Client { sockets, message: vec![7; plan.bytes], replies: vec![0; plan.bytes] })
    }
}

/// One message on each connection.
#[inline(never)]
fn client_write(client: &mut Client) -> io::Result<()> {
    for (socket, missing) in &mut client.sockets {
        socket.write_all(&client.message)?;
        *missing = client.message.len();
    }
    Ok(())
}

/// Takes what has come; true if every reply is there.
#[inline(never)]
fn client_read(client: &mut Client) -> io::Result<bool> {
    let mut complete = true;
    for (socket, missing) in &mut client.sockets {
        while *missing > 0 {
            match socket.read(&mut client.replies[..*missing]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => *missing -= got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        complete &= *missing == 0;
    }
    Ok(complete)
}

/// The echo of the completion API.
fn run_completion(shard: &Shard, plan: &Plan) -> io::Result<usize> {
    let listener = shard.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    shard.submit_accept_multi(listener, 0)?;
    let mut client = Client::connect(shard.local_addr(listener)?, plan)?;
    let mut messages = 0;
    for _ in 0..plan.rounds {
        client_write(&mut client)?;
        while !client_read(&mut client)? {
            shard.poll(Some(Duration::ZERO), |completion| match completion.event {
                Event::Accepted(id) => shard.submit_recv_multi(id, 1).expect("the connection is open"),
                Event::Received(lease) => {
                    let sent = shard.send(completion.endpoint, lease).expect("there is room");
                    sent.expect("the connection is open");
                }
                _ => {}
            })?;
        }
        messages += client.sockets.len();
    }
    Ok(messages)
}

/// The echo of the async API: a task for each connection.
async fn run_async(surface: &str, plan: &Plan) -> io::Result<usize> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut client = Client::connect(listener.local_addr()?, plan)?;
    for _ in 0..plan.connections {
        let (stream, _) = listener.accept().await?;
        match surface {
            "async" => spawn(echo(stream)).detach(),
            "async-limit" => spawn(echo_with_limit(stream)).detach(),
            "async-timeout" => spawn(echo_with_timeout(stream)).detach(),
            _ => return Err(io::Error::other(format!("there is no surface {surface}"))),
        }
    }
    rounds(&mut client, plan).await
}

async fn rounds(client: &mut Client, plan: &Plan) -> io::Result<usize> {
    let mut messages = 0;
    for _ in 0..plan.rounds {
        client_write(client)?;
        while !client_read(client)? {
            yield_now().await;
        }
        messages += client.sockets.len();
    }
    Ok(messages)
}

/// The echo of a server component, with all of its limits; with messages of a codec for `component-pack`.
async fn run_component(plan: &Plan) -> io::Result<usize> {
    let mut builder = Server::builder().listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    if plan.surface == "component-pack" {
        builder = builder.codec(Pack::new);
    }
    let server = builder.serve(Shards::current()?, async |conn: &mut Conn| {
        while let Some(bytes) = conn.recv().await? {
            conn.send(bytes).await?;
        }
        Ok(())
    })?;
    let mut client = Client::connect(server.addresses()[0], plan)?;
    if plan.surface == "component-pack" {
        let payload = plan.bytes.saturating_sub(4).max(1) as u32;
        client.message = [&payload.to_le_bytes()[..], &vec![7; payload as usize]].concat();
        client.replies = vec![0; client.message.len()];
    }
    let messages = rounds(&mut client, plan).await?;
    server.shutdown(Duration::ZERO);
    server.ended().await;
    Ok(messages)
}

async fn echo(mut stream: Connection) -> io::Result<()> {
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    Ok(())
}

/// Each receive has a time limit of its own.
async fn echo_with_timeout(mut stream: Connection) -> io::Result<()> {
    while let Some(bytes) = anabranch::timeout(Duration::from_secs(60), stream.recv()).await?? {
        stream.send(bytes).await?;
    }
    Ok(())
}

/// The connection may be idle for so long.
async fn echo_with_limit(mut stream: Connection) -> io::Result<()> {
    let mut idle = anabranch::time::TimeLimit::new(Duration::from_secs(60));
    while let Some(bytes) = idle.run(stream.recv()).await?? {
        stream.send(bytes).await?;
    }
    Ok(())
}
