//! Servers that are replaced: sockets of a service manager, and sockets of the process before.
// Not on Windows: sockets are passed over Unix sockets.
#![cfg(unix)]
#![forbid(unsafe_code)]

mod common;
#[allow(dead_code, reason = "the tests of the examples use all of it")]
#[path = "examples/running.rs"]
mod running;

use anabranch::component::handover::{HandoverError, HandoverServer, activated, take_over};
use anabranch::net::{TcpListener, UnixListener};
use anabranch::os::{PassedSocket, SocketKind, descriptors_max};
use anabranch::{Backend, Config, Shard, sleep};
use common::has_uring;
use common::net::{anywhere, check, in_child, is_child, on_real_backends};
use running::Example;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Which error of a hand-over it is.
fn reason(error: &io::Error) -> HandoverError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<HandoverError>());
    *inner.unwrap_or_else(|| panic!("{error:?} is none of a hand-over"))
}

/// Runs `future` on a shard of a thread of its own, as another process would.
fn elsewhere<T: Send + 'static, F: Future<Output = T>>(
    config: &Config,
    future: impl FnOnce() -> F + Send + 'static,
) -> thread::JoinHandle<T> {
    let config = config.clone();
    thread::spawn(move || check(config, future()))
}

/// Waits for such a thread while this shard goes on.
async fn joined<T>(thread: thread::JoinHandle<T>) -> T {
    while !thread.is_finished() {
        sleep(Duration::from_millis(1)).await;
    }
    thread.join().unwrap()
}

fn passed(name: &str, listener: &TcpListener) -> PassedSocket {
    PassedSocket::new(name, listener.duplicate().unwrap()).unwrap()
}

#[test]
fn a_successor_gets_every_socket_by_name_and_takes_the_place_of_its_predecessor() {
    on_real_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let unix_path = folder.path().join("unix");
        check(config.clone(), async {
            let mut server = HandoverServer::bind(&path).unwrap();
            assert_eq!(server.path(), path);
            let (web, api) =
                (TcpListener::bind(anywhere()).await.unwrap(), TcpListener::bind(anywhere()).await.unwrap());
            let unix = UnixListener::bind(&unix_path).unwrap();
            let udp = UdpSocket::bind(anywhere()).unwrap();
            let addresses = [web.local_addr().unwrap(), api.local_addr().unwrap()];
            let asked = path.clone();
            let successor = elsewhere(&config, move || async move {
                let mut taken = take_over(&asked).await.unwrap().expect("somebody is there");
                assert_eq!(taken.sockets().len(), 5);
                assert_eq!(taken.sockets()[0].kind(), SocketKind::TcpListener);
                let web = taken.take("web");
                assert_eq!(web.len(), 2, "both of one name, in order");
                for (socket, address) in web.into_iter().zip(addresses) {
                    assert_eq!(socket.local_addr(), Some(address));
                    let listener = TcpListener::from_std(socket.into_tcp_listener().unwrap()).unwrap();
                    let _client = TcpStream::connect(address).unwrap();
                    listener.accept().await.unwrap();
                }
                let unix = taken.take("unix").pop().unwrap();
                assert_eq!(unix.kind(), SocketKind::UnixListener);
                let wrong = taken.take("udp").pop().unwrap().into_tcp_listener().unwrap_err();
                assert_eq!(wrong.kind(), ErrorKind::InvalidInput);
                let unix = UnixListener::from_std(unix.into_unix_listener().unwrap()).unwrap();
                assert!(unix.path().ends_with("unix"));
                // "nobody" is never taken.
                let mut server = taken.ready().await.unwrap();
                assert_eq!(server.path(), asked);
                let third = elsewhere(&anabranch_config(), {
                    let asked = asked.clone();
                    move || async move { take_over(&asked).await.unwrap().unwrap().ready().await.map(drop) }
                });
                server.successor().await.unwrap().pass(&[]).await.unwrap();
                joined(third).await.unwrap();
            });
            let sockets = [
                passed("web", &web),
                passed("web", &api),
                PassedSocket::new("unix", unix.duplicate().unwrap()).unwrap(),
                PassedSocket::new("udp", udp).unwrap(),
                PassedSocket::new("nobody", std::net::TcpListener::bind(anywhere()).unwrap()).unwrap(),
            ];
            server.successor().await.unwrap().pass(&sockets).await.unwrap();
            let over = server.successor().await.map(drop).unwrap_err();
            assert_eq!(reason(&over), HandoverError::Over);
            drop((server, sockets, web, api, unix));
            joined(successor).await;
        });
    });
}

/// The backend of the shard that runs here.
fn anabranch_config() -> Config {
    match anabranch::report().unwrap().backend {
        anabranch::BackendKind::Uring => Config::new().backend(Backend::Uring),
        _ => Config::new().backend(Backend::Readiness),
    }
}

#[test]
fn a_predecessor_goes_on_when_nobody_gets_ready() {
    on_real_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        check(config.clone(), async {
            let mut server = HandoverServer::bind(&path).unwrap().time_limit(Duration::from_millis(200));
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let sockets = [passed("web", &listener)];
            let asked = path.clone();
            // It dies with the sockets in its hands.
            let dies = elsewhere(&config, move || async move { take_over(&asked).await.map(drop) });
            let error = server.successor().await.unwrap().pass(&sockets).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
            joined(dies).await.unwrap();
            // It takes too long, and hears that it is not in charge.
            let asked = path.clone();
            let slow = elsewhere(&config, move || async move {
                let taken = take_over(&asked).await.unwrap().unwrap();
                sleep(Duration::from_millis(500)).await;
                taken.ready().await.map(drop)
            });
            let error = server.successor().await.unwrap().pass(&sockets).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            assert_eq!(reason(&joined(slow).await.unwrap_err()), HandoverError::NotReleased);
            // The third one does it.
            let asked = path.clone();
            let third = elsewhere(&config, move || async move {
                take_over(&asked).await.unwrap().unwrap().ready().await.map(drop)
            });
            server.successor().await.unwrap().pass(&sockets).await.unwrap();
            joined(third).await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.accept().await.unwrap();
        });
    });
}

#[test]
fn what_says_nothing_or_nonsense_is_turned_away() {
    on_real_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        check(config.clone(), async {
            let mut server = HandoverServer::bind(&path).unwrap().time_limit(Duration::from_millis(300));
            let listener = TcpListener::bind(anywhere()).await.unwrap();
            let speak = |words: &'static [u8]| {
                let path = path.clone();
                thread::spawn(move || {
                    let mut stream = UnixStream::connect(path).unwrap();
                    stream.write_all(words).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    // It hears the end, or a reset for what was not read.
                    let _ = stream.read_to_end(&mut Vec::new());
                })
            };
            let words: [&[u8]; 5] = [
                b"",
                b"GET / HTTP/1.1\r\n\r\n",
                b"ABHO\x02\x01\x00\x00",
                b"ABHO\x01\x04\x00\x00",
                b"ABHO\x01\x01\xff\xff",
            ];
            let others: Vec<_> = words.into_iter().map(speak).collect();
            let asked = path.clone();
            let waiting = thread::spawn(move || others.into_iter().for_each(|other| other.join().unwrap()));
            let successor = elsewhere(&config, move || async move {
                waiting.join().unwrap();
                take_over(&asked).await.unwrap().unwrap().ready().await.map(drop)
            });
            server.successor().await.unwrap().pass(&[passed("web", &listener)]).await.unwrap();
            joined(successor).await.unwrap();
        });
    });
}

#[test]
fn a_successor_believes_only_a_predecessor() {
    on_real_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let answers: [(&[u8], HandoverError); 4] = [
            (b"220 mail", HandoverError::NotHandover),
            (b"ABHO\x07\x02\x03\x00\x01\x00\x00", HandoverError::Version(7)),
            (b"ABHO\x01\x02\x03\x00\xff\xff\x00", HandoverError::SocketCount(65535)),
            (b"ABHO\x01\x05\x00\x00", HandoverError::OutOfTurn),
        ];
        for (answer, error) in answers {
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; 8]).unwrap();
                stream.write_all(answer).unwrap();
                let _ = stream.read(&mut [0]);
            });
            let asked = check(config.clone(), take_over(&path)).map(drop);
            assert_eq!(reason(&asked.unwrap_err()), error);
            server.join().unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        assert!(check(config.clone(), take_over(&path)).unwrap().is_none(), "nobody is there");
    });
}

#[test]
fn descriptors_that_no_message_may_carry_are_closed() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    on_real_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            let offer = b"ABHO\x01\x02\x03\x00\x01\x00\x00";
            let raw = [theirs.as_raw_fd(); 3];
            let control = [ControlMessage::ScmRights(&raw)];
            let bytes = [std::io::IoSlice::new(offer)];
            sendmsg::<()>(stream.as_raw_fd(), &bytes, &control, MsgFlags::empty(), None).unwrap();
            let _ = stream.read(&mut [0]);
        });
        let asked = check(config.clone(), take_over(&path)).map(drop).unwrap_err();
        assert!(matches!(reason(&asked), HandoverError::Malformed(_)), "{asked}");
        server.join().unwrap();
        // Every handle of the other end is closed, so this end has ended.
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn a_successor_on_another_kind_of_backend_is_refused() {
    if !has_uring() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("handover");
    check(Config::new().backend(Backend::Readiness), async {
        let mut server = HandoverServer::bind(&path).unwrap();
        let asked = path.clone();
        let config = Config::new().backend(Backend::Uring);
        let other = elsewhere(&config, move || async move { take_over(&asked).await.map(drop) });
        let passed = server.successor().await.unwrap().pass(&[]).await;
        assert!(passed.is_err());
        assert_eq!(reason(&joined(other).await.unwrap_err()), HandoverError::OtherBackend);
    });
}

#[test]
fn too_many_sockets_are_refused_before_any_is_sent() {
    on_real_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        check(config.clone(), async {
            let mut server = HandoverServer::bind(&path).unwrap();
            let asked = path.clone();
            let successor = elsewhere(&config, move || async move { take_over(&asked).await.map(drop) });
            let socket = std::net::TcpListener::bind(anywhere()).unwrap();
            let many: Vec<_> =
                (0..1024).map_while(|_| PassedSocket::new("web", socket.try_clone().ok()?).ok()).collect();
            if many.len() == 1024 {
                let error = server.successor().await.unwrap().pass(&many).await.unwrap_err();
                assert_eq!(reason(&error), HandoverError::SocketCount(1025));
            } else {
                println!("NOT COVERED: 1024 sockets (the process may not have so many)");
            }
            drop(server);
            // Nobody is there any more.
            assert!(joined(successor).await.is_ok());
            assert!(PassedSocket::new("n".repeat(256), socket).is_err());
        });
    });
}

#[test]
fn the_path_belongs_to_its_user_and_only_a_dead_socket_is_removed() {
    on_real_backends(|config| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        check(config, async {
            // Left behind by a process that is gone.
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let server = HandoverServer::bind(&path).unwrap();
            assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let taken = HandoverServer::bind(&path).unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::AddrInUse);
            drop(server);
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, "precious").unwrap();
            let file = HandoverServer::bind(&path).unwrap_err();
            assert_eq!(file.kind(), ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&path).unwrap(), b"precious");
            assert!(take_over(&path).await.unwrap().is_none(), "nobody answers at a file");
        });
    });
}

#[test]
fn a_process_knows_how_many_descriptors_it_may_have() {
    use nix::sys::resource::{Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!(descriptors_max() as u64, soft);
}

/// Runs a test of this file in a process that was started with these two sockets, as a service manager does it; the
/// shell's number is the process's own. What it said.
fn start_with(test: &str, variables: &str, first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> String {
    let script = format!(
        "{variables} exec \"$0\" {test} --exact --nocapture --test-threads=1 3<&0 4<&2 0</dev/null 2>&1"
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("ANABRANCH_TEST_CHILD", "1")
        .stdin(Stdio::from(first.into()))
        .stderr(Stdio::from(second.into()))
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    said
}

#[test]
fn sockets_of_a_service_manager_are_taken_once_with_their_names_and_kinds() {
    if !is_child() {
        let listener = std::net::TcpListener::bind(anywhere()).unwrap();
        let udp = UdpSocket::bind(anywhere()).unwrap();
        let address = listener.local_addr().unwrap();
        // A connection that came before the process.
        let mut client = TcpStream::connect(address).unwrap();
        let name = "sockets_of_a_service_manager_are_taken_once_with_their_names_and_kinds";
        start_with(name, "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:logs", listener, udp);
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "welcome");
        return;
    }
    let mut sockets = activated().unwrap();
    let told: Vec<_> = sockets.iter().map(|socket| (socket.name().to_owned(), socket.kind())).collect();
    assert_eq!(told, [("web".into(), SocketKind::TcpListener), ("logs".into(), SocketKind::UdpSocket)]);
    assert!(activated().unwrap().is_empty(), "they are taken once");
    let flags = nix::fcntl::fcntl(std::io::stdin(), nix::fcntl::FcntlArg::F_GETFD);
    assert_eq!(flags, Ok(0), "others stay as they are");
    let listed = Command::new("sh").args(["-c", "ls /proc/self/fd || ls /dev/fd"]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let socket = sockets.remove(0).into_tcp_listener().unwrap();
    sockets.remove(0).into_udp_socket().unwrap();
    println!("a child has {listed:?}");
    check(Config::new(), async {
        let listener = TcpListener::from_std(socket).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.send("welcome").await.unwrap();
        stream.close().await.unwrap();
    });
}

#[test]
fn a_unix_socket_and_something_else_of_a_service_manager_are_told_apart() {
    if !is_child() {
        let folder = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(folder.path().join("unix")).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let name = "a_unix_socket_and_something_else_of_a_service_manager_are_told_apart";
        start_with(name, "LISTEN_PID=$$ LISTEN_FDS=2", unix, file);
        return;
    }
    let sockets = activated().unwrap();
    let told: Vec<_> = sockets.iter().map(|socket| (socket.name(), socket.kind())).collect();
    assert_eq!(told, [("unknown", SocketKind::UnixListener), ("unknown", SocketKind::Other)]);
    let wrong = sockets.into_iter().nth(1).unwrap().into_udp_socket().unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::InvalidInput);
}

#[test]
fn sockets_for_another_process_are_left_alone_and_those_that_are_not_there_are_an_error() {
    let name = "sockets_for_another_process_are_left_alone_and_those_that_are_not_there_are_an_error";
    if !is_child() {
        let other = in_child(name, &[("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("EXPECT", "none")]);
        assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stdout));
        let wrong = in_child(name, &[("LISTEN_PID", "me"), ("LISTEN_FDS", "1"), ("EXPECT", "error")]);
        assert!(wrong.status.success(), "{}", String::from_utf8_lossy(&wrong.stdout));
        let null = || std::fs::File::open("/dev/null").unwrap();
        start_with(name, "LISTEN_PID=$$ LISTEN_FDS=900 EXPECT=error", null(), null());
        return;
    }
    match std::env::var("EXPECT").as_deref() {
        Ok("none") => assert!(activated().unwrap().is_empty()),
        _ => assert_eq!(activated().unwrap_err().kind(), ErrorKind::InvalidData),
    }
}

/// What came of the connections of a load.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    served: usize,
    refused: Vec<String>,
    cut: Vec<String>,
}

/// One connection: what it sends comes back, then it ends in order.
fn visit(address: SocketAddr, number: usize, tally: &mut Tally) {
    let mut stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        Err(error) => return tally.refused.push(error.to_string()),
    };
    let mut talk = || {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let sent = number.to_le_bytes().repeat(20);
        stream.write_all(&sent)?;
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received)?;
        stream.shutdown(Shutdown::Write)?;
        let more = stream.read(&mut [0])?;
        if received == sent && more == 0 { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
    };
    match talk() {
        Ok(()) => tally.served += 1,
        Err(error) => tally.cut.push(error.to_string()),
    }
}

/// Clients that come as long as it takes; each makes so many connections at most.
fn load(
    address: SocketAddr,
    stop: &Arc<AtomicBool>,
    visits: &Arc<AtomicUsize>,
) -> Vec<thread::JoinHandle<Tally>> {
    const CLIENTS: usize = 4;
    const CONNECTIONS_MAX: usize = 5_000;
    let client = |_| {
        let (stop, visits) = (Arc::clone(stop), Arc::clone(visits));
        thread::spawn(move || {
            let mut tally = Tally::default();
            for number in 0..CONNECTIONS_MAX {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                visit(address, number, &mut tally);
                visits.fetch_add(1, Ordering::SeqCst);
                // So that the ports of ended connections last for the whole of it.
                thread::sleep(Duration::from_millis(1));
            }
            tally
        })
    };
    (0..CLIENTS).map(client).collect()
}

/// Connections from one restart to the next, at least.
const VISITS_BETWEEN: usize = 100;

/// Replaces a server again and again under load; the number of shards changes each time.
fn restart(backend: &str, path: &Path, restarts: usize) {
    let path = path.to_str().unwrap();
    let start = |shards: &str, address: &str| {
        Example::start(
            "restart",
            &["--addr", address, "--path", path, "--shards", shards, "--backend", backend],
        )
    };
    let mut server = start("2", "127.0.0.1:0");
    let address = server.socket_address();
    let stop = Arc::new(AtomicBool::new(false));
    let visits = Arc::new(AtomicUsize::new(0));
    let clients = load(address, &stop, &visits);
    for round in 0..restarts {
        let until = visits.load(Ordering::SeqCst) + VISITS_BETWEEN;
        while visits.load(Ordering::SeqCst) < until && clients.iter().any(|client| !client.is_finished()) {
            thread::sleep(Duration::from_millis(1));
        }
        let shards = ["1", "3", "2", "2"][round % 4];
        // Where nobody could listen: it has to be what the process before had.
        let successor = start(shards, "192.0.2.1:1");
        assert_eq!(successor.socket_address(), address);
        let status = server.wait();
        assert!(status.success(), "the predecessor of round {round}: {status}");
        server = successor;
    }
    stop.store(true, Ordering::SeqCst);
    let mut served = 0;
    for client in clients {
        let tally = client.join().unwrap();
        served += tally.served;
        assert_eq!((tally.refused, tally.cut), (vec![], vec![]), "after {served} connections");
    }
    println!("{restarts} restarts on {backend}: {served} connections served, 0 refused, 0 cut");
    assert!(served > 0);
    server.end(running::Signal::SIGTERM);
}

/// `ANABRANCH_TEST_RESTARTS` says how many restarts there are on each backend.
#[test]
fn a_server_is_replaced_under_load_and_no_connection_is_refused_or_cut() {
    let asked = std::env::var("ANABRANCH_TEST_RESTARTS").ok().and_then(|count| count.parse().ok());
    let mut backends = vec!["readiness"];
    backends.extend(has_uring().then_some("uring"));
    for backend in backends {
        let folder = tempfile::tempdir().unwrap();
        restart(backend, &folder.path().join("restart"), asked.unwrap_or(4));
    }
}

#[test]
fn a_server_whose_successor_dies_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restart");
    let path = path.to_str().unwrap();
    let flags = ["--addr", "127.0.0.1:0", "--path", path, "--backend", "readiness"];
    let server = Example::start("restart", &flags);
    let shard = Shard::new(Config::new().backend(Backend::Readiness)).unwrap();
    for _ in 0..3 {
        let taken = shard.block_on(take_over(path)).unwrap().unwrap();
        assert_eq!(taken.sockets().len(), 2, "a socket for each shard");
        drop(taken);
        let mut tally = Tally::default();
        visit(server.socket_address(), 1, &mut tally);
        assert_eq!(tally, Tally { served: 1, ..Tally::default() });
    }
    server.end(running::Signal::SIGTERM);
}
