//! What the system tells about a process: CPU time and memory.

use std::fs;
use std::io;
use std::time::Duration;

/// The bill of a process.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bill {
    /// Time on a core, of all threads, kernel work included, by the scheduler's clock.
    pub cpu: Duration,
    /// Time that its threads were ready and others had the core.
    pub waited: Duration,
    /// Ticks in user mode and in the kernel; coarse, for their ratio only.
    pub user_ticks: u64,
    pub system_ticks: u64,
}

/// The bill of a process so far.
pub fn bill(pid: u32) -> io::Result<Bill> {
    let mut nanoseconds = [0; 2];
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the look.
        if let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) {
            for (sum, field) in nanoseconds.iter_mut().zip(text.split(' ')) {
                *sum += field.parse::<u64>().unwrap_or(0);
            }
        }
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the process may contain anything, but ends at the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse().ok()).unwrap_or(0);
    let [cpu, waited] = nanoseconds.map(Duration::from_nanos);
    Ok(Bill { cpu, waited, user_ticks: ticks(11), system_ticks: ticks(12) })
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Rss:"));
    let kib =
        line.and_then(|line| line.split_whitespace().nth(1)).and_then(|field| field.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
