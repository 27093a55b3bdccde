//! `futures-io` traits, for code that lends its buffers: each read and write copies.
#![forbid(unsafe_code)]

use super::stream::Flow;
use super::{tcp::TcpStream, unix::UnixStream};
use crate::buf::Payload;
use futures_io::{AsyncRead, AsyncWrite};
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

fn poll_read(flow: &Flow, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    if buffer.is_empty() {
        return Poll::Ready(Ok(0));
    }
    let Some(mut lease) = ready!(flow.poll_recv(context))? else { return Poll::Ready(Ok(0)) };
    let used = lease.len().min(buffer.len());
    buffer[..used].copy_from_slice(&lease[..used]);
    lease.advance(used);
    flow.unread(lease);
    Poll::Ready(Ok(used))
}

/// Bytes taken by one write.
const WRITE_MAX: usize = 64 * 1024;

fn poll_write(flow: &Flow, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let used = bytes.len().min(WRITE_MAX);
    let mut payload = Some(Payload::from(bytes[..used].to_vec()));
    ready!(flow.poll_send(context, &mut payload))?;
    Poll::Ready(Ok(used))
}

fn poll_close(flow: &Flow, context: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(flow.poll_flush(context))?;
    flow.start_shutdown(Shutdown::Write)?;
    flow.poll_shut_down(context)
}

macro_rules! adapter {
    ($($stream:ty),*) => {$(
        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                poll_read(self.flow(), context, buffer)
            }
        }

        impl AsyncWrite for $stream {
            fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                poll_write(self.flow(), context, bytes)
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.flow().poll_flush(context)
            }

            /// Shuts the outbound direction down; dropping the stream closes it.
            fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                poll_close(self.flow(), context)
            }
        }
    )*};
}

adapter!(TcpStream, UnixStream);
