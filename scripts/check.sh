#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, builds into build/, and runs every test.
#
#   sh scripts/check.sh [MESON OPTION...]
#
# The last line is `N passed, N failed, N skipped`; the exit status is 1 when a test failed or
# the build did not come to an end.
set -eu

cd "$(dirname -- "$0")/.."
sh scripts/setup.sh all
sh scripts/configure.sh build all "$@"
ninja -C build

rm -f build/meson-logs/testlog.json
status=0
meson test -C build --no-rebuild --print-errorlogs </dev/null || status=1
python3 tests/run_count build || status=1
exit $status
