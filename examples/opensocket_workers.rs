//! What programs did with OpenThread beside OpenSocket, in Rust: named workers, a registry of their inboxes, messages
//! that are socket events or the program's own, and a reply channel to wait for an answer.
//!
//! A server worker echoes in capitals; client workers ask it over TCP and report to main, which waits for all of them.
//! `cargo run --release --example opensocket_workers` ends by itself.

use anabranch::event::{Event, OpenSocket, Sockets};
use bytes::Bytes;
use clap::Parser;
use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

#[derive(Parser)]
struct Flags {
    /// Clients, each a worker.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=100))]
    clients: u64,
}

/// What comes into the inbox of a worker.
enum Message {
    /// Something happened to a socket of the worker's.
    Socket(Event<Bytes>),
    /// Another thread asks for the port of the server, and waits for the answer.
    Port(Sender<u16>),
    /// The end.
    Stop,
}

/// The workers by name and by number; the number is the uid of a worker's sockets.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Workers>>);

#[derive(Default)]
struct Workers {
    inboxes: Vec<Sender<Message>>,
    numbers: HashMap<String, usize>,
}

impl Registry {
    /// Starts a worker that has a name.
    fn start<F>(&self, name: &str, work: F) -> JoinHandle<()>
    where
        F: FnOnce(usize, Receiver<Message>) + Send + 'static,
    {
        let (sender, inbox) = mpsc::channel();
        let mut workers = self.0.lock().expect("nobody panics");
        let number = workers.inboxes.len();
        workers.inboxes.push(sender);
        workers.numbers.insert(name.to_owned(), number);
        let thread = thread::Builder::new().name(name.to_owned());
        thread.spawn(move || work(number, inbox)).expect("a thread")
    }

    fn send(&self, number: usize, message: Message) -> bool {
        let workers = self.0.lock().expect("nobody panics");
        workers.inboxes.get(number).is_some_and(|inbox| inbox.send(message).is_ok())
    }

    fn send_to(&self, name: &str, message: Message) -> bool {
        let number = self.0.lock().expect("nobody panics").numbers.get(name).copied();
        number.is_some_and(|number| self.send(number, message))
    }
}

fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let sockets = OpenSocket::new();
    let registry = Registry::default();
    let route = registry.clone();
    // Events of a worker that has ended go nowhere.
    sockets.run(move |_, event| {
        route.send(event.uid(), Message::Socket(event.into_send()));
    })?;
    let of_server = sockets.sockets().clone();
    let server = registry.start("server", move |number, inbox| serve(&of_server, number, &inbox));
    let (reply, port) = mpsc::channel();
    registry.send_to("server", Message::Port(reply));
    let port = port.recv().map_err(|_| io::Error::other("the server does not listen"))?;
    let (report, reports) = mpsc::channel();
    let clients: Vec<JoinHandle<()>> = (0..flags.clients)
        .map(|index| {
            let (sockets, report) = (sockets.sockets().clone(), report.clone());
            registry.start(&format!("client {index}"), move |number, inbox| {
                let answer = ask(&sockets, number, &inbox, port, &format!("hello {index}"));
                let _ = report.send(answer.unwrap_or_else(|| "no answer".into()));
            })
        })
        .collect();
    drop(report);
    let mut answers: Vec<String> = reports.iter().collect();
    answers.sort();
    answers.iter().for_each(|answer| println!("{answer}"));
    registry.send_to("server", Message::Stop);
    clients.into_iter().chain([server]).for_each(|worker| worker.join().expect("nobody panics"));
    Ok(())
}

/// The server: listens, and gives back what it gets in capitals.
fn serve(sockets: &Sockets, number: usize, inbox: &Receiver<Message>) {
    let Ok(listener) = sockets.listen(number, "127.0.0.1", 0, 64) else { return };
    sockets.start(number, listener);
    let mut who_asks = Vec::new();
    let mut port = None;
    for message in inbox {
        match message {
            Message::Stop => return,
            Message::Port(reply) => who_asks.push(reply),
            Message::Socket(Event::Open { id, .. }) if id == listener => {
                let info = sockets.socket_info().into_iter().find(|info| info.id == listener);
                port = info.and_then(|info| info.address).map(|address| address.port());
            }
            Message::Socket(Event::Accept { accepted, .. }) => sockets.start(number, accepted),
            Message::Socket(Event::Data { id, data, .. }) => {
                let _ = sockets.send(id, data.to_ascii_uppercase());
            }
            Message::Socket(_) => {}
        }
        if let Some(port) = port {
            who_asks.drain(..).for_each(|reply| reply.send(port).expect("main waits"));
        }
    }
}

/// A client: connects, asks, and waits for the whole answer.
fn ask(
    sockets: &Sockets,
    number: usize,
    inbox: &Receiver<Message>,
    port: u16,
    question: &str,
) -> Option<String> {
    let connection = sockets.connect(number, "127.0.0.1", port).ok()?;
    // It leaves as soon as the connection is there.
    sockets.send(connection, question.to_owned()).ok()?;
    let mut answer = Vec::new();
    while answer.len() < question.len() {
        match inbox.recv().ok()? {
            Message::Socket(Event::Data { data, .. }) => answer.extend_from_slice(&data),
            Message::Socket(Event::Close { .. } | Event::Error { .. }) | Message::Stop => return None,
            _ => {}
        }
    }
    sockets.close(number, connection);
    String::from_utf8(answer).ok()
}
