//! Events for subscribers of `tracing`: what is told of connections and of shards, with which fields, and that no message has
//! one. The subscriber is the process's, so each test looks for its own connections and shards.
#![forbid(unsafe_code)]

mod common;

use anabranch::codec::Delimiter;
use anabranch::component::{
    Admission, AtLimit, Closed, Conn, Failure, Handler, Peer, Policy, Server, Shards,
};
#[cfg(unix)]
use anabranch::net::TcpListener;
use anabranch::net::TcpStream;
use anabranch::{Lease, Shard, sleep, timeout};
#[cfg(unix)]
use common::net::alone;
use common::net::{anywhere, check, counted, on_real_backends};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const PATIENCE: Duration = Duration::from_secs(60);

/// An event as it was told: level, target, and fields, of which `message` is the text.
#[derive(Clone, Debug)]
struct Told {
    level: Level,
    target: String,
    fields: BTreeMap<String, String>,
}

impl Told {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).unwrap_or_else(|| panic!("no {name:?} in {self:?}"))
    }

    fn text(&self) -> &str {
        self.field("message")
    }
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name().to_owned(), value.to_owned());
    }
}

static TOLD: Mutex<Vec<Told>> = Mutex::new(Vec::new());

/// Keeps what it is told. One thing it cannot bear to hear.
struct Keeper;

impl Subscriber for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("anabranch")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let (level, target) = (*event.metadata().level(), event.metadata().target().to_owned());
        let mut told = Told { level, target, fields: BTreeMap::new() };
        event.record(&mut told);
        let dreadful = told.fields.get("detail").is_some_and(|detail| detail.contains("dreadful"));
        TOLD.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        assert!(!dreadful, "it cannot bear to hear that");
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Keeper).expect("the first one"));
}

/// What was told with this field, of the shard that runs here if one does: a port may be used again.
fn told(field: &str, value: &str) -> Vec<Told> {
    let here = anabranch::current().ok().map(|shard| shard.id().to_string());
    let is_meant = |told: &&Told| {
        told.fields.get(field).is_some_and(|is| is == value)
            && (here.is_none() || told.fields.get("shard") == here.as_ref())
    };
    let all = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter(is_meant).cloned().collect()
}

/// Waits until there is an event of this text with this field.
async fn hear(text: &str, field: &str, value: &str) {
    let wait = async {
        while !told(field, value).iter().any(|told| told.text() == text) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let heard = timeout(PATIENCE, wait).await;
    heard.unwrap_or_else(|_| panic!("{text:?} never came; there is {:#?}", told(field, value)));
}

#[derive(Clone, Default)]
struct Echo {
    closed: Arc<AtomicUsize>,
}

impl Handler for Echo {
    type State = ();

    fn on_accept(&self, peer: &Peer) -> Admission<()> {
        assert!(peer.address.is_some());
        Admission::Accept(())
    }

    async fn on_receive(&self, conn: &mut Conn, message: Lease) -> Result<(), Failure> {
        match &*message {
            b"dreadful" => Err("dreadful".into()),
            _ => Ok(conn.send(message).await?),
        }
    }

    fn on_close(&self, _: &mut Conn, _: &Closed) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

struct Nobody;

impl Handler for Nobody {
    type State = ();

    fn on_accept(&self, peer: &Peer) -> Admission<()> {
        assert!(peer.local.is_some_and(|local| local.port() != 0));
        Admission::Refuse
    }
}

async fn end(server: &Server) {
    server.shutdown(Duration::ZERO);
    timeout(PATIENCE, server.ended()).await.expect("the server ends");
}

async fn connect(server: &Server) -> (TcpStream, String) {
    let client = TcpStream::connect(server.addresses()[0]).await.expect("it listens");
    let name = client.local_addr().expect("an address").to_string();
    (client, name)
}

#[test]
fn the_life_of_a_connection_is_told_in_three_events_however_many_messages_it_carries() {
    listen();
    on_real_backends(|config| {
        check(config, async {
            let builder = Server::builder().listen(anywhere()).codec(|| Delimiter::new(b"\n"));
            let server = builder.start(Shards::current().unwrap(), Echo::default()).unwrap();
            let (mut client, peer) = connect(&server).await;
            for _ in 0..100 {
                client.send("hello\n").await.unwrap();
                assert_eq!(client.recv_exact(6).await.unwrap(), "hello\n");
            }
            client.close().await.unwrap();
            hear("connection closed", "peer", &peer).await;
            end(&server).await;
            let told = told("peer", &peer);
            let texts: Vec<&str> = told.iter().map(Told::text).collect();
            assert_eq!(texts, ["connection accepted", "connection open", "connection closed"]);
            let shard = anabranch::current().unwrap().id().to_string();
            for one in &told {
                assert_eq!((one.level, &*one.target), (Level::DEBUG, "anabranch::connection"));
                assert_eq!((one.field("shard"), one.field("conn")), (&*shard, "0:1"));
            }
            let closed = &told[2];
            assert_eq!((closed.field("reason"), closed.field("stage")), ("peer_closed", "Open"));
            assert_eq!(closed.field("detail"), "the peer closed the connection");
            assert_eq!((closed.field("bytes_in"), closed.field("bytes_out")), ("600", "500"));
            closed.field("age_ms").parse::<u64>().expect("a number");
        });
    });
}

#[test]
fn who_is_refused_or_one_too_many_is_told_once() {
    listen();
    on_real_backends(|config| {
        check(config, async {
            let server =
                Server::builder().listen(anywhere()).start(Shards::current().unwrap(), Nobody).unwrap();
            let (mut client, peer) = connect(&server).await;
            assert!(!matches!(client.recv().await, Ok(Some(_))));
            assert_eq!(
                told("peer", &peer).iter().map(Told::text).collect::<Vec<_>>(),
                ["connection refused"]
            );
            end(&server).await;

            let mut policy = Policy::new();
            (policy.connections_max, policy.at_limit) = (1, AtLimit::Refuse);
            let builder = Server::builder().listen(anywhere()).policy(policy);
            let server = builder.start(Shards::current().unwrap(), Echo::default()).unwrap();
            let (_first, first) = connect(&server).await;
            hear("connection open", "peer", &first).await;
            let (mut second, peer) = connect(&server).await;
            assert!(!matches!(second.recv().await, Ok(Some(_))));
            let texts: Vec<_> = told("peer", &peer).iter().map(|told| told.text().to_owned()).collect();
            assert_eq!(texts, ["connection over the limit"]);
            end(&server).await;
            assert_eq!(told("peer", &first).last().unwrap().field("reason"), "drained");
        });
    });
}

#[test]
fn a_subscriber_that_panics_costs_nobody_anything() {
    listen();
    on_real_backends(|config| {
        let ((), counters) = counted(config, async {
            let echo = Echo::default();
            let builder = Server::builder().listen(anywhere()).codec(|| Delimiter::new(b"\n"));
            let server = builder.start(Shards::current().unwrap(), echo.clone()).unwrap();
            let (mut client, peer) = connect(&server).await;
            client.send("dreadful\n").await.unwrap();
            assert!(!matches!(client.recv().await, Ok(Some(_))));
            hear("connection closed", "peer", &peer).await;
            assert_eq!(told("peer", &peer).last().unwrap().field("reason"), "handler");
            let (mut other, _) = connect(&server).await;
            other.send("hello\n").await.unwrap();
            assert_eq!(other.recv_exact(6).await.unwrap(), "hello\n");
            end(&server).await;
            assert_eq!(server.totals().closed_total(), 2);
            assert_eq!(echo.closed.load(Ordering::Relaxed), 2, "each end is told to the handler, too");
        });
        assert_eq!(counters.panics, 0, "it ended where it was told");
    });
}

#[test]
fn a_shard_tells_its_backend_and_why_when_it_starts() {
    listen();
    on_real_backends(|config| {
        let shard = Shard::new(config).expect("a shard");
        let told = told("shard", &shard.remote().id().to_string());
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].level, &*told[0].target), (Level::INFO, "anabranch::shard"));
        assert_eq!(told[0].text(), "shard started");
        assert_eq!(told[0].field("backend"), shard.report().backend.to_string());
        assert_eq!(told[0].field("reason"), shard.report().reason);
    });
}

struct Clumsy;

impl Handler for Clumsy {
    type State = ();

    fn on_accept(&self, _: &Peer) -> Admission<()> {
        panic!("it was asked to panic")
    }
}

#[test]
fn what_is_told_to_on_error_is_told_as_an_event_too() {
    listen();
    on_real_backends(|config| {
        check(config, async {
            let server =
                Server::builder().listen(anywhere()).start(Shards::current().unwrap(), Clumsy).unwrap();
            let (mut client, _) = connect(&server).await;
            assert!(!matches!(client.recv().await, Ok(Some(_))));
            let shard = anabranch::current().unwrap().id().to_string();
            let told: Vec<_> =
                told("shard", &shard).into_iter().filter(|told| told.text() == "trouble").collect();
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!((told[0].level, &*told[0].target), (Level::WARN, "anabranch::component"));
            assert_eq!(told[0].field("reason"), "Callback(\"on_accept\")");
            end(&server).await;
        });
    });
}

// Not on Windows: its table of handles has no limit that could be lowered.
#[cfg(unix)]
#[test]
fn a_warning_is_told_whether_there_is_a_hook_or_not() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    alone("a_warning_is_told_whether_there_is_a_hook_or_not", || {
        listen();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
        on_real_backends(|config| {
            check(config, async {
                let listener = TcpListener::bind(anywhere()).await.unwrap();
                let address = listener.local_addr().unwrap();
                let mut held = Vec::new();
                while let Ok(file) = std::fs::File::open("/dev/null") {
                    held.push(file);
                }
                // One for the peer, none for the accepted end.
                held.pop();
                let _peer = std::net::TcpStream::connect(address).unwrap();
                assert!(timeout(Duration::from_millis(100), listener.accept()).await.is_err());
                drop(held);
                listener.accept().await.unwrap();
                let shard = anabranch::current().unwrap().id().to_string();
                let told: Vec<_> =
                    told("shard", &shard).into_iter().filter(|told| told.level == Level::WARN).collect();
                assert_eq!(told.len(), 1, "{told:?}");
                assert_eq!((told[0].text(), &*told[0].target), ("accept paused", "anabranch::shard"));
                assert!(told[0].field("reason").contains("open files"), "{told:?}");
                told[0].field("listener").parse::<u64>().expect("a number");
            });
        });
    });
}
