//! Passing bytes on from one stream socket to another through a pipe, without a copy into this program.
//!
//! The kernel has an operation of its own for this, which runs each splice on a thread of the kernel, because it may
//! block. So the ring only waits for readiness here, as the other backends do, and the splice is an attempt. Nothing
//! in the kernel refers to the pipe between two attempts; that is why whoever waits may share the [`Transit`] with the
//! slot, which owns the sockets.
#![forbid(unsafe_code)]

use super::*;
use crate::driver::Descriptor;
use crate::driver::pipes::Pipes;
use crate::driver::sys::pipe::Pipe;
use std::cell::{RefCell, RefMut};
use std::rc::Rc;

/// Bytes that one attempt passes on before others have their turn.
const TURN_BYTES: u64 = 1 << 20;

/// Splices that are looked at to see whether they are too small to pay.
const SAMPLE: u32 = 16;

/// Passes bytes on from one socket to another until one of them has to be waited for that this operation does not
/// wait for, the stream ends, or it fails. O_NONBLOCK must be set on both.
#[derive(Debug)]
pub struct Splice {
    /// Where bytes come from.
    pub from: FdRef,
    /// Where they go.
    pub to: FdRef,
    /// The socket whose readiness it waits for: to read from `from`, or to write to `to`.
    pub direction: Direction,
    /// What is between the two.
    pub transit: Transit,
}

/// Why a splice has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spliced {
    /// The stream has ended; all of it was passed on.
    End,
    /// Go on by waiting in this direction.
    Blocked(Direction),
    /// It has had its turn; there may be more.
    Turn,
    /// Splices move so little at a time that they do not pay.
    Small,
    /// No pipe is to be had now.
    NoPipe,
}

const ENDS: [Spliced; 6] = [
    Spliced::End,
    Spliced::Blocked(Direction::Read),
    Spliced::Blocked(Direction::Write),
    Spliced::Turn,
    Spliced::Small,
    Spliced::NoPipe,
];

impl Spliced {
    /// As the result of an operation.
    fn result(self) -> i32 {
        ENDS.iter().position(|end| *end == self).map_or(-libc::EINVAL, |index| index as i32)
    }
}

/// The bytes between two sockets, shared by the operation in flight and by whoever waits for it.
#[derive(Clone, Debug)]
pub struct Transit(Rc<RefCell<Between>>);

#[derive(Debug)]
struct Between {
    pipes: Pipes,
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    /// Bytes that have left it for the other socket.
    sent: u64,
    /// The sending side has failed, and not the receiving one.
    failed_to_send: bool,
    /// Nothing may be passed on any more.
    stopped: bool,
    /// Splices are given up when they are smaller than this on average.
    worthwhile_bytes: u64,
    sampled: u32,
    sampled_bytes: u64,
}

impl Transit {
    pub(crate) fn new(pipes: &Pipes, worthwhile_bytes: usize) -> Transit {
        Transit(Rc::new(RefCell::new(Between {
            pipes: pipes.clone(),
            pipe: None,
            held: 0,
            sent: 0,
            failed_to_send: false,
            stopped: false,
            worthwhile_bytes: worthwhile_bytes as u64,
            sampled: 0,
            sampled_bytes: 0,
        })))
    }

    fn between(&self) -> RefMut<'_, Between> {
        self.0.borrow_mut()
    }

    /// Takes the number of bytes that were passed on since it was asked last.
    pub fn take_sent(&self) -> u64 {
        std::mem::take(&mut self.between().sent)
    }

    /// Whether it was the sending side that failed.
    pub fn failed_to_send(&self) -> bool {
        self.between().failed_to_send
    }

    /// From now on nothing is passed on, also by an operation that is still in flight. Gives what was received and
    /// has not left.
    pub fn stop(&self) -> Vec<u8> {
        let mut between = self.between();
        between.stopped = true;
        let Some(pipe) = between.pipe.take() else { return Vec::new() };
        let rest = if between.held > 0 { pipe.take() } else { Vec::new() };
        between.held = 0;
        between.pipes.give_back(pipe);
        rest
    }
}

impl Between {
    /// Passes on as much as it can. `waits` is what the operation is waiting for, and may go on waiting for.
    fn pass_on(&mut self, from: &Descriptor, to: &Descriptor, waits: Direction, bytes_max: usize) -> Attempt {
        if self.stopped {
            return Attempt::Done(-libc::ECANCELED);
        }
        let before = self.sent;
        loop {
            if let Err(end) = self.send(to, waits, bytes_max) {
                return end;
            }
            let end = match self.next(from, bytes_max, self.sent - before) {
                Ok(()) => continue,
                Err(error) if error == -libc::EAGAIN => match waits {
                    Direction::Read => Attempt::Blocked,
                    Direction::Write => Attempt::Done(Spliced::Blocked(Direction::Read).result()),
                },
                Err(result) => Attempt::Done(result),
            };
            self.give_back_if_empty();
            return end;
        }
    }

    /// Sends everything in the pipe, or says how the attempt ends.
    fn send(&mut self, to: &Descriptor, waits: Direction, bytes_max: usize) -> Result<(), Attempt> {
        while self.held > 0 {
            let Some(pipe) = &self.pipe else { return Ok(()) };
            let sent = to.splice_from(pipe, self.held.min(bytes_max));
            if sent == -libc::EAGAIN {
                return Err(match waits {
                    Direction::Write => Attempt::Blocked,
                    Direction::Read => Attempt::Done(Spliced::Blocked(Direction::Write).result()),
                });
            }
            if sent <= 0 {
                self.failed_to_send = true;
                return Err(Attempt::Done(if sent == 0 { -libc::EPIPE } else { sent }));
            }
            self.held -= sent as usize;
            self.sent += sent as u64;
            self.pipes.count_sent(sent as usize);
        }
        Ok(())
    }

    /// Fills the pipe, which is empty, or gives the result with which the attempt ends.
    fn next(&mut self, from: &Descriptor, bytes_max: usize, passed_on: u64) -> Result<(), i32> {
        if self.sampled >= SAMPLE {
            let small = self.sampled_bytes < self.worthwhile_bytes * u64::from(SAMPLE);
            (self.sampled, self.sampled_bytes) = (0, 0);
            if small {
                return Err(Spliced::Small.result());
            }
        }
        if passed_on >= TURN_BYTES {
            return Err(Spliced::Turn.result());
        }
        if self.pipe.is_none() {
            self.pipe = self.pipes.lend();
        }
        let pipe = self.pipe.as_ref().ok_or(Spliced::NoPipe.result())?;
        let received = from.splice_into(pipe, pipe.bytes().min(bytes_max));
        match usize::try_from(received) {
            Ok(0) => Err(Spliced::End.result()),
            Ok(bytes) => {
                self.held = bytes;
                self.sampled += 1;
                self.sampled_bytes += bytes as u64;
                self.pipes.count_received(bytes);
                Ok(())
            }
            Err(_) => Err(received),
        }
    }

    fn give_back_if_empty(&mut self) {
        if self.held == 0 {
            if let Some(pipe) = self.pipe.take() {
                self.pipes.give_back(pipe);
            }
        }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        // A pipe with bytes in it is of no use to anybody else.
        if let Some(pipe) = self.pipe.take() {
            if self.held > 0 {
                drop(pipe.take());
            }
            self.pipes.give_back(pipe);
        }
    }
}

impl Kernel for Splice {
    fn waits_for(&self) -> Option<(&FdRef, Direction)> {
        let fd = match self.direction {
            Direction::Read => &self.from,
            Direction::Write => &self.to,
        };
        Some((fd, self.direction))
    }

    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _: *mut Scratch, _: Encoding) -> io_uring::squeue::Entry {
        let (fd, events) = match self.direction {
            Direction::Read => (&self.from, libc::POLLIN),
            Direction::Write => (&self.to, libc::POLLOUT),
        };
        io_uring::opcode::PollAdd::new(ring_fd(fd), events as u32).build()
    }

    fn attempt(&mut self, _: *mut Scratch, means: &Means<'_>) -> Attempt {
        let (from, to) = (self.from.descriptor(), self.to.descriptor());
        self.transit.between().pass_on(from, to, self.direction, means.bytes_max)
    }

    fn finish(self, completion: RawCompletion, _: &Pool) -> Done {
        Done::Spliced(counted(completion.result).map(|index| ENDS[index.min(ENDS.len() - 1)]))
    }
}
