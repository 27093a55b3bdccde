//! The bare loop over epoll.

use super::ready::{self, LISTENER, Poller, Ready};
use super::{DATAGRAM_BUFFER, Job};
use crate::scenario::Role;
use crate::sys::{self, Batch, EDGE, Epoll, READ, WRITE};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

struct Bare {
    epoll: Epoll,
    listener: TcpListener,
}

impl Poller for Bare {
    type Stream = TcpStream;

    fn accept(&mut self) -> io::Result<TcpStream> {
        sys::accept(self.listener.as_raw_fd()).map(TcpStream::from)
    }

    fn register(&mut self, stream: &mut TcpStream, token: usize) -> io::Result<()> {
        self.epoll.add(stream.as_raw_fd(), token as u64, READ | WRITE | EDGE)
    }

    fn wait(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        let count = self.epoll.wait(-1)?;
        ready.extend((0..count).map(|at| {
            let (token, events) = self.epoll.event(at);
            Ready { token: token as usize, readable: events & !WRITE != 0, writable: events & WRITE != 0 }
        }));
        Ok(())
    }
}

pub fn serve(job: Job) -> io::Result<()> {
    if matches!(job.role, Role::Udp | Role::BulkUdp) {
        return serve_udp(job);
    }
    let (epoll, listener) = (Epoll::new()?, sys::listener(job.address)?);
    epoll.add(listener.as_raw_fd(), LISTENER as u64, READ | EDGE)?;
    job.ready();
    ready::serve(Bare { epoll, listener }, job)
}

fn serve_udp(job: Job) -> io::Result<()> {
    let (mut epoll, socket) = (Epoll::new()?, sys::udp_socket(job.address)?);
    epoll.add(socket.as_raw_fd(), 0, READ | EDGE)?;
    let mut batch = if job.role == Role::BulkUdp {
        sys::set_receive_offload(socket.as_raw_fd())?;
        Batch::new(16, 64 * 1024)
    } else {
        Batch::new(64, DATAGRAM_BUFFER)
    };
    job.ready();
    loop {
        epoll.wait(-1)?;
        loop {
            match batch.recv(socket.as_raw_fd()) {
                // Datagrams that there is no room for are lost, as datagrams are.
                Ok(count) => drop(batch.send_back(socket.as_raw_fd(), count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
    }
}
