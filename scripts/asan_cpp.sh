#!/usr/bin/env bash
# The C++ tests and examples with AddressSanitizer and LeakSanitizer, on both backends. Needs a C++ compiler that has them.
#
# usage: scripts/asan_cpp.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cxx=${CXX:-c++}
command -v "$cxx" >/dev/null || not_run "no C++ compiler ($cxx)"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1}

# A checker that finds nothing must be one that can find something.
cat >"$place/leak.cpp" <<'C'
#include <stdlib.h>
#include "opensocket.h"
static void leak(const open::OpenSocketMsg*) {}  // never deleted
int main() {
    open::OpenSocket sockets;
    sockets.run(leak);
    sockets.start(1, 99);
    open::OpenSocket::Sleep(100);
}
C

cargo rustc --quiet --lib --features capi --crate-type cdylib,staticlib --profile dev
compile() {
    "$cxx" -std=c++11 -g -fsanitize=address -fno-omit-frame-pointer -Iinclude "$1" -o "$2" \
        "$target/debug/libanabranch.a" -lpthread -ldl -lm
}
compile "$place/leak.cpp" "$place/leak" || not_run "this compiler has no AddressSanitizer"
"$place/leak" >"$place/log" 2>&1 && fail "AddressSanitizer missed a message that was never deleted"
grep -q 'detected memory leaks' "$place/log" || { cat "$place/log"; not_run "LeakSanitizer does not work on this machine"; }
say "AddressSanitizer works: it found the message that was never deleted"

compile tests/cpp/life.cpp "$place/life"
compile examples/cpp/udp.cpp "$place/udp"
compile examples/cpp/echo.cpp "$place/echo"
compile examples/cpp/http_server.cpp "$place/http"
for backend in uring readiness; do
    export ANABRANCH_BACKEND=$backend
    "$place/life" || fail "life on $backend"
    "$place/udp" 100 >/dev/null || fail "udp on $backend"
    for server in echo http; do
        mkfifo "$place/input"
        "$place/$server" 127.0.0.1:0 <"$place/input" >"$place/log" &
        pid=$!
        exec 4>"$place/input"
        until grep -q ' on ' "$place/log"; do sleep 0.05; done
        port=$(sed -n 's/.*://p' "$place/log" | head -1)
        for _ in 1 2 3 4 5; do
            [ "$(timeout 5 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port && printf 'GET /x HTTP/1.1\r\n\r\n' >&3 && head -c 4 <&3")" ] ||
                fail "$server on $backend does not answer"
        done
        exec 4>&-
        wait "$pid" || fail "$server on $backend"
        rm "$place/input"
    done
    say "no finding on $backend"
done
