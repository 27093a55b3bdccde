#!/usr/bin/env bash
# What happens where io_uring is forbidden: the tests with its system calls refused as container profiles and
# old kernels refuse them, and the proof that ANABRANCH_BACKEND=readiness makes none of these calls at all. What a server
# becomes there is in scripts/restricted.sh.
#
# usage: scripts/blocked.sh [CARGO TEST TARGETS...]     default: every file of tests/ that opens a ring, refused with
#                                                       EPERM; where ENOSYS could tell another story, that too
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tests=("$@")
if [ ${#tests[@]} = 0 ]; then
    for file in tests/*.rs; do
        name=$(basename "$file" .rs)
        # These make no system call that could be refused.
        case $name in
        tidy | loom | sim | sim_regressions | simulate | replicated_counter | stress) ;;
        *) tests+=(--test "$name") ;;
        esac
    done
fi

[ "$(uname -s)" = Linux ] || not_run "seccomp is a facility of Linux"
need cc gcc || not_run "no C compiler for scripts/blockring.c"
compile blockring
blockring=$compiled
code=0
"$blockring" EPERM true || code=$?
[ "$code" = 0 ] || not_run "this machine installs no seccomp filter"

cargo test --all-features --no-run "${tests[@]}"
for error in EPERM ENOSYS; do
    [ "$error" = EPERM ] || [ $# -gt 0 ] || tests=(--test config --test driver_contract --test stream)
    say "tests with io_uring refused: $error"
    log=$(mktemp)
    "$blockring" "$error" cargo test --all-features "${tests[@]}" -- --show-output 2>&1 | tee "$log" |
        grep -E '^test |^ +Running |ledger: |NOT COVERED|panicked' || { tail -n 200 "$log"; fail "the tests under $error"; }
    grep -qE '^test result: ok\. [1-9]' "$log" || fail "no test ran under $error"
    rm -f "$log"
done

build_echo
export ANABRANCH_BACKEND=readiness
need strace || not_run "strace is missing (the checks above passed)"
# -D: the server is our child and strace stands aside, so that a signal reaches the server.
calls=$(mktemp)
traced=(strace -D -f -o "$calls" -e trace=io_uring_setup,io_uring_enter,io_uring_register)
serve 5000 "${traced[@]}" "$echo_example" || { cat "$served"; fail "echo does not serve under strace"; }
sleep 0.3
count=$(grep -c io_uring_ "$calls" || true)
say "io_uring calls with ANABRANCH_BACKEND=readiness: $count"
[ "$count" = 0 ] || { head "$calls"; fail "there must be none"; }

# The same count must be able to be another one.
unset ANABRANCH_BACKEND
if serve 5000 "${traced[@]}" "$echo_example" --backend uring; then
    sleep 0.3
    count=$(grep -c io_uring_ "$calls" || true)
    say "io_uring calls with --backend uring, for comparison: $count"
    [ "$count" -gt 0 ] || fail "the trace does not see io_uring calls, so the zero above proves nothing"
else
    cat "$served"
    not_run "this machine has no io_uring, so the trace could not be shown to see its calls (the checks above passed)"
fi
rm -f "$calls" "$served"
