//! A service and the order of its work: what is dispatched on the loop runs nested and at once, what is posted runs after
//! all that is queued already.
//!
//! Try it: `cargo run --example service`. It ends by itself.
#![forbid(unsafe_code)]

use anabranch::component::{Service, ServiceError, ServiceHandle, ServiceHandler, WorkOutput};
use anabranch::{Backend, Config};
use clap::Parser;
use std::error::Error;
use std::sync::mpsc;
use std::time::Duration;

/// Prints the order of dispatched and posted work.
#[derive(Parser)]
struct Flags {
    /// Threads, each with a loop of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Never sleep.
    #[arg(long)]
    polling: bool,
    /// Backend.
    #[arg(long, default_value = "auto")]
    backend: Backend,
}

/// Says what the service goes through.
struct Life;

impl ServiceHandler for Life {
    fn on_started(&self) {
        println!("started");
    }
    fn on_stopped(&self) {
        println!("stopped");
    }
    fn on_error(&self, error: ServiceError) {
        println!("error: {error}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let config = Config::new().backend(flags.backend);
    let builder = Service::builder().threads(flags.threads.into()).polling(flags.polling).config(config);
    let service = builder.handler(Life).build();
    service.start()?;

    let (done, is_done) = mpsc::channel();
    let inside = service.handle().clone();
    dispatch(&service, move || {
        // All of it is queued from inside of this work, so nothing of it runs before that ends.
        println!("1 begins: dispatched from another thread");
        post(&inside, || println!("5: posted inside 1"))?;
        dispatch(&inside, || println!("2: dispatched inside 1"))?;
        let deeper = inside.clone();
        dispatch(&inside, move || {
            println!("3 begins: dispatched inside 1");
            post(&deeper, || println!("6: posted inside 3"))?;
            dispatch(&deeper, || println!("4: dispatched inside 3"))?;
            println!("3 ends");
            Ok::<(), String>(())
        })?;
        post(&inside, || Err("7: what work fails with reaches the handler"))?;
        post(&inside, move || done.send(()))?;
        println!("1 ends");
        Ok::<(), String>(())
    })?;
    is_done.recv_timeout(Duration::from_secs(30))?;
    service.stop()?;
    Ok(())
}

/// Queues work; a mailbox that is full is an error here.
fn post<R: WorkOutput>(
    service: &ServiceHandle,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<(), String> {
    service.post(work).map_err(|refused| refused.to_string())
}

/// Runs work at once, or queues it.
fn dispatch<R: WorkOutput>(
    service: &ServiceHandle,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<(), String> {
    service.dispatch(work).map_err(|refused| refused.to_string())
}
