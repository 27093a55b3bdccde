//! What a message to another shard costs, when that shard is awake and when it sleeps.
//!
//! Two shards play one message back and forth. With spinning each finds the other's message while it is still awake, so
//! nobody makes a system call; without, each message wakes a sleeper. Then a thread floods one shard. Both threads are
//! pinned, so there must be two processors; with fewer the figures say nothing.
//!
//! `cargo bench --bench messages`, with the number of messages as an argument if wanted.
#![forbid(unsafe_code)]

use anabranch::{Backend, Config, Counters, Pinning, Remote, Runtime, Spin, Undelivered};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::io;
use std::sync::mpsc;
use std::time::Instant;

fn main() -> io::Result<()> {
    let asked = std::env::args().find_map(|argument| argument.parse().ok());
    let messages: u64 = asked.unwrap_or(100_000);
    println!("{:<32} {:>9} {:>9} {:>9} {:>9}", "", "us each", "us CPU", "wakes", "sleeps");
    for backend in [Backend::Uring, Backend::Readiness] {
        for (name, spin) in [("awake", Spin::UpTo(Spin::MAX)), ("asleep", Spin::Off)] {
            let config = Config::new().backend(backend).spin(spin);
            measure(&format!("{backend}: to and fro, {name}"), messages, config.clone(), to_and_fro)?;
            measure(&format!("{backend}: a flood, {name}"), messages * 10, config, flood)?;
        }
    }
    Ok(())
}

/// Sends so many messages between two shards.
type Play = fn(&Runtime, u64);

fn measure(name: &str, messages: u64, config: Config, play: Play) -> io::Result<()> {
    let runtime =
        Runtime::builder().shards(2).pinning(Pinning::PerShard).config(config).start(|context| async move {
            context.stopped().await;
            Ok(())
        });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("{name:<32} not here: {error}");
            return Ok(());
        }
    };
    let (begun, used) = (Instant::now(), processor_us()?);
    play(&runtime, messages);
    let (passed, used) = (begun.elapsed().as_secs_f64() * 1e6, processor_us()? - used);
    runtime.stop();
    let ends: Vec<Counters> = runtime.join().into_iter().map(|end| end.counters).collect();
    let each = |sum: f64| sum / messages as f64;
    let all = |count: fn(&Counters) -> u64| each(ends.iter().map(count).sum::<u64>() as f64);
    let (wakes, sleeps) = (all(|one| one.wakes), all(|one| one.parks));
    println!("{name:<32} {:>9.3} {:>9.3} {wakes:>9.4} {sleeps:>9.4}", each(passed), each(used));
    Ok(())
}

/// The processor time of this process so far, in microseconds.
fn processor_us() -> io::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64)
}

fn to_and_fro(runtime: &Runtime, messages: u64) {
    let (done, over) = mpsc::channel();
    bounce(messages, runtime.remote(0), runtime.remote(1), done);
    let _ = over.recv();
}

fn bounce(left: u64, to: Remote, back: Remote, done: mpsc::Sender<()>) {
    if left == 0 {
        let _ = done.send(());
        return;
    }
    let target = to.clone();
    // One message is under way, so no mailbox is full.
    let _ = target.run(move || bounce(left - 1, back, to, done));
}

fn flood(runtime: &Runtime, messages: u64) {
    let remote = runtime.remote(0);
    let (done, over) = mpsc::channel();
    for _ in 1..messages {
        send(&remote, || {});
    }
    send(&remote, move || {
        let _ = done.send(());
    });
    let _ = over.recv();
}

/// Sends as soon as there is room.
fn send(remote: &Remote, job: impl FnOnce() + Send + 'static) {
    let mut job: Box<dyn FnOnce() + Send> = Box::new(job);
    while let Err(Undelivered::Full(back)) = remote.run(job) {
        job = back;
        std::hint::spin_loop();
    }
}
