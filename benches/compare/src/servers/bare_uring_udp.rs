//! The bare loop over io_uring, for datagrams: one standing receive, a send for each datagram.

use super::buffer_ring::{BufferRing, push, ring, turn};
use super::{DATAGRAM_BUFFER, Job};
use crate::sys;
use io_uring::{IoUring, cqueue, opcode, types::Fd, types::RecvMsgOut};
use std::io;
use std::os::fd::AsRawFd;

const RECEIVE: u64 = u64::MAX;
const BUFFERS: u16 = 1024;
const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();

/// What the kernel reads of one send; one for each buffer.
struct Reply {
    header: libc::msghdr,
    part: libc::iovec,
}

fn arm(ring: &mut IoUring, fd: Fd, template: &libc::msghdr) -> io::Result<()> {
    push(ring, &opcode::RecvMsgMulti::new(fd, template, 0).build().user_data(RECEIVE))
}

pub fn serve(job: Job) -> io::Result<()> {
    let mut ring = ring()?;
    let mut buffers = BufferRing::new(&ring, BUFFERS, DATAGRAM_BUFFER)?;
    let socket = sys::udp_socket(job.address)?;
    let fd = Fd(socket.as_raw_fd());
    // SAFETY: zero is a valid value of these plain structures.
    let (mut template, empty): (Box<libc::msghdr>, libc::msghdr) =
        unsafe { (Box::new(std::mem::zeroed()), std::mem::zeroed()) };
    template.msg_namelen = NAME_BYTES as libc::socklen_t;
    let mut replies: Vec<Reply> = (0..BUFFERS)
        .map(|_| Reply { header: empty, part: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 } })
        .collect();
    arm(&mut ring, fd, &template)?;
    job.ready();
    let (mut completions, mut starved) = (Vec::new(), false);
    loop {
        turn(&mut ring, &mut completions)?;
        for (user_data, result, flags) in completions.drain(..) {
            if user_data != RECEIVE {
                buffers.give(user_data as u16);
                continue;
            }
            if let (1.., Some(id)) = (result, cqueue::buffer_select(flags)) {
                match aim(&buffers, id, result as usize, &template, &mut replies[usize::from(id)]) {
                    Some(header) => {
                        push(&mut ring, &opcode::SendMsg::new(fd, header).build().user_data(u64::from(id)))?
                    }
                    None => buffers.give(id),
                }
            }
            starved |= !cqueue::more(flags);
        }
        buffers.publish();
        if std::mem::take(&mut starved) {
            arm(&mut ring, fd, &template)?;
        }
    }
}

/// Makes the reply to a received datagram: the same bytes to the same address, out of the buffer they lie in.
fn aim<'a>(
    buffers: &BufferRing,
    id: u16,
    len: usize,
    template: &libc::msghdr,
    reply: &'a mut Reply,
) -> Option<&'a libc::msghdr> {
    let out = RecvMsgOut::parse(buffers.bytes(id, len), template).ok()?;
    if out.is_payload_truncated() {
        return None;
    }
    reply.part.iov_base = out.payload_data().as_ptr().cast_mut().cast();
    reply.part.iov_len = out.payload_data().len();
    reply.header.msg_name = out.name_data().as_ptr().cast_mut().cast();
    reply.header.msg_namelen = out.name_data().len() as libc::socklen_t;
    reply.header.msg_iov = &raw mut reply.part;
    reply.header.msg_iovlen = 1;
    Some(&reply.header)
}
