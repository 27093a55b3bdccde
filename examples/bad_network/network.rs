//! Two network namespaces with one device each, and the relay between them.
//!
//! A namespace belongs to the thread that made it and to the file that names it, so nothing is left behind when the
//! program ends, however it ends.
#![forbid(unsafe_code)]

use crate::relay::{self, Faults, Tally};
use crate::tun;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const DEVICE: &str = "bad0";
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];

/// Two places with a bad network between them, until it is dropped.
pub(crate) struct Network {
    pub(crate) sides: [Side; 2],
    pub(crate) tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    relay: Option<thread::JoinHandle<io::Result<()>>>,
}

/// One place.
pub(crate) struct Side {
    pub(crate) address: Ipv4Addr,
    namespace: File,
}

impl Network {
    /// # Errors
    ///
    /// Without the right to make namespaces and devices, or without the `ip` program.
    pub(crate) fn new(faults: Faults) -> io::Result<Network> {
        let [near, far] = ADDRESSES;
        let (one, first) = side(near, far)?;
        let (two, second) = side(far, near)?;
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let (seen, count) = (Arc::clone(&stop), Arc::clone(&tally));
        let relay = thread::spawn(move || relay::run(&[first, second], faults, &seen, &count));
        Ok(Network { sides: [one, two], tally, stop, relay: Some(relay) })
    }

    /// Stops the relay.
    ///
    /// # Errors
    ///
    /// What it failed with.
    pub(crate) fn end(mut self) -> io::Result<Arc<Tally>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.relay.take().map(thread::JoinHandle::join);
        ended.unwrap_or(Ok(Ok(()))).map_err(|_| io::Error::other("the relay panicked"))??;
        Ok(Arc::clone(&self.tally))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // After `end` there is nothing to wait for.
        let _ = self.relay.take().map(thread::JoinHandle::join);
    }
}

impl Side {
    /// Moves the calling thread to this place. Its sockets are there from now on.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.namespace, CloneFlags::CLONE_NEWNET)?)
    }

    /// What to put before a command so that it runs at this place.
    pub(crate) fn prefix(&self) -> String {
        format!("nsenter --net=/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }
}

/// Makes a place and its device, on a thread of its own that the caller's place does not change with.
fn side(address: Ipv4Addr, peer: Ipv4Addr) -> io::Result<(Side, File)> {
    let made = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let device = tun::open(DEVICE)?;
        ip(&format!("addr add {address} peer {peer} dev {DEVICE}"))?;
        ip(&format!("link set {DEVICE} up mtu 1400"))?;
        ip("link set lo up")?;
        Ok((Side { address, namespace }, device))
    });
    made.join().map_err(|_| io::Error::other("setting up a namespace panicked"))?
}

/// Runs the `ip` program in the namespace of the calling thread.
fn ip(arguments: &str) -> io::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
