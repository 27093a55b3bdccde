//! Waiting for descriptors that are not ours: other libraries' sockets, pipes, event descriptors.
#![forbid(unsafe_code)]

use super::file::run;
use crate::driver::FdRef;
use crate::driver::completion::Done;
use crate::driver::op::{Direction, Poll};
use crate::driver::sys::os::{Lend, duplicate};
use crate::error::Error;
use crate::shard::Core;
use std::fmt;
use std::io;
use std::rc::Rc;

/// Waits until a foreign descriptor is ready. It works on a duplicate, so the original may be closed at any time.
pub struct Ready {
    core: Rc<Core>,
    fd: Option<FdRef>,
}

impl Ready {
    /// Watches `fd` on the current shard. On Windows it has to be a socket that is connected or receives datagrams, and
    /// it belongs to the shard's completion port from then on, also for its owner.
    ///
    /// # Errors
    ///
    /// If no shard runs here, or the descriptor cannot be duplicated.
    pub fn new(fd: &impl Lend) -> io::Result<Ready> {
        let core = Core::required()?;
        let duplicate = duplicate(fd)?;
        // The mode of a foreign descriptor is shared with its owner and is left alone.
        let fd = core.with(|state| state.engine.driver.adopt_foreign(duplicate.into()))??;
        Ok(Ready { core, fd: Some(fd) })
    }

    /// Completes when the descriptor can be read, or has ended or failed. Cancel-safe.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be waited for.
    pub async fn readable(&self) -> io::Result<()> {
        self.wait(Direction::Read).await
    }

    /// Completes when the descriptor can be written, or has ended or failed. Cancel-safe.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be waited for.
    pub async fn writable(&self) -> io::Result<()> {
        self.wait(Direction::Write).await
    }

    async fn wait(&self, direction: Direction) -> io::Result<()> {
        match run(&self.core, Poll { fd: self.fd.clone().expect("taken at the end only"), direction }).await {
            Ok(Done::Ended(ended)) => Ok(ended?),
            Ok(_) => Err(Error::Closed.into()),
            Err((error, _)) => Err(error),
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        let _ = self.core.with(|state| state.engine.driver.retire(fd));
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready").finish_non_exhaustive()
    }
}
