//! Work that blocks, storms of tasks, tasks that are aborted or panic, names, dropped handles.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, is_calm, mix, one_in, poll_once, small_config, within};
use anabranch::net::resolve;
use anabranch::sim::{Builder, Faults};
use anabranch::{JoinError, offload, sleep, spawn, timeout, yield_now};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "offload");
    let verdict = Verdict::default();
    let calm = is_calm(&faults);
    let mut builder = Builder::new().faults(faults).config(small_config(&mut choice)).allow_panics();
    for host in 0..choice.within(1..4) {
        let (verdict, tasks) = (verdict.clone(), choice.within(2..40));
        builder = builder.host(format!("host-{host}"), move || run(verdict.clone(), calm, tasks));
    }
    verdict.watch(builder)
}

/// Counts futures that are alive.
struct Alive(Rc<Cell<u64>>);

impl Alive {
    fn new(count: &Rc<Cell<u64>>) -> Alive {
        count.set(count.get() + 1);
        Alive(Rc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn run(verdict: Verdict, calm: bool, tasks: u64) {
    let alive = Rc::new(Cell::new(0));
    let all: Vec<_> = (0..tasks)
        .map(|_| {
            let (verdict, alive) = (verdict.clone(), Rc::clone(&alive));
            spawn(async move {
                for _ in 0..within(1..6) {
                    match within(0..6) {
                        0..=1 => block(&verdict, calm).await,
                        2 => storm(&verdict, &alive).await,
                        3 => abort(&verdict, &alive).await,
                        4 => panic_inside(&verdict).await,
                        _ => ask_names(&verdict, calm).await,
                    }
                }
            })
        })
        .collect();
    for one in all {
        let _ = one.await;
    }
    // What was aborted or let go ends soon.
    sleep(Duration::from_secs(10)).await;
    verdict.require(alive.get() == 0, || format!("{} futures live on", alive.get()));
}

async fn block(verdict: &Verdict, calm: bool) {
    let token = anabranch::random();
    let panics = one_in(6);
    let work = move || {
        assert!(!panics, "work that blocks panics, as it shall");
        mix(token)
    };
    if one_in(5) {
        let _ = poll_once(offload(work)).await;
        return;
    }
    match timeout(Duration::from_secs(60), offload(work)).await {
        Ok(Ok(output)) => {
            verdict.require(!panics && output == mix(token), || "blocking work gave a wrong output".into())
        }
        Ok(Err(error)) => verdict.require(panics || !calm, || format!("blocking work failed: {error}")),
        Err(_) => verdict.wrong("blocking work has not ended after a minute"),
    }
}

async fn storm(verdict: &Verdict, alive: &Rc<Cell<u64>>) {
    let count = within(1..150);
    let done = Rc::new(Cell::new(0));
    let mut handles = Vec::new();
    for number in 0..count {
        let (done, life) = (Rc::clone(&done), Alive::new(alive));
        let task = spawn(async move {
            let _life = life;
            for _ in 0..within(0..5) {
                yield_now().await;
            }
            done.set(done.get() + 1);
            number
        });
        handles.push(task);
    }
    for (number, handle) in (0..).zip(handles) {
        let joined = handle.await;
        verdict.require(matches!(joined, Ok(joined) if joined == number), || {
            format!("task {number} gave {joined:?}")
        });
    }
    verdict.require(done.get() == count, || format!("{} of {count} tasks ran to their end", done.get()));
}

async fn abort(verdict: &Verdict, alive: &Rc<Cell<u64>>) {
    let life = Alive::new(alive);
    let ended = Rc::new(Cell::new(false));
    let inner = Rc::clone(&ended);
    let mut task = spawn(async move {
        let _life = life;
        sleep(Duration::from_micros(within(1..5000))).await;
        inner.set(true);
    });
    if one_in(2) {
        sleep(Duration::from_micros(within(1..5000))).await;
    }
    let before = task.is_finished();
    match within(0..3) {
        0 => drop(task),
        1 => {
            task.abort();
            let joined = task.await;
            let fits = if before { joined.is_ok() } else { matches!(joined, Err(JoinError::Aborted)) };
            verdict.require(fits, || format!("an aborted task gave {joined:?}, finished before: {before}"));
            verdict.require(before || !ended.get(), || "an aborted task ran to its end".into());
        }
        _ => {
            let joined = task.await;
            verdict.require(joined.is_ok() && ended.get(), || format!("a task gave {joined:?}"));
        }
    }
}

async fn panic_inside(verdict: &Verdict) {
    let late = one_in(2);
    let task = spawn(async move {
        if late {
            yield_now().await;
        }
        panic!("a task panics, as it shall");
    });
    let joined: Result<(), JoinError> = task.await;
    verdict.require(matches!(joined, Err(JoinError::Panicked(_))), || {
        format!("a task that panicked gave {joined:?}")
    });
}

async fn ask_names(verdict: &Verdict, calm: bool) {
    match resolve("host-0:80").await {
        Ok(found) => verdict.require(found.iter().all(|one| one.port() == 80) && !found.is_empty(), || {
            "a name with other addresses".into()
        }),
        Err(error) => verdict.require(!calm, || format!("a name was not found: {error}")),
    }
    let nobody = resolve("nobody:80").await;
    verdict.require(nobody.is_err(), || "a name was found that is nobody's".into());
}
