//! Connecting: names are resolved off the loop, and addresses tried until one takes the connection.
#![forbid(unsafe_code)]

use super::command::Command;
use super::ids::SocketId;
use super::local::{CONNECT, Local};
use super::message::{Event, Opened, Trouble};
use super::meter::InfoKind;
use super::names;
use super::socket::{Socket, State};
use crate::shard::{Close, EndpointId, Event as Done, Kind, Stream, Waiter};
use socket2::Domain;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

impl Local {
    pub(super) fn connect(&mut self, id: SocketId, uid: usize, host: String, port: i32) {
        let row = self.open(id, uid, State::Connecting, None);
        if host.parse::<IpAddr>().is_ok() || port < 0 {
            let found = names::resolve_or_say(&self.shard.core.config.host, &host, port);
            return self.begin_to_try(row, found);
        }
        self.lookups.push_back((id, host, port));
        // Whoever connects and closes again and again while a look-up takes long does not fill the queue.
        if self.lookups.len() > 2 * self.sockets.len() {
            let lookups = std::mem::take(&mut self.lookups);
            self.lookups = lookups.into_iter().filter(|(id, ..)| self.row(*id).is_some()).collect();
        }
        self.look_up();
    }

    /// Hands look-ups to the pool of blocking threads, as many as it takes; each that ends makes room for the next.
    fn look_up(&mut self) {
        while let Some((id, host, port)) = self.lookups.pop_front() {
            // It may have been closed meanwhile.
            if self.row(id).is_none() {
                continue;
            }
            let (shared, index) = (Arc::clone(&self.shared), self.index);
            let again = (id, host.clone(), port);
            let job = Box::new(move || {
                let found = names::resolve_or_say(&shared.config.host, &host, port);
                shared.stations[index].commands.push(Command::Resolved { id, found });
            });
            if self.shard.core.run_blocking(job).is_err() {
                return self.lookups.push_front(again);
            }
        }
    }

    pub(super) fn on_resolved(&mut self, id: SocketId, found: Result<Vec<SocketAddr>, String>) {
        self.look_up();
        if let Some(row) = self.row(id) {
            self.begin_to_try(row, found);
        }
    }

    fn begin_to_try(&mut self, row: usize, found: Result<Vec<SocketAddr>, String>) {
        match found {
            Ok(mut addresses) => {
                addresses.reverse();
                self.sockets[row].rest().addresses = addresses;
                self.try_next(row, Trouble::SocketLimit);
            }
            Err(text) => self.fail(row, Trouble::System(text.into())),
        }
    }

    /// Tries the addresses that are left, the last of which is first; `trouble` is what the one before met.
    fn try_next(&mut self, row: usize, mut trouble: Trouble) {
        while let Some(address) = self.sockets[row].rest().addresses.last().copied() {
            match self.try_one(row, address) {
                Ok(endpoint) => return self.sockets[row].endpoint = Some(endpoint),
                Err(error) => trouble = Trouble::of(&error),
            }
            self.sockets[row].rest().addresses.pop();
        }
        self.fail(row, trouble);
    }

    fn try_one(&self, row: usize, address: SocketAddr) -> io::Result<EndpointId> {
        let core = &self.shard.core;
        let socket = core.config.host.stream_socket(Domain::for_address(address))?;
        socket.probe_idle()?;
        if self.sockets[row].nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        let stream = Stream::connecting_to(address.into(), Waiter::Tag(self.tag(CONNECT, row)));
        core.with(|state| state.open(socket, Kind::Stream(stream)))?
    }

    pub(super) fn on_connect(&mut self, row: usize, event: Done) {
        match event {
            Done::Connected => self.on_connected(row),
            Done::Failed(error) => {
                if let Some(endpoint) = self.sockets[row].endpoint.take() {
                    let _ = self.shard.core.with(|state| state.close(endpoint, Close::Abort, Waiter::None));
                }
                self.sockets[row].rest().addresses.pop();
                self.try_next(row, Trouble::of(&io::Error::from(error)));
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, row: usize) {
        let Some(address) = self.sockets[row].rest().addresses.last().copied() else { return };
        self.sockets[row].rest().addresses = Vec::new();
        self.sockets[row].state = State::Connected;
        let Socket { id, uid, .. } = self.sockets[row];
        self.meter(row).begin(id, InfoKind::Tcp, uid, Some(address));
        self.events.push_back(Event::Open { id, uid, how: Opened::Connected(address.ip()) });
        self.give_early(row);
        self.receive(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::event::{OpenSocket, Sockets, run};
    use crate::config::Config;
    use crate::driver::sys::host::Job;
    use socket2::SockRef;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Whether the peer is probed while nothing comes, small pieces leave at once, and other programs inherit it.
    fn options(sockets: &Sockets, id: SocketId) -> [bool; 3] {
        let mut options = None;
        run::on_shard(&sockets.shared, 0, |local| {
            let local = local.borrow();
            let row = local.row(id).unwrap();
            local.on_descriptor(row, |descriptor| {
                let socket = SockRef::from(descriptor);
                options = Some([
                    socket.keepalive().unwrap(),
                    socket.tcp_nodelay().unwrap(),
                    descriptor.is_inherited(),
                ]);
            });
        });
        options.unwrap()
    }

    #[test]
    fn connections_have_the_options_that_were_asked_for_also_before_the_name_was_resolved() {
        let sockets = OpenSocket::new();
        // Nobody listens at one of the addresses of the name, perhaps the first.
        let raw = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = raw.local_addr().unwrap().port();
        let listener = sockets.listen(1, "127.0.0.1", 0, -1).unwrap();
        let plain = sockets.connect(3, "127.0.0.1", port).unwrap();
        let quick = sockets.connect(3, "localhost", port).unwrap();
        sockets.nodelay(quick);
        let early = sockets.connect(3, "127.0.0.1", port).unwrap();
        sockets.nodelay(early);
        sockets.start(1, listener);
        let (sender, seen) = mpsc::channel();
        let run = sockets.run(move |sockets, event| match event {
            Event::Open { uid: 1, .. } => {
                let port = sockets.socket_info()[0].address.unwrap().port();
                sockets.connect(4, "127.0.0.1", port).unwrap();
            }
            Event::Open { id, uid: 3, .. } => sender.send((id, options(sockets, id))).unwrap(),
            Event::Accept { accepted, .. } => sender.send((0, options(sockets, accepted))).unwrap(),
            _ => {}
        });
        run.unwrap();
        let wait = |_| seen.recv_timeout(Duration::from_secs(30)).unwrap();
        let mut all: Vec<_> = (0..4).map(wait).collect();
        all.sort_unstable();
        let plainly = [true, false, false];
        let quickly = [true, true, false];
        assert_eq!(all, [(0, plainly), (plain, plainly), (quick, quickly), (early, quickly)]);
    }
    #[test]
    fn look_ups_of_closed_sockets_are_forgotten_while_the_resolver_takes_long() {
        const CONNECTS: usize = 1000;
        let few = |config: Config| {
            config.with_limits(|limits| (limits.blocking_threads_max, limits.blocking_queue_max) = (1, 1))
        };
        let sockets = OpenSocket::builder().config(few).build();
        let (open, gate) = mpsc::channel::<()>();
        let (sender, told) = mpsc::channel();
        let mut gate = Some(gate);
        let run = sockets.run(move |sockets, _| {
            let waiting = |job: Option<Job>| {
                let mut waiting = 0;
                run::on_shard(&sockets.shared, 0, |local| {
                    let local = local.borrow();
                    job.into_iter().for_each(|job| assert!(local.shard.core.run_blocking(job).is_ok()));
                    waiting = local.lookups.len();
                });
                waiting
            };
            let Some(gate) = gate.take() else { return };
            waiting(Some(Box::new(move || gate.recv().unwrap_or_default())));
            // One of them waits for the thread of the pool, and the rest for a place there.
            let kept = [(); 3].map(|()| sockets.connect(3, "localhost", 1).unwrap());
            for _ in 0..CONNECTS {
                let id = sockets.connect(3, "localhost", 1).unwrap();
                sockets.close(3, id);
                assert!(waiting(None) <= 2 * (kept.len() + 1));
            }
            kept.into_iter().for_each(|id| sockets.close(3, id));
            sender.send(()).unwrap();
        });
        run.unwrap();
        sockets.close(77, 12_345);
        told.recv_timeout(Duration::from_secs(30)).unwrap();
        drop(open);
    }
}
