//! Requests that are tried again until they are answered, each answered once, whatever becomes of connections and
//! servers meanwhile.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, mix, one_in, pattern, small_config, within};
use anabranch::net::{OwnedWriteHalf, TcpListener, TcpStream};
use anabranch::sim::{Builder, Faults, Host};
use anabranch::{sleep, spawn, timeout};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "requests");
    let clients = choice.within(1..4);
    add_hosts(Builder::new().faults(faults), &mut choice, 1, clients)
}

/// Servers called `server-0` and on, clients called `client-0` and on, and the checks.
pub(crate) fn add_hosts(builder: Builder, choice: &mut Choice, servers: u64, clients: u64) -> Builder {
    let verdict = Verdict::default();
    let mut builder = builder.config(small_config(choice));
    for server in 0..servers {
        let log = Log { verdict: verdict.clone(), answered: Rc::default() };
        builder = builder.add(
            Host::new(format!("server-{server}"), move |_| serve(log.clone()))
                .serves()
                .config(small_config(choice)),
        );
    }
    for number in 0..clients {
        let client = Client {
            verdict: verdict.clone(),
            server: format!("server-{}:80", number % servers),
            accepted: Rc::default(),
            next: Rc::new(Cell::new(number << 32)),
        };
        let requests = choice.within(1..30);
        builder = builder.host(format!("client-{number}"), move || client.clone().ask_all(requests));
    }
    verdict.watch(builder)
}

/// What a server has answered: as if it were on a disk that never fails, it outlives crashes.
#[derive(Clone)]
struct Log {
    verdict: Verdict,
    answered: Rc<RefCell<BTreeMap<u64, u64>>>,
}

/// A client, which also outlives crashes so far as its checks go.
#[derive(Clone)]
struct Client {
    verdict: Verdict,
    server: String,
    accepted: Rc<RefCell<BTreeSet<u64>>>,
    next: Rc<Cell<u64>>,
}

/// A request is its id, the length of its payload, and the payload; a response its id and a sum.
const HEAD: usize = 12;

fn payload_of(id: u64) -> Vec<u8> {
    pattern(id, 0, (mix(id) % 900) as usize)
}

fn answer_to(id: u64, payload: &[u8]) -> u64 {
    payload.iter().fold(mix(id), |sum, byte| mix(sum ^ u64::from(*byte)))
}

async fn serve(log: Log) -> io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:80").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let log = log.clone();
        spawn(async move {
            // A connection that breaks is the client's to make again.
            let _ = answer_all(stream, log).await;
        })
        .detach();
    }
}

async fn answer_all(stream: TcpStream, log: Log) -> io::Result<()> {
    let (mut read, write) = stream.into_split();
    let (sender, mut responses) = queue();
    spawn(async move { respond(&mut responses, write).await }).detach();
    loop {
        let head = timeout(Duration::from_secs(60), read.recv_exact(HEAD)).await??;
        let id = u64::from_le_bytes(head[..8].try_into().unwrap_or_default());
        let len = u32::from_le_bytes(head[8..].try_into().unwrap_or_default()) as usize;
        let payload = read.recv_exact(len).await?;
        log.verdict
            .require(payload[..] == payload_of(id), || format!("request {id:x} arrived with other bytes"));
        let answer = answer_to(id, &payload);
        log.answered.borrow_mut().insert(id, answer);
        let sender = sender.clone();
        // Answers overtake each other.
        spawn(async move {
            if one_in(3) {
                sleep(Duration::from_micros(within(1..30_000))).await;
            }
            sender.send([id.to_le_bytes(), answer.to_le_bytes()].concat());
        })
        .detach();
    }
}

async fn respond(responses: &mut Responses, mut write: OwnedWriteHalf) {
    while let Some(response) = responses.next().await {
        if write.send(response).await.is_err() {
            return;
        }
    }
}

/// What a queue between two tasks shares.
#[derive(Default)]
struct Shared {
    waiting: VecDeque<Vec<u8>>,
    waker: Option<Waker>,
}

struct Sender(Rc<RefCell<Shared>>);

struct Responses(Rc<RefCell<Shared>>);

/// A queue of responses from many tasks to one.
fn queue() -> (Sender, Responses) {
    let shared = Rc::new(RefCell::new(Shared::default()));
    (Sender(Rc::clone(&shared)), Responses(shared))
}

impl Sender {
    fn send(&self, response: Vec<u8>) {
        let mut shared = self.0.borrow_mut();
        shared.waiting.push_back(response);
        let waker = shared.waker.take();
        drop(shared);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Clone for Sender {
    fn clone(&self) -> Sender {
        Sender(Rc::clone(&self.0))
    }
}

impl Drop for Sender {
    /// When the last one goes, the receiver learns that nothing more comes.
    fn drop(&mut self) {
        let waker = self.0.borrow_mut().waker.take();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Responses {
    async fn next(&mut self) -> Option<Vec<u8>> {
        poll_fn(|context| {
            let alone = Rc::strong_count(&self.0) == 1;
            let mut shared = self.0.borrow_mut();
            match shared.waiting.pop_front() {
                None if !alone => {
                    shared.waker = Some(context.waker().clone());
                    Poll::Pending
                }
                next => Poll::Ready(next),
            }
        })
        .await
    }
}

impl Client {
    async fn ask_all(self, requests: u64) {
        let first = self.next.get();
        self.next.set(first + requests);
        let mut open: VecDeque<u64> = (first..first + requests).collect();
        for _ in 0..500 {
            if open.is_empty() {
                return;
            }
            let attempt = self.ask(&mut open);
            let outcome = timeout(Duration::from_secs(20), attempt).await;
            if !matches!(outcome, Ok(Ok(()))) {
                sleep(Duration::from_millis(within(1..300))).await;
            }
        }
        self.verdict.wrong(format_args!("{} requests are not answered after 500 attempts", open.len()));
    }

    /// Asks over one connection until everything is answered or it breaks.
    async fn ask(&self, open: &mut VecDeque<u64>) -> io::Result<()> {
        let mut stream = TcpStream::connect(&*self.server).await?;
        let ahead = within(1..6) as usize;
        let mut asked = BTreeSet::new();
        while !open.is_empty() {
            let next: Vec<u64> = open.iter().copied().filter(|id| !asked.contains(id)).take(ahead).collect();
            for id in next.into_iter().take(ahead.saturating_sub(asked.len())) {
                let payload = payload_of(id);
                let head = [&id.to_le_bytes()[..], &(payload.len() as u32).to_le_bytes()].concat();
                stream.send_vectored([head, payload]).await?;
                asked.insert(id);
            }
            let response = timeout(Duration::from_secs(15), stream.recv_exact(16)).await??;
            let id = u64::from_le_bytes(response[..8].try_into().unwrap_or_default());
            let answer = u64::from_le_bytes(response[8..].try_into().unwrap_or_default());
            self.check(id, answer, asked.remove(&id));
            open.retain(|other| *other != id);
            if one_in(20) {
                break;
            }
        }
        if one_in(2) { stream.close().await } else { Ok(()) }
    }

    fn check(&self, id: u64, answer: u64, was_asked: bool) {
        self.verdict.require(was_asked, || format!("an answer for {id:x}, which was not asked here"));
        let right = answer_to(id, &payload_of(id));
        self.verdict.require(answer == right, || format!("a wrong answer for {id:x}"));
        let first = self.accepted.borrow_mut().insert(id);
        self.verdict.require(first, || format!("a second answer for {id:x}"));
    }
}
