//! A simulated machine without a scheduler, and peers on it that look as if they blocked.
//!
//! For tests that make their shards and drivers themselves, as those of this crate do: the same test body then runs on
//! the simulation as on the system. A shard or driver with the machine's configuration moves the world on whenever it
//! waits; so does a call of a [`Socket`] that must wait, while the shard stands still, as with blocking sockets in one
//! thread. A call that waits in a world in which nothing is planned any more fails as timed out.
#![forbid(unsafe_code)]

use super::{Faults, World};
use crate::config::Config;
use crate::driver::op::Direction;
use crate::driver::sys::os::libc;
use crate::driver::sys::sim::{self, Machine, OpenOptions, Settings, Simulation, World as Network};
use crate::driver::{Descriptor, Host};
use socket2::{Domain, SockAddr};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A simulated machine without a scheduler. One shard or driver at a time waits.
#[derive(Clone, Debug)]
pub struct Alone {
    machine: Machine,
}

/// A socket of the machine whose calls wait as those of the standard library do.
#[derive(Debug)]
pub struct Socket {
    descriptor: Descriptor,
    machine: Machine,
    nonblocking: AtomicBool,
}

/// A thread beside the shard; it acts whenever the world would go on, which waits for it.
#[derive(Debug)]
pub struct Thread<T> {
    machine: Machine,
    /// Set while the world still stands; that the system knows of the end may come later.
    ended: Arc<AtomicBool>,
    thread: thread::JoinHandle<T>,
}

impl Alone {
    /// A world of one machine, called `alone`.
    pub fn new(seed: u64, faults: Faults) -> Alone {
        let mut network = Network::new(seed, Settings::default(), faults);
        let host = network.add_host("alone", vec![IpAddr::from([10, 0, 0, 1])]);
        Alone { machine: Machine::new(&Simulation::new(network), host) }
    }

    /// The machine that a configuration's shards live on, if it is a simulated one.
    pub fn of(config: &Config) -> Option<Alone> {
        config.host.machine().map(|machine| Alone { machine: machine.clone() })
    }

    /// The world.
    pub fn world(&self) -> World {
        World { simulation: Arc::clone(&self.machine.simulation) }
    }

    /// A configuration whose shards live on this machine.
    pub fn config(&self, mut config: Config) -> Config {
        config.host = Host::simulated(self.machine.clone());
        config
    }

    /// The machine's clock.
    pub fn now(&self) -> Instant {
        self.machine.now()
    }

    /// Lets time pass while no shard runs.
    pub fn pass(&self, duration: Duration) {
        let end = self.machine.simulation.lock().world.now() + duration;
        while self.step(end) {}
        self.machine.simulation.lock().world.move_to(end);
    }

    /// A stream that neither listens nor is connected.
    pub fn stream(&self, domain: Domain) -> io::Result<Socket> {
        Ok(self.own(self.machine.stream_socket(domain)?))
    }

    /// A stream that is connected.
    pub fn connect(&self, to: &SockAddr) -> io::Result<Socket> {
        let socket = self.stream(to.domain())?;
        socket.connect(to)?;
        Ok(socket)
    }

    /// A stream that listens.
    pub fn listen(&self, address: &SockAddr, backlog: i32) -> io::Result<Socket> {
        let socket = self.stream(address.domain())?;
        socket.descriptor.bind(address)?;
        socket.descriptor.listen(backlog)?;
        Ok(socket)
    }

    /// A datagram socket with an address.
    pub fn datagrams(&self, address: SocketAddr) -> io::Result<Socket> {
        let address = SockAddr::from(address);
        let socket = self.own(self.machine.datagram_socket(address.domain())?);
        socket.descriptor.bind(&address)?;
        Ok(socket)
    }

    /// Two connected Unix streams.
    pub fn pair(&self) -> io::Result<(Socket, Socket)> {
        let (a, b) = self.machine.pair()?;
        Ok((self.own(a), self.own(b)))
    }

    /// A file that is open for reading, for writing or both; made if it is written and missing.
    pub fn file(&self, path: impl AsRef<Path>, read: bool, write: bool) -> io::Result<Descriptor> {
        let options = OpenOptions { read, write, create: write, ..OpenOptions::default() };
        self.machine.open_file_as(path.as_ref(), options)
    }

    /// Makes a file of these bytes.
    pub fn write_file(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let file = self.machine.open_file(path.as_ref(), true)?;
        let mut written = 0;
        while written < bytes.len() {
            written += count(file.write_at(&bytes[written..], written as u64))?;
        }
        Ok(())
    }

    /// Runs a closure beside the shard. It may wait for sockets of this machine and for nothing else that the shard's
    /// thread does.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Thread<T> {
        let machine = self.machine.clone();
        machine.simulation.admit();
        let ended = Arc::new(AtomicBool::new(false));
        let tells = Tells(Arc::clone(&ended));
        let thread = thread::spawn(move || {
            let _member = machine.simulation.join_company();
            let _tells = tells;
            work()
        });
        Thread { machine: self.machine.clone(), ended, thread }
    }

    fn own(&self, descriptor: Descriptor) -> Socket {
        Socket { descriptor, machine: self.machine.clone(), nonblocking: AtomicBool::new(false) }
    }

    /// Lets the next thing happen; false if nothing is planned by then.
    fn step(&self, end: Duration) -> bool {
        step(&self.machine, end)
    }
}

impl Socket {
    /// Connects it; waits until that has worked or failed.
    pub fn connect(&self, to: &SockAddr) -> io::Result<()> {
        match self.descriptor.connect(to) {
            0 => Ok(()),
            number if number == -libc::EINPROGRESS => {
                self.wait(|socket| if socket.is_ready(Direction::Write) { 0 } else { -libc::EAGAIN })?;
                count(self.descriptor.take_error()).map(drop)
            }
            number => Err(io::Error::from_raw_os_error(-number)),
        }
    }

    /// The next connection of a listener.
    pub fn accept(&self) -> io::Result<Socket> {
        let number = self.wait(sim::Descriptor::accept)?;
        let accepted = self.simulated().accepted(number as i32);
        Ok(Socket {
            descriptor: Descriptor::simulated(accepted),
            machine: self.machine.clone(),
            nonblocking: AtomicBool::new(false),
        })
    }

    /// The next datagram and its sender.
    pub fn recv_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut sender = None;
        let received = self.wait(|socket| match socket.receive_from(into) {
            Ok((bytes, _, from)) => {
                sender = Some(from);
                bytes as i32
            }
            Err(number) => -number,
        })?;
        Ok((received, sender.ok_or(ErrorKind::NotConnected)?))
    }

    /// Sends a datagram.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.wait(|socket| socket.send_to(bytes, Some(to)))
    }

    /// Ends one direction or both.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.turn();
        self.descriptor.shutdown(how)
    }

    /// Makes the close a reset.
    pub fn reset(self) -> io::Result<()> {
        self.turn();
        self.descriptor.set_linger_zero()
    }

    /// Whether calls that would wait fail instead.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// Gives it an address.
    pub fn bind(&self, address: &SockAddr) -> io::Result<()> {
        self.descriptor.bind(address)
    }

    /// Makes it a listener.
    pub fn listen(&self, backlog: i32) -> io::Result<()> {
        self.descriptor.listen(backlog)
    }

    /// The address of this side.
    pub fn local_addr(&self) -> io::Result<SockAddr> {
        self.descriptor.local_addr()
    }

    /// The address of the peer.
    pub fn peer_addr(&self) -> io::Result<SockAddr> {
        self.descriptor.peer_addr()
    }

    fn simulated(&self) -> &sim::Descriptor {
        self.descriptor.as_simulated().expect("a socket of a simulated machine")
    }

    /// A companion's calls wait for its turn.
    fn turn(&self) {
        if self.machine.simulation.is_companion() {
            self.machine.simulation.await_turn();
        }
    }

    /// Makes a call until it need not wait any more.
    fn wait(&self, mut call: impl FnMut(&sim::Descriptor) -> i32) -> io::Result<usize> {
        self.turn();
        let mut over = false;
        loop {
            let result = call(self.simulated());
            if result != -libc::EAGAIN || self.nonblocking.load(Ordering::Relaxed) {
                return count(result);
            }
            if over {
                let text = "the call waits for ever: nothing will happen any more in the simulated world";
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
            if self.machine.simulation.is_companion() {
                self.machine.simulation.await_next_turn();
            } else {
                // A companion may have acted all the same, so the call is made once more.
                over = !step(&self.machine, Duration::MAX);
            }
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.wait(|socket| socket.receive(into))
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(|socket| socket.send(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl From<Socket> for Descriptor {
    fn from(socket: Socket) -> Descriptor {
        socket.descriptor
    }
}

impl<T> Thread<T> {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Lets the world go on until the thread has ended.
    pub fn join(self) -> thread::Result<T> {
        self.machine.simulation.let_company_act(None);
        while !self.is_finished() {
            let over = !step(&self.machine, Duration::MAX);
            // What has just happened may be what it waits for.
            self.machine.simulation.let_company_act(None);
            assert!(
                !over || self.is_finished(),
                "a thread waits for ever: nothing will happen any more in the simulated world"
            );
        }
        self.thread.join()
    }
}

/// Says that a thread has ended, however it does.
struct Tells(Arc<AtomicBool>);

impl Drop for Tells {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Lets the companions act, then the next thing happen; false if nothing is planned by then.
fn step(machine: &Machine, end: Duration) -> bool {
    machine.simulation.let_company_act(None);
    let world = &mut machine.simulation.lock().world;
    world.has_activity() && world.advance(end)
}

/// A count or a negated error number.
fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{TcpStream, UdpSocket};
    use crate::sim::Fault;
    use crate::{Limits, Shard, offload, sleep, spawn, yield_now};

    fn alone(seed: u64) -> Alone {
        Alone::new(seed, Faults::none().with(Fault::LateCompletion, 0.1).with(Fault::ShortRead, 0.1))
    }

    fn shard(alone: &Alone) -> Shard {
        Shard::new(alone.config(Config::new())).unwrap()
    }

    fn connected(alone: &Alone) -> (Socket, Socket) {
        let listener = alone.listen(&SocketAddr::from(([127, 0, 0, 1], 0)).into(), 10).unwrap();
        let near = alone.connect(&listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap())
    }

    #[test]
    fn a_call_that_can_never_end_fails_instead_of_hanging() {
        let (near, far) = connected(&alone(1));
        assert_eq!((&near).read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        near.set_nonblocking(true);
        assert_eq!((&near).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        (&far).write_all(b"x").unwrap();
        near.set_nonblocking(false);
        assert_eq!((&near).read(&mut [0; 9]).unwrap(), 1);
    }

    #[test]
    fn a_shard_and_a_thread_beside_it_are_one_run_of_the_seed() {
        let run = |seed| {
            let alone = alone(seed);
            let shard = shard(&alone);
            let (ours, theirs) = connected(&alone);
            let peer = alone.spawn(move || {
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).unwrap();
                all.len()
            });
            shard.block_on(async {
                let mut stream = TcpStream::from_descriptor(ours.into()).unwrap();
                for _ in 0..50 {
                    stream.send(vec![7; 5000]).await.unwrap();
                }
                stream.close().await.unwrap();
            });
            assert_eq!(peer.join().unwrap(), 250_000);
            shard.finish().settled().unwrap();
            alone.machine.simulation.lock().world.log().hash()
        };
        for seed in 0..5 {
            assert_eq!(run(seed), run(seed), "seed {seed}");
        }
        assert_ne!(run(1), run(2));
    }

    /// Work that was due ended every wait at once, so that the time in which a shard ends never passed.
    #[test]
    fn a_shard_ends_though_work_beside_it_is_due_and_never_run() {
        for seed in 0..20 {
            let alone = Alone::new(seed, Faults::none());
            let shard = shard(&alone);
            let (ours, _theirs) = connected(&alone);
            shard.block_on(async {
                spawn(async { offload(|| ()).await }).detach();
                let mut stream = TcpStream::from_descriptor(ours.into()).unwrap();
                stream.send(vec![0; Limits::default().outbound_bytes_max]).await.unwrap();
                yield_now().await;
            });
            shard.finish().settled().unwrap();
        }
    }

    /// A shard with a task that is always ready never waits, and time passed only in waits.
    #[test]
    fn time_passes_for_a_shard_that_is_always_busy() {
        let alone = Alone::new(1, Faults::none());
        let config = Config::new().with_limits(|limits| limits.polls_per_turn_max = 8);
        let shard = Shard::new(alone.config(config)).unwrap();
        let start = alone.now();
        shard.block_on(async {
            let mut busy = spawn(async {
                loop {
                    yield_now().await;
                }
            });
            sleep(Duration::from_millis(5)).await;
            busy.abort();
        });
        assert!(alone.now() - start >= Duration::from_millis(5));
    }

    /// They overtook each other though nothing was rolled, which Linux does not do within a host.
    #[test]
    fn datagrams_keep_their_order() {
        let alone = Alone::new(3, Faults::none());
        let ours = alone.datagrams(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let to = ours.local_addr().unwrap().as_socket().unwrap();
        let peer = alone.datagrams(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        (0..100).for_each(|n| assert_eq!(peer.send_to(&[n], to).unwrap(), 1));
        let shard = shard(&alone);
        shard.block_on(async {
            let ours = UdpSocket::from_descriptor(ours.into()).unwrap();
            for n in 0..100 {
                assert_eq!(ours.recv_from().await.unwrap().lease[0], n);
            }
        });
    }
}
