#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes a build directory ready for Ninja; does nothing when it is.
#
#   sh scripts/configure.sh DIR build|all [MESON OPTION...]
#
# "build" and "all" say which packages scripts/setup.sh was asked for: Meson decides at
# configuration which yardsticks and tests there are, so more packages mean another look. Options
# given for a directory that is configured already are applied to it.
set -eu

if [ $# -lt 2 ]; then
	echo "usage: sh scripts/configure.sh DIR build|all [MESON OPTION...]" >&2
	exit 2
fi
dir=$1
packages=$2
shift 2
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
stamp=$dir/packages.stamp
# What makes two configurations the same; "build" is content with what "all" left.
wanted="$packages $*"

if [ ! -f "$dir/build.ninja" ] && [ -f "$dir/meson-private/coredata.dat" ]; then
	# A configuration that did not come to its end.
	meson setup --wipe "$dir" "$root" "$@"
elif [ ! -f "$dir/build.ninja" ]; then
	meson setup "$dir" "$root" "$@"
elif [ -f "$stamp" ] && { [ "$(cat "$stamp")" = "$wanted" ] || [ "$packages" = build ]; }; then
	exit 0
else
	meson setup --reconfigure "$dir" "$root" "$@"
fi
echo "$wanted" >"$stamp"
