#!/usr/bin/env bash
# Does the simulation find bugs? Each patch of tests/mutants/ puts one into the runtime; the sweep must find it. The
# patches are applied to a copy of the repository, one at a time, and never to the repository itself.
#
# usage: scripts/mutants.sh [--seeds N] [NAME...]     default: 10000 seeds, every patch; some minutes each at worst
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

seeds=10000
if [ "${1:-}" = --seeds ]; then
    seeds=$2
    shift 2
fi
names=("$@")
if [ ${#names[@]} = 0 ]; then
    for patch in tests/mutants/*.patch; do
        names+=("$(basename "$patch" .patch)")
    done
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
for patch in tests/mutants/*.patch; do
    (cd "$copy" && patch -p1 --quiet --dry-run <"$OLDPWD/$patch") || fail "$patch does not apply any more; write it anew"
done
# Kept apart from the builds of the repository, and kept, so that each mutant compiles the library alone.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/mutants
sweep() {
    (cd "$copy" && cargo build --release --quiet --features sim --example simulate) || return 2
    "$CARGO_TARGET_DIR/release/examples/simulate" --scenario all --seeds "0..$seeds" --expect-violation --fail-fast --quiet
}

missed=()
for name in "${names[@]}"; do
    patch=$PWD/tests/mutants/$name.patch
    [ -f "$patch" ] || fail "there is no $patch"
    say "$name: $(head -1 "$patch")"
    (cd "$copy" && patch -p1 --quiet <"$patch")
    if sweep >"$copy/found.txt" 2>&1; then
        grep -m1 -E 'needed|VIOLATION' "$copy/found.txt" || true
    else
        tail -5 "$copy/found.txt"
        missed+=("$name")
    fi
    (cd "$copy" && patch -p1 --quiet --reverse <"$patch")
done
say "${#names[@]} mutants, $((${#names[@]} - ${#missed[@]})) found"
[ ${#missed[@]} = 0 ] || fail "not found within $seeds seeds: ${missed[*]}"
