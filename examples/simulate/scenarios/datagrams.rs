//! Datagrams: lost, doubled, overtaken, cut, to one and to many; and a protocol that gets all of its through.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, mix, one_in, pattern, small_config, within};
use anabranch::net::{Datagram, UdpSocket};
use anabranch::sim::{Builder, Faults, Host};
use anabranch::{sleep, spawn, timeout};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

const PORT: u16 = 9000;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const GROUP_PORT: u16 = 9001;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "datagrams");
    let post = Post { verdict: Verdict::default(), calm: is_calm(&faults), sent: Rc::default() };
    let mut builder = Builder::new().faults(faults).config(small_config(&mut choice));
    let served = post.clone();
    builder = builder
        .add(Host::new("server", move |_| serve(served.clone())).serves().config(small_config(&mut choice)));
    for client in 0..choice.within(1..4) {
        let (post, messages) = (post.clone(), choice.within(1..25));
        builder = builder.host(format!("client-{client}"), move || write_home(post.clone(), messages));
    }
    post.verdict.watch(builder)
}

/// Every datagram that was sent: its length, its target, and how often it came.
#[derive(Clone)]
struct Post {
    verdict: Verdict,
    calm: bool,
    sent: Rc<RefCell<BTreeMap<u64, Sent>>>,
}

struct Sent {
    len: usize,
    port: u16,
    one: bool,
    came: u64,
}

impl Post {
    /// A new datagram of some length for a port.
    fn make(&self, port: u16, one: bool) -> (u64, Vec<u8>) {
        let key = anabranch::random();
        let len = 8 + match within(0..8) {
            0 => within(0..4000),
            _ => within(0..300),
        } as usize;
        self.sent.borrow_mut().insert(key, Sent { len, port, one, came: 0 });
        let mut bytes = key.to_le_bytes().to_vec();
        bytes.extend_from_slice(&pattern(key, 0, len - 8));
        (key, bytes)
    }

    /// What came must be what was sent here; gives its key.
    fn check(&self, datagram: &Datagram, port: u16) -> Option<u64> {
        let bytes = &datagram.lease[..];
        let key = bytes.first_chunk().map(|key| u64::from_le_bytes(*key));
        let mut sent = self.sent.borrow_mut();
        let Some((key, known)) = key.and_then(|key| Some((key, sent.get_mut(&key)?))) else {
            self.verdict.wrong("a datagram came that nobody sent");
            return None;
        };
        known.came += 1;
        let wrong = if known.port != port {
            "came to another port"
        } else if datagram.truncated != (bytes.len() < known.len) || bytes.len() > known.len {
            "has not its length, and is not marked as cut"
        } else if bytes[8..] != pattern(key, 0, bytes.len() - 8) {
            "has other bytes"
        } else if self.calm && known.one && known.came > 1 {
            "came twice"
        } else {
            return Some(key);
        };
        self.verdict.wrong(format_args!(
            "datagram {key:x} of {} bytes {wrong}: {} came",
            known.len,
            bytes.len()
        ));
        None
    }
}

/// Acknowledges what comes, and talks to the group now and then.
async fn serve(post: Post) -> io::Result<()> {
    let socket = Rc::new(UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], PORT))).await?);
    let (news, letters) = (post.clone(), Rc::clone(&socket));
    spawn(async move {
        let _ = letters.set_broadcast(true);
        for _ in 0..within(0..20) {
            sleep(Duration::from_millis(within(1..50))).await;
            let to = if one_in(2) { GROUP } else { Ipv4Addr::BROADCAST };
            // What cannot be sent is lost, like what is lost on its way.
            let _ = letters.send_to(news.make(GROUP_PORT, false).1, SocketAddr::from((to, GROUP_PORT))).await;
        }
    })
    .detach();
    loop {
        let Ok(datagram) = socket.recv_from().await else { continue };
        if let Some(key) = post.check(&datagram, PORT) {
            let _ = socket.send_to(mix(key).to_le_bytes().to_vec(), datagram.from).await;
        }
    }
}

async fn write_home(post: Post, messages: u64) -> io::Result<()> {
    let Ok(server) = anabranch::net::resolve(format!("server:{PORT}")).await else { return Ok(()) };
    let server = server[0];
    let listening = spawn(hear_news(post.clone()));
    let Some(socket) = bind().await else { return Ok(()) };
    let connected = one_in(2) && socket.connect(server).is_ok();
    for _ in 0..messages {
        let mut acknowledged = false;
        for _ in 0..300 {
            let (key, bytes) = post.make(PORT, true);
            let sent = if connected { socket.send(bytes).await } else { socket.send_to(bytes, server).await };
            if sent.is_ok() && is_acknowledged(&post, &socket, server, key).await {
                acknowledged = true;
                break;
            }
            sleep(Duration::from_millis(within(1..200))).await;
        }
        post.verdict.require(acknowledged, || "nothing was acknowledged in 300 attempts".into());
    }
    drop(listening);
    if one_in(2) {
        socket.close().await;
    }
    Ok(())
}

/// Any free port; descriptors may be wanting.
async fn bind() -> Option<UdpSocket> {
    for _ in 0..50 {
        if let Ok(socket) = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))).await {
            return Some(socket);
        }
        sleep(Duration::from_millis(10)).await;
    }
    None
}

/// Waits for the acknowledgement of a datagram; those of earlier ones may come before.
async fn is_acknowledged(post: &Post, socket: &UdpSocket, server: SocketAddr, key: u64) -> bool {
    let waiting = async {
        loop {
            // A dropped receive loses nothing.
            if one_in(3) {
                let _ = timeout(Duration::from_micros(1), std::future::pending::<()>()).await;
            }
            let Ok(datagram) = socket.recv_from().await else { return false };
            post.verdict.require(datagram.from == server, || format!("a datagram of {} came", datagram.from));
            if datagram.lease[..] == mix(key).to_le_bytes() {
                return true;
            }
        }
    };
    timeout(Duration::from_millis(within(5..500)), waiting).await.unwrap_or(false)
}

/// A member of the group.
async fn hear_news(post: Post) {
    let Ok(socket) = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], GROUP_PORT))).await else { return };
    if socket.join_multicast_v4(GROUP, Ipv4Addr::UNSPECIFIED).is_err() {
        return;
    }
    for _ in 0..within(1..20) {
        if let Ok(datagram) = socket.recv_from().await {
            post.check(&datagram, GROUP_PORT);
        }
    }
    let _ = socket.leave_multicast_v4(GROUP, Ipv4Addr::UNSPECIFIED);
}
