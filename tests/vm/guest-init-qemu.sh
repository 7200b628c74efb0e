#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
#
# The first program of a QEMU guest, in the initramfs: loads the modules, mounts the host's root
# (9p, read-only) with a writable layer over it, the control directory and the directories that it
# lists for writing, and goes on with guest-main.sh.
/bin/busybox --install -s /bin
export PATH=/bin
options=trans=virtio,version=9p2000.L,msize=512000

# Mounts or gives up; the console's last lines are what the host shows.
must_mount()
{
	mount "$@" && return
	echo "vm-verbs: cannot mount $*"
	poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module args; do
	# shellcheck disable=SC2086 # none, or several words
	insmod "/modules/$module" $args || echo "vm-verbs: no $module"
done </modules/list
must_mount -t 9p -o $options,ro,cache=loose root /lower
must_mount -t tmpfs -o size=50% rw /rw
mkdir /rw/upper /rw/work
must_mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work,xino=off root /root
cd /root || poweroff -f
mount -t tmpfs run run
mkdir run/vm-verbs run/lock
must_mount -t 9p -o $options,cache=none control run/vm-verbs
mount -t proc proc proc
mount -t sysfs sys sys
mount --move /dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
i=0
while read -r dir; do
	must_mount -t 9p -o $options,cache=mmap out$i "/root$dir"
	i=$((i + 1))
done <run/vm-verbs/outs
exec chroot /root /bin/bash /run/vm-verbs/main
