#!/usr/bin/env bash
# Locked-down hosts: what a server becomes under filters that refuse or kill, with little lockable memory, and right after
# a process that held all of it. One table at the end: the backend, why, how many steps the ladder had, and the seconds
# until the first echo. Then the reference profile docs/seccomp.json: it is loaded as a filter, and under it run
# the echo example on both backends and hardened, the doctor, and the contract of the driver.
#
# usage: scripts/restricted.sh     as root for the rows about locked memory
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ "$(uname -s)" = Linux ] || not_run "seccomp is a facility of Linux"
need cc gcc || not_run "no C compiler"
build_echo
cargo build --release --all-features --example doctor
compile blockring
blockring=$compiled
code=0
"$blockring" EPERM true || code=$?
[ "$code" = 0 ] || not_run "this machine installs no seccomp filter"

# Other users may not look where the build is.
place=$(mktemp -d)
log=$(mktemp)
trap 'rm -rf "$place" "$log"' EXIT
chmod 755 "$place"
install -m 755 "$echo_example" "$place/echo"
install -m 755 "$target/release/examples/doctor" "$place/doctor"
has_ring=0
serve 5000 "$place/echo" --backend uring && has_ring=1

table=()
add_row() { table+=("$(printf '%-46s %-10s %7s  %s' "$@")"); }

# row NAME EXPECTED WORDS COMMAND... : the command serves within 2.5 s on the expected backend ("any" if it depends on
# the machine), its reason has the words, and its ledger is settled.
row() {
    local name=$1 expected=$2 words=$3 backend reason steps
    shift 3
    serve 2500 "$@" || { cat "$served"; fail "$name: it does not serve within 2.5 s"; }
    backend=$(sed -n 's/^backend *//p' "$served") reason=$(sed -n 's/^reason *//p' "$served")
    steps=$(sed -n 's/^ladder *//p' "$served" | awk -F'; ' '{ print NF }')
    [ "$expected" = any ] || [ "$backend" = "$expected" ] || fail "$name: $expected was expected: $(cat "$served")"
    [[ $reason == *$words* ]] && [ "$steps" -gt 0 ] || fail "$name: the report does not tell: $(cat "$served")"
    grep -q '^ledger ' "$served" || fail "$name: echo printed no ledger at its end"
    add_row "$name" "$backend" "$(seconds "$waited_ms")" "$steps steps; ${reason:0:130}"
}

seconds() { printf '%d.%02d' $(($1 / 1000)) $(($1 % 1000 / 10)); }

refused() {
    local how
    for how in EPERM ENOSYS ENOMEM; do
        row "filter: $how" readiness "refused with $how" "$blockring" "$how" "$place/echo" --backend auto
    done
    # Nobody can find out about such a filter and live, so the setting is there.
    ! serve 1000 "$blockring" KILL "$place/echo" --backend auto || fail "a filter that kills has not killed"
    [ "$ended" = 159 ] || fail "under a filter that kills, echo ended with $ended and not by SIGSYS"
    add_row "filter: kill" "-" "-" "ended by SIGSYS (159)"
    export ANABRANCH_BACKEND=readiness
    row "filter: kill, ANABRANCH_BACKEND=readiness" readiness ANABRANCH_BACKEND "$blockring" KILL "$place/echo"
    unset ANABRANCH_BACKEND
}

hardened() {
    [ "$has_ring" = 1 ] || { say "NOT COVERED: a hardened ring, there is none"; return; }
    row "hardened" uring "" "$place/echo" --hardened
    row "hardened, restrictions refused" readiness "Config::hardened" "$blockring" RESTRICT "$place/echo" --hardened
    row "not hardened, restrictions refused" uring "" "$blockring" RESTRICT "$place/echo"
    ! serve 1000 "$blockring" RESTRICT "$place/echo" --hardened --backend uring || fail "a ring that is not restricted serves"
    grep -q 'Config::hardened' "$served" || { cat "$served"; fail "the error does not say why"; }
    add_row "hardened, refused, --backend uring" "-" "-" "an error: $(grep -o 'Config::hardened[^"]*' "$served" | head -1)"
}

# An ordinary user, with so much lockable memory in KiB.
uid=65534
limit() { as_user=(prlimit "--memlock=$(($1 * 1024)):$(($1 * 1024))" setpriv "--reuid=$uid" "--regid=$uid" --clear-groups); }

# locked_memory KIB SHARDS: so many shards hold all of it; then the process is killed and started anew, three times.
locked_memory() {
    local kib=$1 shards=$2 again
    limit "$kib"
    [ "$("${as_user[@]}" bash -c 'echo "$(id -u) $(ulimit -l)"')" = "$uid $kib" ] || fail "the limit is not in force"
    row "locked memory $kib KiB" any "" "${as_user[@]}" "$place/echo"
    [ "$kib" -gt 0 ] && [ "$has_ring" = 1 ] || return 0
    start_serving 2500 "${as_user[@]}" "$place/echo" --shards "$shards" || { cat "$served"; fail "it does not serve"; }
    if "${as_user[@]}" "$place/doctor" --probe >"$log" && ! grep -q 'Cannot allocate memory' "$log"; then
        kill "$server"
        fail "$shards shards do not hold all of $kib KiB"
    fi
    for again in 1 2 3; do
        kill -KILL "$server" && wait "$server" 2>/dev/null || true
        start_serving 2500 "${as_user[@]}" "$place/echo" --shards "$shards" || { cat "$served"; fail "restart $again"; }
        add_row "locked memory $kib KiB, restart $again" "$(sed -n 's/^backend *//p' "$served")" "$(seconds "$waited_ms")" \
            "$(sed -n 's/^ladder *//p' "$served" | awk -F'; ' '{ print NF }') steps; $(sed -n 's/^reason *//p' "$served" | cut -c 1-130)"
    done
    kill "$server" && wait "$server" 2>/dev/null || true
    # The next row begins with all of it.
    sleep 2.5
}

with_little_memory() {
    if [ "$(id -u)" != 0 ] || ! need setpriv util-linux || ! need prlimit util-linux; then
        say "NOT COVERED: little lockable memory, only root can become another user"
        return
    fi
    locked_memory 0 1
    locked_memory 64 2
    # As much as the first ring that is tried, and nothing for its buffers.
    limit 132
    row "locked memory 132 KiB" "$([ "$has_ring" = 1 ] && echo uring || echo readiness)" "" "${as_user[@]}" "$place/echo"
    sleep 2.5
    locked_memory 512 6
    locked_memory 8192 64
}

# What the profile allows, as numbers of this processor.
profile() {
    local include=$place/include name
    mkdir -p "$include"
    for name in $(awk '/"names"/ { on = 1; next } /\]/ { on = 0 } on' docs/seccomp.json | tr -d '", '); do
        printf '#ifdef SYS_%s\nSYS_%s,\n#endif\n' "$name" "$name"
    done >"$include/allowed.inc"
    compile allowlist -I "$include"
    allowlist=$compiled
    "$allowlist" true || fail "nothing runs under the profile"
    ! "$allowlist" unshare true 2>/dev/null || fail "the profile refuses nothing"
}

under_profile() {
    [ "$has_ring" = 0 ] || row "docs/seccomp.json" uring "" "$allowlist" "$place/echo"
    [ "$has_ring" = 0 ] || row "docs/seccomp.json, hardened" uring "" "$allowlist" "$place/echo" --hardened --shards 2
    row "docs/seccomp.json, readiness" readiness "" "$allowlist" "$place/echo" --backend readiness
    "$allowlist" "$place/doctor" --json >"$log" || { cat "$log"; fail "the doctor does not work under the profile"; }
    local suite
    suite=$(cargo test --all-features --no-run --test driver_contract --test stream 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
    [ -n "$suite" ] || fail "cargo named no tests"
    local program ring
    for program in $suite; do
        for ring in readiness "uring hardened" "uring without anything"; do
            [ "$has_ring" = 1 ] || [ "$ring" = readiness ] || continue
            ANABRANCH_TEST_BACKEND=$ring "$allowlist" "$program" --show-output >"$log" 2>&1 || { tail -n 100 "$log"; fail "$program under the profile"; }
            say "$(basename "$program") on $ring: $(grep -cx "covered: $ring" "$log") tests; $(grep '^test result' "$log")"
            grep -qx "covered: $ring" "$log" || fail "no test ran"
        done
    done
}

refused
hardened
with_little_memory
profile
under_profile
printf '\n%-46s %-10s %7s  %s\n' restriction backend seconds 'ladder and reason'
printf '%s\n' "${table[@]}"
rm -f "$served"
