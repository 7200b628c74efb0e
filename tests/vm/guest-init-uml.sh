#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The first program of a user-mode Linux, on the host's root (hostfs, read-only): puts a writable
# layer over it, mounts the control directory (named in $orders by the kernel's command line) and
# the directories that it lists for writing, and goes on with guest-main.sh.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs -o size=50% rw /mnt
cd /mnt || exit 1
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work,xino=off root root
cd root || exit 1
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs run run
mkdir run/vm-verbs run/lock
: >run/uml
# shellcheck disable=SC2154 # the kernel sets it
mount -t hostfs -o "$orders" control run/vm-verbs
while read -r dir; do
	mount -t hostfs -o "$dir" out ".$dir"
done <run/vm-verbs/outs
exec chroot . /bin/bash /run/vm-verbs/main
