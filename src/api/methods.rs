//! The methods that connections of every family, and their halves, have in common, written once.
//!
//! Each macro expects the type to have a field `flow` that dereferences to a `Flow`; that of listeners, the fields `core`
//! and `id`, and the functions of `api/listening.rs`.
#![forbid(unsafe_code)]

/// Receiving.
macro_rules! receiving {
    () => {
        /// Receives the next bytes; `None` at the end of the stream.
        ///
        /// The first call arms a standing receive; bytes that arrive between calls are kept, up to
        /// [`Limits::inbound_bytes_max`](crate::Limits), in the order of arrival.
        ///
        /// Cancel-safe: dropping the future loses no byte.
        ///
        /// # Errors
        ///
        /// What the connection met, after everything that arrived before it has been received.
        pub fn recv(&mut self) -> impl Future<Output = std::io::Result<Option<crate::Lease>>> {
            self.flow.recv()
        }

        /// Receives exactly `len` bytes. Does not copy if they arrived in one piece.
        ///
        /// Cancel-safe: bytes gathered so far go back to the head of the queue.
        ///
        /// # Errors
        ///
        /// `UnexpectedEof` if the stream ends before (what did arrive can still be received), or as
        /// [`recv`](Self::recv).
        pub async fn recv_exact(&mut self, len: usize) -> std::io::Result<bytes::Bytes> {
            self.flow.recv_exact(len).await
        }

        /// Receives up to and including `delimiter`, at most `max` bytes; `None` if the stream has ended.
        ///
        /// Cancel-safe: bytes gathered so far go back to the head of the queue.
        ///
        /// # Errors
        ///
        /// `InvalidData` if there is no delimiter within `max` bytes, `UnexpectedEof` if the stream ends without
        /// one, or as [`recv`](Self::recv). What was gathered can still be received.
        pub async fn recv_until(
            &mut self,
            delimiter: &[u8],
            max: usize,
        ) -> std::io::Result<Option<bytes::Bytes>> {
            self.flow.recv_until(delimiter, max).await
        }

        /// Appends received bytes to `buffer`, up to its capacity, and gives it back; zero bytes are the end of
        /// the stream (or a buffer without room). For code that needs the bytes in memory of its own; they are
        /// copied.
        ///
        /// Cancel-safe for the stream; the buffer is dropped with the future.
        pub async fn recv_into(&mut self, mut buffer: Vec<u8>) -> (std::io::Result<usize>, Vec<u8>) {
            let room = buffer.capacity() - buffer.len();
            if room == 0 {
                return (Ok(0), buffer);
            }
            match self.flow.recv().await {
                Ok(Some(mut lease)) => {
                    let used = lease.len().min(room);
                    buffer.extend_from_slice(&lease[..used]);
                    lease.advance(used);
                    self.flow.unread(lease);
                    (Ok(used), buffer)
                }
                Ok(None) => (Ok(0), buffer),
                Err(error) => (Err(error), buffer),
            }
        }
    };
}

/// Sending.
macro_rules! sending {
    () => {
        /// Queues a payload, whole, to be sent in order.
        ///
        /// Completes at once while fewer than [`Limits::outbound_bytes_max`](crate::Limits) bytes are queued, else when
        /// there is room again. The bytes leave at the end of the loop's turn, joined with others of the same
        /// connection. To know that they are with the kernel, [`flush`](Self::flush).
        ///
        /// Cancel-safe: dropping the future before it completes sends nothing of the payload; after that
        /// everything is sent.
        ///
        /// # Errors
        ///
        /// What an earlier send on the connection met, or `NotConnected` after a shutdown or close. Once it has
        /// failed, every further call fails in the same way.
        pub fn send(
            &mut self,
            payload: impl Into<crate::Payload>,
        ) -> impl Future<Output = std::io::Result<()>> {
            self.flow.send(payload.into())
        }

        /// Queues several payloads in order, as [`send`](Self::send) does one by one; they leave together.
        ///
        /// Dropping the future leaves those that were queued to be sent, and drops the others.
        ///
        /// # Errors
        ///
        /// As [`send`](Self::send).
        pub async fn send_vectored<P: Into<crate::Payload>>(
            &mut self,
            payloads: impl IntoIterator<Item = P>,
        ) -> std::io::Result<()> {
            self.flow.send_vectored(payloads.into_iter().map(Into::into)).await
        }

        /// Sends the bytes of `file` in `range`, after what is queued; an open end is that of the file as it is now.
        /// Gives their number.
        ///
        /// The file is read piece by piece, the next one only when the connection has room for the last
        /// ([`Limits::outbound_bytes_max`](crate::Limits)); so a slow peer costs a bounded number of bytes.
        ///
        /// Dropping the future leaves the pieces that were queued to be sent, and reads no more.
        ///
        /// # Errors
        ///
        /// `InvalidInput` if the range ends before it begins, `UnexpectedEof` if the file ends before the range does
        /// (as one that is cut meanwhile), or what the file or the connection met; each with the number of bytes that
        /// had been queued.
        pub async fn send_file(
            &mut self,
            file: &crate::fs::File,
            range: impl std::ops::RangeBounds<u64>,
        ) -> Result<u64, crate::net::SendFileError> {
            crate::api::send_file::send_file(&self.flow, file, range).await
        }

        /// Completes when everything queued is with the kernel.
        ///
        /// Cancel-safe.
        ///
        /// # Errors
        ///
        /// If the connection failed before.
        pub async fn flush(&mut self) -> std::io::Result<()> {
            self.flow.flush().await
        }
    };
}

/// The whole connection: ending it, its options, and giving it away.
macro_rules! connection {
    ($std:ty) => {
        /// Shuts one or both directions down; the outbound one after everything queued has left.
        ///
        /// Cancel-safe: once called it goes on by itself.
        ///
        /// # Errors
        ///
        /// If the connection failed before.
        pub async fn shutdown(&mut self, how: std::net::Shutdown) -> std::io::Result<()> {
            self.flow.shutdown(how).await
        }

        /// Sends what is queued, closes the connection, and tells whether everything left. Takes at most
        /// [`Limits::close_flush_ms`](crate::Limits).
        ///
        /// Dropping the future, or the stream itself, closes just as well and tells nothing.
        ///
        /// # Errors
        ///
        /// If not everything could be sent.
        pub async fn close(mut self) -> std::io::Result<()> {
            std::rc::Rc::get_mut(&mut self.flow).map(crate::api::stream::Flow::let_go);
            // In a box, because a task is as large as the largest future that it ever waits for, and this comes once.
            Box::pin(self.flow.close()).await
        }

        /// Closes at once and drops what is queued; the peer of a TCP connection sees a reset.
        pub fn abort(mut self) {
            std::rc::Rc::get_mut(&mut self.flow).map(crate::api::stream::Flow::let_go);
            self.flow.start_close(crate::shard::Close::Abort);
        }

        /// The id of the endpoint, as it is in logs and in the completion API.
        pub fn id(&self) -> crate::EndpointId {
            self.flow.id
        }

        /// Takes the connection out of the runtime, in blocking mode, with the bytes that had been received
        /// and not read.
        ///
        /// # Errors
        ///
        /// If something queued could not be sent; in a simulation, always.
        pub async fn into_std(mut self) -> std::io::Result<($std, Vec<bytes::Bytes>)> {
            std::rc::Rc::get_mut(&mut self.flow).map(crate::api::stream::Flow::let_go);
            let (fd, unread) = self.flow.release().await?;
            Ok((<$std>::from(crate::driver::sys::os::OwnedSocket::try_from(fd)?), unread))
        }
    };
}

/// Accepting, and leaving off; the type is what `accept` gives.
macro_rules! accepting {
    ($accepted:ty) => {
        /// As [`accept`](Self::accept), until there are no more connections: `None` when
        /// [`stop_accepting`](Self::stop_accepting) was called and all that had been accepted were given out.
        ///
        /// # Errors
        ///
        /// As [`accept`](Self::accept), but for [`Error::Stopped`](crate::Error::Stopped).
        pub async fn next(&self) -> std::io::Result<Option<$accepted>> {
            match self.accept().await {
                Ok(accepted) => Ok(Some(accepted)),
                Err(error) if crate::api::listening::is_stop(&error) => Ok(None),
                Err(error) => Err(error),
            }
        }

        /// Stops accepting, for good, without losing a connection. What waits in the system's backlog is still accepted
        /// (for some milliseconds, if connections never cease to come); completes when the last accept has ended. What
        /// was accepted is still given out by [`accept`](Self::accept) and [`next`](Self::next), in order, before those
        /// tell that there are no more.
        ///
        /// The socket stays open, so connections that come later wait in the backlog for whoever else has the socket. If
        /// nobody has, closing the listener resets them.
        ///
        /// Of a group, each shard stops its own listener; connections that another shard is handing over still arrive.
        ///
        /// Cancel-safe: once called it goes on by itself.
        pub async fn stop_accepting(&self) {
            stop(&self.core, self.id).await;
        }

        /// Accepts no more connections until [`resume_accepting`](Self::resume_accepting); they wait in the system's
        /// backlog meanwhile, and those beyond it are not answered. What had been accepted before
        /// ([`Limits::accept_queue_max`](crate::Limits) at most, and what the system was just accepting) is still given
        /// out. Other shards of a group hand nothing over to this one meanwhile. Where others accept on the same socket, one
        /// that came at the very moment of the pause may wait for the next one, or for the end of the pause.
        ///
        /// Nothing changes if accepting was paused or stopped before.
        pub fn pause_accepting(&self) {
            hold(&self.core, self.id);
        }

        /// Accepts connections again after [`pause_accepting`](Self::pause_accepting).
        pub fn resume_accepting(&self) {
            resume(&self.core, self.id);
        }
    };
}

pub(crate) use {accepting, connection, receiving, sending};
