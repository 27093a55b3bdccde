//! Splices: bytes pass on, each operation ends once, and what was received is never lost.
//!
//! A simulated host has no pipes; there a splice is refused as unsupported, and receives nothing.

use crate::common::on_every_backend;
use crate::common::peer;
use crate::rig::{Rig, pattern};
use anabranch::driver::FdRef;
use anabranch::driver::completion::Done;
use anabranch::driver::op::{Direction, Splice, Spliced, Transit};
use anabranch::{BackendKind, Error};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

/// A connection of the driver's that does not block, and its other end.
fn connection(rig: &mut Rig) -> (FdRef, peer::TcpStream) {
    let (socket, peer) = rig.tcp();
    if !rig.is(BackendKind::Simulated) {
        socket2::SockRef::from(&socket).set_nonblocking(true).unwrap();
    }
    (socket, peer)
}

fn splice(from: &FdRef, to: &FdRef, direction: Direction, transit: &Transit) -> Splice {
    Splice { from: from.clone(), to: to.clone(), direction, transit: transit.clone() }
}

#[test]
fn a_splice_passes_on_everything_up_to_the_end_of_the_stream() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let ((from, mut source), (to, mut sink)) = (connection(&mut rig), connection(&mut rig));
        let writing = peer::spawn(move || {
            source.write_all(&pattern(1_000_000)).unwrap();
            source.shutdown(Shutdown::Write).unwrap();
            source
        });
        let transit = rig.driver.transit(0);
        let (mut direction, mut passed_on) = (Direction::Read, 0);
        let reading = (!rig.is(BackendKind::Simulated)).then(|| {
            peer::spawn(move || {
                let mut got = vec![0; 1_000_000];
                sink.read_exact(&mut got).unwrap();
                assert!(got == pattern(1_000_000), "the bytes differ");
            })
        });
        loop {
            let token = rig.submit(splice(&from, &to, direction, &transit));
            let done = rig.last(token);
            passed_on += transit.take_sent();
            match done {
                Done::Spliced(Ok(Spliced::End)) => break,
                Done::Spliced(Ok(Spliced::Blocked(other))) => direction = other,
                Done::Spliced(Ok(Spliced::Turn)) => {}
                Done::Spliced(Err(Error::Io(error))) if rig.is(BackendKind::Simulated) => {
                    assert_eq!((error.kind(), passed_on), (ErrorKind::Unsupported, 0));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        if let Some(reading) = reading {
            assert_eq!(passed_on, 1_000_000);
            reading.join().unwrap();
            drop(writing.join());
        }
        drop((from, to, transit));
        rig.end();
    });
}

#[test]
fn a_cancelled_splice_ends_once_and_what_it_holds_can_be_taken() {
    on_every_backend(|config| {
        let mut rig = Rig::new(config);
        let ((from, mut source), (to, sink)) = (connection(&mut rig), connection(&mut rig));
        let transit = rig.driver.transit(0);
        let waiting = rig.submit(splice(&from, &to, Direction::Read, &transit));
        rig.turn(Duration::from_millis(1));
        rig.driver.cancel(waiting);
        assert!(matches!(rig.last(waiting), Done::Spliced(Err(Error::Canceled | Error::Io(_)))));
        // Nothing goes on after a stop, whoever is still in flight.
        assert!(transit.stop().is_empty());
        source.write_all(b"too late").unwrap();
        let late = rig.submit(splice(&from, &to, Direction::Read, &transit));
        assert!(matches!(rig.last(late), Done::Spliced(Err(Error::Canceled))));
        assert_eq!(transit.take_sent(), 0);
        // One that is abandoned while its receiver is stuck: the bytes in the pipe are still there.
        if !rig.is(BackendKind::Simulated) {
            let transit = rig.driver.transit(0);
            let writing = peer::spawn(move || {
                let _ = source.write_all(&vec![7; 64 << 20]);
            });
            let mut direction = Direction::Read;
            let token = loop {
                let token = rig.submit(splice(&from, &to, direction, &transit));
                if direction == Direction::Write {
                    break token;
                }
                match rig.last(token) {
                    Done::Spliced(Ok(Spliced::Blocked(other))) => direction = other,
                    Done::Spliced(Ok(Spliced::Turn)) => {}
                    other => panic!("{other:?}"),
                }
            };
            rig.driver.abandon(token);
            assert!(!transit.stop().is_empty(), "nobody read, so something stands in the pipe");
            rig.until("the end of the abandoned one", |rig| rig.driver.in_flight() == 0);
            drop((from, to, sink));
            writing.join().unwrap();
        } else {
            drop((from, to, sink));
        }
        drop(transit);
        rig.end();
    });
}
