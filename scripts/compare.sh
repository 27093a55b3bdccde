#!/usr/bin/env bash
# The comparison with other runtimes: tables and charts in docs/performance. Wants a quiet machine with two cores.
#
# usage: scripts/compare.sh [COMMAND AND FLAGS...]     default: all
#        scripts/compare.sh all --quick                under two minutes
#        scripts/compare.sh smoke                      every server, tiny loads, every byte checked; no numbers
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -gt 0 ] || set -- all
[ "$(uname -s)" = Linux ] || not_run "the comparison reads the books of Linux"
[ -e /usr/include/asio.hpp ] || need asio.hpp libasio-dev || say "libasio-dev is missing: the cells of Asio stay empty"
cd benches/compare
cargo build --release
cargo run -q --release -- "$@"
