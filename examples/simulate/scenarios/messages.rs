//! Shards of one host that send each other work and wait for nothing else: a wake-up that is lost is the end.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, mix, one_in, small_config, within};
use anabranch::sim::{Builder, Faults, Host};
use anabranch::{Context, Undelivered, spawn, yield_now};

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "messages");
    let verdict = Verdict::default();
    let (shards, rounds) = (choice.within(2..5) as usize, choice.within(5..60));
    let host = {
        let verdict = verdict.clone();
        Host::new("host", move |context| run(context, rounds, verdict.clone())).shards(shards)
    };
    // A host that crashed would begin anew, and say nothing about what it waited for.
    let faults = faults.only_on(anabranch::sim::Fault::HostCrash, "nobody");
    verdict.watch(Builder::new().faults(faults).config(small_config(&mut choice)).add(host))
}

async fn run(context: Context, rounds: u64, verdict: Verdict) {
    let tasks: Vec<_> = (0..within(1..4))
        .map(|_| {
            let (context, verdict) = (context.clone(), verdict.clone());
            spawn(async move {
                for round in 0..rounds {
                    ask(&context, round, &verdict).await;
                }
            })
        })
        .collect();
    for task in tasks {
        let _ = task.await;
    }
    // The others may still ask this shard, which serves until all mains have returned.
}

/// Lets another shard compute something, and waits for the answer without any time-out.
async fn ask(context: &Context, round: u64, verdict: &Verdict) {
    let other = context.remote(within(0..context.shards() as u64) as usize);
    let mut work = move || async move {
        if one_in(2) {
            yield_now().await;
        }
        mix(round)
    };
    let handle = loop {
        match other.spawn_on(work) {
            Ok(handle) => break handle,
            Err(Undelivered::Full(back)) => work = back,
            Err(Undelivered::Ended(_)) => return verdict.wrong("a shard that others may ask has ended"),
        }
        yield_now().await;
    };
    match handle.await {
        Ok(answer) => verdict.require(answer == mix(round), || "an answer to another question".into()),
        Err(error) => verdict.wrong(format_args!("an answer that never came: {error}")),
    }
}
