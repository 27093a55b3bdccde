//! TLS as the session engine sees it. Without the feature `tls` the same names stand for what cannot be made, so that nothing
//! else has to know.
#![forbid(unsafe_code)]

#[cfg(feature = "tls")]
pub(super) use with_tls::{Doorkeeper, Sealed, Security, reason_of};
#[cfg(not(feature = "tls"))]
pub(super) use without_tls::{Doorkeeper, Sealed, Security, reason_of};

#[cfg(feature = "tls")]
mod with_tls {
    use crate::api::stream::{Flow, Outbound};
    use crate::buf::{Lease, Payload};
    use crate::component::close::CloseReason;
    use crate::component::conn::Conn;
    use crate::component::link::Link;
    use crate::component::policy::Policy;
    use crate::component::session::Session;
    use crate::error::{Error, Full};
    use crate::proto::tls::TlsError;
    use crate::tls::{ServerTls, TlsAcceptor, TlsConnector, TlsInfo, TlsStream, Transport};
    use bytes::BytesMut;
    use std::io;
    use std::rc::Rc;
    use std::task::{Context, Poll};
    use std::time::Duration;

    /// What a server says of itself.
    pub(in crate::component) type Security = ServerTls;

    /// Makes sealed connections of plain ones, on one shard.
    #[derive(Debug)]
    pub(in crate::component) struct Doorkeeper(TlsAcceptor);

    /// Where the policy sets no limit; the acceptor wants one.
    const FOREVER: Duration = Duration::from_secs(365 * 86_400);

    impl Doorkeeper {
        pub(in crate::component) fn new(security: Security, policy: &Policy) -> Doorkeeper {
            let acceptor = TlsAcceptor::new(security).handshakes_max(policy.handshakes_max);
            Doorkeeper(acceptor.handshake_deadline(policy.handshake_timeout.unwrap_or(FOREVER)))
        }

        /// Puts TLS over the connection. If that fails the session knows why, before the peer is told.
        pub(in crate::component) async fn secure(&self, session: &Session) -> bool {
            let transport = match session.take_link().map(Link::into_transport) {
                Some(Ok(transport)) => transport,
                sealed => {
                    sealed.and_then(Result::err).into_iter().for_each(|link| session.put_link(link));
                    return false;
                }
            };
            let accepted = self.0.accept_or(transport, |error| session.blame(reason(error))).await;
            let sealed = accepted.ok().map(|stream| Link::Sealed(Box::new(Sealed(stream))));
            sealed.map(|link| session.put_link(link)).is_some()
        }
    }

    /// What an error of TLS comes to.
    fn reason(error: &TlsError) -> CloseReason {
        match error {
            TlsError::HandshakeTimedOut => CloseReason::HandshakeTimeout,
            TlsError::Truncated => CloseReason::Truncated,
            TlsError::Io(error) => CloseReason::of_error(error),
            other => CloseReason::Tls(io::Error::new(io::ErrorKind::InvalidData, other.to_string())),
        }
    }

    /// What an error of a sealed connection comes to, if it is one of TLS.
    pub(in crate::component) fn reason_of(error: &io::Error) -> Option<CloseReason> {
        error.get_ref()?.downcast_ref::<TlsError>().map(reason)
    }

    impl Link {
        fn into_transport(self) -> Result<Transport, Link> {
            match self {
                Link::Tcp(stream) => Ok(Transport::Tcp(stream)),
                Link::Unix(stream) => Ok(Transport::Unix(stream)),
                Link::Sealed(_) => Err(self),
            }
        }
    }

    impl Session {
        /// What was agreed on under TLS; none on a plain connection.
        pub fn tls(&self) -> Option<TlsInfo> {
            self.with_link(|link| match link {
                Link::Sealed(sealed) => Some(sealed.0.info()),
                _ => None,
            })
        }

        /// Puts TLS over the connection in its midst, as STARTTLS does; bytes that came already and were not received
        /// belong to TLS.
        async fn upgrade<F>(self: &Rc<Session>, shake: impl FnOnce(Transport) -> F) -> io::Result<()>
        where
            F: Future<Output = Result<TlsStream, TlsError>>,
        {
            if self.partial_bytes().is_some() {
                let text = "bytes of a message have come; go over to TLS between two messages";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            let Some(link) = self.take_link() else { return Err(Error::Closed.into()) };
            match link.into_transport() {
                Ok(transport) => {
                    self.stop_sharing();
                    let stream = shake(transport).await?;
                    self.put_link(Link::Sealed(Box::new(Sealed(stream))));
                    Ok(())
                }
                Err(sealed) => {
                    self.put_link(sealed);
                    Err(io::Error::new(io::ErrorKind::InvalidInput, "the connection has TLS already"))
                }
            }
        }
    }

    impl<S> Conn<S> {
        /// Goes over to TLS as the side that accepted, after messages in the clear (STARTTLS). If it fails, or its future is
        /// dropped, the connection is of no more use.
        ///
        /// # Errors
        ///
        /// What the handshake met, with a [`TlsError`] inside; `InvalidInput` within a message, or if there is TLS already.
        pub async fn accept_tls(&mut self, acceptor: &TlsAcceptor) -> io::Result<()> {
            let upgraded = self.session().upgrade(|transport| acceptor.accept(transport)).await;
            upgraded.map_err(|error| self.session().blame_error(error))
        }

        /// The same as the side that connected, to a peer that has to prove this name.
        ///
        /// # Errors
        ///
        /// As [`accept_tls`](Self::accept_tls).
        pub async fn connect_tls(&mut self, name: &str, connector: &TlsConnector) -> io::Result<()> {
            let upgraded = self.session().upgrade(|transport| connector.connect(name, transport)).await;
            upgraded.map_err(|error| self.session().blame_error(error))
        }
    }

    /// A connection under TLS.
    #[derive(Debug)]
    pub(in crate::component) struct Sealed(TlsStream);

    impl Sealed {
        pub(in crate::component) fn flow(&self) -> &Flow {
            self.0.transport().flow()
        }

        pub(in crate::component) fn poll_recv(
            &self,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<Option<Lease>>> {
            self.0.flow.poll_recv(context)
        }

        pub(in crate::component) fn poll_send(
            &self,
            context: &mut Context<'_>,
            payload: &mut Option<Payload>,
        ) -> Poll<io::Result<()>> {
            self.0.flow.poll_send(context, payload)
        }

        /// Sealing copies anyway, so what stays together is joined before.
        pub(in crate::component) fn poll_send_together(
            &self,
            context: &mut Context<'_>,
            payloads: &mut Vec<Payload>,
        ) -> Poll<io::Result<()>> {
            let mut joined = join(payloads);
            let sent = self.poll_send(context, &mut joined);
            payloads.extend(joined);
            sent
        }

        pub(in crate::component) fn try_send_together(
            &self,
            payloads: &mut Vec<Payload>,
        ) -> Result<io::Result<()>, Full<()>> {
            let mut joined = join(payloads);
            let sent = self.0.flow.try_send(&mut joined);
            payloads.extend(joined);
            sent
        }

        pub(in crate::component) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.flow.poll_flush(context)
        }

        pub(in crate::component) fn outbound(&self) -> Outbound {
            Outbound { queued: self.0.queued_bytes(), ..self.flow().outbound() }
        }

        pub(in crate::component) async fn close(self) -> io::Result<()> {
            self.0.close().await
        }

        pub(in crate::component) fn abort(self) {
            self.0.abort();
        }
    }

    fn join(payloads: &mut Vec<Payload>) -> Option<Payload> {
        if payloads.len() < 2 {
            return payloads.pop();
        }
        let mut joined = BytesMut::with_capacity(payloads.iter().map(Payload::len).sum());
        payloads.drain(..).for_each(|payload| joined.extend_from_slice(&payload));
        Some(joined.freeze().into())
    }
}

#[cfg(not(feature = "tls"))]
mod without_tls {
    use crate::api::stream::{Flow, Outbound};
    use crate::buf::{Lease, Payload};
    use crate::component::close::CloseReason;
    use crate::component::policy::Policy;
    use crate::component::session::Session;
    use crate::error::Full;
    use std::io;
    use std::task::{Context, Poll};

    /// Nothing to be secure with.
    #[derive(Clone, Debug)]
    pub(in crate::component) enum Security {}

    #[derive(Debug)]
    pub(in crate::component) enum Doorkeeper {}

    #[derive(Debug)]
    pub(in crate::component) enum Sealed {}

    pub(in crate::component) fn reason_of(_: &io::Error) -> Option<CloseReason> {
        None
    }

    impl Doorkeeper {
        pub(in crate::component) fn new(security: Security, _: &Policy) -> Doorkeeper {
            match security {}
        }

        pub(in crate::component) async fn secure(&self, _: &Session) -> bool {
            match *self {}
        }
    }

    impl Sealed {
        pub(in crate::component) fn flow(&self) -> &Flow {
            match *self {}
        }

        pub(in crate::component) fn poll_recv(&self, _: &mut Context<'_>) -> Poll<io::Result<Option<Lease>>> {
            match *self {}
        }

        pub(in crate::component) fn poll_send(
            &self,
            _: &mut Context<'_>,
            _: &mut Option<Payload>,
        ) -> Poll<io::Result<()>> {
            match *self {}
        }

        pub(in crate::component) fn poll_send_together(
            &self,
            _: &mut Context<'_>,
            _: &mut Vec<Payload>,
        ) -> Poll<io::Result<()>> {
            match *self {}
        }

        pub(in crate::component) fn try_send_together(
            &self,
            _: &mut Vec<Payload>,
        ) -> Result<io::Result<()>, Full<()>> {
            match *self {}
        }

        pub(in crate::component) fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            match *self {}
        }

        pub(in crate::component) fn outbound(&self) -> Outbound {
            match *self {}
        }

        pub(in crate::component) async fn close(self) -> io::Result<()> {
            match self {}
        }

        pub(in crate::component) fn abort(self) {
            match self {}
        }
    }
}
