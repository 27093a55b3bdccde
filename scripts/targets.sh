#!/usr/bin/env bash
# Clippy for systems that this machine cannot run. Nothing is linked or run, so wrong constants and missing symbols stay
# unseen. A target whose standard library is not there, and cannot be fetched, is named and left out.
#
# usage: scripts/targets.sh [TARGETS...]
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -gt 0 ] || set -- x86_64-apple-darwin aarch64-apple-darwin x86_64-unknown-freebsd aarch64-linux-android \
    i686-unknown-linux-gnu x86_64-pc-windows-gnu
left_out=()
for triple in "$@"; do
    if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$triple/lib" ] && ! timeout 180 rustup target add "$triple" >/dev/null 2>&1; then
        left_out+=("$triple")
        continue
    fi
    say "$triple"
    # Tests and examples need dependencies that compile C, for which there is a compiler for Windows only. Simulations are
    # for Unix. Providers of cryptography compile C, too; TLS is read without one.
    what=(--features capi,futures-io,sim,tls,tls-webpki-roots --lib)
    flags=
    case $triple in
    *windows*) what=(--features futures-io,tls,tls-webpki-roots --lib --tests --examples) ;;
    i686-*-linux-*) flags="--cfg io_uring_skip_arch_check" ;;
    esac
    RUSTFLAGS="${RUSTFLAGS:-} $flags" cargo clippy --target "$triple" "${what[@]}" -- -D warnings
done
[ ${#left_out[@]} = 0 ] || not_run "no standard library for ${left_out[*]} (the others passed)"
