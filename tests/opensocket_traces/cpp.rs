//! The C++ class as the scenarios see it, by way of `tests/cpp/shim.cpp`.

use crate::common::cpp;
use crate::world::{Calls, Message, RawSocket, Record, Row, World};
use nix::libc;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};

enum Shim {}

#[repr(C)]
struct Event {
    kind: c_int,
    fd: c_int,
    ud: c_int,
    uid: usize,
    size: usize,
    buffer: *const c_char,
    option: *const c_char,
}

#[repr(C)]
struct RawRow {
    id: c_int,
    kind: c_int,
    opaque: u64,
    read: u64,
    write: u64,
    rtime: u64,
    wtime: u64,
    wbuffer: i64,
    name: *const c_char,
}

type Sink = extern "C" fn(*mut c_void, *const Event);
type Each = extern "C" fn(*mut c_void, *const RawRow);
type Text = *const c_char;

/// The functions of the shim.
#[repr(C)]
struct Table {
    create: unsafe extern "C" fn(Sink, *mut c_void) -> *mut Shim,
    destroy: unsafe extern "C" fn(*mut Shim),
    listen: unsafe extern "C" fn(*mut Shim, usize, Text, c_int, c_int) -> c_int,
    connect: unsafe extern "C" fn(*mut Shim, usize, Text, c_int) -> c_int,
    bind: unsafe extern "C" fn(*mut Shim, usize, c_int) -> c_int,
    udp: unsafe extern "C" fn(*mut Shim, usize, Text, c_int) -> c_int,
    start: unsafe extern "C" fn(*mut Shim, usize, c_int),
    close: unsafe extern "C" fn(*mut Shim, usize, c_int),
    shutdown: unsafe extern "C" fn(*mut Shim, usize, c_int),
    nodelay: unsafe extern "C" fn(*mut Shim, c_int),
    send: unsafe extern "C" fn(*mut Shim, c_int, Text, c_int) -> c_int,
    send_low: unsafe extern "C" fn(*mut Shim, c_int, Text, c_int) -> c_int,
    udp_connect: unsafe extern "C" fn(*mut Shim, c_int, Text, c_int) -> c_int,
    udp_send: unsafe extern "C" fn(*mut Shim, c_int, Text, c_int, Text, c_int) -> c_int,
    udp_address: unsafe extern "C" fn(*mut Shim, Text, c_int, *mut c_char, c_int) -> c_int,
    info: unsafe extern "C" fn(*mut Shim, Each, *mut c_void),
}

/// Compiles and loads the shim.
fn table() -> &'static Table {
    static LOADED: OnceLock<usize> = OnceLock::new();
    let table = *LOADED.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let shim = directory.path().join("shim.so");
        cpp::compile(&["tests/cpp/shim.cpp"], &shim);
        let path = CString::new(shim.to_str().expect("a path")).expect("a path");
        // SAFETY: the shared object is ours; its start only begins static objects.
        unsafe {
            let object = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!object.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            libc::dlsym(object, c"opensocket_shim".as_ptr()) as usize
        }
    });
    // SAFETY: the object stays loaded, and the table is as the shim has it.
    unsafe { (table as *const Table).as_ref() }.expect("the shim has its table")
}

/// A facade that runs on the backend of the environment.
pub(crate) fn world() -> World {
    let record = Arc::new(Record::default());
    let shared = Arc::new(Shared { record: Arc::clone(&record), shim: OnceLock::new() });
    let user = Arc::as_ptr(&shared).cast_mut().cast();
    // SAFETY: what `user` points to lives until the facade is destroyed.
    let shim = unsafe { (table().create)(on_event, user) };
    assert!(!shim.is_null(), "the facade runs");
    shared.shim.set(Cpp(shim)).ok().expect("it is set once");
    World::new(Box::new(Cpp(shim)), Box::new(Whole(Cpp(shim), shared)), record)
}

/// A facade that somebody else destroys.
struct Cpp(*mut Shim);

// SAFETY: every call of the class may be made from any thread.
unsafe impl Send for Cpp {}
// SAFETY: as above.
unsafe impl Sync for Cpp {}

struct Shared {
    record: Arc<Record>,
    /// Set as soon as it is known; no event comes before a call.
    shim: OnceLock<Cpp>,
}

struct Whole(Cpp, #[allow(dead_code, reason = "the callback points to it")] Arc<Shared>);

impl Drop for Whole {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once; no callback runs afterwards.
        unsafe { (table().destroy)(self.0.0) };
    }
}

const NAMES: [&str; 7] = ["Data", "Close", "Open", "Accept", "Error", "Udp", "Warning"];

extern "C" fn on_event(user: *mut c_void, event: *const Event) {
    // SAFETY: `user` lives as long as the facade, the event as long as this call.
    let (shared, event) = unsafe { (&*user.cast::<Shared>(), &*event) };
    let is_text = matches!(event.kind, 2..=4);
    // SAFETY: `size` bytes can be read at the buffer, if there is one.
    let bytes =
        |start: *const c_char, len| unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len).to_vec() };
    let buffer = (!event.buffer.is_null()).then(|| bytes(event.buffer, event.size - usize::from(is_text)));
    let option = (!event.option.is_null()).then(|| {
        // The address stands right behind the payload.
        assert_eq!(event.option as usize, event.buffer as usize + event.size);
        let tag = bytes(event.option, 1)[0];
        bytes(event.option, if tag == 1 { 7 } else { 19 })
    });
    let message = Message {
        ev: NAMES[event.kind as usize],
        fd: event.fd,
        uid: event.uid,
        ud: event.ud,
        size: event.size,
        buffer,
        option,
    };
    shared.record.on_message(shared.shim.get().expect("a call was made"), message);
}

extern "C" fn on_row(user: *mut c_void, row: *const RawRow) {
    // SAFETY: both live as long as this call, and the name has its NUL.
    unsafe {
        let (rows, row) = (&mut *user.cast::<Vec<Row>>(), &*row);
        let name = CStr::from_ptr(row.name).to_str().expect("text").to_owned();
        let RawRow { id, kind, opaque, read, write, rtime, wtime, wbuffer, .. } = *row;
        rows.push(Row { id, kind, uid: opaque as usize, read, write, rtime, wtime, pending: wbuffer, name });
    }
}

/// A call of the shim.
macro_rules! shim {
    ($self:ident.$name:ident($($arg:expr),*)) => {{
        // SAFETY: the facade lives as long as `self`, and pointers among the arguments as long as this call.
        unsafe { (table().$name)($self.0, $($arg),*) }
    }};
}

fn c(text: &str) -> CString {
    CString::new(text).expect("no NUL in a host")
}

impl Calls for Cpp {
    fn listen(&self, uid: usize, host: &str, port: i32, backlog: i32) -> i32 {
        shim!(self.listen(uid, c(host).as_ptr(), port, backlog))
    }
    fn connect(&self, uid: usize, host: &str, port: i32) -> i32 {
        shim!(self.connect(uid, c(host).as_ptr(), port))
    }
    fn bind(&self, uid: usize, fd: RawSocket) -> i32 {
        shim!(self.bind(uid, fd))
    }
    fn udp(&self, uid: usize, host: &str, port: i32) -> i32 {
        shim!(self.udp(uid, c(host).as_ptr(), port))
    }
    fn start(&self, uid: usize, id: i32) {
        shim!(self.start(uid, id));
    }
    fn close(&self, uid: usize, id: i32) {
        shim!(self.close(uid, id));
    }
    fn shutdown(&self, uid: usize, id: i32) {
        shim!(self.shutdown(uid, id));
    }
    fn nodelay(&self, id: i32) {
        shim!(self.nodelay(id));
    }
    fn send(&self, id: i32, bytes: &[u8]) -> i32 {
        shim!(self.send(id, bytes.as_ptr().cast(), bytes.len() as c_int))
    }
    fn send_low(&self, id: i32, bytes: &[u8]) -> i32 {
        shim!(self.send_low(id, bytes.as_ptr().cast(), bytes.len() as c_int))
    }
    fn udp_connect(&self, id: i32, host: &str, port: i32) -> i32 {
        shim!(self.udp_connect(id, c(host).as_ptr(), port))
    }
    fn udp_send(&self, id: i32, to: &[u8], bytes: &[u8]) -> i32 {
        let (to, bytes) =
            ((to.as_ptr().cast(), to.len() as c_int), (bytes.as_ptr().cast(), bytes.len() as c_int));
        shim!(self.udp_send(id, to.0, to.1, bytes.0, bytes.1))
    }
    fn udp_address(&self, blob: Option<&[u8]>) -> Option<String> {
        let mut text = [0; 64];
        let (start, len) = blob.map_or((std::ptr::null(), 0), |blob| (blob.as_ptr().cast(), blob.len()));
        let printed = shim!(self.udp_address(start, len as c_int, text.as_mut_ptr(), 64));
        // SAFETY: what was printed has its NUL.
        (printed == 0).then(|| unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().expect("text").to_owned())
    }
    fn info(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        shim!(self.info(on_row, (&raw mut rows).cast()));
        rows
    }
}
