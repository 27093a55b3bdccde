//! An event loop over mio.

use super::ready::{self, LISTENER, Poller, Ready};
use super::{DATAGRAM_BUFFER, Job};
use crate::scenario::Role;
use crate::sys;
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};
use std::io;

struct Loop {
    poll: Poll,
    events: Events,
    listener: TcpListener,
}

impl Poller for Loop {
    type Stream = TcpStream;

    fn accept(&mut self) -> io::Result<TcpStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    fn register(&mut self, stream: &mut TcpStream, token: usize) -> io::Result<()> {
        self.poll.registry().register(stream, Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    fn wait(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        wait(&mut self.poll, &mut self.events)?;
        ready.extend(self.events.iter().map(|event| Ready {
            token: event.token().0,
            readable: event.is_readable(),
            writable: event.is_writable(),
        }));
        Ok(())
    }
}

fn wait(poll: &mut Poll, events: &mut Events) -> io::Result<()> {
    match poll.poll(events, None) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        outcome => outcome,
    }
}

pub fn serve(job: Job) -> io::Result<()> {
    if matches!(job.role, Role::Udp | Role::BulkUdp) {
        return serve_udp(job);
    }
    let (poll, events) = (Poll::new()?, Events::with_capacity(1024));
    let mut listener = TcpListener::from_std(sys::listener(job.address)?);
    poll.registry().register(&mut listener, Token(LISTENER), Interest::READABLE)?;
    job.ready();
    ready::serve(Loop { poll, events, listener }, job)
}

fn serve_udp(job: Job) -> io::Result<()> {
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(16));
    let mut socket = UdpSocket::from_std(sys::udp_socket(job.address)?);
    poll.registry().register(&mut socket, Token(0), Interest::READABLE)?;
    let mut buffer = vec![0; DATAGRAM_BUFFER];
    job.ready();
    loop {
        wait(&mut poll, &mut events)?;
        loop {
            match socket.recv_from(&mut buffer) {
                // A datagram that there is no room for is lost, as datagrams are.
                Ok((n, from)) => drop(socket.send_to(&buffer[..n], from)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
    }
}
