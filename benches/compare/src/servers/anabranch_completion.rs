//! anabranch, completion API, on either backend.

use super::anabranch_async::config;
use super::outbox::Messages;
use super::{Job, PUBLISHER, SUBSCRIBER};
use crate::scenario::Role;
use anabranch::{Backend, Broadcast, Close, Completion, EndpointId, Event, Full, Lease, Payload, Shard};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::io;

/// What a tag means here.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const WRITABLE: u64 = 3;
const CLOSE: u64 = 4;
const DATAGRAM: u64 = 5;
const DATAGRAM_SENT: u64 = 6;

/// A connection with so many payloads that found no room is given up.
const HELD_MAX: usize = 1024;

pub fn serve(job: Job, backend: Backend) -> io::Result<()> {
    let shard = Shard::new(config(job.role, backend))?;
    if matches!(job.role, Role::Udp | Role::BulkUdp) {
        let socket = shard.bind_udp(job.address, false)?;
        shard.submit_recv_from_multi(socket, DATAGRAM)?;
    } else {
        let listener = shard.listen(job.address)?;
        shard.submit_accept_multi(listener, ACCEPT)?;
    }
    job.ready();
    let mut server = Server { held: HashMap::new(), publishers: HashMap::new(), members: shard.broadcast() };
    let fan_out = job.role == Role::FanOut;
    loop {
        shard.poll(None, |completion| server.on_completion(&shard, fan_out, completion))?;
    }
}

struct Server {
    /// Payloads that found no room.
    held: HashMap<EndpointId, VecDeque<Payload>>,
    publishers: HashMap<EndpointId, Messages>,
    members: Broadcast,
}

impl Server {
    fn on_completion(&mut self, shard: &Shard, fan_out: bool, completion: Completion) {
        let connection = completion.endpoint;
        match (completion.tag, completion.event) {
            (RECEIVE, Event::Received(bytes)) if !fan_out => self.echo(shard, connection, bytes.into()),
            (RECEIVE, Event::Received(bytes)) => self.on_member(shard, connection, &bytes),
            (WRITABLE, Event::Writable) => self.resume(shard, connection),
            (DATAGRAM, Event::ReceivedFrom { lease, from, .. }) => {
                // A datagram for which there is no room is lost, as datagrams are.
                let _ = shard.submit_send_to(connection, lease, from, DATAGRAM_SENT);
            }
            (ACCEPT, Event::Accepted(connection)) => drop(shard.submit_recv_multi(connection, RECEIVE)),
            (RECEIVE, Event::End) => self.close(shard, connection, Close::Flush),
            (RECEIVE | WRITABLE, Event::Failed(_)) => self.close(shard, connection, Close::Abort),
            _ => {}
        }
    }

    fn echo(&mut self, shard: &Shard, connection: EndpointId, bytes: Payload) {
        if let Some(held) = self.held.get_mut(&connection) {
            held.push_back(bytes);
            if held.len() > HELD_MAX {
                self.close(shard, connection, Close::Abort);
            }
            return;
        }
        match shard.send(connection, bytes) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.close(shard, connection, Close::Abort),
            Err(Full(bytes)) => {
                self.held.insert(connection, VecDeque::from([bytes]));
                let _ = shard.submit_writable(connection, WRITABLE);
            }
        }
    }

    fn resume(&mut self, shard: &Shard, connection: EndpointId) {
        let Some(mut held) = self.held.remove(&connection) else { return };
        while let Some(bytes) = held.pop_front() {
            if let Err(Full(bytes)) = shard.send(connection, bytes) {
                held.push_front(bytes);
                self.held.insert(connection, held);
                let _ = shard.submit_writable(connection, WRITABLE);
                return;
            }
        }
    }

    fn close(&mut self, shard: &Shard, connection: EndpointId, how: Close) {
        self.held.remove(&connection);
        self.publishers.remove(&connection);
        self.members.leave(connection);
        // It may have ended by itself meanwhile.
        let _ = shard.submit_close(connection, how, CLOSE);
    }

    fn on_member(&mut self, shard: &Shard, connection: EndpointId, bytes: &Lease) {
        if let Some(messages) = self.publishers.get_mut(&connection) {
            drop(self.members.send_all(messages.feed(bytes)));
            return;
        }
        match bytes[0] {
            PUBLISHER => drop(self.publishers.insert(connection, Messages::default())),
            SUBSCRIBER => drop(self.members.join(connection)),
            _ => return self.close(shard, connection, Close::Abort),
        }
        let _ = shard.send(connection, Bytes::copy_from_slice(&bytes[..1]));
    }
}
