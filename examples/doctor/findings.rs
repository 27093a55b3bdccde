//! What is found, where it comes from, and what to do about it.

use super::probe::Probed;
use super::system::{self, Limit};
use anabranch::Limits;
use serde_json::{Value, json};

/// How a finding is to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Costs something that could be had.
    Problem,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Note => "note",
            State::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
pub(crate) struct Finding {
    pub(crate) subject: &'static str,
    pub(crate) state: State,
    pub(crate) found: String,
    /// Who or what it comes from.
    pub(crate) from: String,
    /// One line.
    pub(crate) advice: String,
}

impl Finding {
    fn new(
        subject: &'static str,
        state: State,
        found: impl Into<String>,
        from: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding { subject, state, found: found.into(), from: from.into(), advice: advice.into() }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "subject": self.subject,
            "state": self.state.name(),
            "found": self.found,
            "from": self.from,
            "advice": self.advice,
        })
    }
}

/// Everything, in the order in which it matters.
pub(crate) fn all(probed: &Probed) -> Vec<Finding> {
    vec![
        kernel(),
        io_uring(probed),
        seccomp(),
        capabilities(probed),
        hardened(probed),
        locked_memory(probed),
        descriptors(),
        processors(probed),
        quota(),
        congestion_control(),
    ]
}

const NOTHING: &str = "nothing to do";
const RELEASE: &str = "/proc/sys/kernel/osrelease";

fn kernel() -> Finding {
    let Some((release, version)) = system::kernel() else {
        return Finding::new(
            "kernel",
            State::Note,
            std::env::consts::OS,
            "the build",
            "only Linux has io_uring",
        );
    };
    let (state, advice) = match version {
        (0..=4, _) | (5, 0..=18) => (
            State::Problem,
            "before Linux 5.19 the ring lacks what makes it worth having; 6.1 has most of it",
        ),
        (5, _) | (6, 0) => (State::Note, "Linux 6.1 saves wake-ups of the ring (defer-taskrun)"),
        (6, 1..=11) => (State::Note, "Linux 6.12 fills receive buffers piece by piece, which saves memory"),
        _ => (State::Ok, NOTHING),
    };
    Finding::new("kernel", state, format!("Linux {release}"), RELEASE, advice)
}

fn io_uring(probed: &Probed) -> Finding {
    let disabled = system::read("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let (name, reason) = (probed.text("name"), probed.text("reason"));
    let finding =
        |state, found: &str, from: &str, advice: &str| Finding::new("io_uring", state, found, from, advice);
    if let Some(killed) = &probed.killed {
        let found = format!("asking for a ring kills the process ({killed})");
        let advice = "set ANABRANCH_BACKEND=readiness, which makes no io_uring call, or allow them in the seccomp filter";
        return finding(State::Problem, &found, "a seccomp filter of the kind that kills", advice);
    }
    if name == "uring" {
        return finding(State::Ok, reason, "the first shard's report", NOTHING);
    }
    let (from, advice) = if reason.contains("ANABRANCH_BACKEND") {
        ("the environment", "unset ANABRANCH_BACKEND to let the ring be tried")
    } else if reason.contains("ENOMEM") || reason.contains("Cannot allocate memory") {
        ("RLIMIT_MEMLOCK", "raise it, see locked memory below")
    } else if reason.contains("EPERM") && (disabled == "1" || disabled == "2") {
        (
            "the sysctl kernel.io_uring_disabled",
            "set it to 0, or to 1 and run as a member of kernel.io_uring_group",
        )
    } else if reason.contains("EPERM") || (reason.contains("ENOSYS") && has_filter()) {
        let advice = "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile (docs/seccomp.json)";
        ("a seccomp filter", advice)
    } else if reason.contains("5.19") {
        ("the kernel", "readiness is the better choice there; Linux 6.1 or newer makes a ring worth having")
    } else if reason.contains("ENOSYS") {
        ("the kernel", "it is built without io_uring, or older than 5.1")
    } else {
        ("the kernel", "see the ladder in the report above")
    };
    let state = if from == "the environment" { State::Note } else { State::Problem };
    finding(state, &format!("{name}; {reason}"), from, advice)
}

fn has_filter() -> bool {
    system::status("Seccomp").as_deref() == Some("2")
}

fn seccomp() -> Finding {
    let (state, found) = match system::status("Seccomp").as_deref() {
        Some("0") => (State::Ok, "no filter"),
        Some("2") => (State::Note, "a filter is in force; what it refuses cannot be asked for, only tried"),
        Some(_) => (State::Problem, "the strict mode, in which nothing works"),
        None => (State::Note, "not known"),
    };
    let advice = match state {
        State::Ok => "a server needs few calls; docs/seccomp.json allows those",
        _ => "if a call that a server needs is refused, compare the profile with docs/seccomp.json",
    };
    Finding::new("seccomp", state, found, "/proc/self/status", advice)
}

fn capabilities(probed: &Probed) -> Finding {
    let emulated = probed.emulated();
    let from = "the first shard's report";
    if probed.text("name") != "uring" {
        let advice = "they are the ring's; get one first";
        return Finding::new("capabilities", State::Note, "none are used without a ring", from, advice);
    }
    if emulated.is_empty() {
        return Finding::new("capabilities", State::Ok, "all are used", from, NOTHING);
    }
    let advice = "everything works, at some cost; a newer kernel has them";
    Finding::new("capabilities", State::Note, format!("emulated: {}", emulated.join(", ")), from, advice)
}

fn hardened(probed: &Probed) -> Finding {
    let (shard, from) = (probed.hardened(), "a shard with Config::hardened");
    let found = shard["hardened"].as_str().or(shard["error"].as_str()).unwrap_or("-");
    let (state, advice) = match shard["name"].as_str() {
        Some("uring") => (State::Ok, "Config::hardened can be had; it costs next to nothing"),
        Some(_) => (State::Note, "without a ring there is nothing that had to be restricted"),
        None => (State::Problem, "Config::hardened cannot be had here"),
    };
    Finding::new("hardened", state, found, from, advice)
}

fn locked_memory(probed: &Probed) -> Finding {
    const ENOUGH: u64 = 8 << 20;
    let Some(limit) = system::limit("self", "Max locked memory") else { return unknown("locked memory") };
    let found = format!("soft {}, hard {}", bytes(limit.soft), bytes(limit.hard));
    let from = whence("1", "Max locked memory", limit);
    let rings = probed.shards().iter().filter(|name| **name == "uring").count();
    let (state, advice) = if system::may_lock_any_memory() {
        (State::Ok, "it does not count here, the process has CAP_IPC_LOCK; an ordinary user is bound by it")
    } else if rings > 0 && rings < probed.shards().len() {
        (
            State::Problem,
            "not every shard got a ring: raise it (LimitMEMLOCK=, --ulimit memlock=), or use fewer shards",
        )
    } else if limit.soft < ENOUGH {
        (State::Problem, "raise it to 8 MiB or more (LimitMEMLOCK=, --ulimit memlock=, limits.conf)")
    } else {
        (State::Ok, "a ring takes about 100 KiB; a restart may wait up to 2 s for what the last process held")
    };
    Finding::new("locked memory", state, found, from, advice)
}

fn descriptors() -> Finding {
    let Some(limit) = system::limit("self", "Max open files") else { return unknown("descriptors") };
    let wanted = Limits::default().endpoints_max as u64;
    let found = format!("soft {}, hard {}", count(limit.soft), count(limit.hard));
    let (state, advice) = if limit.soft >= wanted {
        (State::Ok, "enough for as many endpoints as a shard takes")
    } else if limit.soft < 4096 {
        (State::Problem, "a server runs out of it soon: raise it (LimitNOFILE=, --ulimit nofile=, ulimit -n)")
    } else {
        (
            State::Note,
            "a shard takes more endpoints than that; raise it for many connections (LimitNOFILE=, ulimit -n)",
        )
    };
    Finding::new("descriptors", state, found, whence("1", "Max open files", limit), advice)
}

fn processors(probed: &Probed) -> Finding {
    let allowed = system::status("Cpus_allowed_list").unwrap_or_else(|| "not known".into());
    let online = system::read("/sys/devices/system/cpu/online").unwrap_or_else(|| "not known".into());
    let shards = probed.shards().len();
    let found = format!("may use {allowed} of {online}; {shards} shards by default");
    let (state, advice) = match (allowed == online, shards) {
        (_, 1) => {
            (State::Note, "with one shard there is no spinning; grant two processors where latency matters")
        }
        (true, _) => (State::Ok, NOTHING),
        (false, _) => (State::Ok, "a cpuset or taskset bounds it, and the default number of shards follows"),
    };
    Finding::new("processors", state, found, "/proc/self/status (affinity and cpuset)", advice)
}

fn quota() -> Finding {
    match system::quota() {
        Some((granted, path)) => {
            let advice = "the default number of shards follows it, and shards do not spin; a cpuset gives steadier latency";
            Finding::new("quota", State::Note, format!("{granted:.2} processors"), path, advice)
        }
        None => {
            let from = system::control_group().unwrap_or_else(|| "no control group of its own".into());
            Finding::new("quota", State::Ok, "none", from, NOTHING)
        }
    }
}

fn congestion_control() -> Finding {
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    let Some(chosen) = system::read(path) else { return unknown("congestion control") };
    let available = system::read("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap_or_default();
    let advice = match chosen.as_str() {
        "cubic" | "bbr" => "right for most; compare bbr and cubic on long paths that lose packets",
        "reno" => "cubic fills long paths better (sysctl net.ipv4.tcp_congestion_control)",
        _ => "a special choice; make sure that it was meant",
    };
    let state = if ["cubic", "bbr"].contains(&chosen.as_str()) { State::Ok } else { State::Note };
    Finding::new("congestion control", state, format!("{chosen} (there are {available})"), path, advice)
}

fn unknown(subject: &'static str) -> Finding {
    Finding::new(subject, State::Note, "not known", "this system does not tell", "look it up by hand")
}

/// Who has set a limit: all have it since the first process, or somebody since.
fn whence(first: &str, row: &str, limit: Limit) -> String {
    let raise =
        if limit.soft < limit.hard { "; the process may raise it to the hard limit itself" } else { "" };
    match system::limit(first, row) {
        Some(other) if other == limit => format!("the same as of process 1{raise}"),
        _ => format!("set by {}{raise}", system::origin()),
    }
}

fn bytes(count: u64) -> String {
    match count {
        u64::MAX => "unlimited".into(),
        count => format!("{} KiB", count / 1024),
    }
}

fn count(count: u64) -> String {
    if count == u64::MAX { "unlimited".into() } else { count.to_string() }
}
