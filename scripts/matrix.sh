#!/usr/bin/env bash
# io_uring as older kernels have it: the contract of the driver and the streams, in a process of its own for each
# capability that is masked off, for all of them at once, and for a hardened ring. A table at the end says for each how
# many tests there were, and how often one ran on that ring.
#
# usage: scripts/matrix.sh [CARGO TEST TARGETS...]     default: --test driver_contract --test stream
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(--test driver_contract --test stream)

[ "$(uname -s)" = Linux ] || not_run "io_uring is a facility of Linux"
cargo test --all-features --no-run "${tests[@]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# One row of the table, from what the tests printed.
row() {
    local passed failed ran
    passed=$(awk '/^test result:/ { sum += $4 } END { print sum + 0 }' "$log")
    failed=$(awk '/^test result:/ { sum += $6 } END { print sum + 0 }' "$log")
    ran=$(grep -cx "covered: $1" "$log" || true)
    printf '%-44s %7s %7s %12s\n' "$1" "$passed" "$failed" "$ran"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ] && [ "$ran" -gt 0 ]
}

# The names of the capabilities, as reports have them.
capabilities=$(sed -n 's/^ *Capability::[A-Za-z]* => "\([a-z-]*\)",$/\1/p' src/report.rs)
count=$(sed -n 's/.*ALL: \[Capability; \([0-9]*\)\].*/\1/p' src/report.rs)
[ "$(wc -w <<<"$capabilities")" = "$count" ] || fail "src/report.rs has $count capabilities, this script found others: $capabilities"

variants=(uring)
for capability in $capabilities; do variants+=("uring without $capability"); done
variants+=("uring without anything" "uring hardened")

table=() code=0
for variant in "${variants[@]}"; do
    ANABRANCH_TEST_BACKEND=$variant cargo test --no-fail-fast --all-features "${tests[@]}" -- --show-output >"$log" 2>&1 || {
        code=1
        grep -E '^test .*FAILED|panicked|FAILED on backend' "$log" || tail -n 50 "$log"
    }
    if grep -q 'NOT COVERED: io_uring and' "$log"; then not_run "this machine has no io_uring"; fi
    # `uring` is the name of a kind, too; its variants are in the rows below.
    table+=("$(row "$variant")") || code=1
done
printf '%-44s %7s %7s %12s\n' ring passed failed 'ran on it'
printf '%s\n' "${table[@]}"
[ "$code" = 0 ] || fail "not every ring kept the contract"
