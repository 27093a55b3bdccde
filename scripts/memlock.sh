#!/usr/bin/env bash
# An ordinary user with little lockable memory: 64 KiB (the limit of Linux before 5.16 and of many services) and
# 8 MiB (the limit since). The echo example has to serve within 2.5 s, on whichever backend it can get.
#
# usage: scripts/memlock.sh     as root
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

uid=65534
[ "$(id -u)" = 0 ] || not_run "only root can become another user"
need setpriv util-linux && need prlimit util-linux || not_run "setpriv or prlimit is missing"
build_echo

# The build folder may lie where the other user may not look.
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
chmod 755 "$place"
install -m 755 "$echo_example" "$place/echo"

for kib in 64 8192; do
    bytes=$((kib * 1024))
    say "uid $uid, RLIMIT_MEMLOCK $kib KiB"
    as_user=(setpriv "--reuid=$uid" "--regid=$uid" --clear-groups)
    limited=(prlimit "--memlock=$bytes:$bytes" "${as_user[@]}")
    seen=$("${limited[@]}" bash -c 'echo "$(id -u) $(ulimit -l)"')
    [ "$seen" = "$uid $kib" ] || fail "the limit is not in force: user and KiB are $seen"
    cd "$place"
    serve 2500 "${limited[@]}" "$place/echo" --backend auto || { cat "$served"; fail "echo does not serve within 2.5 s"; }
    cat "$served"
    grep -q '^ledger ' "$served" || fail "echo printed no ledger at its end"
    [ -s "$served" ] || fail "echo printed no report of its backend"
    cd "$OLDPWD"
done
rm -f "$served"
