//! The completion API. A shard belongs to the thread that made it.
#![allow(unsafe_code)]

use super::address::{BLOB_BYTES_MAX, address_to_blob};
use super::errors::{Failure, INVALID, UNKNOWN, bytes, done, guarded, text, write_text};
use crate::buf::Lease;
use crate::config::{Backend, Config};
use crate::shard::{Close, Completion, EndpointId, Event, Remote, Shard};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// What came of a submission.
#[repr(C)]
#[derive(Debug)]
pub struct Outcome {
    /// The tag of the submission.
    pub tag: u64,
    /// Its endpoint; 0 for a time-out.
    pub endpoint: u64,
    /// `ANABRANCH_ACCEPTED` and so on.
    pub kind: c_int,
    /// Whether more comes of the same submission.
    pub more: c_int,
    /// Of a failure, the number of the error.
    pub error: c_int,
    /// Bytes at `address`.
    pub address_size: c_int,
    /// Of an accept, the connection.
    pub accepted: u64,
    /// Received bytes, lent until the next poll; else null.
    pub data: *const c_char,
    /// Bytes at `data`.
    pub size: usize,
    /// Who sent a datagram, in the binary form of `anabranch_os_udp_address`.
    pub address: [u8; BLOB_BYTES_MAX],
}

struct Held {
    shard: Shard,
    /// What completed and has not been given yet.
    waiting: RefCell<VecDeque<Completion>>,
    /// What the last poll lent.
    lent: RefCell<Vec<Lease>>,
    polling: Cell<bool>,
}

thread_local! {
    static SHARDS: RefCell<HashMap<u64, Rc<Held>>> = RefCell::default();
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// How other threads wake a shard.
static REMOTES: RwLock<Option<HashMap<u64, Remote>>> = RwLock::new(None);

pub(super) fn backend(number: c_int) -> Result<Backend, Failure> {
    match number {
        0 => Ok(Backend::Auto),
        1 => Ok(Backend::Uring),
        2 => Ok(Backend::Readiness),
        _ => Err(INVALID),
    }
}

fn with<R>(shard: u64, work: impl FnOnce(&Held) -> Result<R, Failure>) -> Result<R, Failure> {
    let held = SHARDS.try_with(|shards| shards.borrow().get(&shard).cloned());
    work(&*held.ok().flatten().ok_or(UNKNOWN)?)
}

/// The endpoint with a number; unknown ones are refused by what is asked of them.
fn endpoint(number: u64) -> EndpointId {
    EndpointId::from_owner(number)
}

/// Makes a shard of this thread; its number. `backend` is 0 (chosen), 1 (io_uring) or 2 (readiness).
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_shard_new(backend: c_int) -> u64 {
    guarded(0, || {
        let shard = Shard::new(Config::new().backend(self::backend(backend)?))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut remotes = REMOTES.write().unwrap_or_else(PoisonError::into_inner);
        remotes.get_or_insert_default().insert(number, shard.remote());
        drop(remotes);
        let held =
            Held { shard, waiting: RefCell::default(), lent: RefCell::default(), polling: Cell::new(false) };
        SHARDS.with_borrow_mut(|shards| shards.insert(number, Rc::new(held)));
        Ok(number)
    })
}

/// Ends a shard of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_shard_free(shard: u64) -> c_int {
    done(|| {
        let held = SHARDS.with_borrow_mut(|shards| shards.remove(&shard)).ok_or(UNKNOWN)?;
        let mut remotes = REMOTES.write().unwrap_or_else(PoisonError::into_inner);
        remotes.as_mut().map(|remotes| remotes.remove(&shard));
        drop(remotes);
        drop(held);
        Ok(())
    })
}

/// Ends the wait of a poll. From any thread.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_shard_wake(shard: u64) -> c_int {
    done(|| {
        let remotes = REMOTES.read().unwrap_or_else(PoisonError::into_inner);
        let remote = remotes.as_ref().and_then(|remotes| remotes.get(&shard)).ok_or(UNKNOWN)?;
        // A full mailbox wakes it as well.
        let _ = remote.run(|| {});
        Ok(())
    })
}

/// Does something that makes an endpoint, whose number goes to `made`.
///
/// # Safety
///
/// `address` is null or a text with a NUL at its end; `made` is null or can be written to.
unsafe fn make(
    shard: u64,
    address: *const c_char,
    made: *mut u64,
    work: impl FnOnce(&Shard, SocketAddr) -> std::io::Result<EndpointId>,
) -> c_int {
    done(|| {
        if made.is_null() {
            return Err(INVALID);
        }
        // SAFETY: the caller's promise.
        let address = unsafe { text(address)? }.parse().map_err(|_| INVALID)?;
        let endpoint = with(shard, |held| Ok(work(&held.shard, address)?))?;
        // SAFETY: the caller's promise.
        unsafe { made.write(endpoint.as_u64()) };
        Ok(())
    })
}

/// Listens on an address such as `127.0.0.1:80` or `[::1]:80`.
///
/// # Safety
///
/// `address` is null or a text with a NUL at its end; `listener` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_listen(shard: u64, address: *const c_char, listener: *mut u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { make(shard, address, listener, |shard, address| shard.listen(address)) }
}

/// Connects to an address.
///
/// # Safety
///
/// As [`anabranch_listen`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_connect(
    shard: u64,
    address: *const c_char,
    tag: u64,
    connection: *mut u64,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { make(shard, address, connection, |shard, address| shard.submit_connect(address, tag)) }
}

/// Opens a socket for datagrams.
///
/// # Safety
///
/// As [`anabranch_listen`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_bind_udp(shard: u64, address: *const c_char, socket: *mut u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { make(shard, address, socket, |shard, address| shard.bind_udp(address, false)) }
}

/// Writes the local address of an endpoint.
///
/// # Safety
///
/// `len` bytes can be written at `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_local_address(
    shard: u64,
    id: u64,
    room: *mut c_char,
    len: usize,
) -> c_int {
    done(|| {
        let address = with(shard, |held| Ok(held.shard.local_addr(endpoint(id))?))?;
        // SAFETY: the caller's promise.
        unsafe { write_text(&address.to_string(), room, len) }
    })
}

/// Accepts one connection, or all.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_accept(shard: u64, listener: u64, tag: u64, all: c_int) -> c_int {
    done(|| {
        with(shard, |held| match all {
            0 => Ok(held.shard.submit_accept(endpoint(listener), tag)?),
            _ => Ok(held.shard.submit_accept_multi(endpoint(listener), tag)?),
        })
    })
}

/// Receives once, or until the end.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_recv(shard: u64, connection: u64, tag: u64, all: c_int) -> c_int {
    done(|| {
        with(shard, |held| match all {
            0 => Ok(held.shard.submit_recv(endpoint(connection), tag)?),
            _ => Ok(held.shard.submit_recv_multi(endpoint(connection), tag)?),
        })
    })
}

/// Receives a datagram, or all.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_recv_from(shard: u64, socket: u64, tag: u64, all: c_int) -> c_int {
    done(|| {
        with(shard, |held| match all {
            0 => Ok(held.shard.submit_recv_from(endpoint(socket), tag)?),
            _ => Ok(held.shard.submit_recv_from_multi(endpoint(socket), tag)?),
        })
    })
}

/// Sends a copy of the bytes, whole.
///
/// # Safety
///
/// `size` bytes can be read at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_send(
    shard: u64,
    connection: u64,
    data: *const c_void,
    size: usize,
    tag: u64,
) -> c_int {
    done(|| {
        // SAFETY: the caller's promise.
        let data = unsafe { bytes(data, size)? };
        with(shard, |held| Ok(held.shard.submit_send(endpoint(connection), data.to_vec(), tag)??))
    })
}

/// Sends a datagram to an address.
///
/// # Safety
///
/// `address` is null or a text with a NUL at its end; `size` bytes can be read at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_send_to(
    shard: u64,
    socket: u64,
    address: *const c_char,
    data: *const c_void,
    size: usize,
    tag: u64,
) -> c_int {
    done(|| {
        // SAFETY: the caller's promise.
        let (address, data) = unsafe { (text(address)?, bytes(data, size)?) };
        let to = address.parse().map_err(|_| INVALID)?;
        with(shard, |held| Ok(held.shard.submit_send_to(endpoint(socket), data.to_vec(), to, tag)??))
    })
}

/// Shuts a connection down: 0 the inbound side, 1 the outbound side, 2 both.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_shutdown(shard: u64, connection: u64, how: c_int, tag: u64) -> c_int {
    done(|| {
        let how = match how {
            0 => Shutdown::Read,
            1 => Shutdown::Write,
            2 => Shutdown::Both,
            _ => return Err(INVALID),
        };
        with(shard, |held| Ok(held.shard.submit_shutdown(endpoint(connection), how, tag)?))
    })
}

/// Closes an endpoint: 0 when what waits has left, 1 with what the system takes at once, 2 with a reset.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_close(shard: u64, id: u64, how: c_int, tag: u64) -> c_int {
    done(|| {
        let how = match how {
            0 => Close::Flush,
            1 => Close::Now,
            2 => Close::Abort,
            _ => return Err(INVALID),
        };
        with(shard, |held| Ok(held.shard.submit_close(endpoint(id), how, tag)?))
    })
}

/// Completes after `ms` milliseconds.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_timeout(shard: u64, ms: u64, tag: u64) -> c_int {
    done(|| with(shard, |held| Ok(held.shard.submit_timeout(Duration::from_millis(ms), tag)?)))
}

/// Runs one turn and writes up to `max` outcomes; how many. Waits for at most `timeout_ms` milliseconds (negative: for
/// ever) if there is nothing to give.
///
/// # Safety
///
/// `max` items can be written at `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_poll(
    shard: u64,
    timeout_ms: i64,
    room: *mut Outcome,
    max: usize,
) -> isize {
    guarded(-1, || {
        if room.is_null() || max == 0 {
            return Err(INVALID);
        }
        with(shard, |held| {
            if held.polling.replace(true) {
                return Err(INVALID);
            }
            held.lent.borrow_mut().clear();
            let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
            let timeout = if held.waiting.borrow().is_empty() { timeout } else { Some(Duration::ZERO) };
            let polled = held.shard.poll(timeout, |completion| {
                held.waiting.borrow_mut().push_back(completion);
            });
            held.polling.set(false);
            polled?;
            let mut given = 0;
            while given < max {
                let Some(completion) = held.waiting.borrow_mut().pop_front() else { break };
                let outcome = outcome(completion, &mut held.lent.borrow_mut());
                // SAFETY: the caller's promise; the index is below `max`.
                unsafe { room.add(given).write(outcome) };
                given += 1;
            }
            Ok(given as isize)
        })
    })
}

fn outcome(completion: Completion, lent: &mut Vec<Lease>) -> Outcome {
    let Completion { tag, endpoint, more, event } = completion;
    let mut outcome = Outcome {
        tag,
        endpoint: endpoint.as_u64(),
        kind: 0,
        more: c_int::from(more),
        error: 0,
        address_size: 0,
        accepted: 0,
        data: std::ptr::null(),
        size: 0,
        address: [0; BLOB_BYTES_MAX],
    };
    outcome.kind = match event {
        Event::Accepted(id) => {
            outcome.accepted = id.as_u64();
            1
        }
        Event::Connected => 2,
        Event::Received(lease) => {
            lend(&mut outcome, lease, lent);
            3
        }
        Event::End => 4,
        Event::ReceivedFrom { lease, from, .. } => {
            lend(&mut outcome, lease, lent);
            let (address, size) = address_to_blob(from);
            (outcome.address, outcome.address_size) = (address, size as c_int);
            5
        }
        Event::Sent => 6,
        Event::Writable => 7,
        Event::ShutDown => 8,
        Event::Elapsed => 9,
        Event::Closed => 10,
        Event::Failed(error) => {
            outcome.error = Failure::from(error).number();
            11
        }
    };
    outcome
}

fn lend(outcome: &mut Outcome, lease: Lease, lent: &mut Vec<Lease>) {
    (outcome.data, outcome.size) = (lease.as_ptr().cast(), lease.len());
    // The bytes lie in the pool or on the heap, so that they stay where they are.
    lent.push(lease);
}
