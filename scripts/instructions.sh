#!/usr/bin/env bash
# User-space instructions of the server per message, counted by callgrind, so that the figure does not depend on what
# else the machine does. Client and server share one thread (benches/instructions.rs), the client is left out of the
# count, and of two runs of which one has twice the messages only the difference counts, so that neither set-up nor
# end matter. The kernel is not counted.
#
# usage: scripts/instructions.sh [--top] [--messages N] [--connections N] [--bytes N] [SURFACE@BACKEND...]
#        --top: also the 15 functions with most instructions of their own, per message
#        default: 20000 messages, 100 connections, 32 bytes; completion and async on uring and readiness; a backend is uring, hardened or readiness
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

top=0 messages=20000 connections=100 bytes=32 cells=()
while [ $# -gt 0 ]; do
    case $1 in
    --top) top=1 ;;
    --messages) messages=$2 && shift ;;
    --connections) connections=$2 && shift ;;
    --bytes) bytes=$2 && shift ;;
    *@*) cells+=("$1") ;;
    *) fail "usage: scripts/instructions.sh [--top] [--messages N] [--connections N] [--bytes N] [SURFACE@BACKEND...]" ;;
    esac
    shift
done
[ ${#cells[@]} -gt 0 ] || cells=(completion@uring async@uring completion@readiness async@readiness)

need valgrind || not_run "valgrind is missing"
built=$(cargo bench --no-run --bench instructions 2>&1) || { echo "$built"; fail "the workload does not build"; }
program=$(sed -n 's/.*Executable.*(\(.*\))$/\1/p' <<<"$built" | tail -1)
[ -x "$program" ] || fail "cargo did not name the program it built"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# count FILE SURFACE BACKEND ROUNDS: the instructions of one run.
count() {
    valgrind --tool=callgrind --callgrind-out-file="$1" --toggle-collect='instructions::client_*' --collect-atstart=yes \
        "$program" --surface "$2" --backend "$3" --rounds "$4" --connections "$connections" --bytes "$bytes" \
        >"$1.log" 2>&1 || { cat "$1.log" >&2; return 1; }
    sed -n 's/^\(totals\|summary\): \([0-9]*\).*/\2/p' "$1" | tail -1
}

rounds=$((messages / connections))
[ "$rounds" -gt 0 ] || fail "fewer messages than connections"
printf '%-16s %-10s %24s\n' surface backend "instructions per message"
for cell in "${cells[@]}"; do
    surface=${cell%@*} backend=${cell#*@}
    if ! once=$(count "$place/once" "$surface" "$backend" "$rounds") ||
        ! twice=$(count "$place/twice" "$surface" "$backend" $((2 * rounds))); then
        printf '%-16s %-10s %24s\n' "$surface" "$backend" "did not run"
        continue
    fi
    printf '%-16s %-10s %24d\n' "$surface" "$backend" $(((twice - once) / (rounds * connections)))
    if [ "$top" = 1 ]; then
        for run in once twice; do
            # "1,234 ( 5.6%)  file:function [object]"; what was inlined counts for the function it is in.
            callgrind_annotate --auto=no --tree=none --threshold=100 "$place/$run" 2>/dev/null |
                sed -n 's/^ *\([0-9][0-9,]*\) ([^)]*) *[^ :]*:\(.*\)$/\1 \2/p' | sed 's/ \[[^]]*\]$//' >"$place/$run.list"
        done
        awk -v n=$((rounds * connections)) '
            { count = $1; gsub(",", "", count); $1 = "" }
            FILENAME ~ /once.list$/ { first[$0] += count; next }
            { second[$0] += count }
            END { for (name in second) printf "%10.1f %s\n", (second[name] - first[name]) / n, name }
        ' "$place/once.list" "$place/twice.list" | sort -rn >"$place/top"
        sed 15q "$place/top"
    fi
done
