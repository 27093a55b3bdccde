//! Receives that are cancelled, dropped and closed while bytes arrive: none is lost, doubled or given to another.

use crate::tools::{Rng, Run, Sequence, after_polls, pair, scenario};
use anabranch::net::TcpStream;
use anabranch::{Close, Completion, EndpointId, Event, Shard, sleep, spawn, timeout};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

const CONNECTIONS: usize = 8;

#[test]
fn cancelled_receives_lose_nothing() {
    scenario("cancelled receives", |run| {
        let wanted = run.size(20_000, 180_000);
        let mut config = run.config.clone();
        // Low bounds, so that the standing receive itself is cancelled all the time, and short buffers.
        config.limits.inbound_bytes_max = 1024;
        config.limits.buffer_bytes = 2048;
        config.limits.buffers = 128;
        let mut rng = run.rng();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (far, near): (Vec<_>, Vec<_>) = (0..CONNECTIONS).map(|_| pair(&listener)).unzip();
        let stop = Arc::new(AtomicBool::new(false));
        let sender = send_sequences(far, rng.fork(), Arc::clone(&stop));
        let shard = Shard::new(config).expect("a shard");
        let cancels = Rc::new(Cell::new(0));
        let received = shard.block_on(async {
            let mut tasks = Vec::new();
            for (id, near) in near.into_iter().enumerate() {
                let stream = TcpStream::from_std(near).unwrap();
                let reader =
                    Reader { stream, sequence: Sequence::new(id as u64), cancels: Rc::clone(&cancels) };
                tasks.push(spawn(reader.read_all(rng.fork(), wanted, Arc::clone(&stop))));
            }
            let mut received = Vec::new();
            for task in tasks {
                received.push(task.await.expect("a reader ends well"));
            }
            received
        });
        let sent = sender.join().expect("the sender ends well");
        assert_eq!(sent, received, "bytes sent and received, per connection");
        let counters = run.settle(shard);
        assert!(counters.canceled > 0, "the standing receives were cancelled as well");
        let bytes: u64 = sent.iter().sum();
        run.say(format_args!(
            "{} receives ended early over {bytes} bytes, {} cancelled in the kernel; none lost",
            cancels.get(),
            counters.canceled
        ));
    });
}

/// Writes a sequence to each connection until told to stop; gives the bytes written to each.
fn send_sequences(
    mut sockets: Vec<std::net::TcpStream>,
    mut rng: Rng,
    stop: Arc<AtomicBool>,
) -> JoinHandle<Vec<u64>> {
    std::thread::spawn(move || {
        let mut sequences: Vec<_> = (0..sockets.len() as u64).map(Sequence::new).collect();
        while !stop.load(Ordering::Relaxed) {
            let index = rng.below(sockets.len() as u64) as usize;
            let sequence = &mut sequences[index];
            let len = [1, 7, 64, 700, 3000][rng.below(5) as usize];
            let bytes = sequence.peek(1 + rng.below(len) as usize);
            sockets[index].write_all(&bytes).expect("the reader reads on");
            sequence.at += bytes.len() as u64;
            match rng.below(8) {
                0 => std::thread::sleep(Duration::from_micros(rng.below(60))),
                1 => {}
                _ => (0..rng.below(2_000)).for_each(|n| _ = std::hint::black_box(n)),
            }
        }
        sequences.iter().map(|sequence| sequence.at).collect()
    })
}

struct Reader {
    stream: TcpStream,
    sequence: Sequence,
    cancels: Rc<Cell<usize>>,
}

impl Reader {
    async fn read_all(mut self, mut rng: Rng, wanted: usize, stop: Arc<AtomicBool>) -> u64 {
        while self.cancels.get() < wanted {
            if rng.below(64) == 0 {
                // Time to reach the inbound bound.
                sleep(Duration::from_millis(1)).await;
            }
            let polls = rng.below(4);
            if !self.read_some(&mut rng, polls).await {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(lease) = self.stream.recv().await.expect("the connection lives") {
            self.sequence.check(&lease);
        }
        self.sequence.at
    }

    /// One receive that may be ended early; `false` at the end of the stream.
    async fn read_some(&mut self, rng: &mut Rng, polls: u64) -> bool {
        let limit = Duration::from_micros(rng.below(200));
        let len = 1 + rng.below(5000) as usize;
        let stream = &mut self.stream;
        // What came, if the receive was not ended early.
        let came: Option<io::Result<Vec<u8>>> = match rng.below(12) {
            0 => timeout(limit, stream.recv())
                .await
                .ok()
                .map(|got| Ok(got?.map_or(Vec::new(), |lease| lease.to_vec()))),
            1 => timeout(limit, stream.recv_exact(len)).await.ok().map(|got| got.map(Vec::from)),
            2 | 3 => after_polls(polls, stream.recv_until(&[rng.next() as u8], 1 << 16))
                .await
                .map(|got| Ok(got?.map_or(Vec::new(), Vec::from))),
            4 | 5 => after_polls(polls, stream.recv_into(Vec::with_capacity(len)))
                .await
                .map(|(read, buffer)| read.map(|_| buffer)),
            6..9 => after_polls(polls, stream.recv_exact(len)).await.map(|got| got.map(Vec::from)),
            _ => after_polls(polls, stream.recv())
                .await
                .map(|got| Ok(got?.map_or(Vec::new(), |lease| lease.to_vec()))),
        };
        match came {
            None => {
                self.cancels.set(self.cancels.get() + 1);
                true
            }
            Some(Ok(bytes)) => {
                self.sequence.check(&bytes);
                !bytes.is_empty()
            }
            Some(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
                false
            }
        }
    }
}

#[test]
fn closed_receives_bring_nothing_late_and_nothing_foreign() {
    scenario("closed receives", |run| {
        let closes = run.size(600, 20_000);
        let shard = Shard::new(run.config.clone()).expect("a shard");
        let mut closing = Closing::new(run, &shard, closes);
        while closing.closed < closes {
            closing.turn();
        }
        drop(closing.feeder);
        closing.feeding.join().expect("the feeder ends well");
        run.say(format_args!("{closes} connections closed under traffic, {} bytes in order", closing.bytes));
        run.settle(shard);
    });
}

/// A connection whose standing receive will be closed.
struct Open {
    sequence: Sequence,
    /// The standing receive has had its last event.
    ended: bool,
    closing: bool,
}

/// Connections that are closed under traffic, through the completion API.
struct Closing<'a> {
    run: &'a Run,
    shard: &'a Shard,
    listener: TcpListener,
    feeder: mpsc::Sender<(u64, std::net::TcpStream)>,
    feeding: JoinHandle<()>,
    open: HashMap<EndpointId, Open>,
    rng: Rng,
    opened: usize,
    closed: usize,
    wanted: usize,
    bytes: u64,
}

impl<'a> Closing<'a> {
    const RECEIVE: u64 = 1;
    const CLOSE: u64 = 2;

    fn new(run: &'a Run, shard: &'a Shard, wanted: usize) -> Closing<'a> {
        let (feeder, connections) = mpsc::channel();
        let feeding = std::thread::spawn(move || feed(&connections));
        let mut closing = Closing {
            run,
            shard,
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            feeder,
            feeding,
            open: HashMap::new(),
            rng: run.rng(),
            opened: 0,
            closed: 0,
            wanted,
            bytes: 0,
        };
        (0..32).for_each(|_| closing.open());
        closing
    }

    fn open(&mut self) {
        if self.opened == self.wanted {
            return;
        }
        let (far, near) = pair(&self.listener);
        let id = self.shard.adopt_stream(near).expect("room for an endpoint");
        self.shard.submit_recv_multi(id, Self::RECEIVE).expect("an open connection");
        self.feeder.send((self.opened as u64, far)).unwrap();
        let open = Open { sequence: Sequence::new(self.opened as u64), ended: false, closing: false };
        assert!(self.open.insert(id, open).is_none(), "an endpoint's id is never used twice");
        self.opened += 1;
    }

    fn turn(&mut self) {
        let mut completions = Vec::new();
        self.shard.poll(Some(Duration::from_micros(500)), |completion| completions.push(completion)).unwrap();
        for completion in completions {
            self.on_completion(completion);
        }
        let (shard, rng) = (self.shard, &mut self.rng);
        for (id, open) in self.open.iter_mut().filter(|(_, open)| !open.closing) {
            if rng.below(4) == 0 {
                open.closing = true;
                let how = if rng.below(2) == 0 { Close::Abort } else { Close::Flush };
                shard.submit_close(*id, how, Self::CLOSE).expect("it was open");
            }
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        let Completion { tag, endpoint, more, event } = completion;
        let open = self.open.get_mut(&endpoint).expect("nothing comes after the close");
        match (tag, event) {
            (Self::RECEIVE, Event::Received(lease)) => {
                assert!(more && !open.ended);
                open.sequence.check(&lease);
                self.bytes += lease.len() as u64;
            }
            (Self::RECEIVE, Event::Failed(_)) => {
                assert!(!more && open.closing && !std::mem::replace(&mut open.ended, true));
            }
            (Self::CLOSE, Event::Closed) => {
                assert!(!more && open.ended, "each submission has one last event");
                self.open.remove(&endpoint);
                self.closed += 1;
                self.run.progress(self.closed, self.wanted);
                self.open();
            }
            (tag, event) => panic!("tag {tag} got {event:?}"),
        }
    }
}

/// Writes its sequence to each connection until that fails.
fn feed(connections: &mpsc::Receiver<(u64, std::net::TcpStream)>) {
    let mut fed: Vec<(Sequence, std::net::TcpStream)> = Vec::new();
    loop {
        let add = |(id, socket): (u64, std::net::TcpStream)| {
            socket.set_nonblocking(true).unwrap();
            (Sequence::new(id), socket)
        };
        match connections.try_recv() {
            Ok(connection) => fed.push(add(connection)),
            Err(mpsc::TryRecvError::Disconnected) => return,
            Err(mpsc::TryRecvError::Empty) if fed.is_empty() => std::thread::yield_now(),
            Err(mpsc::TryRecvError::Empty) => {}
        }
        fed.retain_mut(|(sequence, socket)| match socket.write(&sequence.peek(200)) {
            Ok(written) => {
                sequence.at += written as u64;
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
    }
}
