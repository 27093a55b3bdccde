//! Single operations that belong to no socket's queues: files, and waiting for foreign descriptors.
#![forbid(unsafe_code)]

use super::endpoint::{Common, Farewell, Fate};
use super::engine::Engine;
use super::waiter::Waiter;
use crate::driver::Token;
use crate::driver::completion::{Completion, Done};

/// An operation and whoever waits for it.
pub(crate) struct Single {
    token: Option<Token>,
    waiter: Waiter,
    outcome: Option<Done>,
    /// Nobody will ask any more.
    abandoned: bool,
    pub(super) farewell: Farewell,
}

impl Single {
    pub(crate) fn new() -> Single {
        Single {
            token: None,
            waiter: Waiter::None,
            outcome: None,
            abandoned: false,
            farewell: Farewell::default(),
        }
    }

    pub(crate) fn started(&mut self, token: Token) {
        self.token = Some(token);
    }

    pub(crate) fn on_completion(&mut self, _: &Common, engine: &mut Engine, completion: Completion) -> Fate {
        self.token = None;
        if self.abandoned {
            engine.discard(completion.done);
            return Fate::Over;
        }
        self.outcome = Some(completion.done);
        self.waiter.wake(engine);
        Fate::Lives
    }

    /// The outcome, once there is one; puts the waiter in place if not.
    pub(crate) fn outcome(&mut self, engine: &mut Engine, waiter: impl FnOnce() -> Waiter) -> Option<Done> {
        let outcome = self.outcome.take();
        if outcome.is_none() {
            waiter().replace(&mut self.waiter, engine);
        }
        outcome
    }

    /// Nobody wants the outcome.
    pub(crate) fn abandon(&mut self, engine: &mut Engine) -> Fate {
        self.abandoned = true;
        self.stop(engine);
        if self.token.is_none() { Fate::Over } else { Fate::Lives }
    }

    pub(crate) fn stop(&mut self, engine: &mut Engine) {
        if let Some(token) = self.token {
            engine.driver.cancel(token);
        }
    }
}
