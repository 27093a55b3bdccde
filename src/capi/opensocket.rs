//! The event facade.
#![allow(unsafe_code)]

use super::address::{
    BLOB_BYTES_MAX, address_from_blob, address_text, address_to_blob, blob_bytes, write_address,
};
use super::errors::{Failure, INVALID, UNKNOWN, bytes, done, guarded, text, write_text};
use crate::api::event::{Event, Info, InfoKind, OpenSocket, domain_name_to_ip};
use crate::buf::Lease;
use crate::config::Config;
use nix::libc;
use std::alloc::{Layout, handle_alloc_error};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// An event, lent for as long as the callback runs.
#[repr(C)]
#[derive(Debug)]
pub struct Message {
    /// `ANABRANCH_OS_DATA` and so on.
    pub kind: c_int,
    /// The socket.
    pub fd: c_int,
    /// Whom it is for.
    pub uid: usize,
    /// Of an accept, the connection.
    pub ud: c_int,
    /// Bytes at `data`; of a warning, KiB that wait.
    pub size: usize,
    /// A payload, or a text with its NUL; null where there is neither.
    pub data: *const c_char,
    /// The address of a datagram, else null.
    pub option: *const c_char,
    /// Bytes at `option`.
    pub option_size: usize,
}

/// What is told of a socket.
#[repr(C)]
#[derive(Debug)]
pub struct Information {
    /// The socket.
    pub id: c_int,
    /// 1 a listener, 2 a connection, 3 for datagrams, 4 bound.
    pub kind: c_int,
    /// Its owner.
    pub uid: u64,
    /// Bytes received, or connections accepted.
    pub read: u64,
    /// Bytes sent.
    pub written: u64,
    /// When, in seconds since 1970; 0 if never.
    pub read_at: u64,
    /// When, in seconds since 1970; 0 if never.
    pub written_at: u64,
    /// Bytes that wait.
    pub pending: i64,
    /// An address, with its NUL.
    pub name: [c_char; 64],
}

impl Information {
    fn of(info: &Info) -> Information {
        let mut name = [0; 64];
        if let Some(address) = info.address {
            // There is room for the longest, and the NUL.
            write_address(address, &mut name[..63]);
        }
        Information {
            id: info.id,
            kind: match info.kind {
                InfoKind::Listener => 1,
                InfoKind::Tcp => 2,
                InfoKind::Udp => 3,
                InfoKind::Bound => 4,
            },
            uid: info.uid as u64,
            read: info.read,
            written: info.written,
            read_at: info.read_at,
            written_at: info.written_at,
            pending: info.pending_bytes as i64,
            name: name.map(|byte: u8| byte as c_char),
        }
    }
}

/// What gets events.
pub type Callback = unsafe extern "C" fn(user: *mut c_void, message: *const Message);

struct Instance {
    number: u64,
    sockets: OpenSocket,
    freed: AtomicBool,
}

/// The instances by number. Threads look here once; then they remember.
static INSTANCES: RwLock<Option<HashMap<u64, Arc<Instance>>>> = RwLock::new(None);
static NEXT: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The instance that this thread used last, so that a call takes no lock.
    static LAST: Cell<Option<Arc<Instance>>> = const { Cell::new(None) };
}

fn find(number: u64) -> Result<Arc<Instance>, Failure> {
    let instances = INSTANCES.read().unwrap_or_else(PoisonError::into_inner);
    instances.as_ref().and_then(|all| all.get(&number)).cloned().ok_or(UNKNOWN)
}

/// Works with an instance.
#[inline]
fn with<R>(number: u64, work: impl FnOnce(&OpenSocket) -> Result<R, Failure>) -> Result<R, Failure> {
    // A thread that ends remembers nothing any more.
    let last = LAST.try_with(Cell::take).ok().flatten();
    let is_it = |last: &Arc<Instance>| last.number == number && !last.freed.load(Ordering::Acquire);
    let instance = match last.filter(is_it) {
        Some(instance) => instance,
        None => find(number)?,
    };
    let result = work(&instance.sockets);
    let _ = LAST.try_with(|last| last.set(Some(instance)));
    result
}

/// Makes an instance; its number.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_new() -> u64 {
    guarded(0, || Ok(add(OpenSocket::builder().config(Config::gives_buffers).build())))
}

/// Makes an instance with settings: the number of shards, and the backend (0 chosen, 1 io_uring, 2 readiness).
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_new_with(shards: c_int, backend: c_int) -> u64 {
    guarded(0, || {
        let backend = super::completion::backend(backend)?;
        let shards =
            usize::try_from(shards).ok().filter(|shards| (1..=128).contains(shards)).ok_or(INVALID)?;
        let change = |config: Config| config.backend(backend).gives_buffers();
        Ok(add(OpenSocket::builder().shards(shards).config(change).build()))
    })
}

fn add(sockets: OpenSocket) -> u64 {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let instance = Arc::new(Instance { number, sockets, freed: AtomicBool::new(false) });
    let mut instances = INSTANCES.write().unwrap_or_else(PoisonError::into_inner);
    instances.get_or_insert_default().insert(number, instance);
    number
}

/// Ends an instance: no callback runs once this has returned.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_free(os: u64) -> c_int {
    done(|| {
        let removed = {
            let mut instances = INSTANCES.write().unwrap_or_else(PoisonError::into_inner);
            instances.as_mut().and_then(|all| all.remove(&os)).ok_or(UNKNOWN)?
        };
        removed.freed.store(true, Ordering::Release);
        removed.sockets.stop();
        let _ = LAST.try_with(Cell::take);
        Ok(())
    })
}

/// The callback with what is handed to it.
#[derive(Clone, Copy)]
struct Receiver {
    callback: Callback,
    user: *mut c_void,
    /// What messages point to is the callback's, to be freed by it.
    owns: bool,
}

// SAFETY: the program promises that both may be used on the threads of the instance; see `anabranch_os_run`.
unsafe impl Send for Receiver {}

/// Starts the threads of an instance.
///
/// # Safety
///
/// `callback` may be called with `user` on other threads, from several at a time if there are several shards, until the
/// instance is freed; it does not throw.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_run(os: u64, callback: Option<Callback>, user: *mut c_void) -> c_int {
    run(os, callback, user, false)
}

/// As [`anabranch_os_run`], but what is at `data` of a message comes from `malloc` and is the callback's to `free`,
/// the address at `option` with it. Large payloads are not copied for it.
///
/// # Safety
///
/// As for [`anabranch_os_run`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_run_owning(
    os: u64,
    callback: Option<Callback>,
    user: *mut c_void,
) -> c_int {
    run(os, callback, user, true)
}

fn run(os: u64, callback: Option<Callback>, user: *mut c_void, owns: bool) -> c_int {
    done(|| {
        let receiver = Receiver { callback: callback.ok_or(INVALID)?, user, owns };
        with(os, |sockets| {
            sockets.run_each(|_| move |_: &_, event: Event| hand_over(receiver, event))?;
            Ok(())
        })
    })
}

/// Gives an event to the program.
fn hand_over(to: Receiver, event: Event) {
    let (fd, uid) = (event.id(), event.uid());
    let mut message = Message {
        kind: 0,
        fd,
        uid,
        ud: 0,
        size: 0,
        data: std::ptr::null(),
        option: std::ptr::null(),
        option_size: 0,
    };
    let mut words = String::new();
    let mut blob = [0; BLOB_BYTES_MAX];
    let mut payload = None;
    message.kind = match event {
        Event::Data { data, .. } => {
            payload = Some(data);
            0
        }
        Event::Close { .. } => 1,
        Event::Open { how, .. } => {
            words = how.to_string();
            2
        }
        Event::Accept { accepted, peer, .. } => {
            words = address_text(peer);
            message.ud = accepted;
            3
        }
        Event::Error { trouble, .. } => {
            words = trouble.to_string();
            4
        }
        Event::Udp { data, from, .. } => {
            payload = Some(data);
            (blob, message.option_size) = address_to_blob(from);
            5
        }
        Event::Warning { pending_kib, .. } => {
            message.size = pending_kib;
            6
        }
    };
    if !words.is_empty() {
        words.push('\0');
        payload = Some(Lease::from_bytes(words.into()));
    }
    if let Some(lease) = &payload {
        (message.data, message.size) = (lease.as_ptr().cast(), lease.len());
        if message.option_size > 0 {
            message.option = blob.as_ptr().cast();
        }
    }
    if to.owns {
        payload.take().into_iter().for_each(|lease| own(&mut message, lease));
    }
    // SAFETY: the promise made to `anabranch_os_run`; what the message points to is the callback's now, or else `payload`,
    // which lives until after it.
    unsafe { (to.callback)(to.user, &raw const message) };
    drop(payload);
}

/// Makes what a message points to the callback's: the buffer that was received into, if there is one that
/// [can be given away](Lease::into_malloced), else a copy.
fn own(message: &mut Message, lease: Lease) {
    let lease = match lease.into_malloced() {
        Ok(memory) => return message.data = memory.as_ptr().cast(),
        Err(lease) => lease,
    };
    // One byte more, so that an empty datagram has memory, too.
    let size = lease.len() + message.option_size + 1;
    // SAFETY: a size above zero.
    let memory = unsafe { libc::malloc(size) }.cast::<c_char>();
    if memory.is_null() {
        handle_alloc_error(Layout::array::<u8>(size).unwrap_or(Layout::new::<u8>()));
    }
    // SAFETY: the memory has room for both, and is nobody else's; the address is there if it has a size.
    unsafe {
        memory.copy_from_nonoverlapping(lease.as_ptr().cast(), lease.len());
        if message.option_size > 0 {
            let behind = memory.add(lease.len());
            behind.copy_from_nonoverlapping(message.option, message.option_size);
            message.option = behind;
        }
    }
    message.data = memory;
}

fn id_of(given: io::Result<i32>) -> Result<c_int, Failure> {
    Ok(given?)
}

/// Listens; the id.
///
/// # Safety
///
/// `host` is null or a text with a NUL at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_listen(
    os: u64,
    uid: usize,
    host: *const c_char,
    port: c_int,
    backlog: c_int,
) -> c_int {
    guarded(-1, || {
        // SAFETY: the caller's promise.
        let host = unsafe { text(host)? };
        with(os, |sockets| id_of(sockets.listen(uid, &host, port, backlog)))
    })
}

/// Connects; the id.
///
/// # Safety
///
/// `host` is null or a text with a NUL at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_connect(
    os: u64,
    uid: usize,
    host: *const c_char,
    port: c_int,
) -> c_int {
    guarded(-1, || {
        // SAFETY: the caller's promise.
        let host = unsafe { text(host)? };
        with(os, |sockets| id_of(sockets.connect(uid, &host, port)))
    })
}

/// Takes a descriptor of the program's; the id.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_bind(os: u64, uid: usize, fd: RawFd) -> c_int {
    guarded(-1, || {
        let socket = match fd {
            // SAFETY: not negative; it is only duplicated, which fails if it is not open.
            0.. => unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned(),
            _ => Err(nix::errno::Errno::EBADF.into()),
        };
        with(os, |sockets| id_of(sockets.adopt(uid, socket)))
    })
}

/// Opens a socket for datagrams; the id.
///
/// # Safety
///
/// `host` is null or a text with a NUL at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_udp(os: u64, uid: usize, host: *const c_char, port: c_int) -> c_int {
    guarded(-1, || {
        // SAFETY: the caller's promise.
        let host = unsafe { text(host)? };
        with(os, |sockets| id_of(sockets.udp(uid, &host, port)))
    })
}

/// Makes a call of which an event tells what came.
fn tell(os: u64, call: impl FnOnce(&OpenSocket)) -> c_int {
    done(|| {
        with(os, |sockets| {
            call(sockets);
            Ok(())
        })
    })
}

/// Starts a socket, or gives it another owner.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_start(os: u64, uid: usize, id: c_int) -> c_int {
    tell(os, |sockets| sockets.start(uid, id))
}

/// Closes a socket when what waits has left.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_close(os: u64, uid: usize, id: c_int) -> c_int {
    tell(os, |sockets| sockets.close(uid, id))
}

/// Closes a socket at once.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_shutdown(os: u64, uid: usize, id: c_int) -> c_int {
    tell(os, |sockets| sockets.shutdown(uid, id))
}

/// Sets TCP_NODELAY.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_os_nodelay(os: u64, id: c_int) -> c_int {
    tell(os, |sockets| sockets.nodelay(id))
}

/// Sends.
///
/// # Safety
///
/// `size` bytes can be read at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_send(os: u64, id: c_int, data: *const c_void, size: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { send(os, id, data, size, false) }
}

/// Sends behind all else.
///
/// # Safety
///
/// `size` bytes can be read at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_send_low(
    os: u64,
    id: c_int,
    data: *const c_void,
    size: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { send(os, id, data, size, true) }
}

/// Sends from memory that can be read.
///
/// # Safety
///
/// `size` bytes can be read at `data`.
unsafe fn send(os: u64, id: c_int, data: *const c_void, size: c_int, low: bool) -> c_int {
    done(|| {
        let size = usize::try_from(size).map_err(|_| INVALID)?;
        // SAFETY: the caller's promise.
        let data = unsafe { bytes(data, size)? };
        with(os, |sockets| Ok(sockets.send_slice(id, data, low)?))
    })
}

/// Sets the default destination of a socket for datagrams.
///
/// # Safety
///
/// `host` is null or a text with a NUL at its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_udp_connect(
    os: u64,
    id: c_int,
    host: *const c_char,
    port: c_int,
) -> c_int {
    done(|| {
        // SAFETY: the caller's promise.
        let host = unsafe { text(host)? };
        with(os, |sockets| Ok(sockets.udp_connect(id, &host, port)?))
    })
}

/// The address in binary form at a pointer.
///
/// # Safety
///
/// `address` is null, or points to a tag with as many bytes behind it as the tag says.
unsafe fn address_at(address: *const c_char) -> Result<SocketAddr, Failure> {
    if address.is_null() {
        return Err(INVALID);
    }
    // SAFETY: the caller's promise, first for the tag and then for all of it.
    let blob = unsafe {
        let len = blob_bytes(address.cast::<u8>().read()).ok_or(INVALID)?;
        std::slice::from_raw_parts(address.cast(), len)
    };
    address_from_blob(blob).ok_or(INVALID)
}

/// Sends a datagram to an address in binary form.
///
/// # Safety
///
/// `address` is null or such an address; `size` bytes can be read at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_udp_send(
    os: u64,
    id: c_int,
    address: *const c_char,
    data: *const c_void,
    size: c_int,
) -> c_int {
    done(|| {
        let size = usize::try_from(size).map_err(|_| INVALID)?;
        // SAFETY: the caller's promises.
        let (to, data) = unsafe { (address_at(address)?, bytes(data, size)?) };
        with(os, |sockets| Ok(sockets.udp_send(id, to, data.to_vec())?))
    })
}

/// Writes an address in binary form as text, cut to the room.
///
/// # Safety
///
/// `address` is null or such an address; `len` bytes can be written at `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_udp_address(
    address: *const c_char,
    room: *mut c_char,
    len: usize,
) -> c_int {
    done(|| {
        // SAFETY: the caller's promises.
        unsafe { write_text(&address_text(address_at(address)?), room, len) }
    })
}

/// Writes what is known of up to `max` sockets; how many there are in all.
///
/// # Safety
///
/// `max` items can be written at `room`, which may be null if `max` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_os_socket_info(os: u64, room: *mut Information, max: usize) -> isize {
    guarded(-1, || {
        if room.is_null() && max > 0 {
            return Err(INVALID);
        }
        with(os, |sockets| {
            if max == 0 {
                return Ok(sockets.info_count() as isize);
            }
            let mut count = 0;
            sockets.each_info(|info| {
                if count < max {
                    // SAFETY: the caller's promise; the index is below `max`.
                    unsafe { room.add(count).write(Information::of(&info)) };
                }
                count += 1;
            });
            Ok(count as isize)
        })
    })
}

/// Writes the IPv4 address of a name. May wait for the resolver.
///
/// # Safety
///
/// `name` is null or a text with a NUL at its end; `len` bytes can be written at `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn anabranch_domain_name_to_ip(
    name: *const c_char,
    room: *mut c_char,
    len: usize,
) -> c_int {
    done(|| {
        // SAFETY: the caller's promises.
        unsafe {
            let ip = domain_name_to_ip(&text(name)?).ok_or(INVALID)?;
            write_text(&ip.to_string(), room, len)
        }
    })
}

/// Waits.
#[unsafe(no_mangle)]
pub extern "C" fn anabranch_sleep_ms(ms: i64) {
    guarded((), || {
        std::thread::sleep(Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
        Ok(())
    });
}
