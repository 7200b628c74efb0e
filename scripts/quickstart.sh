#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The main job on this machine: installs what is missing, builds into build/, then dispatches and
# combines between 2 attention and 2 expert ranks over shared memory, checks every byte, and
# prints the table. The second table does the same with a routing that was
# learned (tests/data/README.md).
#
#   sh scripts/quickstart.sh               all of it
#   sh scripts/quickstart.sh --job DIR     only the tables, with the programs built in DIR
set -eu

cd "$(dirname -- "$0")/.."
dir=build
case "${1:-}" in
--job)
	dir=${2:?DIR is missing}
	;;
"")
	sh scripts/setup.sh build
	sh scripts/configure.sh build build
	ninja -C build
	;;
*)
	echo "usage: sh scripts/quickstart.sh [--job DIR]" >&2
	exit 2
	;;
esac

echo "Dispatch and combine, 2 sources x 2 experts, shared memory, uniform routing:"
"$dir"/perftest/m2n_perf moe -M 2 -N 2 --tokens 128 --row-bytes 14336 --top-k 8 --experts 16 \
	--backend shm
trace=tests/data/routing_trained.csv
if [ -f "$trace" ]; then
	echo
	echo "The same with a routing that training learned ($trace):"
	"$dir"/perftest/m2n_perf moe -M 2 -N 2 --row-bytes 14336 --routing "trace:$trace" \
		--backend shm
fi
