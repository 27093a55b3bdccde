//! [`Target`]: whom a connection is made to.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Whom a connection is made to: an address, a name with a port (`"example.org:80"`, resolved at each attempt, off the
/// loop), or the path of a Unix socket.
///
/// ```
/// use anabranch::component::Target;
///
/// let target = Target::from("localhost:7000").tag(5);
/// assert_eq!((target.to_string().as_str(), target.tagged()), ("localhost:7000", 5));
/// assert_eq!(Target::unix("/run/echo").to_string(), "unix:/run/echo");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub(super) place: Place,
    pub(super) local: Option<SocketAddr>,
    tag: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Address(SocketAddr),
    Name(Arc<str>),
    Unix(Arc<Path>),
}

impl Target {
    fn new(place: Place) -> Target {
        Target { place, local: None, tag: 0 }
    }

    /// The Unix socket at this path.
    pub fn unix(path: impl AsRef<Path>) -> Target {
        Target::new(Place::Unix(path.as_ref().into()))
    }

    /// Connects from this address. Of several addresses of the target, those of another family are left out.
    pub fn local(mut self, address: SocketAddr) -> Target {
        self.local = Some(address);
        self
    }

    /// A number of the caller's, by which the handler knows the connection again: [`Peer::target`](super::Peer).
    pub fn tag(mut self, tag: u64) -> Target {
        self.tag = tag;
        self
    }

    /// That number; 0 unless one was given.
    pub fn tagged(&self) -> u64 {
        self.tag
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Target {
        Target::new(Place::Address(address))
    }
}

impl From<&str> for Target {
    fn from(name: &str) -> Target {
        match name.parse() {
            Ok(address) => Target::new(Place::Address(address)),
            Err(_) => Target::new(Place::Name(name.into())),
        }
    }
}

impl From<String> for Target {
    fn from(name: String) -> Target {
        Target::from(&*name)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Address(address) => address.fmt(f),
            Place::Name(name) => f.write_str(name),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
