#!/usr/bin/env bash
# Another kernel: which backend is chosen there, the contract of the driver on all of them, and the demo. All three run
# in a guest; KERNEL_RUN is the command that starts one. It gets a program with its arguments, boots a kernel, runs the
# program there as root with the loopback interface up, prints its output and ends with its exit code, as virtme-ng does.
#
# usage: KERNEL_RUN="vng --run v6.1 --" scripts/old_kernel.sh uring|readiness [contract suite's arguments...]
#        the backend that must be chosen there; the further arguments go to the contract suite, say a part of a name
#
# A guest that is emulated is slow: expect minutes.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

expected=${1:-}
case $expected in uring | readiness) shift ;; *) fail "usage: KERNEL_RUN=COMMAND scripts/old_kernel.sh uring|readiness [ARGUMENTS...]" ;; esac
[ -n "${KERNEL_RUN:-}" ] || not_run "KERNEL_RUN is not set: no command that boots another kernel"
read -ra guest <<<"$KERNEL_RUN"
command -v "${guest[0]}" >/dev/null || not_run "there is no ${guest[0]}"

cargo build --all-features --example doctor --example demo
suite=$(cargo test --all-features --no-run --test driver_contract 2>&1 | sed -n 's/.*(\(.*driver_contract-[0-9a-f]*\))$/\1/p' | tail -1)
[ -x "$suite" ] || fail "cargo did not name the contract suite"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# in_guest PROGRAM ARGUMENTS... : its output is in `$log`.
in_guest() { "${guest[@]}" "$@" >"$log" 2>&1; }

say "what is chosen"
in_guest "$target/debug/examples/doctor" || { cat "$log"; not_run "no guest, or the doctor does not work in it"; }
sed -n '/^backend /,/^emulates /p' "$log"
grep 'kernel: ' "$log"
grep -q "^backend  $expected" "$log" || { cat "$log"; fail "$expected is not what is chosen"; }

say "the contract"
in_guest "$suite" --show-output "$@" || { tail -n 200 "$log"; fail "the contract does not hold"; }
grep -E '^test result:|NOT COVERED' "$log" | sort | uniq -c
for ring in readiness uring "uring hardened" "uring without anything"; do
    printf '%6d tests on %s\n' "$(grep -cx "covered: $ring" "$log" || true)" "$ring"
done
grep -qx 'covered: readiness' "$log" || fail "no test ran"
[ "$expected" = readiness ] || grep -qx 'covered: uring' "$log" || fail "no test ran on a ring"

say "the demo"
in_guest "$target/debug/examples/demo" --secs 6 --conns 16 --chart /dev/null || { tail -n 50 "$log"; fail "the demo does not work"; }
grep -a '^|' "$log"
grep -aqE "^\| +$expected " "$log" || fail "the demo did not run on $expected"
