//! One shard of a simulated host, from its start to its end.
#![forbid(unsafe_code)]

use super::builder::Host;
use crate::config::Config;
use crate::counters::Counters;
use crate::driver::sys::sim::{NodeId, World as Network};
use crate::shard::{Close, Program, Shard, Step, SteppedGroup, Stepper};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// A shard that is stepped.
pub(super) struct Process {
    stepper: Option<Stepper<Result<(), String>>>,
    pub(super) node: NodeId,
    /// Nothing to do before this time or a word of the world.
    pub(super) asleep_until: Option<Duration>,
    pub(super) is_asleep: bool,
    /// The scheduler leaves it out until then.
    pub(super) stalled_until: Duration,
    pub(super) main_returned: bool,
}

/// What a step came to.
pub(super) enum Outcome {
    Goes,
    /// The main future has returned.
    Returned(Result<(), String>),
    /// The shard has ended.
    Ended(Box<Counters>),
    Panicked(String),
}

impl Process {
    /// Makes the shards of a host, and then their main futures.
    pub(super) fn start_all(host: &Host, config: &Config) -> io::Result<Vec<Process>> {
        let group = SteppedGroup::new(host.shards);
        let shards = (0..host.shards).map(|_| Shard::new(config.clone())).collect::<io::Result<Vec<_>>>()?;
        let contexts: Vec<_> =
            shards.iter().enumerate().map(|(index, shard)| group.join(index, shard)).collect();
        let started = shards.into_iter().zip(contexts).map(|(shard, context)| {
            let node = shard.node().expect("a simulated shard has a node");
            let group = group.clone();
            let stepper = Stepper::new(shard, |shard| match (host.main)(context, shard) {
                Program::Future(main) => Program::Future(Box::pin(group.until_stopped(main))),
                other => other,
            });
            Process {
                stepper: Some(stepper),
                node,
                asleep_until: None,
                is_asleep: false,
                stalled_until: Duration::ZERO,
                main_returned: false,
            }
        });
        Ok(started.collect())
    }

    /// Whether it has something to do.
    pub(super) fn is_ready(&self, network: &Network, now: Duration) -> bool {
        let told = network.is_runnable(self.node);
        let due = self.asleep_until.is_some_and(|until| until <= now);
        !self.is_over() && (!self.is_asleep || told || due) && self.stalled_until <= now
    }

    /// Whether its shard has ended.
    pub(super) fn is_over(&self) -> bool {
        self.stepper.is_none()
    }

    pub(super) fn counters(&self) -> Option<Counters> {
        self.stepper.as_ref().map(Stepper::counters)
    }

    /// Goes on up to the next wait. `now` is the simulated time.
    pub(super) fn step(&mut self, now: Duration) -> Outcome {
        let Some(stepper) = &mut self.stepper else { return Outcome::Goes };
        self.is_asleep = false;
        match catch_unwind(AssertUnwindSafe(|| stepper.step())) {
            Err(panic) => Outcome::Panicked(text_of(&*panic)),
            Ok(Step::Again) => Outcome::Goes,
            Ok(Step::Asleep(wait)) => {
                self.is_asleep = true;
                self.asleep_until = wait.map(|wait| now.saturating_add(wait));
                Outcome::Goes
            }
            Ok(Step::Main(result)) => {
                self.main_returned = true;
                Outcome::Returned(result)
            }
            Ok(Step::Ended(counters)) => {
                self.stepper = None;
                Outcome::Ended(Box::new(counters))
            }
        }
    }

    /// Begins to end the shard, in order.
    pub(super) fn end(&mut self) {
        self.is_asleep = false;
        if let Some(stepper) = &mut self.stepper {
            stepper.end(Close::Flush);
        }
    }

    /// The host has crashed: the shard ends here and now, and nothing that it does has an effect any more.
    pub(super) fn crash(&mut self) -> Option<Counters> {
        let stepper = self.stepper.take()?;
        Some(stepper.finish())
    }
}

/// The text of a panic.
pub(super) fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no text)".into())
}
