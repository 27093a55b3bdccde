//! Rules of the repository that a compiler does not know, as tests. The tables below are the whole
//! configuration; a finding names the file, the line and what to do.
//!
//! The lists of long functions and files are ratchets: they may only become shorter. Each rule is tried on
//! samples that break it in tests/tidy/samples.rs.
// Not on Windows: it reads the source, which is the same everywhere.
#![cfg(unix)]
#![forbid(unsafe_code)]

#[path = "tidy/document.rs"]
mod document;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/samples.rs"]
mod samples;
#[path = "tidy/text.rs"]
mod text;

use std::collections::BTreeSet;
use text::{Source, files};

/// The files that may contain `unsafe`. `*` stands for a name.
const UNSAFE_FILES: &[&str] = &[
    "src/buf/pool.rs",
    "src/buf/pool/tests.rs",
    "src/buf/pool/tests/giving.rs",
    "src/buf/lease.rs",
    "src/buf/memory.rs",
    "src/driver/fd.rs",
    "src/driver/slot.rs",
    "src/driver/op/*.rs",
    "src/driver/sys/uring.rs",
    "src/driver/sys/uring/doorway.rs",
    "src/driver/sys/uring_bufs.rs",
    "src/driver/sys/iocp.rs",
    "src/driver/sys/iocp/calls.rs",
    "src/driver/sys/iocp/port.rs",
    "src/driver/sys/os/unix.rs",
    "src/driver/sys/os/windows.rs",
    "src/driver/sys/poller.rs",
    "src/driver/sys/readiness.rs",
    "src/driver/sys/signal/windows.rs",
    "src/driver/sys/socket.rs",
    "src/driver/sys/descriptor.rs",
    "src/driver/sys/messages.rs",
    "src/capi/errors.rs",
    "src/capi/opensocket.rs",
    "src/capi/completion.rs",
];

/// Each module of the crate root, and the modules it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("buf", &[]),
    ("driver", &["buf"]),
    ("shard", &["driver", "buf"]),
    ("api", &["shard", "driver", "buf"]),
    ("sim", &["shard", "driver"]),
    ("proto", &["buf"]),
    ("component", &["api", "shard", "proto", "buf"]),
    ("capi", &["api", "shard", "buf"]),
];

/// Modules that every layer may name. They name no layer themselves.
const BASE: &[&str] = &["config", "error", "report", "counters", "sync", "trace"];

/// Names against the direction: the file and the module it may name all the same.
const UPWARD: &[(&str, &str)] = &[
    ("src/error.rs", "driver"), // the number of a cancelled operation differs per system
    ("src/config.rs", "driver"), // what a table can hold at most, and the scripted backend, are told there
    ("src/config.rs", "buf"),   // what a pool can hold at most
];

/// The files through which users may ask for the wall clock, which nothing of ours does but to see whether certificates are
/// valid.
const WALL_CLOCK_FILES: &[&str] = &[
    "src/api/time.rs",
    "src/component/timer.rs",
    "src/component/tls.rs",
    "src/driver/sys/host.rs",
    "src/driver/sys/sim/machine.rs",
];

/// The invariants of ARCHITECTURE.md are numbered from 1.
const INVARIANTS: usize = 17;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

/// Functions that are longer all the same: file and name.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// Files of src/ that are longer all the same.
const LONG_FILES: &[&str] = &[];

/// One test reports all findings of a rule at once.
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{} finding(s):\n  {}", found.len(), found.join("\n  "));
}

fn in_src(rule: impl Fn(&Source) -> Vec<String>) {
    let sources = files("src", ".rs");
    assert!(sources.iter().any(|file| file.path == "src/lib.rs"), "the source was not found");
    none(sources.iter().flat_map(rule).collect());
}

/// An empty document has every finding, which is what is wanted when it is missing.
fn document(path: &str) -> Source {
    let text = std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")));
    Source::new(path, &text.unwrap_or_default())
}

fn architecture() -> Source {
    document("ARCHITECTURE.md")
}

#[test]
fn unsafe_code_is_only_in_the_listed_files() {
    in_src(|file| rules::unsafe_is_listed(file, UNSAFE_FILES));
}

#[test]
fn the_list_of_unsafe_files_names_no_file_that_is_gone() {
    let sources = files("src", ".rs");
    let gone =
        UNSAFE_FILES.iter().filter(|listed| !sources.iter().any(|file| text::glob(listed, &file.path)));
    none(gone.map(|listed| format!("{listed} does not exist; take it out of UNSAFE_FILES")).collect());
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    in_src(|file| rules::unsafe_is_explained(file, INVARIANTS));
}

#[test]
fn conditional_compilation_stays_at_the_system_boundary() {
    in_src(rules::cfg_is_local);
}

#[test]
fn imports_go_down_only() {
    let root = files("src", ".rs").into_iter().find(|file| file.path == "src/lib.rs");
    let names = rules::exported_names(&root.expect("the crate has a root"));
    in_src(|file| rules::imports_go_down(file, LAYERS, BASE, UPWARD, &names));
}

#[test]
fn the_code_map_names_every_source_file_and_no_other() {
    let paths: BTreeSet<String> = files("src", ".rs").into_iter().map(|file| file.path).collect();
    none(document::map_is_complete(&architecture(), &paths));
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let mut sources = files("src", ".rs");
    sources.extend(files("tests", ".rs"));
    none(document::invariants_are_tested(&architecture(), INVARIANTS, &sources));
}

#[test]
fn every_row_of_the_coverage_names_a_test_that_exists_or_a_reason() {
    let mut sources = files("src", ".rs");
    sources.extend(files("tests", ".rs"));
    let coverage = document("docs/coverage.md");
    assert!(coverage.text.lines().filter(|line| line.starts_with('|')).count() > 100, "the tables are gone");
    none(document::coverage_is_true(&coverage, &sources));
}

#[test]
fn no_function_is_too_long() {
    let sources = files("src", ".rs");
    let mut found = Vec::new();
    let mut listed: BTreeSet<(&str, &str)> = LONG_FUNCTIONS.iter().copied().collect();
    for file in &sources {
        for (name, line, length) in rules::functions(&file.tokens()) {
            let long = length > FUNCTION_LINES_MAX;
            if long && !listed.remove(&(file.path.as_str(), name)) {
                let what =
                    format!("`{name}` has {length} lines; {FUNCTION_LINES_MAX} is the limit, cut it in two");
                found.push(file.says(line, what));
            }
        }
    }
    found.extend(listed.iter().map(|(path, name)| format!("{path}: take `{name}` out of LONG_FUNCTIONS")));
    none(found);
}

#[test]
fn no_source_file_is_too_long() {
    let sources = files("src", ".rs");
    let mut found = Vec::new();
    let mut listed: BTreeSet<&str> = LONG_FILES.iter().copied().collect();
    for file in &sources {
        let length = file.text.lines().count();
        if length > FILE_LINES_MAX && !listed.remove(file.path.as_str()) {
            let what = format!("{length} lines; {FILE_LINES_MAX} is the limit, make two rooms of it");
            found.push(file.says(FILE_LINES_MAX, what));
        }
    }
    found.extend(listed.iter().map(|path| format!("{path}: take it out of LONG_FILES")));
    none(found);
}

#[test]
fn the_library_has_nothing_unfinished_and_does_not_print_or_exit() {
    in_src(rules::nothing_unfinished);
}

#[test]
fn no_clock_that_can_be_set_is_read() {
    in_src(|file| {
        let lends = WALL_CLOCK_FILES.contains(&file.path.as_str());
        if lends { Vec::new() } else { rules::time_is_monotonic(file) }
    });
}

#[test]
fn the_oldest_supported_compiler_can_read_the_source() {
    in_src(rules::no_let_chains);
}

#[test]
fn text_has_no_tabs_and_no_white_space_at_line_ends() {
    let mut all = files("", ".rs");
    all.extend(files("", ".md"));
    none(all.iter().flat_map(rules::no_stray_space).collect());
}
