//! How much the shards of this process hold for connections, and who must go when it is too much.
//!
//! Each shard tells every 50 ms what it holds; the sum is compared with the cap. It is a soft bound for the process, above
//! the hard ones that each shard keeps at every byte ([`Limits`](crate::Limits)).
#![forbid(unsafe_code)]

use super::close::CloseReason;
use super::handler::Handler;
use super::member::Member;
use super::session::Session;
use crate::api::time::timeout;
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

/// How often a shard tells.
const LOOK: Duration = Duration::from_millis(50);

/// What each shard of the process holds, by its number.
static HELD: Mutex<Option<HashMap<u64, usize>>> = Mutex::new(None);

/// Tells what a shard holds, and gives what all of them do.
fn tell(shard: u64, bytes: usize) -> usize {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let held = held.get_or_insert_default();
    match bytes {
        0 => drop(held.remove(&shard)),
        bytes => drop(held.insert(shard, bytes)),
    }
    held.values().sum()
}

/// Watches the memory of a shard while the component has connections there, until it is shut down.
pub(super) async fn watch<H: Handler>(member: Rc<Member<H>>) {
    let Some(max) = member.policy.memory_bytes_max else { return };
    let registry = &member.registry;
    while !has_ended(&member).await {
        let core = &registry.core;
        let held = core.with(|state| state.held_bytes()).unwrap_or(0);
        registry.tally.held_bytes.set(held as u64);
        let total = tell(core.link.id, held);
        registry.set_over_memory(total > max);
        if total > max {
            let most = registry.all().into_iter().max_by_key(|session| session.pending());
            if let Some(session) = most.filter(holds_something) {
                session.end(CloseReason::MemoryCap);
            }
        }
        if timeout(LOOK, member.orders.draining()).await.is_ok() {
            break;
        }
    }
    tell(registry.core.link.id, 0);
}

fn holds_something(session: &Rc<Session>) -> bool {
    session.pending() > 0
}

/// Waits until there is a connection; true if there will be none any more.
async fn has_ended<H: Handler>(member: &Member<H>) -> bool {
    poll_fn(|context| {
        let (orders, registry) = (&member.orders, &member.registry);
        if !registry.is_empty() {
            return Poll::Ready(false);
        }
        if orders.deadline().is_some() {
            return Poll::Ready(true);
        }
        orders.watch(context);
        registry.wake_at_next_opening(context.waker());
        Poll::Pending
    })
    .await
}
