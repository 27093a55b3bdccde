//! [`Pipe`]: what a connection on a shard and threads that block pass to each other, bounded both ways.
#![forbid(unsafe_code)]

use super::blocking::ClientError;
use super::close::Closed;
use crate::api::time::now;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

/// What a message in a queue takes besides its bytes, so that many short ones are bounded, too.
const MESSAGE_BYTES: usize = 64;

fn cost(message: &Bytes) -> usize {
    message.len().saturating_add(MESSAGE_BYTES)
}

/// One connection between its task and threads.
pub(super) struct Pipe {
    number: u64,
    state: Mutex<State>,
    /// Threads wait here, for anything.
    changed: Condvar,
    inbound_bytes_max: usize,
    outbound_bytes_max: usize,
}

#[derive(Default)]
struct State {
    life: Life,
    inbound: VecDeque<Bytes>,
    inbound_bytes: usize,
    outbound: VecDeque<Bytes>,
    outbound_bytes: usize,
    end_of_stream: bool,
    /// No message is to follow.
    closing: bool,
    /// The task of the connection, if it waits for a thread.
    task: Option<Waker>,
}

#[derive(Default)]
enum Life {
    /// There was no connection yet.
    #[default]
    Before,
    Open,
    /// The name of the reason, and the reason.
    Ended(&'static str, String),
}

/// What a connection is to send.
pub(super) enum Next {
    Message(Bytes),
    Nothing,
    /// Nothing any more.
    End,
}

impl Pipe {
    /// The pipe with this number, and with bounds for what comes in and goes out.
    pub(super) fn new(number: u64, (inbound_bytes_max, outbound_bytes_max): (usize, usize)) -> Pipe {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Pipe { number, state, changed, inbound_bytes_max, outbound_bytes_max }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what `look` finds; until the deadline, if there is one.
    fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut look: impl FnMut(&mut State) -> Option<Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                let task = state.task.take();
                drop(state);
                // Room was made, or something is to be sent.
                if let Some(task) = task {
                    task.wake();
                }
                return found;
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Err(ClientError::TimedOut),
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    // What threads do.

    pub(super) fn is_open(&self) -> bool {
        matches!(self.lock().life, Life::Open)
    }

    pub(super) fn send(&self, message: Bytes, deadline: Option<Instant>) -> Result<(), ClientError> {
        self.wait(deadline, |state| {
            if let Some(ended) = state.ended() {
                return Some(Err(ended));
            }
            let queued = state.outbound_bytes;
            if queued > 0 && queued.saturating_add(cost(&message)) > self.outbound_bytes_max {
                return None;
            }
            state.outbound_bytes += cost(&message);
            state.outbound.push_back(message.clone());
            Some(Ok(()))
        })
    }

    pub(super) fn recv(&self, deadline: Option<Instant>) -> Result<Option<Bytes>, ClientError> {
        self.wait(deadline, |state| match state.inbound.pop_front() {
            Some(bytes) => {
                state.inbound_bytes -= cost(&bytes);
                Some(Ok(Some(bytes)))
            }
            None if state.end_of_stream => Some(Ok(None)),
            None => state.ended().map(Err),
        })
    }

    /// Ends the connection after what is queued.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
        self.changed.notify_all();
    }

    /// Whether the connection has ended by the deadline, or never began.
    pub(super) fn wait_for_end(&self, deadline: Option<Instant>) -> bool {
        let ended = self.wait(deadline, |state| match state.life {
            Life::Open => None,
            Life::Before | Life::Ended(..) => Some(Ok(())),
        });
        ended.is_ok()
    }

    // What the connection does.

    /// There is a connection; false if there was one already, or nobody wants one.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.lock();
        let begins = matches!(state.life, Life::Before) && !state.closing;
        if begins {
            state.life = Life::Open;
        }
        begins
    }

    /// What is to be sent next; later the task is woken if there is nothing.
    pub(super) fn next_out(&self, context: &Context<'_>) -> Next {
        let mut state = self.lock();
        let Some(message) = state.outbound.pop_front() else {
            state.task = Some(context.waker().clone());
            return if state.closing { Next::End } else { Next::Nothing };
        };
        state.outbound_bytes -= cost(&message);
        drop(state);
        self.changed.notify_all();
        Next::Message(message)
    }

    /// Whether more may be received; later the task is woken if not.
    pub(super) fn has_room(&self, context: &Context<'_>) -> bool {
        let mut state = self.lock();
        let has_room = state.inbound_bytes < self.inbound_bytes_max.max(1);
        if !has_room {
            state.task = Some(context.waker().clone());
        }
        has_room
    }

    pub(super) fn deliver(&self, bytes: Bytes) {
        let mut state = self.lock();
        state.inbound_bytes += cost(&bytes);
        state.inbound.push_back(bytes);
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn end_of_stream(&self) {
        self.lock().end_of_stream = true;
        self.changed.notify_all();
    }

    pub(super) fn end(&self, closed: &Closed) {
        let mut state = self.lock();
        state.life = Life::Ended(closed.reason.name(), closed.to_string());
        state.outbound.clear();
        state.outbound_bytes = 0;
        state.task = None;
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    /// Why nothing can be sent any more.
    fn ended(&self) -> Option<ClientError> {
        let (reason, text) = match &self.life {
            Life::Ended(reason, text) => (*reason, text.clone()),
            _ if self.closing => ("finished", "it was closed from here".to_owned()),
            _ => return None,
        };
        Some(ClientError::Ended { reason, text })
    }
}
