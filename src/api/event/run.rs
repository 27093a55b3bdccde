//! The thread of a shard: its loop, and how calls find out that they are made on it.
#![forbid(unsafe_code)]

use super::local::Local;
use super::message::Event;
use super::sockets::{Shared, Sockets};
use crate::config::{Config, Warning};
use crate::shard::{Entered, Shard};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// Calls of other threads that are done in one turn; the rest stays queued.
const COMMANDS_PER_TURN_MAX: usize = 4096;

thread_local! {
    /// The shard of an `OpenSocket` that runs on this thread.
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

struct Here {
    shared: Arc<Shared>,
    index: usize,
    local: Rc<RefCell<Local>>,
}

/// Takes the shard off its thread when the loop is over, however it ends.
struct Present;

impl Drop for Present {
    fn drop(&mut self) {
        let here = HERE.try_with(RefCell::take);
        drop(here);
    }
}

/// Works on a shard, if this is its thread. Whatever runs here must not call back.
#[inline]
pub(super) fn on_shard(shared: &Arc<Shared>, index: usize, work: impl FnOnce(&RefCell<Local>)) {
    // A thread that ends may still make calls, after what it had of its own has gone.
    let _ = HERE.try_with(|here| {
        if let Some(here) = &*here.borrow() {
            if here.index == index && Arc::ptr_eq(&here.shared, shared) {
                work(&here.local);
            }
        }
    });
}

/// The shard of these sockets that runs on this thread.
pub(super) fn current_shard(shared: &Arc<Shared>) -> Option<usize> {
    let current = HERE.try_with(|here| {
        let here = here.borrow();
        here.as_ref().filter(|here| Arc::ptr_eq(&here.shared, shared)).map(|here| here.index)
    });
    current.ok().flatten()
}

/// Starts the thread of a shard; returns when it serves.
///
/// # Errors
///
/// If there can be no thread, or the shard cannot be set up.
pub(super) fn start<F>(sockets: &Sockets, index: usize, callback: F) -> io::Result<thread::JoinHandle<()>>
where
    F: FnMut(&Sockets, Event) + Send + 'static,
{
    let (ready, is_ready) = mpsc::channel();
    let sockets = sockets.clone();
    let thread = thread::Builder::new().name(format!("opensocket-{index}")).spawn(move || {
        let config = with_warnings(sockets.shared.config.clone());
        match Shard::new(config) {
            Ok(shard) => {
                sockets.shared.stations[index].commands.begin(shard.remote());
                let _ = ready.send(Ok(()));
                serve(&sockets, index, shard, callback);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the thread of the shard ended at once")),
    }
}

/// The configuration of a shard that also tells its own facade of listeners that pause.
fn with_warnings(mut config: Config) -> Config {
    let users = config.on_warning.take();
    config.on_warning(move |warning| {
        if let Some(users) = &users {
            users(warning);
        }
        if let Warning::AcceptPaused { listener, error } = warning {
            HERE.with_borrow(|here| {
                if let Some(here) = here {
                    here.local.borrow_mut().on_accept_paused(*listener, error);
                }
            });
        }
    })
}

/// Serves until it is stopped or the callback panics.
fn serve<F>(sockets: &Sockets, index: usize, shard: Shard, mut callback: F)
where
    F: FnMut(&Sockets, Event),
{
    let shared = &sockets.shared;
    let shard = Rc::new(shard);
    let local = Rc::new(RefCell::new(Local::new(Arc::clone(shared), index, Rc::clone(&shard))));
    let here = Here { shared: Arc::clone(shared), index, local: Rc::clone(&local) };
    HERE.set(Some(here));
    // Also if the callback panics: nobody serves these sockets any more.
    let _stopped = Stopped(shared);
    let _closed = Closed(&local);
    let _present = Present;
    let _entered = Entered::enter(&shard.core);
    while !shared.is_stopped() && turn(sockets, &shard, &local, &mut callback).is_ok() {}
}

/// Lets the other shards end too.
struct Stopped<'a>(&'a Shared);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Closes every socket; the end of the shard waits for that.
struct Closed<'a>(&'a RefCell<Local>);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().close_all();
    }
}

/// One turn of the loop: calls of other threads, what they caused, a wait, and what came of it.
fn turn<F>(sockets: &Sockets, shard: &Shard, local: &RefCell<Local>, callback: &mut F) -> io::Result<()>
where
    F: FnMut(&Sockets, Event),
{
    shard.core.run_ready();
    let more = local.borrow_mut().run_commands(COMMANDS_PER_TURN_MAX);
    deliver(sockets, local, callback);
    if sockets.shared.is_stopped() {
        return Ok(());
    }
    shard.core.turn(more.then_some(Duration::ZERO), None)?;
    local.borrow_mut().begin_turn();
    while let Some(completion) = shard.core.next_completion() {
        let event = local.borrow_mut().on_completion(completion);
        if let Some(event) = event {
            callback(sockets, event);
        }
        deliver(sockets, local, callback);
        if sockets.shared.stopped.load(Ordering::Relaxed) {
            break;
        }
    }
    deliver(sockets, local, callback);
    Ok(())
}

/// Gives the callback what calls have caused.
fn deliver<F>(sockets: &Sockets, local: &RefCell<Local>, callback: &mut F)
where
    F: FnMut(&Sockets, Event),
{
    loop {
        let (event, graves) = {
            let mut local = local.borrow_mut();
            if local.events.is_empty() && local.graves.is_empty() {
                return;
            }
            (local.events.pop_front(), std::mem::take(&mut local.graves))
        };
        // Destructors of the program's may call back.
        drop(graves);
        if sockets.shared.is_stopped() {
            return;
        }
        if let Some(event) = event {
            callback(sockets, event);
        }
    }
}
