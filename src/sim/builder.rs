//! What a simulation shall be: hosts, faults, limits, checks.
#![forbid(unsafe_code)]

use super::failure::{Failure, Report};
use super::schedule::Schedule;
use super::world::World;
use super::{Fault, Faults};
use crate::config::Config;
use crate::shard::{Completion, Context, Program, Shard};
use std::fmt;
use std::net::IpAddr;
use std::ops::{ControlFlow, Range, RangeInclusive};
use std::rc::Rc;
use std::time::Duration;

/// The variable that names the one seed to run.
pub(super) const SEED_VARIABLE: &str = "ANABRANCH_SIM_SEED";

/// How a main future may end: with nothing, or with a `Result` of nothing.
pub trait Ending {
    /// The error as text.
    fn into_result(self) -> Result<(), String>;
}

impl Ending for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> Ending for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

/// Makes the program of a shard.
type Main = Rc<dyn Fn(Context, &Shard) -> Program<Result<(), String>>>;
pub(super) type Plan = Rc<dyn Fn(&World)>;
pub(super) type Check = Rc<dyn Fn(&World) -> Result<(), String>>;

/// A host: its name, its main, how many shards run it.
#[derive(Clone)]
pub struct Host {
    pub(super) name: String,
    pub(super) main: Main,
    pub(super) shards: usize,
    pub(super) serves: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) config: Option<Config>,
}

impl Host {
    /// A host on each of whose shards the future of `main` runs. `main` is called again after a restart.
    pub fn new<M, F>(name: impl Into<String>, main: M) -> Host
    where
        M: Fn(Context) -> F + 'static,
        F: Future + 'static,
        F::Output: Ending,
    {
        Host::with_program(name.into(), move |context, _| {
            let future = main(context);
            Program::Future(Box::pin(async move { future.await.into_result() }))
        })
    }

    /// A host whose program is a loop over the completion API. `start` submits what is first, and gives what is
    /// called with each completion, as by [`Shard::poll`], until it breaks with what a main may return.
    pub fn driven<S, L, E>(name: impl Into<String>, start: S) -> Host
    where
        S: Fn(&Shard) -> L + 'static,
        L: FnMut(&Shard, Completion) -> ControlFlow<E> + 'static,
        E: Ending,
    {
        Host::with_program(name.into(), move |_, shard| {
            let mut on_completion = start(shard);
            Program::Loop(Box::new(move |shard, completion| match on_completion(shard, completion) {
                ControlFlow::Continue(()) => ControlFlow::Continue(()),
                ControlFlow::Break(end) => ControlFlow::Break(end.into_result()),
            }))
        })
    }

    fn with_program(
        name: String,
        main: impl Fn(Context, &Shard) -> Program<Result<(), String>> + 'static,
    ) -> Host {
        Host { name, main: Rc::new(main), shards: 1, serves: false, addresses: Vec::new(), config: None }
    }

    /// How many shards it has; one unless said otherwise.
    pub fn shards(mut self, shards: usize) -> Host {
        assert!(shards > 0, "a host needs at least one shard");
        self.shards = shards;
        self
    }

    /// It serves until the others have ended: nobody waits for its main to return.
    pub fn serves(mut self) -> Host {
        self.serves = true;
        self
    }

    /// Gives it an address; else it has `10.0.0.n` and `fd00::n`, where `n` counts hosts from one.
    pub fn address(mut self, address: IpAddr) -> Host {
        self.addresses.push(address);
        self
    }

    /// The configuration of its shards, in place of [`Builder::config`].
    pub fn config(mut self, config: Config) -> Host {
        self.config = Some(config);
        self
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("name", &self.name).field("shards", &self.shards).finish_non_exhaustive()
    }
}

/// A simulation to be run.
#[derive(Clone)]
pub struct Builder {
    pub(super) seed: u64,
    pub(super) faults: Faults,
    pub(super) hosts: Vec<Host>,
    pub(super) config: Config,
    pub(super) latency: (Duration, Duration),
    pub(super) time_limit: Duration,
    pub(super) steps_max: u64,
    pub(super) keeps_log: bool,
    pub(super) allows_panics: bool,
    pub(super) plans: Vec<(Duration, Plan)>,
    pub(super) always: Vec<Check>,
    pub(super) finally: Vec<Check>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    /// No hosts, no faults, seed 0.
    pub fn new() -> Builder {
        let config = Config::new().with_limits(|limits| {
            (limits.operations_max, limits.endpoints_max) = (4096, 4096);
            (limits.buffers, limits.buffer_bytes, limits.datagram_buffers) = (64, 16 * 1024, 64);
        });
        Builder {
            seed: 0,
            faults: Faults::none(),
            hosts: Vec::new(),
            config,
            latency: (Duration::from_micros(50), Duration::from_micros(500)),
            time_limit: Duration::from_secs(600),
            steps_max: 5_000_000,
            keeps_log: false,
            allows_panics: false,
            plans: Vec::new(),
            always: Vec::new(),
            finally: Vec::new(),
        }
    }

    /// The seed. The variable `ANABRANCH_SIM_SEED` overrides it.
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = seed;
        self
    }

    /// The faults and their rates.
    pub fn faults(mut self, faults: Faults) -> Builder {
        self.faults = faults;
        self
    }

    /// Adds a host with one shard, on which the future of `main` runs. The simulation ends when the mains of all
    /// such hosts have returned. After a crash and a restart `main` is called again.
    pub fn host<M, F>(self, name: impl Into<String>, main: M) -> Builder
    where
        M: Fn() -> F + 'static,
        F: Future + 'static,
        F::Output: Ending,
    {
        self.add(Host::new(name, move |_| main()))
    }

    /// As [`host`](Self::host), but nobody waits for its main to return.
    pub fn server<M, F>(self, name: impl Into<String>, main: M) -> Builder
    where
        M: Fn() -> F + 'static,
        F: Future + 'static,
        F::Output: Ending,
    {
        self.add(Host::new(name, move |_| main()).serves())
    }

    /// Adds a host.
    #[allow(clippy::should_implement_trait, reason = "nobody adds numbers here")]
    pub fn add(mut self, host: Host) -> Builder {
        assert!(
            self.hosts.iter().all(|other| other.name != host.name),
            "two hosts are called {:?}",
            host.name
        );
        self.hosts.push(host);
        self
    }

    /// The configuration of the shards. The default of a simulation has smaller tables and pools: 64 receive
    /// buffers of 16 KiB for streams, and as many for datagrams.
    pub fn config(mut self, config: Config) -> Builder {
        self.config = config;
        self
    }

    /// How long something travels from host to host, drawn anew each time; 50 to 500 microseconds unless said
    /// otherwise.
    pub fn latency(mut self, range: RangeInclusive<Duration>) -> Builder {
        self.latency = range.into_inner();
        self
    }

    /// The longest simulated time; 10 minutes unless said otherwise. A run that has not ended then has failed.
    pub fn time_limit(mut self, limit: Duration) -> Builder {
        self.time_limit = limit;
        self
    }

    /// The most steps of shards; 5 million unless said otherwise. A run that has not ended then has failed.
    pub fn steps_max(mut self, steps: u64) -> Builder {
        self.steps_max = steps;
        self
    }

    /// Keeps the whole log for [`Report::log`]; else only its hash and its end are kept.
    pub fn keep_log(mut self) -> Builder {
        self.keeps_log = true;
        self
    }

    /// Panics of tasks are contained, as in production, and do not fail the run.
    pub fn allow_panics(mut self) -> Builder {
        self.allows_panics = true;
        self
    }

    /// Does something to the world at a simulated time: a partition, a crash, a step of a clock.
    pub fn at(mut self, time: Duration, plan: impl Fn(&World) + 'static) -> Builder {
        self.plans.push((time, Rc::new(plan)));
        self
    }

    /// A condition that must hold after every step. What it needs of the program it captures, as an `Rc`.
    pub fn always(mut self, check: impl Fn(&World) -> Result<(), String> + 'static) -> Builder {
        self.always.push(Rc::new(check));
        self
    }

    /// A condition that must hold at the end, when all mains have returned and every shard has ended.
    pub fn finally(mut self, check: impl Fn(&World) -> Result<(), String> + 'static) -> Builder {
        self.finally.push(Rc::new(check));
        self
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// What went wrong, with the seed and the last events; see the [module](crate::sim).
    pub fn run(&self) -> Result<Report, Failure> {
        let mut builder = self.clone();
        if let Some(seed) = seed_of_environment() {
            builder.seed = seed;
        }
        Schedule::new(builder).run()
    }

    /// Runs it twice and compares the logs: a difference is something that does not come from the seed.
    ///
    /// What mains and checks have captured is shared by both runs. If they count in it, use [`replays`], which makes
    /// everything anew.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), or the first line at which the second run differs.
    pub fn replays(&self) -> Result<Report, Failure> {
        replays(|| self.clone())
    }

    /// The rate of a fault, as it is set.
    pub fn rate(&self, fault: Fault) -> f64 {
        self.faults.rate(fault)
    }
}

/// The seeds to run: all of `range`, or only that of `ANABRANCH_SIM_SEED` if it is set.
///
/// ```
/// for seed in anabranch::sim::seeds(0..20) {
///     anabranch::sim::Builder::new().seed(seed).host("alone", || async {}).run().unwrap();
/// }
/// ```
pub fn seeds(range: Range<u64>) -> Range<u64> {
    match seed_of_environment() {
        Some(seed) => seed..seed + 1,
        None => range,
    }
}

/// Makes and runs a simulation twice and compares the logs: a difference is something that does not come from the seed.
///
/// ```
/// use anabranch::sim;
///
/// sim::replays(|| {
///     let visits = std::rc::Rc::new(std::cell::Cell::new(0));
///     let main = move || {
///         visits.set(visits.get() + 1);
///         sim::note(format_args!("visit {}", visits.get()));
///         async {}
///     };
///     sim::Builder::new().seed(3).host("alone", main)
/// })
/// .unwrap();
/// ```
///
/// # Errors
///
/// The failure of the first run, or the first line at which the second run differs. If both fail and differ, it is the
/// difference.
pub fn replays(make: impl Fn() -> Builder) -> Result<Report, Failure> {
    let run = || make().keep_log().run();
    let (first, second) = (run(), run());
    let log = |run: &Result<Report, Failure>| match run {
        Ok(report) => report.log().to_owned(),
        Err(failure) => format!("{}it fails: {}\n", failure.log(), failure.what()),
    };
    let (one, other) = (log(&first), log(&second));
    let differs = |(a, b): &(&str, &str)| a != b;
    let what = match one.lines().zip(other.lines()).enumerate().find(|(_, pair)| differs(pair)) {
        None if one == other => return first,
        None => "one run goes on where the other ended".into(),
        Some((at, (a, b))) => format!("line {}:\n  {a}\nbut then:\n  {b}", at + 1),
    };
    Err(Failure::differs(&first, what))
}

/// # Panics
///
/// If the variable holds no number.
fn seed_of_environment() -> Option<u64> {
    let text = std::env::var(SEED_VARIABLE).ok().filter(|text| !text.is_empty())?;
    let seed = text.parse();
    Some(seed.unwrap_or_else(|_| panic!("{SEED_VARIABLE} must be a number, not {text:?}")))
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("seed", &self.seed)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}
