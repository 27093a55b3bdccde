//! The end of a component on one shard, and the watch over its memory until then.
#![forbid(unsafe_code)]

use super::handler::Handler;
use super::member::Member;
use super::registry::Ending;
use crate::api::time::timeout_at;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

/// Waits for the order to shut down, and sees to it that the last connection ends by its deadline.
pub(super) async fn drain<H: Handler>(member: Rc<Member<H>>) {
    member.orders.draining().await;
    member.registry.come_to_an_end(Ending::Finishing);
    while let Some(deadline) = member.orders.deadline().filter(|_| goes_on(&member)) {
        if timeout_at(deadline, until_changed(&member, deadline)).await.is_err() {
            member.registry.come_to_an_end(Ending::Now);
            return;
        }
    }
}

fn goes_on<H: Handler>(member: &Member<H>) -> bool {
    member.orders.is_accepting() || !member.registry.is_empty()
}

/// Waits until there is another deadline, or nothing to wait for.
async fn until_changed<H: Handler>(member: &Member<H>, deadline: Instant) {
    poll_fn(|context| {
        if member.orders.deadline() != Some(deadline) || !goes_on(member) {
            return Poll::Ready(());
        }
        member.orders.watch(context);
        member.registry.wake_at_next_end(context.waker());
        Poll::Pending
    })
    .await;
}
