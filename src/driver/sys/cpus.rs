//! How many shards a process should start, and where they may run.
//!
//! The answer is the smaller of two bounds: the processors the affinity mask allows, and the processor time
//! the control groups (Linux, versions 1 and 2) grant. A container with the time of two processors on a
//! machine with ninety-six should get two shards, not ninety-six that are all stopped for most of the time.
//!
//! Everything is read once, when a group starts. A file that is missing or does not parse means "no bound":
//! this module must not fail, it can only know less.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The accounting period if a group's file does not name one; the kernel's default.
const PERIOD_US: f64 = 100_000.0;

/// The processors this thread may run on, by the numbers [`pin_current_thread`] takes. Never empty.
#[cfg(target_os = "linux")]
pub(crate) fn allowed() -> Vec<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    use nix::unistd::Pid;

    let Ok(mask) = sched_getaffinity(Pid::from_raw(0)) else { return first_cpus() };
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| mask.is_set(cpu).unwrap_or(false)).collect();
    if cpus.is_empty() { first_cpus() } else { cpus }
}

/// The processors this process may run on, by the numbers [`pin_current_thread`] takes. Never empty.
#[cfg(windows)]
pub(crate) fn allowed() -> Vec<usize> {
    match super::os::affinity() {
        0 => first_cpus(),
        mask => (0..usize::BITS as usize).filter(|&cpu| mask >> cpu & 1 != 0).collect(),
    }
}

/// The processors this thread may run on, by number. Never empty.
#[cfg(not(any(target_os = "linux", windows)))]
pub(crate) fn allowed() -> Vec<usize> {
    first_cpus()
}

/// How many processors' worth of time the control groups grant this process; `None` if there is no bound.
///
/// The tightest bound between the process's own group and the root of the mounted tree counts, since each
/// ancestor stops its whole subtree. Where there are no control groups, there are no such files either.
pub(crate) fn quota() -> Option<f64> {
    let memberships = read_text(Path::new("/proc/self/cgroup"))?;
    let mounts = read_text(Path::new("/proc/self/mountinfo"))?;
    quota_from(&memberships, &mounts, read_text)
}

/// How many shards to start if the configuration does not say: at least one.
pub(crate) fn default_shards() -> usize {
    shards_for(allowed().len(), quota())
}

/// Whether somebody else may want the processor on which a shard of this process runs: the machine has only one, or
/// the control groups grant less than the machine has, so that a shard that uses its time up is stopped.
pub(crate) fn are_shared() -> bool {
    static SHARED: OnceLock<bool> = OnceLock::new();
    *SHARED.get_or_init(|| is_short(online(), quota()))
}

fn is_short(online: usize, quota: Option<f64>) -> bool {
    online < 2 || quota.is_some_and(|cpus| cpus < online as f64)
}

/// The processors of the machine, whoever may use them.
fn online() -> usize {
    let listed = read_text(Path::new("/sys/devices/system/cpu/online"));
    listed.and_then(|list| count_listed(list.trim())).unwrap_or_else(|| first_cpus().len())
}

/// How many numbers are in a list like `0-3,8`.
fn count_listed(list: &str) -> Option<usize> {
    list.split(',').try_fold(0, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let span = last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)?;
        Some(count + span + 1)
    })
}

/// Lets the calling thread run on one processor only.
#[cfg(target_os = "linux")]
pub(crate) fn pin_current_thread(cpu: usize) -> io::Result<()> {
    use nix::sched::{CpuSet, sched_setaffinity};
    use nix::unistd::Pid;

    let mut mask = CpuSet::new();
    mask.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &mask)?;
    Ok(())
}

/// Lets the calling thread run on one processor only. Where Windows puts processors in groups, because there are more
/// than 64, the number is one of the thread's group.
#[cfg(windows)]
pub(crate) fn pin_current_thread(cpu: usize) -> io::Result<()> {
    let mask = u32::try_from(cpu).ok().and_then(|cpu| 1_usize.checked_shl(cpu));
    super::os::set_affinity(mask.ok_or(io::ErrorKind::InvalidInput)?).map(drop)
}

/// Refuses: this system has no portable call for it. The caller runs unpinned.
#[cfg(not(any(target_os = "linux", windows)))]
pub(crate) fn pin_current_thread(_cpu: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// As many processors as the standard library counts, numbered from zero.
fn first_cpus() -> Vec<usize> {
    let count = std::thread::available_parallelism().map_or(1, |count| count.get());
    (0..count).collect()
}

/// The smaller of both bounds, at least one. A part of a processor is worth a shard of its own: rounding
/// down would leave granted time unused.
fn shards_for(allowed: usize, quota: Option<f64>) -> usize {
    let granted = quota.map_or(usize::MAX, |cpus| cpus.ceil() as usize);
    allowed.min(granted).max(1)
}

/// A file's text; file names in it need not be UTF-8, the lines about them are not ours then.
fn read_text(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A version of the control group interface, as far as processor time is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    /// One tree per controller; ours is the one with `cpu`.
    V1,
    /// One tree for all controllers.
    V2,
}

/// [`quota`], with the texts of `/proc/self/cgroup` and `/proc/self/mountinfo` and a way to read files.
fn quota_from(memberships: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<f64> {
    // A hybrid system mounts both versions; the one that has no processor controller has no such files.
    let bounds = [Version::V1, Version::V2].into_iter().flat_map(|version| {
        let group = group_path(memberships, version);
        let directories = group.map(|group| group_directories(mounts, version, group)).unwrap_or_default();
        directories.into_iter().map(move |directory| (version, directory))
    });
    bounds.filter_map(|(version, directory)| directory_quota(version, &directory, &read)).reduce(f64::min)
}

/// The process's group in the tree of this version, from lines like `4:cpu,cpuacct:/path` or `0::/path`.
fn group_path(memberships: &str, version: Version) -> Option<&str> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match version {
            Version::V1 => has_word(controllers, "cpu"),
            Version::V2 => number == "0" && controllers.is_empty(),
        };
        ours.then_some(path)
    })
}

/// The directories of a group and of its ancestors up to where the tree is mounted.
fn group_directories(mounts: &str, version: Version, group: &str) -> Vec<PathBuf> {
    let Some((root, mount_point)) = mounts.lines().find_map(|line| mount_of(line, version)) else {
        return Vec::new();
    };
    // A mount may show a subtree only, as a container's does; the membership then begins with its root. If
    // it lies elsewhere (a name space without a view of it), the mount itself is all that can be seen.
    let below = Path::new(group).strip_prefix(&root).unwrap_or(Path::new(""));
    let leaves_tree = below.components().any(|part| part == std::path::Component::ParentDir);
    let below = if leaves_tree { Path::new("") } else { below };
    below.ancestors().map(|part| mount_point.join(part)).collect()
}

/// Root and mount point, if this line of mountinfo mounts the tree of this version.
fn mount_of(line: &str, version: Version) -> Option<(PathBuf, PathBuf)> {
    // 31 23 0:28 /root /mount/point rw,relatime [optional fields …] - type source options
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (file_system, options) = (kind.next()?, kind.nth(1)?);
    let ours = match version {
        Version::V1 => file_system == "cgroup" && has_word(options, "cpu"),
        Version::V2 => file_system == "cgroup2",
    };
    let mut place = place.split(' ').skip(3);
    let (root, mount_point) = (place.next()?, place.next()?);
    ours.then(|| (unescape(root).into(), unescape(mount_point).into()))
}

/// The bound that one group's files set.
fn directory_quota(
    version: Version,
    directory: &Path,
    read: impl Fn(&Path) -> Option<String>,
) -> Option<f64> {
    match version {
        Version::V1 => {
            let quota = read(&directory.join("cpu.cfs_quota_us"))?;
            let period = read(&directory.join("cpu.cfs_period_us"));
            ratio(quota.trim(), period.as_deref().map(str::trim))
        }
        Version::V2 => {
            let text = read(&directory.join("cpu.max"))?;
            let mut fields = text.split_whitespace();
            ratio(fields.next()?, fields.next())
        }
    }
}

/// Quota by period. "No bound" is the word `max` in version 2 and -1 in version 1.
fn ratio(quota: &str, period: Option<&str>) -> Option<f64> {
    let quota_us = quota.parse::<u64>().ok()? as f64;
    let period_us =
        period.and_then(|text| text.parse::<u64>().ok()).map_or(PERIOD_US, |period| period as f64);
    (quota_us > 0.0 && period_us > 0.0).then(|| quota_us / period_us)
}

/// Whether a list with commas contains this word.
fn has_word(list: &str, word: &str) -> bool {
    list.split(',').any(|item| item == word)
}

/// Undoes what the kernel does to blanks, tabs, line ends and backslashes in mountinfo: `\040` and the like.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find('\\') {
        plain.push_str(&rest[..place]);
        let code = rest.get(place + 1..place + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.map_or('\\', char::from));
        rest = &rest[place + if code.is_some() { 4 } else { 1 }..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const V2_MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
";
    const V1_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const V1_GROUPS: &str = "\
5:cpuset:/
4:cpu,cpuacct:/system.slice/app.service
1:name=systemd:/system.slice/app.service
0::/system.slice/app.service
";

    /// The quota of a process with these texts and files.
    fn quota_with(memberships: &str, mounts: &str, files: &[(&str, &str)]) -> Option<f64> {
        let files: HashMap<PathBuf, &str> = files.iter().map(|&(path, text)| (path.into(), text)).collect();
        quota_from(memberships, mounts, |path| files.get(path).map(|text| text.to_string()))
    }

    #[test]
    fn version_2_takes_the_tightest_bound_of_the_group_and_its_ancestors() {
        let files = [
            ("/sys/fs/cgroup/a/b/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/a/cpu.max", "75000 50000\n"),
            ("/sys/fs/cgroup/c/cpu.max", "1000 100000\n"),
        ];
        assert_eq!(quota_with("0::/a/b\n", V2_MOUNTS, &files), Some(1.5));
        assert_eq!(quota_with("0::/a/b/gone (deleted)\n", V2_MOUNTS, &files), Some(1.5));
        assert_eq!(quota_with("0::/\n", V2_MOUNTS, &files), None);
    }

    #[test]
    fn version_2_reads_the_mount_itself_inside_a_container() {
        let files = [("/sys/fs/cgroup/cpu.max", "250000 100000\n")];
        assert_eq!(quota_with("0::/\n", V2_MOUNTS, &files), Some(2.5));
    }

    #[test]
    fn max_is_no_bound_and_does_not_hide_an_ancestors_bound() {
        let leaf = ("/sys/fs/cgroup/a/cpu.max", "max 100000\n");
        assert_eq!(quota_with("0::/a\n", V2_MOUNTS, &[leaf]), None);
        let root = ("/sys/fs/cgroup/cpu.max", "300000 100000\n");
        assert_eq!(quota_with("0::/a\n", V2_MOUNTS, &[leaf, root]), Some(3.0));
    }

    #[test]
    fn version_1_divides_quota_by_period_in_the_tree_of_the_cpu_controller() {
        let files = [
            ("/sys/fs/cgroup/cpu,cpuacct/system.slice/app.service/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/system.slice/app.service/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/system.slice/cpu.cfs_quota_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/system.slice/cpu.cfs_period_us", "50000\n"),
            ("/sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "1\n"),
        ];
        assert_eq!(quota_with(V1_GROUPS, V1_MOUNTS, &files), Some(2.0));
        assert_eq!(quota_with(V1_GROUPS, V1_MOUNTS, &files[..2]), None);
    }

    #[test]
    fn a_hybrid_system_is_bounded_by_whichever_tree_has_the_files() {
        let files = [("/sys/fs/cgroup/unified/system.slice/cpu.max", "50000 100000")];
        assert_eq!(quota_with(V1_GROUPS, V1_MOUNTS, &files), Some(0.5));
    }

    #[test]
    fn a_mount_of_a_subtree_is_walked_from_its_own_root() {
        let mounts = "32 31 0:29 /docker/f00 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n";
        let files = [
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
            ("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "100000"),
        ];
        assert_eq!(quota_with("2:cpu:/docker/f00\n", mounts, &files), Some(1.5));
        assert_eq!(quota_with("2:cpu:/docker/f00/job\n", mounts, &files), Some(1.0));
        assert_eq!(quota_with("2:cpu:/elsewhere\n", mounts, &files), Some(1.5));
    }

    #[test]
    fn a_group_outside_of_the_name_space_leaves_only_the_mount_to_read() {
        let files = [("/sys/fs/cgroup/cpu.max", "200000 100000"), ("/sys/fs/cpu.max", "1 100000")];
        assert_eq!(quota_with("0::/../sibling\n", V2_MOUNTS, &files), Some(2.0));
    }

    #[test]
    fn missing_files_and_odd_texts_are_no_bound() {
        assert_eq!(quota_with("", "", &[]), None);
        assert_eq!(quota_with("0::/a\n", "", &[]), None);
        assert_eq!(quota_with("0::/a\n", V2_MOUNTS, &[]), None);
        assert_eq!(quota_with("nonsense\n0:\n::\n", "nonsense\n1 2 - cgroup2\n", &[]), None);
        for text in ["", "\n", "many 100000", "0 100000", "100000 0", "-1 100000", "1.5 2"] {
            assert_eq!(
                quota_with("0::/\n", V2_MOUNTS, &[("/sys/fs/cgroup/cpu.max", text)]),
                None,
                "{text:?}"
            );
        }
        assert_eq!(quota_with("0::/\n", V2_MOUNTS, &[("/sys/fs/cgroup/cpu.max", "200000")]), Some(2.0));
    }

    #[test]
    fn escaped_mount_points_are_found() {
        assert_eq!(unescape(r"/with\040blank\134and\011tab"), "/with blank\\and\ttab");
        assert_eq!(unescape(r"\0\999\04é"), r"\0\999\04é");
        let mounts = "30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n";
        assert_eq!(quota_with("0::/a\n", mounts, &[("/my groups/a/cpu.max", "100000 100000")]), Some(1.0));
    }

    #[test]
    fn the_default_is_the_smaller_bound_rounded_up_and_at_least_one() {
        assert_eq!(shards_for(8, None), 8);
        assert_eq!(shards_for(8, Some(2.1)), 3);
        assert_eq!(shards_for(2, Some(16.0)), 2);
        assert_eq!(shards_for(8, Some(0.1)), 1);
        assert_eq!(shards_for(0, None), 1);
        assert_eq!(shards_for(8, Some(1e300)), 8);
    }

    #[test]
    fn a_machine_with_one_processor_or_a_quota_below_its_processors_is_shared() {
        assert!(is_short(1, None));
        assert!(!is_short(2, None));
        assert!(is_short(8, Some(7.5)));
        assert!(!is_short(8, Some(8.0)));
    }

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, count) in [("0", 1), ("0-1", 2), ("0-3,8", 5), ("1,3,5-7", 5)] {
            assert_eq!(count_listed(list), Some(count), "{list}");
        }
        for list in ["", "x", "3-1", "0-"] {
            assert_eq!(count_listed(list), None, "{list:?}");
        }
    }

    #[test]
    fn this_machine_allows_at_least_one_shard() {
        let allowed = allowed();
        assert!(!allowed.is_empty());
        assert!(allowed.is_sorted());
        assert!((1..=allowed.len()).contains(&default_shards()));
        assert!(quota().is_none_or(|cpus| cpus > 0.0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pinned_thread_is_allowed_one_processor_and_its_siblings_keep_theirs() {
        let before = allowed();
        let cpu = *before.last().expect("one is allowed");
        let pinned = std::thread::spawn(move || pin_current_thread(cpu).map(|()| allowed()));
        assert_eq!(pinned.join().expect("no panic").expect("an allowed processor"), [cpu]);
        assert_eq!(allowed(), before);
        assert!(pin_current_thread(usize::MAX).is_err());
    }

    #[cfg(windows)]
    #[test]
    fn a_pinned_thread_is_allowed_one_processor_and_its_siblings_keep_theirs() {
        use crate::driver::sys::os::set_affinity;
        let all = allowed();
        let cpu = *all.last().expect("one is allowed");
        let mask = |cpus: &[usize]| cpus.iter().fold(0, |mask, cpu| mask | 1_usize << cpu);
        let pinned = std::thread::spawn(move || {
            pin_current_thread(cpu).expect("an allowed processor");
            // What it replaces tells what was allowed.
            set_affinity(1 << cpu).expect("an allowed processor")
        });
        assert_eq!(pinned.join().expect("no panic"), mask(&[cpu]));
        let own = std::thread::spawn(move || set_affinity(1 << cpu)).join().expect("no panic");
        assert_eq!(own.expect("an allowed processor"), mask(&all));
        assert!(pin_current_thread(usize::MAX).is_err() && pin_current_thread(63).is_err());
    }
}
