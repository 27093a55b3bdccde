//! Ctrl-C, Ctrl-Break and the end of the console, as Windows tells them.
#![allow(unsafe_code)]

use crate::driver::Descriptor;
use crate::driver::sys::os::libc;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, SetConsoleCtrlHandler};
use windows_sys::core::BOOL;

static LISTENERS: Mutex<Listeners> = Mutex::new(Listeners { replaced: Vec::new(), streams: Vec::new() });

struct Listeners {
    /// The signals whose default action is replaced, for the rest of the process's life.
    replaced: Vec<i32>,
    /// Who is told, and of which signal.
    streams: Vec<(i32, Arc<TcpStream>)>,
}

/// A handler that is in place.
pub(crate) struct Subscription(Arc<TcpStream>);

/// Begins to listen for the events that count as the signal of this number.
pub(crate) fn subscribe(number: i32) -> io::Result<(Descriptor, Subscription)> {
    if ![libc::SIGINT, libc::SIGTERM].contains(&number) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no such signal"));
    }
    let (ours, theirs) = connection()?;
    let theirs = Arc::new(theirs);
    let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: plain system call; the handler is a function of this program and stays.
    if listeners.replaced.is_empty() && unsafe { SetConsoleCtrlHandler(Some(tell), 1) } == 0 {
        return Err(io::Error::last_os_error());
    }
    if !listeners.replaced.contains(&number) {
        listeners.replaced.push(number);
    }
    listeners.streams.push((number, Arc::clone(&theirs)));
    Ok((ours.into(), Subscription(theirs)))
}

/// Runs on a thread of the system. Whether the default action is replaced; else the next handler is asked.
unsafe extern "system" fn tell(event: u32) -> BOOL {
    let number = if event == CTRL_C_EVENT { libc::SIGINT } else { libc::SIGTERM };
    let listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    if !listeners.replaced.contains(&number) {
        return 0;
    }
    let mut told = false;
    for (_, stream) in listeners.streams.iter().filter(|(other, _)| *other == number) {
        // If it is full, it has been told.
        let _ = (&**stream).write(&[0]);
        told = true;
    }
    drop(listeners);
    // Of the others (the console closes, the user logs off, the system ends) the system ends the process when this returns,
    // and some seconds later anyway.
    while told && ![CTRL_C_EVENT, CTRL_BREAK_EVENT].contains(&event) {
        std::thread::park();
    }
    1
}

/// Two ends of a connection with nobody else.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let theirs = TcpStream::connect(listener.local_addr()?)?;
    theirs.set_nonblocking(true)?;
    let own = theirs.local_addr()?;
    loop {
        // Somebody else may have been faster.
        let (ours, from) = listener.accept()?;
        if from == own {
            return Ok((ours, theirs));
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.streams.retain(|(_, stream)| !Arc::ptr_eq(stream, &self.0));
    }
}
