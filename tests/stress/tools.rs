//! What the scenarios share: sizes, seed, ledger, watchdog, sequences of bytes that show loss and confusion.

use crate::common::{
    self,
    net::{alone, is_child},
};
use anabranch::{Config, Counters, Shard};
#[cfg(unix)]
use nix::sys::signal::{Signal, kill};
use std::future::poll_fn;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

/// One run of a scenario on one backend.
pub(crate) struct Run {
    pub(crate) config: Config,
    pub(crate) full: bool,
    pub(crate) seed: u64,
    name: String,
    totals: Mutex<Counters>,
}

impl Run {
    /// The size for this run: what a test takes without being asked, or the whole scenario.
    pub(crate) fn size(&self, small: usize, full: usize) -> usize {
        if self.full { full } else { small }
    }

    pub(crate) fn rng(&self) -> Rng {
        Rng(self.seed)
    }

    /// Says how far it is, ten times in all.
    pub(crate) fn progress(&self, done: usize, of: usize) {
        let step = (of / 10).max(1);
        if self.full && done % step == 0 {
            println!("  {}: {done} of {of}", self.name);
        }
    }

    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        println!("  {}: {text}", self.name);
    }

    /// Ends a shard and checks its ledger.
    pub(crate) fn settle(&self, shard: Shard) -> Counters {
        let counters = shard.finish();
        self.check(&counters, 0);
        counters
    }

    pub(crate) fn check(&self, counters: &Counters, stale: u64) {
        assert_eq!(counters.stale, stale, "{}: stale completions", self.name);
        self.check_crashed(counters, 0);
    }

    /// As `check`, after so many contained panics.
    pub(crate) fn check_crashed(&self, counters: &Counters, panics: u64) {
        counters.settled().unwrap_or_else(|what| panic!("{}: {what}; {counters}", self.name));
        assert_eq!(counters.panics, panics, "{}: contained panics", self.name);
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        for (sum, count) in all_counters(&mut totals).into_iter().zip(all_counters(&mut counters.clone())) {
            *sum.1 += *count.1;
        }
    }
}

/// Runs a scenario on each of the system's own backends, one scenario at a time because descriptors and memory
/// belong to the whole process.
pub(crate) fn scenario(title: &str, test: impl Fn(&Run)) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (full, seed) = (is_full(), seed());
    crate::common::net::raise_descriptors();
    for (backend, config) in common::real_backends() {
        let name = format!("{title} on {backend}");
        println!(
            "{name}: ANABRANCH_STRESS_SEED={seed} ANABRANCH_STRESS={}",
            if full { "full" } else { "small" }
        );
        let own_seed = name.bytes().fold(seed, |seed, byte| mix(seed ^ u64::from(byte)));
        let run = Run { config, full, seed: own_seed, name, totals: Mutex::default() };
        let (descriptors, start) = (settled_descriptors(), Instant::now());
        let watchdog = Watchdog::start(&run.name, full);
        test(&run);
        drop(watchdog);
        let what = format!("the {descriptors} descriptors of the beginning, and no others");
        wait_until(&what, Duration::from_secs(5), || self::descriptors() == descriptors);
        let mut totals = run.totals.into_inner().unwrap_or_else(PoisonError::into_inner);
        if totals == Counters::default() {
            println!("  {}: over after {:.1?}; its shards were another process's", run.name, start.elapsed());
            continue;
        }
        let ledger = all_counters(&mut totals).map(|(name, count)| format!("{name} {count}")).join(", ");
        println!("  {}: settled after {:.1?}; ledger: {ledger}", run.name, start.elapsed());
    }
}

/// The descriptors of the process when their count has stood still: what an earlier scenario left may be on its way
/// out, and must not be taken for this one's beginning.
fn settled_descriptors() -> usize {
    let (mut count, mut since) = (descriptors(), Instant::now());
    while since.elapsed() < Duration::from_millis(100) {
        std::thread::sleep(Duration::from_millis(10));
        let now = descriptors();
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    count
}

/// Every counter with its name, as the ledger shows them.
fn all_counters(counters: &mut Counters) -> [(&'static str, &mut u64); 22] {
    [
        ("opened", &mut counters.opens),
        ("closed", &mut counters.closes),
        ("submitted", &mut counters.submitted),
        ("completed", &mut counters.completed),
        ("stale", &mut counters.stale),
        ("canceled", &mut counters.canceled),
        ("starved", &mut counters.starved),
        ("buffers lent", &mut counters.buffers_lent),
        ("returned", &mut counters.buffers_returned),
        ("descriptors opened", &mut counters.descriptors_opened),
        ("closed", &mut counters.descriptors_closed),
        ("accepts", &mut counters.accepts),
        ("accept pauses", &mut counters.accept_pauses),
        ("handed over", &mut counters.handed_over),
        ("refusals", &mut counters.refusals),
        ("bytes in", &mut counters.bytes_in),
        ("bytes out", &mut counters.bytes_out),
        ("truncated", &mut counters.truncated),
        ("panics", &mut counters.panics),
        ("turns", &mut counters.turns),
        ("parks", &mut counters.parks),
        ("wakes", &mut counters.wakes),
    ]
}

static ONE: Mutex<()> = Mutex::new(());

/// As `scenario`, in a process of its own, where the test of this name may change what belongs to the whole process.
pub(crate) fn scenario_alone(test: &str, title: &str, body: impl Fn(&Run)) {
    // What it takes to run the other process must not show in the descriptors of another scenario.
    let _one = (!is_child()).then(|| ONE.lock().unwrap_or_else(PoisonError::into_inner));
    alone(test, || scenario(title, body));
}

fn is_full() -> bool {
    match std::env::var("ANABRANCH_STRESS").as_deref() {
        Ok("full") => true,
        Ok("small" | "") | Err(_) => false,
        Ok(other) => panic!("ANABRANCH_STRESS is {other:?}; there are small and full"),
    }
}

fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("ANABRANCH_STRESS_SEED") {
        Ok(text) if !text.is_empty() => text.parse().expect("ANABRANCH_STRESS_SEED is a number"),
        _ => RandomState::new().build_hasher().finish() >> 16,
    })
}

/// Ends the process with a name when a scenario hangs.
struct Watchdog(#[allow(dead_code, reason = "its end is the message")] mpsc::Sender<()>);

impl Watchdog {
    fn start(name: &str, full: bool) -> Watchdog {
        let patience = Duration::from_secs(if full { 900 } else { 180 });
        let (sender, receiver) = mpsc::channel();
        let name = name.to_owned();
        std::thread::spawn(move || {
            if receiver.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("HANGS: {name}: no end after {patience:?}");
                std::process::abort();
            }
        });
        Watchdog(sender)
    }
}

/// A process of its own that this binary runs as: the named test with a variable set, which tells it what to do.
/// It is killed when it is dropped.
pub(crate) struct Helper {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

const ROLE: &str = "ANABRANCH_STRESS_ROLE";

/// What this process was started for, if it is a helper.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

impl Helper {
    pub(crate) fn start(test: &str, role: &str) -> Helper {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a helper process");
        let lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        Helper { child, lines }
    }

    /// What follows `word` on the next line that begins with it.
    pub(crate) fn hear(&mut self, word: &str) -> String {
        let mut rest = self.lines.by_ref().map_while(Result::ok).filter_map(|line| {
            let (_, rest) = line.split_once(&format!("{word}: "))?;
            Some(rest.to_owned())
        });
        rest.next().unwrap_or_else(|| panic!("the helper ended without {word:?}"))
    }

    /// Sends it a line.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("its input is piped");
        writeln!(input, "{line}").expect("the helper listens");
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: Signal) {
        kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).expect("the helper lives");
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("its status");
        assert!(status.success(), "the helper failed: {status}");
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It has ended already if all is well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Open descriptors of the process, but for the one that looks.
#[cfg(unix)]
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the list of descriptors").count() - 1
}

/// Open handles of the process.
#[cfg(windows)]
pub(crate) fn descriptors() -> usize {
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};
    let mut count = 0;
    // SAFETY: plain system call on this process.
    let counted = unsafe { GetProcessHandleCount(GetCurrentProcess(), &mut count) };
    assert!(counted != 0, "the number of handles");
    count as usize
}

/// The number by which the system knows a socket.
#[cfg(unix)]
pub(crate) fn number(socket: &TcpStream) -> u64 {
    std::os::fd::AsRawFd::as_raw_fd(socket) as u64
}

/// The number by which the system knows a socket.
#[cfg(windows)]
pub(crate) fn number(socket: &TcpStream) -> u64 {
    std::os::windows::io::AsRawSocket::as_raw_socket(socket)
}

/// Gives memory that the allocator keeps for later back to the system, so that growth can be seen.
#[cfg(unix)]
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call moves no block that is in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Resident memory of the process in bytes.
#[cfg(unix)]
pub(crate) fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("the memory of the process");
    let pages: usize =
        text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number of pages");
    pages * 4096
}

/// Processor time of this thread.
#[cfg(unix)]
pub(crate) fn busy() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the usage of this thread");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros as u64)
}

pub(crate) fn wait_until(what: &str, patience: Duration, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !is() {
        assert!(Instant::now() < end, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A pair of connected sockets over loopback.
pub(crate) fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(listener.local_addr().unwrap()).expect("a connection");
    let (far, _) = listener.accept().expect("its other end");
    near.set_nodelay(true).unwrap();
    (near, far)
}

/// Polls a future so many times and once more, with a turn of the loop after each, and drops it if it has not
/// completed then.
pub(crate) async fn after_polls<F: Future>(polls: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for turn in 0..=polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        if turn < polls {
            anabranch::yield_now().await;
        }
    }
    None
}

/// The value that `part` of the sorted `values` do not exceed.
pub(crate) fn percentile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let index = (values.len() as f64 * part) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The scenarios' source of chance.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fork(&mut self) -> Rng {
        Rng(self.next())
    }
}

pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// An endless sequence of bytes that no other sequence and no other place of this one looks like.
pub(crate) struct Sequence {
    id: u64,
    pub(crate) at: u64,
}

impl Sequence {
    pub(crate) fn new(id: u64) -> Sequence {
        Sequence { id, at: 0 }
    }

    fn byte(&self, at: u64) -> u8 {
        mix((self.id << 40) ^ (at / 8)).to_le_bytes()[(at % 8) as usize]
    }

    /// The next bytes, without going on.
    pub(crate) fn peek(&self, len: usize) -> Vec<u8> {
        (self.at..self.at + len as u64).map(|at| self.byte(at)).collect()
    }

    /// Goes on over received bytes; panics if they are not the next ones.
    pub(crate) fn check(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let expected = self.byte(self.at);
            assert_eq!(
                *byte, expected,
                "byte {} of sequence {} was lost, doubled or is another's",
                self.at, self.id
            );
            self.at += 1;
        }
    }
}
