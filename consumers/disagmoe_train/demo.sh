#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Trains 200 steps on tinyshakespeare with 2 attention and 2 FFN ranks, prints the falling loss,
# draws the loss curve and the timeline of a step, and serves a prompt from the checkpoint. Without
# that text a few pages of this project stand in.
#
#   sh consumers/disagmoe_train/demo.sh [BUILD [OUT [OPTION...]]]
#
# leaves checkpoint, metrics.csv, report.json, loss.svg, loss.png, timeline.svg and timeline.json in
# OUT (train-demo). OPTIONs go to `disagmoe_train run` after the others. TEXT names another text;
# M2N_DATA the folder of data, ../shared/data beside the sources otherwise.
set -eu

here=$(cd "$(dirname -- "$0")" && pwd)
build=${1:-build}
out=${2:-train-demo}
[ $# -lt 2 ] || shift
[ $# -lt 1 ] || shift
text=${TEXT:-${M2N_DATA:-$here/../../../shared/data}/text/tinyshakespeare.txt}
[ -f "$text" ] || text=$here/../../tests/data/text_small.txt
prompt="The "

mkdir -p "$out"
"$build"/consumers/disagmoe_train/disagmoe_train run "$text" -M 2 -N 2 -n 200 \
	--checkpoint "$out/checkpoint" --metrics "$out/metrics.csv" --json "$out/report.json" \
	--timeline "$out" "$@"
"$here"/disagmoe_train_plot -o "$out/loss" "$out/metrics.csv" ||
	echo "demo.sh: no picture of the loss; the numbers are in $out/metrics.csv" >&2
echo
echo "The trainer's own words after '$prompt', then those of megascale_infer:"
"$build"/consumers/disagmoe_train/disagmoe_train generate "$out/checkpoint" --prompt "$prompt" \
	--tokens 24
"$build"/consumers/megascale_infer/megascale_infer serve "$out/checkpoint/model" --bytes \
	--prompt "$prompt" --tokens 24 -M 2 -N 2 --quiet \
	--tokens-out "$out/served.json" >"$out/serve.txt"
python3 -c 'import json, sys
print(bytes(json.load(open(sys.argv[1]))["tokens"]).decode(errors="replace"))' "$out/served.json"
