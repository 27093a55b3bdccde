#!/usr/bin/env bash
# Tools that look for what is wrong with a TLS server, against the example tls_echo: six scripts of tlsfuzzer for TLS 1.3,
# and sslyze or testssl. What could not run is told, and then the exit code is 75, never 0.
#
# usage: scripts/tls_tools.sh
#        TLSFUZZER: a copy of tlsfuzzer (its folders tlsfuzzer and scripts)
#        PYTHON: an interpreter with tlslite-ng 0.9; without it one is set up under the target directory, by pip
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

missing=()
failed=()

command -v openssl >/dev/null || not_run "openssl is missing, which makes the certificate"
cargo build --release --features tls-ring --example tls_echo --example certificates
work=$target/tls-tools
mkdir -p "$work"

# The scripts of tlsfuzzer ask for RSA. The certificate is valid for as long as Mozilla's profile allows.
openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/rsa.key" -out "$work/rsa.pem" -days 90 \
    -subj /CN=localhost -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" 2>/dev/null
"$target/release/examples/certificates" --out "$work" >/dev/null

servers=()
trap 'kill "${servers[@]}" 2>/dev/null || true' EXIT

# serve LOG FLAGS... : starts the server and sets `port`.
serve() {
    local log=$1
    shift
    "$target/release/examples/tls_echo" --addr 127.0.0.1:0 "$@" >"$log" 2>&1 &
    servers+=($!)
    port=
    for _ in $(seq 100); do
        port=$(sed -n 's/^echoing .*:\([0-9]*\)$/\1/p' "$log")
        [ -z "$port" ] || return 0
        sleep 0.1
    done
    fail "tls_echo did not start: $(cat "$log")"
}

# An interpreter that has the packages, made if need be.
python_with() {
    local python=${PYTHON:-$work/venv/bin/python}
    if [ ! -x "$python" ]; then
        python3 -m venv "$work/venv" >/dev/null 2>&1 || return 1
    fi
    "$python" -c "import $1" 2>/dev/null || timeout 300 "$python" -m pip install -q "$2" >/dev/null 2>&1 || return 1
    printf '%s\n' "$python"
}

# rustls refuses what it should, but calls two things otherwise than RFC 8446 does: an alert without content is a
# decode_error to it and no unexpected_message, a Finished of a wrong length a decrypt_error and no decode_error. These are
# counted apart and told; every other difference is a failure. (The script of Finished takes a sample each time.)
renamed='"unexpected_message" does not match received "decode_error"|"decode_error" does not match received "decrypt_error"'

tlsfuzzer() {
    local name log code fails calls
    for name in conversation record-padding zero-length-data empty-alert ccs finished; do
        log=$work/$name.log code=0
        (cd "$TLSFUZZER" && PYTHONPATH=. timeout 300 "$python" "scripts/test-tls13-$name.py" -h 127.0.0.1 -p "$port") \
            >"$log" 2>&1 || code=$?
        fails=$(sed -n 's/^FAIL: //p' "$log" | tail -1)
        calls=$(grep -cE "^AssertionError: .*($renamed)" "$log" || true)
        say "tlsfuzzer $name: $(sed -n 's/^\(TOTAL\|PASS\): /\1 /p' "$log" | tr '\n' ' ')(refused, by another name: $calls)"
        [ "${fails:-none}" = "$calls" ] || failed+=("tlsfuzzer $name (exit code $code), see $log")
    done
}

if [ -z "${TLSFUZZER:-}" ] || [ ! -d "${TLSFUZZER:-}/scripts" ]; then
    missing+=("tlsfuzzer (set TLSFUZZER to a copy of it)")
elif ! python=$(python_with tlslite tlslite-ng==0.9.0b2); then
    missing+=("tlsfuzzer (no Python with tlslite-ng)")
else
    TLSFUZZER=$(cd "$TLSFUZZER" && pwd)
    case $python in /*) ;; *) python=$PWD/$python ;; esac
    serve "$work/rsa.log" --cert "$work/rsa.pem" --key "$work/rsa.key" --requests
    tlsfuzzer
fi

# That nobody knows the authority is the only thing that may be held against it.
serve "$work/server.log" --cert "$work/server.pem" --key "$work/server.key"
if python=$(python_with sslyze sslyze==6.3.1); then
    timeout 300 "$python" -m sslyze --mozilla_config intermediate "127.0.0.1:$port" >"$work/sslyze.log" 2>&1 || true
    grep -q 'SCANS COMPLETED' "$work/sslyze.log" || failed+=("sslyze did not end, see $work/sslyze.log")
    held=$(sed -n '/COMPLIANCE AGAINST/,$p' "$work/sslyze.log" | grep '^ *\* ' | grep -v 'certificate_path_validation' || true)
    held+=$(grep -E 'VULNERABLE -|VULNERABLE$' "$work/sslyze.log" || true)
    say "sslyze: $(grep -c 'OK - ' "$work/sslyze.log") checks are OK; held against it beside the unknown authority: ${held:-nothing}"
    [ -z "$held" ] || failed+=("sslyze, see $work/sslyze.log")
elif command -v testssl >/dev/null; then
    timeout 300 testssl --quiet --color 0 --fast -p -s -U "127.0.0.1:$port" >"$work/testssl.log" 2>&1 || true
    held=$(grep -E 'NOT ok|VULNERABLE \(NOT' "$work/testssl.log" || true)
    say "testssl: held against it: ${held:-nothing}"
    [ -z "$held" ] || failed+=("testssl, see $work/testssl.log")
else
    missing+=("sslyze and testssl (neither is installed)")
fi

[ ${#failed[@]} = 0 ] || fail "$(printf '%s; ' "${failed[@]}")"
[ ${#missing[@]} = 0 ] || not_run "$(printf '%s; ' "${missing[@]}")(the others passed)"
