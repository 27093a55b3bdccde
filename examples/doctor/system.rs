//! What the system says of itself and of this process. What is not there is not known.

use std::fs;

/// A file's text without the white space around it.
pub(crate) fn read(path: &str) -> Option<String> {
    let text = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&text).trim().to_owned())
}

/// The kernel's release, and the first two numbers of it.
pub(crate) fn kernel() -> Option<(String, (u32, u32))> {
    let release = read("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    let version = (numbers.next()?, numbers.next()?);
    Some((release, version))
}

/// A field of `/proc/self/status`.
pub(crate) fn status(field: &str) -> Option<String> {
    let status = read("/proc/self/status")?;
    status.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}

/// A limit of a process: what is in force, and up to where the process may raise it itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// A row of `/proc/PID/limits`; `u64::MAX` is "unlimited".
pub(crate) fn limit(process: &str, row: &str) -> Option<Limit> {
    let limits = read(&format!("/proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix(row))?;
    let number = |text: &str| if text == "unlimited" { Some(u64::MAX) } else { text.parse().ok() };
    let mut columns = line.split_whitespace();
    Some(Limit { soft: number(columns.next()?)?, hard: number(columns.next()?)? })
}

/// The path of this process in the tree of control groups: of version 2, or else of one that is named.
pub(crate) fn control_group() -> Option<String> {
    let groups = read("/proc/self/cgroup")?;
    let path = |line: &str| line.splitn(3, ':').nth(2).map(str::to_owned);
    let unified = groups.lines().find(|line| line.starts_with("0::")).and_then(path);
    let named = groups.lines().find(|line| line.contains("name=systemd")).and_then(path);
    unified.filter(|path| path != "/").or(named).filter(|path| path != "/")
}

/// Who started this process with the limits it has, as far as its control group tells.
pub(crate) fn origin() -> String {
    let group = control_group().unwrap_or_default();
    let is_container =
        ["docker", "libpod", "kubepods", "containerd", "lxc"].iter().any(|word| group.contains(word));
    let marks = ["/.dockerenv", "/run/.containerenv"];
    if is_container || marks.iter().any(|mark| fs::exists(mark).unwrap_or(false)) {
        return "the container's settings".into();
    }
    let units = group.rsplit('/').filter(|part| part.ends_with(".service") || part.ends_with(".scope"));
    match units.into_iter().next() {
        Some(unit) => format!("the systemd unit {unit}"),
        None => "the process that started this one".into(),
    }
}

/// Whether locked memory is not counted for this process: it has CAP_IPC_LOCK outside of any user namespace.
pub(crate) fn may_lock_any_memory() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let capabilities = status("CapEff").and_then(|text| u64::from_str_radix(&text, 16).ok());
    let users = read("/proc/self/uid_map").unwrap_or_default();
    let is_outside = users.split_whitespace().eq(["0", "0", "4294967295"]);
    is_outside && capabilities.is_some_and(|capabilities| capabilities & (1 << CAP_IPC_LOCK) != 0)
}

/// The processor time that the control group of this process itself is granted, and the file that says so.
pub(crate) fn quota() -> Option<(f64, String)> {
    let group = control_group().unwrap_or_default();
    // In a container the own group is the root of what is mounted.
    for directory in [format!("/sys/fs/cgroup{group}"), "/sys/fs/cgroup".to_owned()] {
        let path = format!("{directory}/cpu.max");
        let granted = read(&path).and_then(|text| {
            let (quota, period) = text.split_once(' ')?;
            Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
        });
        if let Some(granted) = granted {
            return Some((granted, path));
        }
    }
    let path = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    let quota: f64 = read(path)?.parse().ok()?;
    let period: f64 = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?.parse().ok()?;
    (quota > 0.0).then(|| (quota / period, path.to_owned()))
}
