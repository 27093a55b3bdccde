//! Examples as processes: started, asked to end, watched.
#![forbid(unsafe_code)]

use super::common::program::program;
#[cfg(unix)]
pub(crate) use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How an example is asked to end. Windows has no signals for other processes: there they are ended by force.
#[cfg(windows)]
#[derive(Clone, Copy)]
#[allow(clippy::upper_case_acronyms, reason = "the names are those of Unix")]
pub(crate) enum Signal {
    SIGINT,
    SIGTERM,
}

/// How long anything may take before the test fails rather than hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running example; killed if the test fails.
pub(crate) struct Example {
    pub(crate) child: Child,
    lines: mpsc::Receiver<String>,
    /// Where it says that it listens.
    pub(crate) address: String,
}

impl Example {
    /// Starts it and waits for the line that ends with its address.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Example {
        let mut command = Command::new(program(name));
        let mut child = command.args(flags).stdout(Stdio::piped()).spawn().expect("the example starts");
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut example = Example { child, lines, address: String::new() };
        let line = example.line_with(" on ");
        example.address = line.rsplit(' ').next().unwrap_or_default().to_owned();
        example
    }

    /// The next line of its output that contains `text`.
    pub(crate) fn line_with(&self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no line with {text:?} came"));
            // The report of a backend is no line that anything is waited for.
            let heads = ["reason ", "ladder ", "uses ", "emulates ", "hardened "];
            let is_report = heads.iter().any(|head| line.starts_with(head));
            if line.contains(text) && !is_report && !line.contains("on thread") {
                return line;
            }
        }
    }

    pub(crate) fn socket_address(&self) -> SocketAddr {
        self.address.parse().expect("the example prints its address")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.socket_address()).expect("the example listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: Signal) {
        let process = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(process, signal).expect("the example runs");
    }

    #[cfg(unix)]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// It must still run.
    #[cfg(windows)]
    pub(crate) fn end(mut self, _: Signal) {
        assert!(self.child.try_wait().expect("the example is our child").is_none(), "the example has ended");
    }

    /// Asks it to end; it must end with status 0.
    #[cfg(unix)]
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        let status = self.wait();
        assert!(status.success(), "after {signal}: {status}");
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("the example is our child") {
            return status;
        }
        assert!(Instant::now() < until, "the example does not end");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs an example to its end.
pub(crate) fn run(name: &str, flags: &[&str]) -> Output {
    let mut command = Command::new(program(name));
    let mut child = command
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example starts");
    wait(&mut child);
    child.wait_with_output().expect("its output can be read")
}
