#!/usr/bin/env bash
# The memory rules of buffers, slots and the scripted backend under Miri. It has no io_uring and no sockets, so
# only these tests are given to it. Needs a nightly toolchain; fetches the component when it is missing.
#
# usage: scripts/miri.sh [TEST NAME FILTERS...]     default: buf:: driver::slot driver::fd driver::tests
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -gt 0 ] || set -- buf:: driver::slot driver::fd driver::tests
rustc +nightly -V >/dev/null 2>&1 || not_run "no nightly toolchain (rustup toolchain install nightly)"

has_miri() { cargo +nightly miri --version >/dev/null 2>&1; }
from_rustup() { timeout 180 rustup component add --toolchain nightly "$@" >/dev/null 2>&1; }
has_miri || from_rustup miri || true
has_miri || not_run "the nightly toolchain has no miri component, and rustup could not fetch it"

# Miri interprets the standard library too, so it needs its source.
library=$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library

# Debian's rust-src of the same minor version, from any of its suites, unpacked without being installed.
from_debian() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/rust-src version archive package suite
    version=$(rustc +nightly -vV | sed -n 's/^release: \([0-9]*\.[0-9]*\)\..*/\1/p')
    library=$cache/$version/library
    [ ! -f "$library/Cargo.lock" ] || return 0
    archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | awk '/\/debian\/?$/ && !found++')
    [ -n "$archive" ] || return 1
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
    for suite in trixie trixie-backports forky sid; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main"
    done >"$cache/apt/sources.list"
    local own=(-o Dir::Etc::sourcelist="$cache/apt/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root
        -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt" -o Acquire::Languages=none)
    timeout 240 apt-get "${own[@]}" update >/dev/null 2>&1 || true
    package=$(apt-cache "${own[@]}" madison rust-src | awk -v v="$version." 'index($3, v) == 1 && !found++ { print $1 "=" $3 }')
    [ -n "$package" ] || return 1
    (cd "$cache" && apt-get "${own[@]}" download "$package" >/dev/null 2>&1 && dpkg-deb -x rust-src_*.deb unpacked) || return 1
    rm -rf "${cache:?}/$version"
    mv "$cache"/unpacked/usr/src/rustc-* "$cache/$version"
    rm -rf "$cache"/rust-src_*.deb "$cache/unpacked" "$cache/apt"
    [ -f "$library/Cargo.lock" ]
}

if [ ! -f "$library/Cargo.lock" ]; then
    from_rustup rust-src || { say "rustup has no rust-src; asking the Debian archive" && from_debian; } ||
        not_run "no source of the standard library for $(rustc +nightly -V)"
fi
build=$target/miri
case $library in
"$(rustc +nightly --print sysroot)"/*) ;;
*) export MIRI_LIB_SRC=$library build=$build-debian ;; # cargo does not see that the standard library is another
esac
cargo +nightly miri setup || not_run "Miri's standard library cannot be built with this source"

# Property tests read the clock and their folder.
export MIRIFLAGS=${MIRIFLAGS:--Zmiri-disable-isolation}
export PROPTEST_CASES=${PROPTEST_CASES:-3}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo +nightly miri test --target-dir "$build" --lib -- "$@" 2>&1 | tee "$log"
grep -qE '^test result: ok\. [1-9]' "$log" || fail "no test ran: nothing is called $*"
