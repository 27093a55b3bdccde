//! Messages to many: each reader gets whole messages in their order, and misses as many as the server has counted.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, one_in, pattern, small_config, within};
use anabranch::net::{TcpListener, TcpStream};
use anabranch::sim::{Builder, Faults, Host};
use anabranch::{Broadcast, Departure, Slow, sleep, spawn, timeout};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Bytes in front of a message: its number and its length.
const HEAD_BYTES: usize = 12;

/// What readers shall have got: messages sent while they were members, less those counted as lost.
type Shares = Rc<RefCell<BTreeMap<u64, u64>>>;

#[derive(Clone)]
struct Book {
    verdict: Verdict,
    shares: Shares,
    calm: bool,
}

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "broadcast");
    let book = Book { verdict: Verdict::default(), shares: Shares::default(), calm: is_calm(&faults) };
    let mut builder = Builder::new().faults(faults).config(small_config(&mut choice));
    let slow = [Slow::DropNewest, Slow::DropOldest, Slow::Disconnect][choice.within(0..3) as usize];
    let (served, cap) = (book.clone(), choice.within(64..8192) as usize);
    builder = builder.add(
        Host::new("server", move |_| serve(served.clone(), cap, slow))
            .serves()
            .config(small_config(&mut choice)),
    );
    for client in 0..choice.within(1..4) {
        let (book, readers) = (book.clone(), choice.within(1..6));
        builder = builder.host(format!("client-{client}"), move || listen_all(book.clone(), readers));
    }
    book.verdict.watch(builder)
}

/// The members of a room, and how many messages had been sent when each came.
struct Room {
    members: Broadcast,
    streams: BTreeMap<u64, (TcpStream, u64)>,
    sent: u64,
    over: bool,
}

async fn serve(book: Book, cap: usize, slow: Slow) -> io::Result<()> {
    let members = Broadcast::new()?.backlog_bytes_max(cap).slow(slow);
    let room = Rc::new(RefCell::new(Room { members, streams: BTreeMap::new(), sent: 0, over: false }));
    spawn(publish(book.clone(), Rc::clone(&room), slow)).detach();
    let listener = TcpListener::bind("0.0.0.0:7000").await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let room = Rc::clone(&room);
        spawn(async move {
            let Ok(Ok(key)) = timeout(Duration::from_secs(20), stream.recv_exact(8)).await else { return };
            let key = u64::from_le_bytes(key[..].try_into().unwrap_or_default());
            let mut room = room.borrow_mut();
            let sent = room.sent;
            if !room.over && room.members.join(&stream).is_ok() {
                room.streams.insert(key, (stream, sent));
            }
        })
        .detach();
    }
}

async fn publish(book: Book, room: Rc<RefCell<Room>>, slow: Slow) {
    for _ in 0..within(20..300) {
        send(&book, &mut room.borrow_mut(), slow);
        if one_in(3) {
            sleep(Duration::from_micros(within(1..50_000))).await;
        }
    }
    let streams = {
        let mut room = room.borrow_mut();
        room.over = true;
        std::mem::take(&mut room.streams)
    };
    for (key, (stream, before)) in streams {
        let mut room = room.borrow_mut();
        if let Some(lost) = room.members.leave(&stream) {
            let sent = room.sent;
            book.shares.borrow_mut().insert(key, sent - before - lost);
        }
        spawn(async move { drop(stream.close().await) }).detach();
    }
}

/// Sends one message, or two that stay together, and compares what is counted.
fn send(book: &Book, room: &mut Room, slow: Slow) {
    let count = within(1..3);
    let bytes: Vec<u8> =
        (0..count).flat_map(|more| message(room.sent + more, within(0..600) as usize)).collect();
    let (members, before) = (room.members.len(), room.members.dropped());
    let delivered = room.members.send_joined(bytes, count as u32);
    room.sent += count;
    let told = room.members.dropped() - before;
    book.verdict.require(told == delivered.dropped, || format!("{told} lost, {delivered:?} told"));
    let left = delivered.departed.len();
    let known = room.members.len() + left == members && delivered.queued + left <= members;
    book.verdict.require(known, || format!("{members} members before {delivered:?}"));
    for departed in delivered.departed {
        let fits = slow == Slow::Disconnect || !matches!(departed.why, Departure::TooSlow);
        book.verdict.require(fits, || format!("{departed:?} under {slow:?}"));
        room.streams.retain(|_, (stream, _)| stream.id() != departed.id);
    }
}

fn message(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    bytes.extend(pattern(number, 0, len));
    bytes
}

async fn listen_all(book: Book, readers: u64) {
    let all: Vec<_> = (0..readers)
        .map(|_| {
            let book = book.clone();
            spawn(async move {
                sleep(Duration::from_micros(within(0..200_000))).await;
                // A server that has crashed without a word says nothing for ever.
                let _ = timeout(Duration::from_secs(200), listen(&book)).await;
            })
        })
        .collect();
    for one in all {
        let _ = one.await;
    }
}

/// Reads to the end, with pauses, unless it leaves before.
async fn listen(book: &Book) -> Option<()> {
    let mut stream = TcpStream::connect("server:7000").await.ok()?;
    let key = within(0..u64::MAX);
    stream.send(key.to_le_bytes().to_vec()).await.ok()?;
    let (pause, stays) = (within(1..100_000), !one_in(4));
    let (mut got, mut next) = (0, 0);
    loop {
        let head = match stream.recv_exact(HEAD_BYTES).await {
            Ok(head) => head,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(_) => return None,
        };
        let number = u64::from_le_bytes(head[..8].try_into().ok()?);
        let len = u32::from_le_bytes(head[8..].try_into().ok()?) as usize;
        let sane = number >= next && len < 600;
        book.verdict.require(sane, || format!("message {number} of {len} bytes, not before {next}"));
        let body = if sane { stream.recv_exact(len).await.ok()? } else { return None };
        book.verdict.require(body[..] == pattern(number, 0, len), || format!("message {number} is another"));
        next = number + 1;
        got += 1;
        if one_in(8) {
            sleep(Duration::from_micros(pause)).await;
        }
        if !stays && one_in(20) {
            return None;
        }
    }
    let share = book.shares.borrow().get(&key).copied();
    let right = !book.calm || share.is_none_or(|share| share == got);
    book.verdict.require(right, || format!("{got} messages came of {share:?}"));
    Some(())
}
