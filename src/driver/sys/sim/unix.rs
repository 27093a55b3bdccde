//! Unix stream sockets: both ends are on one host, and what one sends is at once at the other.

#![forbid(unsafe_code)]

use super::core::HostId;
use super::file::path_of;
use super::socket::{Family, Thing, Told};
use super::tcp::take_front;
use super::{DescriptorId, Outcome, World};
use crate::driver::sys::os::libc;
use std::collections::VecDeque;
use std::net::Shutdown;

/// A socket that listens at a name.
#[derive(Debug)]
pub(super) struct UnixListener {
    pub(super) name: Vec<u8>,
    backlog: usize,
    /// The far ends of connections that wait to be accepted.
    queue: VecDeque<DescriptorId>,
}

/// One end of a connection.
#[derive(Debug, Default)]
pub(super) struct UnixStream {
    pub(super) name: Vec<u8>,
    pub(super) peer_name: Vec<u8>,
    pub(super) error: Option<i32>,
    /// The other end, while it is open.
    peer: Option<DescriptorId>,
    inbox: VecDeque<u8>,
    /// Whether nothing more will come, and whether nothing more may be sent.
    read_shut: bool,
    write_shut: bool,
}

impl UnixListener {
    pub(super) fn is_ready(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl UnixStream {
    pub(super) fn unread(&self) -> usize {
        self.inbox.len()
    }
}

impl World {
    /// Two connected sockets.
    pub(crate) fn socket_pair(&mut self, host: HostId) -> Outcome<(DescriptorId, DescriptorId)> {
        self.may_open(host)?;
        let near = self.open_new(host, Family::Unix, Thing::UnixStream(UnixStream::default()), true);
        if let Err(error) = self.may_open(host) {
            self.close(near)?;
            return Err(error);
        }
        let stream = UnixStream { peer: Some(near), ..UnixStream::default() };
        let far = self.open_new(host, Family::Unix, Thing::UnixStream(stream), true);
        self.unix_stream(near)?.peer = Some(far);
        self.core.note(host, format_args!("#{} #{} pair", near.0, far.0));
        Ok((near, far))
    }

    pub(super) fn unix_bind(&mut self, id: DescriptorId, name: &[u8]) -> Outcome<()> {
        let open = self.open(id)?;
        let host = open.host;
        match &open.thing {
            Thing::UnixFresh { name: None } if !name.is_empty() => {}
            _ => return Err(libc::EINVAL),
        }
        if is_abstract(name) {
            let names = &mut self.core.host_mut(host).names;
            if names.contains_key(name) {
                return Err(libc::EADDRINUSE);
            }
            names.insert(name.to_vec(), id);
        } else if !self.core.host_mut(host).files.add_socket(path_of(name), id) {
            return Err(libc::EADDRINUSE);
        }
        self.open_mut(id)?.thing = Thing::UnixFresh { name: Some(name.to_vec()) };
        self.note_at(id, format_args!("bind {}", String::from_utf8_lossy(name)));
        Ok(())
    }

    pub(super) fn unix_listen(&mut self, id: DescriptorId, backlog: usize) -> Outcome<()> {
        match &mut self.open_mut(id)?.thing {
            Thing::UnixListener(listener) => listener.backlog = backlog,
            thing @ Thing::UnixFresh { name: Some(_) } => {
                let Thing::UnixFresh { name: Some(name) } = thing else { return Err(libc::EINVAL) };
                let name = std::mem::take(name);
                *thing = Thing::UnixListener(UnixListener { name, backlog, queue: VecDeque::new() });
            }
            _ => return Err(libc::EINVAL),
        }
        self.note_at(id, format_args!("listen backlog {backlog}"));
        Ok(())
    }

    pub(super) fn unix_accept(&mut self, id: DescriptorId) -> Outcome<DescriptorId> {
        let host = self.open(id)?.host;
        if !matches!(&self.open(id)?.thing, Thing::UnixListener(listener) if listener.is_ready()) {
            return Err(libc::EAGAIN);
        }
        self.may_open(host)?;
        let Thing::UnixListener(listener) = &mut self.open_mut(id)?.thing else { return Err(libc::EINVAL) };
        let new = listener.queue.pop_front().ok_or(libc::EAGAIN)?;
        self.open_mut(new)?.counted = true;
        self.core.host_mut(host).descriptors += 1;
        self.core.note(host, format_args!("#{} accepted #{}", id.0, new.0));
        Ok(new)
    }

    pub(super) fn unix_connect(&mut self, id: DescriptorId, name: &[u8]) -> Outcome<()> {
        let open = self.open(id)?;
        let host = open.host;
        let Thing::UnixFresh { name: own } = &open.thing else { return Err(libc::EINVAL) };
        let own = own.clone().unwrap_or_default();
        let listener = self.unix_listener_at(host, name)?;
        let Some(Thing::UnixListener(waiting)) = self.table.get(&listener.0).map(|open| &open.thing) else {
            return Err(libc::ECONNREFUSED);
        };
        // Like Linux, one more than the backlog says.
        if waiting.queue.len() > waiting.backlog {
            return Err(libc::EAGAIN);
        }
        let far = UnixStream {
            name: name.to_vec(),
            peer_name: own.clone(),
            peer: Some(id),
            ..UnixStream::default()
        };
        let far = self.open_new(host, Family::Unix, Thing::UnixStream(far), false);
        let near =
            UnixStream { name: own, peer_name: name.to_vec(), peer: Some(far), ..UnixStream::default() };
        self.open_mut(id)?.thing = Thing::UnixStream(near);
        if let Thing::UnixListener(listener) = &mut self.open_mut(listener)?.thing {
            listener.queue.push_back(far);
        }
        self.core.note(host, format_args!("#{} connected #{}", id.0, far.0));
        self.announce(listener);
        self.announce(id);
        Ok(())
    }

    pub(super) fn unix_is_ready(&self, stream: &UnixStream, read: bool) -> bool {
        if stream.error.is_some() {
            return true;
        }
        if read {
            return stream.unread() > 0 || stream.read_shut || stream.peer.is_none();
        }
        let Some(peer) = stream.peer.and_then(|peer| self.table.get(&peer.0)) else { return true };
        let Thing::UnixStream(peer) = &peer.thing else { return true };
        let capacity = self.core.settings.unix_buffer;
        stream.write_shut || peer.read_shut || has_room(capacity, peer.unread())
    }

    pub(super) fn unix_receive(&mut self, id: DescriptorId, into: &mut [u8]) -> Outcome<usize> {
        let capacity = self.core.settings.unix_buffer;
        let stream = self.unix_stream(id)?;
        let before = stream.unread();
        let result = stream.receive(into);
        let freed = !has_room(capacity, before) && has_room(capacity, stream.unread());
        let peer = stream.peer.filter(|_| freed);
        if result != Err(libc::EAGAIN) {
            self.note_at(id, format_args!("receive {}", Told(&result)));
        }
        if let Some(peer) = peer {
            self.announce(peer);
        }
        result
    }

    pub(super) fn unix_send(&mut self, id: DescriptorId, bytes: &[u8]) -> Outcome<usize> {
        let capacity = self.core.settings.unix_buffer;
        let stream = self.unix_stream(id)?;
        if let Some(error) = stream.error.take() {
            return Err(error);
        }
        let peer = stream.peer.filter(|_| !stream.write_shut).ok_or(libc::EPIPE)?;
        let there = self.unix_stream(peer)?;
        if there.read_shut {
            return Err(libc::EPIPE);
        }
        let count = bytes.len().min(capacity.saturating_sub(there.unread()));
        if count == 0 && !bytes.is_empty() {
            return Err(libc::EAGAIN);
        }
        there.inbox.extend(&bytes[..count]);
        self.note_at(id, format_args!("send {} {count}", bytes.len()));
        if count > 0 {
            self.announce(peer);
        }
        Ok(count)
    }

    pub(super) fn unix_shutdown(&mut self, id: DescriptorId, how: Shutdown) -> Outcome<()> {
        let stream = self.unix_stream(id)?;
        let (read, write) = (how != Shutdown::Write, how != Shutdown::Read);
        stream.read_shut |= read;
        stream.write_shut |= write;
        let peer = stream.peer;
        self.announce(id);
        if let Some(peer) = peer {
            let there = self.unix_stream(peer)?;
            there.read_shut |= write;
            there.write_shut |= read;
            self.announce(peer);
        }
        Ok(())
    }

    /// An end is gone.
    pub(super) fn unix_close(&mut self, stream: UnixStream) {
        let Some(peer) = stream.peer else { return };
        let Ok(there) = self.unix_stream(peer) else { return };
        there.peer = None;
        if stream.unread() > 0 {
            there.error = Some(libc::ECONNRESET);
        }
        self.announce(peer);
    }

    pub(super) fn unix_close_listener(&mut self, host: HostId, listener: UnixListener) {
        for waiting in listener.queue {
            if let Some(open) = self.table.remove(&waiting.0) {
                if let Thing::UnixStream(stream) = open.thing {
                    // Linux tells who waited that the connection was reset.
                    let peer = stream.peer;
                    self.unix_close(stream);
                    if let Some(Ok(there)) = peer.map(|peer| self.unix_stream(peer)) {
                        there.error = Some(libc::ECONNRESET);
                    }
                }
            }
        }
        self.forget_name(host, Some(&listener.name));
    }

    /// An abstract name is free again; a path stays until somebody removes it.
    pub(super) fn forget_name(&mut self, host: HostId, name: Option<&[u8]>) {
        if let Some(name) = name.filter(|name| is_abstract(name)) {
            self.core.host_mut(host).names.remove(name);
        }
    }

    fn unix_stream(&mut self, id: DescriptorId) -> Outcome<&mut UnixStream> {
        match &mut self.open_mut(id)?.thing {
            Thing::UnixStream(stream) => Ok(stream),
            _ => Err(libc::EINVAL),
        }
    }

    fn unix_listener_at(&self, host: HostId, name: &[u8]) -> Outcome<DescriptorId> {
        let here = self.core.host(host);
        if is_abstract(name) {
            return here.names.get(name).copied().ok_or(libc::ECONNREFUSED);
        }
        here.files.socket_at(&path_of(name))
    }
}

impl UnixStream {
    fn receive(&mut self, into: &mut [u8]) -> Outcome<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if !self.inbox.is_empty() {
            return Ok(take_front(&mut self.inbox, into));
        }
        match self.error.take() {
            Some(error) => Err(error),
            None if self.read_shut || self.peer.is_none() => Ok(0),
            None => Err(libc::EAGAIN),
        }
    }
}

fn is_abstract(name: &[u8]) -> bool {
    name.first() == Some(&0)
}

fn has_room(capacity: usize, used: usize) -> bool {
    capacity.saturating_sub(used) >= capacity.div_ceil(3)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Pair;
    use super::super::{Fault, Faults, Kind, OpenOptions, Random, SimAddress};
    use super::*;
    use std::path::Path;

    fn name(path: &str) -> SimAddress {
        SimAddress::Unix(path.as_bytes().to_vec())
    }

    fn quiet() -> Pair {
        Pair::new(1, Faults::none())
    }

    fn fresh(pair: &mut Pair) -> DescriptorId {
        pair.world.socket(pair.a, Family::Unix, Kind::Stream).unwrap()
    }

    fn listening(pair: &mut Pair, path: &str, backlog: usize) -> DescriptorId {
        let id = fresh(pair);
        pair.world.bind(id, &name(path)).unwrap();
        pair.world.listen(id, backlog).unwrap();
        id
    }

    #[test]
    fn a_path_must_be_there_and_be_listened_at_and_stays_until_removed() {
        let mut pair = quiet();
        let client = fresh(&mut pair);
        assert_eq!(pair.world.connect(client, &name("/run/s")), Err(libc::ENOENT));
        let listener = listening(&mut pair, "/run/s", 1);
        assert_eq!(pair.world.connect(client, &name("/run/s")), Ok(()));
        assert_eq!(pair.world.accept(listener).map(|_| ()), Ok(()));
        pair.world.close(listener).unwrap();
        let late = fresh(&mut pair);
        assert_eq!(pair.world.connect(late, &name("/run/s")), Err(libc::ECONNREFUSED));
        assert_eq!(pair.world.bind(late, &name("/run/s")), Err(libc::EADDRINUSE));
        let options = OpenOptions { read: true, ..OpenOptions::default() };
        assert_eq!(pair.world.open_file(pair.a, Path::new("/run/s"), options), Err(libc::ENXIO));
        pair.world.remove(pair.a, Path::new("/run/s")).unwrap();
        assert_eq!(pair.world.bind(late, &name("/run/s")), Ok(()));
        let there = pair.world.socket(pair.b, Family::Unix, Kind::Stream).unwrap();
        assert_eq!(pair.world.connect(there, &name("/run/s")), Err(libc::ENOENT));
    }

    #[test]
    fn an_abstract_name_is_free_when_its_socket_is_closed() {
        let mut pair = quiet();
        let listener = listening(&mut pair, "\0name", 1);
        let other = fresh(&mut pair);
        assert_eq!(pair.world.bind(other, &name("\0name")), Err(libc::EADDRINUSE));
        pair.world.close(listener).unwrap();
        assert_eq!(pair.world.connect(other, &name("\0name")), Err(libc::ECONNREFUSED));
        assert_eq!(pair.world.bind(other, &name("\0name")), Ok(()));
    }

    #[test]
    fn a_full_backlog_says_so_and_closing_resets_who_waits() {
        let mut pair = quiet();
        let listener = listening(&mut pair, "/s", 1);
        let clients = [(); 3].map(|()| fresh(&mut pair));
        let results = clients.map(|client| pair.world.connect(client, &name("/s")));
        assert_eq!(results, [Ok(()), Ok(()), Err(libc::EAGAIN)]);
        assert_eq!(pair.world.descriptors_open(pair.a), 4);
        pair.world.close(listener).unwrap();
        assert_eq!(pair.receive(clients[0]), Err(libc::ECONNRESET));
        assert_eq!(pair.receive(clients[0]).unwrap(), b"");
    }

    #[test]
    fn closing_ends_the_stream_or_resets_it_if_bytes_were_unread() {
        let mut pair = quiet();
        let (near, far) = pair.world.socket_pair(pair.a).unwrap();
        pair.world.send(near, b"bye").unwrap();
        pair.world.close(near).unwrap();
        assert_eq!(pair.world.send(far, b"x"), Err(libc::EPIPE));
        assert_eq!(pair.receive(far).unwrap(), b"bye");
        assert_eq!(pair.receive(far).unwrap(), b"");
        let (near, far) = pair.world.socket_pair(pair.a).unwrap();
        pair.world.send(near, b"unread").unwrap();
        pair.world.send(far, b"last").unwrap();
        pair.world.close(far).unwrap();
        assert_eq!(pair.receive(near).unwrap(), b"last");
        assert_eq!(pair.receive(near), Err(libc::ECONNRESET));
        assert_eq!(pair.receive(near).unwrap(), b"");
    }

    #[test]
    fn each_direction_can_be_shut_by_itself() {
        let mut pair = quiet();
        let (near, far) = pair.world.socket_pair(pair.a).unwrap();
        pair.world.send(near, b"x").unwrap();
        pair.world.shutdown(near, Shutdown::Write).unwrap();
        assert_eq!(pair.world.send(near, b"y"), Err(libc::EPIPE));
        assert_eq!(pair.receive(far).unwrap(), b"x");
        assert_eq!(pair.receive(far).unwrap(), b"");
        pair.world.send(far, b"back").unwrap();
        assert_eq!(pair.receive(near).unwrap(), b"back");
        pair.world.shutdown(near, Shutdown::Read).unwrap();
        assert_eq!(pair.world.send(far, b"z"), Err(libc::EPIPE));
    }

    #[test]
    fn bytes_come_in_order_and_a_full_one_is_announced_when_it_has_room() {
        for seed in 0..50 {
            let faults = Faults::none().with(Fault::ShortRead, 0.3).with(Fault::ShortWrite, 0.3);
            let mut pair = Pair::new(seed, faults);
            let (near, far) = pair.world.socket_pair(pair.a).unwrap();
            let node = pair.world.add_node(pair.a);
            pair.world.watch(near, node);
            let (mut sent, mut received) = (0_usize, 0_usize);
            let mut random = Random::new(seed);
            let (mut ready, mut blocked) = (Vec::new(), false);
            while received < 300_000 {
                pair.world.take_ready(node, &mut ready);
                blocked &= ready.drain(..).count() == 0;
                while !blocked {
                    let length = random.between(1..=50_000) as usize;
                    let bytes: Vec<u8> = (sent..sent + length).map(|place| (place % 251) as u8).collect();
                    match pair.world.send(near, &bytes) {
                        Ok(count) => sent += count,
                        Err(error) => blocked = error == libc::EAGAIN,
                    }
                }
                for byte in pair.receive(far).expect("a blocked sender means bytes to receive") {
                    assert_eq!(usize::from(byte), received % 251);
                    received += 1;
                }
            }
            assert_eq!(pair.world.bytes_queued(far), sent - received);
        }
    }
}
