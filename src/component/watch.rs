//! The clock of one connection: which of its limits runs out next.
//!
//! A message moves no timer. It leaves marks, and one timer per connection, armed for the limit that may come first, looks at
//! them when it fires: either a limit has been passed, or it goes on for what is left. So a message costs a comparison or two,
//! and an idle connection a few wake-ups in the shortest of its limits.
#![forbid(unsafe_code)]

use super::close::{CloseReason, Stage};
use super::policy::Policy;
use crate::api::time::far;
use std::time::{Duration, Instant};

/// What a connection has carried, in all: whether it has changed is what counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Carried {
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

/// What the watch looks at when a limit may be passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) stage: Stage,
    /// Bytes that wait to be sent.
    pub(super) queued: usize,
    /// Bytes that have left since they are counted.
    pub(super) left: u64,
    /// Bytes of a message that is not whole.
    pub(super) partial: Option<usize>,
}

/// What comes of a look at the limits.
#[derive(Debug)]
pub(super) enum Verdict {
    /// None is passed; look again then, if there is any.
    Wait(Option<Instant>),
    /// Nothing has come or gone for long.
    Idle,
    Passed(CloseReason),
}

/// A peer that takes nothing is looked for so many times in the time that it may take.
const STALL_LOOKS: u32 = 4;

/// The marks of one connection.
// What each message touches comes first.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Watch {
    carried: Carried,
    active: Instant,
    /// Something was given to be sent and may wait: whether it leaves is looked at now and then.
    sends: bool,
    opened: Instant,
    /// What had left at the first look that found this much, and when that was. None while nothing waits.
    stalled: Option<(u64, Instant)>,
    /// What had been given to be sent, and what had left, at the last look.
    last: (u64, u64),
    /// Messages received when the one began that is not whole, and when that was.
    begun: Option<(u64, Instant)>,
}

impl Watch {
    pub(super) fn new(opened: Instant) -> Watch {
        Watch {
            opened,
            carried: Carried::default(),
            active: opened,
            sends: false,
            stalled: None,
            last: (0, 0),
            begun: None,
        }
    }

    /// When something came or went last.
    pub(super) fn active(&self) -> Instant {
        self.active
    }

    /// It is idle and may be.
    pub(super) fn keep(&mut self, now: Instant) {
        self.active = now;
    }

    /// Marks that something has come or gone, if it has. True if a limit began to run that the timer may not know.
    #[inline]
    pub(super) fn mark(&mut self, now: Instant, carried: Carried) -> bool {
        if self.carried == carried {
            return false;
        }
        let sends = self.carried.bytes_out != carried.bytes_out;
        self.carried = carried;
        self.active = now;
        sends && !std::mem::replace(&mut self.sends, true)
    }

    /// Marks whether a message is on its way, as the one behind so many. True as in [`mark`](Self::mark).
    #[inline]
    pub(super) fn mark_message(&mut self, now: Instant, partial: bool, messages: u64) -> bool {
        if !partial {
            self.begun = None;
        } else if self.begun.is_none_or(|(known, _)| known != messages) {
            self.begun = Some((messages, now));
            return true;
        }
        false
    }

    /// Marks whether what waits to be sent leaves, and what has left of broadcasts, which nobody else counts.
    fn mark_sends(&mut self, now: Instant, look: &Look) {
        let (given, left) = std::mem::replace(&mut self.last, (self.carried.bytes_out, look.left));
        if given == self.carried.bytes_out && left != look.left {
            self.active = now;
        }
        self.sends = look.queued > 0;
        if look.queued == 0 {
            self.stalled = None;
        } else if self.stalled.is_none_or(|(left, _)| left != look.left) {
            self.stalled = Some((look.left, now));
        }
    }

    /// The limits that hold at present: when each is passed, and what comes of it.
    fn limits(&self, policy: &Policy, look: &Look) -> [Option<(Instant, Verdict)>; 5] {
        let limit = |start: Option<Instant>, span: Option<Duration>, verdict| {
            start.zip(span).map(|(start, span)| (far(start, span), verdict))
        };
        let handshake = (look.stage == Stage::Handshake).then_some(self.opened);
        let arrived = look.partial.unwrap_or(0) as u64 / u64::from(policy.message_bytes_per_second_min);
        let message = policy.message_timeout.map(|span| span + Duration::from_secs(arrived));
        let (stalled, begun) = (self.stalled.map(|(_, since)| since), self.begun.map(|(_, since)| since));
        [
            limit(handshake, policy.handshake_timeout, Verdict::Passed(CloseReason::HandshakeTimeout)),
            limit(Some(self.opened), policy.lifetime, Verdict::Passed(CloseReason::Lifetime)),
            limit(stalled, policy.write_stall_timeout, Verdict::Passed(CloseReason::WriteStall)),
            limit(begun, message, Verdict::Passed(CloseReason::MessageTimeout)),
            limit(Some(self.active), policy.idle_timeout, Verdict::Idle),
        ]
    }

    /// Looks at the limits: the first that is passed, or when the next one may be.
    pub(super) fn judge(&mut self, now: Instant, policy: &Policy, look: &Look) -> Verdict {
        let looks = policy.write_stall_timeout.filter(|_| self.sends || look.queued > 0);
        let mut next = looks.map(|span| far(now, span / STALL_LOOKS));
        self.mark_sends(now, look);
        for (at, verdict) in self.limits(policy, look).into_iter().flatten() {
            if at <= now {
                return verdict;
            }
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        Verdict::Wait(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What a connection looks like at some second.
    #[derive(Clone, Copy)]
    struct At {
        bytes_in: u64,
        bytes_out: u64,
        messages: u64,
        look: Look,
    }

    fn open() -> At {
        let look = Look { stage: Stage::Open, left: 0, queued: 0, partial: None };
        At { bytes_in: 0, bytes_out: 0, messages: 0, look }
    }

    fn partial(bytes: usize) -> Look {
        Look { partial: Some(bytes), ..open().look }
    }

    /// What the watch says and when, if it is asked when it wants to be.
    fn first(policy: &Policy, at: impl Fn(u64) -> At) -> (u64, String) {
        let start = Instant::now();
        let (mut watch, mut timer) = (Watch::new(start), Some(start));
        for second in 0..1000 {
            let (now, At { bytes_in, bytes_out, messages, look }) =
                (start + SECOND * second as u32, at(second));
            let began = watch.mark(now, Carried { bytes_in, bytes_out })
                | watch.mark_message(now, look.partial.is_some(), messages);
            if !began && timer.is_none_or(|timer| now < timer) {
                continue;
            }
            match watch.judge(now, policy, &look) {
                Verdict::Wait(next) => {
                    assert!(next.is_none_or(|next| next > now));
                    timer = next;
                }
                Verdict::Idle => return (second, "idle".into()),
                Verdict::Passed(reason) => return (second, reason.name().into()),
            }
        }
        (1000, "nothing".into())
    }

    fn policy() -> Policy {
        Policy { lifetime: None, ..Policy::default() }
    }

    #[test]
    fn a_silent_connection_is_idle_after_its_time() {
        assert_eq!(first(&policy(), |_| open()), (120, "idle".into()));
        let off = Policy { idle_timeout: None, ..policy() };
        assert_eq!(first(&off, |_| open()), (1000, "nothing".into()));
    }

    #[test]
    fn whatever_is_carried_puts_idleness_off() {
        let busy = |second| At { bytes_in: second / 50, ..open() };
        assert_eq!(first(&policy(), |second| busy(second.min(200))), (320, "idle".into()));
    }

    #[test]
    fn broadcasts_that_leave_put_idleness_off() {
        let told = |second: u64| At { look: Look { left: second.min(200), ..open().look }, ..open() };
        let (second, reason) = first(&policy(), told);
        assert_eq!(reason, "idle");
        assert!((320..=360).contains(&second), "{second}");
    }

    #[test]
    fn a_handshake_has_its_own_time_whatever_it_carries() {
        let look = Look { stage: Stage::Handshake, ..open().look };
        let slow = |second| At { bytes_in: second, look, ..open() };
        assert_eq!(first(&policy(), slow), (10, "handshake_timeout".into()));
    }

    #[test]
    fn a_message_that_drips_in_is_not_saved_by_its_drops() {
        let drips = |second| At { bytes_in: second, look: partial(second as usize + 1), ..open() };
        assert_eq!(first(&policy(), drips), (10, "message_timeout".into()));
    }

    #[test]
    fn a_long_message_that_keeps_its_pace_may_take_longer() {
        let steady = |second| At { bytes_in: second, look: partial(1024 * (second as usize + 1)), ..open() };
        assert_eq!(first(&policy(), steady).1, "nothing");
    }

    #[test]
    fn each_message_has_its_own_time() {
        let next = |second| At { bytes_in: second, messages: second / 9, look: partial(1), ..open() };
        assert_eq!(first(&policy(), next).1, "nothing");
    }

    #[test]
    fn a_peer_that_takes_nothing_stalls_and_one_that_takes_a_little_does_not() {
        // A handler that goes on sending, and one that has sent once.
        for limit in [u64::MAX, 1] {
            let stalls = |second: u64| {
                let bytes_out = second.min(limit);
                At { bytes_out, look: Look { queued: bytes_out as usize, ..open().look }, ..open() }
            };
            let (second, reason) = first(&policy(), stalls);
            assert_eq!(reason, "write_stall");
            assert!((30..=40).contains(&second), "{second}");
        }
        let little = |second| At {
            bytes_out: second,
            look: Look { queued: 5, left: second / 10, ..open().look },
            ..open()
        };
        assert_eq!(first(&policy(), little).1, "nothing");
    }

    #[test]
    fn a_life_ends_though_it_is_busy() {
        let short = Policy { lifetime: Some(SECOND * 60), ..policy() };
        assert_eq!(first(&short, |second| At { bytes_in: second, ..open() }), (60, "lifetime".into()));
    }
}
