#!/usr/bin/env bash
# Ten million calls of the C ABI in random order, in a release build.
#
# usage: scripts/fuzz_capi.sh [CALLS [SEED]]
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

export ANABRANCH_FUZZ_CALLS=${1:-10000000} ANABRANCH_FUZZ_SEED=${2:-1}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --features capi --test capi_fuzz -- --nocapture random_calls 2>&1 | tee "$log"
grep -q "$ANABRANCH_FUZZ_CALLS calls with seed" "$log" || fail "the calls were not all made"
