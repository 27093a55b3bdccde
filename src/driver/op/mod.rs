//! The closed list of operations.
//!
//! Each operation is one file: its payload, how the ring encodes it, how the readiness backend attempts it, and
//! what its completion hands back. To add one, write the file and name it in `ops!`; the compiler asks for the
//! rest. An operation owns what the kernel touches (invariant 1); its outcome owns what it hands back, so that an
//! outcome nobody wants is given back by dropping it.

mod accept;
mod close;
mod connect;
mod file;
mod nop;
mod poll;
mod recv;
mod recv_batch;
mod recv_msg;
mod recv_multi;
mod send;
mod send_batch;
mod send_msg;
mod send_to;
mod shutdown;
mod splice;

pub use accept::Accept;
pub use close::Close;
pub use connect::Connect;
pub use file::{Fsync, ReadAt, WriteAt};
pub use nop::Nop;
pub use poll::Poll;
pub use recv::Recv;
pub use recv_batch::RecvBatch;
pub use recv_msg::{RecvMsg, RecvMsgMulti};
pub use recv_multi::RecvMulti;
pub use send::Send;
pub use send_batch::SendBatch;
pub use send_msg::SendMsg;
pub use send_to::SendTo;
pub use shutdown::Shutdown;
pub use splice::{Splice, Spliced, Transit};

use super::completion::{Done, RawCompletion};
use super::fd::FdRef;
use super::slot::Scratch;
#[cfg(windows)]
use super::sys::iocp::{Begun, Flight};
#[cfg(windows)]
use super::sys::os;
use super::sys::os::libc;
use crate::buf::{BufferId, Pool};
use crate::error::Error;

/// What an operation waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Something to read, or a connection to accept.
    Read,
    /// Room to write, or the end of a connect.
    Write,
}

/// What came of one attempt on a non-blocking descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attempt {
    /// Nothing yet: try again when the descriptor is ready.
    Blocked,
    /// The operation has ended with this result.
    Done(i32),
    /// A standing operation brought something and goes on.
    More(i32, Option<BufferId>),
    /// The same, and there was less than it could have taken.
    Drained(i32, Option<BufferId>),
}

/// What an attempt may use.
pub(crate) struct Means<'a> {
    pub(crate) pool: &'a Pool,
    /// Most bytes to move in one system call; the scripted backend makes short reads and writes with it.
    pub(crate) bytes_max: usize,
}

/// Where an operation of Windows is on its way.
#[cfg(windows)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// At its beginning.
    First,
    /// It has brought something and goes on.
    Again,
    /// The same, and there was less than it could have taken.
    Drained,
    /// Its call has ended with this result.
    Landed(i32),
}

#[cfg(windows)]
impl Step {
    /// What has become of an operation's one call, which is begun if it was not.
    fn or_begin(self, begin: impl FnOnce() -> Begun) -> Begun {
        match self {
            Step::Landed(result) => Begun::Now(result),
            _ => begin(),
        }
    }
}

/// How the ring shall encode an operation, given what the kernel has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Encoding {
    /// As the operation is.
    Plain,
    /// A standing operation as a single one, which the backend repeats.
    Single,
    /// A standing receive as a wait for readiness, after which the backend attempts it.
    Wait,
}

/// A call that blocks, for the pool of blocking threads.
pub(crate) type BlockingCall = Box<dyn FnOnce() -> i32 + std::marker::Send>;

/// What every operation must say.
pub(crate) trait Kernel: Sized {
    /// The descriptor and direction it waits for; nothing if it never waits.
    fn waits_for(&self) -> Option<(&FdRef, Direction)>;

    /// The ring entry, without user data. Pointers in it refer to the slot's scratch and to memory that the
    /// operation owns. What is a call on every backend has none.
    #[cfg(target_os = "linux")]
    fn sqe(&mut self, _scratch: *mut Scratch, _encoding: Encoding) -> io_uring::squeue::Entry {
        unreachable!("a call has no entry in the ring")
    }

    /// Tries it without blocking.
    fn attempt(&mut self, scratch: *mut Scratch, means: &Means<'_>) -> Attempt;

    /// Makes the next step on a completion port: a call that the system has then (`Blocked`), or a result. What never
    /// waits is attempted, and what would wait all the same is refused: nothing would tell when to try again.
    #[cfg(windows)]
    fn start(&mut self, _step: Step, flight: &Flight<'_>) -> Attempt {
        match self.attempt(flight.scratch, flight.means) {
            Attempt::Blocked => Attempt::Done(-libc::EOPNOTSUPP),
            other => other,
        }
    }

    /// The blocking call that replaces attempts, for operations on files.
    fn blocking(&mut self) -> Option<BlockingCall> {
        None
    }

    /// A completion that is not the last.
    fn more(&mut self, completion: RawCompletion, _pool: &Pool) -> Done {
        unreachable!("a one-shot operation reported {completion:?}")
    }

    /// The terminal completion.
    fn finish(self, completion: RawCompletion, pool: &Pool) -> Done;
}

macro_rules! ops {
    (in place: $($name:ident),* ; boxed: $($boxed:ident),* $(,)?) => {
        /// An operation with everything the kernel needs for it. Those that are rare and large are boxed, so that a slot
        /// is one cache line.
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
            $(#[doc = concat!("See [`", stringify!($boxed), "`].")] $boxed(Box<$boxed>)),*
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*

        $(impl From<$boxed> for Op {
            fn from(op: $boxed) -> Op {
                Op::$boxed(Box::new(op))
            }
        })*

        ops! { methods $($name)* $($boxed)* }

        impl Op {
            #[inline]
            pub(crate) fn finish(self, completion: RawCompletion, pool: &Pool) -> Done {
                match self {
                    $(Op::$name(op) => op.finish(completion, pool),)*
                    $(Op::$boxed(op) => (*op).finish(completion, pool)),*
                }
            }
        }
    };
    (methods $($name:ident)*) => {
        impl Op {
            /// Its name, for messages.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => stringify!($name)),* }
            }

            #[inline]
            pub(crate) fn waits_for(&self) -> Option<(&FdRef, Direction)> {
                match self { $(Op::$name(op) => op.waits_for()),* }
            }

            #[cfg(target_os = "linux")]
            #[inline]
            pub(crate) fn sqe(&mut self, scratch: *mut Scratch, encoding: Encoding) -> io_uring::squeue::Entry {
                match self { $(Op::$name(op) => op.sqe(scratch, encoding)),* }
            }

            #[inline]
            pub(crate) fn attempt(&mut self, scratch: *mut Scratch, means: &Means<'_>) -> Attempt {
                match self { $(Op::$name(op) => op.attempt(scratch, means)),* }
            }

            #[cfg(windows)]
            pub(crate) fn start(&mut self, step: Step, flight: &Flight<'_>) -> Attempt {
                match self { $(Op::$name(op) => op.start(step, flight)),* }
            }

            pub(crate) fn blocking(&mut self) -> Option<BlockingCall> {
                match self { $(Op::$name(op) => op.blocking()),* }
            }

            #[inline]
            pub(crate) fn more(&mut self, completion: RawCompletion, pool: &Pool) -> Done {
                match self { $(Op::$name(op) => op.more(completion, pool)),* }
            }
        }
    };
}

ops! {
    in place: Accept, Connect, Recv, RecvMulti, RecvMsgMulti, Send, SendMsg, Shutdown, Close, Poll, Nop, Fsync;
    boxed: RecvMsg, SendTo, RecvBatch, SendBatch, ReadAt, WriteAt, Splice
}

/// A result that is a count.
fn counted(result: i32) -> Result<usize, Error> {
    usize::try_from(result).map_err(|_| Error::from_raw(result))
}

/// A result that is nothing but success or an error.
fn ended(completion: RawCompletion) -> Done {
    Done::Ended(counted(completion.result).map(|_| ()))
}

/// A descriptor as the ring knows it.
#[cfg(target_os = "linux")]
fn ring_fd(fd: &FdRef) -> io_uring::types::Fd {
    io_uring::types::Fd(std::os::fd::AsRawFd::as_raw_fd(fd))
}

/// Whether a call that does not block would have had to.
pub(crate) fn is_blocked(result: i32) -> bool {
    const AGAIN: [i32; 2] = [-libc::EAGAIN, -libc::EWOULDBLOCK];
    AGAIN.contains(&result)
}

/// The attempt for the result of a call that does not block.
fn attempted(result: i32) -> Attempt {
    if is_blocked(result) { Attempt::Blocked } else { Attempt::Done(result) }
}
