//! The event facade with descriptors of the program's: what there is beside stream sockets.
// Not on Windows: it binds Unix sockets, pipes and devices.
#![cfg(unix)]
#![forbid(unsafe_code)]

mod common;

use anabranch::event::{Event, InfoKind, OpenSocket, SocketId, Trouble};
use anabranch::{Backend, Config};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::mpsc;
use std::time::Duration;

/// How long anything may take before a test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was told of a socket.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Bound,
    Data(Vec<u8>),
    Close(usize),
    Error(Trouble),
    Warning(usize),
    Other,
}

fn on_each_backend(test: impl Fn(Backend)) {
    common::on(common::real_backends(), |config: Config| test(config.backend));
}

/// One that runs, and what it tells.
fn running(backend: Backend) -> (OpenSocket, mpsc::Receiver<(SocketId, Told)>) {
    let sockets = OpenSocket::builder().config(|config| config.backend(backend)).build();
    let (sender, events) = mpsc::channel();
    sockets
        .run(move |_, event| {
            let id = event.id();
            let told = match event {
                Event::Open { how, .. } if how.to_string() == "binding" => Told::Bound,
                Event::Data { data, .. } => Told::Data(data.to_vec()),
                Event::Close { uid, .. } => Told::Close(uid),
                Event::Error { trouble, .. } => Told::Error(trouble),
                Event::Warning { pending_kib, .. } => Told::Warning(pending_kib),
                _ => Told::Other,
            };
            let _ = sender.send((id, told));
        })
        .unwrap();
    (sockets, events)
}

fn next(events: &mpsc::Receiver<(SocketId, Told)>) -> Told {
    events.recv_timeout(PATIENCE).expect("the event comes").1
}

/// The two ends of a pipe.
fn pipe() -> io::Result<(File, File)> {
    let (out, into) = nix::unistd::pipe()?;
    Ok((out.into(), into.into()))
}

fn is_nonblocking(fd: &impl AsFd) -> bool {
    let flags = nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap();
    flags & nix::fcntl::OFlag::O_NONBLOCK.bits() != 0
}

#[test]
fn each_datagram_of_a_bound_socket_is_one_message_and_each_send_one_datagram() {
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let (ours, peer) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        ours.connect(peer.local_addr().unwrap()).unwrap();
        peer.connect(ours.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        // One has come before; an empty one is no end.
        let large = vec![b'l'; 60_000];
        for datagram in [&b"early"[..], b"", &large] {
            peer.send(datagram).unwrap();
        }
        let id = sockets.bind(4, &ours).unwrap();
        sockets.start(5, id);
        assert_eq!(next(&events), Told::Bound);
        assert_eq!(next(&events), Told::Data(b"early".to_vec()));
        assert!(next(&events) == Told::Data(large));
        let info = sockets.socket_info().remove(0);
        assert_eq!((info.kind, info.uid, info.read), (InfoKind::Bound, 4, 60_005));
        // One that is too long is dropped, and the socket lives.
        for bytes in [1, 2, 65_508, 3] {
            sockets.send(id, vec![b'x'; bytes]).unwrap();
        }
        sockets.send_low_priority(id, "low").unwrap();
        let mut room = vec![0; 70_000];
        let sizes: Vec<usize> = (0..4).map(|_| peer.recv(&mut room).unwrap()).collect();
        assert_eq!(sizes, [1, 2, 3, 3]);
        assert!(sockets.udp_send(id, peer.local_addr().unwrap(), "x").is_err(), "as in the original");
        sockets.close(9, id);
        assert_eq!(next(&events), Told::Close(9));
        assert!(is_nonblocking(&ours));
        ours.send(b"ours").unwrap();
        assert_eq!(peer.recv(&mut room).unwrap(), 4);
        assert!(sockets.send(id, "gone").is_err());
    });
}

#[test]
fn datagrams_wait_whole_while_the_peer_does_not_read_and_a_close_waits_for_them() {
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let (ours, peer) = UnixDatagram::pair().unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        let sizes: Vec<usize> = (1..=2000).collect();
        for size in &sizes {
            sockets.send(id, vec![b'd'; *size]).unwrap();
        }
        sockets.close(9, id);
        // Once that is answered, the close before it has been seen.
        sockets.close(77, 12_345);
        assert!(matches!(next(&events), Told::Warning(kib) if kib >= 1024));
        assert_eq!(next(&events), Told::Close(77));
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut room = vec![0; 4000];
        for size in sizes {
            assert_eq!(peer.recv(&mut room).unwrap(), size);
        }
        // Told with the owner's uid, as it was not at once.
        assert_eq!(next(&events), Told::Close(4));
    });
}

#[test]
fn a_bound_pipe_is_read_to_its_end() {
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let (ours, mut peer) = pipe().unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        for text in ["one", "two"] {
            peer.write_all(text.as_bytes()).unwrap();
            assert_eq!(next(&events), Told::Data(text.into()));
        }
        drop(peer);
        assert_eq!(next(&events), Told::Close(4));
        assert!(is_nonblocking(&ours) && sockets.send(id, "gone").is_err());
    });
}

#[test]
fn a_bound_pipe_is_written_to_in_order_and_low_priority_comes_last() {
    const BYTES: usize = 3 << 20;
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let (mut peer, ours) = pipe().unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        sockets.send(id, vec![b'p'; BYTES]).unwrap();
        sockets.send_low_priority(id, "low").unwrap();
        sockets.send(id, vec![b'q'; BYTES]).unwrap();
        assert!(matches!(next(&events), Told::Warning(kib) if kib >= 3 << 10));
        let mut got = vec![0; 2 * BYTES + 3];
        peer.read_exact(&mut got).unwrap();
        let expected = [vec![b'p'; BYTES], vec![b'q'; BYTES], b"low".to_vec()].concat();
        assert!(got == expected, "the bytes are in order");
        assert_eq!(next(&events), Told::Warning(0));
        // A reader that goes away is the end, and raises no signal that ends the program.
        drop(peer);
        assert_eq!(next(&events), Told::Close(4));
    });
}

#[test]
fn a_shutdown_of_a_bound_pipe_waits_for_nobody_and_a_failed_write_ends_it() {
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let (_peer, ours) = pipe().unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        sockets.send(id, vec![b'p'; 1 << 20]).unwrap();
        sockets.close(8, id);
        sockets.shutdown(9, id);
        assert_eq!(next(&events), Told::Close(9));
        // What can only be read from is never writable.
        let (ours, _peer) = pipe().unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        sockets.send(id, "nowhere").unwrap();
        assert_eq!(next(&events), Told::Close(4));
    });
}

#[test]
fn a_file_cannot_be_bound_because_it_would_hold_up_all_sockets() {
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let file = tempfile::tempfile().unwrap();
        sockets.bind(4, &file).unwrap();
        assert_eq!(next(&events), Told::Error(Trouble::SocketLimit));
        // This is one that ends at once.
        sockets.bind(4, File::open("/dev/null").unwrap()).unwrap();
        assert_eq!([next(&events), next(&events)], [Told::Bound, Told::Close(4)]);
    });
}

#[test]
fn a_bound_stream_stays_as_it_is_and_the_program_may_use_it_too() {
    const BYTES: usize = 4 << 20;
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let (mut ours, mut peer) = UnixStream::pair().unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        assert!(is_nonblocking(&ours), "also while it is bound");
        ours.write_all(b"ours").unwrap();
        peer.write_all(b"theirs").unwrap();
        assert_eq!(next(&events), Told::Data(b"theirs".to_vec()));
        // What is on its way when it is given back is cut off; the socket goes on.
        sockets.send(id, vec![b'x'; BYTES]).unwrap();
        sockets.shutdown(9, id);
        assert_eq!(next(&events), Told::Close(9));
        let mut got = vec![0; 4];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(got, b"ours");
        ours.set_nonblocking(false).unwrap();
        let writer = std::thread::spawn(move || {
            ours.write_all(b"end").unwrap();
            drop(ours);
        });
        peer.read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got.ends_with(b"xend") && got.len() < BYTES, "{} bytes", got.len());
    });
}

#[test]
fn a_bound_stream_is_closed_when_what_waits_has_left_or_its_peer_ends() {
    const BYTES: usize = 4 << 20;
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        sockets.send(id, vec![b'x'; BYTES]).unwrap();
        sockets.close(9, id);
        // Once that is answered, the close before it has been seen.
        sockets.close(77, 12_345);
        assert_eq!(next(&events), Told::Close(77));
        peer.write_all(b"dropped").unwrap();
        peer.read_exact(&mut vec![0; BYTES]).unwrap();
        assert_eq!(next(&events), Told::Close(4));
        let id = sockets.bind(5, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        drop(peer);
        assert_eq!(next(&events), Told::Close(5));
        assert!(sockets.send(id, "gone").is_err());
    });
}

#[test]
fn a_bound_connection_can_be_told_to_send_small_pieces_at_once() {
    on_each_backend(|backend| {
        let (sockets, events) = running(backend);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let id = sockets.bind(4, &ours).unwrap();
        assert_eq!(next(&events), Told::Bound);
        assert!(!ours.nodelay().unwrap());
        sockets.nodelay(id);
        sockets.close(9, id);
        assert_eq!(next(&events), Told::Close(9));
        assert!(ours.nodelay().unwrap());
    });
}
