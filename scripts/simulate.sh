#!/usr/bin/env bash
# Scenarios of the runtime in the simulation, in release, on all processors.
#
# usage: scripts/simulate.sh hashes [SEEDS]     two processes run the same seeds of all scenarios (1000 of each unless
#                                               said otherwise); their logs must have the same hashes, byte for byte
#        scripts/simulate.sh sweep A..B [FLAG...]     looks for violations; further flags as in `simulate --help`
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage="scripts/simulate.sh hashes [SEEDS] | sweep A..B [FLAG...]"
[ $# -ge 1 ] || fail "usage: $usage"

# The variable would make every run the same one.
unset ANABRANCH_SIM_SEED
cargo build --release --all-features --example simulate
simulate=$target/release/examples/simulate

case $1 in
hashes)
    seeds=${2:-1000}
    [[ $seeds =~ ^[1-9][0-9]*$ ]] || fail "a number of seeds, not $seeds"
    first=$(mktemp) second=$(mktemp)
    trap 'rm -f "$first" "$second"' EXIT
    "$simulate" --seeds "0..$seeds" --hashes "$first" || fail "a violation in the first process"
    "$simulate" --seeds "0..$seeds" --hashes "$second" --quiet || fail "a violation in the second process"
    [ -s "$first" ] || fail "there are no hashes"
    cmp "$first" "$second" || fail "the same seeds made other runs"
    say "$(wc -l <"$first") runs were the same in two processes"
    ;;
sweep)
    [ $# -ge 2 ] || fail "usage: $usage"
    shift
    "$simulate" --seeds "$@" || fail "there were violations"
    ;;
*) fail "usage: $usage" ;;
esac
