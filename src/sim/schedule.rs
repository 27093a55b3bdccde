//! The run of a simulation: which shard goes next, when time passes, and what counts as wrong.
//!
//! A shard is ready if it has more to do, was told something by the world, or has slept long enough. Among those the
//! seed chooses; each step takes a little simulated time. When none is ready, time jumps to the next event. If
//! there is none, whoever still waits waits for ever, and the run has failed.
#![forbid(unsafe_code)]

use super::builder::Builder;
use super::failure::{Failure, Report};
use super::interrupt::{self, SharedProcess};
use super::process::{Outcome, Process, text_of};
use super::world::World;
use crate::counters::Counters;
use crate::driver::Host as Surroundings;
use crate::driver::sys::sim::{
    Exclusive, Fault, HostId, Log, Machine, Settings, Simulation, World as Network,
};
use std::cell::{Ref, RefCell};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

/// How many of the last events a failure shows.
const TAIL_LINES: usize = 40;

/// So many of the last lines of the log are looked through for them.
const LINES_LOOKED_AT: usize = 160;

/// The run of a simulation.
pub(super) struct Schedule {
    builder: Builder,
    world: World,
    hosts: Vec<Place>,
    steps: u64,
    counters: Counters,
    /// The next of the builder's plans, which are in order of time.
    next_plan: usize,
    /// All mains have returned; the shards are being ended.
    ending: bool,
    /// Shards that are ready, by host and index; kept so that the list need not be allocated anew.
    ready: Vec<(usize, usize)>,
}

/// A host while the simulation runs.
struct Place {
    id: HostId,
    processes: Vec<SharedProcess>,
    /// It is down and restarts then.
    down_until: Option<Duration>,
    /// Its main has failed: its shards end, and it restarts.
    restarts: bool,
}

impl Place {
    fn have_mains_returned(&self) -> bool {
        self.processes.iter().all(|process| process.borrow().main_returned)
    }

    fn end(&mut self) {
        self.processes.iter().for_each(|process| process.borrow_mut().end());
    }
}

impl Schedule {
    pub(super) fn new(mut builder: Builder) -> Schedule {
        let (latency_min, latency_max) = builder.latency;
        let settings = Settings { latency_min, latency_max, ..Settings::default() };
        let mut network = Network::new(builder.seed, settings, builder.faults.clone());
        if builder.keeps_log {
            network.log_mut().keep_all();
        }
        let mut hosts = Vec::new();
        for (host, number) in builder.hosts.iter().zip(1u16..) {
            let usual = vec![
                IpAddr::from([10, 0, (number >> 8) as u8, number as u8]),
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number]),
            ];
            let addresses = if host.addresses.is_empty() { usual } else { host.addresses.clone() };
            let id = network.add_host(&host.name, addresses);
            hosts.push(Place { id, processes: Vec::new(), down_until: None, restarts: false });
        }
        builder.plans.sort_by_key(|(time, _)| *time);
        Schedule {
            world: World { simulation: Simulation::new(network) },
            builder,
            hosts,
            steps: 0,
            counters: Counters::default(),
            next_plan: 0,
            ending: false,
            ready: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Report, Failure> {
        let _exclusive = Exclusive::enter(interrupt::interrupt);
        match self.go() {
            Ok(()) => Ok(self.report()),
            Err(what) => {
                let failure = self.failure(what);
                // What is left is ended as by a crash, so that nothing of this run outlives it.
                for host in 0..self.hosts.len() {
                    let _ = catch_unwind(AssertUnwindSafe(|| self.crash(host)));
                }
                Err(failure)
            }
        }
    }

    fn go(&mut self) -> Result<(), String> {
        for host in 0..self.hosts.len() {
            self.start(host)?;
        }
        loop {
            self.carry_out_plans();
            self.crash_and_restart()?;
            self.run_blocking_work()?;
            if !self.ending && self.have_mains_returned() {
                self.ending = true;
                self.hosts.iter_mut().filter(|host| !host.restarts).for_each(Place::end);
            }
            if self.ending && self.all_processes().all(|process| process.is_over()) {
                return self.check_the_end();
            }
            self.find_ready();
            if self.ready.is_empty() {
                self.pass_time()?;
            } else {
                self.step_one()?;
                self.check_always()?;
            }
        }
    }

    fn all_processes(&self) -> impl Iterator<Item = Ref<'_, Process>> {
        self.hosts.iter().flat_map(|host| host.processes.iter().map(|process| process.borrow()))
    }

    fn now(&self) -> Duration {
        self.world.now()
    }

    fn start(&mut self, host: usize) -> Result<(), String> {
        let plan = &self.builder.hosts[host];
        let mut config = plan.config.clone().unwrap_or_else(|| self.builder.config.clone());
        let machine = Machine::new(&self.world.simulation, self.hosts[host].id);
        config.host = Surroundings::simulated(machine);
        let started = catch_unwind(AssertUnwindSafe(|| Process::start_all(plan, &config)));
        let started =
            started.map_err(|panic| format!("{} panicked at its start: {}", plan.name, text_of(&*panic)))?;
        let started =
            started.map_err(|error| format!("the shards of {} cannot be made: {error}", plan.name))?;
        self.hosts[host].processes =
            started.into_iter().map(|process| Rc::new(RefCell::new(process))).collect();
        Ok(())
    }

    fn carry_out_plans(&mut self) {
        while let Some((time, plan)) = self.builder.plans.get(self.next_plan) {
            if *time > self.world.now() {
                return;
            }
            self.next_plan += 1;
            plan(&self.world);
        }
    }

    fn have_mains_returned(&self) -> bool {
        let mut plans = self.builder.hosts.iter().zip(&self.hosts);
        plans.all(|(plan, place)| plan.serves || (place.down_until.is_none() && place.have_mains_returned()))
    }

    /// Hosts that shall crash do, unless the run is ending; those that were down long enough start again.
    fn crash_and_restart(&mut self) -> Result<(), String> {
        let crashes = self.world.network(Network::take_crashes);
        for id in crashes {
            let Some(host) = self.hosts.iter().position(|place| place.id == id) else { continue };
            let place = &self.hosts[host];
            let is_done = !self.builder.hosts[host].serves && place.have_mains_returned();
            if self.ending || place.down_until.is_some() || is_done {
                continue;
            }
            self.crash(host)?;
            let down = self.world.network(|network| network.random().between(1..=3000));
            self.hosts[host].down_until = Some(self.now() + Duration::from_millis(down));
        }
        let now = self.now();
        for host in 0..self.hosts.len() {
            if self.hosts[host].down_until.is_some_and(|until| until <= now || self.ending) {
                self.hosts[host].down_until = None;
                let id = self.hosts[host].id;
                self.world.network(|network| network.restart(id));
                if !self.ending {
                    self.start(host)?;
                }
            }
        }
        Ok(())
    }

    fn crash(&mut self, host: usize) -> Result<(), String> {
        let id = self.hosts[host].id;
        self.world.network(|network| network.crash(id));
        for index in 0..self.hosts[host].processes.len() {
            let process = Rc::clone(&self.hosts[host].processes[index]);
            let crashed = catch_unwind(AssertUnwindSafe(|| process.borrow_mut().crash()));
            let name = &self.builder.hosts[host].name;
            let counters =
                crashed.map_err(|panic| format!("the end of {name} panicked: {}", text_of(&*panic)))?;
            if let Some(counters) = counters {
                self.check_ledger(host, index, &counters)?;
            }
        }
        self.hosts[host].processes.clear();
        self.hosts[host].restarts = false;
        Ok(())
    }

    /// What was given to `offload` runs between two steps.
    fn run_blocking_work(&mut self) -> Result<(), String> {
        for job in self.world.simulation.take_due_jobs() {
            catch_unwind(AssertUnwindSafe(job))
                .map_err(|panic| format!("blocking work panicked: {}", text_of(&*panic)))?;
        }
        Ok(())
    }

    fn find_ready(&mut self) {
        let now = self.now();
        let shared = self.world.simulation.lock();
        self.ready.clear();
        for (at, host) in self.hosts.iter().enumerate() {
            for (index, process) in host.processes.iter().enumerate() {
                if process.borrow().is_ready(&shared.world, now) {
                    self.ready.push((at, index));
                }
            }
        }
    }

    fn step_one(&mut self) -> Result<(), String> {
        let count = self.ready.len() as u64;
        let (host, index, now) = self.world.network(|network| {
            let chosen = if count == 1 { 0 } else { network.random().below(count) };
            let (host, index) = self.ready[chosen as usize];
            (host, index, network.now())
        });
        let id = self.hosts[host].id;
        let stall = self.world.network(|network| {
            let hit = network.roll(id, Fault::StalledShard);
            hit.then(|| Duration::from_micros(network.random().between(500..=500_000)))
        });
        let processes = self.hosts[host].processes.clone();
        if let Some(stall) = stall {
            processes[index].borrow_mut().stalled_until = now + stall;
            return Ok(());
        }
        self.steps += 1;
        if self.steps > self.builder.steps_max {
            return Err(format!("it has not ended after {} steps", self.builder.steps_max));
        }
        let node = processes[index].borrow().node;
        self.world.network(|network| {
            network.take_runnable(node);
            network.take_woken(node);
            network.note(id, format_args!("shard {index} runs"));
        });
        let outcomes = interrupt::step(&self.world, id, &processes, index);
        self.spend_time();
        outcomes.into_iter().try_for_each(|(index, outcome)| self.take_outcome(host, index, outcome))
    }

    /// A step takes a little time, in which the network goes on.
    fn spend_time(&self) {
        self.world.network(|network| {
            let spent = Duration::from_nanos(network.random().between(500..=20_000));
            let until = network.now() + spent;
            while network.advance(until) {}
            if network.now() < until {
                network.move_to(until);
            }
        });
    }

    fn take_outcome(&mut self, host: usize, index: usize, outcome: Outcome) -> Result<(), String> {
        let name = self.builder.hosts[host].name.clone();
        match outcome {
            Outcome::Goes => {}
            Outcome::Returned(result) => {
                let id = self.hosts[host].id;
                self.world
                    .network(|network| network.mark(id, format_args!("main of shard {index} returned")));
                return match result {
                    Err(error) if self.builder.hosts[host].serves => {
                        self.end_to_restart(host, &error);
                        Ok(())
                    }
                    other => {
                        other.map_err(|error| format!("the main of {name} ended with an error: {error}"))
                    }
                };
            }
            Outcome::Ended(counters) => {
                self.check_ledger(host, index, &counters)?;
                self.restart_if_over(host);
            }
            Outcome::Panicked(text) => return Err(format!("the main of {name} panicked: {text}")),
        }
        let process = self.hosts[host].processes.get(index);
        let panics =
            process.and_then(|process| process.borrow().counters()).map_or(0, |counters| counters.panics);
        if panics > 0 && !self.builder.allows_panics {
            return Err(format!("a task of {name} panicked"));
        }
        Ok(())
    }

    /// A server whose main has failed ends in order and starts again, as under a supervisor.
    fn end_to_restart(&mut self, host: usize, error: &str) {
        let place = &mut self.hosts[host];
        let id = place.id;
        self.world.network(|network| network.mark(id, format_args!("failed and restarts: {error}")));
        if !place.restarts && !self.ending {
            place.restarts = true;
            place.end();
        }
    }

    fn restart_if_over(&mut self, host: usize) {
        let place = &mut self.hosts[host];
        if place.restarts && place.processes.iter().all(|process| process.borrow().is_over()) {
            place.restarts = false;
            place.processes.clear();
            let (now, down) =
                self.world.network(|network| (network.now(), network.random().between(1..=1000)));
            place.down_until = Some(now + Duration::from_millis(down));
        }
    }

    fn check_ledger(&mut self, host: usize, index: usize, counters: &Counters) -> Result<(), String> {
        let name = &self.builder.hosts[host].name;
        self.counters.add(counters);
        let settled = counters.settled();
        settled.map_err(|text| format!("the ledger of shard {index} of {name} is not settled: {text}"))?;
        let injected = self.world.faults().get(Fault::StaleCompletion);
        if self.counters.stale > injected {
            return Err(format!("shard {index} of {name} met {} stale completions", counters.stale));
        }
        Ok(())
    }

    /// Nobody is ready: time jumps to the next event, or to when somebody has slept enough.
    fn pass_time(&mut self) -> Result<(), String> {
        let now = self.now();
        let sleepers = self.all_processes().filter(|process| !process.is_over());
        let wakes = sleepers.filter_map(|process| {
            let wake = if process.is_asleep { process.asleep_until } else { Some(now) };
            // A stalled shard that was told something goes on after its stall.
            let told = self.world.network(|network| network.is_runnable(process.node));
            let wake = if told { Some(now) } else { wake };
            wake.map(|wake| wake.max(process.stalled_until))
        });
        let restarts = self.hosts.iter().filter_map(|host| host.down_until);
        let plans = self.builder.plans.get(self.next_plan).map(|(time, _)| *time);
        let next = wakes.chain(restarts).chain(plans).min();
        if next.is_none() && !self.world.network(|network| network.has_activity()) {
            return Err(format!("nothing can happen any more, but {}", self.who_waits()));
        }
        let limit = self.builder.time_limit;
        let moved = self.world.network(|network| {
            let until = next.unwrap_or(limit + Duration::from_millis(1));
            if !network.advance(until) {
                network.move_to(until);
            }
            network.now()
        });
        if moved > limit {
            return Err(format!("the time limit of {limit:?} has passed, and {}", self.who_waits()));
        }
        Ok(())
    }

    fn who_waits(&self) -> String {
        if self.ending {
            return "shards have not ended".into();
        }
        let plans = self
            .builder
            .hosts
            .iter()
            .zip(&self.hosts)
            .filter(|(plan, place)| !plan.serves && !(place.have_mains_returned()));
        let names: Vec<&str> = plans.map(|(plan, _)| plan.name.as_str()).collect();
        format!(
            "the main of {} has not returned (a host that serves for ever is added with `server`)",
            names.join(", ")
        )
    }

    fn check_always(&self) -> Result<(), String> {
        self.builder.always.iter().try_for_each(|check| check(&self.world))
    }

    fn check_the_end(&self) -> Result<(), String> {
        for place in &self.hosts {
            let open = self.world.network(|network| network.descriptors_open(place.id));
            if open > 0 {
                let name = self.world.network(|network| network.host_name(place.id).to_owned());
                return Err(format!("{name} has ended and left {open} descriptors open"));
            }
        }
        self.builder.finally.iter().try_for_each(|check| check(&self.world))
    }

    fn report(&self) -> Report {
        self.world.network(|network| Report {
            seed: self.builder.seed,
            elapsed: network.now(),
            steps: self.steps,
            connections: network.connections_established(),
            faults: network.fault_counts(),
            counters: self.counters,
            log_hash: network.log().hash(),
            log_lines: network.log().lines(),
            log: network.log().all().to_owned(),
        })
    }

    fn failure(&self, what: String) -> Failure {
        let (tail, span) = self.world.network(|network| last_events(network.log()));
        self.world.network(|network| Failure {
            seed: self.builder.seed,
            elapsed: network.now(),
            what,
            story: network.log().marked_before(span).map(indented).collect::<String>().into(),
            tail: tail.into(),
            faults: Box::new(network.fault_counts()),
            log_hash: network.log().hash(),
            log_lines: network.log().lines(),
            log: network.log().all().into(),
        })
    }
}

/// The last events as text, and how many lines of the log they span: that a shard ran says little in itself.
fn last_events(log: &Log) -> (String, usize) {
    let lines = log.tail(LINES_LOOKED_AT);
    let says_much = |line: &str| !(line.ends_with(" runs") && line.contains(": shard "));
    let telling: Vec<usize> =
        (0..lines.len()).rev().filter(|at| says_much(lines[*at])).take(TAIL_LINES).collect();
    let first = telling.last().copied().unwrap_or(lines.len());
    (telling.iter().rev().map(|at| indented(lines[*at])).collect(), lines.len() - first)
}

fn indented(line: &str) -> String {
    format!("  {}\n", line.trim_end())
}
