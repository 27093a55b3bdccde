#!/usr/bin/env bash
# Ten million random and damaged streams for each codec, and as many runs of random calls of Pull, in a release build.
#
# usage: scripts/fuzz_codecs.sh [EXECUTIONS [SEED [PART OF A TEST'S NAME]]]
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

export ANABRANCH_FUZZ_EXECUTIONS=${1:-10000000} ANABRANCH_FUZZ_SEED=${2:-1}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --test codec_fuzz -- --nocapture "${3:-random_}" 2>&1 | tee "$log"
grep -q "$ANABRANCH_FUZZ_EXECUTIONS executions with seed" "$log" || fail "the executions were not all made"
