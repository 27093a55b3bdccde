//! One facade under test, what its callback saw, and raw peers.

use crate::trace::{DATA_BYTES_MAX, Seen};
use socket2::{Domain, Socket, Type};
use std::any::Any;
use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
#[cfg(unix)]
pub(crate) use std::os::fd::RawFd as RawSocket;
#[cfg(windows)]
pub(crate) use std::os::windows::io::RawSocket;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Leaves the number of an error where the system leaves it.
#[cfg(unix)]
pub(crate) fn set_last_error(number: i32) {
    nix::errno::Errno::set_raw(number);
}

/// Leaves the number of an error where the system leaves it.
#[cfg(windows)]
pub(crate) fn set_last_error(number: i32) {
    // SAFETY: plain system call.
    unsafe { windows_sys::Win32::Foundation::SetLastError(number as u32) }
}

/// The words of the system for an error, as Unix has them.
pub(crate) fn words_of(error: &std::io::Error) -> String {
    in_words_of_unix(error.to_string().split(" (os error").next().unwrap_or_default())
}

/// What Windows says of an error, said as on Unix; other texts as they are.
fn in_words_of_unix(text: &str) -> String {
    const WORDS: [(i32, &str); 3] = [
        (10048, "Address already in use"),
        (10054, "Connection reset by peer"),
        (10061, "Connection refused"),
    ];
    let of_windows = |number| std::io::Error::from_raw_os_error(number).to_string();
    let found = WORDS
        .iter()
        .find(|(number, _)| cfg!(windows) && of_windows(*number).split(" (os error").next() == Some(text));
    found.map_or(text, |(_, words)| words).to_owned()
}

/// How long anything may take before the test fails rather than hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An event as the callback got it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) ev: &'static str,
    pub(crate) fd: i32,
    pub(crate) uid: usize,
    pub(crate) ud: i32,
    pub(crate) size: usize,
    /// The text or the payload.
    pub(crate) buffer: Option<Vec<u8>>,
    /// The address of a datagram, in binary form.
    pub(crate) option: Option<Vec<u8>>,
}

/// A row of what there is to know of the sockets.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: i32,
    pub(crate) kind: i32,
    pub(crate) uid: usize,
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) rtime: u64,
    pub(crate) wtime: u64,
    pub(crate) pending: i64,
    pub(crate) name: String,
}

/// The calls of a facade, as the C++ class has them.
pub(crate) trait Calls: Send + Sync {
    fn listen(&self, uid: usize, host: &str, port: i32, backlog: i32) -> i32;
    fn connect(&self, uid: usize, host: &str, port: i32) -> i32;
    fn bind(&self, uid: usize, fd: RawSocket) -> i32;
    fn udp(&self, uid: usize, host: &str, port: i32) -> i32;
    fn start(&self, uid: usize, id: i32);
    fn close(&self, uid: usize, id: i32);
    fn shutdown(&self, uid: usize, id: i32);
    fn nodelay(&self, id: i32);
    fn send(&self, id: i32, bytes: &[u8]) -> i32;
    fn send_low(&self, id: i32, bytes: &[u8]) -> i32;
    fn udp_connect(&self, id: i32, host: &str, port: i32) -> i32;
    fn udp_send(&self, id: i32, address: &[u8], bytes: &[u8]) -> i32;
    fn udp_address(&self, address: Option<&[u8]>) -> Option<String>;
    fn info(&self) -> Vec<Row>;
}

type Reaction = Arc<dyn Fn(&dyn Calls, &Message) + Send + Sync>;

/// What the callback sees and does.
#[derive(Default)]
pub(crate) struct Record {
    log: Mutex<Vec<Message>>,
    changed: Condvar,
    reaction: Mutex<Option<Reaction>>,
}

/// Ids that are used only to find out that everything called before has been done.
const BARRIER: i32 = -1_000_000;

impl Record {
    /// The callback.
    pub(crate) fn on_message(&self, calls: &dyn Calls, message: Message) {
        let reaction = self.reaction.lock().unwrap().clone();
        self.log.lock().unwrap().push(message.clone());
        self.changed.notify_all();
        if let Some(reaction) = reaction.filter(|_| message.fd > BARRIER) {
            reaction(calls, &message);
        }
    }
}

/// A facade that runs, and the labels of its sockets.
pub(crate) struct World {
    pub(crate) calls: Box<dyn Calls>,
    _whole: Box<dyn Any + Send + Sync>,
    pub(crate) record: Arc<Record>,
    labels: Mutex<HashMap<i32, String>>,
    barriers: Mutex<i32>,
    noted: Mutex<Vec<(String, String)>>,
    /// What was seen when the scenario was over.
    sealed: Mutex<Option<Vec<Message>>>,
}

impl World {
    /// The calls of a facade, and what ends it when it is dropped.
    pub(crate) fn new(
        calls: Box<dyn Calls>,
        whole: Box<dyn Any + Send + Sync>,
        record: Arc<Record>,
    ) -> World {
        World {
            calls,
            _whole: whole,
            record,
            labels: Mutex::default(),
            barriers: Mutex::default(),
            noted: Mutex::default(),
            sealed: Mutex::default(),
        }
    }

    /// What the callback does from now on, after it has written the event down.
    pub(crate) fn react(&self, reaction: impl Fn(&dyn Calls, &Message) + Send + Sync + 'static) {
        *self.record.reaction.lock().unwrap() = Some(Arc::new(reaction));
    }

    pub(crate) fn label(&self, id: i32, label: &str) -> i32 {
        self.labels.lock().unwrap().insert(id, label.to_owned());
        id
    }

    /// Takes down the result of a call.
    pub(crate) fn note(&self, call: &str, result: impl ToString) {
        self.noted.lock().unwrap().push((call.to_owned(), result.to_string()));
    }

    pub(crate) fn noted(&self) -> Vec<(String, String)> {
        self.noted.lock().unwrap().clone()
    }

    /// The scenario is over, though its peers still are there: what comes from their end does not count.
    pub(crate) fn seal(&self) {
        self.settle();
        let log = self.log();
        *self.sealed.lock().unwrap() = Some(log);
    }

    pub(crate) fn log(&self) -> Vec<Message> {
        if let Some(sealed) = &*self.sealed.lock().unwrap() {
            return sealed.clone();
        }
        let log = self.record.log.lock().unwrap();
        log.iter().filter(|message| message.fd > BARRIER).cloned().collect()
    }

    pub(crate) fn forget(&self) {
        self.record.log.lock().unwrap().clear();
    }

    /// Forgets what was seen of an id that only served the scenario itself.
    pub(crate) fn drop_events_of(&self, id: i32) {
        self.record.log.lock().unwrap().retain(|message| message.fd != id);
    }

    /// Waits until the log satisfies.
    pub(crate) fn wait(&self, what: &str, is_enough: impl Fn(&[Message]) -> bool) {
        let until = Instant::now() + PATIENCE;
        let mut log = self.record.log.lock().unwrap();
        while !is_enough(&log) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} did not come; seen: {log:#?}");
            log = self.record.changed.wait_timeout(log, left).unwrap().0;
        }
    }

    /// Waits for an event of a socket.
    pub(crate) fn wait_for(&self, ev: &str, id: i32) -> Message {
        self.wait_nth(ev, id, 1)
    }

    /// Waits for an event of a socket, counted from 1.
    pub(crate) fn wait_nth(&self, ev: &str, id: i32, nth: usize) -> Message {
        let is_it = |message: &&Message| message.ev == ev && message.fd == id;
        self.wait(&format!("{ev} number {nth} of {id}"), |log| log.iter().filter(is_it).count() >= nth);
        self.log().iter().filter(is_it).nth(nth - 1).cloned().expect("it was there")
    }

    /// Waits until `bytes` of data have come for a socket.
    pub(crate) fn wait_bytes(&self, id: i32, bytes: usize) {
        self.wait("data", |log| {
            let data = log.iter().filter(|message| message.ev == "Data" && message.fd == id);
            data.map(|message| message.size).sum::<usize>() >= bytes
        });
    }

    /// Returns when all calls made before have been done, and some turns of the loop have passed.
    pub(crate) fn settle(&self) {
        for _ in 0..3 {
            let id = {
                let mut barriers = self.barriers.lock().unwrap();
                *barriers += 1;
                BARRIER - *barriers
            };
            self.calls.close(0, id);
            self.wait("the barrier", |log| log.iter().any(|message| message.fd == id));
        }
    }

    /// Listens on the loopback address and starts it: the listener and its port.
    pub(crate) fn listener(&self) -> (i32, u16) {
        self.listener_on("127.0.0.1")
    }

    pub(crate) fn listener_on(&self, host: &str) -> (i32, u16) {
        let id = self.label(self.calls.listen(1, host, 0, 64), "L");
        self.calls.start(1, id);
        self.wait_for("Open", id);
        (id, self.port_of(id))
    }

    pub(crate) fn row(&self, id: i32) -> Option<Row> {
        self.calls.info().into_iter().find(|row| row.id == id)
    }

    pub(crate) fn port_of(&self, id: i32) -> u16 {
        let row = self.row(id).expect("a listener that was started is told of");
        row.name.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    /// The connection that a listener accepted, counted from 1.
    pub(crate) fn accepted(&self, listener: i32, nth: usize) -> i32 {
        self.wait_nth("Accept", listener, nth).ud
    }

    /// A raw peer that is connected to a started listener, and the started connection (uid 2).
    pub(crate) fn raw(&self) -> (Peer, i32) {
        let (listener, port) = self.listener();
        let peer = Peer::connect(port);
        let a1 = self.accepted(listener, 1);
        self.calls.start(2, a1);
        self.wait_for("Open", a1);
        (peer, a1)
    }

    /// What was seen, with labels in place of ids and without ports.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let mut labels = self.labels.lock().unwrap().clone();
        let log = self.log();
        let accepts = log.iter().filter(|message| message.ev == "Accept");
        for (index, accept) in accepts.enumerate() {
            labels.insert(accept.ud, format!("A{}", index + 1));
        }
        let label = |id: i32| labels.get(&id).cloned().unwrap_or_else(|| format!("?{id}"));
        log.iter().map(|message| seen(message, &label)).collect()
    }
}

fn seen(message: &Message, label: &dyn Fn(i32) -> String) -> Seen {
    let payload = matches!(message.ev, "Data" | "Udp");
    let text = message.buffer.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let (text, size) = match text {
        Some(text) if message.ev == "Accept" => {
            let (ip, port) = text.rsplit_once(':').expect("an address has a port");
            assert!(port.parse::<u16>().is_ok(), "{text}");
            assert_eq!(message.size, text.len() + 1, "the end of the text counts");
            let text = format!("{ip}:<port>");
            let size = text.len() + 1;
            (Some(text), size)
        }
        Some(_) if payload && message.size > DATA_BYTES_MAX => (None, message.size),
        Some(text) if message.ev == "Error" => {
            assert_eq!(message.size, text.len() + 1, "the end of the text counts");
            let text = in_words_of_unix(&text);
            let size = text.len() + 1;
            (Some(text), size)
        }
        text => (text, message.size),
    };
    let option = message.option.as_ref().map(|blob| {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("{}PPPP{}", hex(&blob[..1]), hex(&blob[3..]))
    });
    let ud = if message.ud == 0 { "0".to_owned() } else { label(message.ud) };
    Seen { ev: message.ev.to_owned(), fd: label(message.fd), uid: message.uid as u64, ud, size, text, option }
}

/// A plain socket.
pub(crate) struct Peer(pub(crate) TcpStream);

impl Peer {
    pub(crate) fn connect(port: u16) -> Peer {
        Peer::connect_to(([127, 0, 0, 1], port).into()).expect("the listener listens")
    }

    /// Connects with a small receive buffer.
    pub(crate) fn connect_to(address: SocketAddr) -> std::io::Result<Peer> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_recv_buffer_size(16 * 1024)?;
        socket.connect(&address.into())?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Peer(stream))
    }

    /// Reads to the end: how it ended, and what came.
    pub(crate) fn read_all(&mut self) -> (String, Vec<u8>) {
        let mut all = Vec::new();
        let mut piece = vec![0; 1 << 20];
        loop {
            match self.0.read(&mut piece) {
                Ok(0) => return ("eof".into(), all),
                Ok(n) => all.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (words_of(&error), all),
            }
        }
    }

    pub(crate) fn read_exact(&mut self, bytes: usize) -> String {
        let mut all = vec![0; bytes];
        self.0.read_exact(&mut all).expect("the bytes come");
        String::from_utf8(all).expect("text")
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        let socket = Socket::from(self.0);
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    }
}

/// A plain listener and its port.
pub(crate) fn raw_listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

/// A port where nobody listens.
pub(crate) fn closed_port() -> u16 {
    raw_listener().1
}

/// Holds the callback up until it is let go.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<(bool, bool)>, Condvar)>);

impl Gate {
    /// In the callback: waits.
    pub(crate) fn pass(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().0 = true;
        changed.notify_all();
        let open = changed.wait_timeout_while(state.lock().unwrap(), PATIENCE, |state| !state.1).unwrap();
        assert!(open.0.1, "the gate was never opened");
    }

    /// Elsewhere: waits until the callback waits.
    pub(crate) fn is_reached(&self) {
        let (state, changed) = &*self.0;
        let reached = changed.wait_timeout_while(state.lock().unwrap(), PATIENCE, |state| !state.0).unwrap();
        assert!(reached.0.0, "the callback never came to the gate");
    }

    pub(crate) fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().1 = true;
        changed.notify_all();
    }
}
