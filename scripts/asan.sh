#!/usr/bin/env bash
# The tests under AddressSanitizer and LeakSanitizer, against the real kernel. Needs a nightly toolchain.
#
# usage: scripts/asan.sh [CARGO TEST ARGUMENTS...]     default: --lib --test driver_contract --test cancel --test close
#        (of --test stress not the tests that take memory away or weigh it: the sanitizer itself needs much)
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -gt 0 ] || set -- --lib --test driver_contract --test cancel --test close
rustc +nightly -V >/dev/null 2>&1 || not_run "no nightly toolchain (rustup toolchain install nightly)"
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
case $host in
x86_64-unknown-linux-gnu | aarch64-unknown-linux-gnu) ;;
*) not_run "AddressSanitizer is not tried on $host" ;;
esac

export RUSTFLAGS="-Zsanitizer=address ${RUSTFLAGS:-}"
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1}

# A checker that finds nothing must be one that can find something.
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat >"$place/late.rs" <<'R'
fn main() {
    let late = Box::into_raw(Box::new(std::hint::black_box(1u8)));
    unsafe { drop(Box::from_raw(late)) };
    std::process::exit(unsafe { late.read_volatile() } as i32);
}
R
rustc +nightly -Zsanitizer=address --target "$host" -o "$place/late" "$place/late.rs" ||
    not_run "this nightly cannot build with AddressSanitizer"
"$place/late" >"$place/log" 2>&1 && fail "AddressSanitizer missed a use after free"
grep -q heap-use-after-free "$place/log" || { cat "$place/log"; not_run "AddressSanitizer does not work on this machine"; }
say "AddressSanitizer works: it found the use after free that was put before it"

# The target is named so that build scripts and macros are built without the sanitizer.
cargo +nightly test --target "$host" --target-dir "$target/asan" "$@" 2>&1 | tee "$place/log"
grep -qE '^test result: ok\. [1-9]' "$place/log" || fail "no test ran"
