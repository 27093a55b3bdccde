//! The words of the system: error numbers, message headers, descriptors, and the calls on them that never block.
//!
//! `unix.rs` and `windows.rs` define the same names, so nobody above asks which system it is. On Unix the words are
//! those of its C library; on Windows they are those of Winsock under the same names. Calls of the data path give a
//! count or a negated error number.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) mod words;

#[cfg(unix)]
pub use unix::Lend;
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub use windows::Lend;
#[cfg(windows)]
pub(crate) use windows::*;
