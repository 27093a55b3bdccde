//! A shard that somebody else schedules: [`Shard::block_on`] and the end of a shard, cut where they wait.
//!
//! A simulation steps many shards on one thread. Each step runs what the loop of a real shard runs between two
//! waits, in the same order and by the same functions; a shard that would sleep says so, stays announced as
//! asleep (invariant 13), and goes on from there with the next step.
#![forbid(unsafe_code)]

use super::core::{END_LOOK, Ending, Turn};
use super::{Close, Completion, Core, Entered, MainWaker, Shard};
use crate::counters::Counters;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What came of a step.
#[expect(clippy::large_enum_variant, reason = "a shard ends once")]
pub(crate) enum Step<T> {
    /// There is more to do at once.
    Again,
    /// There is nothing to do before a completion, a wake, or this long from now.
    Asleep(Option<Duration>),
    /// The main future has completed; tasks go on.
    Main(T),
    /// The shard has ended, with these last counters.
    Ended(Counters),
}

/// Called with each completion, until it breaks.
pub(crate) type OnCompletion<T> = Box<dyn FnMut(&Shard, Completion) -> ControlFlow<T>>;

/// What runs on a stepped shard.
pub(crate) enum Program<T> {
    /// A main future.
    Future(Pin<Box<dyn Future<Output = T>>>),
    /// A loop over the completion API.
    Loop(OnCompletion<T>),
    /// Nothing any more.
    Over,
}

/// A shard with its program.
pub(crate) struct Stepper<T> {
    core: Rc<Core>,
    program: Program<T>,
    /// Dropping it ends whatever was not ended by steps.
    shard: Option<Shard>,
    flag: Arc<MainWaker>,
    asleep: Option<Turn>,
    ending: Option<Ending>,
}

impl<T> Stepper<T> {
    /// A shard that will run the program that `make` gives, which is called inside of the shard.
    pub(crate) fn new(shard: Shard, make: impl FnOnce(&Shard) -> Program<T>) -> Stepper<T> {
        let core = Rc::clone(&shard.core);
        let entered = Entered::enter(&core);
        let program = make(&shard);
        drop(entered);
        let flag = MainWaker::new(&core.link);
        // Nobody polls a loop, so nothing would take the first wake.
        flag.woken.store(matches!(program, Program::Future(_)), Ordering::Release);
        Stepper { core, program, shard: Some(shard), flag, asleep: None, ending: None }
    }

    /// Goes on up to the next wait.
    ///
    /// # Panics
    ///
    /// If the program does.
    pub(crate) fn step(&mut self) -> Step<T> {
        let _entered = Entered::enter(&self.core);
        if let Some(turn) = self.asleep.take() {
            return self.look(turn.over());
        }
        if let Poll::Ready(output) = self.run_program() {
            return Step::Main(output);
        }
        match &mut self.ending {
            None => self.core.run_ready(),
            Some(ending) => {
                if !self.core.is_ending(ending) {
                    self.core.finish_end();
                    return Step::Ended(self.core.counters());
                }
            }
        }
        let wait = self.ending.is_some().then_some(END_LOOK);
        // Nobody wakes a loop but completions.
        let woken = (!matches!(self.program, Program::Loop(_))).then_some(&self.flag.woken);
        match self.core.begin_turn(wait, woken) {
            Ok(turn) => self.look(turn),
            Err(_) => Step::Ended(self.core.counters()),
        }
    }

    /// Begins to end the shard; further steps bring it to its end.
    pub(crate) fn end(&mut self, how: Close) {
        let _entered = Entered::enter(&self.core);
        self.program = Program::Over;
        if self.asleep.take().is_some() {
            // It works on from here, so the sleep that it announced is over.
            self.core.link.parking.resume();
        }
        self.ending = self.core.begin_end(how);
    }

    /// Ends the shard here and now; nothing that closes gets time.
    pub(crate) fn finish(mut self) -> Counters {
        self.end(Close::Abort);
        self.shard.take().map(Shard::finish).unwrap_or_default()
    }

    /// The counters so far.
    pub(crate) fn counters(&self) -> Counters {
        self.core.counters()
    }

    fn run_program(&mut self) -> Poll<T> {
        let ran = match (&mut self.program, &self.shard) {
            (Program::Future(main), _) if self.flag.woken.swap(false, Ordering::AcqRel) => {
                let waker = Waker::from(Arc::clone(&self.flag));
                main.as_mut().poll(&mut Context::from_waker(&waker))
            }
            (Program::Loop(on_completion), Some(shard)) => hand_out(shard, on_completion),
            _ => Poll::Pending,
        };
        if ran.is_ready() {
            self.program = Program::Over;
        }
        ran
    }

    fn look(&mut self, turn: Turn) -> Step<T> {
        let wait = turn.wait;
        match self.core.try_turn(turn) {
            Ok(None) => Step::Again,
            Ok(asleep) => {
                self.asleep = asleep;
                Step::Asleep(wait)
            }
            Err(error) => panic!("the shard cannot wait for completions: {error}"),
        }
    }
}

/// Hands completions to a loop over the completion API, as [`Shard::poll`] does.
fn hand_out<T>(
    shard: &Shard,
    on_completion: &mut dyn FnMut(&Shard, Completion) -> ControlFlow<T>,
) -> Poll<T> {
    while let Some(completion) = shard.core.next_completion() {
        if let ControlFlow::Break(output) = on_completion(shard, completion) {
            return Poll::Ready(output);
        }
    }
    Poll::Pending
}
