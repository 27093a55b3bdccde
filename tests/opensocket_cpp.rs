//! The C++ header, its examples and its package, with the system's C++ compiler.
#![cfg(feature = "capi")]
#![forbid(unsafe_code)]

mod common;

use common::cpp::{compile, compiler, library};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The backends of this machine, as the environment names them.
fn backends() -> Vec<&'static str> {
    if common::has_uring() { vec!["readiness", "uring"] } else { vec!["readiness"] }
}

/// Compiles one source into a directory that is gone with the first of the pair.
fn program(source: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("program");
    compile(&[source], &program);
    (directory, program)
}

/// A server that says where it listens and ends with its input.
struct Server(Child, String);

impl Server {
    fn start(program: &Path, backend: &str) -> Server {
        let mut child = Command::new(program)
            .arg("127.0.0.1:0")
            .env("ANABRANCH_BACKEND", backend)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
        Server(child, address)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.1).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        stream
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("it ends").success());
    }
}

#[test]
fn the_echo_example_gives_back_what_it_gets_and_ends_with_connections_open() {
    if compiler().is_none() {
        return;
    }
    let (_directory, program) = program("examples/cpp/echo.cpp");
    for backend in backends() {
        let server = Server::start(&program, backend);
        let mut streams: Vec<TcpStream> = (0..5).map(|_| server.connect()).collect();
        for (index, stream) in streams.iter_mut().enumerate() {
            // From a few bytes to what passes the buffers of the system.
            let sent: Vec<u8> = (0..7_usize << (5 * index)).map(|n| (n % 251) as u8).collect();
            let mut writer = stream.try_clone().expect("a clone");
            let to_send = sent.clone();
            let writing = std::thread::spawn(move || writer.write_all(&to_send).expect("it reads"));
            let mut got = vec![0; sent.len()];
            stream.read_exact(&mut got).expect("an echo");
            writing.join().expect("written");
            assert!(got == sent, "{} bytes came back differently", sent.len());
        }
        server.end();
    }
}

#[test]
fn the_http_example_answers_from_its_accepter_threads() {
    if compiler().is_none() {
        return;
    }
    let (_directory, program) = program("examples/cpp/http_server.cpp");
    for backend in backends() {
        let server = Server::start(&program, backend);
        for index in 0..6 {
            let mut stream = server.connect();
            write!(stream, "GET /page{index} HTTP/1.1\r\nHost: here\r\n\r\n").expect("it reads");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("a reply and the end");
            assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
            assert!(reply.contains(&format!("/page{index} from accepter {}\n", 1 + index % 4)), "{reply}");
        }
        server.end();
    }
}

/// Runs a program that checks itself.
fn runs(program: &Path, arguments: &[&str], backend: &str) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).env("ANABRANCH_BACKEND", backend).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{backend}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_udp_example_gets_every_answer() {
    if compiler().is_none() {
        return;
    }
    let (_directory, program) = program("examples/cpp/udp.cpp");
    for backend in backends() {
        assert_eq!(runs(&program, &["20"], backend).lines().count(), 20);
    }
}

#[test]
fn a_program_may_rely_on_its_start_its_end_its_threads_and_both_generations_of_calls() {
    if compiler().is_none() {
        return;
    }
    let (_directory, program) = program("tests/cpp/life.cpp");
    for backend in backends() {
        assert_eq!(runs(&program, &[], backend), "all holds\n");
    }
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("NOT COVERED: {program} (it is not installed)");
    }
    found
}

#[test]
fn what_is_installed_is_found_by_pkg_config_and_by_cmake() {
    let Some(cxx) = compiler() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().expect("a directory");
    let prefix = directory.path().join("prefix");
    // The library is built already, into the directory that the script is told of.
    let profile = library();
    let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile's directory");
    let installed = Command::new(root.join("scripts/install.sh"))
        .arg(&prefix)
        .arg(if name == "debug" { "dev" } else { name })
        .env("CARGO_TARGET_DIR", profile.parent().expect("the target directory"))
        .output()
        .expect("the script starts");
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let ends = |program: &Path| runs(program, &["1"], "readiness");
    if has("pkg-config") {
        let flags = Command::new("pkg-config")
            .args(["--cflags", "--libs", "anabranch"])
            .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
            .output()
            .expect("it starts");
        let flags = String::from_utf8_lossy(&flags.stdout).into_owned();
        let program = directory.path().join("by_pkg_config");
        let status = Command::new(cxx)
            .args(["-std=c++11", "-pthread"])
            .arg(root.join("examples/cpp/udp.cpp"))
            .args(flags.split_whitespace())
            .arg(format!("-Wl,-rpath,{}", prefix.join("lib").display()))
            .arg("-o")
            .arg(&program)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "{flags}");
        ends(&program);
    }
    if has("cmake") {
        let build = directory.path().join("build");
        for arguments in [
            vec![
                "-S".into(),
                root.join("examples/cpp").display().to_string(),
                "-B".into(),
                build.display().to_string(),
                format!("-DCMAKE_PREFIX_PATH={}", prefix.display()),
            ],
            vec!["--build".into(), build.display().to_string()],
        ] {
            let output = Command::new("cmake").args(&arguments).output().expect("it starts");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        }
        ends(&build.join("udp"));
        ends(&build.join("udp_static"));
    }
}
