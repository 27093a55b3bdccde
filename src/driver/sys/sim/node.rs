//! Nodes: the parties on a host that are told what happened, one for each driver.

#![forbid(unsafe_code)]

use super::core::{Event, HostId};
use super::fault::Fault;
use super::socket::DescriptorId;
use super::world::World;
use std::time::Duration;

/// A node of the simulation; its number never comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

/// What a node has not taken yet.
#[derive(Debug)]
pub(super) struct Node {
    host: HostId,
    ready: Vec<DescriptorId>,
    due: Vec<u64>,
    woken: bool,
    runnable: bool,
}

impl World {
    pub(crate) fn add_node(&mut self, host: HostId) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let node = Node { host, ready: Vec::new(), due: Vec::new(), woken: false, runnable: false };
        self.nodes.push(Some(node));
        id
    }

    /// Nobody is told anything under this number any more.
    pub(crate) fn remove_node(&mut self, node: NodeId) {
        self.nodes[node.0 as usize] = None;
    }

    pub(crate) fn node_host(&self, node: NodeId) -> Option<HostId> {
        self.nodes[node.0 as usize].as_ref().map(|node| node.host)
    }

    /// Sets who is told that a descriptor may be ready, and tells at once if it is.
    pub(crate) fn watch(&mut self, id: DescriptorId, node: NodeId) {
        let Some(open) = self.table.get_mut(&id.0) else { return };
        if open.node == Some(node) {
            return;
        }
        open.node = Some(node);
        open.announced = false;
        if self.is_ready(id, true) || self.is_ready(id, false) {
            self.tell(id);
        }
    }

    /// The descriptors that may be ready; each is told once until it is taken.
    pub(crate) fn take_ready(&mut self, node: NodeId, out: &mut Vec<DescriptorId>) {
        let Some(taken) = &mut self.nodes[node.0 as usize] else { return };
        for id in taken.ready.drain(..) {
            // A descriptor may have been closed, or given to another node, since.
            if let Some(open) = self.table.get_mut(&id.0).filter(|open| open.node == Some(node)) {
                open.announced = false;
                out.push(id);
            }
        }
    }

    /// Asks that a key becomes due at a time.
    pub(crate) fn schedule(&mut self, node: NodeId, at: Duration, key: u64) {
        self.core.plan_at(at, Event::Due { node, key });
    }

    pub(crate) fn take_due(&mut self, node: NodeId, out: &mut Vec<u64>) {
        if let Some(node) = &mut self.nodes[node.0 as usize] {
            out.append(&mut node.due);
        }
    }

    pub(crate) fn wake(&mut self, node: NodeId) {
        if let Some(node) = &mut self.nodes[node.0 as usize] {
            node.woken = true;
            node.runnable = true;
        }
    }

    pub(crate) fn is_woken(&self, node: NodeId) -> bool {
        self.nodes[node.0 as usize].as_ref().is_some_and(|node| node.woken)
    }

    pub(crate) fn take_woken(&mut self, node: NodeId) -> bool {
        self.nodes[node.0 as usize].as_mut().is_some_and(|node| std::mem::take(&mut node.woken))
    }

    /// Whether a node was told something since this was last taken.
    pub(crate) fn is_runnable(&self, node: NodeId) -> bool {
        self.nodes[node.0 as usize].as_ref().is_some_and(|node| node.runnable)
    }

    pub(crate) fn take_runnable(&mut self, node: NodeId) -> bool {
        self.nodes[node.0 as usize].as_mut().is_some_and(|node| std::mem::take(&mut node.runnable))
    }

    pub(super) fn come_due(&mut self, node: NodeId, key: u64) {
        if let Some(node) = &mut self.nodes[node.0 as usize] {
            node.due.push(key);
            node.runnable = true;
        }
    }

    /// A descriptor may have become readable, writable or failed.
    pub(super) fn announce(&mut self, id: DescriptorId) {
        let Some(open) = self.table.get(&id.0) else { return };
        if open.node.is_none() {
            return;
        }
        let host = open.host;
        self.tell(id);
        if self.core.roll(host, Fault::SpuriousReady) {
            let after = self.core.span(Duration::ZERO, Duration::from_millis(5));
            self.core.plan(after, Event::Spurious(id));
        }
    }

    /// Announces without rolling for another announcement.
    pub(super) fn tell(&mut self, id: DescriptorId) {
        let Some(open) = self.table.get_mut(&id.0) else { return };
        let Some(node) = open.node.and_then(|node| self.nodes[node.0 as usize].as_mut()) else { return };
        if !std::mem::replace(&mut open.announced, true) {
            node.ready.push(id);
            node.runnable = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Faults;
    use super::super::testing::Pair;
    use super::*;

    fn ready(pair: &mut Pair, node: NodeId) -> Vec<DescriptorId> {
        let mut ready = Vec::new();
        pair.world.take_ready(node, &mut ready);
        ready
    }

    #[test]
    fn a_descriptor_is_told_once_until_it_is_taken() {
        let mut pair = Pair::new(1, Faults::none());
        let (near, far) = pair.world.socket_pair(pair.a).unwrap();
        let node = pair.world.add_node(pair.a);
        pair.world.watch(far, node);
        // A fresh stream can be written to.
        assert_eq!(ready(&mut pair, node), [far]);
        pair.world.send(near, b"x").unwrap();
        pair.world.send(near, b"y").unwrap();
        assert!(pair.world.take_runnable(node));
        assert_eq!(ready(&mut pair, node), [far]);
        assert_eq!(ready(&mut pair, node), []);
        pair.world.send(near, b"z").unwrap();
        pair.world.close(far).unwrap();
        assert_eq!(ready(&mut pair, node), []);
    }

    #[test]
    fn who_watches_last_is_told_and_nobody_after_that() {
        let mut pair = Pair::new(1, Faults::none());
        let (near, far) = pair.world.socket_pair(pair.a).unwrap();
        let nodes = [pair.world.add_node(pair.a), pair.world.add_node(pair.a)];
        nodes.iter().for_each(|node| pair.world.watch(far, *node));
        assert_eq!(ready(&mut pair, nodes[0]), []);
        assert_eq!(ready(&mut pair, nodes[1]), [far]);
        // The first one was told something when it began to watch.
        assert!(nodes.iter().all(|node| pair.world.take_runnable(*node)));
        pair.world.remove_node(nodes[1]);
        pair.world.send(near, b"x").unwrap();
        pair.world.wake(nodes[1]);
        assert!(!pair.world.is_runnable(nodes[0]) && !pair.world.is_runnable(nodes[1]));
        assert_eq!(pair.world.node_host(nodes[0]), Some(pair.a));
    }

    #[test]
    fn a_descriptor_may_be_announced_without_a_reason() {
        let mut pair = Pair::new(1, Faults::none().with(Fault::SpuriousReady, 1.0));
        let (near, far) = pair.world.socket_pair(pair.a).unwrap();
        let node = pair.world.add_node(pair.a);
        pair.world.watch(far, node);
        pair.world.send(near, b"x").unwrap();
        assert_eq!(ready(&mut pair, node), [far]);
        pair.receive(far).unwrap();
        pair.run_ms(10);
        assert_eq!(ready(&mut pair, node), [far]);
        assert_eq!(pair.receive(far), Err(crate::driver::sys::os::libc::EAGAIN));
        pair.run_ms(100);
        assert_eq!(ready(&mut pair, node), []);
    }
}
