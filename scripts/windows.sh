#!/usr/bin/env bash
# The tests of Windows, under Wine: built with mingw's linker, run by wine. All tests that compile there run there: the
# contract of the driver, behaviour, stress, the event facade with its traces, and the examples as processes. At the end
# stand the numbers, and what was left out and why. What Wine does in another way than Windows is left out by the tests that
# say so; nothing here speaks of speed.
#
# usage: scripts/windows.sh [CARGO TEST ARGUMENTS...]     default: --lib --tests
#        WINDOWS_TEST_SECONDS: how long each test program may take (300)
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

triple=x86_64-pc-windows-gnu
seconds=${WINDOWS_TEST_SECONDS:-300}
[ $# -gt 0 ] || set -- --lib --tests

need x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64-win32 || not_run "no mingw, whose linker this needs"
need wine wine wine64 || not_run "no wine"
[ -d "$(rustc --print sysroot)/lib/rustlib/$triple/lib" ] || timeout 180 rustup target add "$triple" >/dev/null 2>&1 ||
    not_run "no standard library for $triple, and rustup could not fetch it"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/wine-tests
mkdir -p "$cache"
export WINEPREFIX=$cache/prefix WINEARCH=win64 WINEDEBUG=${WINEDEBUG:--all,err+module}
export WINEDLLOVERRIDES='mscoree=;mshtml=;winemenubuilder.exe='
system=$WINEPREFIX/drive_c/windows/system32
if [ ! -f "$cache/ready" ]; then
    say "making a Wine prefix"
    rm -rf "$WINEPREFIX"
    timeout -k 5 300 wine wineboot -i >"$cache/wineboot.log" 2>&1 || true
    timeout 60 wineserver -w || not_run "Wine does not set itself up, see $cache/wineboot.log"
    # Programs of Rust ask this library for random bytes; older versions of Wine have none.
    if [ ! -e "$system/bcryptprimitives.dll" ]; then
        x86_64-w64-mingw32-gcc -O2 -shared -nostartfiles -Wl,-e,0 -o "$system/bcryptprimitives.dll" \
            -x c scripts/bcryptprimitives.c -ladvapi32
    fi
    touch "$cache/ready"
fi

# Wine's server ends when it has had nobody to serve for some seconds, and who comes just then fails before its program
# has begun ("wine client error: recvmsg", seen in 3 of 100 runs). So it stays until the end of this script.
timeout 60 wineserver -w || not_run "another program runs in the Wine prefix $WINEPREFIX"
wineserver -p
trap 'wineserver -k || true' EXIT

# A program that does not end is ended, and that is a failure (exit code 124).
cat >"$cache/runner" <<RUNNER
#!/bin/sh
timeout -k 5 $seconds wine "\$@"
code=\$?
[ \$code != 124 ] && [ \$code != 137 ] || echo "NO END within $seconds s, ended by force: \$1"
exit \$code
RUNNER
chmod +x "$cache/runner"
export ANABRANCH_TEST_WINE=1
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$cache/runner

options=(--target "$triple" --features futures-io)
cargo build "${options[@]}" --examples
log=$target/windows.log
say "running; everything that is said goes to $log"
code=0
cargo test "${options[@]}" --no-fail-fast "$@" -- --show-output >"$log" 2>&1 || code=$?

# The last result before the next program is that of the program; tests may run others.
sums=$(awk '
    function tell() {
        if (name == "") return
        programs += 1
        if (result == "") { lost += 1; result = "NO RESULT" }
        split(result, words, /[ ;]+/)
        for (i in words) if (words[i] ~ /^(passed|failed|ignored)$/) all[words[i]] += words[i - 1]
        if (result !~ / 0 passed; 0 failed; 0 ignored/) print "  " name ": " result
    }
    /^     Running / { tell(); name = $2 == "unittests" ? $3 : $2; result = "" }
    /^test result: / { result = substr($0, 14) }
    END {
        tell()
        printf "%d programs, %d without a result; %d tests passed, %d failed, %d ignored\n", programs, lost,
            all["passed"], all["failed"], all["ignored"]
    }' "$log")
head -n -1 <<<"$sums"
grep -aE '^test .* FAILED$|^NO END|^error|^  process didn' "$log" || true
say "not covered by tests that ran"
{ grep -aoh 'NOT COVERED: .*' "$log" || true; } | sort -u
say "left out"
grep -aE '^test .* \.\.\. ignored, ' "$log" | sed 's/^test \(.*\) \.\.\. ignored, \(.*\)/  \1: \2/' || true
unsaid=$(scripts/windows_left_out.awk tests/*.rs tests/*/*.rs)
echo "$unsaid"

say "$(wine --version 2>/dev/null): $(tail -1 <<<"$sums")"
[ "$code" = 0 ] || fail "cargo test ended with $code, see $log"
grep -q ' 0 without a result' <<<"$sums" || fail "a program ended without a result, see $log"
! grep -q 'NO REASON' <<<"$unsaid" || fail "something is left out without a reason"
