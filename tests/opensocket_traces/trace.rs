//! The recorded scenarios of the original, and what it means to be equal to one.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A line of the trace file.
#[derive(Clone)]
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) events: Vec<Seen>,
    pub(crate) calls: Vec<(String, String)>,
    /// Compare the whole sequence, else that of each socket.
    total: bool,
    pub(crate) facade: Option<String>,
    pub(crate) original: String,
}

/// An event as it is compared: sockets by their labels, ports left out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) ev: String,
    pub(crate) fd: String,
    pub(crate) uid: u64,
    pub(crate) ud: String,
    pub(crate) size: usize,
    /// The text, or the first 80 bytes of a payload.
    pub(crate) text: Option<String>,
    pub(crate) option: Option<String>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { ev, fd, uid, ud, size, text, option } = self;
        write!(f, "{ev} {fd} uid {uid} ud {ud} size {size} {text:?} {option:?}")
    }
}

/// Longest payload that is written down.
pub(crate) const DATA_BYTES_MAX: usize = 80;

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Seen {
    fn parse(value: &Value) -> Seen {
        let info = value.get("info").map(text);
        let size = match &value["size"] {
            Value::Number(size) => size.as_u64().expect("a size") as usize,
            // The length of the text, whose port is left out on both sides, and its end.
            _ => info.as_ref().map_or(0, String::len) + 1,
        };
        Seen {
            ev: text(&value["ev"]),
            fd: text(&value["fd"]),
            uid: value["uid"].as_u64().expect("a uid"),
            ud: text(&value["ud"]),
            size,
            text: info.or_else(|| value.get("data").map(text)),
            option: value.get("opt").map(text),
        }
    }
}

impl Trace {
    /// All traces, by name.
    pub(crate) fn all() -> BTreeMap<String, Trace> {
        let lines = include_str!("../data/opensocket-traces.jsonl").lines();
        lines.map(Trace::parse).map(|trace| (trace.name.clone(), trace)).collect()
    }

    fn parse(line: &str) -> Trace {
        let value: Value = serde_json::from_str(line).expect("a trace is a line of JSON");
        let list = |key: &str| value[key].as_array().expect("a list").iter();
        Trace {
            name: text(&value["name"]),
            events: list("events").map(Seen::parse).collect(),
            calls: list("calls").map(|pair| (text(&pair[0]), text(&pair[1]))).collect(),
            total: value["order"] == "total",
            facade: value.get("facade").map(text),
            original: text(&value["original"]),
        }
    }

    /// Compares what was seen, as far as it does not vary.
    pub(crate) fn compare(&self, events: &[Seen], calls: &[(String, String)]) -> Result<(), String> {
        let order = |events: &[Seen]| {
            let mut events = events.to_vec();
            if !self.total {
                // A stable sort keeps the order of each socket.
                events.sort_by(|a, b| a.fd.cmp(&b.fd));
            }
            events
        };
        let (expected, seen) = (order(&self.events), order(events));
        if expected != seen {
            return Err(format!("events differ\n  expected {expected:#?}\n  seen {seen:#?}"));
        }
        if self.calls != calls {
            return Err(format!("calls differ\n  expected {:?}\n  seen {calls:?}", self.calls));
        }
        Ok(())
    }
}
