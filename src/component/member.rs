//! A component on one shard: what its tasks there share.
#![forbid(unsafe_code)]

use super::dial::{Dialer, Dials};
use super::handler::{Admission, Handler, Peer, Trouble};
use super::id::ConnId;
use super::life::Life;
use super::link::Link;
use super::order::Orders;
use super::phase::Place;
use super::policy::Policy;
use super::registry::Registry;
use super::secure::{Doorkeeper, Security};
use super::session::{Parts, Session};
use super::target::Target;
use crate::api::task::spawn;
use crate::codec::Framer;
use crate::trace::event;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

/// Makes the codec of a connection.
pub(super) type MakeFramer = Arc<dyn Fn() -> Framer + Send + Sync>;

thread_local! {
    /// The members on this thread, for calls that come from other threads as plain numbers.
    static MEMBERS: RefCell<HashMap<(u64, usize), Local>> = RefCell::default();
}

/// What a call from elsewhere works on.
#[derive(Clone)]
pub(super) struct Local {
    pub(super) registry: Rc<Registry>,
    pub(super) orders: Rc<Orders>,
    pub(super) dials: Rc<Dials>,
    /// The member itself, which its own tasks keep.
    pub(super) dialer: Weak<dyn Dialer>,
}

impl Local {
    /// Shuts the component down on this shard.
    pub(super) fn drain(&self, deadline: Instant) {
        self.orders.drain(deadline);
        self.dials.close();
    }
}

/// The member of a component on this thread that has this number, if it lives.
pub(super) fn local(component: u64, index: usize) -> Option<Local> {
    MEMBERS.with(|members| members.borrow().get(&(component, index)).cloned())
}

/// A component on one shard. It lives as long as one of its tasks there.
pub(super) struct Member<H: Handler> {
    pub(super) handler: Arc<H>,
    pub(super) registry: Rc<Registry>,
    pub(super) orders: Rc<Orders>,
    pub(super) policy: Rc<Policy>,
    pub(super) dials: Rc<Dials>,
    make_framer: Option<MakeFramer>,
    /// Who makes sealed connections of those that are accepted.
    pub(super) doorkeeper: Option<Doorkeeper>,
    key: (u64, usize),
    place: Place,
}

/// What a member is made of.
pub(super) struct Founding<H> {
    pub(super) key: (u64, usize),
    pub(super) place: Place,
    pub(super) handler: Arc<H>,
    pub(super) registry: Registry,
    pub(super) policy: Rc<Policy>,
    pub(super) make_framer: Option<MakeFramer>,
    pub(super) security: Option<Security>,
}

impl<H: Handler> Member<H> {
    pub(super) fn found(founding: Founding<H>) -> Rc<Member<H>> {
        let Founding { key, place, handler, registry, policy, make_framer, security } = founding;
        let doorkeeper = security.map(|security| Doorkeeper::new(security, &policy));
        let member = Rc::new(Member {
            handler,
            registry: Rc::new(registry),
            orders: Rc::default(),
            policy,
            dials: Rc::default(),
            make_framer,
            doorkeeper,
            key,
            place,
        });
        let dialer: Weak<Member<H>> = Rc::downgrade(&member);
        let local = Local {
            registry: Rc::clone(&member.registry),
            orders: Rc::clone(&member.orders),
            dials: Rc::clone(&member.dials),
            dialer,
        };
        MEMBERS.with(|members| members.borrow_mut().insert(key, local));
        member
    }

    /// Lets a connection that was accepted live, if the handler lets it.
    pub(super) fn admit(self: &Rc<Self>, link: Link) {
        if let Some(life) = self.take_in(self.registry.next_id(), None, link) {
            spawn(life.live()).detach();
        }
    }

    /// Asks the handler about a connection; its life, if it may have one.
    pub(super) fn take_in(
        self: &Rc<Self>,
        id: ConnId,
        target: Option<&Target>,
        link: Link,
    ) -> Option<Life<H>> {
        link.set_options(&self.policy);
        let (address, local) = link.addresses();
        let peer = Peer { id, address, local, target: target.cloned() };
        match self.call("on_accept", || self.handler.on_accept(&peer)) {
            Some(Admission::Accept(state)) => {
                let parts = Parts {
                    id,
                    registry: Rc::clone(&self.registry),
                    policy: Rc::clone(&self.policy),
                    framer: self.make_framer.as_ref().map(|make| make()),
                };
                let session = Rc::new(Session::new(parts, link));
                Some(Life::new(Rc::clone(self), session, state))
            }
            Some(Admission::Refuse) | None => {
                self.registry.tally.refused.add(1);
                event!(
                    DEBUG,
                    "anabranch::connection",
                    shard = self.registry.core.link.id,
                    peer = address.map(tracing::field::display),
                    "connection refused"
                );
                link.abort();
                None
            }
        }
    }

    /// Calls the handler where a panic has no connection to end.
    pub(super) fn call<R>(&self, name: &'static str, work: impl FnOnce() -> R) -> Option<R> {
        let outcome = catch_unwind(AssertUnwindSafe(work));
        if outcome.is_err() {
            self.report(&Trouble::Callback(name));
        }
        outcome.ok()
    }

    pub(super) fn report(&self, trouble: &Trouble<'_>) {
        self.registry.tally.errors.add(1);
        event!(WARN, "anabranch::component", shard = self.registry.core.link.id, reason = ?trouble, "trouble");
        // A panic in here has nobody left to be told.
        let _ = catch_unwind(AssertUnwindSafe(|| self.handler.on_error(trouble)));
    }
}

impl<H: Handler> Drop for Member<H> {
    fn drop(&mut self) {
        // The shard's thread may be ending, with its table gone.
        let _ = MEMBERS.try_with(|members| members.borrow_mut().remove(&self.key));
        let handler = &self.handler;
        self.place.end(|| {
            let _ = catch_unwind(AssertUnwindSafe(|| handler.on_shutdown()));
        });
    }
}
