#!/usr/bin/env bash
# Builds the library for C and C++ and installs it: headers, static and shared library, a pkg-config file and a CMake
# package.
#
# usage: scripts/install.sh PREFIX [CARGO PROFILE]     default profile: release
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
prefix=$1 profile=${2:-release}
mkdir -p "$prefix"/{include,lib/pkgconfig,lib/cmake/anabranch}
prefix=$(cd "$prefix" && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

cargo rustc --quiet --lib --features capi --crate-type cdylib,staticlib --profile "$profile"
built=$target/$profile
[ "$profile" = dev ] && built=$target/debug

install -m 644 include/anabranch.h include/opensocket.h "$prefix/include"
install -m 644 "$built/libanabranch.a" "$prefix/lib"
install -m 755 "$built/libanabranch.so" "$prefix/lib"
fill() { sed -e "s|@PREFIX@|$prefix|g; s|@VERSION@|$version|g" "$1" >"$2"; }
fill packaging/anabranch.pc.in "$prefix/lib/pkgconfig/anabranch.pc"
for file in anabranch-config anabranch-config-version; do
    fill "packaging/$file.cmake.in" "$prefix/lib/cmake/anabranch/$file.cmake"
done
say "installed anabranch $version in $prefix"
