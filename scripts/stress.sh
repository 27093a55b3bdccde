#!/usr/bin/env bash
# The scenarios of tests/stress.rs in release, on both of the system's backends, one after the other. Prints the
# seed, how far each one is, and the ledger at its end.
#
# usage: scripts/stress.sh [small|full]     default: full, some minutes
#        ANABRANCH_STRESS_SEED=NUMBER scripts/stress.sh     the choices of an earlier run
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

size=${1:-full}
case $size in
small | full) ;;
*) fail "there are small and full, not $size" ;;
esac
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true

# Both backends are chosen by the tests; the variable would turn one into the other.
unset ANABRANCH_BACKEND
export ANABRANCH_STRESS=$size
export ANABRANCH_STRESS_SEED=${ANABRANCH_STRESS_SEED:-$((RANDOM << 30 | RANDOM << 15 | RANDOM))}
say "seed $ANABRANCH_STRESS_SEED, size $size, $(ulimit -n) descriptors, $(uname -sr)"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --all-features --test stress --no-run
cargo test --release --all-features --test stress -- --nocapture --test-threads=1 2>&1 | tee "$log" ||
    fail "seed $ANABRANCH_STRESS_SEED, size $size"
grep -qE '^test result: ok\. [1-9]' "$log" || fail "no test ran"
if grep -q 'NOT COVERED' "$log"; then
    not_run "a part of it: $(grep -m1 'NOT COVERED' "$log")"
fi
say "all settled; seed $ANABRANCH_STRESS_SEED"
