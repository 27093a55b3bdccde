//! The rules. Each looks at one file and gives a list of messages: where, and what to do about it.
#![forbid(unsafe_code)]

use crate::text::{Source, Token, after_attributes, closing, follows, glob, next_at_depth, test_lines};
use std::collections::BTreeMap;

/// How many lines above an unsafe block its comment may end.
const SAFETY_WITHIN: usize = 6;

/// `unsafe` only in `listed` files; every other file forbids it, so that the compiler agrees.
pub(crate) fn unsafe_is_listed(file: &Source, listed: &[&str]) -> Vec<String> {
    let tokens = file.tokens();
    let on_list = listed.iter().any(|pattern| glob(pattern, &file.path));
    let mut found = Vec::new();
    for token in tokens.iter().filter(|token| token.text == "unsafe" && !on_list) {
        found.push(file.says(
            token.line,
            "`unsafe` has no place in this file; use a safe call, or put the unsafe part behind a safe \
             function of a file in UNSAFE_FILES (tests/tidy.rs)",
        ));
    }
    let used = on_list && tokens.iter().any(|token| token.text == "unsafe");
    let forbids = follows(&tokens, 0, &["#", "!", "[", "forbid", "(", "unsafe_code", ")", "]"]);
    if !used && !forbids && file.path != "src/lib.rs" && !is_above(file, listed) {
        found.push(file.says(1, "put `#![forbid(unsafe_code)]` first after the `//!` head"));
    }
    found
}

/// Whether a listed file is a module below this one: `forbid` in a parent would reach it.
fn is_above(file: &Source, listed: &[&str]) -> bool {
    let folder = file.path.strip_suffix("/mod.rs").or(file.path.strip_suffix(".rs")).unwrap_or(&file.path);
    listed.iter().any(|pattern| pattern.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
}

/// Each unsafe block and implementation says in a `// SAFETY:` comment which invariant makes it sound.
pub(crate) fn unsafe_is_explained(file: &Source, invariants: usize) -> Vec<String> {
    let tokens = file.tokens();
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if !follows(&tokens, at, &["unsafe", "{"]) && !follows(&tokens, at, &["unsafe", "impl"]) {
            continue;
        }
        match safety_comment(&lines, token.line) {
            None => found.push(file.says(
                token.line,
                "say right above in a `// SAFETY:` comment why this is sound: \
                 \"invariant 1\" and the line that upholds it, or the reason in words",
            )),
            Some(comment) => {
                for number in cited(&comment).into_iter().filter(|n| *n == 0 || *n > invariants) {
                    let what = format!("there is no invariant {number}; cite one of ARCHITECTURE.md");
                    found.push(file.says(token.line, what));
                }
            }
        }
    }
    found
}

/// The text after `SAFETY:` of the comment that belongs to the line (numbered from 1), if it has any.
fn safety_comment(lines: &[&str], line: usize) -> Option<String> {
    let lowest = line.saturating_sub(SAFETY_WITHIN + 1);
    // The block itself may carry it at its end; otherwise the nearest comment above, of whatever length.
    let mut at = line - 1;
    while !lines[at].contains("// SAFETY:") {
        let in_comment = lines[at].starts_with("//");
        if at == 0 || (at <= lowest && !in_comment) {
            return None;
        }
        at -= 1;
    }
    let (_, mut text) = lines[at].split_once("// SAFETY:").map(|(code, text)| (code, text.to_owned()))?;
    for more in lines[at + 1..].iter().take_while(|more| more.starts_with("//")) {
        text.push(' ');
        text.push_str(more.trim_start_matches('/'));
    }
    (text.split_whitespace().count() >= 2).then_some(text)
}

/// The numbers in "invariant 1", "invariants 1 and 3", "invariants 1, 2".
fn cited(comment: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, _) in comment.match_indices("invariant") {
        let rest = comment[at + "invariant".len()..].trim_start_matches('s');
        for word in rest.split_whitespace() {
            let number = word.trim_matches(|c: char| c.is_ascii_punctuation());
            match number.parse() {
                Ok(number) => found.push(number),
                Err(_) if number == "and" => {}
                Err(_) => break,
            }
        }
    }
    found
}

/// Conditional compilation stays where the systems differ.
pub(crate) fn cfg_is_local(file: &Source) -> Vec<String> {
    if file.path.starts_with("src/driver/sys/") || file.path == "src/lib.rs" {
        return Vec::new();
    }
    let tokens = file.tokens();
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let attribute = follows(&tokens, at, &["#", "[", "cfg", "("]);
        let other = follows(&tokens, at, &["cfg", "!", "("])
            || follows(&tokens, at, &["#", "!", "[", "cfg"])
            || (token.text == "cfg_attr" && tokens.get(at + 1).is_some_and(|t| t.text == "("));
        let allowed = attribute && (is_everywhere(file, &tokens, at + 4) || is_op_item(file, &tokens, at));
        if (attribute || other) && !allowed {
            found.push(file.says(
                token.line,
                "conditional compilation belongs into src/driver/sys/, or onto the methods sqe, attempt and \
                 start (and items for them) in src/driver/op/; only cfg(test) and cfg(feature) may stand elsewhere",
            ));
        }
    }
    found
}

/// Whether the condition that begins at `at` may be used in every file.
fn is_everywhere(file: &Source, tokens: &[Token<'_>], at: usize) -> bool {
    let end = next_at_depth(tokens, at, &[")"]).unwrap_or(tokens.len());
    let models = file.path == "src/sync.rs" && tokens[at..end].iter().any(|token| token.text == "loom");
    models
        || follows(tokens, at, &["test"])
        || follows(tokens, at, &["all", "(", "test"])
        || follows(tokens, at, &["feature", "="])
        // What stands for a feature that is off.
        || follows(tokens, at, &["not", "(", "feature", "="])
}

/// In an op file: the three methods that differ per backend, or an item at the left margin.
fn is_op_item(file: &Source, tokens: &[Token<'_>], at: usize) -> bool {
    if !file.path.starts_with("src/driver/op/") {
        return false;
    }
    let item = after_attributes(tokens, at);
    let Some(first) = tokens.get(item) else { return false };
    let named = next_at_depth(tokens, item, &["fn"]).and_then(|at| tokens.get(at + 1));
    let near = named.is_some_and(|name| name.line <= first.line + 1);
    let items =
        ["pub", "fn", "use", "mod", "const", "static", "type", "struct", "enum", "impl", "trait", "unsafe"];
    match first.column {
        0 => items.contains(&first.text),
        _ => near && named.is_some_and(|name| matches!(name.text, "sqe" | "attempt" | "start")),
    }
}

/// Imports go down only. `layers` says which modules each may name; `base` may be named by all;
/// `names` tells the module behind a name that the crate root exports.
pub(crate) fn imports_go_down(
    file: &Source,
    layers: &[(&str, &[&str])],
    base: &[&str],
    exceptions: &[(&str, &str)],
    names: &BTreeMap<String, String>,
) -> Vec<String> {
    let modules = file.modules();
    let Some(own) = modules.first() else { return Vec::new() };
    let below: &[&str] = match layers.iter().find(|(name, _)| name == own) {
        Some((_, below)) => below,
        None if base.contains(own) => &[],
        None => {
            return vec![file.says(1, format!("give the module `{own}` a place in LAYERS (tests/tidy.rs)"))];
        }
    };
    let mut found = Vec::new();
    for (line, name) in named_at_root(&file.tokens(), &modules) {
        let target = names.get(name).map_or(name, String::as_str);
        let is_module = base.contains(&target) || layers.iter().any(|(layer, _)| *layer == target);
        let allowed = target == *own
            || base.contains(&target)
            || below.contains(&target)
            || exceptions.contains(&(file.path.as_str(), target));
        if is_module && !allowed {
            let what =
                format!("`{own}` must not name `{target}`: imports go down only; move the shared part down");
            found.push(file.says(line, what));
        }
    }
    found
}

/// What the file names directly below the crate root, by `crate::` or by enough `super::`.
fn named_at_root<'a>(tokens: &[Token<'a>], modules: &[&str]) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let inside_path = at > 0 && tokens[at - 1].text == ":";
        let ups = (0..).take_while(|n| follows(tokens, at + 3 * n, &["super"])).count();
        let mut next = match tokens[at].text {
            "crate" => at + 1,
            "super" if !inside_path && ups == modules.len() => at + 3 * ups - 2,
            _ => continue,
        };
        if !follows(tokens, next, &[":", ":"]) {
            continue;
        }
        next += 2;
        if !follows(tokens, next, &["{"]) {
            found.extend(tokens.get(next).map(|token| (token.line, token.text)));
            continue;
        }
        let end = closing(tokens, next);
        let mut part = Some(next);
        while let Some(before) = part.filter(|before| before + 1 < end) {
            found.push((tokens[before + 1].line, tokens[before + 1].text));
            part = next_at_depth(tokens, before + 1, &[","]);
        }
    }
    found
}

/// From the crate root's `pub use module::{Name, …};`: the module of each name.
pub(crate) fn exported_names(root: &Source) -> BTreeMap<String, String> {
    let tokens = root.tokens();
    let mut found = BTreeMap::new();
    for at in 0..tokens.len() {
        if !follows(&tokens, at, &["pub", "use"]) {
            continue;
        }
        let end = next_at_depth(&tokens, at, &[";"]).unwrap_or(tokens.len());
        let mut path = tokens[at + 2..end].iter().filter(|t| !matches!(t.text, "crate" | "self" | ":"));
        let Some(module) = path.next() else { continue };
        for name in path.filter(|token| token.text.starts_with(char::is_uppercase)) {
            found.insert(name.text.to_owned(), module.text.to_owned());
        }
    }
    found
}

/// The functions of a file: name, line, number of lines from `fn` to the closing brace.
pub(crate) fn functions<'a>(tokens: &[Token<'a>]) -> Vec<(&'a str, usize, usize)> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let Some(name) = tokens.get(at + 1).filter(|_| tokens[at].text == "fn") else { continue };
        if !name.text.starts_with(crate::text::is_word) {
            continue;
        }
        let body = next_at_depth(tokens, at + 2, &["{", ";"]).filter(|at| tokens[*at].text == "{");
        if let Some(body) = body {
            let last = tokens[closing(tokens, body)].line;
            found.push((name.text, tokens[at].line, last + 1 - tokens[at].line));
        }
    }
    found
}

/// What unfinished work and printing look like. Test code may print: it has to say what it skipped.
pub(crate) fn nothing_unfinished(file: &Source) -> Vec<String> {
    let tokens = file.tokens();
    let tests = test_lines(&tokens);
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let in_test = file.is_test_file() || tests.iter().any(|(a, b)| (*a..=*b).contains(&token.line));
        let is_macro = follows(&tokens, at + 1, &["!"]) && !follows(&tokens, at + 2, &["="]);
        let what = match token.text {
            "todo" | "unimplemented" if is_macro => "finish this, or leave it out",
            "dbg" if is_macro => "take the probe out again",
            "print" | "println" | "eprint" | "eprintln" if is_macro && !in_test => {
                "the library never prints; return it, count it, or report it"
            }
            "process" if follows(&tokens, at + 1, &[":", ":", "exit"]) => {
                "the library never exits; return an error"
            }
            _ => continue,
        };
        found.push(file.says(token.line, what));
    }
    found
}

/// A clock that somebody may set fires timers early, late, or all at once.
pub(crate) fn time_is_monotonic(file: &Source) -> Vec<String> {
    let wall = ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "gettimeofday"];
    let tokens = file.tokens();
    let found = tokens.iter().filter(|token| wall.contains(&token.text));
    found.map(|token| file.says(token.line, "use the shard's clock, which is monotonic")).collect()
}

/// `if let … && …` needs a newer compiler than the oldest supported one.
pub(crate) fn no_let_chains(file: &Source) -> Vec<String> {
    let tokens = file.tokens();
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let later = follows(&tokens, at, &["&", "&", "let"]);
        let first = (token.text == "if" || token.text == "while")
            && follows(&tokens, at + 1, &["let"])
            && condition_has_and(&tokens, at + 2);
        if later || first {
            found.push(file.says(
                token.line,
                "a let-chain needs Rust 1.88 and this crate promises 1.85; nest the `if`s or use `let … else`",
            ));
        }
    }
    found
}

/// Whether a `&&` stands outside of brackets between the `=` after `at` and the block.
fn condition_has_and(tokens: &[Token<'_>], at: usize) -> bool {
    let Some(mut next) = next_at_depth(tokens, at, &["="]) else { return false };
    while let Some(stop) = next_at_depth(tokens, next + 1, &["{", "&"]) {
        next = stop;
        if tokens[stop].text == "{" {
            if tokens[stop - 1].text != "unsafe" {
                return false;
            }
            next = closing(tokens, stop);
        } else if follows(tokens, stop, &["&", "&"]) && tokens[stop - 1].text != "=" {
            return true;
        }
    }
    false
}

/// For every text file: no tabs, nothing after the last word of a line.
pub(crate) fn no_stray_space(file: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (at, line) in file.text.split('\n').enumerate() {
        if line.contains('\t') {
            found.push(file.says(at + 1, "write spaces (or \\t in a literal) instead of the tab"));
        }
        if line.ends_with(char::is_whitespace) {
            found.push(file.says(at + 1, "take away the white space at the end of the line"));
        }
    }
    found
}
