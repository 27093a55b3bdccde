//! The C ABI: the event facade and the completion API for C and C++ programs. `include/anabranch.h` says what each
//! function does; `include/opensocket.h` is the C++ class on top.
//!
//! # Rules
//!
//! - Objects are named by numbers, never by pointers. A number that names nothing (any more) is refused with EBADF.
//! - What fails gives -1 (or 0 where a number is given) and leaves the reason in `errno`.
//! - Nothing unwinds across the boundary: a panic of ours, or of nobody's, becomes EIO. A callback must not throw.
//! - Functions of the facade may be called from any thread, also from its callback; those of a shard only from the
//!   thread that made it, except [`anabranch_shard_wake`](completion::anabranch_shard_wake).
//! - What is passed in is copied; what is passed to a callback, or given by a poll, is lent until the callback returns, or
//!   until the next poll. Only [`anabranch_os_run_owning`](opensocket::anabranch_os_run_owning) gives its callback what it
//!   gets for good.

mod address;
pub mod completion;
mod errors;
pub mod opensocket;
