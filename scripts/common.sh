# Shared by the checks in this folder; sourced, not run. It goes to the top of the repository.
# shellcheck shell=bash

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}

say() { printf -- '-- %s\n' "$*"; }

# A check that cannot run is never a check that passed: exit code 75 is "skipped".
not_run() {
    printf '\n****************************************\nNOT RUN: %s\n****************************************\n' "$*" >&2
    exit 75
}

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

# A program of the Debian archive, installed when missing and when this user may.
need() {
    local program=$1 package=${2:-$1}
    command -v "$program" >/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    { apt-get install -y -q "$package" || { apt-get update -q && apt-get install -y -q "$package"; }; } >/dev/null 2>&1
    command -v "$program" >/dev/null
}

# The echo example, built for release. Its path is in `echo_example`.
build_echo() {
    [ -f examples/echo.rs ] || not_run "examples/echo.rs is missing"
    cargo build --release --all-features --example echo
    echo_example=$target/release/examples/echo
}

# A TCP port of the loopback address where nobody listens at the moment.
free_port() {
    local port
    while :; do
        port=$((10000 + RANDOM % 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# Whether the server at the port sends back what it gets, tried until so many milliseconds have passed.
serves_within() {
    local port=$1 until_ms=$(($(date +%s%3N) + $2))
    while [ "$(date +%s%3N)" -lt "$until_ms" ]; do
        if [ "$(timeout 1 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port && printf ping >&3 && head -c 4 <&3" 2>/dev/null)" = ping ]; then
            return 0
        fi
        sleep 0.05
    done
    return 1
}

# serve MS COMMAND... : starts the echo command with an address of its own, asks it once, ends it. What the
# server printed is in the file `$served`, how long the first echo took in `$waited_ms`, its exit code in `$ended`.
serve() {
    local port server ok=0
    start_serving "$@" || ok=1
    kill "$server" 2>/dev/null || ok=1
    ended=0
    wait "$server" 2>/dev/null || ended=$?
    return "$ok"
}

# The same, but the server stays; its number is in `$server`.
start_serving() {
    local within=$1 began
    shift
    port=$(free_port)
    served=${served:-$(mktemp)}
    began=$(date +%s%3N)
    "$@" --addr "127.0.0.1:$port" --proto tcp >"$served" 2>&1 &
    server=$!
    serves_within "$port" "$within" || return 1
    waited_ms=$(($(date +%s%3N) - began))
}

# The C compiler's program of scripts/NAME.c; its path is in `$compiled`.
compile() {
    mkdir -p "$target"
    compiled=$(cd "$target" && pwd)/$1
    cc -O2 -Wall -Wextra "${@:2}" -o "$compiled" "scripts/$1.c"
}
