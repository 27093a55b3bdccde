//! Shards of one host that run between two steps of another one, as threads on several processors do.
//!
//! The runtime marks the places in its protocols between threads at which this matters. There the seed may choose a
//! shard of the same host and let it make a step, inside of the step of the first.
#![forbid(unsafe_code)]

use super::Fault;
use super::process::{Outcome, Process};
use super::world::World;
use crate::driver::sys::sim::HostId;
use std::cell::RefCell;
use std::rc::Rc;

/// A process that others may find being stepped.
pub(super) type SharedProcess = Rc<RefCell<Process>>;

thread_local! {
    /// The host of which a shard is being stepped, if it has others.
    static STEPPED: RefCell<Option<Stepped>> = const { RefCell::new(None) };
}

struct Stepped {
    world: World,
    host: HostId,
    processes: Vec<SharedProcess>,
    /// What became of those that ran in between.
    outcomes: Vec<(usize, Outcome)>,
}

/// Makes a step of one process of a host, in which the others may make theirs. Gives what became of each.
pub(super) fn step(
    world: &World,
    host: HostId,
    processes: &[SharedProcess],
    index: usize,
) -> Vec<(usize, Outcome)> {
    let now = world.now();
    if processes.len() == 1 {
        return vec![(index, processes[index].borrow_mut().step(now))];
    }
    let stepped = Stepped { world: world.clone(), host, processes: processes.to_vec(), outcomes: Vec::new() };
    STEPPED.set(Some(stepped));
    let outcome = processes[index].borrow_mut().step(now);
    let mut outcomes = STEPPED.take().map(|stepped| stepped.outcomes).unwrap_or_default();
    outcomes.push((index, outcome));
    outcomes
}

/// Perhaps lets another shard of the host that is being stepped run.
pub(super) fn interrupt() {
    let Some((world, host, index, process)) =
        STEPPED.with_borrow(|stepped| stepped.as_ref().and_then(chosen))
    else {
        return;
    };
    // Nobody else borrows it: whoever is being stepped was left out.
    let Ok(mut process) = process.try_borrow_mut() else { return };
    let now = world.network(|network| {
        network.note(host, format_args!("shard {index} runs meanwhile"));
        network.take_runnable(process.node);
        network.take_woken(process.node);
        network.now()
    });
    let outcome = process.step(now);
    STEPPED.with_borrow_mut(|stepped| {
        if let Some(stepped) = stepped {
            stepped.outcomes.push((index, outcome));
        }
    });
}

/// A process that may run now, if the seed wants one to.
fn chosen(stepped: &Stepped) -> Option<(World, HostId, usize, SharedProcess)> {
    let Stepped { world, host, processes, .. } = stepped;
    if !world.network(|network| network.roll(*host, Fault::Buggify)) {
        return None;
    }
    let now = world.now();
    let ready: Vec<usize> = (0..processes.len())
        .filter(|index| {
            let Ok(process) = processes[*index].try_borrow() else { return false };
            world.network(|network| process.is_ready(network, now))
        })
        .collect();
    if ready.is_empty() {
        return None;
    }
    let index = world.network(|network| ready[network.random().below(ready.len() as u64) as usize]);
    Some((world.clone(), *host, index, Rc::clone(&processes[index])))
}
