//! Samples that break each rule, and neighbours that do not: a check that cannot fail checks nothing.
#![forbid(unsafe_code)]

use crate::text::Source;
use crate::{BASE, INVARIANTS, LAYERS, UNSAFE_FILES, UPWARD, document, rules};
use std::collections::{BTreeMap, BTreeSet};

const FORBID: &str = "//! Head.\n#![forbid(unsafe_code)]\n";

/// The lines (counted from 1) at which the rule finds something in `text`.
fn lines(rule: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<usize> {
    let file = Source::new(path, text);
    let line = |message: &String| message.split(':').nth(1).and_then(|n| n.parse().ok());
    rule(&file).iter().map(|message| line(message).expect("file:line: what to do")).collect()
}

#[test]
fn unsafe_is_found_outside_of_its_files_only() {
    let check = |path, text: &str| lines(|file| rules::unsafe_is_listed(file, UNSAFE_FILES), path, text);
    let used = "//! Head.\nfn f() { unsafe { g() } }\n";
    assert_eq!(check("src/shard/mod.rs", used), [2, 1], "used, and not forbidden");
    assert_eq!(check("src/driver/op/send.rs", used), []);
    assert_eq!(check("src/driver/op/deep/send.rs", used), [2, 1], "the star stands for one name");
    assert_eq!(check("src/shard/mod.rs", FORBID), []);
    assert_eq!(check("src/shard/mod.rs", "//! Head.\nuse x;\n#![forbid(unsafe_code)]\n"), [1], "not first");
    assert_eq!(check("src/driver/op/nop.rs", "fn f() {}\n"), [1], "listed, but it does not need to be");
    assert_eq!(check("src/driver/sys/mod.rs", "mod uring;\n"), [], "forbid would reach the files below");
    assert_eq!(check("src/driver/sys/mod.rs", "fn f() { unsafe { g() } }\n"), [1]);
    let words = format!("{FORBID}// unsafe\nconst A: &str = \"unsafe\"; /* unsafe */ fn unsafe_not() {{}}\n");
    assert_eq!(check("src/shard/mod.rs", &words), [], "words in comments, literals and names are no code");
}

#[test]
fn an_unsafe_block_without_its_reason_is_found() {
    let check =
        |text: &str| lines(|file| rules::unsafe_is_explained(file, INVARIANTS), "src/buf/pool.rs", text);
    assert_eq!(check("fn f() {\n    unsafe { g() }\n}\n"), [2]);
    assert_eq!(check("unsafe impl Send for A {}\n"), [1]);
    assert_eq!(check("// SAFETY: invariant 1, the slot owns it.\nunsafe { g() }\n"), []);
    assert_eq!(check("// SAFETY:\nunsafe { g() }\n"), [2], "a mark without a reason");
    assert_eq!(check("// SAFETY: invariants 1 and 18 hold.\nunsafe { g() }\n"), [2], "no such invariant");
    assert_eq!(check("// SAFETY: invariants 1, 11 hold.\nunsafe { g() }\n"), []);
    let far = format!("// SAFETY: invariant 1.\n{}unsafe {{ g() }}\n", "let a = 1;\n".repeat(6));
    assert_eq!(check(&far), [8], "six other lines are too far");
    let long = format!("// SAFETY: invariant 1,\n{}unsafe {{ g() }}\n", "// because\n".repeat(9));
    assert_eq!(check(&long), [], "a long comment is near");
    assert_eq!(check("unsafe fn f() {}\n"), [], "a signature is no block");
}

#[test]
fn a_clock_that_can_be_set_is_found() {
    let check = |text: &str| lines(rules::time_is_monotonic, "src/shard/timer.rs", text);
    assert_eq!(check("fn f() {\n    std::time::SystemTime::now();\n}\n"), [2]);
    assert_eq!(check("clock_gettime(libc::CLOCK_REALTIME, &mut now);\n"), [1]);
    assert_eq!(check("// Not SystemTime.\nfn f() { Instant::now() }\n"), []);
}

#[test]
fn a_stray_cfg_is_found() {
    let check = |path, text: &str| lines(rules::cfg_is_local, path, text);
    let linux = "#[cfg(target_os = \"linux\")]\nfn f() {}\n";
    assert_eq!(check("src/shard/mod.rs", linux), [1]);
    assert_eq!(check("src/shard/mod.rs", "fn f() { if cfg!(unix) {} }\n"), [1]);
    assert_eq!(check("src/shard/mod.rs", "#![cfg(unix)]\n"), [1]);
    assert_eq!(check("src/shard/mod.rs", "#[cfg_attr(unix, inline)]\nfn f() {}\n"), [1]);
    assert_eq!(
        check("src/shard/mod.rs", "#[cfg(test)]\nmod tests {}\n#[cfg(feature = \"x\")]\nmod x;\n"),
        []
    );
    assert_eq!(check("src/shard/mod.rs", "#[cfg(not(feature = \"x\"))]\nmod x;\n"), []);
    assert_eq!(check("src/shard/mod.rs", "#[cfg(not(test))]\nfn f() {}\n"), [1]);
    assert_eq!(check("src/sync.rs", "#[cfg(loom)]\nuse loom::x;\n#[cfg(unix)]\nuse y;\n"), [3]);
    assert_eq!(check("src/driver/sys/mod.rs", linux), []);
    assert_eq!(check("src/driver/op/recv.rs", linux), [], "an item for the three methods");
    let method =
        |name| format!("impl A {{\n    #[cfg(unix)]\n    #[inline]\n    fn {name}(&self) {{}}\n}}\n");
    for name in ["sqe", "attempt", "start"] {
        assert_eq!(check("src/driver/op/recv.rs", &method(name)), []);
    }
    assert_eq!(check("src/driver/op/recv.rs", &method("finish")), [2]);
    let inside = "fn f() {\n    #[cfg(unix)]\n    let a = 1;\n}\n";
    assert_eq!(check("src/driver/op/recv.rs", inside), [2]);
}

#[test]
fn an_import_that_goes_up_is_found() {
    let root =
        Source::new("src/lib.rs", "pub use shard::{Shard, group::Group};\npub use crate::error::Error;\n");
    let names = rules::exported_names(&root);
    assert_eq!(names.len(), 3);
    let check = |path, text: &str| {
        lines(|file| rules::imports_go_down(file, LAYERS, BASE, UPWARD, &names), path, text)
    };
    assert_eq!(check("src/driver/mod.rs", "use crate::buf::Lease;\nuse crate::shard::Shard;\n"), [2]);
    assert_eq!(check("src/shard/mod.rs", "use crate::{driver::Driver, api::{A, B}};\n"), [1]);
    assert_eq!(check("src/driver/slot.rs", "fn f() { super::super::shard::g() }\n"), [1]);
    assert_eq!(check("src/driver/slot.rs", "use super::shard::X; use super::super::buf::Y;\n"), []);
    assert_eq!(check("src/buf/mod.rs", "use crate::Group;\n"), [1], "by the name that the root exports");
    assert_eq!(check("src/buf/mod.rs", "use crate::{Error, config::Limits};\n// crate::shard\n"), []);
    assert_eq!(check("src/report.rs", "use crate::driver::Caps;\n"), [1], "the base names no layer");
    assert_eq!(check("src/error.rs", "use crate::driver::sys::CANCELED;\n"), []);
    assert_eq!(check("src/proto/http.rs", "use crate::driver::Driver;\n"), [1]);
    assert_eq!(check("src/odds.rs", "\n"), [1], "a module without a place");
    assert_eq!(check("src/lib.rs", "use crate::api::Stream;\n"), []);
}

#[test]
fn a_gap_between_the_code_map_and_the_source_is_found() {
    let paths: BTreeSet<String> = ["src/lib.rs", "src/driver/slot.rs"].map(String::from).into();
    let check = |text: &str| lines(|file| document::map_is_complete(file, &paths), "ARCHITECTURE.md", text);
    assert_eq!(check(""), [1, 1]);
    assert_eq!(check("`src/lib.rs` and\nsrc/driver/slot.rs: the slots.\n"), []);
    assert_eq!(check("`lib.rs`, see `driver/slot.rs:12`.\n"), []);
    assert_eq!(check("src/lib.rs and driver/slot.rs\n"), [1], "without src/ it needs backticks");
    assert_eq!(check("`src/lib.rs`\n`src/driver/slot.rs`\n`src/driver/gone.rs`, `driver/lost.rs`\n"), [3, 3]);
    assert_eq!(check("`src/lib.rs` `src/driver/*.rs`\n"), [1], "a pattern exists but names no file");
    assert_eq!(check("`src/lib.rs` `driver/slot.rs` `src/driver/` `src/shard/`\n"), [1], "an unknown folder");
    assert_eq!(check("`src/lib.rs` `driver/slot.rs` `tests/gone.rs`\n"), [], "tests are not mapped");
}

#[test]
fn an_invariant_without_its_test_is_found() {
    let sources = [
        Source::new("tests/contract.rs", "#[test]\nfn a_cancel_is_a_request() {}\n"),
        Source::new(
            "src/buf/pool.rs",
            "fn plain() {}\n#[cfg(test)]\nmod tests { #[test] fn it_comes_home() {} }\n",
        ),
        Source::new("src/lib.rs", "//! ```compile_fail\n//! ```\n"),
    ];
    let check = |count, rows: &str| {
        let text = format!("# Invariants\n{rows}");
        lines(|file| document::invariants_are_tested(file, count, &sources), "ARCHITECTURE.md", &text)
    };
    assert_eq!(check(1, ""), [1], "no row");
    assert_eq!(check(1, "| 1 | Cancel. | `a_cancel_is_a_request` |\n"), []);
    assert_eq!(check(1, "| 1 | Cancel. | `contract::a_cancel_is_a_request`, `pool::it_comes_home` |\n"), []);
    assert_eq!(check(1, "| 1 | Cancel. | `contract::a_cancel_…` |\n"), []);
    assert_eq!(check(1, "| 1 | Cancel. | `other::a_cancel_is_a_request` |\n"), [2]);
    assert_eq!(check(1, "| 1 | `it_comes_home` | by reading |\n"), [2], "only the last column counts");
    assert_eq!(check(1, "| 1 | Cancel. | `plain` |\n"), [2], "a function is no test");
    assert_eq!(check(1, "| 1 | Cancel. | `it_comes_home`, `gone` |\n"), [2], "each name must exist");
    assert_eq!(check(1, "| 1 | Local. | `src/lib.rs compile_fail` |\n"), []);
    assert_eq!(check(1, "| 1 | Local. | `src/buf/pool.rs compile_fail` |\n"), [2]);
    assert_eq!(check(1, "# Other\n| 1 | Cancel. | `it_comes_home` |\n"), [1], "another section");
    assert_eq!(check(2, "| 1 | Cancel. | `it_comes_home` |\n"), [1], "the second is missing");
}

#[test]
fn a_row_of_the_coverage_without_its_test_is_found() {
    let sources = [Source::new("tests/server.rs", "#[test]\nfn it_serves() {}\n")];
    let check = |row: &str| {
        let text = format!("words\n| Topic | Test |\n| --- | --- |\n{row}\n");
        lines(|file| document::coverage_is_true(file, &sources), "docs/coverage.md", &text)
    };
    assert_eq!(check("| TCP | `server::it_serves` |"), []);
    assert_eq!(check("| `server::gone` | here | `server::it_serves` |"), [], "only the last cell counts");
    assert_eq!(check("| TCP | `server::it_serves`, `server::gone` |"), [4], "each name must exist");
    assert_eq!(check("| TCP | `server::gone` |\n| UDP | `gone` |"), [4, 5]);
    assert_eq!(check("| TCP | |"), [4], "neither a test nor a reason");
    assert_eq!(check("| TCP | by reading |"), [4]);
    assert_eq!(check("| HTTP | Later: `http` is a protocol of applications |"), []);
    assert_eq!(check("| Strands | Not offered: nothing needs them |"), []);
    assert_eq!(check("| TLS | TODO(branch) `tls::gone` |"), []);
}

#[test]
fn the_length_of_a_function_is_that_of_its_lines() {
    let text = "fn a(x: [u8; 4]) {\n    if x == '{' {}\n}\ntrait T { fn b();\n fn c() { \"}\"; } }\nlet f: fn(u8);\n";
    let file = Source::new("src/lib.rs", text);
    assert_eq!(rules::functions(&file.tokens()), [("a", 1, 3), ("c", 5, 1)]);
    let long = format!("fn long() {{\n{}}}\n", "    g();\n".repeat(70));
    assert_eq!(rules::functions(&Source::new("src/lib.rs", &long).tokens()), [("long", 1, 72)]);
}

#[test]
fn unfinished_work_and_printing_are_found() {
    let check = |path, text: &str| lines(rules::nothing_unfinished, path, text);
    let each =
        "todo!();\nunimplemented!();\ndbg!(1);\nprintln!();\neprintln!();\nprint!();\nprocess::exit(1);\n";
    assert_eq!(check("src/shard/mod.rs", each), [1, 2, 3, 4, 5, 6, 7]);
    let tests = "fn f() {}\n#[cfg(test)]\nmod tests {\n    fn g() { eprintln!(); dbg!(1) }\n}\nfn h() { println!() }\n";
    assert_eq!(check("src/shard/mod.rs", tests), [4, 6], "test code may print, not probe");
    assert_eq!(
        check("src/shard/mod.rs", "// todo!()\nlet s = \"println!()\"; let todo = 1; writeln!(f);\n"),
        []
    );
}

#[test]
fn a_let_chain_is_found() {
    let check = |text: &str| lines(rules::no_let_chains, "src/shard/mod.rs", text);
    assert_eq!(check("if let Some(a) = b && c {}\n"), [1]);
    assert_eq!(check("if b\n    && let Some(a) = c\n{}\n"), [2]);
    assert_eq!(check("while let Some(a) = f(|x| { x && y }) && c {}\n"), [1]);
    assert_eq!(check("if let Some(a) = unsafe { b() } && c {}\n"), [1]);
    assert_eq!(check("if let Some(a) = (b && c).then(d) { e && f }\n"), []);
    assert_eq!(check("if let Some(&&a) = &&b { a && c }\nif a && b { let c = 1; }\n"), []);
    assert_eq!(check("match a { Some(x) if x && y => {} _ => {} }\n"), []);
}

#[test]
fn stray_white_space_is_found() {
    let check = |text: &str| lines(rules::no_stray_space, "README.md", text);
    assert_eq!(check("a \n\tb\nc\r\n"), [1, 2, 3]);
    assert_eq!(check("a\n\n    b\n"), []);
}

#[test]
fn source_is_cut_into_the_right_tokens() {
    let text = "r#\"a \"b\"# 'x' '\\'' 'life b\"s\" br##\"\"#\"## r#type /* a /* b */ c */ 1.5 // end\n é \"\\\"\" z";
    let file = Source::new("src/lib.rs", text);
    let tokens: Vec<&str> = file.tokens().iter().map(|token| token.text).collect();
    let expected = ["\"", "\"", "\"", "'life", "\"", "\"", "r", "#", "type", "1", ".", "5", "é", "\"", "z"];
    assert_eq!(tokens, expected);
    assert_eq!(file.tokens().last().map(|token| (token.line, token.column)), Some((2, 9)));
    assert_eq!(rules::exported_names(&file), BTreeMap::new());
}
