//! Timers: one that a thread waits for, one that a task waits for, one that is cancelled half way, and a periodic one with
//! a callback.
//!
//! Try it: `cargo run --example timer`. It ends by itself, after some four units of time; a unit is a second unless the
//! flag says otherwise.
#![forbid(unsafe_code)]

use anabranch::component::{Expiry, Service, Timer, Wait};
use anabranch::time::wall;
use anabranch::{Backend, Config};
use clap::Parser;
use std::error::Error;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Waits for timers, in several ways.
#[derive(Parser)]
struct Flags {
    /// Milliseconds of a unit of time.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    unit_ms: u64,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let unit = Duration::from_millis(flags.unit_ms);
    let service = Service::builder().config(Config::new().backend(flags.backend)).build();
    service.start()?;
    let timer = Timer::new(&service);

    timer.set_after(unit)?;
    println!("blocking, relative: {}", text(timer.wait_blocking()?));

    timer.set_at(wall() + unit)?;
    println!("awaited, absolute: {}", text(on_loop(&service, timer.wait())?));

    timer.set_after(unit)?;
    let wait = timer.wait();
    let cancelling = timer.clone();
    let other = thread::spawn(move || {
        thread::sleep(unit / 2);
        cancelling.cancel()
    });
    println!("awaited, cancelled half way: {}", text(on_loop(&service, wait)?));
    let waits = other.join().map_err(|_| "the other thread panicked")?;
    println!("the cancel found {waits} wait");

    let (sender, told) = mpsc::channel();
    let beat = Timer::with_callback(&service, move |_, expiry| {
        let _ = sender.send(expiry);
    });
    beat.set_every(unit / 2)?;
    for number in 1..=3 {
        println!("callback {number}: {}", text(told.recv()?));
    }
    beat.cancel();
    let last = told.iter().find(|expiry| *expiry == Expiry::Canceled);
    println!("callback at the end: {}", text(last.ok_or("the callback has gone")?));
    service.stop()?;
    Ok(())
}

/// Waits in a task on a loop of the service.
fn on_loop(service: &Service, wait: Wait) -> Result<Expiry, Box<dyn Error>> {
    let (sender, told) = mpsc::channel();
    let task = move || async move {
        let _ = sender.send(wait.await);
    };
    let shard = service.next_shard().ok_or("the service is not started")?;
    drop(shard.spawn_on(task).map_err(|refused| refused.to_string())?);
    Ok(told.recv()?)
}

fn text(expiry: Expiry) -> &'static str {
    match expiry {
        Expiry::Expired => "expired",
        Expiry::Canceled => "canceled",
    }
}
