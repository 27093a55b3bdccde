//! The simulated backend: completions of calls on a simulated host, when and in which order the seed has it.
//!
//! Operations wait in queues per descriptor, as in the readiness backend, and are attempted when the world
//! announces the descriptor. What kernels do to completions is played here: they come late, overtake each other
//! (never those of their own operation), a cancelled operation succeeds after all, buffers are wanting, a turn or a
//! submission is refused, the release of a zero-copy payload follows its result. What networks do is the world's.
//!
//! A scheduler that steps the shard asks with a time-out of zero and lets it sleep outside. Whoever waits longer
//! moves the world on from here: that is how a single shard or driver runs on a world of its own.
#![forbid(unsafe_code)]

use super::machine::{Machine, WAKE, is_running};
use super::{DescriptorId, Fault, NodeId};
use crate::config::Config;
use crate::driver::completion::RawCompletion;
use crate::driver::op::{Attempt, Direction, Op};
use crate::driver::slot::{Scratch, Slots};
use crate::driver::sys::{CANCELED, NO_BUFFERS, Wake, Workbench};
use crate::driver::token::Token;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The key under which the node is only told to look.
const LOOK: u64 = 0;

/// How long a thread waits for others in a world in which nothing is planned before it looks again.
const OTHERS: Duration = Duration::from_millis(20);

/// What a turn takes at least where no scheduler lets time pass, so that it passes for who is always busy, too.
const TURN: Duration = Duration::from_micros(50);

/// How many operations that have ended are remembered.
const ENDED_MAX: usize = 16;

/// The simulated backend of one driver.
pub(crate) struct SimBackend {
    machine: Machine,
    node: NodeId,
    attempts_max: usize,
    /// Submitted, and not yet handed over.
    submitted: VecDeque<Token>,
    cancels: VecDeque<Token>,
    /// Operations that wait, by descriptor and direction, in order.
    queues: BTreeMap<i32, [VecDeque<Token>; 2]>,
    /// Descriptors whose queues are to be attempted.
    ready: Vec<DescriptorId>,
    /// Calls on files, by the key under which they come due.
    files: BTreeMap<u64, Token>,
    next_key: u64,
    due: Vec<u64>,
    /// Results on their way, those of one operation in order.
    held: VecDeque<Held>,
    /// Operations that have ended, the last ones.
    ended: VecDeque<Token>,
    told_of_work: bool,
}

struct Held {
    due: Duration,
    completion: RawCompletion,
}

impl SimBackend {
    pub(crate) fn new(machine: &Machine, config: &Config) -> SimBackend {
        let node = machine.simulation.lock().world.add_node(machine.host);
        SimBackend {
            machine: machine.clone(),
            node,
            attempts_max: config.limits.attempts_per_event_max,
            submitted: VecDeque::new(),
            cancels: VecDeque::new(),
            queues: BTreeMap::new(),
            ready: Vec::new(),
            files: BTreeMap::new(),
            next_key: LOOK + 1,
            due: Vec::new(),
            held: VecDeque::new(),
            ended: VecDeque::new(),
            told_of_work: false,
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn wake(&self) -> Wake {
        Wake::simulated(self.machine.clone(), self.node)
    }

    /// Whether a submission shall be refused as if the table were full.
    pub(crate) fn refuses(&mut self) -> bool {
        self.machine.roll(Fault::SubmissionRefused)
    }

    pub(crate) fn submit(&mut self, token: Token) {
        self.submitted.push_back(token);
    }

    pub(crate) fn cancel(&mut self, token: Token) {
        self.cancels.push_back(token);
    }

    /// One look, and further ones while the world moves on, until there is something to report, the time is over,
    /// the driver was woken, or work that blocks wants to be run outside.
    pub(crate) fn wait(&mut self, bench: &mut Workbench<'_>, timeout: Option<Duration>) {
        let before = bench.out.len();
        let turn = if is_running() { Duration::ZERO } else { TURN };
        let deadline = timeout.map(|timeout| self.now().saturating_add(timeout.max(turn)));
        loop {
            self.look(bench);
            let over = deadline.is_some_and(|deadline| self.now() >= deadline);
            if bench.out.len() > before || over || self.take_woken() || self.has_new_work() {
                return;
            }
            self.pass_time(deadline);
        }
    }

    fn now(&self) -> Duration {
        self.machine.simulation.lock().world.now()
    }

    fn take_woken(&self) -> bool {
        self.machine.simulation.lock().world.take_woken(self.node)
    }

    /// Whether there is work that blocks to be run outside. Told once: who drains runs none, and time goes on then.
    fn has_new_work(&mut self) -> bool {
        let due = self.machine.simulation.has_due_jobs();
        !std::mem::replace(&mut self.told_of_work, due) && due
    }

    /// Lets the next thing happen in the world.
    fn pass_time(&self, deadline: Option<Duration>) {
        self.machine.simulation.let_company_act(Some(self.node));
        let mut shared = self.machine.simulation.lock();
        if shared.world.is_runnable(self.node) {
            // There is something to look at before time goes on.
            return;
        }
        if shared.world.advance(deadline.unwrap_or(Duration::MAX)) {
            return;
        }
        match deadline {
            Some(deadline) => shared.world.move_to(deadline),
            None => {
                drop(shared);
                self.machine.simulation.wait_for_others(OTHERS);
            }
        }
    }

    fn look_again_in(&self, microseconds: std::ops::RangeInclusive<u64>) {
        let world = &mut self.machine.simulation.lock().world;
        let at = world.now() + Duration::from_micros(world.random().between(microseconds));
        world.schedule(self.node, at, LOOK);
    }

    fn look(&mut self, bench: &mut Workbench<'_>) {
        self.machine.simulation.lock().world.take_runnable(self.node);
        let hands_over = !self.submitted.is_empty() || !self.cancels.is_empty();
        if hands_over && self.machine.roll(Fault::TurnRefused) {
            self.look_again_in(50..=2000);
        } else {
            while let Some(token) = self.submitted.pop_front() {
                self.start(token, bench);
            }
            while let Some(token) = self.cancels.pop_front() {
                self.end_early(token, bench);
            }
        }
        self.run_due_files(bench);
        let mut ready = std::mem::take(&mut self.ready);
        self.machine.simulation.lock().world.take_ready(self.node, &mut ready);
        for id in ready.drain(..) {
            self.attempt_queue(id, Direction::Read, bench);
            self.attempt_queue(id, Direction::Write, bench);
        }
        if self.ready.is_empty() {
            self.ready = ready;
        } else {
            self.look_again_in(0..=0);
        }
        self.report_stale();
        self.deliver(bench);
    }

    /// Reports an operation that has ended as if it ended now. Kernels do not, but programs that count on it have
    /// been wrong before; the token must keep it from the operation that has the slot now.
    fn report_stale(&mut self) {
        if self.ended.is_empty() || !self.machine.roll(Fault::StaleCompletion) {
            return;
        }
        let last = self.ended.len() as u64 - 1;
        let chosen = self.machine.simulation.lock().world.random().between(0..=last);
        let completion = RawCompletion::terminal(self.ended[chosen as usize], 0);
        let due = self.now();
        self.held.push_back(Held { due, completion });
    }

    /// The kernel takes an operation.
    fn start(&mut self, token: Token, bench: &mut Workbench<'_>) {
        let (op, scratch) = accepted(bench.slots, token);
        if let Some((id, direction)) = place(op) {
            self.queues.entry(id.0).or_default()[direction as usize].push_back(token);
            self.machine.simulation.lock().world.watch(id, self.node);
            self.ready.push(id);
        } else if matches!(op, Op::ReadAt(_) | Op::WriteAt(_) | Op::Fsync(_)) {
            let key = self.next_key;
            self.next_key += 1;
            self.files.insert(key, token);
            let world = &mut self.machine.simulation.lock().world;
            let at = world.now() + Duration::from_micros(world.random().between(10..=5000));
            world.schedule(self.node, at, key);
        } else if let Attempt::Done(result) = bench.pools.attempt(op, scratch, usize::MAX) {
            self.report(RawCompletion::terminal(token, result));
        }
    }

    /// Calls on files for which the disk has taken its time.
    fn run_due_files(&mut self, bench: &mut Workbench<'_>) {
        let mut due = std::mem::take(&mut self.due);
        self.machine.simulation.lock().world.take_due(self.node, &mut due);
        if due.contains(&WAKE) {
            self.machine.simulation.lock().world.wake(self.node);
        }
        for key in due.drain(..) {
            let Some(token) = self.files.remove(&key) else { continue };
            let (op, scratch) = accepted(bench.slots, token);
            if let Attempt::Done(result) = bench.pools.attempt(op, scratch, usize::MAX) {
                self.report(RawCompletion::terminal(token, result));
            }
        }
        self.due = due;
    }

    /// Attempts what waits for a descriptor in one direction, in order, up to the budget.
    fn attempt_queue(&mut self, id: DescriptorId, direction: Direction, bench: &mut Workbench<'_>) {
        for _ in 0..self.attempts_max {
            let Some(queue) = self.queues.get_mut(&id.0) else { return };
            let Some(token) = queue[direction as usize].front().copied() else {
                if queue.iter().all(VecDeque::is_empty) {
                    self.queues.remove(&id.0);
                }
                return;
            };
            match self.attempt(token, bench) {
                Some(true) => self.leave_queue(id, direction, token),
                Some(false) => {}
                None => return,
            }
        }
        self.ready.push(id);
    }

    fn leave_queue(&mut self, id: DescriptorId, direction: Direction, token: Token) {
        let Some(queue) = self.queues.get_mut(&id.0) else { return };
        queue[direction as usize].retain(|other| *other != token);
    }

    /// Attempts one operation: whether it has ended, or nothing if it is blocked.
    fn attempt(&mut self, token: Token, bench: &mut Workbench<'_>) -> Option<bool> {
        let (op, scratch) = accepted(bench.slots, token);
        let standing = matches!(op, Op::RecvMulti(_) | Op::RecvMsgMulti(_) | Op::RecvBatch(_));
        if standing && self.machine.roll(Fault::NoBuffers) {
            self.report(RawCompletion::terminal(token, -NO_BUFFERS));
            return Some(true);
        }
        let attempt = bench.pools.attempt(op, scratch, usize::MAX);
        let zero_copy = matches!(op, Op::Send(send) if send.is_zero_copy());
        match attempt {
            Attempt::Blocked => None,
            Attempt::More(result, buffer) | Attempt::Drained(result, buffer) => {
                self.report(RawCompletion { token, result, more: true, buffer });
                Some(false)
            }
            Attempt::Done(result) => {
                if zero_copy && result >= 0 {
                    // The result first, the release of the payload later (invariant 3).
                    self.report(RawCompletion { token, result, more: true, buffer: None });
                    let delay = self.delay(1..=3000);
                    self.hold(RawCompletion::terminal(token, 0), delay);
                } else {
                    self.report(RawCompletion::terminal(token, result));
                }
                Some(true)
            }
        }
    }

    /// Carries out a cancel: the operation ends as cancelled, or succeeds once more before that.
    fn end_early(&mut self, token: Token, bench: &mut Workbench<'_>) {
        let Some((op, _)) = bench.slots.parts(token) else { return };
        let place = place(op);
        if let Some(at) = self.files.iter().find_map(|(key, file)| (*file == token).then_some(*key)) {
            // A disk may have begun; then the call ends by itself.
            if self.delay(0..=1).is_zero() {
                self.files.remove(&at);
                self.report(RawCompletion::terminal(token, -CANCELED));
            }
            return;
        }
        let Some((id, direction)) = place else { return };
        let waits = self.queues.get(&id.0).is_some_and(|queue| queue[direction as usize].contains(&token));
        if !waits {
            return;
        }
        let late = self.machine.roll(Fault::LateSuccess);
        if !late || self.attempt(token, bench) != Some(true) {
            self.report(RawCompletion::terminal(token, -CANCELED));
        }
        self.leave_queue(id, direction, token);
        // Whoever stood behind it may be able to go on.
        self.ready.push(id);
        self.look_again_in(0..=0);
    }

    fn delay(&self, microseconds: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_micros(self.machine.simulation.lock().world.random().between(microseconds))
    }

    /// Reports a result, now or late.
    fn report(&mut self, completion: RawCompletion) {
        let delay = if self.machine.roll(Fault::LateCompletion) {
            self.delay(1000..=20_000)
        } else if self.machine.roll(Fault::ReorderedCompletion) {
            self.delay(1..=500)
        } else {
            Duration::ZERO
        };
        self.hold(completion, delay);
    }

    /// Keeps a result for a while, at least as long as earlier ones of its operation.
    fn hold(&mut self, completion: RawCompletion, delay: Duration) {
        let now = self.now();
        let own = self.held.iter().filter(|held| held.completion.token == completion.token);
        let due = own.map(|held| held.due).max().unwrap_or(now).max(now + delay);
        if due > now {
            self.machine.simulation.lock().world.schedule(self.node, due, LOOK);
        }
        self.held.push_back(Held { due, completion });
    }

    fn deliver(&mut self, bench: &mut Workbench<'_>) {
        let now = self.now();
        let mut room = bench.budget.saturating_sub(bench.out.len());
        let (out, ended) = (&mut *bench.out, &mut self.ended);
        self.held.retain(|held| {
            let goes = held.due <= now && room > 0;
            if goes {
                room -= 1;
                out.push(held.completion);
                if !held.completion.more {
                    ended.push_back(held.completion.token);
                }
            }
            !goes
        });
        let surplus = ended.len().saturating_sub(ENDED_MAX);
        ended.drain(..surplus);
        if room == 0 && !self.held.is_empty() {
            self.look_again_in(0..=0);
        }
    }
}

impl Drop for SimBackend {
    fn drop(&mut self) {
        self.machine.simulation.lock().world.remove_node(self.node);
    }
}

/// An operation that was accepted and has not ended, with its scratch memory.
///
/// # Panics
///
/// If its slot has let it go, and with it what a kernel would still read and write (invariant 1).
fn accepted(slots: &mut Slots, token: Token) -> (&mut Op, *mut Scratch) {
    slots.parts(token).expect("an operation left its slot before its terminal completion")
}

/// The queue that an operation stands in.
fn place(op: &Op) -> Option<(DescriptorId, Direction)> {
    let (fd, direction) = op.waits_for()?;
    Some((fd.descriptor().as_simulated()?.id, direction))
}
