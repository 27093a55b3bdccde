//! Events for subscribers of the `tracing` crate, with feature `tracing`; without it nothing is left of them, not even their
//! arguments.
//!
//! There are events for what happens to connections and to shards, none for a message. A subscriber is foreign code: no
//! event may be told while something is borrowed (invariant 12), and its panic ends here.
#![forbid(unsafe_code)]

use crate::config::Warning;

/// Tells an event, as a statement: its level, its target, and then fields and text as `tracing::event!` takes them.
macro_rules! event {
    ($level:ident, $target:literal, $($fields:tt)+) => {
        #[cfg(feature = "tracing")]
        $crate::trace::contain(|| {
            ::tracing::event!(target: $target, ::tracing::Level::$level, $($fields)+)
        });
    };
}

pub(crate) use event;

/// A subscriber that panics costs a connection or a shard nothing.
#[cfg(feature = "tracing")]
pub(crate) fn contain(tell: impl FnOnce()) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(tell));
}

/// Tells what the configuration's hook is told, whether there is a hook or not. `shard` is unknown where it has ended.
#[inline]
pub(crate) fn warned(shard: Option<u64>, warning: &Warning) {
    #[cfg(feature = "tracing")]
    tell(shard, warning);
    let _ = (shard, warning);
}

#[cfg(feature = "tracing")]
fn tell(shard: Option<u64>, warning: &Warning) {
    match warning {
        Warning::AcceptPaused { listener, error } => {
            event!(WARN, "anabranch::shard", shard, listener, reason = %error, "accept paused");
        }
        Warning::CapabilityLowered { capability, reason } => {
            event!(WARN, "anabranch::shard", shard, %capability, %reason, "capability lowered");
        }
        Warning::DrainTimedOut { operations } => {
            event!(WARN, "anabranch::shard", shard, operations, "drain timed out");
        }
    }
}
