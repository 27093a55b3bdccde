//! The completion API: submissions with tags, and a poll. No futures, no tasks needed.
//!
//! Each accepted submission gets exactly one completion that is its last (`more` is false). Completions are
//! delivered by [`Shard::poll`] only, never from inside a submission, and the callback may submit again.
#![forbid(unsafe_code)]

use super::tcp::{inet, listen};
use super::time::far;
use super::udp::{SendOptions, ask, socket};
use crate::buf::Payload;
use crate::driver::Descriptor;
use crate::driver::datagram::Outgoing;
use crate::error::{Error, Full};
use crate::shard::{
    Ask, Close, Common, Completion, EndpointId, Engine, Entered, Event, Kind, Listener, Shard, State, Stream,
    Timer, Waiter,
};
use socket2::Domain;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

impl Shard {
    fn state<R>(&self, work: impl FnOnce(&mut State) -> R) -> Result<R, Error> {
        self.core.with(work)
    }

    /// Listens on a TCP address.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn listen(&self, address: SocketAddr) -> io::Result<EndpointId> {
        self.open_listener(listen(&self.core.config.host, address, false)?)
    }

    /// Listens on a TCP address together with others (SO_REUSEPORT): the kernel spreads connections over them.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound; `Unsupported` on Windows, which knows no such listeners.
    pub fn listen_shared(&self, address: SocketAddr) -> io::Result<EndpointId> {
        self.open_listener(listen(&self.core.config.host, address, true)?)
    }

    fn open_listener(&self, socket: Descriptor) -> io::Result<EndpointId> {
        self.state(|state| state.open_listener(Some(socket), Listener::new(None)))?
    }

    /// Binds a UDP socket; `shared` sets SO_REUSEPORT.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub fn bind_udp(&self, address: SocketAddr, shared: bool) -> io::Result<EndpointId> {
        let socket = socket(&self.core.config.host, address, shared)?;
        self.state(|state| state.open(socket, Kind::Datagrams(Box::default())))?
    }

    /// Takes a connected stream socket under the shard's care.
    ///
    /// # Errors
    ///
    /// If the shard has [`Limits::endpoints_max`](crate::Limits) endpoints.
    pub fn adopt_stream(&self, socket: impl Into<Descriptor>) -> io::Result<EndpointId> {
        self.state(|state| state.open(socket.into(), Kind::Stream(Stream::default())))?
    }

    /// The local address of an endpoint.
    ///
    /// # Errors
    ///
    /// If it is closed.
    pub fn local_addr(&self, id: EndpointId) -> io::Result<SocketAddr> {
        super::stream::on_socket(&self.core, id, |socket| inet(socket.local_addr()?))
    }

    /// The address of a connection's peer.
    ///
    /// # Errors
    ///
    /// If it is closed.
    pub fn peer_addr(&self, id: EndpointId) -> io::Result<SocketAddr> {
        super::stream::on_socket(&self.core, id, |socket| inet(socket.peer_addr()?))
    }

    /// Accepts one connection: [`Event::Accepted`](crate::Event::Accepted).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such listener.
    pub fn submit_accept(&self, listener: EndpointId, tag: u64) -> Result<(), Error> {
        self.accept(listener, tag, false)
    }

    /// Accepts connections until the listener closes: an [`Event::Accepted`](crate::Event::Accepted) each, with `more` set.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such listener.
    pub fn submit_accept_multi(&self, listener: EndpointId, tag: u64) -> Result<(), Error> {
        self.accept(listener, tag, true)
    }

    fn accept(&self, id: EndpointId, tag: u64, standing: bool) -> Result<(), Error> {
        self.state(|state| {
            let begun = state.listener_mut(id, |listener, core, engine| {
                listener.submit_accept(core, engine, tag, standing)
            });
            // What waited is told now, so that nothing done next can end the submission before it.
            state.settle_arrivals();
            begun
        })?
    }

    /// Stops accepting, for good: waiting accepts end with [`Error::Stopped`] when every connection that had been
    /// accepted was given out. Accepts that are submitted later get what is left in the same way. The socket stays
    /// open until the listener is closed; see [`TcpListener::stop_accepting`](crate::net::TcpListener::stop_accepting).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such listener.
    pub fn stop_accepting(&self, listener: EndpointId) -> Result<(), Error> {
        self.state(|state| state.listener_mut(listener, |listener, core, engine| listener.end(core, engine)))?
    }

    /// Accepts no more until [`resume_accepting`](Self::resume_accepting); see
    /// [`TcpListener::pause_accepting`](crate::net::TcpListener::pause_accepting).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such listener.
    pub fn pause_accepting(&self, listener: EndpointId) -> Result<(), Error> {
        self.state(|state| state.listener_mut(listener, |listener, _, engine| listener.hold(engine)))?
    }

    /// Accepts again.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such listener.
    pub fn resume_accepting(&self, listener: EndpointId) -> Result<(), Error> {
        self.state(|state| {
            state.listener_mut(listener, |listener, core, engine| listener.resume(core, engine))
        })?
    }

    /// Connects to a TCP address: [`Event::Connected`](crate::Event::Connected). The endpoint may be used for sending at once; the bytes
    /// leave when it is connected.
    ///
    /// # Errors
    ///
    /// If no socket can be had.
    pub fn submit_connect(&self, address: SocketAddr, tag: u64) -> io::Result<EndpointId> {
        let socket = self.core.config.host.stream_socket(Domain::for_address(address))?;
        let _ = socket.set_tcp_nodelay(true);
        let stream = Stream::connecting_to(address.into(), Waiter::Tag(tag));
        self.state(|state| state.open(socket, Kind::Stream(stream)))?
    }

    /// Receives once: [`Event::Received`](crate::Event::Received), or [`Event::End`](crate::Event::End). One receive at a time waits on a connection.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such connection; [`Error::Io`] of kind `AlreadyExists` if a receive waits.
    pub fn submit_recv(&self, id: EndpointId, tag: u64) -> Result<(), Error> {
        self.recv(id, Waiter::Tag(tag))
    }

    /// Receives until the stream ends: an [`Event::Received`](crate::Event::Received) each time, with `more` set, at last
    /// [`Event::End`](crate::Event::End) or [`Event::Failed`](crate::Event::Failed).
    ///
    /// # Errors
    ///
    /// As [`submit_recv`](Self::submit_recv).
    pub fn submit_recv_multi(&self, id: EndpointId, tag: u64) -> Result<(), Error> {
        self.recv(id, Waiter::Standing(tag))
    }

    fn recv(&self, id: EndpointId, waiter: Waiter) -> Result<(), Error> {
        let free = self.state(|state| {
            state.stream(id, |stream, core, engine| {
                if core.is_open() { Ok(stream.submit_read(core, engine, waiter)) } else { Err(Error::Closed) }
            })
        })???;
        if free { Ok(()) } else { Err(Error::Io(io::ErrorKind::AlreadyExists.into())) }
    }

    /// Sends a payload, whole, after what was submitted before: [`Event::Sent`](crate::Event::Sent) when all of it is with the kernel.
    ///
    /// # Errors
    ///
    /// Outside: [`Full`], with the payload, above [`Limits::outbound_bytes_max`](crate::Limits). Inside: the error of the
    /// connection.
    pub fn submit_send(
        &self,
        id: EndpointId,
        payload: impl Into<Payload>,
        tag: u64,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        self.queue(id, payload.into(), Some(tag))
    }

    /// As [`submit_send`](Self::submit_send), without a completion. What keeps the bytes from leaving ends the
    /// connection, which its receives report, and further sends.
    ///
    /// # Errors
    ///
    /// As [`submit_send`](Self::submit_send).
    pub fn send(
        &self,
        id: EndpointId,
        payload: impl Into<Payload>,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        self.queue(id, payload.into(), None)
    }

    fn queue(
        &self,
        id: EndpointId,
        payload: Payload,
        tag: Option<u64>,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        let sent = self
            .state(|state| state.stream(id, |stream, core, engine| stream.send(core, engine, payload, tag)));
        match sent {
            Ok(Ok(sent)) => sent,
            Ok(Err(error)) | Err(error) => Ok(Err(error)),
        }
    }

    /// Waits for room after a [`Full`]: [`Event::Writable`](crate::Event::Writable), or
    /// [`Event::Failed`](crate::Event::Failed). One such submission at a time waits on a connection.
    ///
    /// # Errors
    ///
    /// The error of the connection, or [`Error::Io`] of kind `AlreadyExists` if another one waits.
    pub fn submit_writable(&self, id: EndpointId, tag: u64) -> Result<(), Error> {
        let free = self.state(|state| {
            state.stream(id, |stream, core, engine| stream.submit_writable(core, engine, tag))
        })???;
        if free { Ok(()) } else { Err(Error::Io(io::ErrorKind::AlreadyExists.into())) }
    }

    /// Sends a datagram: [`Event::Sent`](crate::Event::Sent), or [`Event::Failed`](crate::Event::Failed).
    ///
    /// # Errors
    ///
    /// Outside: [`Full`], with the payload, above [`Limits::datagrams_outbound_max`](crate::Limits). Inside: if the
    /// socket is closed or the payload longer than a datagram can be.
    pub fn submit_send_to(
        &self,
        id: EndpointId,
        payload: impl Into<Payload>,
        to: SocketAddr,
        tag: u64,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        self.transmit(id, Outgoing::new(payload.into(), Some(to)), tag)
    }

    /// Sends a payload as datagrams of `segment_bytes` each; see
    /// [`UdpSocket::send_segments`](crate::net::UdpSocket::send_segments). One event, as for
    /// [`submit_send_to`](Self::submit_send_to); it tells the first failure, if any.
    ///
    /// # Errors
    ///
    /// As [`submit_send_to`](Self::submit_send_to).
    pub fn submit_send_segments(
        &self,
        id: EndpointId,
        payload: impl Into<Payload>,
        segment_bytes: usize,
        to: SocketAddr,
        tag: u64,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        self.submit_send_with(id, payload, to, SendOptions::new().segment_bytes(segment_bytes), tag)
    }

    /// Sends a datagram with more to say about it. As [`submit_send_to`](Self::submit_send_to).
    ///
    /// # Errors
    ///
    /// As [`submit_send_to`](Self::submit_send_to).
    pub fn submit_send_with(
        &self,
        id: EndpointId,
        payload: impl Into<Payload>,
        to: SocketAddr,
        options: SendOptions,
        tag: u64,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        self.transmit(id, options.outgoing(payload.into(), Some(to)), tag)
    }

    fn transmit(
        &self,
        id: EndpointId,
        mut item: Outgoing,
        tag: u64,
    ) -> Result<Result<(), Error>, Full<Payload>> {
        if let Err(error) = item.check() {
            return Ok(Err(error.into()));
        }
        item.tag = Some(tag);
        let sent = self
            .state(|state| state.datagrams(id, |datagrams, core, engine| datagrams.send(core, engine, item)));
        match sent {
            Ok(Ok(sent)) => sent.map_err(|Full(item)| Full(item.payload)),
            Ok(Err(error)) | Err(error) => Ok(Err(error)),
        }
    }

    /// Lets the kernel join datagrams; see [`UdpSocket::set_gro`](crate::net::UdpSocket::set_gro). Each datagram is
    /// an event of its own all the same.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_gro(&self, id: EndpointId, on: bool) -> io::Result<()> {
        ask(&self.core, id, Ask::Joined, on)
    }

    /// Asks for congestion codepoints; see [`UdpSocket::set_ecn`](crate::net::UdpSocket::set_ecn).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_ecn(&self, id: EndpointId, on: bool) -> io::Result<()> {
        ask(&self.core, id, Ask::Ecn, on)
    }

    /// Asks for local addresses; see [`UdpSocket::set_packet_info`](crate::net::UdpSocket::set_packet_info).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_packet_info(&self, id: EndpointId, on: bool) -> io::Result<()> {
        ask(&self.core, id, Ask::Local, on)
    }

    /// Receives one datagram: [`Event::ReceivedFrom`](crate::Event::ReceivedFrom).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such socket.
    pub fn submit_recv_from(&self, id: EndpointId, tag: u64) -> Result<(), Error> {
        self.recv_from(id, tag, false)
    }

    /// Receives datagrams until the socket closes: an [`Event::ReceivedFrom`](crate::Event::ReceivedFrom) each, with `more` set.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such socket.
    pub fn submit_recv_from_multi(&self, id: EndpointId, tag: u64) -> Result<(), Error> {
        self.recv_from(id, tag, true)
    }

    fn recv_from(&self, id: EndpointId, tag: u64, standing: bool) -> Result<(), Error> {
        self.state(|state| {
            state.datagrams(id, |datagrams, core, engine| datagrams.submit_read(core, engine, tag, standing))
        })??
    }

    /// Shuts a connection down, the outbound direction after everything queued has left: [`Event::ShutDown`](crate::Event::ShutDown).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such connection or it was shut down before.
    pub fn submit_shutdown(&self, id: EndpointId, how: Shutdown, tag: u64) -> Result<(), Error> {
        let begun = self.state(|state| {
            state.stream(id, |stream, core, engine| match how {
                Shutdown::Read => shut_inbound(core, engine, tag),
                _ => stream.start_shutdown(core, engine, how, Waiter::Tag(tag)),
            })
        })??;
        if begun { Ok(()) } else { Err(Error::Closed) }
    }

    /// Closes an endpoint: [`Event::Closed`](crate::Event::Closed), its last event.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there is no such endpoint.
    pub fn submit_close(&self, id: EndpointId, how: Close, tag: u64) -> Result<(), Error> {
        let known = self.state(|state| state.close(id, how, Waiter::Tag(tag)))?;
        if known { Ok(()) } else { Err(Error::Closed) }
    }

    /// [`Event::Elapsed`](crate::Event::Elapsed) after `duration`. Its endpoint is no endpoint.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn submit_timeout(&self, duration: Duration, tag: u64) -> Result<(), Error> {
        self.state(|state| {
            let deadline = far(state.now(), duration);
            state.engine.wheel.insert(deadline, Timer::Tag(tag));
        })
    }

    /// Runs one turn of the loop and hands completions to `on_completion`. Waits for at most `timeout` (none waits
    /// for ever) if there is nothing to do. Tasks of the shard run as well.
    ///
    /// # Errors
    ///
    /// If the system refuses to wait at all.
    ///
    /// # Panics
    ///
    /// If `on_completion` panics. Completions that it was not given are delivered by the next poll.
    pub fn poll(
        &self,
        timeout: Option<Duration>,
        mut on_completion: impl FnMut(Completion),
    ) -> io::Result<()> {
        let _entered = Entered::enter(&self.core);
        self.core.run_ready();
        self.core.turn(timeout, None)?;
        while let Some(completion) = self.core.next_completion() {
            on_completion(completion);
        }
        Ok(())
    }
}

/// Shuts the inbound side down, which waits for nothing; `false` if the connection closes.
fn shut_inbound(core: &Common, engine: &mut Engine, tag: u64) -> bool {
    if !core.is_open() {
        return false;
    }
    let event = match core.fd().descriptor().shutdown(Shutdown::Read) {
        Ok(()) => Event::ShutDown,
        Err(error) => Event::Failed(error.into()),
    };
    engine.emit(tag, core.id, false, event);
    true
}
