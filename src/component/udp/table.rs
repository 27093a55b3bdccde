//! The table of sessions: by address, by slot, and in the order in which they were last heard of.
//!
//! Each step costs the same however many sessions there are; the map hashes with keys of its own, so that no peer can
//! choose addresses that collide. The table reads no clock, sends nothing and calls nobody. A session that ends keeps its
//! slot until it has been told; the address is free at once.
#![forbid(unsafe_code)]

use slab::Slab;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Names a session of one [`UdpSessions`](super::UdpSessions), and never another one: numbers are not used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionId {
    serial: u64,
    slot: u32,
}

impl SessionId {
    /// The number of the session: the first one is 1, and no two have the same.
    pub fn serial(self) -> u64 {
        self.serial
    }

    pub(super) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Why a session ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionEnd {
    /// Nothing came from the peer for as long as [`SessionOptions::idle`](super::SessionOptions::idle) says.
    Idle,
    /// This program ended it.
    Closed,
    /// The sessions were stopped.
    Shutdown,
    /// The handler gave this error for a datagram.
    Handler(io::Error),
}

/// What is known of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// The address of the peer.
    pub peer: SocketAddr,
    /// Since when it has been there.
    pub age: Duration,
    /// For how long nothing has come from the peer.
    pub idle: Duration,
    /// Datagrams that came from the peer.
    pub datagrams_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Datagrams that were accepted to be sent to the peer.
    pub datagrams_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Datagrams of the peer that were dropped because those before them had not been taken.
    pub dropped_in: u64,
}

/// No slot.
const NONE: u32 = u32::MAX;

struct Entry {
    serial: u64,
    peer: SocketAddr,
    since: Instant,
    heard: Instant,
    /// Its neighbours in the order of being heard, while it is open.
    older: u32,
    newer: u32,
    open: bool,
    datagrams_in: u64,
    bytes_in: u64,
    datagrams_out: u64,
    bytes_out: u64,
    dropped_in: u64,
}

// What a session costs beside its state and its place in the map.
const _: () = assert!(size_of::<Entry>() <= 136);

pub(super) struct Table {
    entries: Slab<Entry>,
    by_peer: HashMap<SocketAddr, u32>,
    oldest: u32,
    newest: u32,
    serial: u64,
    /// One more than the highest slot that was ever taken.
    slots: usize,
}

impl Table {
    pub(super) fn new() -> Table {
        Table {
            entries: Slab::new(),
            by_peer: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            serial: 0,
            slots: 0,
        }
    }

    /// Sessions that are open.
    pub(super) fn open(&self) -> usize {
        self.by_peer.len()
    }

    /// Slots in use: open sessions, and those whose end has not been told.
    pub(super) fn used(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// The serial number of the newest session.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Makes a session for a peer that has none.
    pub(super) fn insert(&mut self, peer: SocketAddr, now: Instant) -> SessionId {
        self.serial += 1;
        let serial = self.serial;
        let slot = self.entries.insert(Entry {
            serial,
            peer,
            since: now,
            heard: now,
            older: NONE,
            newer: NONE,
            open: true,
            datagrams_in: 0,
            bytes_in: 0,
            datagrams_out: 0,
            bytes_out: 0,
            dropped_in: 0,
        });
        self.slots = self.slots.max(slot + 1);
        let slot = u32::try_from(slot).expect("SessionOptions::sessions_max is below 2^32");
        self.by_peer.insert(peer, slot);
        self.link(slot);
        SessionId { serial, slot }
    }

    /// Puts an entry behind all others.
    fn link(&mut self, slot: u32) {
        let newest = std::mem::replace(&mut self.newest, slot);
        let entry = &mut self.entries[slot as usize];
        (entry.older, entry.newer) = (newest, NONE);
        match self.entries.get_mut(newest as usize) {
            Some(before) => before.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Entry { older, newer, .. } = self.entries[slot as usize];
        match self.entries.get_mut(older as usize) {
            Some(before) => before.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(behind) => behind.older = older,
            None => self.newest = older,
        }
    }

    fn get(&self, id: SessionId) -> Option<&Entry> {
        self.entries.get(id.slot()).filter(|entry| entry.serial == id.serial)
    }

    fn get_open(&mut self, id: SessionId) -> Option<&mut Entry> {
        self.entries.get_mut(id.slot()).filter(|entry| entry.serial == id.serial && entry.open)
    }

    pub(super) fn is_open(&self, id: SessionId) -> bool {
        self.get(id).is_some_and(|entry| entry.open)
    }

    pub(super) fn find(&self, peer: SocketAddr) -> Option<SessionId> {
        let slot = *self.by_peer.get(&peer)?;
        Some(SessionId { serial: self.entries[slot as usize].serial, slot })
    }

    /// The open session in a slot.
    pub(super) fn at(&self, slot: usize) -> Option<SessionId> {
        let entry = self.entries.get(slot).filter(|entry| entry.open)?;
        Some(SessionId { serial: entry.serial, slot: slot as u32 })
    }

    pub(super) fn peer(&self, id: SessionId) -> Option<SocketAddr> {
        self.get(id).map(|entry| entry.peer)
    }

    /// What is known of a session, also of one whose end is being told.
    pub(super) fn info(&self, id: SessionId, now: Instant) -> Option<SessionInfo> {
        let entry = self.get(id)?;
        Some(SessionInfo {
            id,
            peer: entry.peer,
            age: now.saturating_duration_since(entry.since),
            idle: now.saturating_duration_since(entry.heard),
            datagrams_in: entry.datagrams_in,
            bytes_in: entry.bytes_in,
            datagrams_out: entry.datagrams_out,
            bytes_out: entry.bytes_out,
            dropped_in: entry.dropped_in,
        })
    }

    /// The peer was heard of.
    pub(super) fn heard(&mut self, id: SessionId, now: Instant, datagrams: usize, bytes: usize) {
        let Some(entry) = self.get_open(id) else { return };
        entry.heard = now;
        entry.datagrams_in += datagrams as u64;
        entry.bytes_in += bytes as u64;
        if self.newest != id.slot {
            self.unlink(id.slot);
            self.link(id.slot);
        }
    }

    pub(super) fn sent(&mut self, id: SessionId, bytes: usize) {
        if let Some(entry) = self.get_open(id) {
            entry.datagrams_out += 1;
            entry.bytes_out += bytes as u64;
        }
    }

    pub(super) fn dropped(&mut self, id: SessionId) {
        if let Some(entry) = self.get_open(id) {
            entry.dropped_in += 1;
        }
    }

    /// Ends a session, whose address is free from then on; false if it is not open.
    pub(super) fn close(&mut self, id: SessionId) -> bool {
        let Some(entry) = self.get_open(id) else { return false };
        entry.open = false;
        let peer = entry.peer;
        self.by_peer.remove(&peer);
        self.unlink(id.slot);
        true
    }

    /// Frees the slot of a session that has ended.
    pub(super) fn remove(&mut self, id: SessionId) {
        if self.get(id).is_some_and(|entry| !entry.open) {
            self.entries.remove(id.slot());
        }
    }

    /// The session that has not been heard of for the longest time, and when it was.
    pub(super) fn oldest(&self) -> Option<(SessionId, Instant)> {
        let entry = self.entries.get(self.oldest as usize)?;
        Some((SessionId { serial: entry.serial, slot: self.oldest }, entry.heard))
    }

    /// All open sessions, in the order of their slots.
    pub(super) fn ids(&self) -> impl Iterator<Item = SessionId> {
        let open = self.entries.iter().filter(|(_, entry)| entry.open);
        open.map(|(slot, entry)| SessionId { serial: entry.serial, slot: slot as u32 })
    }
}

/// How many sessions may begin in a second: a place in time that each of them moves on (the generic cell rate algorithm).
pub(super) struct Rate {
    interval: Duration,
    full_at: Option<Instant>,
}

/// So much of the rate may come at once.
const BURST: Duration = Duration::from_secs(1);

impl Rate {
    pub(super) fn new(per_second: u32) -> Rate {
        Rate { interval: Duration::from_secs(1) / per_second.max(1), full_at: None }
    }

    /// Whether one more may begin now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let from = self.full_at.map_or(now, |full_at| full_at.max(now));
        let full_at = from + self.interval;
        let allowed = full_at - now <= BURST;
        if allowed {
            self.full_at = Some(full_at);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn order(table: &Table) -> Vec<u16> {
        let (mut slot, mut seen) = (table.oldest, Vec::new());
        while let Some(entry) = table.entries.get(slot as usize) {
            seen.push(entry.peer.port());
            slot = entry.newer;
        }
        seen
    }

    #[test]
    fn who_was_heard_of_last_stands_last() {
        let (mut table, now) = (Table::new(), crate::time::now());
        let ids: Vec<_> = (1..=4).map(|n| table.insert(peer(n), now)).collect();
        table.heard(ids[1], now, 1, 10);
        assert_eq!(order(&table), [1, 3, 4, 2]);
        table.heard(ids[1], now, 1, 10);
        table.heard(ids[0], now, 1, 10);
        assert_eq!(order(&table), [3, 4, 2, 1]);
        assert!(table.close(ids[3]) && !table.close(ids[3]), "closed twice");
        assert_eq!(order(&table), [3, 2, 1]);
        assert_eq!(table.oldest().map(|(id, _)| id), Some(ids[2]));
        for id in &ids {
            table.close(*id);
        }
        assert_eq!((order(&table), table.oldest()), (vec![], None));
        assert_eq!((table.open(), table.used()), (0, 4));
    }

    #[test]
    fn an_id_of_a_slot_that_was_used_again_names_nothing() {
        let (mut table, now) = (Table::new(), crate::time::now());
        let mut old = table.insert(peer(0), now);
        for n in 1..2000 {
            table.close(old);
            assert!(table.info(old, now).is_some(), "it can be told of until it is removed");
            table.remove(old);
            let new = table.insert(peer(n), now);
            assert_eq!(new.slot, old.slot, "the slot is used again");
            assert!(table.info(old, now).is_none() && !table.close(old) && !table.is_open(old));
            table.heard(old, now, 1, 1);
            table.remove(old);
            assert_eq!(table.info(new, now).map(|info| info.datagrams_in), Some(0));
            old = new;
        }
        assert_eq!(table.slots(), 1);
    }

    #[test]
    fn a_rate_allows_a_second_of_it_at_once_and_then_one_by_one() {
        let (mut rate, start) = (Rate::new(10), crate::time::now());
        let taken = |rate: &mut Rate, at| (0..100).filter(|_| rate.take(at)).count();
        assert_eq!(taken(&mut rate, start), 10);
        assert_eq!(taken(&mut rate, start + Duration::from_millis(50)), 0);
        assert_eq!(taken(&mut rate, start + Duration::from_millis(250)), 2);
        assert_eq!(taken(&mut rate, start + Duration::from_secs(3600)), 10);
    }
}
