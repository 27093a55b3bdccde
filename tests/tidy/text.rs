//! Reading Rust source just well enough for the rules: words and marks with their lines, and what belongs together.
//!
//! Comments are dropped and a literal is one token, so a rule never mistakes a sentence for code.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// A file of the repository, named by its path from the top, with `/` between the parts.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A word (identifier, number, lifetime), a literal (its quote alone) or one punctuation mark.
#[derive(Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    pub(crate) fn tokens(&self) -> Vec<Token<'_>> {
        tokens(&self.text)
    }

    /// A message that an editor can follow.
    pub(crate) fn says(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    /// The modules that lead to this file: `src/driver/sys/mod.rs` is `driver`, `sys`.
    pub(crate) fn modules(&self) -> Vec<&str> {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inside = inside.strip_suffix(".rs").unwrap_or(inside);
        inside.split('/').filter(|part| *part != "mod" && *part != "lib").collect()
    }

    /// Whether the whole file is test code by its name.
    pub(crate) fn is_test_file(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        self.path.starts_with("tests/")
            || name == "tests.rs"
            || name.ends_with("_tests.rs")
            || self.path.contains("/tests/")
    }
}

/// The files below `folder` of the repository whose names end with `ending`, sorted. Hidden folders and
/// build output are left out.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut open, mut found) = (vec![top.join(folder)], Vec::new());
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path: PathBuf = entry.expect("a folder of the repository can be listed").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    open.push(path);
                }
            } else if name.ends_with(ending) {
                let text =
                    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let inside = path.strip_prefix(top).expect("found below the top");
                let parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy()).collect();
                found.push(Source { path: parts.join("/"), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

enum Kind {
    Blank,
    Literal,
    Code,
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let (mut at, mut line, mut line_start, mut found) = (0, 1, 0, Vec::new());
    while at < source.len() {
        let (kind, length) = piece(&source[at..]);
        match kind {
            Kind::Blank => {}
            Kind::Literal => found.push(Token { text: "\"", line, column: at - line_start }),
            Kind::Code => found.push(Token { text: &source[at..at + length], line, column: at - line_start }),
        }
        for (offset, _) in source[at..at + length].match_indices('\n') {
            line += 1;
            line_start = at + offset + 1;
        }
        at += length;
    }
    found
}

/// What `rest` begins with, and how long that is in bytes. It is always asked at the start of a token.
fn piece(rest: &str) -> (Kind, usize) {
    let first = rest.chars().next().expect("not at the end");
    if rest.starts_with("//") {
        (Kind::Blank, rest.find('\n').unwrap_or(rest.len()))
    } else if rest.starts_with("/*") {
        (Kind::Blank, block_comment(rest))
    } else if let Some(length) = string(rest) {
        (Kind::Literal, length)
    } else if first == '\'' {
        quote(rest)
    } else if is_word(first) {
        (Kind::Code, rest.find(|c| !is_word(c)).unwrap_or(rest.len()))
    } else if first.is_ascii_punctuation() {
        (Kind::Code, 1)
    } else {
        (Kind::Blank, first.len_utf8())
    }
}

pub(crate) fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of a string literal of any kind, if `rest` begins with one.
fn string(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c| !matches!(c, 'b' | 'c' | 'r')).filter(|length| *length <= 2)?;
    let body = &rest[prefix..];
    if rest[..prefix].contains('r') {
        let hashes = body.find(|c| c != '#')?;
        let close = format!("\"{}", "#".repeat(hashes));
        let inside = body[hashes..].strip_prefix('"')?;
        return Some(inside.find(&close).map_or(rest.len(), |end| prefix + hashes + 1 + end + close.len()));
    }
    let mut escaped = false;
    for (at, c) in body.strip_prefix('"')?.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(prefix + 1 + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// A character literal or a lifetime.
fn quote(rest: &str) -> (Kind, usize) {
    let second = rest[1..].chars().next().unwrap_or('\n');
    if second == '\\' {
        let end = rest.char_indices().skip(3).find(|(_, c)| *c == '\'');
        return (Kind::Literal, end.map_or(rest.len(), |(at, _)| at + 1));
    }
    let after = 1 + second.len_utf8();
    if rest[1..].len() > second.len_utf8() && rest[after..].starts_with('\'') {
        return (Kind::Literal, after + 1);
    }
    (Kind::Code, 1 + rest[1..].find(|c| !is_word(c)).unwrap_or(rest.len() - 1))
}

/// Whether the tokens from `at` on are `words`, one after the other.
pub(crate) fn follows(tokens: &[Token<'_>], at: usize, words: &[&str]) -> bool {
    words.iter().enumerate().all(|(i, word)| tokens.get(at + i).is_some_and(|token| token.text == *word))
}

/// The index of the bracket that closes the one at `open`, or the last token.
pub(crate) fn closing(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len().saturating_sub(1)
}

/// From `at`, which is outside of any bracket that opens later: the next of `marks` at that depth.
pub(crate) fn next_at_depth(tokens: &[Token<'_>], mut at: usize, marks: &[&str]) -> Option<usize> {
    while at < tokens.len() {
        match tokens[at].text {
            mark if marks.contains(&mark) => return Some(at),
            "(" | "[" | "{" => at = closing(tokens, at),
            ")" | "]" | "}" => return None,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The index after the attributes that begin at `at`.
pub(crate) fn after_attributes(tokens: &[Token<'_>], mut at: usize) -> usize {
    while follows(tokens, at, &["#", "["]) {
        at = closing(tokens, at + 1) + 1;
    }
    at
}

/// First and last lines of the items that are compiled for tests only.
pub(crate) fn test_lines(tokens: &[Token<'_>]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let for_tests = follows(tokens, at, &["#", "[", "test", "]"])
            || follows(tokens, at, &["#", "[", "cfg", "(", "test"])
            || follows(tokens, at, &["#", "[", "cfg", "(", "all", "(", "test"]);
        if !for_tests {
            continue;
        }
        let item = after_attributes(tokens, at);
        if let Some(body) = next_at_depth(tokens, item, &["{", ";"]) {
            found.push((tokens[at].line, tokens[closing(tokens, body).max(body)].line));
        }
    }
    found
}

/// `*` in `pattern` stands for a part of one name, never for a `/`.
pub(crate) fn glob(pattern: &str, path: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == path };
    let middle = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    middle.is_some_and(|middle| !middle.is_empty() && !middle.contains('/'))
}
