//! The shards that a component runs on.
#![forbid(unsafe_code)]

use super::service::Service;
use crate::shard::{Context, Remote, Runtime};
use std::fmt;
use std::io;

/// The shards that a component runs on: those of a [`Runtime`] or a [`Service`], those of the group that a main future belongs to, or one.
#[derive(Clone)]
pub struct Shards(Vec<Remote>);

impl Shards {
    /// The shard that runs on this thread.
    ///
    /// # Errors
    ///
    /// If none does.
    pub fn current() -> io::Result<Shards> {
        Ok(Shards(vec![crate::api::task::current()?]))
    }

    /// The first of them alone.
    pub(super) fn first(self) -> Shards {
        Shards(self.0.into_iter().take(1).collect())
    }

    pub(super) fn remotes(&self) -> &[Remote] {
        &self.0
    }
}

impl From<Remote> for Shards {
    fn from(remote: Remote) -> Shards {
        Shards(vec![remote])
    }
}

impl From<Vec<Remote>> for Shards {
    fn from(remotes: Vec<Remote>) -> Shards {
        Shards(remotes)
    }
}

impl From<&Runtime> for Shards {
    fn from(runtime: &Runtime) -> Shards {
        Shards((0..runtime.shards()).map(|index| runtime.remote(index)).collect())
    }
}

impl From<&Service> for Shards {
    /// Those that run now: a service that is restarted has others.
    fn from(service: &Service) -> Shards {
        Shards(service.handle().remotes())
    }
}

impl From<&Context> for Shards {
    fn from(group: &Context) -> Shards {
        Shards((0..group.shards()).map(|index| group.remote(index)).collect())
    }
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shards({})", self.0.len())
    }
}
