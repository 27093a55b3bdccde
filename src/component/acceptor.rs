//! The accepting side of a server on one shard: listeners, and when not to accept.
#![forbid(unsafe_code)]

use super::handler::{Handler, Trouble};
use super::link::Link;
use super::member::Member;
use super::policy::AtLimit;
use crate::api::tcp::TcpListener;
use crate::api::time::{sleep, sleep_until, timeout};
use crate::api::unix::UnixListener;
use crate::trace::event;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How often a listener that waits for an end on another shard looks.
const LOOK: Duration = Duration::from_millis(20);
/// The pause after an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener of any family.
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    /// The next connection; none when accepting has stopped and the last one was given.
    async fn next(&self) -> io::Result<Option<Link>> {
        Ok(match self {
            Listening::Tcp(listener) => listener.next().await?.map(|(stream, _)| Link::Tcp(stream)),
            Listening::Unix(listener) => listener.next().await?.map(Link::Unix),
        })
    }

    async fn stop_accepting(&self) {
        match self {
            Listening::Tcp(listener) => listener.stop_accepting().await,
            Listening::Unix(listener) => listener.stop_accepting().await,
        }
    }

    /// Newcomers stay in the backlog of the system, or come out of it again.
    fn hold(&self, held: bool) {
        match (self, held) {
            (Listening::Tcp(listener), true) => listener.pause_accepting(),
            (Listening::Tcp(listener), false) => listener.resume_accepting(),
            (Listening::Unix(listener), true) => listener.pause_accepting(),
            (Listening::Unix(listener), false) => listener.resume_accepting(),
        }
    }
}

/// Accepts until the component is shut down; then serves those that were accepted before, and nobody else.
pub(super) async fn accept_all<H: Handler>(member: Rc<Member<H>>, listener: Listening) {
    let at_work = member.orders.begin_accepting();
    let mut pace = Pace::new(member.policy.accepts_per_second_max);
    let work = async {
        loop {
            wait_for_room(&member, &listener, &mut pace).await;
            match listener.next().await {
                Ok(Some(link)) => take_in(&member, link),
                Ok(None) => return,
                Err(error) => {
                    member.report(&Trouble::Accept(&error));
                    sleep(PAUSE).await;
                }
            }
        }
    };
    first_of(member.orders.draining(), work).await;
    listener.stop_accepting().await;
    while let Ok(Some(link)) = listener.next().await {
        take_in(&member, link);
    }
    drop(at_work);
}

/// Waits for whichever completes first; the other is dropped.
async fn first_of(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| match first.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => second.as_mut().poll(context),
    })
    .await;
}

fn take_in<H: Handler>(member: &Rc<Member<H>>, link: Link) {
    if member.registry.live() >= member.policy.connections_max {
        member.registry.tally.over_limit.add(1);
        event!(
            DEBUG,
            "anabranch::connection",
            shard = member.registry.core.link.id,
            peer = link.addresses().0.map(tracing::field::display),
            "connection over the limit"
        );
        return link.abort();
    }
    member.admit(link);
}

/// Waits until another connection may be accepted.
async fn wait_for_room<H: Handler>(member: &Member<H>, listener: &Listening, pace: &mut Pace) {
    pace.step().await;
    if !is_crowded(member) {
        return;
    }
    listener.hold(true);
    while is_crowded(member) {
        let room = poll_fn(|context| {
            member.registry.wake_at_next_end(context.waker());
            member.orders.watch(context);
            if is_crowded(member) { Poll::Pending } else { Poll::Ready(()) }
        });
        // Ends on other shards wake nobody here.
        let _ = timeout(LOOK, room).await;
    }
    listener.hold(false);
}

fn is_crowded<H: Handler>(member: &Member<H>) -> bool {
    let (registry, policy) = (&member.registry, &member.policy);
    let is_full = policy.at_limit == AtLimit::Wait && registry.live() >= policy.connections_max;
    is_full || member.orders.is_paused() || registry.is_over_memory()
}

/// Spreads accepts over time.
struct Pace {
    per_second: Option<u32>,
    /// Accepts that are free at present.
    tokens: f64,
    at: Option<Instant>,
}

impl Pace {
    fn new(per_second: Option<u32>) -> Pace {
        Pace { per_second, tokens: 0.0, at: None }
    }

    /// Waits until one more accept is free. A tenth of a second's may be made at once.
    async fn step(&mut self) {
        let Some(per_second) = self.per_second.map(f64::from) else { return };
        let now = crate::api::time::now();
        let burst = (per_second / 10.0).max(1.0);
        let passed = self.at.map_or(1.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.tokens = (self.tokens + passed * per_second).min(burst);
        self.at = Some(now);
        if self.tokens < 1.0 {
            let until = now + Duration::from_secs_f64((1.0 - self.tokens) / per_second);
            sleep_until(until).await;
            self.tokens = 1.0;
            self.at = Some(until);
        }
        self.tokens -= 1.0;
    }
}
