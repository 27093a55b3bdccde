//! Sockets that a service manager opened before it started this program (sd_listen_fds(3)).
#![forbid(unsafe_code)]

use crate::api::passing::{PassedSocket, inherited};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fmt, io, process};

/// The most sockets that a service manager may pass.
const SOCKETS_MAX: usize = 1024;

/// Why activation failed; the inner error of an [`io::Error`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ActivationError {
    /// A variable of the environment is not what it should be: its name and value.
    Variable(&'static str, String),
    /// There are so many names for so many sockets.
    Names(usize, usize),
    /// A descriptor that was promised is not open.
    NotOpen,
}

impl fmt::Display for ActivationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ActivationError::Variable(name, value) => {
                write!(f, "the variable {name} is {value:?}, which is no number that fits")
            }
            ActivationError::Names(names, sockets) => {
                write!(f, "LISTEN_FDNAMES has {names} names for {sockets} sockets")
            }
            ActivationError::NotOpen => f.write_str("a descriptor that LISTEN_FDS promises is not open"),
        }
    }
}

impl std::error::Error for ActivationError {}

impl From<ActivationError> for io::Error {
    fn from(error: ActivationError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// The sockets that a service manager opened for this process, in its order; none if there are none for it. Call it early,
/// before the program opens descriptors or starts others.
///
/// They are told by `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` as sd_listen_fds(3) has them: descriptors from 3 on,
/// for the process that `LISTEN_PID` names. A socket without a name is called `unknown`. Programs that are started later
/// do not get them.
///
/// They can be taken once in the life of a process: every later call finds none. (The variables stay set, because the
/// environment cannot be changed safely in a process with threads; `LISTEN_PID` keeps children from believing them.)
///
/// # Errors
///
/// [`ActivationError`]; no descriptor is taken then, and the call may be made again. `Unsupported` on Windows if it is asked for sockets.
pub fn activated() -> io::Result<Vec<PassedSocket>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name| env::var(name).ok();
    let Some(names) =
        promised(variable("LISTEN_PID"), variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"), process::id())?
    else {
        return Ok(Vec::new());
    };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let descriptors = inherited(names.len()).map_err(|error| {
        TAKEN.store(false, Ordering::SeqCst);
        match error.kind() {
            io::ErrorKind::Unsupported => error,
            _ => ActivationError::NotOpen.into(),
        }
    })?;
    let named = names.into_iter().zip(descriptors);
    named.map(|(name, descriptor)| PassedSocket::new(name, descriptor)).collect()
}

/// The names of the sockets that the variables promise this process; nothing if they are for another, or not there.
fn promised(
    process: Option<String>,
    count: Option<String>,
    names: Option<String>,
    own: u32,
) -> Result<Option<Vec<String>>, ActivationError> {
    let (Some(process), Some(count)) = (process, count) else { return Ok(None) };
    let meant: u32 = process.parse().map_err(|_| ActivationError::Variable("LISTEN_PID", process.clone()))?;
    if meant != own {
        return Ok(None);
    }
    let sockets = count.parse().ok().filter(|count| *count <= SOCKETS_MAX);
    let sockets = sockets.ok_or(ActivationError::Variable("LISTEN_FDS", count))?;
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        return Ok(Some(vec!["unknown".to_owned(); sockets]));
    };
    let listed: Vec<String> = names.split(':').map(str::to_owned).collect();
    if listed.len() != sockets {
        return Err(ActivationError::Names(listed.len(), sockets));
    }
    if listed.iter().any(|name| name.len() > PassedSocket::NAME_BYTES_MAX) {
        return Err(ActivationError::Variable("LISTEN_FDNAMES", names));
    }
    Ok(Some(listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(process: &str, count: &str, names: Option<&str>) -> Result<Option<Vec<String>>, ActivationError> {
        promised(Some(process.into()), Some(count.into()), names.map(str::to_owned), 7)
    }

    #[test]
    fn the_variables_say_how_many_sockets_there_are_and_what_they_are_called() {
        assert_eq!(promised(None, Some("1".into()), None, 7), Ok(None));
        assert_eq!(promised(Some("7".into()), None, None, 7), Ok(None));
        assert_eq!(told("8", "1", None), Ok(None), "for another process");
        assert_eq!(told("7", "2", Some("a:b")), Ok(Some(vec!["a".into(), "b".into()])));
        assert_eq!(told("7", "1", None), Ok(Some(vec!["unknown".into()])));
        assert_eq!(told("7", "0", Some("")), Ok(Some(vec![])));
    }

    #[test]
    fn variables_that_say_nothing_sensible_are_told() {
        let wrong = |name, value: &str| Err(ActivationError::Variable(name, value.into()));
        assert_eq!(told("x", "1", None), wrong("LISTEN_PID", "x"));
        assert_eq!(told("7", "-1", None), wrong("LISTEN_FDS", "-1"));
        assert_eq!(told("7", "1025", None), wrong("LISTEN_FDS", "1025"));
        assert_eq!(told("7", "99999999999999999999", None), wrong("LISTEN_FDS", "99999999999999999999"));
        assert_eq!(told("7", "2", Some("a")), Err(ActivationError::Names(1, 2)));
        let long = "n".repeat(256);
        assert_eq!(told("7", "1", Some(&long)), wrong("LISTEN_FDNAMES", &long));
    }
}
