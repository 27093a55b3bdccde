//! What a task, and a connection, costs in memory while it waits, counted by an allocator of this program.
// Not on Windows: it counts what Unix sockets cost on io_uring and readiness.
#![cfg(unix)]
#![allow(unsafe_code)]

use anabranch::{Backend, Config, Shard, spawn, yield_now};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::{Future, pending};
use std::os::unix::net::UnixStream;

thread_local! {
    /// Bytes that this thread has allocated and not freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get() + layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TASKS: usize = 1 << 10;

/// Bytes per task that `make` describes, all of them waiting; and what is left per task when they have ended.
fn bytes_per_task<F: Future<Output = ()> + 'static>(make: impl Fn() -> F) -> (usize, usize) {
    let shard = Shard::new(anabranch::Config::default()).unwrap();
    shard.block_on(async {
        // Queues and lists reach their size before the count begins.
        let mut handles: Vec<_> = (0..TASKS).map(|_| spawn(make())).collect();
        yield_now().await;
        handles.iter_mut().for_each(anabranch::JoinHandle::abort);
        yield_now().await;
        drop(handles);
        let before = LIVE.get();
        let mut handles: Vec<_> = (0..TASKS).map(|_| spawn(make())).collect();
        yield_now().await;
        let waiting = LIVE.get() - before - size_of_val(&handles[..]) as isize;
        handles.iter_mut().for_each(anabranch::JoinHandle::abort);
        yield_now().await;
        drop(handles);
        let after = LIVE.get() - before;
        (waiting as usize / TASKS, after as usize / TASKS)
    })
}

#[test]
fn a_small_waiting_task_costs_its_future_and_less_than_a_hundred_bytes() {
    let (small, left) = bytes_per_task(pending::<()>);
    println!("pending: {small} bytes");
    assert!(small <= 80, "{small} bytes for a task without any state");
    assert_eq!(left, 0);
}

#[test]
fn a_task_holds_its_future_once() {
    const STATE: usize = 1000;
    let make = || {
        let state = [7_u8; STATE];
        async move {
            pending::<()>().await;
            std::hint::black_box(&state);
        }
    };
    let future = size_of_val(&make());
    let (bytes, left) = bytes_per_task(make);
    println!("{future} bytes of future: {bytes} bytes");
    assert!(bytes <= future + 96, "{bytes} bytes for a future of {future}");
    assert_eq!(left, 0);
}

const CONNECTIONS: usize = 256;

/// Bytes for a connection's descriptor, which is longer where it may be a simulated one, and for its place in the
/// poller's table.
const CONNECTION_BYTES: usize = if cfg!(feature = "sim") { 80 } else { 48 };

/// Bytes on the heap for each of as many connections as `serve` has been given, once all of them wait. What lies in
/// the tables of the shard is not counted: those have their size from the start.
fn bytes_per_connection(shard: &Shard, serve: impl Fn(UnixStream)) -> usize {
    let mut peers = Vec::with_capacity(2 * CONNECTIONS);
    let mut open = || {
        for _ in 0..CONNECTIONS {
            let (ours, theirs) = UnixStream::pair().unwrap();
            serve(ours);
            peers.push(theirs);
        }
        shard.block_on(async {
            for _ in 0..10 {
                yield_now().await;
            }
        });
        LIVE.get()
    };
    // Queues and lists reach their size with the first ones; those that double have room for as many again.
    let before = open();
    (open() - before) as usize / CONNECTIONS
}

/// What a task with a connection waits in most of the time.
async fn echo(mut stream: anabranch::net::UnixStream) -> std::io::Result<()> {
    while let Some(bytes) = stream.recv().await? {
        stream.send(bytes).await?;
    }
    stream.close().await
}

#[test]
fn an_idle_connection_costs_its_task_and_a_few_words() {
    for backend in [Backend::Readiness, Backend::Auto] {
        let shard = Shard::new(Config::new().backend(backend)).unwrap();
        let bytes = bytes_per_connection(&shard, |socket| {
            let serve = async { echo(anabranch::net::UnixStream::from_std(socket)?).await };
            shard.spawn(serve).detach();
        });
        println!("{backend:?}: {bytes} bytes");
        assert!(bytes <= CONNECTION_BYTES + 264, "{bytes} bytes for an idle connection and its task");
    }
}

#[test]
fn an_idle_connection_of_the_completion_api_costs_a_few_words() {
    for backend in [Backend::Readiness, Backend::Auto] {
        let shard = Shard::new(Config::new().backend(backend)).unwrap();
        let bytes = bytes_per_connection(&shard, |socket| {
            let connection = shard.adopt_stream(socket).unwrap();
            shard.submit_recv(connection, 1).unwrap();
        });
        println!("{backend:?}: {bytes} bytes");
        assert!(bytes <= CONNECTION_BYTES, "{bytes} bytes for an idle connection");
    }
}
