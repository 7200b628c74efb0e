#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fuzzes everything that is parsed, with libFuzzer and the address and undefined-behaviour
# sanitizers, built by Clang into build-fuzz/.
#
#   sh scripts/fuzz.sh SECONDS [TARGET...]
#
# SECONDS are divided among the targets. New inputs go to build-fuzz/corpus/, a crashing input to
# build-fuzz/crash/, from where it moves to tests/fuzz/corpus/ once it is fixed. Exits 1 when a
# target crashed, ran out of memory or hung.
set -eu

case "${1:-}" in
"" | *[!0-9]*)
	echo "usage: sh scripts/fuzz.sh SECONDS [TARGET...]" >&2
	exit 2
	;;
esac
seconds=$1
shift

cd "$(dirname -- "$0")/.."
sh scripts/setup.sh all
CC=clang sh scripts/configure.sh build-fuzz all -Dfuzzers=true -Dbuildtype=debugoptimized \
	-Db_sanitize=address,undefined -Db_lundef=false -Dmpi=disabled -Ducx=disabled \
	-Dc_args=-fsanitize=fuzzer-no-link -Dc_link_args=-fsanitize=fuzzer-no-link
ninja -C build-fuzz fuzzers

if [ $# -eq 0 ]; then
	for source in tests/fuzz/fuzz_*.c; do
		name=${source#tests/fuzz/fuzz_}
		set -- "$@" "${name%.c}"
	done
fi
share=$((seconds / $#))
[ "$share" -gt 0 ] || share=1

mkdir -p build-fuzz/crash
crashed=
for name in "$@"; do
	echo "== $name for $share s"
	mkdir -p "build-fuzz/corpus/$name"
	"build-fuzz/tests/fuzz/fuzz_$name" -max_total_time="$share" -timeout=10 \
		-artifact_prefix="build-fuzz/crash/$name-" "build-fuzz/corpus/$name" \
		"tests/fuzz/corpus/$name" </dev/null || crashed="$crashed $name"
done
if [ -n "$crashed" ]; then
	echo "crashed:$crashed" >&2
	exit 1
fi
