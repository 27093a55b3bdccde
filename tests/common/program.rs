//! The programs of the examples, for the tests that run them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The program of an example. `cargo test` builds it beside this test; `cargo test --test examples` does not, so what is
/// missing or older than the source is built here.
pub(crate) fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.ancestors().nth(2).expect("tests are in <profile>/deps").to_owned();
        let directory = profile.join("examples");
        if !examples().iter().all(|example| is_fresh(&directory.join(file_name(example)))) {
            build(&profile);
        }
        directory
    });
    directory.join(file_name(name))
}

fn file_name(example: &str) -> String {
    format!("{example}{}", std::env::consts::EXE_SUFFIX)
}

/// The names of all examples.
pub(crate) fn examples() -> Vec<String> {
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).expect("examples/");
    let names = files.map(|file| file.expect("an entry").path().file_stem().expect("a name").to_owned());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| !["common", "cpp"].contains(&name.as_str()) && has_features_of(name));
    names
}

/// Whether this build has what an example needs.
fn has_features_of(example: &str) -> bool {
    let needs_simulations = ["simulate", "replicated_counter"].contains(&example);
    let needs_tls = example == "tls_echo";
    (cfg!(feature = "sim") || !needs_simulations) && (cfg!(feature = "tls-ring") || !needs_tls)
}

/// Whether a program is there and no source file is newer.
fn is_fresh(program: &Path) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let newest = newest(&root.join("src")).max(newest(&root.join("examples")));
    program.metadata().and_then(|program| program.modified()).is_ok_and(|built| built >= newest)
}

/// When the newest file of a directory was changed.
fn newest(directory: &Path) -> SystemTime {
    let entries = std::fs::read_dir(directory).expect("a directory of the crate");
    let changed = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("its metadata");
        if metadata.is_dir() { newest(&entry.path()) } else { metadata.modified().expect("a time of change") }
    });
    changed.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn build(profile: &Path) {
    let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile's directory");
    let target = profile.parent().expect("the target directory");
    eprintln!("the examples are missing or old; building them");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--examples", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .args(["--profile", if name == "debug" { "dev" } else { name }])
        .args(cfg!(feature = "sim").then_some("--features=sim"))
        .args(cfg!(feature = "tls-ring").then_some("--features=tls-ring"))
        .arg("--target-dir")
        .arg(target)
        .status();
    assert!(status.is_ok_and(|status| status.success()), "build them first: cargo build --examples");
}
