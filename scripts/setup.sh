#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing to build and test libm2n on Debian 12, and nothing else.
#
#   sh scripts/setup.sh build    to build the tree
#   sh scripts/setup.sh all      also the tests' tools and the yardsticks (MPI, UCX); the default
#
# Takes a fraction of a second when nothing is missing. Installing needs root or sudo; without
# them it names the packages and exits 1.
set -eu

build_packages="meson ninja-build pkg-config gcc g++ libc6-dev libsodium-dev libcmocka-dev
	libnuma-dev libibverbs-dev librdmacm-dev libucx-dev libopenblas-dev libjansson-dev python3"
test_packages="git strace valgrind clang libclang-rt-14-dev clang-format cmake mandoc iproute2
	python3-matplotlib"
# The guest in which the verbs backend is tested, and what is tried in it (tests/vm).
vm_packages="qemu-system-x86 linux-image-amd64 busybox-static kmod cpio xz-utils zstd
	ibverbs-providers ibverbs-utils rdmacm-utils perftest"
yardstick_packages="openmpi-bin libopenmpi-dev libpmix-dev ucx-utils"

missing_packages()
{
	installed=" $(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
		sed -n 's/^installed //p' | tr '\n' ' ')"
	for package in "$@"; do
		case "$installed" in
		*" $package "*) ;;
		*) printf '%s ' "$package" ;;
		esac
	done
}

# A kernel that this system will never boot needs no initramfs: where there is no boot loader it is
# there for the tests' guest only, which makes its own.
initrd()
{
	if [ -d /boot/grub ] || [ -d /boot/efi ] || [ -d /boot/extlinux ] || [ -d /boot/loader ]
	then
		echo Yes
	else
		echo No
	fi
}

# Not Debian: the packages cannot be looked up, the programs can.
check_programs()
{
	for program in meson ninja pkg-config cc; do
		if ! command -v "$program" >/dev/null 2>&1; then
			echo "setup: '$program' is missing; this is not Debian. There:" >&2
			echo "  apt-get install $*" >&2
			exit 1
		fi
	done
}

# Prints the command that gives root's rights, "none" when there is no way to get them.
find_root()
{
	if [ "$(id -u)" -eq 0 ]; then
		echo env
	elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
		echo sudo
	else
		echo none
	fi
}

case "${1:-all}" in
build) packages=$build_packages ;;
all) packages="$build_packages $test_packages $vm_packages $yardstick_packages" ;;
*)
	echo "usage: sh scripts/setup.sh [build|all]" >&2
	exit 2
	;;
esac
# shellcheck disable=SC2086 # package names have no blanks
set -- $packages

if ! command -v dpkg-query >/dev/null 2>&1; then
	check_programs "$@"
	exit 0
fi
missing=$(missing_packages "$@")
[ -n "$missing" ] || exit 0

root=$(find_root)
if [ "$root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "setup: packages are missing and there is no right to install them. As root:" >&2
	echo "  apt-get install ${missing% }" >&2
	exit 1
fi
echo "setup: installing ${missing% }"
# Stale lists are the usual reason for a failed update; what they name may still be there.
$root apt-get update -q </dev/null || echo "setup: apt-get update failed, going on" >&2
# shellcheck disable=SC2086
if ! $root env DEBIAN_FRONTEND=noninteractive INITRD="$(initrd)" apt-get install -q -y \
	--no-install-recommends $missing </dev/null; then
	echo "setup: could not install: ${missing% }" >&2
	exit 1
fi
