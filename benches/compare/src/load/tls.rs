//! TCP echo over TLS: as `echo`, with every byte sealed and opened.

use super::{Meter, Plan, blocked, check, connect_all, failure};
use crate::pattern::{PIECE_MAX, Pattern};
use crate::results::Metrics;
use crate::sys::{EDGE, Epoll, READ, WRITE};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;

struct Connection {
    socket: TcpStream,
    tls: ClientConnection,
    id: usize,
    /// Bytes sealed, and bytes that may be.
    sent: u64,
    goal: u64,
    received: u64,
    /// When the messages that are on the way were due to leave.
    stamps: VecDeque<u64>,
}

impl Connection {
    /// Seals what may be sent, and sends what there is room for.
    fn write(&mut self, pattern: &Pattern) -> io::Result<()> {
        while self.sent < self.goal && !self.tls.is_handshaking() {
            let len = ((self.goal - self.sent) as usize).min(PIECE_MAX);
            let sealed = self.tls.writer().write(pattern.at(self.id, self.sent, len))?;
            if sealed == 0 {
                break;
            }
            self.sent += sealed as u64;
        }
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if blocked(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn allow(&mut self, messages: u64, size: usize, now: u64) {
        self.goal += messages * size as u64;
        self.stamps.extend((0..messages).map(|_| now));
    }

    /// Reads what there is, and answers each whole message with a new one.
    fn read(
        &mut self,
        pattern: &Pattern,
        buffer: &mut [u8],
        size: usize,
        meter: &mut Meter,
    ) -> io::Result<()> {
        loop {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return Err(failure(format!("connection {} was closed by the server", self.id))),
                Ok(_) => {}
                Err(error) if blocked(&error) => return self.write(pattern),
                Err(error) => return Err(error),
            }
            self.tls.process_new_packets().map_err(io::Error::other)?;
            while let Ok(n) = self.tls.reader().read(buffer) {
                check(pattern, self.id, self.received, &buffer[..n])?;
                let before = self.received / size as u64;
                self.received += n as u64;
                let whole = self.received / size as u64 - before;
                let now = meter.now();
                for _ in 0..whole {
                    meter.count(self.stamps.pop_front().unwrap_or(now), now);
                }
                self.allow(whole, size, now);
            }
        }
    }
}

pub(super) fn run(plan: &Plan, connections: usize, size: usize, outstanding: usize) -> io::Result<Metrics> {
    let (pattern, mut epoll, config) = (Pattern::new(), Epoll::new()?, config()?);
    let mut meter = Meter::new(plan);
    let mut all = Vec::with_capacity(connections);
    for (id, socket) in connect_all(plan.address, connections)?.into_iter().enumerate() {
        epoll.add(socket.as_raw_fd(), id as u64, READ | WRITE | EDGE)?;
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::clone(&config), name).map_err(io::Error::other)?;
        let stamps = VecDeque::with_capacity(outstanding + 1);
        let socket = socket.into();
        let mut connection = Connection { socket, tls, id, sent: 0, goal: 0, received: 0, stamps };
        connection.allow(outstanding as u64, size, meter.now());
        connection.write(&pattern)?;
        all.push(connection);
    }
    let mut buffer = vec![0; PIECE_MAX];
    // Each connection must have had an echo before anything counts.
    let mut silent = connections;
    loop {
        for at in 0..epoll.wait(20)? {
            let (token, events) = epoll.event(at);
            let connection = &mut all[token as usize];
            if events & WRITE != 0 {
                connection.write(&pattern)?;
            }
            if events & !WRITE != 0 {
                let was_silent = connection.received < size as u64;
                connection.read(&pattern, &mut buffer, size, &mut meter)?;
                silent -= usize::from(was_silent && connection.received >= size as u64);
            }
        }
        if let Some(metrics) = meter.tick(silent == 0)? {
            return Ok(metrics);
        }
    }
}

fn config() -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes every certificate: the servers make their own, and it is the bytes that count here.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
