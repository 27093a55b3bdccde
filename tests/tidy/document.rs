//! The rules that hold ARCHITECTURE.md against the source.
#![forbid(unsafe_code)]

use crate::rules::functions;
use crate::text::{Source, test_lines};
use std::collections::BTreeSet;

/// Each source file is named by its path, and each source path that is named exists.
pub(crate) fn map_is_complete(document: &Source, paths: &BTreeSet<String>) -> Vec<String> {
    let named = named_paths(document, paths);
    let mut found: Vec<String> = paths
        .iter()
        .filter(|path| !named.iter().any(|(_, name)| name == *path))
        .map(|path| {
            document.says(1, format!("`{path}` is missing in the code map; say in one line what it is for"))
        })
        .collect();
    for (line, name) in &named {
        let folder = name.strip_suffix('/').map(|folder| format!("{folder}/"));
        let (before, after) = name.split_once('*').unwrap_or((name, ""));
        let exists = match folder {
            Some(folder) => paths.iter().any(|path| path.starts_with(&folder)),
            None if name.contains('*') => paths.iter().any(|p| p.starts_with(before) && p.ends_with(after)),
            None => paths.contains(name),
        };
        if !exists {
            found.push(
                document.says(*line, format!("`{name}` does not exist (any more); correct the document")),
            );
        }
    }
    found
}

/// Source paths in the document, with their lines: `src/…` anywhere, or below src/ in backticks.
fn named_paths(document: &Source, paths: &BTreeSet<String>) -> Vec<(usize, String)> {
    let tops: BTreeSet<&str> = paths.iter().filter_map(|path| path.split('/').nth(1)).collect();
    let mut found = Vec::new();
    for (at, line) in document.text.lines().enumerate() {
        for word in line.split(|c: char| c.is_whitespace() || "`()[]|,;\"".contains(c)) {
            let path = without_line(word);
            if path.starts_with("src/") && path.len() > "src/".len() {
                found.push((at + 1, path.to_owned()));
            }
        }
        for word in line.split('`').skip(1).step_by(2) {
            let path = without_line(word);
            let top = path.split('/').next().unwrap_or_default();
            if path.ends_with(".rs") && !path.contains(' ') && tops.contains(top) {
                found.push((at + 1, format!("src/{path}")));
            }
        }
    }
    found
}

/// `src/lib.rs:30` is `src/lib.rs`, and so is the end of a sentence.
fn without_line(word: &str) -> &str {
    word.split(':').next().unwrap_or(word).trim_end_matches('.')
}

/// Each invariant has a row that names a test, and every test named there exists.
pub(crate) fn invariants_are_tested(document: &Source, count: usize, sources: &[Source]) -> Vec<String> {
    let tests = test_names(sources);
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (line, number, last_cell) in invariant_rows(document) {
        seen.insert(number);
        let names: Vec<&str> = last_cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            let what = format!("invariant {number} names no test in its last column");
            found.push(document.says(line, what));
        }
        for name in names.iter().filter(|name| !is_test(name, &tests, sources)) {
            let what = format!("invariant {number}: there is no test `{name}`; write it or correct the row");
            found.push(document.says(line, what));
        }
    }
    for number in (1..=count).filter(|number| !seen.contains(number)) {
        let what = format!("the invariants section has no row `| {number} | … | test names |`");
        found.push(document.says(1, what));
    }
    found
}

/// The rows of the section whose heading speaks of invariants: line, number, last cell.
fn invariant_rows(document: &Source) -> Vec<(usize, usize, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (at, line) in document.text.lines().enumerate() {
        if line.starts_with('#') {
            inside = line.to_lowercase().contains("invariant");
        }
        let Some(cells) = line.trim().strip_prefix('|').filter(|_| inside) else { continue };
        let cells: Vec<&str> = cells.trim_end_matches('|').split('|').map(str::trim).collect();
        if let (Ok(number), Some(last)) = (cells[0].parse(), cells.get(1..).and_then(|rest| rest.last())) {
            found.push((at + 1, number, *last));
        }
    }
    found
}

/// What a cell may begin with where no test is named.
const REASONS: &[&str] = &["Later: ", "Not offered: ", "Untested: "];

/// In each row of each table the last cell names tests that exist, or begins with a reason. What begins with `TODO` waits.
pub(crate) fn coverage_is_true(document: &Source, sources: &[Source]) -> Vec<String> {
    let tests = test_names(sources);
    let (mut found, mut row) = (Vec::new(), 0);
    for (at, line) in document.text.lines().enumerate() {
        row = if line.starts_with('|') { row + 1 } else { 0 };
        // The first two lines of a table are its head.
        if row < 3 {
            continue;
        }
        let cell = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        if cell.starts_with("TODO(") || REASONS.iter().any(|reason| cell.starts_with(reason)) {
            continue;
        }
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            let what = format!("the row names no test; name one, or begin with one of {REASONS:?}");
            found.push(document.says(at + 1, what));
        }
        for name in names.iter().filter(|name| !is_test(name, &tests, sources)) {
            let what = format!("there is no test `{name}`; write it or correct the row");
            found.push(document.says(at + 1, what));
        }
    }
    found
}

/// Every test as `file::name`, where the file is the last part of the path without its ending.
fn test_names(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources {
        let tokens = file.tokens();
        let regions = test_lines(&tokens);
        let module = file.modules().last().copied().unwrap_or("lib").to_owned();
        for (name, line, _) in functions(&tokens) {
            if file.is_test_file() || regions.iter().any(|(a, b)| (*a..=*b).contains(&line)) {
                found.push(format!("{module}::{name}"));
            }
        }
    }
    found
}

/// `name`, `file::name`, either with `…` for the rest of the name; or `src/file.rs compile_fail` for a
/// documentation test that must not compile.
fn is_test(name: &str, tests: &[String], sources: &[Source]) -> bool {
    if let Some(path) = name.strip_suffix(" compile_fail") {
        return sources.iter().any(|file| file.path == path && file.text.contains("```compile_fail"));
    }
    let (start, open) = match name.strip_suffix('…').or(name.strip_suffix("...")) {
        Some(start) => (start, true),
        None => (name, false),
    };
    tests.iter().any(|test| {
        let (_, plain) = test.split_once("::").expect("written with it above");
        let whole = if start.contains("::") { test.as_str() } else { plain };
        whole == start || (open && whole.starts_with(start))
    })
}
