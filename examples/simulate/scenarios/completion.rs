//! The completion API: every submission that was taken ends exactly once, and the bytes are those that were sent.
#![forbid(unsafe_code)]

use super::model::{Choice, Verdict, pattern, small_config, within};
use anabranch::sim::{Builder, Faults, Host};
use anabranch::{Close, Completion, EndpointId, Error, Event, Full, Shard};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::Duration;

/// Where the server is: the first host of a simulation has this address.
const SERVER: ([u8; 4], u16) = ([10, 0, 0, 1], 7000);

/// Tags below this one are of the server's listener.
const FIRST_TAG: u64 = 16;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "completion");
    let verdict = Verdict::default();
    let mut builder = Builder::new().faults(faults).config(small_config(&mut choice));
    let served = verdict.clone();
    let server = Host::driven("server", move |shard| serve(shard, served.clone()));
    builder = builder.add(server.serves());
    for client in 0..choice.within(1..4) {
        let (verdict, connections) = (verdict.clone(), choice.within(1..6));
        builder = builder.add(Host::driven(format!("client-{client}"), move |shard| {
            let mut client = Client { tags: Tags::new(&verdict), flows: BTreeMap::new(), left: connections };
            client.tags.submit(|tag| shard.submit_timeout(Duration::from_millis(5), tag));
            move |shard: &Shard, completion| client.on_completion(shard, completion)
        }));
    }
    verdict.watch(builder)
}

/// The submissions that have not ended.
struct Tags {
    verdict: Verdict,
    next: u64,
    open: BTreeSet<u64>,
}

impl Tags {
    fn new(verdict: &Verdict) -> Tags {
        Tags { verdict: verdict.clone(), next: FIRST_TAG, open: BTreeSet::new() }
    }

    /// Submits with a tag that was never used; a refused one will not end.
    fn submit<T, E>(&mut self, submit: impl FnOnce(u64) -> Result<T, E>) -> Option<T> {
        self.next += 1;
        let submitted = submit(self.next).ok()?;
        self.open.insert(self.next);
        Some(submitted)
    }

    fn ended(&mut self, completion: &Completion) {
        let known = if completion.more {
            self.open.contains(&completion.tag)
        } else {
            self.open.remove(&completion.tag)
        };
        self.verdict.require(known, || format!("a completion that nothing waits for: {completion:?}"));
    }
}

/// A refusal is one too if it is inside.
fn flat(sent: Result<Result<(), Error>, Full<anabranch::Payload>>) -> Result<(), ()> {
    sent.map_err(drop)?.map_err(drop)
}

/// Sends everything back.
fn serve(
    shard: &Shard,
    verdict: Verdict,
) -> impl FnMut(&Shard, Completion) -> ControlFlow<Result<(), String>> + use<> {
    let listener = shard.listen(SocketAddr::from(([0, 0, 0, 0], SERVER.1))).ok();
    let mut tags = Tags::new(&verdict);
    let accepts = listener.is_some_and(|listener| shard.submit_accept_multi(listener, 1).is_ok());
    if !accepts {
        let _ = shard.submit_timeout(Duration::from_millis(1), 2);
    }
    move |shard, completion| {
        if completion.tag >= FIRST_TAG {
            tags.ended(&completion);
        }
        let connection = completion.endpoint;
        match completion.event {
            Event::Elapsed => return ControlFlow::Break(Err("there is no listener".into())),
            Event::Failed(_) if completion.tag == 1 => {
                return ControlFlow::Break(Err("nothing is accepted".into()));
            }
            Event::Accepted(connection) => {
                tags.submit(|tag| shard.submit_recv(connection, tag));
            }
            Event::Received(bytes) => {
                let sent = tags.submit(|tag| flat(shard.submit_send(connection, bytes, tag)));
                let goes_on = sent.and_then(|()| tags.submit(|tag| shard.submit_recv(connection, tag)));
                if goes_on.is_none() {
                    tags.submit(|tag| shard.submit_close(connection, Close::Abort, tag));
                }
            }
            Event::End | Event::Failed(_) => {
                tags.submit(|tag| shard.submit_close(connection, Close::Flush, tag));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

struct Client {
    tags: Tags,
    flows: BTreeMap<EndpointId, Flow>,
    /// Connections to be made yet.
    left: u64,
}

struct Flow {
    key: u64,
    sent: u64,
    goal: u64,
    back: u64,
}

impl Client {
    fn on_completion(&mut self, shard: &Shard, completion: Completion) -> ControlFlow<Result<(), String>> {
        self.tags.ended(&completion);
        let id = completion.endpoint;
        match completion.event {
            Event::Elapsed => self.go_on(shard),
            Event::Connected => {
                self.tags.submit(|tag| shard.submit_recv_multi(id, tag));
                self.send(shard, id);
            }
            Event::Received(bytes) => self.check(shard, id, &bytes),
            Event::Sent => self.send(shard, id),
            Event::Closed => {
                self.flows.remove(&id);
            }
            Event::End | Event::Failed(_) => {
                self.tags.submit(|tag| shard.submit_close(id, Close::Abort, tag));
            }
            _ => {}
        }
        let over = self.left == 0 && self.flows.is_empty() && self.tags.open.is_empty();
        if over { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
    }

    /// One more connection, the next one a little later; in the end those are given up that have not ended.
    fn go_on(&mut self, shard: &Shard) {
        if self.left == 0 {
            for id in self.flows.keys() {
                self.tags.submit(|tag| shard.submit_close(*id, Close::Abort, tag));
            }
            return;
        }
        if let Some(id) = self.tags.submit(|tag| shard.submit_connect(SERVER.into(), tag)) {
            let goal = within(1..6000);
            self.flows.insert(id, Flow { key: within(0..u64::MAX), sent: 0, goal, back: 0 });
        }
        self.left -= 1;
        let pause =
            if self.left == 0 { Duration::from_secs(3) } else { Duration::from_micros(within(1..20_000)) };
        self.tags.submit(|tag| shard.submit_timeout(pause, tag));
    }

    fn send(&mut self, shard: &Shard, id: EndpointId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let len = within(1..900).min(flow.goal - flow.sent);
        if len > 0 {
            let payload = pattern(flow.key, flow.sent, len as usize);
            if self.tags.submit(|tag| flat(shard.submit_send(id, payload, tag))).is_some() {
                flow.sent += len;
            }
        }
    }

    fn check(&mut self, shard: &Shard, id: EndpointId, bytes: &[u8]) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let same = bytes == pattern(flow.key, flow.back, bytes.len());
        self.tags.verdict.require(same, || format!("{} bytes came back that were not sent", bytes.len()));
        flow.back += bytes.len() as u64;
        if flow.back == flow.goal {
            self.tags.submit(|tag| shard.submit_close(id, Close::Flush, tag));
        }
    }
}
