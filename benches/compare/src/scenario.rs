//! What is measured, and the names by which it is asked for.

use std::fmt;
use std::str::FromStr;

/// One thing to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scenario {
    /// TCP echo over `connections`, each with `outstanding` messages of `size` bytes on the way. `spin`: the
    /// client never sleeps, so that the server does not pay for waking it.
    Echo { connections: usize, size: usize, outstanding: usize, spin: bool },
    /// The same over TLS 1.3.
    Tls { connections: usize, size: usize, outstanding: usize },
    /// UDP echo of 32-byte datagrams.
    Udp { sockets: usize, outstanding: usize },
    /// UDP echo of 1200-byte datagrams, sent by the client in bursts of 16 that are cut by the kernel.
    BulkUdp { sockets: usize },
    /// One publisher, 32-byte messages, each for all subscribers; the publisher is `ahead` messages ahead of the
    /// deliveries at most.
    FanOut { subscribers: usize, ahead: usize },
    /// The same, and one of the subscribers does not read.
    Stalled { subscribers: usize },
    /// Connect, 32 bytes there and back, close; so many at once.
    Churn { parallel: usize },
    /// Memory of connections that are open and quiet.
    Idle { connections: usize },
    /// The cost of moving one of so many armed timers.
    Timers { armed: usize },
    /// The cost of a turn of one of so many tasks.
    Tasks { tasks: usize },
}

/// What a server has to do for a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Role {
    Echo,
    Tls,
    Udp,
    BulkUdp,
    FanOut,
    Timers,
    Tasks,
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

impl Scenario {
    pub fn role(self) -> Role {
        match self {
            Scenario::Echo { .. } | Scenario::Churn { .. } | Scenario::Idle { .. } => Role::Echo,
            Scenario::Tls { .. } => Role::Tls,
            Scenario::Udp { .. } => Role::Udp,
            Scenario::BulkUdp { .. } => Role::BulkUdp,
            Scenario::FanOut { .. } | Scenario::Stalled { .. } => Role::FanOut,
            Scenario::Timers { .. } => Role::Timers,
            Scenario::Tasks { .. } => Role::Tasks,
        }
    }

    /// What one "message" of the tables is.
    pub fn unit(self) -> &'static str {
        match self {
            Scenario::Echo { .. } | Scenario::Tls { .. } => "message",
            Scenario::Udp { .. } | Scenario::BulkUdp { .. } => "datagram",
            Scenario::FanOut { .. } | Scenario::Stalled { .. } => "delivery",
            Scenario::Churn { .. } | Scenario::Idle { .. } => "connection",
            Scenario::Timers { .. } => "reset",
            Scenario::Tasks { .. } => "turn of a task",
        }
    }

    /// Several of them.
    pub fn units(self) -> String {
        match self {
            Scenario::FanOut { .. } | Scenario::Stalled { .. } => "deliveries".into(),
            Scenario::Tasks { .. } => "turns of tasks".into(),
            other => format!("{}s", other.unit()),
        }
    }

    /// The same in words.
    pub fn describe(self) -> String {
        match self {
            Scenario::Echo { connections, size, outstanding, spin } => format!(
                "TCP echo, {connections} connection{}, {size}-byte messages, {outstanding} outstanding on each{}",
                plural(connections),
                if spin { ", the client never sleeps" } else { "" }
            ),
            Scenario::Tls { connections, size, outstanding } => format!(
                "TLS 1.3 echo, {connections} connection{}, {size}-byte messages, {outstanding} outstanding on each",
                plural(connections)
            ),
            Scenario::Udp { sockets, outstanding } => {
                format!(
                    "UDP echo, {sockets} client{}, 32-byte datagrams, {outstanding} outstanding on each",
                    plural(sockets)
                )
            }
            Scenario::BulkUdp { sockets } => {
                format!(
                    "UDP echo, {sockets} client{}, 1200-byte datagrams in bursts of 16, 64 outstanding on each",
                    plural(sockets)
                )
            }
            Scenario::FanOut { subscribers, ahead } => format!(
                "fan-out of 32-byte messages from one publisher, {ahead} ahead, to {subscribers} subscribers"
            ),
            Scenario::Stalled { subscribers } => {
                format!("fan-out to {subscribers} subscribers, one of which does not read")
            }
            Scenario::Churn { parallel } => {
                format!("connect, 32 bytes there and back, close; {parallel} at once")
            }
            Scenario::Idle { connections } => format!("memory of {connections} idle connections"),
            Scenario::Timers { armed } => format!("moving one of {armed} armed timers"),
            Scenario::Tasks { tasks } => format!("turns of {tasks} tasks that yield"),
        }
    }

    /// Whether it runs in the server's process alone, without load from outside.
    pub fn is_micro(self) -> bool {
        matches!(self, Scenario::Timers { .. } | Scenario::Tasks { .. })
    }

    /// Whether one round tells as much as several.
    pub fn once_is_enough(self) -> bool {
        matches!(self, Scenario::Idle { .. })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scenario::Echo { connections, size, outstanding, spin } => {
                let spin = if *spin { "-spin" } else { "" };
                write!(f, "c{connections}-s{size}-k{outstanding}{spin}")
            }
            Scenario::Tls { connections, size, outstanding } => {
                write!(f, "tls-c{connections}-s{size}-k{outstanding}")
            }
            Scenario::Udp { sockets, .. } => write!(f, "udp{sockets}"),
            Scenario::BulkUdp { sockets } => write!(f, "bulk-udp{sockets}"),
            Scenario::FanOut { subscribers, ahead: AHEAD } => write!(f, "fanout{subscribers}"),
            Scenario::FanOut { subscribers, ahead } => write!(f, "fanout{subscribers}-a{ahead}"),
            Scenario::Stalled { subscribers } => write!(f, "fanout{subscribers}-stalled"),
            Scenario::Churn { parallel } => write!(f, "accept{parallel}"),
            Scenario::Idle { connections } => write!(f, "idle{connections}"),
            Scenario::Timers { armed } => write!(f, "timers{armed}"),
            Scenario::Tasks { tasks } => write!(f, "tasks{tasks}"),
        }
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Scenario, String> {
        let unknown = || format!("no scenario or group is called {text:?}; groups: {}", group_names());
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(unknown);
        for (prefix, make) in NUMBERED {
            if let Some(rest) = text.strip_prefix(prefix) {
                if let Some(rest) = rest.strip_suffix("-stalled") {
                    return Ok(Scenario::Stalled { subscribers: number(rest)? });
                }
                if let Some((subscribers, ahead)) = rest.split_once("-a") {
                    return Ok(Scenario::FanOut { subscribers: number(subscribers)?, ahead: number(ahead)? });
                }
                return Ok(make(number(rest)?));
            }
        }
        let (text, tls) = match text.strip_prefix("tls-") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (text, spin) = match text.strip_suffix("-spin") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let parts: Vec<&str> = text.split('-').collect();
        let [c, s, k] = parts[..] else { return Err(unknown()) };
        let part = |text: &str, prefix| text.strip_prefix(prefix).ok_or_else(unknown).and_then(number);
        let (connections, size, outstanding) = (part(c, "c")?, part(s, "s")?, part(k, "k")?);
        match tls {
            true if spin => Err(unknown()),
            true => Ok(Scenario::Tls { connections, size, outstanding }),
            false => Ok(Scenario::Echo { connections, size, outstanding, spin }),
        }
    }
}

/// Messages that a publisher is ahead if nothing is said.
pub const AHEAD: usize = 64;

type Make = fn(usize) -> Scenario;

const NUMBERED: [(&str, Make); 7] = [
    ("bulk-udp", |sockets| Scenario::BulkUdp { sockets }),
    ("udp", |sockets| Scenario::Udp { sockets, outstanding: if sockets == 1 { 16 } else { 1 } }),
    ("fanout", |subscribers| Scenario::FanOut { subscribers, ahead: AHEAD }),
    ("accept", |parallel| Scenario::Churn { parallel }),
    ("idle", |connections| Scenario::Idle { connections }),
    ("timers", |armed| Scenario::Timers { armed }),
    ("tasks", |tasks| Scenario::Tasks { tasks }),
];

/// The groups, by name.
pub const GROUPS: &[(&str, &[&str])] = &[
    ("spin", &["c1-s32-k1-spin"]),
    (
        "tcp",
        &[
            "c1-s32-k1",
            "c1-s16384-k16",
            "c100-s32-k1",
            "c100-s32-k16",
            "c100-s1024-k1",
            "c100-s16384-k1",
            "c100-s16384-k16",
            "c1000-s32-k1",
            "c1000-s16384-k1",
        ],
    ),
    ("growth", &["c10-s32-k1", "c100-s32-k1", "c1000-s32-k1", "c10000-s32-k1"]),
    (
        "tls",
        &[
            "tls-c100-s32-k1",
            "tls-c100-s32-k16",
            "tls-c100-s1024-k1",
            "tls-c100-s16384-k1",
            "tls-c1-s16384-k16",
        ],
    ),
    ("udp", &["udp1", "udp100"]),
    ("bulk-udp", &["bulk-udp4"]),
    ("fanout", &["fanout10", "fanout100", "fanout1000", "fanout10000"]),
    (
        "fanout-ahead",
        &["fanout100-a16", "fanout100-a256", "fanout100-a1024", "fanout1000-a16", "fanout1000-a1024"],
    ),
    ("accept", &["accept10", "accept100", "accept1000"]),
    ("timers", &["timers10000", "timers100000", "timers1000000"]),
    ("tasks", &["tasks1000"]),
    ("idle", &["idle1000", "idle10000", "idle19000"]),
    ("quick", &["c1-s32-k1-spin", "c100-s32-k1", "c100-s16384-k16", "c1000-s32-k1", "udp100", "fanout100"]),
    (
        "smoke",
        &[
            "c10-s1024-k4",
            "c2-s65536-k2",
            "tls-c2-s20000-k2",
            "udp2",
            "bulk-udp1",
            "fanout10",
            "fanout2-stalled",
            "accept5",
            "timers1000",
            "tasks10",
            "idle20",
        ],
    ),
];

/// The groups that make up `all`.
const ALL: &[&str] = &[
    "spin",
    "tcp",
    "growth",
    "tls",
    "udp",
    "bulk-udp",
    "fanout",
    "fanout-ahead",
    "accept",
    "timers",
    "tasks",
    "idle",
];

fn group_names() -> String {
    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    format!("all {}", names.join(" "))
}

/// The scenarios of a comma-separated list of scenarios and groups, each once.
pub fn parse_list(text: &str) -> Result<Vec<Scenario>, String> {
    let mut found = Vec::new();
    for name in text.split(',').filter(|name| !name.is_empty()) {
        let groups: Vec<&str> = if name == "all" { ALL.to_vec() } else { vec![name] };
        for group in groups {
            let members = GROUPS.iter().find(|(known, _)| *known == group).map(|(_, members)| *members);
            for member in members.unwrap_or(&[group]) {
                let scenario: Scenario = member.parse()?;
                if !found.contains(&scenario) {
                    found.push(scenario);
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let all = parse_list("all,quick,smoke").unwrap();
        assert!(all.len() > 30);
        for scenario in all {
            assert_eq!(scenario.to_string().parse(), Ok(scenario));
        }
        assert!("c0-s1-k1".parse::<Scenario>().is_err());
        assert!("x".parse::<Scenario>().unwrap_err().contains("fanout"));
    }
}
