//! Who waits for something of an endpoint: a future, or a tag of the completion API.
#![forbid(unsafe_code)]

use super::endpoint::EndpointId;
use super::engine::Engine;
use super::event::Event;
use crate::error::Error;
use std::task::Waker;

/// One waiting party.
#[derive(Debug, Default)]
pub(crate) enum Waiter {
    /// Nobody.
    #[default]
    None,
    /// A future, which looks for itself once woken.
    Future(Waker),
    /// A submission of the completion API, which gets an event.
    Tag(u64),
    /// A standing submission, which gets an event each time.
    Standing(u64),
}

impl Waiter {
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Waiter::None)
    }

    /// Whether a submission with a tag waits.
    pub(crate) fn is_tag(&self) -> bool {
        matches!(self, Waiter::Tag(_) | Waiter::Standing(_))
    }

    /// The tag that the next event goes to, and whether more may follow for it.
    #[inline]
    pub(crate) fn take_tag(&mut self) -> Option<(u64, bool)> {
        match *self {
            Waiter::Tag(tag) => {
                *self = Waiter::None;
                Some((tag, false))
            }
            Waiter::Standing(tag) => Some((tag, true)),
            _ => None,
        }
    }

    /// Takes the place of `other`; whoever waited there before hears that it ended.
    #[inline]
    pub(crate) fn replace(self, other: &mut Waiter, engine: &mut Engine) {
        if self.is_none() {
            return;
        }
        match std::mem::replace(other, self) {
            Waiter::Future(waker) if !matches!(other, Waiter::Future(new) if new.will_wake(&waker)) => {
                engine.wakers.push(waker);
            }
            _ => {}
        }
    }

    /// Wakes a future; a tag stays, for its event is made elsewhere.
    #[inline]
    pub(crate) fn wake(&mut self, engine: &mut Engine) {
        match std::mem::take(self) {
            Waiter::Future(waker) => engine.wakers.push(waker),
            other => *self = other,
        }
    }

    /// Tells the waiting party: wakes a future, or makes the tag's event.
    pub(crate) fn notify(
        self,
        engine: &mut Engine,
        id: EndpointId,
        more: bool,
        event: impl FnOnce() -> Event,
    ) {
        match self {
            Waiter::None => {}
            Waiter::Future(waker) => engine.wakers.push(waker),
            Waiter::Tag(tag) | Waiter::Standing(tag) => engine.emit(tag, id, more, event()),
        }
    }

    /// Ends the wait with an error.
    pub(crate) fn fail(&mut self, engine: &mut Engine, id: EndpointId, error: &Error) {
        std::mem::take(self).notify(engine, id, false, || Event::Failed(error.duplicate()));
    }
}

/// Several waiting parties, in order.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Vec<Waiter>);

impl Waiters {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a party in line; a future that stands there already is not put in again.
    pub(crate) fn push(&mut self, waiter: Waiter) {
        let known = match &waiter {
            Waiter::Future(new) => {
                self.0.iter().any(|old| matches!(old, Waiter::Future(old) if old.will_wake(new)))
            }
            _ => false,
        };
        if !known && !waiter.is_none() {
            self.0.push(waiter);
        }
    }

    /// The first tag in line, and whether more may follow for it.
    pub(crate) fn take_tag(&mut self) -> Option<(u64, bool)> {
        let index = self.0.iter().position(Waiter::is_tag)?;
        let taken = self.0[index].take_tag();
        if self.0[index].is_none() {
            self.0.remove(index);
        }
        taken
    }

    /// Wakes every future. All of them, because one that was dropped may still stand in line.
    pub(crate) fn wake_all(&mut self, engine: &mut Engine) {
        self.0.iter_mut().for_each(|waiter| waiter.wake(engine));
        self.0.retain(|waiter| !waiter.is_none());
    }

    /// Ends every wait with an error.
    pub(crate) fn fail_all(&mut self, engine: &mut Engine, id: EndpointId, error: &Error) {
        self.notify_all(engine, id, || Event::Failed(error.duplicate()));
    }

    /// Ends every wait with an event.
    pub(crate) fn notify_all(&mut self, engine: &mut Engine, id: EndpointId, event: impl Fn() -> Event) {
        self.0.drain(..).for_each(|waiter| waiter.notify(engine, id, false, &event));
    }
}
