#!/usr/bin/env bash
# Installs the library into a directory of its own, builds the C++ examples with the CMake package that lies there, and
# runs those that end by themselves, linked to the shared and to the static library. Needs CMake and a C++ compiler.
#
# usage: scripts/cmake_package.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

command -v "${CXX:-c++}" >/dev/null || not_run "no C++ compiler"
need cmake || not_run "CMake is missing"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

scripts/install.sh "$place/installed" dev
# Nothing in the package may name the place it was installed in.
mv "$place/installed" "$place/moved"
build() { cmake -S "$1" -B "$1/build" -DCMAKE_PREFIX_PATH="$place/moved" >"$place/log" 2>&1 && cmake --build "$1/build" >>"$place/log" 2>&1; }
cp -r examples/cpp "$place/examples"
build "$place/examples" || { cat "$place/log"; fail "the examples do not build with the CMake package"; }
for program in udp udp_static; do
    [ "$("$place/examples/build/$program" 20 | wc -l)" = 20 ] || fail "$program got no answers"
done

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
asks() {
    mkdir -p "$place/asks-$1"
    printf 'cmake_minimum_required(VERSION 3.10)\nproject(asks CXX)\nfind_package(anabranch %s REQUIRED)\n' "$1" >"$place/asks-$1/CMakeLists.txt"
    build "$place/asks-$1"
}
for good in "$version" "${version%.*}"; do
    asks "$good" || { cat "$place/log"; fail "the package of $version is not found by who asks for $good"; }
done
for other in "${version%.*}.999" 99.0; do
    asks "$other" && fail "the package of $version is given to who asks for $other"
done
say "the CMake package works where it lies, for programs with the shared and with the static library"
