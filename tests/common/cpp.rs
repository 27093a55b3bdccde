//! The system's C++ compiler, and our library for C and C++ programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The C++ compiler of the system; says so once, loudly, if there is none.
pub(crate) fn compiler() -> Option<&'static str> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let named = std::env::var("CXX").ok();
        let names = named.into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned));
        let works =
            |name: &String| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
        let found = names.into_iter().find(works);
        if found.is_none() {
            eprintln!("NOT COVERED: the C++ header and its examples (this system has no C++ compiler)");
        }
        found
    });
    found.as_deref()
}

/// The directory with `libanabranch.so` and `libanabranch.a`, which are built if they must be.
pub(crate) fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.ancestors().nth(2).expect("tests are in <profile>/deps").to_owned();
        let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile's directory");
        let status = Command::new(env!("CARGO"))
            .args(["rustc", "--quiet", "--lib", "--features", "capi", "--crate-type", "cdylib,staticlib"])
            .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
            .args(["--profile", if name == "debug" { "dev" } else { name }])
            .arg("--target-dir")
            .arg(profile.parent().expect("the target directory"))
            .status();
        assert!(status.is_ok_and(|status| status.success()), "the library for C++ does not build");
        profile
    })
}

/// Compiles C++ sources of ours against the header and the library; the program, or shared object if the name ends
/// with `.so`. Warnings are errors.
pub(crate) fn compile(sources: &[&str], to: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = library();
    let mut command = Command::new(compiler().expect("there is a compiler"));
    command.args(["-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-pthread"]);
    if to.extension().is_some_and(|extension| extension == "so") {
        command.args(["-shared", "-fPIC"]);
    }
    command.arg("-I").arg(root.join("include")).args(sources.iter().map(|source| root.join(source)));
    command.arg("-L").arg(library).arg("-lanabranch").arg(format!("-Wl,-rpath,{}", library.display()));
    let output = command.arg("-o").arg(to).output().expect("the compiler starts");
    assert!(
        output.status.success(),
        "{sources:?} does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
