//! Work that blocks, on the pool of blocking threads.
#![forbid(unsafe_code)]

use super::task::{JoinError, Outcome, Promise};
use crate::shard::Core;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Runs `work` on a thread where blocking is fine, and gives its output.
///
/// Dropping the future does not stop the work once it has begun.
///
/// # Errors
///
/// Of kind `WouldBlock` if [`Limits::blocking_queue_max`](crate::Limits) jobs are waiting already; of kind `Other` if the
/// work panicked or no shard runs on this thread.
pub async fn offload<T, F>(work: F) -> io::Result<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let core = Core::required()?;
    let outcome: Arc<Outcome<T>> = Arc::default();
    let promise = Promise(Arc::clone(&outcome));
    let job = Box::new(move || {
        let output = catch_unwind(AssertUnwindSafe(work));
        promise.keep(output.map_err(JoinError::Panicked));
    });
    if core.run_blocking(job).is_err() {
        let text =
            "the pool of blocking threads has Limits::blocking_queue_max jobs waiting; try again later";
        return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
    }
    Ok(poll_fn(|context| outcome.poll(context)).await?)
}
