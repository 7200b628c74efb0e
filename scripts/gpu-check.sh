#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds libm2n and tries and measures it on the GPU of this machine, within 8 minutes:
#
#   bash scripts/gpu-check.sh [--doubles] [--build DIR] [--commit ID] OUT
#
# Needs nvcc, gcc, python3, Meson and Ninja, no network and no rights; says first what else is
# missing and what is left out for it. OUT gets summary.md, results.json (every case), build.log,
# tests.log and sanitizer.log. The last line is `N passed, N failed, N skipped`; the exit status is
# 1 when something failed.
#
#   --doubles    on the stand-ins of CUDA and NCCL instead: no GPU, and no figure means anything
#   --build DIR  takes this build as it is
#   --commit ID  of this tree, where git cannot tell
set -u

if ! command -v python3 >/dev/null 2>&1; then
	echo "gpu-check: python3 is missing" >&2
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
fi
exec python3 "$(dirname -- "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
