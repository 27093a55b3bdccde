#!/usr/bin/awk -f
# What the tests leave out on Windows, with the reason that stands above it: `// Not on Windows: …` above a
# `#[cfg(unix)]` of a test or a module of tests, or above the `#![cfg(unix)]` of a file. One without a reason says so.
FNR == 1 { reason = ""; gated = 0; test = 0; open = 0 }
/^\/\/ Not on Windows: / { reason = substr($0, 20); open = 1; next }
open && /^\/\/ / { reason = reason " " substr($0, 4); next }
{ open = 0 }
/^#!\[cfg\(unix\)\]/ { tell(FILENAME ": the whole file"); next }
/^#\[cfg\(unix\)\]/ { gated = 1; next }
/^#\[test\]/ { test = 1; next }
/^#\[/ || /^\/\/\// { next }
gated && test && /^fn / { sub(/\(.*/, "", $2); tell(FILENAME ": " $2) }
gated && /^mod / && FILENAME !~ /\/mod\.rs$/ { sub(/;.*/, "", $2); tell(FILENAME ": the tests of " $2) }
{ gated = 0; test = 0; if (!/^$/) reason = "" }

function tell(what) {
    print "  " what ": " (reason == "" ? "NO REASON" : reason)
    reason = ""; gated = 0; test = 0
}
