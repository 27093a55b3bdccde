#!/usr/bin/env bash
# The checks that take longer than .ci/run has time for. Each script says itself what it did not cover; one that could not
# run is told as such and never counts as passed. The last line is the sum, as that of .ci/run.
#
# usage: scripts/nightly.sh [PART OF A STEP'S NAME]
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

only=${1:-}
summary=() passed=0 failed=0 skipped=0

# step SECONDS COMMAND... : one that does not end in time is ended, and has failed.
step() {
    local seconds=$1 code=0 start=$SECONDS result
    shift
    [[ $* == *"$only"* ]] || return 0
    printf '\n==== %s\n' "$*"
    timeout --kill-after=10 "$seconds" "$@" || code=$?
    case $code in
    0) passed=$((passed + 1)) result=passed ;;
    75) skipped=$((skipped + 1)) result="NOT RUN" ;;
    124 | 137) failed=$((failed + 1)) result="FAILED (no end within $seconds s)" ;;
    *) failed=$((failed + 1)) result="FAILED (exit code $code)" ;;
    esac
    summary+=("$(printf '%5d s  %-10s  %s' $((SECONDS - start)) "$result" "$*")")
}

step 3600 scripts/windows.sh
step 3600 scripts/stress.sh
step 3600 scripts/mutants.sh
step 3600 scripts/fuzz_capi.sh
step 3600 scripts/fuzz_codecs.sh

printf '\n==== summary\n'
printf '%s\n' "${summary[@]}"
printf '%d passed, %d failed, %d not run\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ]
