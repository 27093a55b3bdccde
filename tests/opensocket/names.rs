//! Connections to names, which are looked up beside the loop.
#![forbid(unsafe_code)]

use super::{PATIENCE, Told, listener, on_each_backend, told, wait};
use anabranch::event::{Event, OpenSocket, SocketId, Sockets};
use anabranch::{Backend, Config};
use std::sync::mpsc;
use std::thread;

/// Sockets whose names are looked up by one thread, which is busy until what is given back beside them is dropped: so
/// to say a resolver that takes long. The events come through the channel, and what is accepted gives back what it gets.
fn slow(backend: Backend) -> (OpenSocket, mpsc::Receiver<Told>, mpsc::Sender<()>) {
    let one = |config: Config| config.backend(backend).with_limits(|limits| limits.blocking_threads_max = 1);
    let sockets = OpenSocket::builder().config(one).build();
    let (sender, events) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (begin, begun) = mpsc::channel();
    let mut job = Some(move || {
        begin.send(()).unwrap();
        let _ = released.recv();
    });
    let callback = move |sockets: &Sockets, event: Event| {
        if let Some(job) = job.take() {
            anabranch::spawn(anabranch::offload(job)).detach();
        }
        match &event {
            Event::Accept { accepted, .. } => sockets.start(2, *accepted),
            Event::Data { id, uid: 2, data } => drop(sockets.send(*id, data.to_vec())),
            _ => {}
        }
        // The test may have seen enough.
        let _ = sender.send(told(&event));
    };
    sockets.run(callback).unwrap();
    sockets.close(77, 12_345);
    begun.recv_timeout(PATIENCE).expect("the thread is busy");
    wait(&events, |event| event.uid == 77);
    (sockets, events, release)
}

#[test]
fn a_look_up_that_takes_long_holds_up_nobody_else_and_its_socket_can_be_closed_meanwhile() {
    on_each_backend(|backend| {
        let (sockets, events, release) = slow(backend);
        let (_, port) = listener(&sockets);
        let waiting = sockets.connect(3, "localhost", port).unwrap();
        let closed = sockets.connect(4, "localhost", port).unwrap();
        let shut = sockets.connect(4, "localhost", port).unwrap();
        sockets.send(waiting, "hello").unwrap();
        sockets.send(closed, "dropped").unwrap();
        // An address needs no look-up, so this one goes on.
        let quick = sockets.connect(3, "127.0.0.1", port).unwrap();
        sockets.send(quick, "hi").unwrap();
        let echo = wait(&events, |event| event.uid == 3);
        assert_eq!((echo.kind, echo.id), ('O', quick));
        let echo = wait(&events, |event| event.uid == 3);
        assert_eq!((echo.kind, echo.id, echo.bytes), ('D', quick, 2));
        sockets.close(5, closed);
        sockets.shutdown(6, shut);
        let is_one = |event: &Told| [closed, shut].contains(&event.id);
        assert_eq!(
            [wait(&events, is_one), wait(&events, is_one)].map(|end| (end.kind, end.uid)),
            [('C', 5), ('C', 6)]
        );
        assert!(sockets.send(closed, "gone").is_err());
        drop(release);
        // The look-up of the others is not even begun, and nothing more is told of them.
        let others = wait(&events, |event| event.uid == 3 || is_one(event));
        assert_eq!((others.kind, others.id), ('O', waiting));
        let others = wait(&events, |event| event.uid == 3 || is_one(event));
        assert_eq!((others.kind, others.id, others.bytes), ('D', waiting, 5));
        sockets.close(7, waiting);
        sockets.close(78, 12_345);
        let last = wait(&events, |event| event.uid == 78 || is_one(event));
        assert_eq!(last.uid, 78);
    });
}

#[test]
fn an_instance_ends_though_a_look_up_takes_long() {
    on_each_backend(|backend| {
        let (sockets, events, release) = slow(backend);
        sockets.connect(3, "localhost", 1).unwrap();
        sockets.close(78, 12_345);
        wait(&events, |event| event.uid == 78);
        let (end, ended) = mpsc::channel();
        thread::spawn(move || {
            drop(sockets);
            end.send(()).unwrap();
        });
        ended.recv_timeout(PATIENCE).expect("the end waits for no resolver");
        drop(release);
        // With the callback its end of the channel goes, and nothing came through it.
        assert_eq!(events.iter().count(), 0);
    });
}

#[test]
fn more_names_are_looked_up_than_there_are_threads_and_places_for_it() {
    on_each_backend(|backend| {
        let few = |config: Config| {
            config.backend(backend).with_limits(|limits| {
                (limits.blocking_threads_max, limits.blocking_queue_max) = (1, 1);
            })
        };
        let sockets = OpenSocket::builder().config(few).build();
        let (sender, events) = mpsc::channel();
        sockets.run(move |_, event| sender.send(told(&event)).unwrap()).unwrap();
        // Nobody listens there, on neither address of the name.
        let ids: Vec<SocketId> = (0..40).map(|_| sockets.connect(3, "localhost", 1).unwrap()).collect();
        let mut ended: Vec<SocketId> =
            ids.iter().map(|_| wait(&events, |event| event.kind == 'E').id).collect();
        ended.sort_unstable();
        assert_eq!(ended, ids);
    });
}
