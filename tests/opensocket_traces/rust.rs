//! The Rust facade as the scenarios see it.

use crate::world::{Calls, Message, RawSocket, Record, Row, World, set_last_error};
use anabranch::Config;
use anabranch::event::{Event, InfoKind, OpenSocket, Sockets};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
#[cfg(unix)]
use std::os::fd::BorrowedFd as Borrowed;
#[cfg(windows)]
use std::os::windows::io::BorrowedSocket as Borrowed;
use std::sync::Arc;

/// A facade that runs on a configuration.
pub(crate) fn world(config: &Config) -> World {
    let record = Arc::new(Record::default());
    let backend = config.backend;
    let sockets = OpenSocket::builder().config(|config| config.backend(backend)).build();
    let seen = Arc::clone(&record);
    sockets
        .run(move |sockets, event| seen.on_message(&Rust(sockets.clone()), message(event)))
        .expect("the facade runs");
    World::new(Box::new(Rust(sockets.sockets().clone())), Box::new(sockets), record)
}

struct Rust(Sockets);

fn text(address: SocketAddr) -> String {
    format!("{}:{}", address.ip(), address.port())
}

fn blob(address: SocketAddr) -> Vec<u8> {
    let (tag, ip) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    [vec![tag], address.port().to_be_bytes().to_vec(), ip].concat()
}

fn address(blob: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*blob.get(1)?, *blob.get(2)?]);
    let ip = match blob[0] {
        1 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(blob.get(3..7)?).ok()?)),
        2 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(blob.get(3..19)?).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The event in the form that the original gives it.
fn message(event: Event) -> Message {
    let (fd, uid) = (event.id(), event.uid());
    let mut message = Message { ev: "", fd, uid, ud: 0, size: 0, buffer: None, option: None };
    let text = |message: &mut Message, ev, text: String| {
        message.ev = ev;
        message.size = text.len() + 1;
        message.buffer = Some(text.into());
    };
    match event {
        Event::Data { data, .. } => {
            (message.ev, message.size, message.buffer) = ("Data", data.len(), Some(data.to_vec()));
        }
        Event::Udp { data, from, .. } => {
            (message.ev, message.size, message.buffer) = ("Udp", data.len(), Some(data.to_vec()));
            message.option = Some(blob(from));
        }
        Event::Close { .. } => message.ev = "Close",
        Event::Open { how, .. } => text(&mut message, "Open", how.to_string()),
        Event::Accept { accepted, peer, .. } => {
            text(&mut message, "Accept", self::text(peer));
            message.ud = accepted;
        }
        Event::Error { trouble, .. } => text(&mut message, "Error", trouble.to_string()),
        Event::Warning { pending_kib, .. } => (message.ev, message.size) = ("Warning", pending_kib),
    }
    message
}

fn id(given: std::io::Result<i32>) -> i32 {
    given.unwrap_or_else(|error| {
        // As in the C ABI: the number of the error is left for whoever asks.
        set_last_error(error.raw_os_error().unwrap_or(0));
        -1
    })
}

fn done<E>(result: Result<(), E>) -> i32 {
    if result.is_ok() { 0 } else { -1 }
}

impl Calls for Rust {
    fn listen(&self, uid: usize, host: &str, port: i32, backlog: i32) -> i32 {
        id(self.0.listen(uid, host, port, backlog))
    }
    fn connect(&self, uid: usize, host: &str, port: i32) -> i32 {
        id(self.0.connect(uid, host, port))
    }
    fn bind(&self, uid: usize, fd: RawSocket) -> i32 {
        // SAFETY: only scenarios call this, with a descriptor that they keep open, or with a number that no process of this
        // kind can have open, so that nothing can be touched by it.
        id(self.0.bind(uid, unsafe { Borrowed::borrow_raw(fd) }))
    }
    fn udp(&self, uid: usize, host: &str, port: i32) -> i32 {
        id(self.0.udp(uid, host, port))
    }
    fn start(&self, uid: usize, id: i32) {
        self.0.start(uid, id);
    }
    fn close(&self, uid: usize, id: i32) {
        self.0.close(uid, id);
    }
    fn shutdown(&self, uid: usize, id: i32) {
        self.0.shutdown(uid, id);
    }
    fn nodelay(&self, id: i32) {
        self.0.nodelay(id);
    }
    fn send(&self, id: i32, bytes: &[u8]) -> i32 {
        done(self.0.send(id, bytes.to_vec()))
    }
    fn send_low(&self, id: i32, bytes: &[u8]) -> i32 {
        done(self.0.send_low_priority(id, bytes.to_vec()))
    }
    fn udp_connect(&self, id: i32, host: &str, port: i32) -> i32 {
        done(self.0.udp_connect(id, host, port))
    }
    fn udp_send(&self, id: i32, to: &[u8], bytes: &[u8]) -> i32 {
        address(to).map_or(-1, |to| done(self.0.udp_send(id, to, bytes.to_vec())))
    }
    fn udp_address(&self, blob: Option<&[u8]>) -> Option<String> {
        address(blob?).map(text)
    }
    fn info(&self) -> Vec<Row> {
        let kind = |kind| match kind {
            InfoKind::Listener => 1,
            InfoKind::Tcp => 2,
            InfoKind::Udp => 3,
            InfoKind::Bound => 4,
            _ => 0,
        };
        let row = |info: anabranch::event::Info| Row {
            id: info.id,
            kind: kind(info.kind),
            uid: info.uid,
            read: info.read,
            write: info.written,
            rtime: info.read_at,
            wtime: info.written_at,
            pending: info.pending_bytes as i64,
            name: info.address.map(text).unwrap_or_default(),
        };
        self.0.socket_info().into_iter().map(row).collect()
    }
}
