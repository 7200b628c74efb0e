#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Serves the first 200 requests of the conversation trace, lengths divided by 16, on a small model
# that it makes itself (always the same): 2 attention and 2 expert ranks, three micro-batches.
# Without the trace one of our own in its form stands in.
#
#   sh consumers/megascale_infer/demo.sh [BUILD [OUT [OPTION...]]]
#
# leaves model, report.json, timeline.json and timeline.svg in OUT (serve-demo). OPTIONs go to
# `megascale_infer serve` after the others. M2N_DATA names the folder of data, ../shared/data beside
# the sources otherwise.
set -eu

here=$(cd "$(dirname -- "$0")" && pwd)
build=${1:-build}
out=${2:-serve-demo}
[ $# -lt 2 ] || shift
[ $# -lt 1 ] || shift
trace=${M2N_DATA:-$here/../../../shared/data}/serving/azure_2023_conv_first3000.csv
[ -f "$trace" ] || trace=$here/example_trace.csv

mkdir -p "$out"
"$build"/consumers/common/model/m2n_model make --layers 4 --hidden 128 --experts 8 --top-k 2 \
	--seed 1 "$out/model"
exec "$build"/consumers/megascale_infer/megascale_infer serve "$out/model" --trace "$trace" \
	--requests 200 --length-divisor 16 -M 2 -N 2 -m 3 --timeline "$out" \
	--json "$out/report.json" "$@"
