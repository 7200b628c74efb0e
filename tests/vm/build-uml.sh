#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds a user-mode Linux (a kernel that is an ordinary program) with Soft-RoCE from Debian's
# kernel source: the program for vm-verbs.sh -u and for M2N_VM_UML.
#
#   bash tests/vm/build-uml.sh OUT
#
# Takes 4 minutes on two processors and 2 GB of files below $TMPDIR. Debian packages:
# linux-source-6.12 gcc make flex bison bc xz-utils. The result is a build of a GPL program; it is
# not part of libm2n.
set -eu

out=$(readlink -f -- "${1:?usage: build-uml.sh OUT}")
src=$(find /usr/src -maxdepth 1 -name 'linux-source-6.*.tar.xz' 2>/dev/null | sort -V | tail -1)
if [ -z "$src" ]; then
	echo "missing Debian package: linux-source-6.12" >&2
	exit 1
fi
for program in gcc make flex bison bc xz; do
	if ! command -v $program >/dev/null; then
		echo "missing Debian package: ${program/#xz/xz-utils}" >&2
		exit 1
	fi
done

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
tar -xJf "$src" -C "$dir" --strip-components=1
cd "$dir"

# One processor only: spinning processes change hands at each tick, so tick faster.
sed -i '/^config HZ$/,/default 100/s/default 100/default 1000/' arch/um/Kconfig

# A host with AMX keeps 11 KB of vector state, more than the kernel's buffer, and takes them back
# only as a whole: pad with zeros what has no room, and claim none of it (bits 17 and 18, AMX,
# which no guest program is given).
registers=arch/x86/um/os-Linux/registers.c
sed -i -e '/^int restore_fp_registers/,/^}/{
	s/^\tstruct iovec iov;/&\n\tstatic unsigned long whole[2048];/
	s/iov.iov_base = fp_regs;/__builtin_memcpy(whole, fp_regs, FP_SIZE * sizeof(long));\
		whole[64] \&= ~(3ul << 17);\n\t\tiov.iov_base = whole;/
	s/iov.iov_len = .*/iov.iov_len = sizeof(whole);/
}' $registers
grep -q 'iov.iov_base = whole;' $registers

cat >fragment <<'CONFIG'
CONFIG_64BIT=y
CONFIG_EXPERT=y
CONFIG_CC_OPTIMIZE_FOR_PERFORMANCE=y
CONFIG_PRINTK=y
CONFIG_BUG=y
CONFIG_KALLSYMS=y
CONFIG_MAGIC_SYSRQ=y
CONFIG_MULTIUSER=y
CONFIG_HIGH_RES_TIMERS=y
CONFIG_NO_HZ_IDLE=y
CONFIG_BINFMT_ELF=y
CONFIG_BINFMT_SCRIPT=y
CONFIG_SYSFS=y
CONFIG_PROC_FS=y
CONFIG_PROC_SYSCTL=y
CONFIG_SHMEM=y
CONFIG_TMPFS=y
CONFIG_TMPFS_XATTR=y
CONFIG_DEVTMPFS=y
CONFIG_HOSTFS=y
CONFIG_OVERLAY_FS=y
CONFIG_CONFIGFS_FS=y
CONFIG_INOTIFY_USER=y
CONFIG_FILE_LOCKING=y
CONFIG_FUTEX=y
CONFIG_EPOLL=y
CONFIG_SIGNALFD=y
CONFIG_TIMERFD=y
CONFIG_EVENTFD=y
CONFIG_AIO=y
CONFIG_ADVISE_SYSCALLS=y
CONFIG_MEMBARRIER=y
CONFIG_POSIX_TIMERS=y
CONFIG_SYSVIPC=y
CONFIG_POSIX_MQUEUE=y
CONFIG_MEMFD_CREATE=y
CONFIG_CROSS_MEMORY_ATTACH=y
CONFIG_NAMESPACES=y
CONFIG_TTY=y
CONFIG_UNIX98_PTYS=y
CONFIG_STDERR_CONSOLE=y
CONFIG_NULL_CHAN=y
CONFIG_NET=y
CONFIG_UNIX=y
CONFIG_PACKET=y
CONFIG_INET=y
CONFIG_IPV6=y
CONFIG_NETDEVICES=y
CONFIG_NET_CORE=y
CONFIG_VETH=y
CONFIG_VIRTIO_MENU=y
CONFIG_VIRTIO_UML=y
CONFIG_UML_PCI_OVER_VIRTIO=y
CONFIG_UML_PCI_OVER_VIRTIO_DEVICE_ID=1234
CONFIG_INFINIBAND=y
CONFIG_INFINIBAND_USER_MAD=y
CONFIG_INFINIBAND_USER_ACCESS=y
CONFIG_INFINIBAND_ADDR_TRANS=y
CONFIG_RDMA_RXE=y
CONFIG_NET_SCHED=y
CONFIG_NET_SCH_NETEM=y
CONFIG
make ARCH=um tinyconfig >/dev/null
./scripts/kconfig/merge_config.sh -m .config fragment >/dev/null
make ARCH=um olddefconfig >/dev/null
while read -r option; do
	grep -q "^$option\$" .config || echo "warning: $option did not take" >&2
done <fragment
grep -q '^CONFIG_RDMA_RXE=y' .config
if ! make ARCH=um -j"$(nproc)" linux >log 2>&1; then
	tail -30 log >&2
	exit 1
fi
strip -o "$out" linux
ls -la "$out"
